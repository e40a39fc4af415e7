"""The reference backend, eager and compiled; CUDA graphs where there is a GPU."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch._inductor import config as inductor

from dcdm_cli.backends.cuda_graphs import MOST_GRAPHS, CudaGraphs
from dcdm_cli.backends.torch_backend import INDUCTOR, TorchDenoiser, TorchOptions, compiled
from dcdm_cli.errors import CapabilityError
from dcdm_cli.model.conditioning import EncoderConfig
from dcdm_cli.model.denoiser import ConditionedUNet
from dcdm_cli.model.encoder import DifficultyEncoder
from dcdm_cli.model.latents import torch_decoder

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
WIDTH = 8


@pytest.fixture(scope="module")
def network() -> ConditionedUNet:
    """One level of 8 channels: small enough to be compiled in a test."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=4, block_out_channels=(8,), norm_num_groups=4, cross_attention_dim=WIDTH, attention_head_dim=2,
        layers_per_block=1, down_block_types=("CrossAttnDownBlock2D",), mid_block_type=None,
        up_block_types=("CrossAttnUpBlock2D",),
    )  # fmt: skip
    encoder = DifficultyEncoder(EncoderConfig(classes=3, dim=WIDTH, hidden=8))
    return ConditionedUNet(unet, encoder).eval().requires_grad_(False)


def guided_rows(images: int, calls: int = 2, device: str = "cpu") -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(images)
    rows = images * calls
    return tuple(
        tensor.to(device)
        for tensor in (
            torch.randn(images, 4, 4, 4, generator=generator).repeat(calls, 1, 1, 1),
            torch.full((rows,), 500.0),
            torch.randn(rows, 5, WIDTH, generator=generator),
            torch.arange(rows) % 3,
            torch.rand(rows, generator=generator),
        )
    )


def test_a_shared_prefix_changes_no_prediction(network: ConditionedUNet) -> None:
    rows, expected = guided_rows(3), network(*guided_rows(3))
    denoiser = TorchDenoiser(copy.deepcopy(network), "cpu", TorchOptions(shared_calls=2))
    made = denoiser(*rows)
    assert (denoiser.name, denoiser.shared_calls, denoiser.fixed_batch) == ("torch", 2, False)
    assert made.dtype == torch.float32 and torch.allclose(made, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_inside(network: ConditionedUNet, dtype: torch.dtype) -> None:
    half = copy.deepcopy(network)
    torch.nn.Module.to(half.unet, dtype)
    made = TorchDenoiser(half, "cpu")(*guided_rows(2))
    assert made.dtype == torch.float32
    assert torch.allclose(made, network(*guided_rows(2)), atol=0.1)


@pytest.mark.slow
def test_compilation_changes_no_prediction() -> None:
    """On a block of a UNet's kinds; the whole takes a minute to compile."""
    block = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3), torch.nn.GroupNorm(2, 8), torch.nn.SiLU()).eval()
    rows = torch.randn(3, 4, 6, 6)
    with torch.inference_mode():
        assert torch.allclose(compiled(block, "cpu")(rows), block(rows), atol=1e-5)


@pytest.mark.slow
def test_a_decoder_is_compiled_too() -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, sample_size=8).eval().requires_grad_(False)
    latents = torch.randn(3, 4, 4, 4)
    decode, exact = torch_decoder(vae, compiled=partial(compiled, device="cpu")), torch_decoder(vae)
    for rows in (latents, latents[:1]):
        assert torch.allclose(decode(rows), exact(rows), atol=1e-5)


def test_without_a_compiler_compilation_is_refused_at_once(network: ConditionedUNet) -> None:
    no_compiler = {"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}
    torch.compiler.reset()
    with inductor.patch(no_compiler), pytest.raises(CapabilityError, match=r"torch\.compile does not work") as caught:
        TorchDenoiser(copy.deepcopy(network), "cpu", TorchOptions(compile=True))
    assert "leave out --compile" in caught.value.hint
    torch.compiler.reset()


@pytest.mark.gpu
@needs_gpu
def test_cuda_graphs_replay_what_eager_computes(network: ConditionedUNet) -> None:
    eager = TorchDenoiser(copy.deepcopy(network), "cuda", TorchOptions(cuda_graphs=False))
    graphed = TorchDenoiser(copy.deepcopy(network), "cuda")
    for images in (3, 2, 3, 3, 2, 2, 3):  # seen, recorded, replayed, in turn
        rows = guided_rows(images, device="cuda")
        assert torch.allclose(graphed(*rows), eager(*rows), atol=1e-4)
    kept = graphed(*guided_rows(3, device="cuda"))
    before = kept.clone()
    graphed(*(tensor * 2 if tensor.is_floating_point() else tensor for tensor in guided_rows(3, device="cuda")))
    assert torch.equal(kept, before)
    graphed.release()
    assert torch.allclose(graphed(*guided_rows(3, device="cuda")), before, atol=1e-4)


@pytest.mark.gpu
@needs_gpu
def test_only_so_many_shapes_are_recorded() -> None:
    double = CudaGraphs(lambda tensor: tensor * 2)
    for size in [*range(1, MOST_GRAPHS + 3)] * 3:
        tensor = torch.arange(size, device="cuda", dtype=torch.float32)
        assert torch.equal(double(tensor), tensor * 2)


def test_the_kernels_are_recorded(network: ConditionedUNet) -> None:
    made = TorchDenoiser(copy.deepcopy(network), "cpu").kernels
    assert made == {"attention": "flash_attention", "cudnn_benchmark": False, "inductor": None}


def test_inductor_knows_the_settings() -> None:
    torch.compile(torch.nn.Linear(2, 2), options=INDUCTOR)  # names and types are checked here, nothing is compiled
    with pytest.raises(RuntimeError):
        torch.compile(torch.nn.Linear(2, 2), options={**INDUCTOR, "no_such_setting": True})
