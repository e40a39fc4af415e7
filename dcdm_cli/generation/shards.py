"""One shard: rendered, measured, encoded and handed to a writer, the encoding of one batch while the next is rendered;
and the journal of an unfinished shard of a folder, a line per image, appended after the image is in place.

Threads encode. Pillow compresses PNG, WebP and JPEG without the interpreter lock (measured: during the encoding of a
2048 x 2048 image another thread never waited more than 6 ms), so processes would only add copies of the pixels.

Images are entered in the journal batch by batch, and a batch counts only as a whole: `kill -9` can leave a torn last
line or images without a line, and what is made again is then made in the same batches as before. On real hardware the
last bits of an image may depend on its batch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from PIL import Image

from dcdm_cli.data.archives import MAX_IMAGE
from dcdm_cli.data.manifest import RULES, SCHEMA
from dcdm_cli.data.writers import encode_image
from dcdm_cli.difficulty.verdict import Verdict
from dcdm_cli.errors import InterruptedRunError
from dcdm_cli.files import storage_errors, unshare, write_bytes
from dcdm_cli.gate import PLAN_ID, Column, check_columns, parse_line, refuse_first
from dcdm_cli.generation.layout import IMAGE_PATH, SPLIT, Entry, Layout, ShardContent, ShardWriter, folders_of
from dcdm_cli.generation.plan import PlanRow
from dcdm_cli.generation.starts import Starts
from dcdm_cli.run.progress import Job, silent
from dcdm_export import places
from dcdm_export.signature import digest

FLAT_IMAGE = 1.0  # standard deviation in grey levels below which an image counts as blank
WAITING = 2  # batches that may be encoding while the next is rendered; bounds memory
Store = Callable[[dict[str, Any], bytes], None]
_OF = "batch"  # in each line of a journal: how many were entered together
ROWS = pa.schema([*SCHEMA, ("sha256", pa.string()), ("bytes", pa.int64())])  # bytes, sha256: of the image's file
_KNOWN = {"path": False, "sha256": True, "bytes": True}
_RULES = {
    **RULES,
    "sample_id": Column(pattern=PLAN_ID),
    "path": Column(pattern=IMAGE_PATH, nullable=True),
    "sha256": Column(pattern="[0-9a-f]{64}", nullable=True),
    "bytes": Column(low=0, high=MAX_IMAGE, nullable=True),
}


@dataclass(frozen=True)
class Facts:
    """What the images' rows, the card and the record say about the model.

    generator: hash of model and sampler settings. kernels: what torch chose, and how; empty for other backends.
    """

    generator: str
    class_names: tuple[str, ...]
    base: str
    backend: str
    kernels: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rendered:
    """images uint8 [B, H, W, 3] of plan rows; verdict: the scorer's on them, None without one."""

    rows: Sequence[PlanRow]
    images: np.ndarray
    verdict: Verdict | None


class Maker(Protocol):
    """What turns plan rows into images."""

    facts: Facts
    batch_size: int

    def render(self, rows: Sequence[PlanRow], job: Job) -> Iterator[Rendered]:
        """Batches of rows, in order. An image depends on its row alone."""
        ...

    def begin_from(self, starts: Starts) -> None:
        """What the rows that come next start from: a worker is handed it with them."""
        ...


@dataclass(frozen=True)
class ShardTask:
    """rows: the shard's rows from number `start` on. generator: of the plan, which a worker's model must have.

    plan: its hash, by which a worker knows that it sees the coordinator's folder. starts: what the rows begin from, for
    makers elsewhere; None = noise, or the maker has it.
    """

    shard: int
    rows: tuple[PlanRow, ...]
    layout: Layout
    generator: str
    plan: str = ""
    start: int = 0
    starts: Starts | None = None


@dataclass(frozen=True)
class Batch:
    """Finished images in order: their manifest rows, and the files' bytes (None for a blank image)."""

    entries: list[dict[str, Any]]
    contents: list[bytes | None]


@dataclass(frozen=True)
class ShardProgress:
    """done: finished images of the shard; new: how many of them were made since the last report."""

    shard: int
    done: int
    new: int


@dataclass(frozen=True)
class MadeShard:
    """A complete shard that is not published yet. entries: all its rows, those made earlier included."""

    shard: int
    entries: list[dict[str, Any]]
    part: ShardContent


class Encoders:
    """A few threads that encode and store images."""

    def __init__(self, threads: int | None = None) -> None:
        # half of the cores: on a CPU the network needs the others
        self.pool = ThreadPoolExecutor(threads or max(1, min(8, (os.cpu_count() or 2) // 2)), "encode")

    def __enter__(self) -> Encoders:
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.shutdown(cancel_futures=True)


def make_batches(
    task: ShardTask,
    maker: Maker,
    encoders: Encoders,
    job: Job,
    store: Store,
    enough: Callable[[], bool] = lambda: False,
) -> Iterator[Batch]:
    """The rest of a shard, batch by batch. A stop ends it early, once what is rendered is encoded and stored; so does
    `enough`, which is asked after each batch."""
    folders = folders_of(task.layout)
    waiting: deque[list[Future[tuple[dict[str, Any], bytes | None]]]] = deque()
    # silent: what is told is what was finished (`ShardCoordinator.said`), not what was rendered
    for batch in _until_stopped(maker.render(task.rows, replace(job, progress=silent))):
        entries = _entries(batch, maker.facts.generator, task.layout, folders)
        pairs = zip(entries, batch.images, strict=True)
        waiting.append([encoders.pool.submit(_encode, *pair, store) for pair in pairs])
        if job.stop_signal() is not None or enough():
            break
        # only ever the oldest: batches are handed on in order
        while waiting and (len(waiting) > WAITING or all(future.done() for future in waiting[0])):
            yield _collect(waiting.popleft())
    while waiting:
        yield _collect(waiting.popleft())


def _until_stopped(batches: Iterator[Rendered]) -> Iterator[Rendered]:
    """Whole ones: a stop in the middle of one ends them."""
    try:
        yield from batches
    except InterruptedRunError:
        return


def write_shard(
    task: ShardTask, batches: Iterator[Batch], writer: ShardWriter, done: Sequence[dict[str, Any]] = ()
) -> Iterator[ShardProgress | MadeShard]:
    """Yields progress after each batch, and at the end the shard, unless a stop came first.

    done: entries of the rows before the task's.
    """
    entries, total = list(done), task.start + len(task.rows)
    yield ShardProgress(task.shard, len(entries), 0)
    try:
        for batch in batches:
            entries.extend(writer.add(batch.entries, batch.contents))
            yield ShardProgress(task.shard, len(entries), len(batch.entries))
        part = writer.finish() if len(entries) == total else None
    except BaseException:
        writer.abandon()
        raise
    if part is None:
        writer.abandon()
    else:
        yield MadeShard(task.shard, entries, part)


def _entries(batch: Rendered, generator: str, layout: Layout, folders: Sequence[str]) -> list[dict[str, Any]]:
    """Manifest rows, with `sha256` and `bytes` still to be filled in."""
    count = len(batch.rows)
    said = batch.verdict or Verdict(np.full(count, np.nan), np.full(count, -1), None)
    shows = [None] * count if said.shows is None else said.shows.tolist()
    entries = []
    for row, image, s, guess, shown in zip(
        batch.rows, batch.images, said.difficulty, said.predicted, shows, strict=True
    ):
        known = bool(np.isfinite(s))
        plan = {key: value for key, value in vars(row).items() if key not in ("index", "shard")}
        entries.append(
            plan
            | {
                "path": layout.image_path(row.shard, row.label, row.sample_id, folders),
                "prompt": row.caption,
                "split": SPLIT,
                "synthetic": True,
                "width": image.shape[1],
                "height": image.shape[0],
                "difficulty": float(s) if known else None,
                "measured_difficulty": float(s) if known else None,
                "predicted": int(guess) if known else None,
                "label_checked": shown,
                "generator": generator,
            }
        )
    return entries


def _encode(entry: dict[str, Any], image: np.ndarray, store: Store) -> tuple[dict[str, Any], bytes | None]:
    # overflows too: decoding makes an image with a value that is not finite all black (`model/latents.py`)
    if float(image.std()) < FLAT_IMAGE:
        return entry | {"path": None, "sha256": None, "bytes": 0}, None
    content = encode_image(Image.fromarray(image), entry["path"])
    entry = entry | {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    store(entry, content)
    return entry, content


def _collect(futures: list[Future[tuple[dict[str, Any], bytes | None]]]) -> Batch:
    made = [future.result() for future in futures]
    return Batch([entry for entry, _ in made], [content for _, content in made])


class Journal:
    """entries: what is finished, from the shard's first image on. Opening repairs; `append` commits one batch."""

    def __init__(self, file: Path, ids: Sequence[str]) -> None:
        """ids: the shard's images in order."""
        self.file, self.entries = file, []
        content = file.read_bytes() if file.is_file() else b""
        clean = b""
        for batch in _batches(content):
            expected = ids[len(self.entries) : len(self.entries) + len(batch)]
            if [entry["sample_id"] for entry in batch] != list(expected) or not self._are_there(batch):
                break
            self.entries += batch
            clean += _lines(batch)
        # at once: `append` would put the next batch behind a torn line
        if clean != content:
            write_bytes(file, clean)

    def append(self, entries: Sequence[Entry]) -> None:
        """One write, flushed to disk: after a crash the batch is whole or it is dropped at the next opening."""
        with storage_errors(self.file):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            unshare(self.file)
            with self.file.open("ab") as stream:
                stream.write(_lines(entries))
                stream.flush()
                os.fsync(stream.fileno())
        self.entries += entries

    def _are_there(self, batch: Sequence[Entry]) -> bool:
        """Whether these are rows of ours, and their images lie in the folder."""
        root = self.file.parent.parent
        try:
            check_entries(pa.Table.from_pylist([{c: entry.get(c) for c in ROWS.names} for entry in batch], ROWS))
            # links resolved: a class folder may be one that leads out
            made = [entry for entry in batch if entry["path"] is not None]
            return all(_is_whole(places.inside(root, e["path"]), e) for e in made)
        except (pa.ArrowException, ValueError, TypeError, OverflowError):  # OutsideError is a ValueError
            return False


def _is_whole(image: Path, entry: Entry) -> bool:
    """Read as a whole: images are not flushed, and after a power cut one may be empty, or hold other bytes. It costs
    little beside making it again, and there is at most one open shard per worker."""
    if not image.is_file() or image.stat().st_size != entry["bytes"]:
        return False
    return digest(image) == entry["sha256"]


def check_entries(rows: pa.Table) -> None:
    """Rows of a shard's images. Raises ValueError naming column, row, value and rule."""
    check_columns(rows, _RULES)
    blank, hashed, sized = (rows[name].is_valid().to_numpy() == known for name, known in _KNOWN.items())
    refuse_first(rows, "path", blank | (hashed & sized), "its sha256 and bytes must be known")


def beginning(entries: Sequence[Entry], exists: Callable[[str], bool], batch: int) -> list[Entry]:
    """The entries of the longest run of whole batches, from the first image on, whose images all exist."""
    lost = (i for i, entry in enumerate(entries) if entry["path"] is not None and not exists(entry["path"]))
    first = next(lost, None)
    # up to the batch of the lost one, so that all are made again in the batches that they were made in
    return list(entries) if first is None else list(entries[: first // batch * batch])


def write_journal(entries: Sequence[Entry], file: Path, batch: int) -> None:
    """A whole journal: a finished shard becomes an unfinished one when images of it are lost."""
    batches = [entries[start : start + batch] for start in range(0, len(entries), batch)]
    write_bytes(file, b"".join(map(_lines, batches)))


def _batches(content: bytes) -> Iterator[list[Entry]]:
    """Whole batches, up to the first line that is none."""
    batch: list[Entry] = []
    for line in content.splitlines():
        entry = parse_line(line, dict[str, Any])
        if entry is None or not {"sample_id", "path", "sha256", _OF} <= entry.keys():
            return
        size = entry.pop(_OF)
        batch.append(entry)
        if len(batch) == size:
            yield batch
            batch = []


def _lines(batch: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps({**entry, _OF: len(batch)}, allow_nan=False) + "\n" for entry in batch).encode()
