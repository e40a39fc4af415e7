"""Runs the commands that a document shows and writes down what they print.

    python benchmarks/transcripts.py docs/tutorial.md --folder DIR [--from N]

Every line that begins with `$ ` in a ```console block is run by the shell in DIR, one after the other, 80 columns wide;
what follows it in the block is replaced by what came out on both streams, without progress lines and blank ends. A
command that fails ends the script, and nothing is written. DIR must hold what the document says is there. --from N: the
blocks before the N-th (from 1) stay as they are. Below each block stands what the commands took, on the clock and of
processor time: where other work shares the machine, the second tells what a free one would need. A line
`<sub>All of it: ...</sub>` becomes the sum of these.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from common import ROOT, provenance

BLOCK = re.compile(r"```console\n(.*?)```\n(?:\n<sub>.*?</sub>\n)?", re.DOTALL)
TOOK = re.compile(r"^<sub>(\d+) s, (\d+) s of processor time (\(.*)</sub>$", re.MULTILINE)
TOTAL = re.compile(r"^<sub>All of it: .*</sub>$", re.MULTILINE)
# Where stderr is no terminal, progress is a line every 15 seconds.
PROGRESS = re.compile(r"^[a-z][\w ,:%.-]*?: [\d,]+/[\d,]+.*$|^.* to go take about .*$")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("document", type=Path)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--from", dest="first", type=int, default=1)
    options = parser.parse_args()
    text, made, place = options.document.read_text("utf-8"), [], 0
    for number, block in enumerate(BLOCK.finditer(text), 1):
        again = number >= options.first
        made += [text[place : block.start()], ran(block[1], options.folder) if again else block[0]]
        place = block.end()
        if again:  # what is finished is kept, should a later command fail
            options.document.write_text(totalled("".join(made) + text[place:]), "utf-8")


def ran(block: str, folder: Path) -> str:
    clock, worked = time.monotonic(), processor_seconds()
    lines = [line for words in commands(block) for line in (f"$ {words}", *output(words, folder), "")]
    facts = provenance("")
    took = f"{time.monotonic() - clock:.0f} s, {processor_seconds() - worked:.0f} s of processor time"
    took += f" ({threads()}), {facts['hardware']}, {facts['date']}"
    return "```console\n" + "\n".join(lines).rstrip() + f"\n```\n\n<sub>{took}</sub>\n"


def processor_seconds() -> float:
    """Of the commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def threads() -> str:
    """How many there were for the commands: as many as cores that this process may use, unless it is said otherwise."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = int(os.environ.get("OMP_NUM_THREADS", allowed))
    return "1 thread" if count == 1 else f"{count} threads"


def totalled(text: str) -> str:
    found = TOOK.findall(text)
    wall, processor = (sum(int(took[i]) for took in found) / 60 for i in (0, 1))
    total = f"<sub>All of it: {wall:.1f} min, {processor:.1f} min of processor time {found[-1][2]}</sub>"
    return TOTAL.sub(lambda _: total, text)


def commands(block: str) -> Iterator[str]:
    yield from (line[2:] for line in block.splitlines() if line.startswith("$ "))


def output(words: str, folder: Path) -> list[str]:
    env = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb", "HF_HUB_OFFLINE": "1"}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "export"), env.get("PYTHONPATH", "")])
    done = subprocess.run(
        words, shell=True, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    if done.returncode:
        raise SystemExit(f"{words!r} ended with {done.returncode}:\n{done.stdout[-3000:]}")
    shown = done.stdout.replace(str(folder.absolute()) + os.sep, "").replace(str(folder.absolute()), ".")
    return [line.rstrip() for line in shown.rstrip().splitlines() if not PROGRESS.match(line)]


if __name__ == "__main__":
    main()
