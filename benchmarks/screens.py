"""Pictures of what people see: help, order of commands, status, progress on a terminal, and the report in a browser.

    python benchmarks/screens.py --run DIR [--only NAME,...]

DIR: a finished run folder, such as the tutorial's; it is copied, and the copy is what is shown. Terminal screens are
SVG files in docs/images/screens/, 80 columns wide: the command runs on a pseudo-terminal, and rich draws what it wrote.
The report is opened in Chromium (apt-get install chromium; pip install playwright), 1280 px wide and as a phone shows
it, in light and dark. Figures of the run go to docs/images/tutorial/. Ends with one JSON line: files and their bytes.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common import ROOT
from PIL import Image
from rich.console import Console
from rich.text import Text

FOLDER = ROOT / "docs" / "images" / "screens"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu")
COLUMNS, ROWS = 80, 50
CONTROL = re.compile(r"\x1b\[(\?25[hl]|\d*A|2K)|\r\n|\r|\n")
FONTS = re.compile(r"@font-face \{.*?\}\n?", re.DOTALL)  # asked of a server: a picture asks for nothing


@dataclass(frozen=True)
class Screen:
    """words: what is typed. rows: lines kept from the top. until: as soon as this stands on the screen it is drawn, and
    the command is interrupted; "" = when it has ended. after: seconds later."""

    name: str
    words: str
    rows: int = ROWS
    until: str = ""
    after: float = 0.0


SCREENS = (
    Screen("commands", "dcdm"),
    Screen("help", "dcdm score --help", rows=44),
    Screen("status", "dcdm status --run first-look"),
    Screen("progress", "dcdm finetune --run first-look --force", until="it/s", after=8),
)
FIGURES = ("figures/hardest.png", "evaluation/figures/atlas.png", "evaluation/figures/adherence.png")
COLOURS = 64  # of a picture: small files
VIEWS: dict[str, tuple[int, int, Literal["light", "dark"]]] = {
    "report": (1280, 1500, "light"),
    "report-dark": (1280, 1500, "dark"),
    "report-phone": (390, 1500, "light"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--only", default="", help="names of screens, with commas")
    options = parser.parse_args()
    wanted = set(filter(None, options.only.split(",")))
    FOLDER.mkdir(parents=True, exist_ok=True)
    made = []
    with tempfile.TemporaryDirectory() as place:
        run = shutil.copytree(options.run, Path(place) / "first-look")
        for screen in SCREENS:
            if not wanted or screen.name in wanted:
                made.append(drawn(screen, Path(place)))
        if not wanted or wanted & set(VIEWS):
            made += browsed(run / "evaluation" / "report.html", wanted)
        if not wanted or "figures" in wanted:
            made += [small(run / name, FOLDER.with_name("tutorial") / Path(name).name) for name in FIGURES]
    print(json.dumps({file.name: file.stat().st_size for file in made}))


def drawn(screen: Screen, folder: Path) -> Path:
    """The screen as an SVG file."""
    lines = [part for line in shown(screen, folder) for part in broken(line)]
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text(f"$ {screen.words}", style="bold"))
    for line in lines[: screen.rows]:
        console.print(line, no_wrap=True, overflow="crop")
    if len(lines) > screen.rows:
        console.print(Text("…"))
    file = FOLDER / f"{screen.name}.svg"
    file.write_text(FONTS.sub("", console.export_svg(title="dcdm")), "utf-8")
    return file


def broken(line: str) -> list[Text]:
    """As a terminal shows a line: what is longer than it is wide goes on below."""
    text = Text.from_ansi(line)
    text.rstrip()
    return list(text.divide(range(COLUMNS, len(text), COLUMNS)))


def shown(screen: Screen, folder: Path) -> list[str]:
    """The lines that stand on a terminal of 80 columns when the command has ended, or when `until` has come."""
    main_end, command_end = pty.openpty()
    termios.tcsetwinsize(command_end, (ROWS, COLUMNS))
    env = {**os.environ, "COLUMNS": str(COLUMNS), "LINES": str(ROWS), "TERM": "xterm-256color", "HF_HUB_OFFLINE": "1"}
    env |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}", "COLORTERM": "truecolor"}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "export")])
    command = subprocess.Popen(
        screen.words, shell=True, cwd=folder, env=env, stdin=command_end, stdout=command_end, stderr=command_end,
        start_new_session=True, preexec_fn=_hears_ctrl_c,
    )  # fmt: skip
    os.close(command_end)
    text, seen = "", 0.0
    while data := _read(main_end, command):
        text += data
        if screen.until and not seen and any(screen.until in line for line in on_screen(text)):
            seen = time.monotonic()
        if seen and time.monotonic() - seen > screen.after:
            break
    lines = on_screen(text)
    _end(command, main_end)
    os.close(main_end)
    command.wait()
    return [line.replace(f"{folder}{os.sep}", "") for line in lines]


def _hears_ctrl_c() -> None:
    """Who was started in the background hears none, and its children with it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _end(command: subprocess.Popen[Any], end: int) -> None:
    """By Ctrl-C, more than once: a signal just before a program begins to wait for input is not heard."""
    while command.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(command.pid, signal.SIGINT)
        with suppress(OSError):  # Linux's way to say that nobody writes any more
            while select.select([end], [], [], 0.5)[0] and os.read(end, 65536):
                pass


def _read(end: int, command: subprocess.Popen[Any]) -> str:
    """What came; "" when the command has ended."""
    while True:
        ready, _, _ = select.select([end], [], [], 0.5)
        if ready:
            try:
                return os.read(end, 65536).decode("utf-8", "replace")
            except OSError:  # Linux's way to say that nobody writes any more
                return ""
        if command.poll() is not None:
            return ""


def on_screen(text: str) -> list[str]:
    """What is left on the screen, colours included, of a program that writes whole lines, goes up and erases lines: as
    rich's bars do."""
    lines, row, place = [""], 0, 0
    for control in CONTROL.finditer(text):
        lines[row] += text[place : control.start()]
        place, code = control.end(), control[0]
        if code.endswith("\n"):
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif code.endswith("A"):
            row = max(0, row - int(control[1][:-1] or 1))
        elif code.endswith("2K"):
            lines[row] = ""
    lines[row] += text[place:]
    while lines and not Text.from_ansi(lines[-1]).plain.strip():
        lines.pop()
    return lines


def browsed(page: Path, wanted: set[str]) -> list[Path]:
    """The page as Chromium shows it."""
    from playwright.sync_api import sync_playwright

    made = []
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=BROWSER, args=list(FLAGS))
        for name, (width, height, scheme) in VIEWS.items():
            if wanted and name not in wanted:
                continue
            view = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            view.goto(page.as_uri())
            file = FOLDER / f"{name}.png"
            view.screenshot(path=file)
            made.append(small(file, file))
        browser.close()
    return made


def small(file: Path, target: Path) -> Path:
    """A picture in few colours."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(file) as picture:
        reduced = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    reduced.save(target, optimize=True)
    return target


if __name__ == "__main__":
    main()
