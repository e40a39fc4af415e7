"""Training checkpoints: safetensors and JSON only, whole folders renamed into place, exact resume."""

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
from dcdm_cli.files import atomic_folder, hash_file, write_json
from dcdm_cli.gate import Count, Digest, Finite, Word, read_document, typed

log = logging.getLogger(__name__)
STATE, TENSORS = "state.json", "tensors.safetensors"


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


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], keep: int
) -> None:
    """Writes `step-00000100/`, then deletes all but the newest `keep`: never the other way round."""
    with atomic_folder(folder / f"step-{step:08d}") as part:
        # contiguous: safetensors takes no other tensors
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, part / TENSORS)
        write_json(part / STATE, {**state, "step": step, "sha256": hash_file(part / TENSORS)})
    for old in _checkpoints(folder)[:-keep]:
        shutil.rmtree(old)


def load_checkpoint(
    folder: Path, settings: str, *, kind: type[SavedState] = SavedState, replace: bool = False
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest whole checkpoint, or None when there is none at all.

    settings: hash of what must not change between the runs. kind: of the state that its trainer wrote. A damaged one is
    skipped with a warning. Raises MismatchError when there are checkpoints but none is usable, rather than starting
    again unasked; with `replace`, which is that wish, they count as none. Deletes nothing.
    """
    try:
        return _newest(folder, settings, kind)
    except MismatchError:
        if not replace:
            raise
        return None


def _newest(folder: Path, settings: str, kind: type[SavedState]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    found = _checkpoints(folder)
    for path in reversed(found):
        try:
            state = read_document(path / STATE, dict[str, Any], "")
            said = typed(kind, state)
            if said.sha256 != hash_file(path / TENSORS):
                raise ValueError("the tensors differ from their recorded hash")
            tensors = load_file(path / TENSORS)
        except (OSError, ValueError, DcdmError, SafetensorError) as error:
            log.warning("checkpoint %s is damaged (%s); using the one before", path.name, error)
            continue
        if state["settings"] != settings:
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


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*") if p.is_dir())
