"""Commands in forks of one process that has imported everything: killed, interrupted, given a failing disk, compared.

A fork starts in milliseconds, so that hundreds of kills take minutes. What a run folder holds is compared by content:
times, seconds and the order of safetensors' metadata differ from run to run.
"""

from __future__ import annotations

import builtins
import errno
import hashlib
import io
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Sizes and hashes that records keep are of files that are compared themselves.
VOLATILE = re.compile(
    r"seconds|started|peak_memory_mib|energy_wh|apart|made_now|resumed|versions|mtime_ns|sha256|row_hash|^size$|^made$"
)
BESIDE = re.compile(
    r"^(\.lock.*|records/.*\.stopped\.json|tables/.*|figures/.*|logs/.*|cache/.*\.seal|evaluation/(figures|tables)/.*)$"
)
SHOWN = re.compile(r"\.html$")  # times and seconds stand in them
CALLS = ("open", "replace", "fsync", "mkdir", "unlink")
ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EINTR)


@dataclass(frozen=True)
class Ended:
    """code: negative for a signal that killed it. said: what was on stderr. calls: of `CALLS`, where they were counted.
    stopped_s: from the signal to the end. peak_mib: of resident memory; what the parent had imported counts."""

    code: int
    seconds: float
    said: str
    calls: int = 0
    stopped_s: float = 0.0
    peak_mib: float = 0.0

    @property
    def is_clean(self) -> bool:
        """Ended by itself, with a code and a sentence that are meant, and no traceback."""
        return self.code >= 0 and self.is_quiet

    @property
    def is_quiet(self) -> bool:
        """No traceback, and nothing that is called a bug."""
        return "Traceback" not in self.said and "please report" not in self.said


def warm_up() -> None:
    """Imports what commands import, once, in this process."""
    import accelerate
    import datasets
    import diffusers
    import matplotlib.figure
    import peft
    import sklearn.datasets
    import timm
    import torch
    import transformers

    import dcdm_cli.captioning.captioner
    import dcdm_cli.difficulty.scorer
    import dcdm_cli.evaluation.downstream
    import dcdm_cli.generation.run
    import dcdm_cli.training.loop

    torch.set_num_threads(1)
    assert all((accelerate, datasets, diffusers, matplotlib, peft, sklearn, timm, transformers, dcdm_cli))


def start(words: Sequence[object], said: Path, before: Callable[[], None] = lambda: None) -> int:
    """A fork that runs `dcdm WORDS`; its process number. before: called in it first."""
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        return process
    code = 99
    try:
        out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGHUP):  # whoever started this may have told it to ignore them
            signal.signal(number, signal.SIG_DFL)
        before()
        from dcdm_cli.cli import main

        sys.argv = ["dcdm", *map(str, words)]
        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(
    words: Sequence[object],
    said: Path,
    *,
    kill_after: float | None = None,
    signalled: tuple[signal.Signals, float] | None = None,
    before: Callable[[], None] = lambda: None,
) -> Ended:
    """kill_after, signalled: seconds after which it is killed, or gets a signal, unless it has ended."""
    return watch(start(words, said, before), said, kill_after=kill_after, signalled=signalled)


def watch(
    process: int,
    said: Path,
    *,
    kill_after: float | None = None,
    signalled: tuple[signal.Signals, float] | None = None,
) -> Ended:
    """Waits for a child process that writes to `said`."""
    clock, sent = time.monotonic(), 0.0
    moment, number = (kill_after, signal.SIGKILL) if kill_after is not None else (None, signal.SIGKILL)
    if signalled:
        number, moment = signalled
    while True:
        ended, status, used = os.wait4(process, os.WNOHANG)
        if ended:
            break
        if moment is not None and time.monotonic() - clock >= moment:
            os.kill(process, number)
            sent, moment = time.monotonic(), None
        time.sleep(0.002)
    now = time.monotonic()
    text = said.read_text("utf-8", "replace") if said.exists() else ""
    stopped = now - sent if sent else 0.0
    code, peak = os.waitstatus_to_exitcode(status), round(used.ru_maxrss / 1024, 1)
    return Ended(code, now - clock, text, _counted(said), stopped, peak)


def failing(root: Path, at: int, number: int, count: Path) -> Callable[[], None]:
    """For `before`: the at-th call of `CALLS` below `root` fails with this error; at = -1 counts them into a file."""

    def install() -> None:
        made, below = [0], os.path.abspath(root)

        def wrapped(call: Callable[..., Any], write_only: bool) -> Callable[..., Any]:
            def made_call(first: Any, *rest: Any, **how: Any) -> Any:
                if _is_below(first, below) and not (write_only and not _writes(rest, how)):
                    made[0] += 1
                    if at < 0:
                        os.write(counter, b".")
                    elif made[0] == at:
                        raise OSError(number, os.strerror(number), str(first))
                return call(first, *rest, **how)

            return made_call

        counter = os.open(count, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        builtins.open = wrapped(builtins.open, True)
        io.open = builtins.open
        for name in ("replace", "mkdir", "unlink"):
            setattr(os, name, wrapped(getattr(os, name), False))
        fsync = os.fsync
        os.fsync = lambda descriptor: wrapped(lambda _, d: fsync(d), False)(_path_of(descriptor), descriptor)

    return install


def _path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")


def _is_below(path: Any, root: str) -> bool:
    return isinstance(path, (str, os.PathLike)) and os.path.abspath(os.fspath(path)).startswith(root)


def _writes(rest: Sequence[Any], how: dict[str, Any]) -> bool:
    mode = rest[0] if rest else how.get("mode", "r")
    return isinstance(mode, str) and any(letter in mode for letter in "wax+")


def _counted(said: Path) -> int:
    file = said.with_name("calls")
    return file.stat().st_size if file.exists() else 0


# What a run folder holds


def picture(root: Path) -> dict[str, str]:
    """Name -> digest of content, of everything but what differs between two equal runs."""
    names = ((file.relative_to(root).as_posix(), file) for file in sorted(root.rglob("*")) if file.is_file())
    compared = ((name, file) for name, file in names if not (BESIDE.match(name) or SHOWN.search(name)))
    return {name: digest_or_none(file) or "cannot be read" for name, file in compared}


def bytes_below(root: Path) -> int:
    """As they lie on a disk."""
    return sum(file.lstat().st_blocks * 512 for file in root.rglob("*"))


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """Names that are missing, too many or other."""
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


def names_in(samples: Path) -> set[str]:
    """Of the images of a manifest."""
    import pyarrow.parquet as pq

    return {Path(path).name for path in pq.read_table(samples, columns=["path"])["path"].to_pylist()}


def unreadable(root: Path) -> list[str]:
    """Files under their own names that cannot be read whole: what a reader would trip over after a kill."""
    found = []
    for file in root.rglob("*"):
        hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
        if file.is_file() and not hidden:
            try:
                _read(file)
            except Exception as error:
                found.append(f"{file.relative_to(root)}: {type(error).__name__}")
    return found


def _read(file: Path) -> None:
    import pyarrow.parquet as pq
    from PIL import Image
    from safetensors import safe_open

    if file.suffix in (".png", ".webp", ".jpg"):
        with Image.open(file) as image:
            image.load()
    elif file.suffix == ".parquet":
        pq.read_table(file)
    elif file.suffix == ".json":
        json.loads(file.read_text("utf-8"))
    elif file.suffix == ".safetensors":
        with safe_open(file, "np") as stored:
            list(stored.keys())


def digest(file: Path) -> str:
    """Of what lasts in it."""
    if file.suffix in (".json", ".jsonl"):
        text = file.read_text("utf-8")
        documents = [json.loads(part) for part in (text.splitlines() if file.suffix == ".jsonl" else [text])]
        return hashlib.sha256(json.dumps(_lasting(documents), sort_keys=True).encode()).hexdigest()
    if file.suffix == ".safetensors":
        from dcdm_cli.model.adapter import tensor_parts

        return hashlib.sha256(b"".join(tensor_parts(file))).hexdigest()
    return hashlib.sha256(file.read_bytes()).hexdigest()


def digest_or_none(file: Path) -> str | None:
    """None where it cannot be read."""
    from safetensors import SafetensorError

    try:
        return digest(file)
    except (OSError, ValueError, SafetensorError):
        return None


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lasting(inner) for key, inner in value.items() if not VOLATILE.search(key)}
    return [_lasting(inner) for inner in value] if isinstance(value, list) else value


@contextmanager
def watched() -> Iterator[dict[str, float]]:
    """Resident memory in MiB and open files of this process, before and after."""
    found = {"mib_before": _resident(), "files_before": float(_files())}
    yield found
    found |= {"mib_after": _resident(), "files_after": float(_files())}


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def _files() -> int:
    return len(os.listdir("/proc/self/fd"))
