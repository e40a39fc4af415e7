"""Where a run folder stands: which stages are done, stale, running or stopped, what they took, and what comes next.

Read from the records alone: nothing is locked, changed or imported for it.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dcdm_cli.files import walk
from dcdm_cli.run.holder import read_holder
from dcdm_cli.run.store import COMMAND_OF, DEFAULT_RUN, OF_ADAPTER, PIPELINE, RunFolder, StageRecord
from dcdm_cli.run.timing import stopped_seconds

COUNTED = ("score", "caption", "generate")  # stages whose images are counted
OPTIONAL = ("calibrate", "distill", "export")
DISTILLED_AFTER = {"distill": "calibrate", "export": "export"}  # what the distilled adapter has of its own, and where
DONE, STALE, RUNNING, STOPPED, MISSING, DAMAGED = "done", "stale", "running", "stopped", "not yet", "damaged"


@dataclass(frozen=True)
class Standing:
    """One stage. why: of a state that is not simply done. seconds: of work, over all attempts. size: bytes on disk.

    name: of a generated set; "" for every other stage. distilled: of the distilled adapter.
    """

    stage: str
    state: str
    why: str = ""
    name: str = ""
    seconds: float | None = None
    size: int = 0
    device: str = ""
    started: str = ""
    images: int | None = None
    distilled: bool = False

    @property
    def title(self) -> str:
        which = self.name or ("distilled" if self.distilled else "")
        return f"{self.stage} ({which})" if which else self.stage

    @property
    def command(self) -> str:
        """What makes it, without the program's name."""
        if self.distilled:
            return {"calibrate": "distill"}.get(self.stage, f"{self.stage} --guidance distilled")
        return COMMAND_OF.get(self.stage, self.stage)


@dataclass(frozen=True)
class RunStanding:
    """next: the command that goes on, as it can be typed; "" when everything is done."""

    path: Path
    exists: bool
    stages: tuple[Standing, ...]
    next: str

    def document(self) -> dict[str, Any]:
        rows = [{**vars(standing), "images": standing.images} for standing in self.stages]
        return {"run": str(self.path), "exists": self.exists, "next": self.next, "stages": rows}


def standing_of(run: RunFolder) -> RunStanding:
    """Never raises for what is in the folder: a record that cannot be read is a stage that is damaged."""
    found = [replace(one, size=sum(map(size_of, _places(_seen(run, one), one.stage)))) for one in _stages(run)]
    return RunStanding(run.path, run.path.is_dir(), tuple(found), _next(run, found))


def next_command(run: RunFolder) -> str:
    """As `standing_of` has it, without a look at every file: "" when everything is done."""
    return _next(run, _stages(run))


def run_words(run: RunFolder) -> str:
    """What a command needs to be about this folder, from where one stands: " --run DIR", or nothing."""
    if run.path == Path(DEFAULT_RUN).absolute() or _is_environments(run):
        return ""
    return f" --run {shlex.quote(_shown(run.path))}"


def _stages(run: RunFolder) -> list[Standing]:
    """Without their sizes."""
    busy = _holder(run)
    found: list[Standing] = []
    for stage in PIPELINE:
        found += [_stage(run, stage, found, busy)]
        if stage == "generate":
            found += [_stage(run.with_images(name), stage, found, busy) for name in run.set_names()]
        if stage in DISTILLED_AFTER and any(s.stage == "distill" and s.state != MISSING for s in found):
            found += [_stage(run.with_distilled(True), DISTILLED_AFTER[stage], found, busy)]
    return found


def _seen(run: RunFolder, standing: Standing) -> RunFolder:
    """The folder looked at as it was for this stage."""
    return run.with_images(standing.name).with_distilled(standing.distilled)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; links are not followed, and what is gone meanwhile is 0."""
    if not path.is_dir():
        return _bytes(path)
    below = walk(path, skip=(OSError,))
    return sum(_bytes(entry) for entry in below if not entry.is_dir(follow_symlinks=False))


def _bytes(file: Path | os.DirEntry[str]) -> int:
    try:
        return file.stat(follow_symlinks=False).st_size
    except OSError:
        return 0


def sized(count: int) -> str:
    """Bytes in the unit that leaves up to three digits before the point: '812 kB', '3.4 GB'."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit in ("B", "kB") else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _stage(run: RunFolder, stage: str, before: list[Standing], busy: str) -> Standing:
    try:
        record = run.record(stage)
    except Exception as error:  # whatever a damaged file leads to, it is that stage's state
        return Standing(stage, DAMAGED, str(error), run.images_name, distilled=run.distilled)
    command = f"dcdm {Standing(stage, '', distilled=run.distilled).command.split()[0]}"
    # calibrations hold the lock of "dcdm finetune (calibration)"
    running = busy.startswith(command) and ("calibration" in busy) == (stage == "calibrate")
    if running and (stage != "generate" or run.images_name == _named(busy)):
        seconds = stopped_seconds(run.stopped_file(stage))
        return Standing(stage, RUNNING, busy, run.images_name, seconds, distilled=run.distilled)
    if record is None:
        seconds = stopped_seconds(run.stopped_file(stage))
        state, why = (STOPPED, "the same command goes on") if seconds else (MISSING, "")
        return Standing(stage, state, why, run.images_name, seconds, distilled=run.distilled)
    why = _why_stale(run, record, before)
    facts = {"seconds": record.seconds, "device": record.device, "started": record.started}
    facts |= {"distilled": run.distilled}
    images = record.results.get("images") if stage in COUNTED else None  # of the others it is what they worked with
    images = images if isinstance(images, int) else None
    return Standing(stage, STALE if why else DONE, why, run.images_name, **facts, images=images)


def _why_stale(run: RunFolder, record: StageRecord, before: list[Standing]) -> str:
    if gone := run.gone(record):
        return f"{gone[0]} is gone"
    made = run.as_made(record)
    own = {stage: made.distilled and stage in OF_ADAPTER for stage in PIPELINE}
    earlier = [one for one in before if not one.name and one.distilled == own[one.stage]]
    stale = [one.stage for one in earlier if one.state == STALE and one.stage in record.inputs]
    return f"{stale[0]} is stale" if stale else next(made.outdated(record), "")


def _places(run: RunFolder, stage: str) -> list[Path]:
    places = {
        "score": [run.samples, run.scorer], "finetune": [run.adapter], "export": [run.export],
        "distill": [run.with_distilled(True).adapter],
        "generate": [run.generated], "evaluate": [run.evaluation],
    }  # fmt: skip
    return places.get(stage, [])


def _next(run: RunFolder, stages: list[Standing]) -> str:
    if any(standing.state == RUNNING for standing in stages):  # it holds the lock: no other command would begin
        return ""
    for standing in stages:
        waits = standing.state in (STALE, STOPPED, DAMAGED) or (
            standing.state == MISSING and standing.stage not in OPTIONAL
        )
        if waits:
            source = " FOLDER" if standing.stage == "score" and standing.state == MISSING else ""
            name = f" --name {standing.name}" if standing.name else ""
            force = " --force" if standing.state == DAMAGED else ""
            return f"dcdm {standing.command}{source}{name}{force}{run_words(run)}"
    return ""


def _is_environments(run: RunFolder) -> bool:
    named = os.environ.get("DCDM_RUN")
    return bool(named) and Path(str(named)).absolute() == run.path


def _shown(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _holder(run: RunFolder) -> str:
    """What holds the lock, such as "dcdm finetune (process 12 on host, since ...)"; "" when nothing alive does."""
    holder = read_holder(run.holder_file)
    return str(holder) if holder is not None and holder.is_alive else ""


def _named(busy: str) -> str:
    words = busy.split(" (process")[0].split()
    return words[words.index("--name") + 1] if "--name" in words[:-1] else ""
