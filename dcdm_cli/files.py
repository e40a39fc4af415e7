"""Writing files so that a reader, or the next run, never sees half of one.

Recipe: a unique temporary name in the same folder, write, flush, fsync, rename. Used by every room that writes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dcdm_cli.errors import CapabilityError, DcdmError, NotFoundError, StorageError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FORBIDDEN = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_BROKEN = frozenset({errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV, errno.ENOTCONN, errno.ETIMEDOUT})
_TOO_MANY = frozenset({errno.EMFILE, errno.ENFILE})
PART_SUFFIX = ".part"


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns what a disk refuses a writer (full, over quota, read-only, forbidden, broken) into an error of ours with
    the remedy."""
    try:
        yield
    except Exception as error:
        refused = storage_error(error, path)
        if refused is None:
            raise
        raise refused from error


def storage_error(error: BaseException, path: Path | str | None) -> DcdmError | None:
    """What to tell the user when `error` says that the disk refuses a write; None when it says something else."""
    number = error_number(error)
    if number is None or number not in _FULL | _FORBIDDEN | _BROKEN | _TOO_MANY:
        return None
    return _of_cause(number, f"cannot write {path or 'to the disk'}", path)


def system_error(error: BaseException) -> DcdmError | None:
    """What to tell the user of an operating system's error that nobody else has explained; None for any other error.
    Whatever it is, it is about a file, a disk or a network, and no fault of the program."""
    number, path = error_number(error), getattr(error, "filename", None)
    if number is None:
        hint = "look at the file or the address that it names; set DCDM_DEBUG=1 to see where it happened"
        return DcdmError(f"the system refused: {error}", hint) if isinstance(error, OSError) else None
    return _of_cause(number, f"cannot use {path}" if path else "the system refused", path)


def error_number(error: BaseException) -> int | None:
    """The operating system's number. safetensors and pyarrow wrap its error in one of their own, with the number in the
    text."""
    # not all have a number: those that libraries raise themselves do not
    if isinstance(error, OSError) and error.errno:
        return error.errno
    wrapped = isinstance(error, OSError) or type(error).__name__ == "SafetensorError"
    found = re.search(r"\(os error (\d+)\)|\[Errno (\d+)\]", str(error)) if wrapped else None
    return int(found[1] or found[2]) if found else None


def _of_cause(number: int, what: str, path: Path | str | None) -> DcdmError:
    message = f"{what}: {os.strerror(number)}"
    again = "and run it again: finished work is kept"
    if number in _FULL:
        return StorageError(message, f"free some space, or choose another folder with --run, {again}", file=path)
    if number in _FORBIDDEN:
        return StorageError(message, f"allow it, or choose a folder you may write to with --run, {again}", file=path)
    if number in _BROKEN:
        hint = f"the disk, or the network that it hangs on, failed: check it (dmesg), {again}; or choose another --run"
        return StorageError(message, hint, file=path)
    if number in _TOO_MANY:
        return CapabilityError(message, f"allow more open files: ulimit -n 4096, {again}", file=path)
    if number == errno.ENOENT:
        return NotFoundError(message, "check the path, or run the command that makes this file", file=path)
    return DcdmError(message, f"look at that file and its disk, {again}", file=path)


def _part_of(path: Path) -> Path:
    """A temporary name beside it: a dot first and PART_SUFFIX last, by which `leftovers` knows it, and a random part,
    since writers may be several."""
    # a name may have 255 bytes, of which characters can have four
    name = path.name.encode("utf-8", "surrogateescape")[:100].decode("utf-8", "ignore")
    return path.with_name(f".{name}.{os.getpid()}.{secrets.token_hex(4)}{PART_SUFFIX}")


@contextmanager
def atomic_path(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yields a temporary path in the same folder; renames it to `path` when the block ends well, else removes it.

    durable: fsync file and folder (a few milliseconds); pass False for one of many images. Raises StorageError.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = _part_of(path)
        try:
            yield part
            if durable:
                fsync(part)  # the content before the name, or a power cut leaves an empty file under it
            os.replace(part, path)
            if durable:
                fsync(path.parent)  # the new name is an entry of the folder
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, *, keep: bool = False) -> Iterator[Path]:
    """Yields a temporary folder beside `path`; when the block ends well, swaps it in and drops the old one. keep: for
    folders named by their content: the one that is there stays, and whoever reads it is not disturbed."""
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = _part_of(path)
        part.mkdir()
        try:
            yield part
            for entry in walk(part):
                if entry.is_file():
                    fsync(Path(entry.path))  # what is in the folder before its name, as of a file
            old = part.with_name(part.name + ".old")
            # A rename does not replace a folder that holds something.
            if path.exists() and not keep:
                os.replace(path, old)
            try:
                os.replace(part, path)
            except OSError:
                # with `keep`, another process was first with the same content
                if not (keep and path.is_dir()):
                    raise
            fsync(path.parent)  # before the old one goes: one of the two is there at any time
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def write_bytes(path: Path, content: bytes, *, durable: bool = True) -> None:
    with atomic_path(path, durable=durable) as part:
        part.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, document: Any) -> None:
    """Strict JSON: NaN is an error, not a bare word that other readers refuse."""
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def append_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One write, flushed to disk: after a crash a line is whole, or `gate.read_lines` drops it. Raises StorageError."""
    lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        unshare(path)
        with path.open("ab") as stream:
            if stream.tell() and not _ends_with_newline(path):
                lines = "\n" + lines  # what a crash has torn must not spoil the next line
            stream.write(lines.encode("utf-8"))
            stream.flush()
            os.fsync(stream.fileno())


def unshare(path: Path) -> None:
    """Before a file is written to in place: one with further names, as `cp -al` and deduplication give it, becomes a
    copy of its own, or what is written would be in those too. Raises StorageError for what is no file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(found.st_mode):  # to open a pipe would wait for ever
        raise StorageError(f"{path} is no file", "remove it, and run the same command again", file=path)
    if found.st_nlink > 1:
        with atomic_path(path) as part:
            shutil.copy(path, part)


def leftovers(root: Path, *, leave: Sequence[Path] = ()) -> Iterator[Path]:
    """What writers that were killed left below `root`, wherever that is: names that begin with a dot and end in
    `PART_SUFFIX`, as every temporary file and folder here is called. leave: folders that are not looked into."""
    kept = {os.fspath(folder) for folder in leave}
    seen = walk(root, enter=lambda entry: not _is_leftover(entry.name) and entry.path not in kept, skip=(OSError,))
    for entry in seen:
        if _is_leftover(entry.name):
            yield Path(entry.path)


def strange(root: Path) -> Iterator[Path]:
    """What is neither file nor folder below `root`: links, of which none is followed, pipes, sockets, devices."""
    for entry in walk(root):
        if not entry.is_file(follow_symlinks=False) and not entry.is_dir(follow_symlinks=False):
            yield Path(entry.path)


def walk(
    root: Path,
    *,
    enter: Callable[[os.DirEntry[str]], bool] = lambda entry: True,
    skip: tuple[type[OSError], ...] = (FileNotFoundError, NotADirectoryError),
) -> Iterator[os.DirEntry[str]]:
    """What is below `root`, at any depth; no link is followed. No file is looked at: a hundred thousand of them take a
    tenth of a second. enter: of a folder, whether it is looked into. skip: what the system says of folders that are
    passed over; by itself, that another process has removed them.

    Not by recursion, as os.walk and rglob go before Python 3.12: a thousand folders in one another end those.
    """
    folders = [os.fspath(root)]
    while folders:
        with suppress(*skip), os.scandir(folders.pop()) as entries:
            for entry in entries:
                yield entry
                if entry.is_dir(follow_symlinks=False) and enter(entry):
                    folders.append(entry.path)


def sweep(root: Path, *, leave: Sequence[Path] = ()) -> None:
    """Removes `leftovers`."""
    remove(leftovers(root, leave=leave))


def remove(paths: Iterable[Path]) -> None:
    """Files, and folders with all that is in them; what is gone already is nobody's loss."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():  # of a link, the link alone goes
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _is_leftover(name: str) -> bool:
    return name.startswith(".") and name.removesuffix(".old").endswith(PART_SUFFIX)


def check_room(folder: Path, needed: int, what: str, spare: float = 0.1) -> None:
    """Before work begins. needed: bytes; spare: share that is asked for beyond. Raises StorageError."""
    # The run folder itself may not be there yet.
    free = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free
    if needed * (1 + spare) > free:
        raise StorageError(
            f"{what} need about {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free in {folder}",
            "free some space, or choose another folder with --run",
            file=folder,
        )


def safe_name(text: str, otherwise: str) -> str:
    """A file name for what a user has named: letters, digits, - and _; `otherwise` where nothing is left of it."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-")[:60] or otherwise


def hash_bytes(*parts: bytes) -> str:
    """First 32 hex digits of SHA-256 over the length-prefixed parts."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))  # lengths too, or ("ab", "c") and ("a", "bc") were one
        digest.update(part)
    return digest.hexdigest()[:32]


def hash_json(document: Any) -> str:
    return hash_bytes(json.dumps(document, sort_keys=True, default=str).encode())


def hash_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:32]


def hash_tree(path: Path) -> str:
    """Hash of a file, or of every regular file below a folder with its relative name."""
    if path.is_file():
        return hash_file(path)
    files = sorted(Path(e.path) for e in walk(path) if e.is_file() and not e.name.endswith(PART_SUFFIX))
    return hash_bytes(*(part for p in files for part in (str(p.relative_to(path)).encode(), hash_file(p).encode())))


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read() == b"\n"


def fsync(path: Path) -> None:
    """Waits until a file's content, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot sync folders
            raise
    finally:
        os.close(descriptor)
