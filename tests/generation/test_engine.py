"""An image depends on its plan row alone."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dcdm_cli.backends.exported import ExportedDenoiser
from dcdm_cli.errors import InterruptedRunError, MismatchError, NotFoundError, OutOfMemoryError
from dcdm_cli.generation.engine import (
    BatchLimit,
    Engine,
    decoder_precision,
    open_engine,
    render,
    sampler_settings,
    sampler_warnings,
)
from dcdm_cli.generation.prompts import PromptCache
from dcdm_cli.model.adapter import CONFIG_FILE
from dcdm_cli.model.exported import export_requests, model_facts
from dcdm_cli.model.fused import load_fused
from dcdm_cli.run.progress import Job
from dcdm_export.folder import make_export
from dcdm_export.orders import Order

from .conftest import config, plan


def images(engine: Engine, batch: int, job: Job | None = None) -> np.ndarray:
    """Of the plan's 7 rows, in order."""
    resized = dataclasses.replace(engine, config=engine.config.model_copy(update={"batch_size": batch}))
    batches = list(render(resized, plan().rows(), job or Job()))
    assert [row.index for rows, _ in batches for row in rows] == list(range(7))
    return np.concatenate([made for _, made in batches])


class Elementwise:
    """A denoiser without sums, so that a row's prediction cannot depend on its batch, not even in the last bit.

    most: rows that fit into its memory.
    """

    name, device, shared_calls = "elementwise", "cpu", 1

    def __init__(self, *, fixed_batch: bool = False, most: int = 10**6) -> None:
        self.fixed_batch, self.most = fixed_batch, most
        self.batches: list[int] = []

    def __call__(self, latents: Tensor, timestep: Tensor, text: Tensor, label: Tensor, difficulty: Tensor) -> Tensor:
        self.batches.append(len(latents))
        if len(latents) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        known = (text[:, 0, 0] + label + difficulty + timestep / 1000)[:, None, None, None]
        return 0.5 * latents + 0.1 * known


def with_denoiser(engine: Engine, denoiser: Elementwise) -> Engine:
    def decode(latents: Tensor) -> Tensor:
        return latents[:, :3].tanh()

    return dataclasses.replace(engine, denoiser=denoiser, decode=decode, batch_limit=BatchLimit())


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=st.integers(1, 9))
def test_with_a_batch_invariant_network_images_are_equal_to_the_bit(engine: Engine, batch: int) -> None:
    together = images(with_denoiser(engine, Elementwise()), 7)
    assert together.std() > 1
    assert np.array_equal(images(with_denoiser(engine, Elementwise()), batch), together)


def test_a_short_last_batch_is_filled_up_where_sizes_are_fixed(engine: Engine) -> None:
    denoiser = Elementwise(fixed_batch=True)
    made = images(with_denoiser(engine, denoiser), 3)
    assert set(denoiser.batches) == {9}  # three calls
    assert np.array_equal(made, images(with_denoiser(engine, Elementwise()), 3))


def test_out_of_memory_halves_the_batch_and_goes_on(engine: Engine) -> None:
    denoiser, told = Elementwise(most=9), list[str]()
    small = with_denoiser(engine, denoiser)
    made = images(small, 7, Job(note=told.append))
    assert np.array_equal(made, images(with_denoiser(engine, Elementwise()), 7))
    assert told == ["out of memory with a batch of 7 images; going on with 3 (--batch-size)"]
    denoiser.batches.clear()
    images(small, 7)
    assert max(denoiser.batches) == 9  # remembered


def test_a_stop_is_looked_for_after_each_step(engine: Engine) -> None:
    """A batch of a large network takes minutes on a CPU."""
    denoiser = Elementwise()
    job = Job(stop_signal=lambda: "SIGINT" if len(denoiser.batches) == 2 else None)
    with pytest.raises(InterruptedRunError, match="stopped by SIGINT"):
        images(with_denoiser(engine, denoiser), 7, job)
    assert len(denoiser.batches) == 2 < engine.config.steps


def test_a_filled_up_batch_is_halved_as_a_whole(engine: Engine) -> None:
    denoiser = Elementwise(fixed_batch=True, most=15)
    made = images(with_denoiser(engine, denoiser), 10)  # 7 rows, filled up to 10
    assert denoiser.batches[0] == 30 and set(denoiser.batches[1:]) == {15}
    assert np.array_equal(made, images(with_denoiser(engine, Elementwise()), 7))


def test_a_single_image_that_does_not_fit_ends_the_run(engine: Engine) -> None:
    with pytest.raises(OutOfMemoryError, match="batch of one image") as caught:
        images(with_denoiser(engine, Elementwise(most=2)), 7)
    assert "--precision fp16" in caught.value.hint


def test_other_failures_are_not_taken_for_a_lack_of_memory(engine: Engine) -> None:
    def broken(latents: Tensor) -> Tensor:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        images(dataclasses.replace(with_denoiser(engine, Elementwise()), decode=broken), 7)


def test_texts_are_encoded_once_per_engine(engine: Engine) -> None:
    asked: list[str] = []

    def encode(captions: list[str]) -> Tensor:
        asked.extend(captions)
        return torch.ones(len(captions), 16, 64)

    counted = dataclasses.replace(with_denoiser(engine, Elementwise()), prompts=PromptCache(encode, "cpu"))
    images(counted, 2)
    images(counted, 3)
    captions = [caption for caption in asked if caption]
    assert len(captions) == len(set(captions)) and set(captions) == {row.caption for row in plan().rows()}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_exported_networks_make_torchs_images(backend: str, engine: Engine, adapter: Path, exported: Path) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    other = open_engine(adapter, config(backend=backend), "cpu", export=exported)
    assert other.denoiser.name == backend and other.generator == engine.generator
    assert other.base.unet.device.type == other.base.vae.device.type == "meta"  # no second copy in memory
    for batch in (7, 4, 1):
        difference = np.abs(images(other, batch).astype(int) - images(engine, batch))
        assert (difference <= 1).mean() > 0.999 and difference.max() <= 2


@pytest.mark.slow
def test_an_export_for_other_guidance_is_passed_over(adapter: Path, exported: Path) -> None:
    two_calls = open_engine(adapter, config(text_guidance=1), "cpu", export=exported)
    assert two_calls.denoiser.name == "torch" and two_calls.denoiser.shared_calls == 2
    assert "exported for 3 network calls per step; these settings make 2" in two_calls.reason


def test_limited_guidance_makes_fewer_calls_and_other_images(adapter: Path, engine: Engine) -> None:
    limited = open_engine(adapter, config(guidance_interval=(0.5, 1)), "cpu")
    assert limited.denoiser.shared_calls == 1 and limited.generator != engine.generator
    assert (images(limited, 7) != images(engine, 7)).any()
    denoiser = Elementwise()
    images(with_denoiser(limited, denoiser), 7)
    assert denoiser.batches == [7, 21, 21]


def test_settings_that_flatten_or_fake_difficulty_are_warned_about() -> None:
    assert sampler_warnings(config(scheduler="unipc")) == []
    assert "clip_range" in sampler_warnings(config(scheduler="unipc", clip_range=None))[0]
    assert "0.2 to 0.8" in sampler_warnings(config(guidance_interval=(0.2, 0.8)))[0]


def test_an_unset_interval_leaves_older_calibrations_valid() -> None:
    assert "guidance_interval" not in sampler_settings(config())
    assert sampler_settings(config(guidance_interval=(0.2, 0.8)))["guidance_interval"] == [0.2, 0.8]


def test_images_do_not_depend_on_the_batch_size(engine: Engine) -> None:
    together = images(engine, 7).astype(int)
    assert together.shape == (7, 32, 32, 3)
    for batch in (1, 2, 5):
        assert np.abs(images(engine, batch).astype(int) - together).max() <= 2


def test_the_row_decides_the_image(engine: Engine) -> None:
    rows = plan().rows()[:1]
    harder = [dataclasses.replace(rows[0], requested_difficulty=0.9)]
    reseeded = [dataclasses.replace(rows[0], seed=rows[0].seed + 1)]
    (_, image), (_, other), (_, new) = (next(render(engine, chosen, Job())) for chosen in (rows, harder, reseeded))
    assert (image != other).any() and (image != new).any()


def test_progress_counts_images(engine: Engine) -> None:
    told: list[tuple[int, int]] = []
    list(render(engine, plan().rows(), Job(progress=lambda _, done, total: told.append((done, total)))))
    assert told == [(4, 7), (7, 7)]


def test_the_generator_follows_what_changes_images(adapter: Path, engine: Engine) -> None:
    assert open_engine(adapter, config(batch_size=9, image_format="webp"), "cpu").generator == engine.generator
    assert open_engine(adapter, config(steps=4), "cpu").generator != engine.generator
    assert "batch_size" not in sampler_settings(config())


def test_another_base_than_the_adapters_is_refused(adapter: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    document = json.loads((copy / CONFIG_FILE).read_text())
    (copy / CONFIG_FILE).write_text(json.dumps(document | {"base_fingerprint": "other"}))
    with pytest.raises(MismatchError, match="is not the one this adapter was trained on"):
        open_engine(copy, config(), "cpu")
    (copy / CONFIG_FILE).write_text(json.dumps(document | {"base": str(tmp_path / "gone")}))
    with pytest.raises(NotFoundError, match="cannot load the base model"):
        open_engine(copy, config(), "cpu")


def test_a_plain_lora_has_one_guidance_scale(engine: Engine) -> None:
    plain = dataclasses.replace(engine, info=dataclasses.replace(engine.info, encoder=None))
    assert plain.guidance.difficulty == plain.guidance.text == 2.0
    assert engine.guidance.difficulty == 4.0


def test_torch_leaves_the_cores_to_an_exported_network_and_takes_them_back(engine: Engine) -> None:
    seen = []

    def network(latents: Tensor, *_: Tensor) -> Tensor:
        seen.append(torch.get_num_threads())
        return latents

    def decode(latents: Tensor) -> Tensor:
        seen.append(torch.get_num_threads())
        return latents[:, :3].tanh()

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        exported = dataclasses.replace(engine, denoiser=ExportedDenoiser(network, "exported", "cpu"), decode=decode)
        images(exported, 4)
        assert set(seen) == {1}
        assert torch.get_num_threads() == 2
        seen.clear()
        images(dataclasses.replace(exported, denoiser=Elementwise()), 4)
        assert set(seen) == {2}, "a network in torch needs torch's threads"
    finally:
        torch.set_num_threads(before)


def test_the_decoder_is_as_precise_as_the_network_on_a_gpu_and_exact_on_a_cpu(engine: Engine) -> None:
    assert decoder_precision(config(precision="bf16"), "cuda:1") == "bf16"
    assert decoder_precision(config(precision="bf16"), "cpu") == "fp32"
    for device in ("cpu", "cuda"):
        assert decoder_precision(config(precision="fp16", vae_precision="fp32"), device) == "fp32"
        assert decoder_precision(config(vae_precision="bf16"), device) == "bf16"


@pytest.mark.slow
def test_an_exported_half_decoders_overflow_is_decoded_once_more(adapter: Path, engine: Engine, tmp_path: Path) -> None:
    model = load_fused(adapter)
    facts = model_facts(model, adapter, 1.0)
    requests = export_requests(model, facts, "fp32", 21, {}, shared_calls=3, decoder_precision="fp16")
    signature = make_export(Order(facts, requests[:2], {}, "0"), tmp_path / "export", tmp_path / "work")
    assert [network.precision for network in signature.networks.values()] == ["fp32", "fp16"]
    half = open_engine(adapter, config(backend="onnxruntime"), "cpu", export=tmp_path / "export")
    difference = np.abs(images(half, 4).astype(int) - images(engine, 4))
    assert 0 < difference.mean() < 0.5 and difference.max() <= 4
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    usual = half.decode(latents)
    latents[1] *= 1e6  # beyond float16's 65,504
    made = half.decode(latents)
    assert torch.isfinite(made).all() and torch.allclose(made[1], engine.decode(latents[1:2])[0], atol=1e-4)
    assert torch.equal(made[[0, 2]], usual[[0, 2]])


def test_half_a_decoder_changes_pixels_by_rounding_alone(adapter: Path, engine: Engine) -> None:
    half = open_engine(adapter, config(vae_precision="bf16"), "cpu")
    assert half.generator == engine.generator
    difference = np.abs(images(half, 7).astype(int) - images(engine, 7))
    assert 0 < difference.mean() < 1.5 and difference.max() <= 16
