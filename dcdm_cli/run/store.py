"""The run folder: the config store all commands share, with one record per stage.

A stage is skipped when its settings, its inputs and its outputs are those of its record. Later stages read the records
of earlier ones instead of asking the user again.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator

from dcdm_cli.errors import DcdmError, LockedError, MismatchError, NotFoundError, StorageError
from dcdm_cli.files import PART_SUFFIX, hash_json, remove, strange, sweep, write_json
from dcdm_cli.gate import EXACT, NO_LINKS, Amount, Count, Table, Text, Word, inside, read_document, table_in
from dcdm_cli.run.holder import note_holder, now, read_holder
from dcdm_cli.run.memory import peak_memory_mib
from dcdm_cli.run.one_off import OneOff
from dcdm_cli.run.recorded import left_by_the_gone, of_another_stage, refuse_elsewhere, refuse_outward
from dcdm_cli.run.results import check_results
from dcdm_cli.run.roles import counted
from dcdm_cli.run.seals import Seal, change, change_of, is_for_people, outside, seal_all, seal_outside
from dcdm_cli.run.timing import Attempt
from dcdm_cli.run.versions import recorded_versions
from dcdm_export.places import set_aside

DEFAULT_RUN = "dcdm-run"
SET_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")  # a folder and a part of a file name, on every system
PIPELINE = ("score", "caption", "finetune", "calibrate", "distill", "export", "generate", "evaluate")
COMMAND_OF = {
    "calibrate": "finetune", "calibrate-distilled": "distill", "export-distilled": "export --guidance distilled",
    "caption-files": "caption", "prompts": "caption", "judge": "evaluate", "agreement": "evaluate",
    "adherence": "evaluate", "evaluate-artefacts": "evaluate check", "filter": "evaluate filter",
    "atlas": "evaluate atlas", "next-plan": "evaluate plan",
}  # fmt: skip  # of records that are not called like their command
OF_SETS = {"generate": "generate", "evaluate-artefacts": "evaluate check", "filter": "evaluate filter"}  # with --name
DISTILLED = "distilled"  # the folder of the distilled adapter and of its export
OF_ADAPTER = ("calibrate", "export")  # stages that each adapter has of its own, and that both may have at a time
ALL_SETS = "all"  # no set's name: where sets are compared it means all of them
_held: set[Path] = set()  # run folders that this process has locked
ADAPTER_WEIGHTS = ("pytorch_lora_weights.safetensors", "difficulty_encoder.safetensors", "config.json")


@dataclass(frozen=True)
class StageRecord:
    """records/<stage>.json. fingerprint: hash of what the stage made; results: its numbers, for people and reports.
    config: what the outcome depends on; uncounted: settings of the same sections that change nothing of it, for people.
    seconds: of work, with those of attempts that were stopped and gone on with. energy_wh: of the GPUs in sight, None =
    unknown. one_off: parts of the seconds that do not grow with the work, by name (`one_off.py`), as far as known.
    read, wrote: files of the run folder by name, and of a base model of the user's own by their absolute paths
    (`seals.py`); a folder in `listed` has a list of its own."""

    __pydantic_config__: ClassVar = EXACT

    stage: Word
    config: dict[str, Any]
    inputs: dict[str, Text]
    outputs: list[Text]
    fingerprint: Word
    results: Annotated[dict[str, Any], AfterValidator(check_results)]
    seconds: Amount
    device: Word
    peak_memory_mib: Count
    started: Word
    versions: dict[str, Word]
    schema: Literal[1] = 1
    energy_wh: Amount | None = None
    one_off: OneOff = field(default_factory=dict)
    uncounted: dict[str, Any] = field(default_factory=dict)
    read: Annotated[dict[Word, Seal], AfterValidator(refuse_outward)] = field(default_factory=dict)
    wrote: Annotated[dict[Word, Seal], AfterValidator(refuse_elsewhere)] = field(default_factory=dict)
    listed: list[Word] = field(default_factory=list)

    @property
    def id(self) -> str:
        """What later stages depend on: the same id means the same output."""
        return hash_json([self.stage, self.config, self.inputs, self.fingerprint])

    def names(self, file: str) -> bool:
        """Whether a file of this name, without its suffix, may be the record of the stage; see `_record_file`."""
        of_set = self.stage == "generate" and SET_NAME.fullmatch(file.removeprefix("generate-")) is not None
        of_adapter = self.stage in OF_ADAPTER and file == f"{self.stage}-{DISTILLED}"
        return file == self.stage or of_adapter or (of_set and file.startswith("generate-"))

    def section(self, name: str) -> Mapping[str, Any]:
        """A table of its settings. Raises MismatchError for what is none, and where there is none of that name."""
        return table_in(self.config, name)


@dataclass(frozen=True)
class Outcome:
    """What a stage's work returns. outputs: paths inside the run folder, which must exist for a skip. also: further
    files that it wrote. listed: folders with a list of their own that says what is in them: a set's ledger."""

    outputs: list[Path]
    fingerprint: str
    results: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    also: list[Path] = field(default_factory=list)
    listed: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class Stage:
    """One unit of work with everything its staleness depends on. uncounted: see `StageRecord`. reads: files and folders
    of earlier stages that it opens; those that are not there are not opened. base: files of the user's own base model,
    outside of the run folder, for the stage that settles which they are: fine-tuning."""

    name: str
    config: dict[str, Any]
    inputs: dict[str, str]
    uncounted: dict[str, Any] = field(default_factory=dict)
    reads: tuple[Path, ...] = ()
    base: tuple[Path, ...] = ()


class RunFolder:
    """Names of everything in a run folder; nothing else spells these paths.

    images_name: the generated set that `generated` and the record of `generate` mean; "" = the one without a name.
    distilled: `adapter`, `export` and the records of both and of `calibrate` mean the adapter that was distilled.
    """

    def __init__(self, path: Path, images_name: str = "", *, distilled: bool = False) -> None:
        self.path, self.images_name, self.distilled = path.absolute(), images_name, distilled

    config_file = property(lambda self: self.path / "dcdm.toml")
    holder_file = property(lambda self: self.path / ".lock.json")
    samples = property(lambda self: self.path / "samples.parquet")
    rejected = property(lambda self: self.path / "rejected.jsonl")
    copies = property(lambda self: self.path / "copies.jsonl")
    prompts = property(lambda self: self.path / "prompts.jsonl")
    own_captions = property(lambda self: self.path / "own_captions.parquet")
    images = property(lambda self: self.path / "images")
    scorer = property(lambda self: self.path / "scorer")
    checker = property(lambda self: self.path / "checker")
    adapter = property(lambda self: self._of_adapter / "adapter")
    calibration = property(lambda self: self.adapter / "calibration.json")
    export = property(lambda self: self._of_adapter / "export")
    _of_adapter = property(lambda self: self.path / DISTILLED if self.distilled else self.path)
    sets = property(lambda self: self.path / "sets")
    _records = property(lambda self: self.path / "records")
    _lock_file = property(lambda self: self.path / ".lock")
    generated = property(lambda self: self.sets / self.images_name if self.images_name else self.path / "generated")
    plans = property(lambda self: self.path / "plans")
    evaluation = property(lambda self: self.path / "evaluation")
    figures = property(lambda self: self.path / "figures")
    tables = property(lambda self: self.path / "tables")
    review = property(lambda self: self.path / "review")
    logs = property(lambda self: self.path / "logs")
    cache = property(lambda self: self.path / "cache")
    checkpoints = property(lambda self: self.path / "checkpoints")

    @property
    def weights(self) -> tuple[Path, ...]:
        """The files of the adapter that fine-tuning leaves and that decide what it makes."""
        return tuple(self.adapter / name for name in ADAPTER_WEIGHTS)

    def base_files(self) -> tuple[Path, ...]:
        """Of a base model of the user's own, those that fine-tuning read: no other file outside is compared."""
        made = self.record("finetune")
        return tuple(map(Path, outside(made.read))) if made else ()

    def train_again(self) -> str:
        """The command that fine-tunes on the same base model, wherever its name came from."""
        made = self.record("finetune")
        return f"dcdm finetune --base {shlex.quote(str(made.config['base']))}" if made else "dcdm finetune"

    def with_images(self, name: str) -> RunFolder:
        """The same folder, looked at with another generated set."""
        return RunFolder(self.path, name, distilled=self.distilled)

    def with_distilled(self, distilled: bool) -> RunFolder:
        """The same folder, looked at with the other adapter."""
        return self if distilled == self.distilled else RunFolder(self.path, self.images_name, distilled=distilled)

    def adapter_ids(self) -> dict[str, str]:
        """Ids of the stages that the adapter was made by. Raises NotFoundError where one is not finished, MismatchError
        for a distilled adapter whose teacher was fine-tuned again since."""
        ids = {"finetune": self.require("finetune").id}
        if not self.distilled:
            return ids
        made = self.require("distill")
        if made.inputs.get("finetune") != ids["finetune"]:
            raise MismatchError(
                f"the distilled adapter in {self.adapter} was made before the last fine-tuning",
                f"make it again: dcdm distill --run {self.path}",
                file=self.adapter,
            )
        return ids | {"distill": made.id}

    def set_names(self) -> list[str]:
        """The named generated sets that were begun or finished, in the order of their names."""
        records = self._records.glob("generate-*.json")
        recorded = {file.name.removeprefix("generate-").split(".")[0] for file in records}
        begun = {folder.name for folder in self.sets.glob("[!.]*") if folder.is_dir()}
        return sorted(name for name in recorded | begun if SET_NAME.fullmatch(name))

    def stopped_file(self, stage: str) -> Path:
        """Where attempts at a stage that were stopped leave what they took."""
        return self._record_file(stage).with_suffix(".stopped.json")

    def create(self, *, after: str | None = None) -> None:
        """Makes the folder and proves it is writable before anything expensive starts. Raises StorageError.

        after: a stage that must be finished, so that a slip in --run leaves no folder behind; see `require`.
        """
        self.refuse_links()
        if after is not None:
            self.require(after)
        probe = self.path / f".probe.{os.getpid()}{PART_SUFFIX}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"x" * 4096)
        except OSError as error:
            raise StorageError(
                f"cannot write to the run folder {self.path}: {error.strerror}",
                "choose a folder you may write to with --run, or free some space",
                file=self.path,
            ) from error
        finally:
            if probe.exists():
                probe.unlink()

    def refuse_links(self) -> None:
        """Raises MismatchError for a link that leads out of the run folder, and for any in the place of what is ours: a
        folder that was received would make stages write, or remove, something else. dcdm.toml is only read, and may be
        a link. Pipes, sockets and devices in these places are refused too: to open one may wait for ever."""
        ours = self._own_names()
        for odd in strange(self.path):
            name = os.path.relpath(odd, self.path)
            if odd == self.config_file:
                continue
            inside(self.path, name, said_in=odd, again=NO_LINKS)
            if Path(name).parts[0] in ours or name.endswith(PART_SUFFIX):
                said = "a link, and stages write and remove there" if odd.is_symlink() else "neither file nor folder"
                raise MismatchError(f"{odd} is {said}", NO_LINKS if odd.is_symlink() else "remove it", file=odd)

    def _own_names(self) -> set[str]:
        """What lies in the run folder itself: the first parts of all the places above, a new one's without a word."""
        plain = RunFolder(self.path)
        names = [name for name, kind in vars(RunFolder).items() if isinstance(kind, property)]
        places = [place for name in names if isinstance(place := getattr(plain, name), Path)]
        # `_of_adapter` is the run folder itself here
        first = {
            place.relative_to(self.path).parts[0] for place in (*places, self.path / DISTILLED) if place != self.path
        }
        return first | {set_aside(self.path / name).name for name in first}

    @contextmanager
    def lock(self, command: str) -> Iterator[None]:
        """One writer per run folder, which also sweeps away what killed ones left. Raises LockedError at once, naming
        the holder. A command that holds it already goes on under the lock it has."""
        if self.path in _held:
            yield
            return
        self.refuse_links()
        holder = self.holder_file
        from filelock import FileLock, Timeout  # --help and status open a run without locking it

        lock = FileLock(self._lock_file)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise LockedError(
                f"another process is writing to {self.path}: {read_holder(holder) or 'its name is not known'}",
                "wait for it, or choose another folder with --run",
                file=self.path,
            ) from None
        try:
            note_holder(holder, command)
            _held.add(self.path)
            self._sweep()
            yield
        finally:
            _held.discard(self.path)
            holder.unlink(missing_ok=True)
            lock.release()

    def record(self, stage: str) -> StageRecord | None:
        """None where the stage is not finished. Raises MismatchError for a record that is none, and for outputs that
        lie outside the run folder."""
        return self._read_record(self._record_file(stage), stage)

    def records(self) -> dict[str, StageRecord]:
        """All that can be read, by the names of their files, in the order of time."""
        return {name: found for name, found in self.records_or_faults().items() if isinstance(found, StageRecord)}

    def records_or_faults(self) -> dict[str, StageRecord | DcdmError]:
        """As `records`; of a record that cannot be read, what is wrong with it."""
        found: dict[str, StageRecord | DcdmError | None] = {}
        for name in self.record_times():
            try:
                found[name] = self._read_record(self._records / f"{name}.json", name)
            except DcdmError as error:
                found[name] = error
        return {name: one for name, one in found.items() if one is not None}

    def _read_record(self, file: Path, stage: str) -> StageRecord | None:
        again = f"make it again: dcdm {command_of(stage)} --force --run {self.path}"
        if not file.is_file():
            return None
        record = read_document(file, StageRecord, again)
        if not record.names(file.stem):
            raise of_another_stage(file, record.stage, again)
        for output in record.outputs:
            inside(self.path, output, said_in=file, again=again)
        said = {name: Table.of(getattr(record, name), file, name, again) for name in ("config", "results")}
        return replace(record, **said)

    def record_times(self) -> dict[str, int]:
        """When each stage's record was written (nanoseconds), in the order of time."""
        files = [*self._records.glob("[!.]*.json")]
        times = {f.stem: f.stat().st_mtime_ns for f in files if not f.name.endswith(".stopped.json")}
        return dict(sorted(times.items(), key=lambda item: item[1]))

    def forget(self, *stages: str, replaces: Path | None = None) -> None:
        """Called before outputs are replaced: until they are recorded again, nobody may take the new for the old.

        replaces: the file of an earlier stage that is rewritten now; if this process is killed before it has recorded
        that, the file is nobody's damage.
        """
        if replaces is not None:
            write_json(self._begun_file(stages[0]), [replaces.relative_to(self.path).as_posix()])
        for stage in stages:
            self._record_file(stage).unlink(missing_ok=True)

    def require(self, stage: str) -> StageRecord:
        """Raises NotFoundError naming the command that was probably forgotten."""
        if (record := self.record(stage)) is not None:
            return record
        words, run = f"{stage} FOLDER" if stage == "score" else stage, shlex.quote(str(self.path))
        raise NotFoundError(
            f"{self.path} has no finished {stage} stage", f"run it first: dcdm {words} --run {run}", file=self.path
        )

    def is_fresh(self, stage: Stage) -> StageRecord | None:
        """The stage's record when running it again would change nothing."""
        record = self.record(stage.name)
        if record is None or not same_work(record, stage):
            return None
        return None if next(self.changes(record), None) else record

    def gone(self, record: StageRecord, *, for_people: bool = False) -> list[str]:
        """Outputs that are not there. for_people: of those that nothing is made from, which make no stage stale."""
        outputs = [output for output in record.outputs if is_for_people(output) == for_people]
        return [output for output in outputs if not (self.path / output).exists()]

    def changes(self, record: StageRecord) -> Iterator[tuple[str, str]]:
        """(file, what became of it) of what the stage wrote, then of what it had read: none, and it is fresh."""
        gone = [(output, "is gone") for output in self.gone(record)]
        yield from gone
        begun, records = self._begun(), self.records()
        later = [one for one in records.values() if one.stage != record.stage]  # that may have rewritten it
        left = left_by_the_gone(records, PIPELINE)
        for name, was in record.wrote.items():
            went_on = [one.wrote[name] for one in later if name in one.wrote and name in one.read]
            said = [change(self.path / name, seal) for seal in (was, *went_on, *left.get(name, ()))]
            if all(said) and name not in begun and (name, said[0]) not in gone:
                yield name, said[0]
        for name, was in record.read.items():
            if name not in record.wrote and (said := change_of(self.path, name, was)):
                yield name, said

    def as_made(self, record: StageRecord) -> RunFolder:
        """The folder looked at with the adapter that a stage was done with."""
        made = record.config.get("generate", record.config)
        distilled = isinstance(made, Mapping) and made.get("guidance") == DISTILLED
        return self.with_distilled(self.distilled or distilled)

    def outdated(self, record: StageRecord) -> Iterator[str]:
        """Of the stages that this one was made from: which were made again, or are gone, in words."""
        for stage, known in record.inputs.items():
            if stage in PIPELINE:
                newest = self.record(stage)
                if (newest is not None and newest.id != known) or (newest is None and known):
                    yield f"{stage} was made again since" if newest else f"{stage} is gone"

    def sealed(self, reads: Collection[Path]) -> dict[str, Seal]:
        """Of what is about to be read. Raises MismatchError for a file that is not as any stage left it, or not as
        fine-tuning found it. One of the run folder that is gone is missed by whoever reads it."""
        writers: dict[str, list[StageRecord]] = {}
        records = self.records()
        for record in records.values():
            for name in record.wrote:
                writers.setdefault(name, []).append(record)
        left = left_by_the_gone(records, PIPELINE)
        known = {
            name: [*(record.wrote[name] for record in wrote), *left.get(name, ())] for name, wrote in writers.items()
        }
        found, begun = seal_all(self.path, reads, known), self._begun()
        for name, wrote in writers.items():
            if name in found and name not in begun and not any(found[name].same(seal) for seal in known[name]):
                raise self._damaged(name, wrote)
        return found | self._sealed_base(set(reads))

    def _sealed_base(self, reads: Collection[Path]) -> dict[str, Seal]:
        """Of the files of the user's own base model among these."""
        made = self.record("finetune")
        known = {name: was for name, was in outside(made.read).items() if Path(name) in reads} if made else {}
        for name, was in known.items():
            if said := change_of(self.path, name, was):
                message = f"the base model is not the one this adapter was trained on: {name} {said}"
                again = f"put it back, or fine-tune again: {self.train_again()} --run {self.path}"
                raise MismatchError(message, again, file=Path(name))
        return known

    def _damaged(self, name: str, wrote: Sequence[StageRecord]) -> MismatchError:
        first, last, file = wrote[0].stage, wrote[-1], self.path / name
        again = f"make it again: dcdm {command_of(first)} --force --run {self.path}"
        if file.is_relative_to(self.checker):
            again = f"remove {file.parent}: the label check is made again"
        said = f"{file} is damaged: it {change(file, last.wrote[name])} when the stage {last.stage} wrote it"
        return MismatchError(said, again, file=file)

    def _begun(self) -> set[str]:
        """Files that a stage which was killed may have replaced."""
        files = self._records.glob(".*.begun")
        return {name for file in files for name in read_document(file, list[Word], f"remove {file}")}

    def _begun_file(self, stage: str) -> Path:
        return self._records / f".{self._record_file(stage).stem}.begun"

    def run(
        self,
        stage: Stage,
        work: Callable[[], Outcome],
        *,
        force: bool = False,
        intact: Callable[[], bool] = lambda: True,
    ) -> tuple[StageRecord, bool]:
        """Does the work unless the stage is fresh. Returns the record and whether work was done.

        intact: asked of a fresh stage whose outputs are there, whether they still hold what they did.
        """
        fresh = None if force else self.is_fresh(stage)
        if fresh is not None and intact():
            return fresh, False
        read = self.sealed(stage.reads) | seal_outside(stage.base)
        key, place = hash_json([stage.config, stage.inputs]), self.stopped_file(stage.name)
        started, attempt = now(), Attempt(place, key)
        with attempt.measured():
            outcome = work()
        record = StageRecord(
            stage=stage.name,
            config=stage.config,
            inputs=stage.inputs,
            outputs=[p.relative_to(self.path).as_posix() for p in outcome.outputs],
            fingerprint=outcome.fingerprint,
            results=outcome.results,
            seconds=round(attempt.seconds, 2),
            device=outcome.device,
            peak_memory_mib=peak_memory_mib(),
            started=started,
            versions=recorded_versions(),
            energy_wh=attempt.energy_wh,
            one_off=attempt.one_off.seconds(),
            uncounted=stage.uncounted,
            read=read,
            wrote=seal_all(self.path, [*outcome.outputs, *outcome.also]),
            listed=[p.relative_to(self.path).as_posix() for p in outcome.listed if p.is_relative_to(self.path)],
        )
        write_json(self._record_file(stage.name), asdict(record))
        self._begun_file(stage.name).unlink(missing_ok=True)
        attempt.over()
        return record, True

    def _sweep(self) -> None:
        """Generated sets are left alone: their ledger does this itself, with more than one process perhaps."""
        sweep(self.path, leave=(self.with_images("").generated, self.sets))
        for export in (self.path / "export", self.path / DISTILLED / "export"):
            if export.exists():  # else the old one is all there is
                remove([set_aside(export)])

    def _record_file(self, stage: str) -> Path:
        name = f"{stage}-{self.images_name}" if stage == "generate" and self.images_name else stage
        name += f"-{DISTILLED}" if self.distilled and stage in OF_ADAPTER else ""
        return self._records / f"{name}.json"


def command_of(name: str) -> str:
    """The command, without the program's name, whose work a record is. name: of the record's file."""
    for stage, command in OF_SETS.items():
        if name.startswith(f"{stage}-"):
            return f"{command} --name {name.removeprefix(f'{stage}-')}"
    experiment = name.removeprefix("evaluate-")
    return COMMAND_OF.get(name, name if experiment == name else f"evaluate experiment {experiment}")


def same_work(record: StageRecord, stage: Stage) -> bool:
    """Whether inputs and settings are those of the record, whatever became of the files and of what counts no more."""
    return record.inputs == stage.inputs and counted(record.config, stage.uncounted) == counted(stage.config, {})
