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
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dcdm_cli.errors import StorageError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FORBIDDEN = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
PART_SUFFIX = ".part"


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns a full, over-quota, read-only or forbidden disk into StorageError with the remedy."""
    try:
        yield
    except Exception as error:
        refused = storage_error(error, path)
        if refused is None:
            raise
        raise refused from error


def storage_error(error: BaseException, path: Path | str | None) -> StorageError | None:
    """What to tell the user when `error` says that the disk refuses; None when it says something else.

    safetensors wraps the system's error in one of its own, with the number in the text.
    """
    wrapped = re.search(r"\(os error (\d+)\)", str(error)) if type(error).__name__ == "SafetensorError" else None
    number = error.errno if isinstance(error, OSError) else int(wrapped[1]) if wrapped else None
    if number is None or number not in _FULL | _FORBIDDEN:
        return None
    remedy = "free some space, or choose another folder" if number in _FULL else "choose a folder you may write to"
    return StorageError(
        f"cannot write {path or 'to the disk'}: {os.strerror(number)}",
        f"{remedy} with --run, and run it again: finished work is kept",
        file=path,
    )


@contextmanager
def atomic_path(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yields a temporary path in the same folder; renames it to `path` when the block ends well, else removes it.

    durable: fsync file and folder (a few milliseconds); pass False for one of many images. Raises StorageError.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name[:100]}.{os.getpid()}.{secrets.token_hex(4)}{PART_SUFFIX}")
        try:
            yield part
            if durable:
                fsync(part)
            os.replace(part, path)
            if durable:
                fsync(path.parent)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `path`; when the block ends well, swaps it in and drops the old one."""
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}{PART_SUFFIX}")
        part.mkdir()
        try:
            yield part
            for file in part.rglob("*"):
                if file.is_file():
                    fsync(file)
            old = part.with_name(part.name + ".old")
            if path.exists():
                os.replace(path, old)
            os.replace(part, path)
            fsync(path.parent)
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
        with path.open("ab") as stream:
            if stream.tell() and not _ends_with_newline(path):
                lines = "\n" + lines  # what a crash has torn must not spoil the next line
            stream.write(lines.encode("utf-8"))
            stream.flush()
            os.fsync(stream.fileno())


def safe_name(text: str, otherwise: str) -> str:
    """A file name for what a user has named: letters, digits, - and _; `otherwise` where nothing is left of it."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-")[:60] or otherwise


def hash_bytes(*parts: bytes) -> str:
    """First 32 hex digits of SHA-256 over the length-prefixed parts."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
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
    files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.endswith(PART_SUFFIX))
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
