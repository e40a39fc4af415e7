"""The reference backend: the fused PyTorch module, eager or compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn.attention import SDPBackend

from dcdm_cli.backends.cuda_graphs import CudaGraphs
from dcdm_cli.errors import CapabilityError
from dcdm_cli.model.denoiser import ConditionedUNet, share_prefix, split_gates
from dcdm_cli.model.unscaled import drop_unit_scales, join_projections

# What pays for a Stable Diffusion UNet by the documentation of diffusers; no CUDA graphs, as `CudaGraphs` records them.
INDUCTOR: dict[str, Any] = {
    "max_autotune": True,
    "coordinate_descent_tuning": True,
    "conv_1x1_as_mm": True,
    "triton.cudagraphs": False,
}

ON_CPU: dict[str, Any] = {"freezing": True}


@dataclass(frozen=True)
class TorchOptions:
    """shared_calls: see `Denoiser`. cuda_graphs: has an effect on CUDA only."""

    shared_calls: int = 1
    compile: bool = False
    cuda_graphs: bool = True


class TorchDenoiser:
    """Runs a ConditionedUNet in its own dtype; inputs and output are float32. It changes the network for inference.

    Raises CapabilityError when compilation is asked for and does not work here.
    """

    def __init__(self, network: ConditionedUNet, device: str, options: TorchOptions | None = None) -> None:
        options = options or TorchOptions()
        self.name, self.device = "torch compiled" if options.compile else "torch", device
        self.shared_calls, self.fixed_batch = options.shared_calls, options.compile
        # in this order: projections are joined in the blocks that the first has changed
        drop_unit_scales(network.unet)
        join_projections(network.unet)
        split_gates(network.unet)
        share_prefix(network.unet, options.shared_calls)
        if device.startswith("cuda"):
            torch.backends.cudnn.benchmark = True  # batches keep their shape: the search for kernels pays
        network.to(device).eval().requires_grad_(False)
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self._dtype = network.unet.dtype
        self.kernels = chosen_kernels(network.unet, device, compiled=options.compile)
        run: Any = compiled(network, device) if options.compile else network
        self._graphs = CudaGraphs(run, device) if options.cuda_graphs and device.startswith("cuda") else None
        self._run: Callable[..., Tensor] = self._graphs or run

    @torch.inference_mode()
    def __call__(self, latents: Tensor, timestep: Tensor, text: Tensor, label: Tensor, difficulty: Tensor) -> Tensor:
        latents, text = latents.to(self._dtype), text.to(self._dtype)
        return self._run(latents, timestep, text, label, difficulty).float()

    def release(self) -> None:
        """Gives memory back after it ran out."""
        if self._graphs is not None:
            self._graphs.release()


def chosen_kernels(unet: UNet2DConditionModel, device: str, *, compiled: bool) -> dict[str, Any]:
    """For records: which attention kernel torch takes for this UNet's heads, and what searches for kernels."""
    attention = next((module for module in unet.modules() if isinstance(module, Attention)), None)
    chosen = None
    if attention is not None:
        heads = torch.zeros(
            1, attention.heads, 64, attention.inner_dim // attention.heads, device=device, dtype=unet.dtype
        )
        # what scaled_dot_product_attention asks itself; it has no public name
        chosen = SDPBackend(torch._fused_sdp_choice(heads, heads, heads)).name.lower()
    cuda = device.startswith("cuda")
    inductor = (INDUCTOR if cuda else ON_CPU) if compiled else None
    return {"attention": chosen, "cudnn_benchmark": cuda and torch.backends.cudnn.benchmark, "inductor": inductor}


def compiled(network: nn.Module, device: str) -> Callable[..., Tensor]:
    """torch.compile for one batch shape at a time; compiles at the first call.

    Raises CapabilityError when it does not work here: at once when nothing can be compiled, else at the first call.
    """
    from torch._dynamo.exc import TorchDynamoException

    # something small: where nothing can be compiled that is said now, and not by the first batch
    _try(lambda: torch.compile(lambda tensor: tensor.sin() + 1)(torch.zeros(64, device=device)), Exception)
    cuda = device.startswith("cuda")
    # not dynamic: short batches are filled up instead (`fixed_batch`)
    run: Any = torch.compile(network, dynamic=False, options=INDUCTOR if cuda else ON_CPU)
    return lambda *inputs: _try(lambda: run(*inputs), TorchDynamoException)


def _try(work: Callable[[], Any], failure: type[Exception]) -> Any:
    try:
        return work()
    except failure as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CapabilityError(
            f"torch.compile does not work here: {reason}",
            "leave out --compile; or install what it needs (a C++ compiler for a CPU, Triton for a GPU)",
        ) from error
