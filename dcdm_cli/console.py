"""The only printer. stdout carries the result, stderr everything else."""

from __future__ import annotations

import json
import os
import sys
import textwrap
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from dcdm_cli.errors import DcdmError
from dcdm_cli.pace import Pace, estimated
from dcdm_cli.safe_text import show

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.console import RenderableType
    from rich.progress import Progress

LINE_EVERY_S = 15.0


@dataclass
class Console:
    """as_json: one JSON document on stdout. quiet: only the result's path. out: the real stdout."""

    as_json: bool = False
    quiet: bool = False
    out: TextIO = field(default_factory=lambda: sys.stdout)
    _bars: Progress | None = None
    _tasks: dict[str, Any] = field(default_factory=dict)
    _paces: dict[str, Pace] = field(default_factory=dict)
    _details: dict[str, str] = field(default_factory=dict)
    _noted: set[str] = field(default_factory=set)
    _last_line: float = field(default_factory=time.monotonic)

    @cached_property
    def err(self) -> RichConsole:
        """Of stderr. Made when something is said: --help says nothing, and does not wait for rich."""
        from rich.console import Console as RichConsole

        # Neither: names from outside may hold brackets and numbers, which stay as they are.
        return RichConsole(stderr=True, highlight=False, markup=False)

    @property
    def _animated(self) -> bool:
        return self.err.is_terminal and not self.err.is_dumb_terminal

    def reserve_stdout(self) -> None:
        """Keeps stdout for the result: points file descriptor 1 at stderr, so that libraries that print cannot soil it.

        Called once a command runs; help and version are printed before and go to stdout as they should.
        """
        sys.stdout.flush()  # what was printed so far belongs to the old descriptor
        # backslashreplace: a path that is no UTF-8 must not end a command that has done its work.
        self.out = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="backslashreplace")
        os.dup2(2, 1)

    def note(self, message: str, *, once: bool = False) -> None:
        """A line for the person watching. once: not again in this command."""
        if self.quiet or (once and message in self._noted):
            return
        self._noted.add(message)
        self._say(show(message))

    def show(self, renderable: RenderableType) -> None:
        """A table for the person watching."""
        if not self.quiet:
            self.err.print(renderable)

    def warn(self, message: str) -> None:
        """Once per command: what is wrong with every set of an experiment is wrong once."""
        if message not in self._noted:
            self._noted.add(message)
            self._say(f"warning: {show(message)}", "yellow")

    def progress(self, what: str, done: int, total: int) -> None:
        """Bars on a terminal; otherwise a line every 15 seconds and at the end: count, speed, detail, time left.

        total 0: not known. What turns out to take more than two minutes is announced once, on a line of its own.
        """
        if self.quiet:
            return
        pace = self._paces.setdefault(what, Pace(what))
        pace.see(done)
        if announcement := pace.announcement(total):
            self.note(announcement)
        if self._animated:
            self._bar(pace, done, total)
        elif 0 < total <= done or time.monotonic() - self._last_line > LINE_EVERY_S:
            self._last_line = time.monotonic()
            self._say(show(pace.line(done, total, self._details.get(what, ""))))
        if 0 < total <= done:  # the same work may come again, for another set, at a pace of its own
            self._paces.pop(what)

    def detail(self, what: str, text: str) -> None:
        """What is shown beside the progress of `what`, such as its loss."""
        self._details[what] = text

    def end_progress(self) -> None:
        if self._bars is not None:
            self._bars.stop()
        self._bars, self._tasks = None, {}

    def result(self, document: dict[str, Any], path: Path | str, shown: Iterable[RenderableType] = ()) -> None:
        """The command's result: the document as JSON, or tables and the path, or the path alone."""
        self.end_progress()
        if self.as_json:
            # allow_nan: a bare NaN is what other readers refuse.
            self.out.write(json.dumps(document, ensure_ascii=False, allow_nan=False) + "\n")
        elif self.quiet:
            self.out.write(f"{path}\n")
        else:
            _print(self.out, shown, path)
        self.out.flush()

    def text(self, text: str) -> None:
        """A result that is a text in a format of its own: nothing else is on stdout, and no line is broken up."""
        self.end_progress()
        self.out.write(text)
        self.out.flush()

    def error(self, error: DcdmError) -> None:
        """What failed and how to go on; with --json the same as the last line of stderr."""
        self.end_progress()
        self._say(f"error: {show(error.message)}", "bold red")
        if error.hint:
            self._say(f"  try: {show(error.hint)}", whole=True)  # a command, to be copied
        self.error_document(error)

    def error_document(self, error: DcdmError) -> None:
        """With --json, the failure as one JSON object on stderr."""
        if self.as_json:
            sys.stderr.write(json.dumps(_error_document(error)) + "\n")

    def _say(self, line: str, style: str = "", *, whole: bool = False) -> None:
        """Filled to the width of a terminal, between words: a path that is broken up cannot be copied. Elsewhere, and
        where it is to be `whole`, one line whatever its length."""
        from rich.text import Text

        if self.err.is_terminal and not whole:
            line = "\n".join(_filled(part, self.err.width) for part in line.splitlines())
        self.err.print(Text(line, style=style), soft_wrap=True)  # filled already; rich would break a path

    def _bar(self, pace: Pace, done: int, total: int) -> None:
        if self._bars is None:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(20),
                MofNCompleteColumn(),
                TextColumn("{task.fields[said]}"),
            )
            self._bars = Progress(*columns, console=self.err, transient=True)
            self._bars.start()
        what = pace.what
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(show(what), total=total or None, said="")
        left = pace.left(total) if total else None
        parts = (pace.speed(), self._details.get(what, ""), f"{estimated(left)} left" if left is not None else "")
        said = show(", ".join(part for part in parts if part))
        self._bars.update(self._tasks[what], completed=done, total=total or None, said=said)
        if 0 < total <= done:
            self._bars.remove_task(self._tasks.pop(what))


def _print(out: TextIO, shown: Iterable[RenderableType], path: Path | str) -> None:
    from rich.console import Console as RichConsole
    from rich.text import Text

    class Human(RichConsole):
        """Rich ends the process with code 1 when the reader has left; ours is 141."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    human = Human(file=out, highlight=False, markup=False)
    for renderable in shown:
        # a Text is to be copied, as a path or a command
        human.print(renderable, soft_wrap=isinstance(renderable, Text))
    human.print(Text(show(path)), soft_wrap=True)


def _error_document(error: DcdmError) -> dict[str, Any]:
    kind = type(error).__name__
    return {
        **error.figures,
        "type": "error",
        "code": int(error.code),
        "kind": kind,
        "message": error.message,
        "hint": error.hint,
        "file": error.file,
    }


def _filled(line: str, width: int) -> str:
    """Broken between words only."""
    return textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False)
