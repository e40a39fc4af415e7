"""Shards of finished images as files: class folders, Parquet, or WebDataset tars.

A writer takes the shard's images in order, already encoded, and ends in a `ShardContent`: a temporary file that someone
else renames into place once the whole shard is known to be good. The same images give the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import secrets
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from dcdm_cli.data.archives import Member, member_path
from dcdm_cli.data.manifest import SCHEMA
from dcdm_cli.data.writers import METADATA_COLUMNS, class_folders
from dcdm_cli.files import PART_SUFFIX, fsync, storage_errors, write_bytes
from dcdm_cli.gate import NO_LINKS, PLAN_ID, inside

FORMATS = ("folder", "parquet", "webdataset")
SPLIT = "train"
ARCHIVES = {"parquet": "parquet", "webdataset": "tar"}  # format -> suffix of the shard's file
# What `Layout.image_path` and the tar writer make of a plan's row.
_PLACE = rf"{SPLIT}/[A-Za-z0-9_-][A-Za-z0-9._-]*/|data/{SPLIT}-[0-9]+(-of-[0-9]+)?\.(parquet|tar)#([0-9]+\+[0-9]+/)?"
IMAGE_PATH = rf"({_PLACE}){PLAN_ID}\.(png|webp|jpg)"
ROW_GROUP = 100  # images per Parquet row group: readers hold a whole one
COLUMNS = ("sample_id", *(name for name in METADATA_COLUMNS if name != "file_name"))


@dataclass(frozen=True)
class Layout:
    """Where a run's images go. image: png, webp or jpg. shards: how many there are in all."""

    folder: Path
    format: str
    image: str
    class_names: tuple[str, ...]
    shards: int

    def archive(self, shard: int) -> str | None:
        """The shard's file relative to the folder; None where images are files of their own."""
        if self.format == "folder":
            return None
        # as `datasets` names Parquet shards
        of = f"-of-{self.shards:05d}" if self.format == "parquet" else ""
        return f"data/{SPLIT}-{shard:05d}{of}.{ARCHIVES[self.format]}"

    def image_path(self, shard: int, label: int, sample_id: str, folders: Sequence[str]) -> str:
        """Where an image will be: a file, or `data/train-00000.parquet#<id>.png` inside the shard's file.

        folders: `class_folders` of the class names. A tar's writer makes it a path that `decode_image` reads.
        """
        name, archive = f"{sample_id}.{self.image}", self.archive(shard)
        return f"{archive}#{name}" if archive else f"{SPLIT}/{folders[label]}/{name}"


@dataclass(frozen=True)
class ShardContent:
    """A shard's content, complete but not in place. sha256, bytes: of the file, or of the images' own hashes.

    file: the temporary file, None where the images are files of their own; path: where it belongs, below the folder.
    """

    file: str | None
    path: str | None
    sha256: str
    bytes: int


Entry = dict[str, Any]  # an image's manifest row, with `sha256` and `bytes` of its file


class ShardWriter(Protocol):
    """One shard being written. `store` may be called from threads, `add` in order, then `finish` or `abandon`."""

    def store(self, entry: Entry, content: bytes) -> None:
        """Puts one image where it belongs as soon as it is encoded, if it is a file of its own."""
        ...

    def add(self, entries: Sequence[Entry], contents: Sequence[bytes | None]) -> list[Entry]:
        """The next images in order; None: blank, and left out. Returns the entries with their final paths."""
        ...

    def finish(self) -> ShardContent: ...

    def abandon(self) -> None: ...


def open_writer(layout: Layout, shard: int) -> ShardWriter:
    """The writer of an archive format. Folders have a journal and so are opened by the ledger."""
    kinds = {"parquet": ParquetShard, "webdataset": TarShard}
    return kinds[layout.format](layout, shard)


class _HashedFile(io.RawIOBase):
    """A file that knows the SHA-256 of what was written to it, front to back. given_up: takes everything, keeps nothing
    (a Parquet writer cannot be thrown away without writing its end)."""

    def __init__(self, path: Path) -> None:
        self.stream: BinaryIO = path.open("wb", buffering=2**20)
        self.digest, self.bytes, self.given_up = hashlib.sha256(), 0, False

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        view = memoryview(content)
        if self.given_up:
            return view.nbytes
        self.stream.write(view)
        self.digest.update(view)
        self.bytes += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        return self.bytes

    def flush(self) -> None:
        # closing the base class flushes once more, when the stream is closed already
        if not self.stream.closed and not self.given_up:
            self.stream.flush()

    def close(self) -> None:
        self.stream.close()
        super().close()


def keep_nothing(entry: Entry, content: bytes) -> None:
    """Where no file of its own is made of an image: archives are written in order, coordinators store what is sent."""


class _Archive(ABC):
    """One temporary file beside its final place."""

    store = staticmethod(keep_nothing)

    def __init__(self, layout: Layout, shard: int) -> None:
        self.layout, self.path = layout, str(layout.archive(shard))
        # a folder that was handed on may have links in it that lead out
        final = inside(layout.folder, self.path, said_in=layout.folder, again=NO_LINKS)
        # unique, as a shard may be made twice at once; called as `files.leftovers` knows it, for when it is left behind
        self.file = final.with_name(f".{final.name}.{os.getpid()}.{secrets.token_hex(4)}{PART_SUFFIX}")
        self.count = 0
        with storage_errors(final):
            final.parent.mkdir(parents=True, exist_ok=True)
            self.out = _HashedFile(self.file)

    def add(self, entries: Sequence[Entry], contents: Sequence[bytes | None]) -> list[Entry]:
        with storage_errors(self.layout.folder / self.path):
            return [self._add(*pair) for pair in zip(entries, contents, strict=True)]

    def _add(self, entry: Entry, content: bytes | None) -> Entry:
        if content is None:
            return entry
        self.count += 1
        return entry | {"path": self._write(entry, content)}

    def finish(self) -> ShardContent:
        """No file at all for a shard without images: some readers stumble over an empty archive."""
        if not self.count:
            self.abandon()
            return ShardContent(None, None, hashlib.sha256().hexdigest(), 0)
        with storage_errors(self.layout.folder / self.path):
            self._end()
            self.out.close()
            # before the sidecar speaks of it: a power cut must not leave a name without content
            fsync(self.file)
        return ShardContent(str(self.file), self.path, self.out.digest.hexdigest(), self.out.bytes)

    def abandon(self) -> None:
        # first: ending an archive writes its end, for which a full disk has no room
        self.out.given_up = True
        self._end()
        with contextlib.suppress(OSError):  # what is still buffered may not fit on a full disk
            self.out.close()
        self.file.unlink(missing_ok=True)

    @abstractmethod
    def _write(self, entry: Entry, content: bytes) -> str:
        """Returns the manifest path."""

    @abstractmethod
    def _end(self) -> None:
        """Writes what belongs behind the last image."""


class TarShard(_Archive):
    """WebDataset: `<id>.png`, `<id>.cls` and `<id>.json` per image, with times and owners of zero."""

    def __init__(self, layout: Layout, shard: int) -> None:
        super().__init__(layout, shard)
        # USTAR: one block of header before each member, which `_write` counts on
        self.tar = tarfile.open(fileobj=self.out, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115

    def _write(self, entry: Entry, content: bytes) -> str:
        facts = {name: entry.get(name) for name in COLUMNS}
        text = json.dumps(facts, ensure_ascii=False, allow_nan=False).encode()
        name = f"{entry['sample_id']}.{self.layout.image}"
        place = Member(name, self.tar.offset + tarfile.BLOCKSIZE, len(content))
        members = {self.layout.image: content, "cls": str(entry["label"]).encode(), "json": text}
        for suffix, member in members.items():
            info = tarfile.TarInfo(f"{entry['sample_id']}.{suffix}")
            info.size = len(member)
            self.tar.addfile(info, io.BytesIO(member))
        return member_path(self.path, place)

    def _end(self) -> None:
        self.tar.close()


class ParquetShard(_Archive):
    """Parquet as `datasets` writes it: an image struct and a ClassLabel, in small row groups."""

    def __init__(self, layout: Layout, shard: int) -> None:
        super().__init__(layout, shard)
        self.schema = parquet_schema(layout.class_names)
        self.writer = pq.ParquetWriter(self.out, self.schema)
        self.rows: list[dict[str, Any]] = []

    def _write(self, entry: Entry, content: bytes) -> str:
        name = f"{entry['sample_id']}.{self.layout.image}"
        self.rows.append({**{key: entry.get(key) for key in COLUMNS}, "image": {"bytes": content, "path": name}})
        if len(self.rows) == ROW_GROUP:
            self._flush()
        return entry["path"]

    def _flush(self) -> None:
        if self.rows:
            # one call is one row group
            self.writer.write_table(pa.Table.from_pylist(self.rows, schema=self.schema))
        self.rows = []

    def _end(self) -> None:
        if not self.out.given_up:
            self._flush()
        self.writer.close()


class FolderImages:
    """Images as files of class folders. commit: called with finished entries once their files are in place."""

    def __init__(self, layout: Layout, done: Iterable[Entry], commit: Callable[[Sequence[Entry]], None]) -> None:
        self.layout, self.commit = layout, commit
        self.hashes: list[str] = []
        self.bytes = 0
        # the record's hash is over all images of the shard, those of an earlier run included
        for entry in done:
            self._count(entry)

    def store(self, entry: Entry, content: bytes) -> None:
        folder = self.layout.folder
        # not flushed, which takes milliseconds an image: the journal is, and believes in images that are there alone
        write_bytes(inside(folder, entry["path"], said_in=folder, again=NO_LINKS), content, durable=False)

    def add(self, entries: Sequence[Entry], contents: Sequence[bytes | None]) -> list[Entry]:
        # by now `store` has put every file in its place: what the journal says is there, is there
        self.commit(entries)
        for entry in entries:
            self._count(entry)
        return list(entries)

    def finish(self) -> ShardContent:
        listing = "".join(f"{line}\n" for line in self.hashes).encode()
        return ShardContent(None, None, hashlib.sha256(listing).hexdigest(), self.bytes)

    def abandon(self) -> None:
        """Nothing: finished images stay, and the journal knows them."""

    def _count(self, entry: Entry) -> None:
        if entry["path"] is not None:
            self.hashes.append(f"{entry['sha256']}  {PurePosixPath(entry['path']).name}")
            self.bytes += entry["bytes"]


def parquet_schema(class_names: Sequence[str]) -> pa.Schema:
    """Columns of a Parquet shard with the metadata by which `datasets` knows images and class names."""
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields = [
        ("image", image),
        # `datasets` has ClassLabel in 64 bits, the manifest labels in 32
        *((name, pa.int64() if name == "label" else SCHEMA.field(name).type) for name in COLUMNS),
    ]
    features: dict[str, Any] = {name: {"dtype": _datasets_type(kind), "_type": "Value"} for name, kind in fields[1:]}
    features |= {"image": {"_type": "Image"}, "label": {"names": list(class_names), "_type": "ClassLabel"}}
    document = json.dumps({"info": {"features": {name: features[name] for name, _ in fields}}})
    return pa.schema(fields, metadata={"huggingface": document})


def _datasets_type(kind: pa.DataType) -> str:
    return {"float": "float32", "double": "float64"}.get(str(kind), str(kind))


def folders_of(layout: Layout) -> list[str]:
    """A folder name per class; only folders need them, and only they can clash."""
    return class_folders(layout.class_names) if layout.format == "folder" else []
