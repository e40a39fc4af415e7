"""Generated sets that are there, as arms of a comparison: their images as `dcdm generate --name` left them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from dcdm_cli.errors import NotFoundError
from dcdm_cli.evaluation.experiments import ArmSpec, Experiment
from dcdm_cli.run.origins import nearest
from dcdm_cli.run.store import RunFolder, StageRecord

if TYPE_CHECKING:
    from dcdm_cli.data.manifest import Manifest

UNNAMED = "generated"  # the set without a name


def set_record(run: RunFolder, name: str) -> StageRecord:
    """Of the stage that made the set. Raises NotFoundError for one that is not finished."""
    record = _folder(run, name).record("generate")
    if record is None:
        there = [one for one in (UNNAMED, *run.set_names()) if _folder(run, one).record("generate")]
        words = "" if name == UNNAMED else f" --name {name}"
        again = f"make it: dcdm generate --run {run.path}{words}"
        hint = f"{nearest(name, there)}; or {again}" if there else again
        raise NotFoundError(f"{run.path} has no finished generated set {name!r}", hint, file=run.path)
    return record


def finished_set(run: RunFolder, name: str) -> Manifest:
    """Its images. Raises NotFoundError, MismatchError for a damaged table and for changed images."""
    from dcdm_cli.generation.finished import read_generated

    set_record(run, name)
    return read_generated(_folder(run, name).generated)


def set_inputs(run: RunFolder, experiment: Experiment) -> dict[str, str]:
    """What a comparison of sets depends on: the stages that made them."""
    return {f"set {name}": set_record(run, name).id for name in _names(experiment.arms)}


def described(experiment: Experiment) -> dict[str, Any]:
    """The experiment as its record keeps it: as it was before arms could name a set, where none does."""
    document = experiment.model_dump(mode="json")
    for arm in document["arms"]:
        if arm["set"] is None:
            del arm["set"]
    return document


def _names(arms: Iterable[ArmSpec]) -> list[str]:
    return sorted({arm.set for arm in arms if arm.set})


def _folder(run: RunFolder, name: str) -> RunFolder:
    return run.with_images("" if name == UNNAMED else name)
