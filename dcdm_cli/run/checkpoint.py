"""Training checkpoints: safetensors and JSON only, whole folders renamed into place, exact resume.

Nothing in one is believed for being there: tensors and state have hashes, and are compared with what goes on from them.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dcdm_cli.errors import DcdmError, MismatchError
from dcdm_cli.files import atomic_folder, hash_file, hash_json, write_json
from dcdm_cli.gate import Count, Digest, Finite, Word, read_document, typed
from dcdm_cli.run.finite import first_not_finite

log = logging.getLogger(__name__)
STATE, TENSORS = "state.json", "tensors.safetensors"
STATE_HASH = "state_sha256"


class ScheduleState(BaseModel):
    """What a schedule of the learning rate, PyTorch's LambdaLR, is restored from."""

    last_epoch: Count
    step_count: Count = Field(alias="_step_count")
    base_lrs: Annotated[list[Finite], Field(min_length=1)]
    last_lr: Annotated[list[Finite], Field(min_length=1, alias="_last_lr")]
    lr_lambdas: list[dict[str, Any] | None]

    @model_validator(mode="after")
    def _of_the_same_groups(self) -> ScheduleState:
        if not len(self.base_lrs) == len(self.last_lr) == len(self.lr_lambdas):
            raise ValueError("it must have one learning rate per group of parameters")
        return self


@dataclass(frozen=True)
class SavedState:
    """What every state.json says; its trainer's own kind has the rest."""

    step: Count
    sha256: Digest
    settings: Word

    @property
    def rates(self) -> ScheduleState | None:
        """The schedule of the learning rates, where there is one."""
        return None


@dataclass(frozen=True)
class Awaited:
    """What goes on from a checkpoint. tensors: by name, of the shapes and kinds that have to be there; optimizer: an
    AdamW, whose moments have to be there too; steps: how many there will be."""

    tensors: Mapping[str, Tensor]
    optimizer: torch.optim.Optimizer
    steps: int

    def refuse_others(self, said: SavedState, tensors: Mapping[str, Tensor]) -> None:
        """Raises ValueError for what does not fit, and for tensors that are not finite."""
        groups = len(self.optimizer.param_groups)
        if said.step > self.steps:
            raise ValueError(f"it is of step {said.step}, and there are {self.steps}")
        if said.rates is not None and len(said.rates.base_lrs) != groups:
            raise ValueError(f"it has {len(said.rates.base_lrs)} learning rates for {groups} groups of parameters")
        awaited = {**self.tensors, **_moments(self.optimizer, tensors)}
        if odd := sorted(awaited.keys() ^ tensors.keys()):
            raise ValueError(f"{odd[0]} is {'missing' if odd[0] in awaited else 'no tensor of this training'}")
        for name, like in awaited.items():
            if _kind(tensors[name]) != _kind(like):
                raise ValueError(f"{name} is {_kind(tensors[name])} instead of {_kind(like)}")
        if name := first_not_finite(tensors):
            raise ValueError(f"{name} is not finite")


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], keep: int
) -> None:
    """Writes `step-00000100/`, then deletes all but the newest `keep`: never the other way round. What is not finite is
    not written: the last good checkpoint is the one before."""
    if name := first_not_finite(tensors):
        log.warning("step %d: %s is not finite; no checkpoint is kept of it", step, name)
        return
    with atomic_folder(folder / _name(step)) as part:
        # contiguous: safetensors takes no other tensors
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, part / TENSORS)
        whole = {**state, "step": step, "sha256": hash_file(part / TENSORS)}
        write_json(part / STATE, {**whole, STATE_HASH: hash_json(whole)})
    for old in _checkpoints(folder)[:-keep]:
        shutil.rmtree(old)


def load_checkpoint(
    folder: Path,
    settings: str,
    *,
    kind: type[SavedState] = SavedState,
    awaited: Awaited | None = None,
    replace: bool = False,
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest whole checkpoint, or None when there is none at all.

    settings: hash of what must not change between the runs. kind: of the state that its trainer wrote. awaited: what
    else has to fit. A damaged one is skipped with a warning. Raises MismatchError when there are checkpoints but none
    is usable, rather than starting again unasked; with `replace`, which is that wish, they count as none. Deletes
    nothing.
    """
    try:
        return _newest(folder, settings, kind, awaited)
    except MismatchError:
        if not replace:
            raise
        return None


def _newest(
    folder: Path, settings: str, kind: type[SavedState], awaited: Awaited | None
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    found = _checkpoints(folder)
    for path in reversed(found):
        try:
            said, state, tensors = _whole(path, kind)
            if awaited is not None and said.settings == settings:  # those of another training need not fit
                awaited.refuse_others(said, tensors)
        except (OSError, ValueError, DcdmError, SafetensorError) as error:
            log.warning("checkpoint %s is damaged (%s); using the one before", path.name, error)
            continue
        if said.settings != settings:
            raise MismatchError(
                f"the checkpoint {path} was made with other settings or data",
                "run again with --force to start over, or restore the settings to go on",
                file=path,
            )
        return tensors, state
    if found:
        raise MismatchError(
            f"no checkpoint in {folder} is readable", "run again with --force to start over", file=folder
        )
    return None


def _whole(path: Path, kind: type[SavedState]) -> tuple[SavedState, dict[str, Any], dict[str, Tensor]]:
    """State, as its kind and as it was given, and tensors. Raises ValueError where they are not what was written."""
    state = read_document(path / STATE, dict[str, Any], "")
    # from before there were hashes of it: believed as far as it fits
    if STATE_HASH in state and state.pop(STATE_HASH) != hash_json(state):
        raise ValueError("the state differs from its recorded hash")
    said = typed(kind, state)
    if path.name != _name(said.step):
        raise ValueError(f"it is of step {said.step}")
    if said.sha256 != hash_file(path / TENSORS):
        raise ValueError("the tensors differ from their recorded hash")
    return said, state, load_file(path / TENSORS)


def drop_checkpoints(folder: Path, first: int) -> int:
    """Those of this step and of later ones, so that what had to be made on the way to them is made again. Returns how
    many there were."""
    dropped = [path for path in _checkpoints(folder) if path.name >= _name(first)]
    for path in dropped:
        shutil.rmtree(path)
    return len(dropped)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's moments and step counts, flat: 'optimizer.<parameter>.<name>'."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{i}.{name}": torch.as_tensor(value) for i, slots in state.items() for name, value in slots.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state = optimizer.state_dict()
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            slots.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**state, "state": slots})  # the groups stay: their rates are the schedule's
    for parameter, slot in optimizer.state.items():
        for name, value in slot.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:  # fused kernels want the same strides
                slot[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _moments(optimizer: torch.optim.Optimizer, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name -> tensor of the same kind, of all that AdamW keeps of a parameter; of one that never had a gradient it
    keeps nothing, and nothing is found."""
    parameters: list[Tensor] = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    count = torch.zeros(())
    awaited: dict[str, Tensor] = {}
    for number, like in enumerate(parameters):
        slots = {"step": count, "exp_avg": like, "exp_avg_sq": like}
        named = {f"optimizer.{number}.{name}": value for name, value in slots.items()}
        if not found.keys().isdisjoint(named):
            awaited |= named
    return awaited


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*") if p.is_dir())
