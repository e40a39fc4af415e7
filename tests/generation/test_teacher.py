"""The guided prediction that is taught is the one that the sampler makes of its calls."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dcdm_cli.backends.torch_backend import TorchDenoiser, TorchOptions
from dcdm_cli.errors import MismatchError
from dcdm_cli.gate import typed
from dcdm_cli.generation.engine import Engine, sampler_settings
from dcdm_cli.generation.guidance import Guidance, check_guidance, guidance_of, stands_for, taught_guidance
from dcdm_cli.generation.sampler import Conditioning, _Batch
from dcdm_cli.generation.teacher import GuidedTeacher, calls_of
from dcdm_cli.model.adapter import AdapterInfo, Distilled
from dcdm_cli.model.base import encode_text
from dcdm_cli.model.fused import load_fused

from .conftest import adapter, config

__all__ = ["adapter"]
TIMES = torch.tensor([990, 700, 300, 10])


def asked(text: torch.Tensor) -> tuple[torch.Tensor, ...]:
    latents = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    return latents, TIMES, text, torch.tensor([0, 1, 2, 0]), torch.tensor([0.1, 0.4, 0.7, 0.9])


@pytest.mark.parametrize(("text_scale", "difficulty_scale"), [(2.0, 4.0), (2.0, 2.0), (1.0, 3.0), (2.0, 0.0)])
def test_it_is_the_samplers_own(adapter: Path, text_scale: float, difficulty_scale: float) -> None:
    model, guidance = load_fused(adapter), Guidance(text_scale, difficulty_scale)
    text, nothing = encode_text(model.base, ["one", "two", "three", "four"]), encode_text(model.base, [""])
    denoiser = TorchDenoiser(model.network, "cpu")
    given = asked(text)
    taught = GuidedTeacher(denoiser, guidance, 1000, nothing)(*given)
    weights = guidance.weights()
    for row, time in enumerate(TIMES.tolist()):
        one = Conditioning(text[row : row + 1], given[3][row : row + 1], given[4][row : row + 1], nothing)
        batch = _Batch(denoiser, one, tuple(weights), [time])
        expected = batch.predict(given[0][row : row + 1], 0, list(weights.values()))
        torch.testing.assert_close(taught[row : row + 1], expected, atol=2e-4, rtol=1e-4)


def test_outside_the_interval_it_is_the_full_call_alone(adapter: Path) -> None:
    model = load_fused(adapter)
    given, nothing = asked(encode_text(model.base, ["a"] * 4)), encode_text(model.base, [""])
    guidance = Guidance(2.0, 4.0, (0.2, 0.8))  # of noise at first: timesteps 800 to 200
    shared = TorchDenoiser(model.network, "cpu", TorchOptions(calls_of(guidance)))
    taught = GuidedTeacher(shared, guidance, 1000, nothing)(*given)
    whole = GuidedTeacher(shared, Guidance(2.0, 4.0), 1000, nothing)(*given)
    full = TorchDenoiser(load_fused(adapter).network, "cpu")(*given)
    torch.testing.assert_close(taught[[0, 3]], full[[0, 3]], atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(taught[[1, 2]], whole[[1, 2]])
    assert taught.requires_grad is False and not taught.is_inference()


def test_distilled_guidance_is_one_call_and_counts_as_another_sampler(engine: Engine) -> None:
    ours = config(guidance="distilled")
    assert guidance_of(ours, plain=False).weights() == {"full": 1.0}
    assert taught_guidance(ours, plain=False) == guidance_of(config(), plain=False)
    assert sampler_settings(ours)["guidance"] == "distilled" and "guidance" not in sampler_settings(config())


def info(distilled: Distilled | None) -> AdapterInfo:
    return AdapterInfo("tiny", "x", None, ("a",), 32, None, {}, distilled=distilled)


def test_every_setting_that_it_stands_for_is_compared(tmp_path: Path) -> None:
    made = info(typed(Distilled, stands_for(config()) | {"teacher": "t"}))
    check_guidance(tmp_path, made, config(guidance="distilled", steps=7))
    other = {"text_guidance": 1.0, "difficulty_guidance": 1.0, "lora_scale": 0.5, "negative_prompt": "blurred",
             "guidance_interval": (0.1, 0.5)}  # fmt: skip
    assert set(other) == set(stands_for(config()))
    for name, value in other.items():
        with pytest.raises(MismatchError, match=f"was distilled for {name} = ") as caught:
            check_guidance(tmp_path, made, config(guidance="distilled", **{name: value}))
        assert f"dcdm distill --set generate.{name}=" in caught.value.hint
    with pytest.raises(MismatchError, match="its one call is guided already"):
        check_guidance(tmp_path, made, config())
    with pytest.raises(MismatchError, match="is not distilled"):
        check_guidance(tmp_path, info(None), config(guidance="distilled"))
