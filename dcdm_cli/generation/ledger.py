"""The ledger of a generated folder: which shards are finished, and the files other tools read once all are.

`shards/00007.json`, written last, is the only proof that shard 7 is complete; `shards/00007.parquet` holds its rows.
One process publishes: workers hand over finished shards, so a shard that was made twice is published once.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from dcdm_cli.data.candidates import Rejection
from dcdm_cli.data.manifest import COLUMNS, has_rows, manifest_rows, write_manifest_parts
from dcdm_cli.data.writers import METADATA_COLUMNS, stream_metadata, write_card, write_rejected
from dcdm_cli.errors import DcdmError, MismatchError
from dcdm_cli.files import (
    PART_SUFFIX,
    atomic_path,
    fsync,
    hash_file,
    leftovers,
    remove,
    storage_errors,
    write_json,
)  # fmt: skip
from dcdm_cli.gate import EXACT, Count, Digest, Word, read_document, read_lines
from dcdm_cli.generation.intact import Fault, Written, faults_of
from dcdm_cli.generation.layout import SPLIT, FolderImages, Layout, ShardContent, ShardWriter, open_writer
from dcdm_cli.generation.plan_file import AnyPlan, PlanFile, write_plan
from dcdm_cli.generation.shards import ROWS, Journal, MadeShard, beginning, check_entries, write_journal

OUTPUT, REJECTED = "output.json", "rejected.jsonl"
_LOCK = f".lock{PART_SUFFIX}"
SAMPLES, METADATA = "samples.parquet", f"{SPLIT}/metadata.jsonl"
OTHER_ROWS = f"{SAMPLES} has other rows than the shards"


@dataclass(frozen=True)
class Sidecar:
    """shards/<shard>.json. count: images in it; failed: blank ones, left out; first_id, last_id: of the images.

    path, bytes, sha256: of the shard's file; of a folder's shard the sum and the hash of `sha256sum`'s listing.
    rows_sha256: of shards/<shard>.parquet.
    """

    __pydantic_config__: ClassVar = EXACT

    plan: Digest
    shard: Count
    count: Count
    failed: Count
    path: Word | None
    bytes: Count
    sha256: Digest
    rows_sha256: Digest
    first_id: Word | None
    last_id: Word | None
    schema: Literal[1] = 1


@dataclass(frozen=True)
class KeptAs:
    """output.json: how the folder's images are kept."""

    format: Word
    image_format: Word
    schema: Literal[1] = 1


class Ledger:
    """finished: shard -> sidecar. Opening checks what is there; see `open`."""

    def __init__(self, plan: AnyPlan, layout: Layout, shards: Sequence[int] | None = None) -> None:
        self.plan, self.layout, self.folder = plan, layout, layout.folder / "shards"
        self.shards = range(plan.shards) if shards is None else shards
        self.finished: dict[int, Sidecar] = {}
        self.done = 0  # rows of finished shards

    @classmethod
    def open(
        cls, plan: AnyPlan, layout: Layout, batch: int, *, verify: bool = False, shards: Sequence[int] | None = None
    ) -> Ledger:
        """Adopts the folder for the plan, removes what a crash left and lists the finished shards.

        shards: those that count here, None = all; then other processes may be at work on the rest, and nothing of
        theirs is looked at or removed. verify: read every finished shard and compare it with its hashes. Raises
        MismatchError when the folder holds another plan or format, or a shard that differs from its sidecar; what is
        finished stays as it is.
        """
        ledger = cls(plan, layout, shards)
        own = None if shards is None else {ledger._sidecar_file(shard).name for shard in shards}
        with storage_errors(layout.folder):
            ledger._adopt()
            # several processes may be at work on parts, whose unfinished files are not to be removed
            if own is None:
                ledger._sweep()
        for file in sorted(ledger.folder.glob("*.json")):
            if file.name != OUTPUT and (own is None or file.name in own):
                ledger._take(file, batch, verify)
        return ledger

    def unfinished(self) -> list[int]:
        return [shard for shard in self.shards if shard not in self.finished]

    @property
    def rows(self) -> int:
        """Images that the shards which count here are to have."""
        size = self.plan.shard_size
        return sum(min(size, len(self.plan) - shard * size) for shard in self.shards)

    @contextmanager
    def lock(self, shard: int) -> Iterator[bool]:
        """Whether this process may make the shard: False while another is at it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / f".{shard:05d}{_LOCK}")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield not self._sidecar_file(shard).is_file()  # another process may have finished it since this one looked
        finally:
            lock.release()

    def missing(self) -> str:
        """What a folder that was finished lacks, the first of it; empty when it is whole. Changes nothing."""
        for shard in range(self.plan.shards):
            file = self._sidecar_file(shard)
            if not file.is_file():
                return f"{file} is gone"
            try:
                sidecar = self._read_sidecar(file)
            except MismatchError:
                return f"{file} is damaged"
            if self._faults(sidecar):
                return f"shard {file.stem} differs from its record"
            if fault := next(self._file_faults(sidecar), None):
                return f"shard {file.stem} is not what was made: {fault}"
        return ""

    def doubt(self) -> str:
        """Why the images of a finished folder, as its manifest lists them, are not to be worked with; empty when they
        may be. Changes nothing."""
        if said := self.missing():
            return said
        self._read_sidecars()
        return "" if self._is_projection() else OTHER_ROWS

    def differences(self, *, verify: bool = False) -> Iterator[tuple[str, str]]:
        """(what, remedy) of everything in which a finished folder differs from its ledger: shards, images, and what was
        made of their rows for other tools; no remedy, and the same command mends it. verify: read every image too.
        Changes nothing."""
        known: set[str] = set()
        sound = True  # rows of all shards
        for shard in range(self.plan.shards):
            file = self._sidecar_file(shard)
            try:
                sidecar = self._read_sidecar(file)
                said = self._faults(sidecar)
                # rows that do not fit their sidecar are not believed, so neither are their paths
                paths = [] if said else self._rows(shard)["path"].drop_null().to_pylist()
            except DcdmError as error:
                sound = False
                yield error.message, error.hint
                continue
            known.update(paths)
            self.finished[shard] = sidecar
            if said:
                sound = False
                yield f"shard {file.stem}: {said}", f"remove {file}, then dcdm generate makes that shard alone again"
                continue
            for fault in self._file_faults(sidecar, verify=verify):
                again = f"remove {self.layout.folder / fault.path}, then dcdm generate makes it again"
                yield f"shard {file.stem}: {fault}", "" if fault.lost else again
        yield from self._unknown_images(known)
        yield from ((text, "") for text in self._projection_differences(known, sound))

    def _unknown_images(self, known: set[str]) -> Iterator[tuple[str, str]]:
        """As `differences`, of what lies among a folder's images. known: paths that rows have."""
        if self.layout.format == "folder":
            there = {path for path, _ in self._files() if path.startswith(f"{SPLIT}/") and not _is_temporary(path)}
            extra = there - known - {METADATA}
            yield from ((f"{path} is in no row of any shard", f"remove {path}") for path in sorted(extra))

    def _projection_differences(self, known: set[str], sound: bool) -> Iterator[str]:
        """Rows that other tools read, against those of the shards, as far as these can be believed (sound)."""
        samples, metadata = self.layout.folder / SAMPLES, self.layout.folder / METADATA
        count = manifest_rows(samples)
        if count is None:
            yield f"{SAMPLES} cannot be read" if samples.is_file() else f"{SAMPLES} is gone"
        elif count != self.images:
            yield f"{SAMPLES} has {count} rows for {self.images} images"
        elif sound and not self._is_projection():
            yield OTHER_ROWS
        if self.layout.format != "folder":
            return
        named = {f"{SPLIT}/{row.get('file_name')}" for row in read_lines(metadata, dict[str, Any])}
        if named != known:
            yield f"{METADATA} names {len(named & known)} of {len(known)} images, and {len(named - known)} others"

    def _is_projection(self) -> bool:
        """Whether the manifest has the rows of the shards that are finished."""
        try:
            return has_rows(self.layout.folder / SAMPLES, self._manifest())
        except (pa.ArrowException, OSError, KeyError, ValueError):  # damaged pages, or columns that are gone
            return False

    def write_again(self, base: str, backend: str) -> None:
        """`conclude` for a folder that is whole."""
        self._read_sidecars()
        self.conclude(base, backend)

    def _read_sidecars(self) -> None:
        """Of a folder that is whole."""
        self.finished = {shard: self._read_sidecar(self._sidecar_file(shard)) for shard in range(self.plan.shards)}

    def publish(self, made: MadeShard) -> None:
        """Puts a shard in its place and writes its sidecar. A shard that is published already is dropped."""
        if made.shard in self.finished:
            _discard(made.part)
            _journal_file(self.layout, made.shard).unlink(missing_ok=True)
            return
        try:
            self._publish(made)
        except BaseException:  # a full disk: what is not published is made again, and must not fill it further
            _discard(made.part)
            raise

    def _publish(self, made: MadeShard) -> None:
        rows = pa.Table.from_pylist([{c: entry.get(c) for c in ROWS.names} for entry in made.entries], ROWS)
        with atomic_path(self._rows_file(made.shard)) as part:
            pq.write_table(rows, part)
        ids = [entry["sample_id"] for entry in made.entries if entry["path"] is not None]
        sidecar = Sidecar(
            plan=self.plan.hash,
            shard=made.shard,
            count=len(ids),
            failed=len(made.entries) - len(ids),
            path=made.part.path,
            bytes=made.part.bytes,
            sha256=made.part.sha256,
            rows_sha256=hash_file(self._rows_file(made.shard)),
            first_id=ids[0] if ids else None,
            last_id=ids[-1] if ids else None,
        )
        if made.part.file is not None and made.part.path is not None:
            final = self.layout.folder / made.part.path
            with storage_errors(final):
                os.replace(made.part.file, final)
                # the new name too, before the sidecar vouches for it
                fsync(final.parent)
        # from here on the shard counts; until here its journal is what a restart goes on from
        write_json(self._sidecar_file(made.shard), asdict(sidecar))
        _journal_file(self.layout, made.shard).unlink(missing_ok=True)
        self._count(sidecar)

    def conclude(self, base: str, backend: str) -> None:
        """Writes what other tools read: samples.parquet, metadata.jsonl, the card. Those that are there too: nobody
        has sealed them yet, and what has changed in them since would be taken for ours."""
        folder, names = self.layout.folder, self.layout.class_names
        self._sweep()  # workers that were killed left some
        write_rejected(folder / REJECTED, self._rejected())
        if self.layout.format == "folder":
            stream_metadata(folder / SPLIT, self._metadata())
        facts = {"base model": base, "generator": self.plan.generator, "backend": backend}
        write_card(folder, names, facts, self.layout.format, self.images)
        write_manifest_parts(self._manifest(), folder / SAMPLES, names, folder)

    @property
    def images(self) -> int:
        return sum(sidecar.count for sidecar in self.finished.values())

    @property
    def failed(self) -> int:
        return sum(sidecar.failed for sidecar in self.finished.values())

    def _manifest(self) -> Iterator[pa.Table]:
        for shard in sorted(self.finished):
            rows = self._rows(shard)
            yield rows.filter(rows["path"].is_valid()).select(COLUMNS)

    def _rejected(self) -> Iterator[Rejection]:
        """Images that were made and are not there: every pixel alike, which is what a decoder's overflow leaves."""
        for shard in sorted(self.finished):
            rows = self._rows(shard)
            for row in rows.filter(rows["path"].is_null()).select(["sample_id", "class_name", "seed"]).to_pylist():
                detail = f"class {row['class_name']}, seed {row['seed']}: one colour, or pixels that are not finite"
                yield Rejection(row["sample_id"], "blank", detail)

    def _metadata(self) -> Iterator[Mapping[str, Any]]:
        for table in self._manifest():
            for row in table.to_pylist():
                # `datasets` takes file names from the folder of metadata.jsonl on
                name = row["path"].removeprefix(f"{SPLIT}/")
                yield {**{column: row.get(column) for column in METADATA_COLUMNS}, "file_name": name}

    # Opening

    def _adopt(self) -> None:
        """Writes the plan and the format, or checks that those already there are the same."""
        file, output = self.layout.folder / "plan.parquet", self.folder / OUTPUT
        ours = {"schema": 1, "format": self.layout.format, "image_format": self.layout.image}
        refuse_other_plan(self.plan, self.layout.folder)
        _copy_plan(self.plan, file)
        if not output.is_file():
            write_json(output, ours)
            return
        theirs = asdict(read_output(self.layout.folder))
        if theirs != ours:
            changed = ", ".join(f"{k} {theirs[k]!r} instead of {ours[k]!r}" for k in ours if theirs[k] != ours[k])
            raise MismatchError(
                f"{self.layout.folder} holds images in another format: {changed}",
                "give the same --format and --image-format, or run with --force to replace them",
                file=output,
            )

    def _sweep(self) -> None:
        """Removes temporary files."""
        for path, file in self._files():
            if path.endswith(PART_SUFFIX):
                file.unlink(missing_ok=True)

    def _files(self) -> Iterator[tuple[str, Path]]:
        """All files of the folder, also by their paths in it."""
        root = str(self.layout.folder)
        for parent, _, names in os.walk(root):
            inside = parent[len(root) :].lstrip(os.sep).replace(os.sep, "/")
            yield from ((f"{inside}/{name}" if inside else name, Path(parent, name)) for name in names)

    def _take(self, file: Path, batch: int, verify: bool) -> None:
        """Enters a finished shard, or makes it an unfinished one when images of it were deleted."""
        sidecar = self._read_sidecar(file)
        faults = self._faults(sidecar)
        found = [] if faults else [*self._file_faults(sidecar, verify=verify)]
        changed = next((fault for fault in found if not fault.lost), None)
        # what is only gone is made again; what differs, somebody has changed, and is told how to have it made again
        if faults or changed:
            raise MismatchError(
                f"shard {file.stem} differs from its record: {faults or changed}",
                f"remove {file} and run the same command again: that shard alone is made again",
                file=file,
            )
        if found:
            self._reopen(sidecar, {fault.path for fault in found}, batch)
        else:
            self._count(sidecar)

    def _reopen(self, sidecar: Sidecar, lost: set[str], batch: int) -> None:
        """A shard counts as unfinished; of a folder's, the journal then lists what it can go on from."""
        if self.layout.format == "folder":
            whole = beginning(self._rows(sidecar.shard).to_pylist(), lambda path: path not in lost, batch)
            write_journal(whole, _journal_file(self.layout, sidecar.shard), batch)
        # after the journal, which the shard goes on from as soon as it has no sidecar
        self._sidecar_file(sidecar.shard).unlink()

    def _file_faults(self, sidecar: Sidecar, *, verify: bool = False) -> Iterator[Fault]:
        """Of the files of a shard without other faults. verify: read those too that were not touched since."""
        files = [Written(sidecar.path, sidecar.bytes, sidecar.sha256)] if sidecar.path else []
        if self.layout.format == "folder":
            rows = self._rows(sidecar.shard).select(["path", "bytes", "sha256"])
            files = [Written(**row) for row in rows.filter(rows["path"].is_valid()).to_pylist()]
        # the sidecar is written last: whatever is newer, somebody has written since
        published = self._sidecar_file(sidecar.shard).stat().st_mtime_ns
        yield from faults_of(self.layout.folder, files, published, verify=verify)

    def _read_sidecar(self, file: Path) -> Sidecar:
        return read_document(file, Sidecar, "remove it and run the same command again: that shard alone is made again")

    def _faults(self, sidecar: Sidecar) -> str:
        """What does not fit, but for the files of the images; empty when all fits."""
        rows = self._rows_file(sidecar.shard)
        if sidecar.plan != self.plan.hash:
            return "it belongs to another plan"
        if not 0 <= sidecar.shard < self.plan.shards:
            return f"the plan has {self.plan.shards} shards"
        # before anything is read by it: only the path that the layout gives is believed
        if sidecar.path not in (None, self.layout.archive(sidecar.shard)):
            return f"its file is {self.layout.archive(sidecar.shard)}, not {sidecar.path!r}"
        if not rows.is_file() or hash_file(rows) != sidecar.rows_sha256:
            return f"{rows.name} is missing or was changed"
        try:
            known = len(self._rows(sidecar.shard))
        except MismatchError as error:
            return error.message
        if sidecar.count + sidecar.failed != known:
            return f"it counts {sidecar.count} images and {sidecar.failed} failures, and has {known} rows"
        return ""

    def _count(self, sidecar: Sidecar) -> None:
        self.finished[sidecar.shard] = sidecar
        self.done += sidecar.count + sidecar.failed

    def _rows(self, shard: int) -> pa.Table:
        """Raises MismatchError for rows that break a rule: their paths are read and deleted by."""
        file = self._rows_file(shard)
        try:
            # the schema fills in null for columns that came after the shard was made
            rows = pq.read_table(file, schema=ROWS)
            check_entries(rows)
            return rows
        except (pa.ArrowException, ValueError, OSError) as error:
            again = f"remove {self._sidecar_file(shard)} and run the same command again: that shard alone is made again"
            raise MismatchError(f"{file} holds no rows of a shard: {error}", again, file=file) from error

    def _rows_file(self, shard: int) -> Path:
        return self.folder / f"{shard:05d}.parquet"

    def _sidecar_file(self, shard: int) -> Path:
        return self.folder / f"{shard:05d}.json"


def sweep_folder(folder: Path) -> None:
    """Removes what killed writers left in a generated folder; nothing while a process is at one of its shards."""
    left = [*leftovers(folder)]  # first: what is begun once the locks are looked at is nobody's leftover
    with suppress(Timeout), ExitStack() as held:
        for file in (folder / "shards").glob(f".*{_LOCK}"):
            held.enter_context(FileLock(file).acquire(timeout=0))
        remove(left)


def read_output(folder: Path) -> KeptAs:
    """How the images of a generated folder are kept."""
    return read_document(folder / "shards" / OUTPUT, KeptAs, "make it again: dcdm generate --force")


def ledger_in(folder: Path) -> Ledger:
    """Of a generated folder, as its own files say: settings may ask for another format by now. Raises MismatchError for
    a plan or a note of the format that is none, NotFoundError where one is gone."""
    plan, kept = PlanFile(folder / "plan.parquet"), read_output(folder)
    return Ledger(plan, Layout(folder, kept.format, kept.image_format, plan.class_names, plan.shards))


def _is_temporary(path: str) -> bool:
    return path.endswith(PART_SUFFIX) or path.rpartition("/")[2].startswith(".")


def refuse_other_plan(plan: AnyPlan, folder: Path) -> None:
    """Raises MismatchError when the folder holds another plan's images."""
    file = folder / "plan.parquet"
    if file.is_file() and PlanFile(file).hash != plan.hash:
        raise MismatchError(
            f"{folder} holds images of another plan",
            "give the new set a name (--name NAME), replace them with --force, or choose another --run",
            file=file,
        )


def shard_writer(layout: Layout, shard: int, ids: Sequence[str]) -> tuple[ShardWriter, list[dict[str, Any]]]:
    """A writer for the shard, and the entries that are finished already (folders only: archives start over).

    ids: the shard's images in order. Needs no ledger, as workers have none.
    """
    if layout.format != "folder":
        return open_writer(layout, shard), []
    with storage_errors(layout.folder):
        journal = Journal(_journal_file(layout, shard), ids)
    done = list(journal.entries)
    return FolderImages(layout, done, journal.append), done


def _copy_plan(plan: AnyPlan, file: Path) -> None:
    """One that is there too: it may have changed where its hash does not look."""
    if isinstance(plan, PlanFile):
        if file.is_file() and plan.path.samefile(file):
            return
        with atomic_path(file) as part:
            shutil.copyfile(plan.path, part)
    else:
        write_plan(plan, file)


def _journal_file(layout: Layout, shard: int) -> Path:
    return layout.folder / "shards" / f"{shard:05d}.journal"


def _discard(part: ShardContent) -> None:
    if part.file is not None:
        Path(part.file).unlink(missing_ok=True)
