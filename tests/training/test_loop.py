"""One loss trains LoRA and encoder together; a run that was stopped ends where an undisturbed one ends."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dcdm_cli.errors import CapabilityError, InterruptedRunError, MismatchError, NumericalError, StorageError
from dcdm_cli.files import hash_file
from dcdm_cli.model.base import BaseModel
from dcdm_cli.run.checkpoint import STATE_HASH
from dcdm_cli.run.progress import Job
from dcdm_cli.training import loop
from dcdm_cli.training.dataset import TrainingSet
from dcdm_cli.training.loop import MAX_BAD_STEPS, Course, Snapshots, Teacher, Trained, build_network, finetune

from .conftest import CLASSES, Train, settings, weights


def stop_after(steps: int) -> Job:
    """Asks to stop once `steps` optimiser steps are finished: the loop asks once per step."""
    asked = iter([None] * (steps - 1))
    return Job(stop_signal=lambda: next(asked, "SIGTERM"))


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_lora_and_encoder_learn_and_the_base_does_not(tiny: BaseModel, train: Train) -> None:
    fresh = weights_of_fresh_network(tiny)
    trained = train()
    after = weights(trained)
    assert after.keys() == fresh.keys()
    assert [name for name in after if torch.equal(after[name], fresh[name])] == []
    assert any(name.startswith("encoder.") for name in after)
    before = tiny.unet.state_dict()
    frozen = {name.replace("base_layer.", ""): p for name, p in trained.network.unet.named_parameters()}
    assert all(torch.equal(frozen[name], p) for name, p in before.items())


def weights_of_fresh_network(tiny: BaseModel) -> dict[str, torch.Tensor]:
    network = build_network(copy.deepcopy(tiny), CLASSES, settings())
    return {name: p.detach().clone() for name, p in network.named_parameters() if p.requires_grad}


def test_the_loss_falls(train: Train) -> None:
    losses = [loss for _, loss in train(settings(steps=60, batch_size=8)).losses]
    assert sum(losses[-3:]) < sum(losses[:3])


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(train: Train, tmp_path: Path) -> None:
    first = weights(train())
    shutil.rmtree(tmp_path / "checkpoints")
    second = weights(train())
    shutil.rmtree(tmp_path / "checkpoints")
    other = weights(train(settings(seed=1)))
    assert same(first, second)
    assert not same(first, other)


@pytest.mark.parametrize("stop", [1, 6, 11])
def test_stopping_and_going_on_equals_going_through(train: Train, tmp_path: Path, stop: int) -> None:
    config = settings(steps=12, gradient_accumulation=2, batch_size=2)
    through = train(config)
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(InterruptedRunError, match=f"checkpoint at step {stop} of 12") as caught:
        train(config, stop_after(stop))
    assert caught.value.code == 143
    assert (tmp_path / "checkpoints" / f"step-{stop:08d}").is_dir()
    resumed = train(config)
    assert same(weights(resumed), weights(through))
    assert resumed.losses == through.losses


def taught(tiny: BaseModel, data: TrainingSet, place: Path, job: Job | None = None, key: str = "halves") -> Trained:
    """By somebody who says that all noise is half as strong, the louder the harder."""
    teacher = Teacher(lambda latents, time, text, label, s: latents * (0.5 + s[:, None, None, None]), key)
    config = settings(steps=12, batch_size=2, text_dropout=0.0, difficulty_dropout=0.0, snr_gamma=None)
    return finetune(copy.deepcopy(tiny), data, CLASSES, config, place, job or Job(), Course(teacher=teacher))


@pytest.mark.parametrize("stop", [1, 11])
def test_what_a_teacher_says_is_learned_and_gone_on_with_after_a_stop(
    tiny: BaseModel, data: TrainingSet, tmp_path: Path, stop: int
) -> None:
    through = taught(tiny, data, tmp_path / "through")
    first, last = (sum(loss for _, loss in part) for part in (through.losses[:3], through.losses[-3:]))
    assert last < first
    with pytest.raises(InterruptedRunError, match=f"checkpoint at step {stop} of 12"):
        taught(tiny, data, tmp_path / "stopped", stop_after(stop))
    with pytest.raises(MismatchError, match="other settings or data"):
        taught(tiny, data, tmp_path / "stopped", key="another teacher")
    resumed = taught(tiny, data, tmp_path / "stopped")
    assert same(weights(resumed), weights(through)) and resumed.losses == through.losses


@pytest.mark.parametrize("stop", [10, 9])
def test_twenty_steps_equal_ten_a_restart_and_ten(train: Train, tmp_path: Path, stop: int) -> None:
    """Bit for bit: weights and losses. Three steps of four are an epoch of twelve images: 9 is on its edge, 10 not."""
    config = settings(steps=20, checkpoint_every=1000)
    with pytest.raises(InterruptedRunError, match=f"checkpoint at step {stop} of 20"):
        train(config, stop_after(stop))
    resumed = train(config)
    shutil.rmtree(tmp_path / "checkpoints")
    through = train(config)
    assert same(weights(resumed), weights(through))
    assert resumed.losses == through.losses and len(through.losses) == 20


def test_accumulated_gradients_equal_one_large_batch(train: Train, tmp_path: Path) -> None:
    large = weights(train(settings(batch_size=8, gradient_accumulation=1)))
    shutil.rmtree(tmp_path / "checkpoints")
    small = weights(train(settings(batch_size=2, gradient_accumulation=4)))
    assert max((large[name] - small[name]).abs().max().item() for name in large) < 1e-3


def test_the_same_global_batch_goes_on_however_it_is_shared_out(train: Train) -> None:
    with pytest.raises(InterruptedRunError):
        train(settings(batch_size=4), stop_after(3))
    assert train(settings(batch_size=2, gradient_accumulation=2)).losses
    with pytest.raises(MismatchError, match="other settings or data"):
        train(settings(batch_size=8))


def test_gradient_checkpointing_changes_memory_not_weights(train: Train, tmp_path: Path) -> None:
    plain = weights(train())
    shutil.rmtree(tmp_path / "checkpoints")
    checkpointed = weights(train(settings(gradient_checkpointing=True)))
    assert max((plain[name] - checkpointed[name]).abs().max().item() for name in plain) < 1e-4


def test_the_plain_control_has_no_encoder(train: Train) -> None:
    trained = train(settings(conditioning="none"))
    assert trained.network.encoder is None
    assert all("lora" in name for name in weights(trained))


def test_other_settings_or_data_do_not_continue_a_checkpoint(train: Train, data: TrainingSet) -> None:
    with pytest.raises(InterruptedRunError):
        train(job=stop_after(2))
    with pytest.raises(MismatchError, match="other settings or data") as caught:
        train(settings(lr=5e-3))
    assert "--force" in caught.value.hint
    with pytest.raises(MismatchError, match="other settings or data"):
        train(data=dataclasses.replace(data, difficulty=1 - data.difficulty))
    assert train().losses  # the right ones still do


def test_starting_over_goes_on_from_its_own_checkpoint_and_drops_another_ones(train: Train, tmp_path: Path) -> None:
    through = weights(train(settings(steps=8)))
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(InterruptedRunError):
        train(settings(steps=8), stop_after(3), replace=True)
    seen: list[int] = []
    job = Job(progress=lambda what, done, total: seen.append(done))
    assert same(weights(train(settings(steps=8), job, replace=True)), through) and seen == [4, 5, 6, 7, 8]
    train(settings(steps=2, lr=5e-3), replace=True)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


def test_three_bad_steps_in_a_row_stop_the_run_at_the_last_good_one(
    train: Train, data: TrainingSet, tmp_path: Path
) -> None:
    """Weights of before the first bad step are kept, and the same command fails in seconds instead of in hours."""
    bad = dataclasses.replace(data, difficulty=torch.full_like(data.difficulty, float("inf")))
    config = settings(steps=50, text_dropout=0.0, difficulty_dropout=0.0)
    for _ in range(2):
        with pytest.raises(NumericalError, match=f"not finite for {MAX_BAD_STEPS} steps in a row") as caught:
            train(config, data=bad)
        assert caught.value.code == 4 and "--lr" in caught.value.hint and "step-00000000" in caught.value.message
    kept = tmp_path / "checkpoints" / "step-00000000"
    assert all(torch.isfinite(value).all() for value in load_file(kept / "tensors.safetensors").values())


def test_the_last_good_checkpoint_is_kept_and_gone_on_from(train: Train, tmp_path: Path) -> None:
    """Bad steps in the middle: what had been learnt until then is there."""
    asked, config = iter([None] * 3), settings(steps=12)
    with pytest.raises(InterruptedRunError):
        train(config, Job(stop_signal=lambda: next(asked, "SIGINT")))
    tensors = tmp_path / "checkpoints" / "step-00000004" / "tensors.safetensors"
    before = {name: value for name, value in load_file(tensors).items() if name.startswith("model.")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "denoising_loss", lambda *a: torch.tensor(float("nan"), requires_grad=True))
        with pytest.raises(NumericalError, match="up to step 7"):
            train(config)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]
    after = load_file(tensors)
    assert before and all(torch.equal(value, after[name]) for name, value in before.items())
    assert train(config).losses


@pytest.mark.parametrize("steps", [1, 2, 12])
def test_an_absurd_learning_rate_is_a_failure_however_short_the_run(train: Train, steps: int) -> None:
    with pytest.raises(NumericalError, match="diverged") as caught:
        train(settings(steps=steps, lr=1e20, encoder_lr=1e20, warmup_steps=0, lr_schedule="constant_with_warmup"))
    assert caught.value.code == 4


@pytest.mark.parametrize("part", ["latents", "text"])
def test_data_that_are_not_finite_are_refused_before_a_step(train: Train, data: TrainingSet, part: str) -> None:
    values = np.array(getattr(data, part))
    values[-1] = np.nan
    with pytest.raises(NumericalError, match=f"{'latents of training image 11' if part == 'latents' else 'text'}"):
        train(data=dataclasses.replace(data, **{part: values}))


def test_a_few_bad_steps_are_skipped_and_counted(train: Train, data: TrainingSet) -> None:
    difficulty = data.difficulty.clone()
    difficulty[0] = float("inf")
    trained = train(settings(steps=9, batch_size=2, text_dropout=0.0, difficulty_dropout=0.0), data=dataclasses.replace(
        data, difficulty=difficulty
    ))  # fmt: skip
    assert 0 < trained.skipped < 9
    assert all(torch.isfinite(p).all() for p in weights(trained).values())


def test_only_the_newest_checkpoints_are_kept(train: Train, tmp_path: Path) -> None:
    train(settings(checkpoint_every=1, keep_checkpoints=2))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-00000005", "step-00000006"]


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    through = weights(train(settings(checkpoint_every=1)))
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000006")
    tensors = tmp_path / "checkpoints" / "step-00000005" / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-7])
    with pytest.raises(MismatchError, match=r"no checkpoint in .* is readable"):
        train(settings(checkpoint_every=1))
    assert "step-00000005 is damaged" in caplog.text
    shutil.rmtree(tmp_path / "checkpoints")
    assert same(weights(train(settings(checkpoint_every=1))), through)


def edit_state(checkpoint: Path, **changes: object) -> None:
    """As one from before states had hashes, with other values."""
    file = checkpoint / "state.json"
    said = {name: value for name, value in json.loads(file.read_text()).items() if name != STATE_HASH}
    file.write_text(json.dumps(said | changes))


@pytest.mark.parametrize(
    ("key", "value"),
    [("step", 10**15), ("step", 5),
     ("losses", 5), ("losses", [[1, "low"]]), ("window", None), ("skipped", -1), ("ema_step", "many"), ("lr", {}),
     ("lr", {"last_epoch": 1, "_step_count": 1, "base_lrs": [1.0], "_last_lr": [], "lr_lambdas": [None]})],
)  # fmt: skip
def test_a_state_that_is_none_is_a_damaged_checkpoint(train: Train, tmp_path: Path, key: str, value: object) -> None:
    train(settings(checkpoint_every=1, keep_checkpoints=1))
    edit_state(tmp_path / "checkpoints" / "step-00000006", **{key: value})
    with pytest.raises(MismatchError, match=r"no checkpoint in .* is readable"):
        train(settings(checkpoint_every=1))


def test_a_bit_that_has_changed_in_a_state_is_noticed(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of one that is as plausible as before; the checkpoint before it gives the same weights."""
    config = settings(checkpoint_every=1, keep_checkpoints=2)
    through = weights(train(config))
    file = tmp_path / "checkpoints" / "step-00000006" / "state.json"
    file.write_text(file.read_text().replace('"skipped": 0', '"skipped": 4'))
    resumed = train(config)
    assert "step-00000006 is damaged (the state differs from its recorded hash)" in caplog.text
    assert same(weights(resumed), through) and resumed.skipped == 0


def test_a_tensor_cut_to_its_first_row_is_not_broadcast(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = settings(steps=2, checkpoint_every=1, keep_checkpoints=2)
    through = weights(train(config))
    newest = tmp_path / "checkpoints" / "step-00000002"
    tensors = load_file(newest / "tensors.safetensors")
    name = next(name for name, value in tensors.items() if name.startswith("model.") and value.ndim > 1)
    save_file({**tensors, name: tensors[name][:1].clone()}, newest / "tensors.safetensors")
    edit_state(newest, sha256=hash_file(newest / "tensors.safetensors"))
    assert same(weights(train(config)), through)
    assert "step-00000002 is damaged" in caplog.text


def test_checkpoints_that_do_not_fit_are_refused_before_a_step(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(StorageError, match=r"the checkpoints need about .* are free"):
        train(settings(checkpoint_every=1))
    assert not (tmp_path / "checkpoints").exists()


def test_checkpoints_hold_no_pickles(train: Train, tmp_path: Path) -> None:
    train()
    files = [p for p in (tmp_path / "checkpoints").rglob("*") if p.is_file()]
    assert {p.name for p in files} == {"state.json", "tensors.safetensors"}
    assert json.loads(next(p for p in files if p.name == "state.json").read_text())["step"] == 6


def test_half_precision_on_a_cpu_is_refused(train: Train) -> None:
    with pytest.raises(CapabilityError, match="fp16 training needs a GPU"):
        train(settings(precision="fp16"))


def test_snapshots_show_the_running_mean_and_leave_training_as_it_is(
    tiny: BaseModel, data: TrainingSet, train: Train, tmp_path: Path
) -> None:
    through = weights(train(settings(steps=6)))
    shutil.rmtree(tmp_path / "checkpoints")
    seen: dict[int, dict[str, torch.Tensor]] = {}

    def keep(step: int, network: torch.nn.Module) -> None:
        seen[step] = {name: p.detach().clone() for name, p in network.named_parameters() if p.requires_grad}

    base, config = copy.deepcopy(tiny), settings(steps=6)
    trained = finetune(base, data, CLASSES, config, tmp_path / "checkpoints", Job(), Course(Snapshots((3, 6), keep)))
    assert same(weights(trained), through) and set(seen) == {3, 6}
    assert same(seen[6], through) and not same(seen[3], through)
