"""Weights are finite, or the file that holds them is named: one look at every tensor when it is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dcdm_cli.errors import NumericalError


def refuse_not_finite_weights(tensors: Mapping[str, Tensor], where: Path | str, again: str) -> None:
    """tensors: by name; those without memory (meta) are not looked at. Raises NumericalError naming file and tensor."""
    if name := first_not_finite(tensors):
        raise NumericalError(
            f"{where} holds weights that are not finite: {name}", again, file=where if isinstance(where, Path) else None
        )


def not_finite_in(file: Path) -> str:
    """What is wrong with a safetensors file: that it cannot be read, or which tensor is not finite; empty when fine."""
    if not file.is_file():  # to open a pipe would wait for ever
        return "is no file"
    try:
        with safe_open(file, "pt") as stream:
            for name in stream.keys():  # noqa: SIM118 - it is no mapping
                if first_not_finite({name: stream.get_tensor(name)}):
                    return f"{name} is not finite"
    except (SafetensorError, OSError) as error:
        return f"cannot be read: {error}"
    return ""


def first_not_finite(tensors: Mapping[str, Tensor]) -> str:
    """Its name; empty where all are finite."""
    return next((name for name, tensor in tensors.items() if not _is_finite(tensor)), "")


def _is_finite(tensor: Tensor) -> bool:
    """A sum is not finite when one of its terms is not, and needs no second array of the size; it may also overflow."""
    if tensor.device.type == "meta" or not tensor.is_floating_point():
        return True
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())
