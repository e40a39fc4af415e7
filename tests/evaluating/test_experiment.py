"""Experiments from end to end: arms, adapters, sets and documents of a small real run."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load

from dcdm_cli.data.manifest import read_manifest
from dcdm_cli.errors import InterruptedRunError, MismatchError, NotFoundError, UsageError
from dcdm_cli.evaluation.experiments import BUILT_IN_ADAPTERS, ArmSpec, Experiment, find_experiment, parse_experiment
from dcdm_cli.generation.engine import open_engine
from dcdm_cli.model.adapter import adapter_hash
from dcdm_cli.run.progress import Job
from dcdm_cli.run.session import Session
from dcdm_cli.stages.artefacts import run_compare
from dcdm_cli.stages.evaluation_data import checked_data
from dcdm_cli.stages.experiments import generators
from dcdm_cli.stages.experiments.arms import ARMS
from dcdm_cli.stages.experiments.generators import prepare_variant, variant_session
from dcdm_cli.stages.experiments.named_sets import described
from dcdm_cli.stages.experiments.run import run_experiment
from dcdm_cli.stages.experiments.sets import GeneratedSets
from dcdm_cli.stages.export import run_export
from dcdm_cli.stages.generate import run_generate

from .conftest import forced, session_of

CONTROLS = """
about = "everything at once"
ratios = [0.1, 0.2]
axis = "ratio"
controls = ["plain"]
[[arms]]
name = "real"
source = "none"
[[arms]]
name = "upsampled"
source = "upsampled"
[[arms]]
name = "augmented"
source = "augmented"
[[arms]]
name = "plain"
adapter = "plain"
attempts = 1
[[arms]]
name = "shuffled"
adapter = "shuffled"
[[arms]]
name = "no encoder"
adapter = "no-encoder"
calibrated = false
[[arms]]
name = "dcdm"
[[arms]]
name = "the same again"
"""


@pytest.fixture(scope="module")
def document(experimented: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    file = tmp_path_factory.mktemp("toml") / "all of it.toml"
    file.write_text(CONTROLS)
    record, place = run_experiment(session_of(experimented), str(file))
    assert place.document.name == "all-of-it.json" and json.loads(place.document.read_text()) == record.results
    return record.results


def arm(document: dict, cell: int, name: str) -> dict:
    return next(row for row in document["cells"][cell]["arms"] if row["name"] == name)


def test_every_kind_of_arm_gets_its_images(document: dict) -> None:
    assert [cell["ratio"] for cell in document["cells"]] == [0.1, 0.2] and len(document["seeds"]) == 2
    for cell, count in ((0, 20), (1, 40)):
        images = {row["name"]: row["synthetic_images"] for row in document["cells"][cell]["arms"]}
        assert images == {
            "real": 0, "augmented": 0, "upsampled": count, "plain": count, "shuffled": count, "no encoder": count,
            "dcdm": count, "the same again": count,
        }  # fmt: skip
    assert arm(document, 0, "real")["accuracy"] == arm(document, 1, "real")["accuracy"]
    assert arm(document, 0, "real")["accuracy"] != arm(document, 0, "augmented")["accuracy"]
    made = arm(document, 0, "dcdm")
    assert 0 <= made["set_realised_mean"] <= 1 and made["set_seconds"] > 0 and made["set_unit"] == "CPU-hours"
    assert made["difficulty"] == "normal:0.5,0.1" and arm(document, 0, "real")["difficulty"] is None


def test_comparisons_and_the_crossing_are_there(document: dict) -> None:
    pairs = {(row["arm"], row["against"]) for row in document["cells"][1]["paired"]}
    assert {("dcdm", "real"), ("dcdm", "plain"), ("plain", "real"), ("dcdm", "shuffled")} <= pairs
    crossing = document["crossings"]["plain"]
    assert crossing["control"]["images"] in (20, 40)
    assert crossing["before_seconds"]["control"] > 0 < crossing["before_seconds"]["ours"]
    assert set(document["preparation_seconds"]) >= {"score", "caption", "finetune"}


@pytest.mark.slow
def test_where_the_run_is_exported_its_rival_is_too_and_pays_for_it(run: Path, tmp_path: Path) -> None:
    session, file = session_of(run), tmp_path / "sweep.toml"
    run_export(session)
    arms = ('name = "real"\nsource = "none"', 'name = "plain"\nadapter = "plain"\nattempts = 1', 'name = "dcdm"')
    tables = "".join(f"[[arms]]\n{arm}\n" for arm in arms)
    file.write_text(f'axis = "ratio"\nratios = [0.1]\ncontrols = ["plain"]\n{tables}')
    found = run_experiment(session, str(file))[0].results
    rival = variant_session(session, "plain", BUILT_IN_ADAPTERS["plain"]).run
    engine = open_engine(rival.adapter, session.config.generate, "cpu", export=rival.export)
    assert engine.denoiser.name in ("openvino", "onnxruntime")
    paid = sum(record.seconds for record in map(rival.require, ("caption", "finetune", "export")))
    assert found["crossings"]["plain"]["before_seconds"]["control"] == pytest.approx(paid, abs=0.01)
    assert found["preparation_seconds"]["export"] == session.run.require("export").seconds


@pytest.mark.slow
def test_arms_that_draw_otherwise_share_an_adapter(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Choosing a strength draws as often as the run does, not as an arm does: else each arm would train it anew."""
    trained, fine_tune = [], generators.fine_tune

    def counted(session: Session, *rest: Any) -> Any:
        trained.append(session.run.path.name)
        return fine_tune(session, *rest)

    monkeypatch.setattr(generators, "fine_tune", counted)
    probed = {"finetune__strength": "auto", "strength__checkpoints": [1, 2], "strength__lora_scales": [1.0]}
    probed |= {"strength__guidance": [[1.5, 1.5]], "strength__probe_budget": 40}
    file = tmp_path / "draws.toml"
    arms = "".join(f'[[arms]]\nname = "{n} draws"\nadapter = "plain"\nattempts = {n}\n' for n in (1, 2))
    file.write_text(f'seeds = 1\nratios = [0.1]\nbaseline = "real"\n[[arms]]\nname = "real"\nsource = "none"\n{arms}')
    run_experiment(session_of(run, **probed), str(file))
    assert len(trained) == 1 and trained[0].startswith("plain-")


def test_adapters_are_trained_once_and_sets_shared_by_name(document: dict, experimented: Path) -> None:
    evaluation = experimented / "evaluation"
    assert {p.name.rsplit("-", 1)[0] for p in (evaluation / "adapters").iterdir()} == {
        "plain", "shuffled", "no-encoder"
    }  # fmt: skip
    assert not list(evaluation.glob("adapters/plain-*/adapter/difficulty_encoder.safetensors"))
    ours = (experimented / "adapter" / "pytorch_lora_weights.safetensors").read_bytes()
    (copied,) = evaluation.glob("adapters/no-encoder-*/adapter/pytorch_lora_weights.safetensors")
    assert copied.read_bytes() == ours
    # four generators, two seeds, one band per ratio; "the same again" has none
    assert len(list((evaluation / "sets").iterdir())) == 4 * 2 * 2
    assert arm(document, 0, "dcdm")["accuracy"] == arm(document, 0, "the same again")["accuracy"]
    keys = [json.loads(line)["key"] for line in (evaluation / "downstream.jsonl").read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 2 * (2 + 2 * 5)  # real and augmented once, five others at two ratios


def test_page_and_figures_are_written(document: dict, experimented: Path) -> None:
    folder = experimented / "evaluation" / "experiments"
    assert sorted(p.name for p in (folder / "all-of-it").iterdir()) == ["differences.png", "ratio.png"]
    page = (folder / "all-of-it.html").read_text()
    assert "everything at once" in page and "the same again" in page and "<script" not in page


def test_another_experiment_finds_what_is_there(document: dict, experimented: Path, tmp_path: Path) -> None:
    before = (experimented / "evaluation" / "downstream.jsonl").read_text()
    file = tmp_path / "again.toml"
    file.write_text(
        'seeds = 2\n[[arms]]\nname = "x"\nratio = 0.2\n[[arms]]\nname = "y"\nratio = 0.1\n'
        '[[arms]]\nname = "real"\nsource = "none"\n'
    )
    record, _ = run_experiment(session_of(experimented), str(file))
    assert (experimented / "evaluation" / "downstream.jsonl").read_text() == before
    found = [row["accuracy"] for row in record.results["cells"][0]["arms"]]
    assert found[:2] == [arm(document, cell, "dcdm")["accuracy"] for cell in (1, 0)]
    again, _ = run_experiment(session_of(experimented), str(file))
    assert again.started == record.started  # skipped


def sets_of(folder: Path, *arms: ArmSpec, ratios: tuple[float, ...] = ()) -> GeneratedSets:
    session = session_of(folder)
    return GeneratedSets(session, Experiment(name="x", arms=arms, ratios=ratios), checked_data(session).real, Job())


def test_a_set_of_a_smaller_ratio_is_part_of_the_larger(document: dict, experimented: Path) -> None:
    sets = sets_of(experimented, ARMS["dcdm"], ratios=(0.2, 0.1))
    small, large = (sets.make(ARMS["dcdm"], ratio, document["seeds"][0]) for ratio in (0.1, 0.2))
    assert set(small.paths) < set(large.paths) and (len(small), len(large)) == (20, 40)
    assert np.bincount(small.labels).tolist() == [2] * 10 and np.bincount(large.labels).tolist() == [4] * 10
    other = sets.make(ARMS["dcdm"], 0.1, document["seeds"][1])
    assert not set(other.paths) & set(small.paths)
    facts = [sets.facts(ARMS["dcdm"], ratio, document["seeds"][0]) for ratio in (0.1, 0.2)]
    assert [row["images"] for row in facts] == [20, 40] and facts[0]["seconds"] < facts[1]["seconds"]
    assert sets.facts(ARMS["dcdm"], 0.3, document["seeds"][0]) == {}  # its last band was never made


def test_arms_of_one_generator_have_targets_of_their_own(experimented: Path) -> None:
    """The engine is opened once; what it is asked for is each arm's own."""
    easy, hard = (ArmSpec(name=name, difficulty=target) for name, target in (("easy", "0.1"), ("hard", "0.7")))
    sets = sets_of(experimented, easy, hard)
    for arm, target in ((easy, 0.1), (hard, 0.7), (easy, 0.1)):
        sets.make(arm, 0.1, 11)
        folder = experimented / "evaluation" / "sets" / sets.key(arm, 0.1, 11)
        asked = read_manifest(folder / "samples.parquet").column("target_difficulty")
        assert asked == pytest.approx(np.full(len(asked), target))


def test_seeds_take_turns_with_adapters_of_their_own(experimented: Path) -> None:
    dcdm, session = ARMS["dcdm"], session_of(experimented)
    experiment = Experiment(name="x", arms=(dcdm,), fresh_adapters=2)
    sets = GeneratedSets(session, experiment, checked_data(session).real, Job())
    assert sets.by_adapter([11, 12, 13, 14]) == [12, 14, 11, 13]
    own, other = sets._session(dcdm, 12).run, sets._session(dcdm, 11).run
    assert own.path == experimented and sets._session(dcdm, 13).run.path == other.path != own.path
    assert len(sets.make(dcdm, 0.1, 11)) == 20
    assert other.require("finetune").config["seed"] == own.require("finetune").config["seed"] + 1
    assert adapter_hash(other.adapter) != adapter_hash(own.adapter)
    one = sets_of(experimented, dcdm)
    assert one.key(dcdm, 0.1, 12) == sets.key(dcdm, 0.1, 12) and one.key(dcdm, 0.1) != sets.key(dcdm, 0.1)


@pytest.mark.parametrize("name", ["plain", "no-encoder"])
def test_weights_of_its_own_that_have_changed_are_made_again(document: dict, experimented: Path, name: str) -> None:
    """Fine-tuned or copied: no set is made from what is there instead."""
    spec = BUILT_IN_ADAPTERS[name]
    session = variant_session(session_of(experimented), name, spec)
    weights = session.run.adapter / "pytorch_lora_weights.safetensors"
    right, content = load(weights.read_bytes()), weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    prepare_variant(session, spec, Job())
    found = load(weights.read_bytes())
    assert found.keys() == right.keys() and all(torch.equal(found[key], right[key]) for key in right)


def test_a_single_ratio_is_made_in_one_go(document: dict, experimented: Path) -> None:
    seed = document["seeds"][0]
    swept, single = (sets_of(experimented, ARMS["dcdm"], ratios=ratios) for ratios in ((0.1, 0.2), (0.2,)))
    assert single.key(ARMS["dcdm"], 0.2, seed) != swept.key(ARMS["dcdm"], 0.2, seed)
    made = single.make(ARMS["dcdm"], 0.2, seed)
    assert np.bincount(made.labels).tolist() == [4] * 10 and len({path.parents[2] for path in made.paths}) == 1
    again = ArmSpec(name="called otherwise")
    assert single.key(again, 0.2, seed) == single.key(ARMS["dcdm"], 0.2, seed)
    assert single.key(ARMS["dcdm"], 0.1, seed) == swept.key(ARMS["dcdm"], 0.1, seed)  # a sweep's first band


def test_a_set_whose_facts_were_not_written_is_measured_again(experimented: Path) -> None:
    sets = sets_of(experimented, ARMS["dcdm"])
    sets.make(ARMS["dcdm"], 0.1, 7)
    whole = sets.facts(ARMS["dcdm"], 0.1, 7)
    (experimented / "evaluation" / "sets" / sets.key(ARMS["dcdm"], 0.1, 7) / "facts.json").unlink()
    assert sets.facts(ARMS["dcdm"], 0.1, 7) == {**whole, "seconds": None}


@pytest.mark.parametrize("name", ["samples.parquet", "plan.parquet", "shards/00000.parquet", "shards/00000.json"])
def test_a_set_that_has_changed_is_not_worked_with(experimented: Path, name: str) -> None:
    sets = sets_of(experimented, ARMS["dcdm"])
    made = sets.make(ARMS["dcdm"], 0.1, 8)
    folder = experimented / "evaluation" / "sets" / sets.key(ARMS["dcdm"], 0.1, 8)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(MismatchError, match=f"{folder}.*") as caught:
        sets_of(experimented, ARMS["dcdm"]).make(ARMS["dcdm"], 0.1, 8)
    assert caught.value.hint.startswith(f"remove {folder}")
    shutil.rmtree(folder)
    again = sets_of(experimented, ARMS["dcdm"]).make(ARMS["dcdm"], 0.1, 8)
    assert len(again) == len(made) and again.labels.tolist() == made.labels.tolist()


def test_bands_are_the_ratios_that_arms_like_it_ask_for(experimented: Path) -> None:
    half, plain = ArmSpec(name="half", ratio=0.5), ARMS["plain"]
    sets = sets_of(experimented, ARMS["dcdm"], half, plain, ratios=(1.0, 0.25))
    assert sets._ratios(ARMS["dcdm"], 1.0) == [0.25, 0.5, 1.0] and sets._ratios(half, 0.5) == [0.25, 0.5]
    assert sets._ratios(plain, 1.0) == [0.25, 1.0] and sets._ratios(plain, 0.25) == [0.25]
    assert sets_of(experimented, plain)._ratios(plain, 0.1) == [0.1]


def test_rounds_are_planned_from_what_is_hard(experimented: Path, tmp_path: Path) -> None:
    file = tmp_path / "rounds.toml"
    file.write_text('seeds = 1\nfocus = "loop"\n[[arms]]\nname = "loop"\nrounds = 2\nratio = 0.1\n')
    record, _ = run_experiment(session_of(experimented), str(file))
    (row,) = record.results["cells"][0]["arms"]
    assert row["synthetic_images"] == 20 and row["difficulty"] == "plan, 2 rounds"


@pytest.mark.slow
def test_the_adherence_experiment_has_both_sides_of_calibration(experimented: Path) -> None:
    record, place = run_experiment(session_of(experimented), "adherence")
    document = record.results
    assert set(document["adherence"]) == {"calibrated", "uncalibrated"}
    assert document["adherence"]["calibrated"]["n"] == 20 and len(document["adherence"]["calibrated"]["classes"]) == 10
    assert {name: part["n"] for name, part in document["densities"].items()} == {
        "real": 997, "plain LoRA": 10, "dcdm": 10
    }  # fmt: skip
    assert {p.name for p in place.figures.iterdir()} == {
        "densities.png", "calibrated.png", "uncalibrated.png", "classes.png"
    }  # fmt: skip


SETS = """
baseline = "real"
focus = "harder"
seeds = 2
[[arms]]
name = "real"
source = "none"
[[arms]]
name = "first"
set = "generated"
[[arms]]
name = "harder"
set = "hard"
"""


@pytest.mark.slow
def test_sets_of_the_run_are_compared_by_accuracy_and_by_quality(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "sets.toml"
    file.write_text(SETS)
    with pytest.raises(NotFoundError, match="no finished generated set 'hard'") as refused:
        run_experiment(session_of(run), str(file))
    assert "dcdm generate" in refused.value.hint and "--name hard" in refused.value.hint
    opened = session_of(run, generate__difficulty="fixed:0.5", generate__count=10)
    run_generate(replace(opened, run=opened.run.with_images("hard")))
    record, place = run_experiment(session_of(run), str(file))
    arms = {row["name"]: row for row in record.results["cells"][0]["arms"]}
    assert {name: row["synthetic_images"] for name, row in arms.items()} == {"real": 0, "first": 20, "harder": 10}
    assert arms["harder"]["set"] == "hard" and arms["harder"]["difficulty"] == "of set hard"
    made = read_manifest(run / "sets" / "hard" / "samples.parquet")
    assert arms["harder"]["set_realised_mean"] == pytest.approx(np.mean(made.column("measured_difficulty")), abs=1e-3)
    assert arms["real"]["accuracy"] != arms["first"]["accuracy"]
    assert {(pair["arm"], pair["against"]) for pair in record.results["cells"][0]["paired"]} == {
        ("first", "real"), ("harder", "real"), ("harder", "first"),
    }  # fmt: skip
    again, _ = run_experiment(session_of(run), str(file))
    assert again.started == record.started and not (run / "evaluation" / "sets").exists(), "nothing was generated"
    assert "made on" in place.page.read_text("utf-8")
    found = run_compare(session_of(run))
    assert list(found) == ["generated", "hard"] and found["hard"]["quality"]["images"] == 10
    assert json.loads((run / "evaluation" / "sets.json").read_text("utf-8"))["sets"] == found
    other = replace(opened, force=True).with_settings(generate={"count": 5})
    run_generate(replace(other, run=opened.run.with_images("hard")))
    renewed, _ = run_experiment(session_of(run), str(file))
    assert arm(renewed.results, 0, "harder")["synthetic_images"] == 5, "another set of that name is another experiment"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[[arms]]\nname = "a"\nset = "hard"\nratio = 0.5', "takes the images of the set 'hard' as they are"),
        ('kind = "adherence"\n[[arms]]\nname = "a"\nset = "hard"', "makes its own images"),
    ],
)
def test_what_cannot_be_said_of_a_set_that_is_there(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_experiment(text, "x.toml", "x")


def test_experiments_of_before_arms_could_name_a_set_are_not_made_again() -> None:
    assert all("set" not in arm for arm in described(find_experiment("controls"))["arms"])


def test_a_validation_run_does_not_touch_the_test_images(experimented: Path, tmp_path: Path) -> None:
    file = tmp_path / "choose.toml"
    file.write_text('seeds = 1\n[[arms]]\nname = "real"\nsource = "none"\n')
    record, _ = run_experiment(session_of(experimented, evaluate__holdout="validation"), str(file))
    assert record.results["tested_on"] == "validation" and record.results["cells"][0]["test_images"] == 600


def test_a_stopped_experiment_goes_on(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dcdm_cli.stages import jobs

    file = tmp_path / "two.toml"
    file.write_text('seeds = 2\n[[arms]]\nname = "real"\nsource = "none"\n')
    ledger = run / "evaluation" / "downstream.jsonl"
    monkeypatch.setattr(jobs, "asked_to_stop", lambda: "SIGTERM" if ledger.is_file() else None)
    with pytest.raises(InterruptedRunError, match="1 of 2 classifiers"):
        run_experiment(session_of(run), str(file))
    monkeypatch.setattr(jobs, "asked_to_stop", lambda: None)
    first = ledger.read_text()
    run_experiment(session_of(run), str(file))
    assert ledger.read_text().startswith(first) and len(ledger.read_text().splitlines()) == 2


def test_classifiers_that_fit_no_image_are_refused(experimented: Path, tmp_path: Path) -> None:
    file = tmp_path / "big.toml"
    file.write_text('[[arms]]\nname = "real"\nsource = "none"\n[[classifiers]]\nname = "x"\nsides = [64, 99]\n')
    with pytest.raises(UsageError, match="no classifier for images of 32 pixels"):
        run_experiment(session_of(experimented), str(file))
    file.write_text(
        '[[arms]]\nname = "r"\nsource = "none"\n[[arms]]\nname = "a"\nadapter = "g"\n'
        "[adapters.g]\ngenerate = { stpes = 3 }\n"
    )
    with pytest.raises(UsageError, match="stpes"):
        run_experiment(forced(session_of(experimented)), str(file))
