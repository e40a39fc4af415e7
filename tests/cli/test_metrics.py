"""metrics.json as the issue writes it down, checked on what a real run made, and what calibration does to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dcdm_cli.data.manifest import read_manifest
from dcdm_cli.run.presets import PRESETS

from .conftest import CLASSES, SPLITS, FinishedJob, last_error
from .runner import run

SHARE, SECONDS, COUNT = ("share",), ("seconds",), ("count",)
ADHERENCE = {
    "n": COUNT,
    "spearman": ("correlation", None),
    "mean_absolute_error": SHARE,
    "targets": [{"target": SHARE, "realised_mean": SHARE, "label_agreement": SHARE, "n": COUNT}],
    "frontier": [
        {
            "bin": [SHARE, SHARE],
            "real_agreement": ("share", None),
            "real_n": COUNT,
            "generated_agreement": ("share", None),
            "generated_n": COUNT,
        }
    ],
}
DOWNSTREAM = {
    "classifier": ("text",),
    "test_images": COUNT,
    "real_images": COUNT,
    "seeds": COUNT,
    "arms": [
        {
            "name": ("text",),
            "synthetic_images": COUNT,
            "accuracy": ["many", SHARE],
            "accuracy_mean": SHARE,
            "accuracy_ci95": ("interval", None),
        }
    ],
}
SCHEMA = {"schema": 1, "seconds": {}, "device": ("text",), "adherence": ADHERENCE, "downstream": DOWNSTREAM}
KINDS = {
    "share": lambda v: type(v) in (int, float) and 0 <= v <= 1,
    "correlation": lambda v: type(v) in (int, float) and -1 <= v <= 1,
    "seconds": lambda v: type(v) in (int, float) and v >= 0,
    "count": lambda v: type(v) is int and v >= 0,
    "text": lambda v: type(v) is str and v != "",
    "interval": lambda v: type(v) is list and len(v) == 2 and v[0] <= v[1],
}


def mismatches(value: Any, rule: Any, where: str = "") -> list[str]:
    """Places where a document differs from the schema. Additional keys are allowed: the schema is additive."""
    if isinstance(rule, tuple):
        fits = value is None if None in rule and value is None else KINDS[rule[0]](value)
        return [] if fits else [f"{where}: {value!r} is no {rule[0]}"]
    if isinstance(rule, dict):
        missing = [f"{where}.{key} is missing" for key in rule if key not in value]
        return missing + [m for k, r in rule.items() if k in value for m in mismatches(value[k], r, f"{where}.{k}")]
    if isinstance(rule, list) and len(rule) == 2 and rule[0] != "many":
        return [m for i in range(2) for m in mismatches(value[i], rule[i], f"{where}[{i}]")]
    if isinstance(rule, list):
        none = [] if value else [f"{where} is empty"]
        return none + [m for i, item in enumerate(value) for m in mismatches(item, rule[-1], f"{where}[{i}]")]
    return [] if value == rule else [f"{where}: {value!r} instead of {rule!r}"]


@pytest.fixture
def metrics(job: FinishedJob) -> dict[str, Any]:
    return json.loads((job.run / "evaluation" / "metrics.json").read_text())


def test_the_document_follows_the_schema(metrics: dict[str, Any], job: FinishedJob) -> None:
    assert mismatches(metrics, SCHEMA) == []
    assert metrics == job.documents["evaluate"]
    assert set(metrics["seconds"]) >= {"score", "caption", "finetune", "generate"}
    assert all(KINDS["seconds"](value) for value in metrics["seconds"].values())


def test_the_schema_itself_can_fail(metrics: dict[str, Any]) -> None:
    del metrics["adherence"]["frontier"][0]["real_n"]
    metrics["downstream"]["arms"][0]["accuracy"] = []
    metrics["adherence"]["targets"][0]["realised_mean"] = float("nan")
    assert len(mismatches(metrics, SCHEMA)) == 3


def test_counts_and_means_agree_with_each_other(metrics: dict[str, Any]) -> None:
    adherence, downstream = metrics["adherence"], metrics["downstream"]
    assert adherence["n"] == sum(target["n"] for target in adherence["targets"]) == 12
    assert [target["target"] for target in adherence["targets"]] == [0.2, 0.5]
    errors = [abs(target["target"] - target["realised_mean"]) for target in adherence["targets"]]
    assert adherence["mean_absolute_error"] == pytest.approx(np.mean(errors), abs=2e-4)
    bins = [row["bin"] for row in adherence["frontier"]]
    assert bins == [[round(i / 10, 1), round((i + 1) / 10, 1)] for i in range(10)]
    test_images = len(CLASSES) * SPLITS["test"]
    assert sum(row["real_n"] for row in adherence["frontier"]) == test_images == downstream["test_images"]
    assert sum(row["generated_n"] for row in adherence["frontier"]) == 12
    arms = {arm["name"]: arm for arm in downstream["arms"]}
    assert list(arms) == ["real", "plain", "dcdm"] and arms["real"]["synthetic_images"] == 0
    assert (
        arms["plain"]["synthetic_images"] == arms["dcdm"]["synthetic_images"] == round(0.2 * downstream["real_images"])
    )
    for arm in arms.values():
        assert len(arm["accuracy"]) == downstream["seeds"] == 2
        assert arm["accuracy_mean"] == pytest.approx(np.mean(arm["accuracy"]), abs=1e-5)
        assert all(a * test_images == pytest.approx(round(a * test_images), abs=1e-3) for a in arm["accuracy"])


def test_the_test_images_were_seen_by_nobody(job: FinishedJob) -> None:
    manifest = read_manifest(job.run / "samples.parquet")
    content = {name: {i.partition("-")[0] for i in manifest.split(name).column("sample_id")} for name in SPLITS}
    assert not content["train"] & content["test"] and not content["judge"] & content["test"]
    assert not content["train"] & content["judge"]
    scored = np.isfinite(manifest.column("difficulty"))
    assert (scored == (manifest.column("split") == "train")).all()


def calibrate(folder: Path, realised: tuple[float, ...]) -> None:
    """Writes what calibration would have found: realised difficulty at a request of 0, 0.5 and 1, in every class."""
    from dcdm_cli.difficulty.calibration import fit_calibration, save_calibration
    from dcdm_cli.generation.engine import sampler_settings
    from dcdm_cli.run.resolution import resolve

    requested = np.tile([0.0, 0.5, 1.0], 90)
    label = np.repeat(np.arange(3), 90)
    measured = np.tile(realised, 90)
    config = resolve(run_file=folder / "dcdm.toml").config.generate
    found = fit_calibration(requested, measured, measured < 2, label, 3, sampler_settings(config))
    save_calibration(found, folder / "adapter" / "calibration.json")


def test_generation_inverts_the_calibration_and_tells_what_is_out_of_reach(copy: Path) -> None:
    calibrate(copy, (0.1, 0.3, 0.5))
    made = run("generate", "--force", "--difficulty", "uniform:0.2,0.8", "--json", "--run", copy)
    manifest = read_manifest(copy / "generated" / "samples.parquet")
    target, requested = (manifest.column(f"{name}_difficulty") for name in ("target", "requested"))
    inside = target < 0.5
    assert 0 < inside.sum() < 12
    np.testing.assert_allclose(requested[inside], (target[inside] - 0.1) / 0.4, atol=0.02)
    np.testing.assert_allclose(requested[~inside], 1, atol=0.02)
    outside = json.loads(made.stdout)["unreachable_targets"]
    assert 0 < outside <= (~inside).sum()
    assert f"{outside} of 12 targets lie outside what this adapter can reach" in made.stderr


def test_evaluation_leaves_targets_out_of_reach_out_and_lists_them(copy: Path) -> None:
    calibrate(copy, (0.1, 0.3, 0.5))
    made = json.loads(run("evaluate", "--targets", "0.2,0.4,0.7", "--arms", "real", "--json", "--run", copy).stdout)
    assert [target["target"] for target in made["adherence"]["targets"]] == [0.2, 0.4]
    assert made["adherence"]["targets_out_of_reach"] == [0.7]
    low, high = made["adherence"]["reachable"]
    assert low <= 0.2 and 0.4 <= high < 0.7
    error = last_error(run("evaluate", "--targets", "0.75", "--json", "--run", copy, code=2))
    assert "no target of" in error["message"] and "--targets" in error["hint"]


def test_a_calibration_for_another_sampler_is_not_used_and_the_hint_makes_one(copy: Path) -> None:
    calibrate(copy, (0.1, 0.3, 0.5))
    made = run("generate", "--force", "--difficulty-guidance", "4", "--clip-range", "none", "--run", copy)
    assert "measured with other sampler settings (difficulty_guidance, clip_range)" in made.stderr
    again = f"dcdm finetune --run {copy} --set=generate.difficulty_guidance=4.0 --set=generate.clip_range=none"
    assert again in made.stderr
    manifest = read_manifest(copy / "generated" / "samples.parquet")
    np.testing.assert_allclose(manifest.column("requested_difficulty"), manifest.column("target_difficulty"))


def test_calibration_probes_after_training_and_says_what_can_be_reached(copy: Path) -> None:
    """An untrained adapter either steers a little by chance or is told not to steer at all: nothing in between."""
    words = [
        "finetune",
        "--set",
        "calibrate.enabled=true",
        "--set",
        "calibrate.points=3",
        "--set",
        "calibrate.images=6",
    ]
    done = run(*words, "--json", "--run", copy, code=None)
    if done.returncode == 4:
        assert "does not rise with the request" in last_error(done)["message"]
        return
    assert done.returncode == 0, done.stderr
    if "the request says little" in done.stderr:  # the same, where the strength was chosen
        return
    found = json.loads(done.stdout)["calibration"]
    real = read_manifest(copy / "samples.parquet").split("train").column("difficulty")
    tails = PRESETS["digits"]["calibrate"]["tails"]
    ends = np.quantile(real, [tails, 1 - tails])
    np.testing.assert_allclose(found["requested"], np.linspace(*ends, 3), atol=1e-3)  # nothing beyond the real images
    assert len(found["realised"]) == 3
    assert "can be reached" in done.stderr and (copy / "adapter" / "calibration.json").is_file()
