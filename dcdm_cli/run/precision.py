"""Which floating-point type networks compute in, where the settings leave it open (`auto`)."""

from __future__ import annotations

from typing import Literal

from dcdm_cli.run.settings import GeneratedPrecision

Settled = Literal["fp32", "fp16", "bf16"]


def settle_precision(requested: GeneratedPrecision, device: str, *, training: bool = False) -> Settled | Literal["fp8"]:
    """As requested; `auto` is the half precision that a CUDA GPU computes fast, else fp32.

    bf16 (range of float32, so that no loss overflows) is for training, from compute capability 8.0; fp16 (more digits)
    for generation, and for training on GPUs from 7.0, whose loss is scaled. Not from the paper.
    """
    if requested != "auto":
        return requested
    if not device.startswith("cuda"):
        return "fp32"
    import torch

    # a GPU that is not there is refused by who opens it
    capability = torch.cuda.get_device_capability(device) if torch.cuda.is_available() else (0, 0)
    if capability < (7, 0):
        return "fp32"
    return "bf16" if training and capability >= (8, 0) else "fp16"


def beside_fp8(requested: GeneratedPrecision, device: str) -> Settled:
    """Of all but the UNet's products, which alone are in fp8: then as the device does it by itself."""
    settled = settle_precision(requested, device)
    return settled if settled != "fp8" else beside_fp8("auto", device)
