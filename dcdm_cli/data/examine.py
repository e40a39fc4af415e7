"""Examining what a source lists: every image is decoded once, in chunks that are kept on disk.

A chunk is a Parquet file with the rows of its usable images and, in its metadata, what was left out; its hash lies
beside it. A scan that was stopped goes on after the last whole chunk. Memory holds one chunk, whatever the size of the
source.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dcdm_cli.data.candidates import Candidate, Listing, Rejection, ScanOptions, clean_name
from dcdm_cli.data.images import RejectedImage, decode_image, image_format, image_hash
from dcdm_cli.data.manifest import RULES
from dcdm_cli.errors import DcdmError
from dcdm_cli.files import atomic_path, hash_bytes, hash_json, write_bytes, write_json
from dcdm_cli.gate import Amount, Column, Count, Text, check_columns, parse_json, parse_line, read_document, typed
from dcdm_cli.run.progress import Job
from dcdm_cli.run.seals import is_whole, seal_beside

CHUNK = 2048  # candidates; what a stopped scan may lose
ROWS = pa.schema(
    [
        ("sample_id", pa.string()),
        ("path", pa.string()),
        ("class_name", pa.string()),
        ("split", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("difficulty", pa.float32()),
        ("caption", pa.string()),
        ("content", pa.string()),  # hash of the decoded image
    ]
)
_RULES = {
    **{name: RULES[name] for name in ROWS.names if name in RULES},
    "class_name": Column(),
    "content": Column(pattern="[0-9a-f]{32}"),
}
_FILE_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif"}  # elsewhere the format's name in lower case
_WAVE = 64  # images in flight; bounds memory when a table holds the bytes
_META = b"dcdm_chunk"
_DARK = 32  # of 255


@dataclass
class Examined:
    """files: one per chunk, in order. candidates: how many were looked at. deep: grey images of more than 8 bits, and
    deep_peak the largest value in them, as a share of the range; dark: other images without a value above an eighth.
    animated: images of which more frames or pages than the first are there."""

    files: list[Path] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    candidates: int = 0
    usable: int = 0
    deep: int = 0
    deep_peak: float = 0.0
    dark: int = 0
    animated: int = 0

    def tables(self) -> Iterator[pa.Table]:
        for file in self.files:
            yield pq.read_table(file).replace_schema_metadata(None)


def examine_all(
    listing: Listing,
    lookup: Mapping[str, str] | None,
    options: ScanOptions,
    spool: Path,
    key: str,
    job: Job,
) -> Examined:
    """Looks at every candidate. spool: folder for the chunks; those with another `key` than this one are dropped.

    An empty key: the folder is a temporary one.
    Stops at the first unusable image with `options.strict`. Raises InterruptedRunError when asked to stop.
    """
    examined, end = _earlier(spool, key), spool / "end.json"
    if (notes := _notes_at_end(end, examined)) is not None:
        listing.notes.update(notes)
        return examined
    candidates = iter(listing.candidates)
    for _ in islice(candidates, examined.candidates):
        pass  # listed again, which is cheap, and not looked at again
    while not (options.strict and examined.rejected):
        report = _from(examined.candidates, listing.total, job)
        chunk = _examine_chunk(islice(candidates, CHUNK), listing, lookup, options, report)
        if not chunk.seen:
            break
        # a temporary folder need not outlast a power cut
        _keep(chunk, spool / f"{len(examined.files):06d}.parquet", examined, durable=bool(key))
        job.stop_if_asked(f"{examined.candidates} images are read" if key else "the images have not been read yet")
    if not 0 < listing.total <= examined.candidates:  # the last image has not said so
        job.progress("reading images", examined.candidates, examined.candidates)
    if key:
        write_json(end, _end(listing.notes, examined))
    return examined


def _end(notes: Mapping[str, int], examined: Examined) -> dict[str, Any]:
    """What end.json says of a scan that is over: how many candidates there were, too, or the last chunks could go."""
    said = {"notes": dict(notes), "candidates": examined.candidates}
    return {**said, "hash": hash_json(said)}


def _notes_at_end(end: Path, examined: Examined) -> Mapping[str, int] | None:
    """Counted while the source was listed, which is not done again; None where the scan is not known to be over."""
    try:
        said = read_document(end, dict[str, Any], "")
        notes = typed(dict[Text, Count], said.get("notes"))
    except (DcdmError, ValueError):  # not there, or damaged: listing again is cheap, and looks at no image again
        return None
    return notes if said == _end(notes, examined) else None


@dataclass
class _Chunk:
    rows: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    seen: int = 0


def _from(before: int, total: int, job: Job) -> Callable[[int], bool]:
    """Tells how many images were read in all; says whether to end the chunk here."""

    def report(seen: int) -> bool:
        job.progress("reading images", before + seen, total)
        return job.stop_signal() is not None

    return report


def _examine_chunk(
    candidates: Iterable[Candidate],
    listing: Listing,
    lookup: Mapping[str, str] | None,
    options: ScanOptions,
    report: Callable[[int], bool],
) -> _Chunk:
    """A chunk may be shorter than others: a scan that is stopped keeps what it has read."""
    chunk = _Chunk()

    def examine(candidate: Candidate) -> dict[str, Any] | Rejection:
        try:
            return _examine(candidate, listing, lookup, options)
        except RejectedImage as error:
            split = candidate.split or listing.default_split or ""
            return Rejection(clean_name(candidate.name), error.reason, clean_name(error.detail), split)

    for outcome in _in_threads(examine, iter(candidates)):
        chunk.seen += 1
        if isinstance(outcome, Rejection):
            chunk.rejected.append(outcome)
        else:
            chunk.rows.append(outcome)
        if report(chunk.seen) or (options.strict and chunk.rejected):
            break
    return chunk


def _in_threads(
    examine: Callable[[Candidate], dict[str, Any] | Rejection], candidates: Iterator[Candidate]
) -> Iterator[dict[str, Any] | Rejection]:
    """Results in order. Decoding and hashing release the interpreter lock, so threads use all cores."""
    with ThreadPoolExecutor(os.cpu_count()) as pool, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # set here because warning filters are not per thread
        # Between its limit and twice that, Pillow only warns.
        warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
        while wave := list(islice(candidates, _WAVE)):
            yield from pool.map(examine, wave)


def _examine(
    candidate: Candidate, listing: Listing, lookup: Mapping[str, str] | None, options: ScanOptions
) -> dict[str, Any]:
    if isinstance(candidate.image, RejectedImage):
        raise candidate.image
    class_name = _class_name(candidate.label, listing.no_label, lookup)  # before decoding, which is what takes time
    image = decode_image(candidate.image, options.decode)
    path = candidate.name
    if isinstance(candidate.image, bytes):
        path = _keep_original(candidate.image, listing.root)
    content = image_hash(image)
    return {
        "sample_id": f"{content}-{hash_bytes(candidate.name.encode())[:8]}",
        "path": path,
        "class_name": class_name,
        "split": candidate.split or listing.default_split,
        "width": image.width,
        "height": image.height,
        "difficulty": candidate.difficulty,
        "caption": candidate.caption,
        "content": content,
        "deep_peak": image.info.get("deep_peak"),
        "is_dark": _brightest(image) < _DARK,
        "is_animated": image.info["animated"],
    }


def _brightest(image: Image.Image) -> int:
    """The largest value of an RGB image, 0 to 255."""
    bands: Any = image.getextrema()
    return max(high for _, high in bands)


def _class_name(label: str | None, no_label: frozenset[str], lookup: Mapping[str, str] | None) -> str:
    """Raises RejectedImage."""
    if not label:
        raise RejectedImage("no_label", "it names none")
    if lookup is not None:
        name = lookup.get(label)
        if name is None:
            raise RejectedImage("no_label", f"{label!r} is not in the class map")
        return name
    if label in no_label:
        raise RejectedImage("no_label", f"{label!r} means none; to make it a class, list it in a --class-map")
    return label


def _keep_original(content: bytes, root: Path) -> str:
    """Writes the encoded image as it came, once per content. Returns its path relative to `root`."""
    kind, key = image_format(content), hash_bytes(content)
    relative = f"{key[:2]}/{key}{_FILE_SUFFIXES.get(kind, '.' + kind.lower())}"
    file = root / relative
    if not file.is_file() or file.stat().st_size != len(content):  # the size tells a file that a power cut left short
        write_bytes(file, content, durable=False)
    return relative


def _keep(chunk: _Chunk, file: Path, examined: Examined, *, durable: bool) -> None:
    peaks = [row["deep_peak"] for row in chunk.rows if row["deep_peak"] is not None]
    # deep ones are told about by their peaks
    dark = sum(row["is_dark"] and row["deep_peak"] is None for row in chunk.rows)
    animated = sum(row["is_animated"] for row in chunk.rows)
    facts = _Facts(chunk.seen, tuple(chunk.rejected), len(peaks), max(peaks, default=0.0), dark, animated)
    schema = ROWS.with_metadata({_META: json.dumps(asdict(facts)).encode()})
    with atomic_path(file, durable=durable) as part:
        # of the rows' keys, those that the schema lacks are left out
        pq.write_table(pa.Table.from_pylist(chunk.rows, schema=schema), part)
    if durable:
        seal_beside(file)
    _enter(examined, file, facts, len(chunk.rows))


@dataclass(frozen=True)
class _Facts:
    """What a chunk's file says besides its rows."""

    candidates: Count
    rejected: tuple[Rejection, ...]
    deep: Count = 0
    deep_peak: Amount = 0.0
    dark: Count = 0
    animated: Count = 0


def _enter(examined: Examined, file: Path, facts: _Facts, rows: int) -> None:
    examined.files.append(file)
    examined.rejected += facts.rejected
    examined.candidates += facts.candidates
    examined.usable += rows
    examined.deep += facts.deep
    examined.deep_peak = max(examined.deep_peak, facts.deep_peak)
    examined.dark += facts.dark
    examined.animated += facts.animated


def _earlier(spool: Path, key: str) -> Examined:
    """The chunks of a scan with the same key that was stopped; they are dropped where the key is another."""
    examined, mark = Examined(), spool / "scan.json"
    if not key:
        return examined
    if not mark.is_file() or parse_line(mark.read_bytes(), dict[str, Any]) != {"key": key}:
        shutil.rmtree(spool, ignore_errors=True)
        write_json(mark, {"key": key})
    for number in range(len(list(spool.glob("*.parquet")))):
        file = spool / f"{number:06d}.parquet"
        try:
            if not is_whole(file):
                raise ValueError("it is not what was written")
            rows = pq.read_table(file, schema=ROWS)
            facts = typed(_Facts, parse_json((pq.read_metadata(file).metadata or {})[_META]))
            check_columns(rows, _RULES)
        except (pa.ArrowException, OSError, KeyError, ValueError):  # damaged: what comes from here on is read again
            # end.json says that everything is read
            for later in (*sorted(spool.glob("*.parquet"))[number:], spool / "end.json"):
                later.unlink(missing_ok=True)
            break
        _enter(examined, file, facts, len(rows))
    return examined
