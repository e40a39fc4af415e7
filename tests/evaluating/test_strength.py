"""Fine-tuning that chooses its own strength, and the encoder's lesson from the generator's own draws."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dcdm_cli.console import Console
from dcdm_cli.data.manifest import Manifest
from dcdm_cli.errors import InterruptedRunError, UsageError
from dcdm_cli.evaluation import strength as measures
from dcdm_cli.model.adapter import adapter_hash, read_adapter
from dcdm_cli.run.session import recorded_layers, with_chosen_strength, with_settings
from dcdm_cli.run.settings import FinetuneConfig
from dcdm_cli.run.store import Outcome, RunFolder, Stage
from dcdm_cli.stages import strength as stage
from dcdm_cli.stages.caption import run_caption
from dcdm_cli.stages.finetune import run_finetune
from dcdm_cli.stages.score import run_score

from .conftest import coloured, session_of

AUTO: dict[str, Any] = {
    "finetune__strength": "auto", "finetune__steps": 2, "strength__checkpoints": (1, 2),
    "strength__lora_scales": (1.0,), "strength__probe_budget": 40,
    "strength__features": "digits", "strength__most_copies": 1.0, "strength__least_labels": 0.0,
    "generate__attempts": 1,
}  # fmt: skip


def test_the_point_of_the_most_worth_becomes_the_adapter_and_later_stages_use_its_scales(run: Path) -> None:
    record = run_finetune(session_of(run, **AUTO))
    strength = record.results["strength"]
    assert [(p["steps"], p["lora_scale"]) for p in strength["points"]] == [(1, 1.0), (2, 1.0)]
    best = max(strength["points"], key=lambda point: point["worth"])
    chosen = strength["points"][strength["chosen"]]
    assert chosen["worth"] == best["worth"] and strength["usable"]
    assert strength["unseen"] == 600 and strength["images_per_point"] == 20
    assert read_adapter(run / "adapter").training["steps"] == chosen["steps"]
    scales = {"lora_scale": 1.0, "text_guidance": 1.5, "difficulty_guidance": 2.0}  # a flag fixes the pair here
    assert strength["settings"] == scales
    assert record.config["strength"] == "auto" and record.config["probed"]["probe_budget"] == 40
    layers = {layer.origin: layer.values for layer in recorded_layers(RunFolder(run), "generate")}
    assert layers["record of finetune"]["generate"] == scales
    asked = with_chosen_strength(session_of(run, generate__lora_scale=0.3)).config.generate
    assert (asked.text_guidance, asked.lora_scale) == (1.5, 0.3)  # a flag wins
    assert not (run / "checkpoints" / "adapter").exists()
    assert run_finetune(session_of(run, **AUTO)).started == record.started


@pytest.mark.parametrize(("forged", "asked"), [(False, 3), (True, 4)])
def test_a_choice_that_was_stopped_goes_on_with_what_it_has_measured(
    run: Path, monkeypatch: pytest.MonkeyPatch, forged: bool, asked: int
) -> None:
    """And not with what somebody has written there since."""
    measured: list[int] = []

    def counted(drawn: measures.Drawn, real: measures.RealFeatures) -> dict[str, float]:
        measured.append(len(drawn.features))
        if len(measured) == 2:
            raise InterruptedRunError("stopped", "again", signal_name="SIGTERM")
        return usual(drawn, real)

    usual = measures.measure_point
    monkeypatch.setattr(measures, "measure_point", counted)
    with pytest.raises(InterruptedRunError):
        run_finetune(session_of(run, **AUTO))
    (probes,) = run.glob("checkpoints/*/snapshots/probes.jsonl")
    if forged:
        row = json.loads(probes.read_text())
        probes.write_text(json.dumps(row | {"measured": dict.fromkeys(row["measured"], 1.0)}) + "\n")
    run_finetune(session_of(run, **AUTO))
    assert len(measured) == asked  # the first point is not measured again


def test_a_budget_too_small_for_the_points_is_refused_before_anything_is_trained(run: Path) -> None:
    before = adapter_hash(run / "adapter")
    with pytest.raises(UsageError, match="gives 5 images to each of 2 points, and 20 are needed") as caught:
        run_finetune(session_of(run, **{**AUTO, "strength__probe_budget": 10}))
    assert "probe_budget=40" in caught.value.hint and adapter_hash(run / "adapter") == before


@pytest.mark.slow
def test_more_classes_than_images_per_point_are_probed_by_a_sample_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    probed: list[list[int]] = []

    def seen(drawn: measures.Drawn, real: measures.RealFeatures) -> dict[str, float]:
        probed.append(drawn.label.tolist())
        return usual(drawn, real)

    usual = measures.measure_point
    monkeypatch.setattr(measures, "measure_point", seen)
    many = {**AUTO, "data__source": str(coloured(tmp_path / "images", 25, 8)), "score__method": "features"}
    many |= {"data__test_fraction": 0.4, "data__judge_fraction": 0.5}
    run_score(session_of(tmp_path / "run", **many))
    run_caption(session_of(tmp_path / "run", **many))
    talking = replace(session_of(tmp_path / "run", **many), console=Console())
    strength = run_finetune(talking).results["strength"]
    said = " ".join(capsys.readouterr().err.split())
    assert strength["images_per_point"] == 20 and len(strength["points"]) == 2
    first, second = probed
    assert first == second and len(set(first)) == 20 and sorted(set(first)) != list(range(20))
    assert "20 images per point are fewer than the 25 classes" in said and "strength.probe_budget=50" in said


def test_a_number_of_steps_switches_the_choice_off(run: Path) -> None:
    record = run_finetune(session_of(run, **{**AUTO, "finetune__strength": "1"}))
    assert "strength" not in record.results and read_adapter(run / "adapter").training["steps"] == 1


def test_the_encoder_learns_from_own_draws_over_a_frozen_lora(run: Path) -> None:
    from safetensors.torch import load_file

    from dcdm_cli.model.conditioning import ENCODER_FILE
    from dcdm_cli.model.lora import LORA_FILE

    plain = {"finetune__strength": "2", "generate__attempts": 1}
    run_finetune(session_of(run, **plain))
    before = {name: load_file(run / "adapter" / name) for name in (LORA_FILE, ENCODER_FILE)}
    own = {**plain, "finetune__own_draws": 12, "finetune__own_steps": 2, "generate__batch_size": 4}
    results = run_finetune(session_of(run, **own)).results["own_draws"]
    after = {name: load_file(run / "adapter" / name) for name in (LORA_FILE, ENCODER_FILE)}
    assert results["images"] == 12 and 0 <= results["difficulty_mean"] <= 1
    assert all((before[LORA_FILE][key] == after[LORA_FILE][key]).all() for key in before[LORA_FILE])
    assert any((before[ENCODER_FILE][key] != after[ENCODER_FILE][key]).any() for key in before[ENCODER_FILE])
    assert not list((run / "checkpoints").glob("adapter*"))


def test_plain_lora_chooses_its_own_strength(run: Path) -> None:
    plain = {**AUTO, "finetune__conditioning": "none"}
    strength = run_finetune(session_of(run, **plain)).results["strength"]
    assert [(p["text_guidance"], p["difficulty_guidance"]) for p in strength["points"]] == [(1.5, 1.5)] * 2
    assert read_adapter(run / "adapter").encoder is None


def test_of_many_unseen_images_some_of_each_class_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"sample_id": f"{i:032x}", "path": f"{i}.png", "label": i % 3, "class_name": "abc"[i % 3],
         "split": "judge" if i >= 30 else "train", "synthetic": False, "difficulty": 0.5, "caption": "a photo"}
        for i in range(90)
    ]  # fmt: skip
    manifest = Manifest.from_rows(rows, ("a", "b", "c"))
    whole = stage.split_unseen(manifest, FinetuneConfig(), 0.2, seed=0)
    assert (len(whole.rows), len(whole.unseen)) == (30, 60)
    monkeypatch.setattr(stage, "MOST_UNSEEN", 12)
    some = stage.split_unseen(manifest, FinetuneConfig(), 0.2, seed=0)
    assert (len(some.rows), some.unseen.class_counts().tolist()) == (30, [4, 4, 4])
    alone = stage.split_unseen(manifest.split("train"), FinetuneConfig(), 0.2, seed=0)
    assert (alone.rows.class_counts().tolist(), alone.unseen.class_counts().tolist()) == ([8, 8, 8], [2, 2, 2])


def test_a_scale_that_no_probe_used_makes_no_choice_stale_and_one_that_a_flag_fixes_does(run: Path) -> None:
    given = session_of(run, **AUTO)
    free = replace(given, given={key: given.given[key] for key in given.given if "guidance" not in key})
    written = with_settings(free, generate={"text_guidance": 9.0})
    assert stage.strength_settings(written) == stage.strength_settings(free)
    flagged = replace(written, given={**free.given, "generate.text_guidance": 9.0})
    fixed = stage.strength_settings(flagged)["fixed"]
    assert fixed == {"text_guidance": 9.0, "difficulty_guidance": 2.0}  # the pair goes together
    old = {"sampler": {**stage.strength_settings(free)["sampler"], "text_guidance": 4.0}}
    RunFolder(run).run(Stage("finetune", old, {}), lambda: Outcome([run / "adapter"], "x"))
    assert stage.strength_settings(written)["sampler"]["text_guidance"] == 4.0  # as older records have it
