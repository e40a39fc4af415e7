"""Scoring by features keeps what cross-fitting promises; auto keeps the best of what fits its budget; the judge."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from dcdm_cli.data.manifest import SCORE_COLUMNS, Manifest
from dcdm_cli.difficulty import feature_folds
from dcdm_cli.difficulty.automatic import Method, best_of, clearly_better, training_seconds
from dcdm_cli.difficulty.crossfit import unseen_models
from dcdm_cli.difficulty.feature_cache import FeatureCache
from dcdm_cli.difficulty.features import open_extractor
from dcdm_cli.difficulty.judge import check_judged, fit_judge, load_judge
from dcdm_cli.difficulty.scorer import Scorer
from dcdm_cli.difficulty.scores import calibration_error, score_columns
from dcdm_cli.difficulty.scoring import FINE_TUNED, SCRATCH, Scoring, score_images, trained_settings
from dcdm_cli.errors import MismatchError, UsageError
from dcdm_cli.evaluation.data import held_out_difficulty
from dcdm_cli.evaluation.judge import Judge
from dcdm_cli.evaluation.quality import measured_difficulty
from dcdm_cli.run.progress import Job
from dcdm_cli.run.settings import JudgeConfig, ScoreConfig
from dcdm_cli.workers.coordinator import WorkerPool
from dcdm_cli.workers.local import LocalTransport
from tests.difficulty.conftest import NAMES, MakeManifest

Digits = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="session")
def eyes(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small network with random weights: its features tell digits apart well enough."""
    folder = tmp_path_factory.mktemp("eyes")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model("resnet10t", num_classes=0, channels=[16, 24, 32, 64], stem_width=8)
    save_file(network.state_dict(), folder / "model.safetensors")
    convention = {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 32, 32]}
    args = {"channels": [16, 24, 32, 64], "stem_width": 8}
    document = {"architecture": "resnet10t", "model_args": args, "pretrained_cfg": convention}
    (folder / "config.json").write_text(json.dumps(document))
    return str(folder)


@pytest.fixture
def config(quick: ScoreConfig, eyes: str) -> ScoreConfig:
    return quick.model_copy(update={"method": "features", "features": eyes, "folds": 3})


@pytest.fixture
def train(digits: Digits, make_manifest: MakeManifest) -> Manifest:
    return make_manifest(digits[0][:120], digits[1][:120])


def test_scores_from_features_keep_every_promise(train: Manifest, config: ScoreConfig, tmp_path: Path) -> None:
    config = config.model_copy(update={"repeats": 2})
    scored = score_images(train, config, Scoring(tmp_path / "spool"), Job())
    assert set(scored.columns) == set(SCORE_COLUMNS) and scored.results["method"] == "features"
    assert scored.results["accuracy"] > 0.3 and scored.results["folds"] == 6 and scored.used == config
    assert not np.isnan(scored.columns["difficulty"]).any()
    np.testing.assert_allclose(scored.columns["difficulty"], 1 - scored.columns["p_true"], atol=1e-6)

    scored.save_scorer(tmp_path / "scorer")
    scorer, rows = Scorer.load(tmp_path / "scorer"), train.with_columns(scored.columns)
    unseen = unseen_models(rows, config)
    measured = scorer.measure(rows.paths(), rows.column("label"), only=unseen)
    np.testing.assert_allclose(measured.difficulty, scored.columns["difficulty"], atol=2e-3)
    assert np.array_equal(measured.predicted, scored.columns["predicted"])
    assert {path.name for path in (tmp_path / "scorer").rglob("*") if path.is_file()} == {
        "scorer.json", "model.safetensors", "config.json",
    }  # fmt: skip


def test_scores_from_features_are_out_of_fold(
    digits: Digits, config: ScoreConfig, make_manifest: MakeManifest, tmp_path: Path
) -> None:
    """Random labels cannot be told of images that a head has not learnt from; copies would give them away."""
    labels = np.random.default_rng(0).integers(0, 10, 40)
    doubled = make_manifest(np.concatenate([digits[0][:40]] * 2), np.concatenate([labels] * 2))
    scored = score_images(doubled, config, Scoring(tmp_path / "spool"), Job())
    assert scored.results["accuracy"] < 0.3
    np.testing.assert_array_equal(scored.columns["fold"][:40], scored.columns["fold"][40:])


def test_a_class_that_a_fold_does_not_know_has_no_difficulty(
    digits: Digits, config: ScoreConfig, make_manifest: MakeManifest, tmp_path: Path
) -> None:
    labels = np.array([0] * 20 + [1] * 4 + [2, -1])
    scored = score_images(make_manifest(digits[0][:26], labels, NAMES[:4]), config, Scoring(tmp_path / "spool"), Job())
    assert np.isnan(scored.columns["difficulty"]).tolist() == [False] * 24 + [True] * 2
    assert (scored.columns["predicted"] >= 0).all()
    with pytest.raises(UsageError, match="need 2 classes"):
        score_images(make_manifest(digits[0][:4], np.zeros(4, int)), config, Scoring(tmp_path / "x"), Job())


def test_an_image_is_looked_at_once_for_all_heads(train: Manifest, config: ScoreConfig, tmp_path: Path) -> None:
    score_images(train, config, Scoring(tmp_path / "spool"), Job()).save_scorer(tmp_path / "scorer")
    scorer, passes = Scorer.load(tmp_path / "scorer"), []
    scorer.models[0].trunk.register_forward_hook(lambda *_: passes.append(1))  # type: ignore[union-attr]
    images, labels = train.paths()[:6], train.column("label")[:6]
    together = scorer.measure(images, labels)
    assert len(scorer.models) == 3 and len(passes) == 1
    alone = [Scorer((model,), *list(vars(scorer).values())[1:]).measure(images, labels) for model in scorer.models]
    np.testing.assert_allclose(together.difficulty, np.mean([one.difficulty for one in alone], axis=0), atol=1e-5)


def test_a_judge_does_not_look_again_at_images_whose_features_are_kept(
    train: Manifest, config: ScoreConfig, tmp_path: Path
) -> None:
    cache = FeatureCache(tmp_path / "features")
    score_images(train, config, Scoring(tmp_path / "spool", cache=cache), Job()).save_scorer(tmp_path / "scorer")
    scorer, passes = Scorer.load(tmp_path / "scorer"), list[int]()
    assert scorer.extractor is not None
    scorer.extractor.network.register_forward_hook(lambda *_: passes.append(1))
    known = Judge(scorer, len(train), looks=(cache, Job())).labels_of(train)
    assert passes == []
    looked = Judge(scorer, len(train)).labels_of(train)
    assert passes and np.mean(known == looked) > 0.98  # features are kept in half precision


def test_the_difficulty_of_held_out_images_is_found_by_kept_features(
    train: Manifest, config: ScoreConfig, tmp_path: Path
) -> None:
    cache, scorer = FeatureCache(tmp_path / "features"), tmp_path / "scorer"
    score_images(train, config, Scoring(tmp_path / "spool", cache=cache), Job()).save_scorer(scorer)
    looked = Scorer.load(scorer).measure(train.paths(), train.column("label")).difficulty
    for path in train.paths():
        path.unlink()
    known = held_out_difficulty(scorer, train, cache, Job())
    np.testing.assert_allclose(known, looked, atol=0.02)  # features are kept in half precision
    made = train.with_columns({"measured_difficulty": np.full(len(train), np.nan, np.float32)})
    assert np.array_equal(measured_difficulty(scorer, made, cache, Job()), known)


def test_a_scorer_of_other_features_is_refused(train: Manifest, config: ScoreConfig, tmp_path: Path) -> None:
    score_images(train, config, Scoring(tmp_path / "spool"), Job()).save_scorer(tmp_path / "scorer")
    described = json.loads((tmp_path / "scorer/scorer.json").read_text())
    described["features"]["key"] = "0" * 32
    (tmp_path / "scorer/scorer.json").write_text(json.dumps(described))
    with pytest.raises(MismatchError, match="another version"):
        Scorer.load(tmp_path / "scorer")


def test_large_sets_give_the_same_in_parts(
    train: Manifest, config: ScoreConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = score_images(train, config, Scoring(tmp_path / "a"), Job())
    monkeypatch.setattr("dcdm_cli.difficulty.feature_cache.CHUNK", 16)
    parts = feature_folds.FeatureTable.parts
    monkeypatch.setattr(feature_folds.FeatureTable, "parts", lambda table: parts(table, 25))
    in_parts = score_images(train, config, Scoring(tmp_path / "b"), Job())
    for name in SCORE_COLUMNS:
        np.testing.assert_allclose(in_parts.columns[name], whole.columns[name], atol=2e-3, err_msg=name)


@pytest.mark.slow
def test_a_worker_pool_sees_the_same(train: Manifest, eyes: str, tmp_path: Path) -> None:
    extractor = open_extractor(eyes)
    here = FeatureCache(tmp_path / "here").of(extractor, train, Job())
    pool = lambda opener: WorkerPool(LocalTransport(opener, ["cpu"], threads=1), Job())  # noqa: E731
    there = FeatureCache(tmp_path / "there", pool, 1).of(extractor, train, Job())
    np.testing.assert_allclose(there.take(np.arange(120)), here.take(np.arange(120)), rtol=2e-3, atol=1e-3)


def test_small_and_flat_images_are_named(
    digits: Digits, config: ScoreConfig, make_manifest: MakeManifest, tmp_path: Path
) -> None:
    images, notes = digits[0][:30].copy(), []
    images[3:5] = 120
    rows = make_manifest(images, digits[1][:30]).with_columns({"width": np.full(30, 12), "height": np.full(30, 40)})
    score_images(rows, config, Scoring(tmp_path / "spool"), Job(note=notes.append))
    assert any("30 of 30 images are smaller than 16 px" in note for note in notes)
    assert any("2 of 30 images are of one colour" in note and "--method crossfit" in note for note in notes)


def columns_of(right: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    logits = np.where(np.arange(3) == np.where(right, labels, (labels + 1) % 3)[:, None], 2.0, 0.0)
    return score_columns(logits, labels)


def test_the_best_of_what_the_budget_allows_is_kept() -> None:
    labels, notes = np.arange(90) % 3, []
    right = {name: np.arange(90) < count for name, count in (("cheap", 50), ("same", 53), ("better", 70), ("slow", 90))}
    seconds = {"same": 1.0, "better": 2.0, "slow": 7200.0}

    def candidate(name: str) -> Method[str]:
        estimate = (lambda: seconds[name]) if name in seconds else None
        return Method(name, lambda: (columns_of(right[name], labels), f"by {name}"), estimate)

    job = Job(note=notes.append)
    choice = best_of([candidate(name) for name in right], labels, 10.0, job)
    assert (choice.kept, choice.result) == ("better", "by better")
    assert [row["accuracy"] for row in choice.table] == [0.5556, 0.5889, 0.7778, None]
    assert "0.778" in choice.why and "against cheap 0.556 and same 0.589" in choice.why
    assert "slow would take about 2 h" in choice.why and "slow: not tried" in notes[0]
    assert best_of([candidate("cheap"), candidate("better")], labels, 0.0, job).kept == "cheap"


def test_better_is_more_than_chance() -> None:
    base = np.arange(100) < 50
    assert not clearly_better(base, base)
    assert not clearly_better(np.arange(100) < 51, base) and clearly_better(np.arange(100) < 60, base)
    assert not clearly_better(~base, base)


def test_calibration_error_is_the_gap_between_confidence_and_truth() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 4))
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (rng.random((20_000, 1)) > probs.cumsum(1)[:, :3]).sum(1)
    assert calibration_error(score_columns(logits, labels), labels) < 0.02
    sure = score_columns(np.tile([50.0, 0, 0, 0], (100, 1)), np.arange(100) % 4)
    assert calibration_error(sure, np.arange(100) % 4) == pytest.approx(0.75, abs=1e-6)
    assert np.isnan(calibration_error(score_columns(logits[:2], np.array([-1, -1])), np.array([-1, -1])))


def test_auto_tries_training_where_it_fits(train: Manifest, config: ScoreConfig, tmp_path: Path) -> None:
    auto = config.model_copy(update={"method": "auto", "budget": 1e6, "steps": 40, "folds": 2})
    scored = score_images(train, auto, Scoring(tmp_path / "spool"), Job())
    rows = {row["method"]: row for row in scored.results["methods"]}
    assert set(rows) == {"features", SCRATCH}  # a folder's network is not fine-tuned
    assert all(0 < row["accuracy"] < 1 and row["seconds"] > 0 for row in rows.values())
    kept = scored.results["kept"]
    assert scored.results["method"] == {"features": "features", SCRATCH: "crossfit"}[kept]
    assert scored.used is not None and scored.used.method == scored.results["method"]
    scored.save_scorer(tmp_path / "scorer")
    assert len(Scorer.load(tmp_path / "scorer").models) == 2

    hurried = score_images(train, auto.model_copy(update={"budget": 0.0}), Scoring(tmp_path / "spool"), Job())
    assert hurried.results["kept"] == "features" and hurried.results["methods"][1]["seconds"] is None
    assert "not tried: trained from scratch" in hurried.results["choice"]


def test_fine_tuning_starts_from_the_network_that_sees() -> None:
    settings = trained_settings(ScoreConfig(), 96)
    assert list(settings) == [FINE_TUNED, SCRATCH]
    tuned = settings[FINE_TUNED]
    assert (tuned.model, tuned.pretrained, tuned.image_size, tuned.method) == ("packaged", True, 96, "crossfit")


def test_the_estimate_is_of_the_right_size(train: Manifest, quick: ScoreConfig) -> None:
    import time

    settings, labels = quick.model_copy(update={"steps": 60}), train.column("label").astype(np.int64)
    started = time.perf_counter()
    from dcdm_cli.difficulty.classifier import train_classifier

    train_classifier(train.paths(), labels, 10, settings, 0, "cpu")
    real = time.perf_counter() - started
    expected = training_seconds(train.paths(), labels, 10, settings, 1, 1e9, Job())
    assert real / 5 < expected < 5 * real


@pytest.mark.parametrize("method", ["features", "scratch", "auto"])
def test_a_judge_is_kept_and_says_the_same_again(
    train: Manifest, digits: Digits, config: ScoreConfig, tmp_path: Path, method: str
) -> None:
    shared = {name: getattr(config, name) for name in JudgeConfig.model_fields if name != "method"}
    judge = JudgeConfig.model_validate({**shared, "method": method, "budget": 0.0, "steps": 90})
    fitted = fit_judge(train, judge, 1000, Scoring(tmp_path / "spool"), Job())
    fitted.save(tmp_path / "judge")
    loaded = load_judge(tmp_path / "judge")
    assert len(loaded.models) == 1 and loaded.class_names == NAMES
    found = loaded.measure(digits[0][120:180], digits[1][120:180])
    assert (found.predicted == digits[1][120:180]).mean() > 0.3
    assert fitted.results["method"] == ("scratch" if method == "scratch" else "features")


def test_a_judge_of_too_few_images(
    digits: Digits, config: ScoreConfig, make_manifest: MakeManifest, tmp_path: Path
) -> None:
    few = make_manifest(digits[0][:3], np.arange(3))
    with pytest.raises(UsageError, match="judge's images are too few") as caught:
        fit_judge(few, JudgeConfig(features=config.features), 0, Scoring(tmp_path / "spool"), Job())
    for choice in ("judge.method=scratch", "--judge-fraction", "--test-fraction"):
        assert choice in caught.value.hint
    check_judged(few, JudgeConfig(method="scratch"))
    check_judged(make_manifest(digits[0][:40], digits[1][:40]), JudgeConfig(method="auto"))
