"""Finished images of a generated folder, read back batch by batch in the order of their plan, whatever the format."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dcdm_cli.data.images import RejectedImage, decode_image, image_bytes
from dcdm_cli.data.manifest import Manifest, as_far_as_there, read_manifest
from dcdm_cli.difficulty.verdict import Verdict
from dcdm_cli.errors import MismatchError, NotFoundError
from dcdm_cli.generation.plan_file import PlanFile
from dcdm_cli.generation.shards import Rendered

_COLUMNS = ["sample_id", "path", "measured_difficulty", "predicted", "label_checked"]


def finished_batches(folder: Path, batch: int, plan: str) -> Iterator[Rendered]:
    """Batches of at most `batch` images, none of two shards; blank images, which were not written, are left out.

    A verdict's `rival` is NaN: no file keeps it. Raises MismatchError when the folder holds another plan's images by
    now.
    """
    there = PlanFile(folder / "plan.parquet")
    if there.hash != plan:
        raise MismatchError(f"{folder} holds other images by now", "generate these once more, then look at them")
    for shard in range(there.shards):
        file = folder / "shards" / f"{shard:05d}.parquet"
        table = pq.read_table(file, columns=as_far_as_there(file, _COLUMNS))
        entries = [entry for entry in table.to_pylist() if entry["path"] is not None]
        rows = {row.sample_id: row for row in there.shard_rows(shard)}
        # in step with `entries`: the shard's writer left the same rows out (`layout._Archive`)
        images = _images(folder, entries)
        for start in range(0, len(entries), batch):
            part = entries[start : start + batch]
            pixels = np.stack([next(images) for _ in part])
            yield Rendered([rows[entry["sample_id"]] for entry in part], pixels, _verdict(part))


def read_generated(folder: Path, *, made_by: str = "dcdm generate") -> Manifest:
    """The manifest of a generated folder, its images held against the hashes that their shards have of them.

    Raises NotFoundError when there is none, or an image cannot be read; MismatchError for a manifest that is none, and
    for an image with other content than was generated.
    """
    images, hashes = read_manifest(folder / "samples.parquet", made_by=made_by), _hashes(folder)
    changed, gone = _remedies(folder, made_by)
    for name, path in zip(images.table["path"].to_pylist(), images.paths(), strict=True):
        if name in hashes and hashlib.sha256(_content(path, gone)).hexdigest() != hashes[name]:
            raise MismatchError(f"{path} has other content than was generated", changed, file=path)
    return images


def _remedies(folder: Path, made_by: str) -> tuple[str, str]:
    """For an image that has changed, and for one that is gone. Only `dcdm generate` misses single images; to whoever
    else made a set it is finished or not there."""
    if made_by != "dcdm generate":
        whole = f"remove {folder}: {made_by} makes it again"
        return whole, whole
    again = f"{made_by} makes it again; dcdm check --verify names all that"
    return f"remove it, and {again} have changed", f"{again} are missing"


def _content(path: Path, again: str) -> bytes:
    try:
        return image_bytes(path)
    except RejectedImage as error:
        raise NotFoundError(f"{path} can no longer be read: {error}", again, file=path) from error


def _hashes(folder: Path) -> dict[str, str]:
    """By image, as its shard has it; none for a folder without shards."""
    made: dict[str, str] = {}
    for file in sorted((folder / "shards").glob("*.parquet")):
        try:
            table = pq.read_table(file, columns=["path", "sha256"])
        except (pa.ArrowException, OSError) as error:
            again = "dcdm check says what is damaged, and by which command it is made again"
            raise MismatchError(f"{file} holds no rows of a shard: {error}", again, file=file) from error
        rows = zip(table["path"].to_pylist(), table["sha256"].to_pylist(), strict=True)
        made |= {path: sha256 for path, sha256 in rows if path is not None}
    return made


def _images(folder: Path, entries: Sequence[Mapping[str, Any]]) -> Iterator[np.ndarray]:
    """uint8 [H, W, 3] of entries of one shard, in order. In a Parquet file images have no place of their own."""
    archive = folder / entries[0]["path"].partition("#")[0] if entries else folder
    if archive.suffix == ".parquet":
        for table in pq.ParquetFile(archive).iter_batches(columns=["image"]):
            for cell in table.column("image").to_pylist():
                yield np.asarray(decode_image(cell["bytes"]))
        return
    for entry in entries:
        yield np.asarray(decode_image(folder / entry["path"]))


def _verdict(entries: Sequence[Mapping[str, Any]]) -> Verdict | None:
    """None where images were neither scored nor checked."""
    shows = [entry.get("label_checked") for entry in entries]  # shards from before there were checks lack it
    checked = None if None in shows else np.array(shows, bool)
    if checked is None and all(entry["predicted"] is None for entry in entries):
        return None
    difficulty = [np.nan if entry["measured_difficulty"] is None else entry["measured_difficulty"] for entry in entries]
    predicted = [-1 if entry["predicted"] is None else entry["predicted"] for entry in entries]
    rival = np.full(len(entries), np.nan, np.float32)
    return Verdict(np.array(difficulty, np.float32), np.array(predicted), rival, checked)
