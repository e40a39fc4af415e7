"""`dcdm distill`: one call learns what the guided calls give, and is used for that alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from dcdm_cli import Run
from dcdm_cli.api.session import open_session
from dcdm_cli.backends.torch_backend import TorchDenoiser, TorchOptions
from dcdm_cli.console import Console
from dcdm_cli.errors import MismatchError, NotFoundError, UsageError
from dcdm_cli.evaluation.experiments import AdapterSpec
from dcdm_cli.generation import pricing
from dcdm_cli.generation.engine import open_engine
from dcdm_cli.generation.guidance import taught_guidance
from dcdm_cli.generation.teacher import GuidedTeacher, calls_of
from dcdm_cli.model.adapter import CONFIG_FILE, adapter_hash, read_adapter
from dcdm_cli.model.base import encode_text
from dcdm_cli.model.export_folder import open_export
from dcdm_cli.model.fused import FusedModel, load_fused
from dcdm_cli.run.presets import PRESETS
from dcdm_cli.run.standing import DONE, STALE, standing_of
from dcdm_cli.run.store import RunFolder
from dcdm_cli.stages.experiments.generators import VariantFolder, variant_session
from dcdm_export.finished import read_parity

from .test_finetune import prepared

SETTINGS = """
[distill]
steps = 40
batch_size = 8
lr = 3e-3
encoder_lr = 5e-3
warmup_steps = 2
ema_decay = 0.8
[generate]
steps = 2
scheduler = "dpmpp"
clip_range = 4.0
batch_size = 4
decode_batch = 4
calibrated = false
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Fine-tuned and distilled, on twelve digits. Read only."""
    folder = prepared(tmp_path_factory.mktemp("distilled") / "run")
    targets = ", ".join(f'"{name}"' for name in PRESETS["digits"]["finetune"]["lora_targets"])
    rank = {"rank = 2": "rank = 8", "alpha = 2": f"alpha = 8\nlora_targets = [{targets}]"}
    said = folder.config_file.read_text() + SETTINGS
    for old, new in rank.items():
        said = said.replace(old, new)
    folder.config_file.write_text(said)
    run = Run(folder.path, quiet=True)
    run.finetune()
    run.distill()
    return folder


@pytest.fixture
def run(finished: RunFolder, tmp_path: Path) -> Run:
    """A copy, to be changed."""
    shutil.copytree(finished.path, tmp_path / "run")
    return Run(tmp_path / "run", quiet=True)


def asked(model: FusedModel) -> tuple[torch.Tensor, ...]:
    """Where the schedule has little but noise: anything else is no image of these."""
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(24, 4, 8, 8, generator=generator)
    timestep = torch.randint(700, 1000, (24,), generator=generator)
    text = encode_text(model.base, [f"a {i % 10}" for i in range(24)])
    return latents, timestep, text, torch.arange(24) % 10, torch.rand(24, generator=generator)


def test_one_call_comes_nearer_to_the_guided_calls_than_before(finished: RunFolder) -> None:
    settings = Run(finished.path, quiet=True).settings("generate").generate
    model, guidance = load_fused(finished.adapter), taught_guidance(settings, plain=False)
    assert guidance.weights() == {"none": -1.0, "text": -2.0, "full": 4.0} and calls_of(guidance) == 3
    given, nothing = asked(model), encode_text(model.base, [""])
    guided = GuidedTeacher(TorchDenoiser(model.network, "cpu", TorchOptions(3)), guidance, 1000, nothing)(*given)
    before, after = (
        TorchDenoiser(load_fused(folder).network, "cpu")(*given)
        for folder in (finished.adapter, finished.with_distilled(True).adapter)
    )
    missed = [(made - guided).square().mean().item() for made in (before, after)]
    assert missed[1] < 0.7 * missed[0], missed


def test_it_lies_beside_its_teacher_and_says_what_it_stands_for(finished: RunFolder) -> None:
    made = read_adapter(finished.with_distilled(True).adapter).distilled
    assert made is not None and read_adapter(finished.adapter).distilled is None
    assert (made.text_guidance, made.difficulty_guidance, made.lora_scale) == (2.0, 4.0, 1.0)
    assert made.teacher == adapter_hash(finished.adapter)
    record = finished.require("distill")
    assert record.results["calls"] == 3 and record.results["stands_for"]["difficulty_guidance"] == 4.0
    assert not (finished.checkpoints / "distilled").exists() and (finished.logs / "distill-loss.csv").is_file()
    assert "guidance_scale=1.0" in (finished.with_distilled(True).adapter / "README.md").read_text()


def test_images_are_made_with_one_call(run: Run) -> None:
    ours = run.generate(guidance="distilled", count=4)
    assert ours.results["images"] == 4 and set(ours.inputs) >= {"finetune", "distill"}
    assert run.generate(guidance="distilled", count=4).started == ours.started
    with pytest.raises(MismatchError, match="guidance 'distilled', here 'calls'"):
        run.generate(run.plan(guidance="distilled", count=4).file)
    settings = run.settings("generate").generate.model_copy(update={"guidance": "distilled"})
    engine = open_engine(run.folder.with_distilled(True).adapter, settings, "cpu")
    assert engine.denoiser.shared_calls == 1 and engine.guidance.weights() == {"full": 1.0}


def test_other_scales_are_refused_and_the_guided_calls_are_not(run: Run) -> None:
    with pytest.raises(MismatchError, match=r"was distilled for difficulty_guidance = 4, not 5$") as caught:
        run.generate(guidance="distilled", difficulty_guidance=5, count=4)
    assert "--set generate.difficulty_guidance=4" in caught.value.hint
    assert "dcdm distill --set generate.difficulty_guidance=5" in caught.value.hint
    with pytest.raises(MismatchError, match=r"guidance_interval = none, not \[0.2, 0.8\]"):
        run.export(**{"generate.guidance": "distilled", "generate.guidance_interval": (0.2, 0.8)})
    assert run.generate(difficulty_guidance=5, count=4).results["images"] == 4
    assert not run.folder.with_distilled(True).export.exists()


def test_without_it_or_after_another_fine_tuning_the_remedy_is_named(run: Run) -> None:
    run.finetune(steps=5)
    for verb in (run.generate, run.export, run.evaluate):
        with pytest.raises(MismatchError, match="was made before the last fine-tuning") as stale:
            verb(**{"generate.guidance": "distilled"})
        assert "dcdm distill" in stale.value.hint
    assert {s.title: s.state for s in standing_of(run.folder).stages}["distill"] == STALE
    shutil.rmtree(run.folder.path / "distilled")
    run.folder.forget("distill")
    with pytest.raises(NotFoundError, match="has no finished distill stage") as gone:
        run.generate(guidance="distilled")
    assert "dcdm distill" in gone.value.hint
    with pytest.raises(UsageError, match="make one network call already"):
        run.distill(**{"generate.text_guidance": 1, "generate.difficulty_guidance": 1})


def test_a_student_that_took_long_is_not_replaced_without_a_word(run: Run) -> None:
    file = run.folder.path / "records" / "distill.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"seconds": 7200.0}))
    with pytest.raises(MismatchError, match=r"distilling with other settings replaces .*distill took 2 h"):
        run.distill(steps=3)
    assert run.distill().results["calls"] == 3  # as it is


@pytest.mark.slow
def test_its_export_is_its_own_and_has_one_call(run: Run) -> None:
    made = run.export(**{"generate.guidance": "distilled"})
    folder = run.folder.with_distilled(True)
    assert run.record("export") is None and made.outputs == ["distilled/export/signature.json"]
    assert all(case["max_abs"] <= 1e-4 for entry in read_parity(folder.export).values() for case in entry["cases"])
    signature = open_export(folder.export, adapter_hash=adapter_hash(folder.adapter), lora_scale=1.0, distilled=True)
    assert signature.networks["denoiser"].shared_calls == 1 and signature.model.distilled
    assert run.generate(guidance="distilled", count=4, backend="onnxruntime").results["backend"] == "onnxruntime"
    titles = {s.title: s.state for s in standing_of(run.folder).stages}
    assert titles["export (distilled)"] == titles["generate"] == DONE and titles["export"] == "not yet"
    shutil.copytree(folder.export, run.folder.export)
    with pytest.raises(MismatchError, match="exported for distilled guidance, of one call, and generation asks") as why:
        run.generate(count=4, backend="onnxruntime")
    assert why.value.hint == "dcdm export --guidance calls"


def test_the_price_of_a_plan_says_when_distilling_is_repaid(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pricing, "PROBE_S", 0.2)
    cost = run.plan(guidance="distilled", count=8).price
    spent = run.folder.require("distill").seconds
    assert cost.repayment is not None and cost.repayment.seconds == spent
    saved = cost.repayment.by_calls_s - cost.probe.per_image_s
    assert cost.repayment.images == (pytest.approx(spent / saved, abs=1) if saved > 0 else None)
    assert cost.document()["repayment"]["by_calls_s"] == cost.repayment.by_calls_s
    assert run.plan(count=8).price.repayment is None


def test_an_adapter_that_was_edited_is_refused(run: Run) -> None:
    file = run.folder.with_distilled(True).adapter / CONFIG_FILE
    content = json.loads(file.read_text())
    content["distilled"]["text_guidance"] = "much"
    file.write_text(json.dumps(content))
    with pytest.raises(MismatchError, match=r"config\.json is damaged"):
        run.generate(guidance="distilled", count=4)


def test_distilling_twice_does_nothing_and_other_scales_do(run: Run) -> None:
    first = run.record("distill")
    assert first is not None and run.distill().started == first.started
    assert run.distill(steps=2, **{"generate.difficulty_guidance": 3}).results["stands_for"]["difficulty_guidance"] == 3
    assert run.generate(guidance="distilled", difficulty_guidance=3, count=4).results["images"] == 4


def test_generators_of_experiments_are_guided_by_calls(run: Run) -> None:
    session = open_session(run.folder.path, "evaluate", {"generate.guidance": "distilled"}, Console(quiet=True))
    assert session.run.distilled and variant_session(session, "ours", AdapterSpec()).run.distilled
    other = variant_session(session, "soft", AdapterSpec(generate={"steps": 3}))
    assert other.config.generate.guidance == "calls" and not other.run.distilled
    assert isinstance(other.run, VariantFolder) and other.run.parent.adapter == run.folder.adapter
    with pytest.raises(UsageError, match="only the run's adapter is distilled"):
        variant_session(session, "x", AdapterSpec(generate={"guidance": "distilled"}))
