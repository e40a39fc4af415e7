"""`dcdm evaluate` and its other jobs on a small real run: documents, what is refused, what is only said."""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dcdm_cli.commands.evaluate import do_job
from dcdm_cli.console import Console
from dcdm_cli.data.manifest import Manifest, read_manifest, write_manifest
from dcdm_cli.errors import MismatchError, NotFoundError, UsageError
from dcdm_cli.evaluation.experiments import AdapterSpec, find_experiment
from dcdm_cli.run.presets import PRESETS
from dcdm_cli.run.progress import Job
from dcdm_cli.run.store import Outcome, RunFolder, Stage
from dcdm_cli.stages.adherence import adherence_stage
from dcdm_cli.stages.artefacts import run_artefacts, run_filter
from dcdm_cli.stages.atlas import atlas_stage, hardest_classes, run_atlas
from dcdm_cli.stages.caption import run_caption
from dcdm_cli.stages.evaluate import run_evaluate
from dcdm_cli.stages.evaluation_data import checked_data
from dcdm_cli.stages.experiments.generators import prepare_variant, variant_session
from dcdm_cli.stages.experiments.run import experiment_stage
from dcdm_cli.stages.finetune import run_finetune
from dcdm_cli.stages.generate import run_generate
from dcdm_cli.stages.next_plan import run_next_plan
from dcdm_cli.stages.probe import open_run_engine
from dcdm_cli.stages.report import ExperimentFiles
from dcdm_cli.stages.score import run_score

from .conftest import coloured, session_of


@pytest.fixture(scope="module")
def metrics(shared: Path) -> dict:
    return run_evaluate(session_of(shared, evaluate__gpu_hour_price=2.0)).results


def test_the_document_keeps_its_keys_and_has_new_ones(metrics: dict, shared: Path) -> None:
    assert metrics == json.loads((shared / "evaluation" / "metrics.json").read_text())
    assert metrics["schema"] == 1
    assert set(metrics) == {
        "schema", "seconds", "device", "adherence", "downstream", "quality", "cost", "warnings", "agreement",
        "competence",
    }  # fmt: skip
    assert metrics["agreement"]["n"] == metrics["competence"]["judge"]["asked"] == 200
    assert list(metrics["competence"]) == ["scorer", "judge", "downstream"]
    assert metrics["competence"]["downstream"] == metrics["downstream"]["competence"]
    adherence = metrics["adherence"]
    assert adherence["n"] == 20 and [t["n"] for t in adherence["targets"]] == [10, 10]
    assert set(adherence) >= {
        "spearman", "mean_absolute_error", "reachable", "targets_out_of_reach", "judge_accuracy", "frontier"
    }  # fmt: skip
    assert len(adherence["classes"]) == 10 and set(adherence["labels_hold_until"]) == {"real", "generated"}
    (pair,) = metrics["downstream"]["paired"]
    assert set(pair) >= {"difference_mean", "difference_ci95", "seeds", "p_value", "verdict", "seeds_needed"}
    assert metrics["downstream"]["arms"][1]["synthetic_images"] == 20
    assert set(metrics["seconds"]) >= {"score", "caption", "finetune", "generate", "adherence", "downstream"}


def test_quality_is_measured_against_images_that_were_held_out(metrics: dict) -> None:
    quality = metrics["quality"]
    assert quality["images"] == 20 and quality["leakage"]["level"] == "ok"
    rows = {row["images"]: row for row in quality["fidelity"]}
    assert rows["generated"]["reference"] == 997 and rows["real"]["generated"] == 200
    assert rows["real"]["frechet"] < rows["generated"]["frechet"]  # two steps of training make no digits


def test_the_bill_names_its_unit(metrics: dict) -> None:
    cost = metrics["cost"]
    assert {stage["stage"] for stage in cost["stages"]} == {"score", "caption", "finetune", "generate"}
    assert cost["hours"]["CPU-hours"] > 0 == cost["hours"]["GPU-hours"] and cost["money"] is None
    assert cost["energy_wh"] is None and cost["images"] == 20
    loaded = {stage["stage"]: stage["load_seconds"] for stage in cost["stages"]}
    assert loaded["generate"] > 0 and loaded["finetune"] > 0 and loaded["caption"] is None


def test_more_seeds_only_train_what_is_missing(metrics: dict, shared: Path) -> None:
    session = session_of(shared)
    adherence, ledger = session.run.require("adherence"), shared / "evaluation" / "downstream.jsonl"
    before = len(ledger.read_text().splitlines())
    made = run_evaluate(session_of(shared, evaluate__seeds=3)).results
    assert len(ledger.read_text().splitlines()) == before + 2
    assert session.run.require("adherence") == adherence and session.run.require("judge").stage == "judge"
    assert made["downstream"]["arms"][0]["accuracy"][:2] == metrics["downstream"]["arms"][0]["accuracy"]


def test_finished_images_are_looked_at_without_a_generator(metrics: dict, run: Path, capsys) -> None:
    (run / "adapter" / "pytorch_lora_weights.safetensors").rename(run / "hidden")
    with pytest.raises(NotFoundError):
        run_artefacts(session_of(run))
    (run / "hidden").rename(run / "adapter" / "pytorch_lora_weights.safetensors")
    do_job(session_of(run), ("check", None), {})
    assert capsys.readouterr().out.strip().endswith("artefacts.json")
    made = json.loads((run / "evaluation" / "artefacts.json").read_text())
    assert made["adherence"]["n"] == 20 and "downstream" not in made and made["quality"]["images"] == 20
    assert not (run / "evaluation" / "downstream.jsonl").exists() and not (run / "records" / "evaluate.json").exists()
    assert sum(row["real_n"] for row in made["adherence"]["frontier"]) == 20, "as many real images as generated ones"


@pytest.mark.parametrize(
    ("job", "says", "ends"),
    [
        ("run", "accuracy", "report.html"),
        ("filter", "lost labels", "filter.jsonl"),
        ("plan", "hard", "next_plan.parquet"),
        ("atlas", "", "atlas.html"),
        ("check", "adherence", "artefacts.json"),
    ],
)
def test_the_command_shows_what_a_job_found(
    job: str, says: str, ends: str, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    do_job(replace(session_of(shared), console=Console()), (job, None), {})
    shown = capsys.readouterr().out
    assert says in shown.lower() and shown.strip().endswith(ends)
    do_job(replace(session_of(shared), console=Console(as_json=True)), (job, None), {})
    assert isinstance(json.loads(capsys.readouterr().out), dict)


def generated_again(folder: RunFolder) -> None:
    """As if the images that lie there now had been made so."""
    for file in (folder.generated / "shards").glob("*.parquet"):
        rows = pq.read_table(file)
        content = [(folder.generated / name).read_bytes() for name in rows["path"].to_pylist()]
        hashes = pa.array([hashlib.sha256(one).hexdigest() for one in content])
        pq.write_table(rows.set_column(rows.schema.get_field_index("sha256"), "sha256", hashes), file)
    done = folder.require("generate")
    made = Outcome([folder.generated / "samples.parquet"], done.fingerprint, dict(done.results))
    folder.run(Stage("generate", done.config, done.inputs), lambda: made, force=True)


def test_a_filter_lists_and_deletes_nothing(run: Path) -> None:
    images = read_manifest(run / "generated" / "samples.parquet")
    paths, real = images.paths(), read_manifest(run / "samples.parquet")
    Image.new("RGB", (32, 32), (5, 5, 5)).save(paths[0])
    Image.open(real.split("test").paths()[0]).save(paths[1])
    Image.open(real.split("train").paths()[0]).save(paths[2])
    scores = np.full(len(images), 0.5)
    scores[3] = 0.99
    write_manifest(images.with_columns({"measured_difficulty": scores}), run / "generated" / "samples.parquet")
    generated_again(RunFolder(run))
    before = {path: path.read_bytes() for path in paths}
    run_filter(session_of(run))
    lines = [json.loads(line) for line in (run / "evaluation" / "filter.jsonl").read_text().splitlines()]
    reasons = {line["sample_id"]: line["reason"] for line in lines}
    ids = images.column("sample_id")
    assert [reasons.get(ids[i]) for i in range(3)] == ["blank", "near_test", "near_train"]
    assert set(reasons) <= set(ids[:4])  # the others are medium-hard, whatever the judge thinks of them
    kept = read_manifest(run / "evaluation" / "kept.parquet")
    assert len(kept) == 20 - len(lines) and all(path.is_file() for path in kept.paths())
    assert {path: path.read_bytes() for path in paths} == before


def test_the_next_plan_can_be_read_and_asks_for_what_is_wanted(run: Path) -> None:
    from dcdm_cli.generation.plan_file import read_plan

    made = run_next_plan(session_of(run)).results
    plan = read_plan(run / "evaluation" / "next_plan.parquet")
    assert len(plan) == made["images"] == 20 and plan.hash == made["plan"] and made["known_images"] == 20
    targets = np.array(plan.table["target_difficulty"])
    assert targets.min() >= 0 and targets.max() <= 0.8
    # each of thirty is rounded to a tenth
    assert sum(row["easy"] + row["medium"] + row["hard"] for row in made["demand"]) == pytest.approx(20, abs=1.5)
    assert plan.generator == read_plan(run / "generated" / "plan.parquet").generator


def test_generate_evaluate_generate_is_one_pipeline(run: Path) -> None:
    session = replace(session_of(run), given={})  # a finished plan takes no settings of another
    first = run_next_plan(session).results
    before = (run / "evaluation" / "next_plan.parquet").read_bytes()
    with pytest.raises(MismatchError, match="holds images of another plan"):
        run_generate(session, run / "evaluation" / "next_plan.parquet")
    (run / "generated").rename(run / "generated-1")
    made = run_generate(session, run / "evaluation" / "next_plan.parquet")
    assert made.results["plan"] == first["plan"]
    images = read_manifest(run / "generated" / "samples.parquet")
    assert len(images) == 20 and images.column("target_difficulty").max() <= 0.8
    again = run_next_plan(session).results
    assert (first["known_images"], again["known_images"]) == (20, 40)
    assert again["plan"] != first["plan"] and (run / "evaluation" / "next_plan.parquet").read_bytes() != before


def many(run: Path, count: int, **columns: object) -> Manifest:
    """The run's generated images over and over, written as if there were `count` of them."""
    images = read_manifest(run / "generated" / "samples.parquet")
    rows = images.select(np.arange(count) % len(images)).with_columns(columns)
    write_manifest(rows, run / "generated" / "samples.parquet")
    generated_again(RunFolder(run))
    return read_manifest(run / "generated" / "samples.parquet")


def test_the_demos_artefacts_are_looked_at_within_a_minute(run: Path) -> None:
    many(run, 200, measured_difficulty=np.full(200, np.nan))
    net = PRESETS["digits"]["judge"]
    clock = time.process_time()
    run_artefacts(session_of(run, **{f"judge__{key}": value for key, value in net.items()}))
    assert time.process_time() - clock < 60
    made = json.loads((run / "evaluation" / "artefacts.json").read_text())
    assert made["adherence"]["n"] == made["quality"]["images"] == 200


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="memory is read from /proc")
def test_adherence_of_many_files_holds_few_of_them_at_a_time(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dcdm_cli.difficulty.scorer import Measured, Scorer
    from dcdm_cli.evaluation.judge import CHUNK
    from dcdm_cli.stages.artefacts import _adherence
    from dcdm_cli.stages.judge import open_judge

    session, real, held = session_of(run), Scorer.measure, []

    def watched(*arguments: Any, **how: Any) -> Measured:
        found = real(*arguments, **how)
        held.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
        return found

    judge = open_judge(session, read_manifest(run / "samples.parquet"), Job())
    monkeypatch.setattr(Scorer, "measure", watched)
    images = many(run, 16 * CHUNK, measured_difficulty=np.full(16 * CHUNK, 0.5))
    assert _adherence(session, checked_data(session), images, judge, Job())["n"] == 16 * CHUNK
    assert len(held) == 17  # the last are the real ones
    assert max(held[3:]) - held[3] < 16e6  # the pixels of the other 12 chunks are 38 MB


def test_the_atlas_of_two_classes(shared: Path) -> None:
    record = run_atlas(session_of(shared))
    page = (shared / "evaluation" / "atlas.html").read_text()
    assert record.results["classes"] == 2 and page.count("<section") == 2
    # per class: 4 easiest, 3 strips of 2 targets, their nearest real images, 4 hardest
    groups = record.results["groups"]
    typical = [row[kind]["typical"] for row in groups for kind in ("real", "generated") if row[kind]]
    assert {row["features"] for row in groups} == {"judge"} and len(groups) == 2 * 2
    assert (
        page.count("<img") == 2 * (4 + 3 * 2 + 2 + 4) + sum(map(len, typical))
        and "8 easier classes are left out" in page
    )
    assert (shared / "evaluation" / "atlas" / "atlas-000.png").is_file()
    factors = record.results["factors"]
    assert len(factors["real"]) == 10 and factors["real"][0]["n"] == 20 and "generated" in factors
    known = set(read_manifest(shared / "samples.parquet").column("sample_id"))
    assert set(groups[0]["real"]["typical"]) <= known and "group 1, real: " in page


def test_the_hardest_classes_are_shown_in_label_order() -> None:
    scores = [(0, 0.1), (1, 0.9), (2, 0.5), (2, None)]
    rows = [{"path": "x", "label": label, "difficulty": s} for label, s in scores]
    assert hardest_classes(Manifest.from_rows(rows, ["a", "b", "c", "empty"]), 2) == [1, 2]


def rewritten(run: Path, **columns: object) -> None:
    manifest = read_manifest(run / "samples.parquet")
    write_manifest(manifest.with_columns(columns), run / "samples.parquet")


def test_a_test_set_that_overlaps_training_is_cut_or_refused(run: Path) -> None:
    manifest = read_manifest(run / "samples.parquet")
    ids, splits = manifest.column("sample_id").copy(), manifest.column("split").astype(str)
    train, test = ids[splits == "train"], np.flatnonzero(splits == "test")
    copy_of = lambda one, id: f"{one.partition('-')[0]}-{id.partition('-')[2]}"  # noqa: E731 - another name
    ids[test[:5]] = list(map(copy_of, train[:5], ids[test[:5]]))
    rewritten(run, sample_id=ids)
    data = checked_data(session_of(run))
    assert len(data.held_out) == 992 and "leak: 5 of 997 held-out images" in data.warnings[0]
    ids[test] = list(map(copy_of, np.resize(train, len(test)), ids[test]))
    rewritten(run, sample_id=ids)
    with pytest.raises(UsageError, match="every held-out image is also a training image"):
        checked_data(session_of(run))


def test_missing_splits_classes_and_scorer_are_named(run: Path) -> None:
    splits = read_manifest(run / "samples.parquet").column("split").astype(str)
    labels = read_manifest(run / "samples.parquet").column("label")
    rewritten(run, split=np.where(splits == "test", "train", splits))
    with pytest.raises(UsageError, match="has no test images to measure on"):
        checked_data(session_of(run))
    rewritten(run, split=np.where((splits == "train") & (labels > 0), "judge", splits))
    with pytest.raises(UsageError, match="at least two classes"):
        checked_data(session_of(run))
    few = np.flatnonzero((splits == "train") & (labels == 3))[2:]
    cut = splits.copy()
    cut[few] = "judge"
    rewritten(run, split=cut)
    assert "1 classes have fewer than 5 training images (3)" in checked_data(session_of(run)).warnings[0]
    (run / "scorer").rename(run / "gone")
    with pytest.raises(UsageError, match="needs a scorer"):
        checked_data(session_of(run))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("share", "says"), [(0.01, "there are no images for the judge"), (0.2, "3 of 3 classes, 1 at most of a class")]
)
def test_without_a_judge_the_rest_is_measured_and_what_is_left_out_is_said(
    share: float, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    asked = {"data__source": str(coloured(tmp_path / "images", 3, 20)), "data__test_fraction": 0.3}
    asked |= {"data__judge_fraction": share, "score__method": "features", "judge__method": "features"}
    asked |= {"evaluate__features": "packaged", "downstream__at_chance": "warn"}
    talking = replace(session_of(run, **asked), console=Console())
    run_score(talking)
    scored = " ".join(capsys.readouterr().err.split())
    assert "dcdm evaluate: it will go on without a judge" in scored and says in scored
    for stage in (run_caption, run_finetune, run_generate):
        stage(session_of(run, **asked))
    with pytest.raises(UsageError, match="cannot be compared in the judge's features without a judge"):
        run_evaluate(session_of(run, **{**asked, "evaluate__features": "judge"}))
    capsys.readouterr()
    do_job(talking, ("run", None), {})
    shown = capsys.readouterr()
    said = " ".join(shown.err.split())
    assert "evaluated without a judge" in said and says in said
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text())
    assert metrics["agreement"] is None and list(metrics["competence"]) == ["scorer", "downstream"]
    assert metrics["adherence"]["n"] == 20 and "frontier" not in metrics["adherence"]
    assert metrics["quality"]["label_agreement"] is None and metrics["quality"]["fidelity"]
    assert [text for text in metrics["warnings"] if says in text]
    for gone in ("label agreement", "frontier", "err on the same", "sees the label", "label is seen"):
        assert gone not in shown.out.lower(), "no column and no sentence rests on what nobody said"
    page = (run / "evaluation" / "report.html").read_text()
    assert page.count("Evaluated without a judge") == 1 and "sees the label" not in page
    assert not (run / "evaluation" / "figures" / "frontier.png").exists()
    do_job(talking, ("check", None), {})
    assert "label agreement" not in capsys.readouterr().out
    assert json.loads((run / "evaluation" / "artefacts.json").read_text())["adherence"]["n"] == 20
    do_job(talking, ("filter", None), {})
    assert "nothing is said of labels" in " ".join(capsys.readouterr().out.split())


def test_a_signature_that_is_not_as_exporting_left_it_is_not_believed(run: Path) -> None:
    """It has the hashes of what is held against it."""
    folder = RunFolder(run)
    folder.export.mkdir()
    signature = folder.export / "signature.json"
    signature.write_text("{}")
    folder.run(Stage("export", {}, {}), lambda: Outcome([signature], ""))
    signature.write_text("{ }")
    with pytest.raises(MismatchError, match=r"signature\.json is damaged") as caught:
        open_run_engine(session_of(run), folder.adapter, Job())
    assert "dcdm export --force" in caught.value.hint


def test_a_run_of_other_data_is_refused_and_an_old_adapter_noted(run: Path) -> None:
    record = json.loads((run / "records" / "finetune.json").read_text())
    (run / "records" / "finetune.json").write_text(json.dumps({**record, "inputs": {"score": "older"}}))
    assert "the adapter is stale (score was made again since)" in checked_data(session_of(run)).warnings[0]
    config = json.loads((run / "adapter" / "config.json").read_text())
    names = [*config["class_names"][:-1], "ten"]
    (run / "adapter" / "config.json").write_text(json.dumps({**config, "class_names": names}))
    with pytest.raises(MismatchError, match="class 9 is 'ten' there and '9' here"):
        checked_data(session_of(run))


def test_images_of_other_classes_are_refused(run: Path) -> None:
    images = read_manifest(run / "generated" / "samples.parquet")
    other = Manifest(images.table, ("a",) * 10, images.root)
    write_manifest(other, run / "generated" / "samples.parquet")
    generated_again(RunFolder(run))
    with pytest.raises(MismatchError, match="generated images are of other classes"):
        run_artefacts(session_of(run))


def test_an_adapter_with_other_sampler_settings_is_calibrated_for_itself(run: Path) -> None:
    session = session_of(run, calibrate__enabled=True)
    spec = AdapterSpec(generate={"difficulty_guidance": 3.0})
    own = variant_session(session, "strong", spec)
    prepare_variant(own, spec, Job())
    reason = own.run.require("calibration").results["reason"]  # two steps of training may teach nothing
    assert (own.run.adapter / "calibration.json").is_file() == (reason == "")
    prepare_variant(own, spec, Job())
    assert variant_session(session, "ours", AdapterSpec()).run is session.run
    assert variant_session(session, "../a / b", spec).run.path.parent == own.run.path.parent


def test_captions_of_ones_own_suffice_for_evaluations(run: Path) -> None:
    (run / "records" / "caption.json").unlink()
    session = session_of(run)
    experiment = find_experiment("controls")
    files = ExperimentFiles(session.run.evaluation, experiment.name)
    for stage in (adherence_stage(session), experiment_stage(session, experiment, files)):
        assert "score" in stage.inputs and "caption" not in stage.inputs


def test_another_few_step_lora_makes_an_atlas_stale(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = []
    for identity in ("one", "another"):
        monkeypatch.setattr("dcdm_cli.stages.atlas.image_input", lambda session: {"extra_lora": identity})  # noqa: B023
        stages.append(atlas_stage(session_of(run)))
    assert stages[0].inputs != stages[1].inputs
