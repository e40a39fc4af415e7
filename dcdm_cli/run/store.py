"""The run folder: the config store all commands share, with one record per stage.

A stage is skipped when its settings, its inputs and its outputs are those of its record. Later stages read the records
of earlier ones instead of asking the user again.
"""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dcdm_cli import __version__
from dcdm_cli.errors import LockedError, MismatchError, NotFoundError, StorageError
from dcdm_cli.files import PART_SUFFIX, hash_json, write_json, write_text
from dcdm_cli.run.timing import Attempt

DEFAULT_RUN = "dcdm-run"
SET_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")  # a folder and a part of a file name, on every system
ALL_SETS = "all"  # no set's name: where sets are compared it means all of them
RECORDED_PACKAGES = ("torch", "diffusers", "transformers", "peft", "timm", "accelerate")


@dataclass(frozen=True)
class StageRecord:
    """records/<stage>.json. fingerprint: hash of what the stage made; results: its numbers, for people and reports.
    seconds: of work, with those of attempts that were stopped and gone on with. energy_wh: of the GPUs in sight, None =
    unknown. apart: parts of the seconds that do not grow with the work, by name (`one_off.py`), as far as known."""

    stage: str
    config: dict[str, Any]
    inputs: dict[str, str]
    outputs: list[str]
    fingerprint: str
    results: dict[str, Any]
    seconds: float
    device: str
    peak_memory_mib: int
    started: str
    versions: dict[str, str]
    schema: int = 1
    energy_wh: float | None = None
    apart: dict[str, float] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """What later stages depend on: the same id means the same output."""
        return hash_json([self.stage, self.config, self.inputs, self.fingerprint])


@dataclass(frozen=True)
class Outcome:
    """What a stage's work returns. outputs: paths inside the run folder, which must exist for a skip."""

    outputs: list[Path]
    fingerprint: str
    results: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"


@dataclass(frozen=True)
class Stage:
    """One unit of work with everything its staleness depends on."""

    name: str
    config: dict[str, Any]
    inputs: dict[str, str]


class RunFolder:
    """Names of everything in a run folder; nothing else spells these paths.

    images_name: which generated set is meant by `generated` and by the record of `generate`; "" = the one without a
    name.
    """

    def __init__(self, path: Path, images_name: str = "") -> None:
        self.path, self.images_name = path.absolute(), images_name

    config_file = property(lambda self: self.path / "dcdm.toml")
    samples = property(lambda self: self.path / "samples.parquet")
    rejected = property(lambda self: self.path / "rejected.jsonl")
    images = property(lambda self: self.path / "images")
    scorer = property(lambda self: self.path / "scorer")
    adapter = property(lambda self: self.path / "adapter")
    export = property(lambda self: self.path / "export")
    sets = property(lambda self: self.path / "sets")
    generated = property(lambda self: self.sets / self.images_name if self.images_name else self.path / "generated")
    plans = property(lambda self: self.path / "plans")
    evaluation = property(lambda self: self.path / "evaluation")
    figures = property(lambda self: self.path / "figures")
    tables = property(lambda self: self.path / "tables")
    review = property(lambda self: self.path / "review")
    logs = property(lambda self: self.path / "logs")
    cache = property(lambda self: self.path / "cache")
    checkpoints = property(lambda self: self.path / "checkpoints")

    def with_images(self, name: str) -> RunFolder:
        """The same folder, looked at with another generated set."""
        return RunFolder(self.path, name)

    def set_names(self) -> list[str]:
        """The named generated sets that were begun or finished, in the order of their names."""
        records = (self.path / "records").glob("generate-*.json")
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

    @contextmanager
    def lock(self, command: str) -> Iterator[None]:
        """One writer per run folder, which also sweeps away what killed ones left. Raises LockedError at once, naming
        the holder."""
        holder = self.path / ".lock.json"
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise LockedError(
                f"another process is writing to {self.path}: {_describe_holder(holder)}",
                "wait for it, or choose another folder with --run",
                file=self.path,
            ) from None
        try:
            write_json(
                holder,
                {"host": socket.gethostname(), "pid": os.getpid(), "command": command, "since": _now()},
            )
            self._sweep()
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()

    def record(self, stage: str) -> StageRecord | None:
        file = self._record_file(stage)
        if not file.is_file():
            return None
        try:
            return StageRecord(**json.loads(file.read_text("utf-8")))
        except (ValueError, TypeError) as error:
            raise MismatchError(f"{file} is damaged: {error}", f"run: dcdm {stage} --force", file=file) from error

    def record_times(self) -> dict[str, int]:
        """When each stage's record was written (nanoseconds), in the order of time."""
        files = [*(self.path / "records").glob("[!.]*.json")]
        times = {f.stem: f.stat().st_mtime_ns for f in files if not f.name.endswith(".stopped.json")}
        return dict(sorted(times.items(), key=lambda item: item[1]))

    def forget(self, *stages: str) -> None:
        """Called before outputs are replaced: until they are recorded again, nobody may take the new for the old."""
        for stage in stages:
            self._record_file(stage).unlink(missing_ok=True)

    def require(self, stage: str) -> StageRecord:
        """Raises NotFoundError naming the command that was probably forgotten."""
        record = self.record(stage)
        if record is None:
            raise NotFoundError(
                f"{self.path} has no finished {stage} stage",
                f"run it first: dcdm {stage} --run {self.path}",
                file=self.path,
            )
        return record

    def is_fresh(self, stage: Stage) -> StageRecord | None:
        """The stage's record when running it again would change nothing."""
        record = self.record(stage.name)
        if record is None or (record.config, record.inputs) != (stage.config, stage.inputs):
            return None
        return record if all((self.path / output).exists() for output in record.outputs) else None

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
        key, place = hash_json([stage.config, stage.inputs]), self.stopped_file(stage.name)
        started, attempt = _now(), Attempt(place, key, afresh=force)
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
            peak_memory_mib=_peak_memory_mib(),
            started=started,
            versions=_versions(),
            energy_wh=attempt.energy_wh,
            apart=attempt.apart.seconds(),
        )
        write_json(self._record_file(stage.name), asdict(record))
        attempt.over()
        return record, True

    def _sweep(self) -> None:
        """`generated` is left alone: its journal does this itself, with more than one process perhaps."""
        places = (".", "records", "cache", "figures", "evaluation", "checkpoints", "checkpoints/*", "images/*")
        for place in places:
            for leftover in (
                *self.path.glob(f"{place}/.*{PART_SUFFIX}"),
                *self.path.glob(f"{place}/.*{PART_SUFFIX}.old"),
            ):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)

    def _record_file(self, stage: str) -> Path:
        name = f"{stage}-{self.images_name}" if stage == "generate" and self.images_name else stage
        return self.path / "records" / f"{name}.json"


def write_starter_config(run: RunFolder, settings: Mapping[str, Any]) -> None:
    """Writes dcdm.toml once, with what the first command was told, for the user to edit. Never overwrites it.

    settings: dotted key -> plain value, as in `config.flat_items`; None is written "none", because TOML has no null.
    """
    import tomlkit

    if run.config_file.exists():
        return
    document = tomlkit.document()
    document.add(tomlkit.comment("Settings of this run. All of them, with their origin: dcdm config show --origin"))
    for dotted, value in sorted(settings.items(), key=lambda item: "." in item[0]):  # TOML wants top-level keys first
        section, _, name = dotted.rpartition(".")
        table = document.setdefault(section, tomlkit.table()) if section else document
        table[name] = "none" if value is None else value
    write_text(run.config_file, tomlkit.dumps(document))


def _describe_holder(file: Path) -> str:
    try:
        holder = json.loads(file.read_text("utf-8"))
        return f"{holder['command']} (process {holder['pid']} on {holder['host']}, since {holder['since']})"
    except (OSError, ValueError, KeyError):
        return "its name is not known"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _peak_memory_mib() -> int:
    """Resident memory of this process, or the GPU's peak when one was used."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated() // 2**20)
    return resident_peak_mib()


def resident_peak_mib() -> int:
    """The most memory that this process has held. Linux's own mark where there is one: `getrusage` also counts what the
    process held that started this one, before it became this program."""
    status = Path("/proc/self/status")
    marks = re.findall(r"^VmHWM:\s+(\d+) kB$", status.read_text("ascii") if status.is_file() else "", re.MULTILINE)
    if marks:
        return int(marks[0]) // 2**10
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit)


def _versions() -> dict[str, str]:
    packages = {name: metadata.version(name) for name in RECORDED_PACKAGES}
    return {"dcdm": __version__, "python": platform.python_version(), **packages}
