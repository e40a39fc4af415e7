"""`dcdm generate` with a second classifier that has to see the labels: from the settings to the manifest."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from dcdm_cli.data.manifest import read_manifest
from dcdm_cli.difficulty.classifier import build_classifier, save_classifier
from dcdm_cli.difficulty.label_check import open_label_check
from dcdm_cli.errors import MismatchError, NotFoundError, UsageError
from dcdm_cli.evaluation.experiments import Experiment
from dcdm_cli.generation.finished import finished_batches
from dcdm_cli.generation.samples import SampleTask
from dcdm_cli.generation.worker_start import open_sample_worker
from dcdm_cli.run.progress import Job
from dcdm_cli.run.settings import ClassifierConfig
from dcdm_cli.run.store import Outcome, RunFolder, Stage
from dcdm_cli.stages import generate, probe
from dcdm_cli.stages.adherence import summary
from dcdm_cli.stages.devices import Placement
from dcdm_cli.stages.experiments.arms import named_arms
from dcdm_cli.stages.experiments.sets import GeneratedSets
from dcdm_cli.stages.generate import run_generate, sample_images
from dcdm_cli.stages.label_check import prepare_check
from dcdm_cli.stages.plan import Wishes, write_priced_plan
from dcdm_cli.stages.probe import open_run_pool

from ..generation.fakes import NAMES
from .conftest import Open

NETWORK = {"model": "resnet10t", "model_args": {"channels": [8, 8, 8, 8]}}


def own_file(folder: Path, seed: int = 0, seen: np.ndarray | None = None) -> Path:
    """A classifier of random weights: what it sees has nothing to do with what is asked for. seen: images uint8 [N, H,
    W, 3] among which it shall tell classes apart; otherwise it sees one and the same everywhere."""
    config = ClassifierConfig.model_validate(NETWORK)
    torch.manual_seed(seed)
    network: Any = build_classifier(config, len(NAMES))
    if seen is not None:
        pixels = torch.from_numpy(seen).permute(0, 3, 1, 2) / 127.5 - 1
        with torch.no_grad():
            for _ in range(30):
                network.train()(pixels)
            network.fc.bias -= network.eval()(pixels).mean(0)
    save_classifier(network, folder, NAMES, config)
    file = folder / "own.safetensors"
    (folder / "model.safetensors").replace(file)
    convention = {"image_size": 32, "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0}
    file.with_suffix(".json").write_text(json.dumps({**NETWORK, **convention}))
    return file


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return own_file(tmp_path / "mine")


def column(run: RunFolder) -> list[bool | None]:
    return read_manifest(run.generated / "samples.parquet").table["label_checked"].to_pylist()


def test_the_verdict_is_a_column_a_result_and_in_what_loaders_read(
    session: Open, run: RunFolder, tmp_path: Path
) -> None:
    first = list(sample_images(session()))
    own = own_file(tmp_path / "mine", seen=np.concatenate([batch.images for batch in first]))
    record = run_generate(session(generate__check=str(own), generate__attempts=4))
    manifest = read_manifest(run.generated / "samples.parquet")
    images = np.stack([np.asarray(Image.open(path)) for path in manifest.paths()])
    (folder,) = run.checker.iterdir()
    expected = open_label_check(folder)(images, manifest.column("label"))
    assert column(run) == expected.tolist() and record.results["label_checked"] == expected.mean()
    lines = (run.generated / "train" / "metadata.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["label_checked"] for line in lines) == sorted(expected.tolist())
    assert record.inputs["check"] == folder.name
    plan = record.results["plan"]
    back = [batch.verdict for batch in finished_batches(run.generated, 8, plan)]
    assert sum(int(said.shows.sum()) for said in back if said and said.shows is not None) == expected.sum()
    once = run_generate(session(force=True, generate__check=str(own)))
    assert once.results["label_checked"] < record.results["label_checked"], "lost labels are drawn again"


def test_without_a_check_nobody_has_said_anything(session: Open, run: RunFolder) -> None:
    record = run_generate(session(generate__count=4))
    assert record.results["label_checked"] is None and column(run) == [None] * 4
    assert not run.checker.exists() and "check" not in record.inputs
    file = run.generated / "samples.parquet"
    pq.write_table(pq.read_table(file).drop_columns("label_checked"), file)  # as from before there were checks
    (run.path / "records" / "generate.json").unlink()
    again = run_generate(session(generate__count=4))
    assert again.results["label_checked"] is None and again.results["made_now"] == 0
    for shard in (run.generated / "shards").glob("*.parquet"):
        pq.write_table(pq.read_table(shard).drop_columns("label_checked"), shard)
    assert sum(len(batch.rows) for batch in finished_batches(run.generated, 8, again.results["plan"])) == 4


def test_another_check_makes_other_images(session: Open, run: RunFolder, own: Path) -> None:
    first = run_generate(session(generate__check=str(own), generate__count=4))
    assert run_generate(session(generate__check=str(own), generate__count=4)).started == first.started
    own_file(own.parent, seed=1)  # at the same place
    with pytest.raises(MismatchError, match="holds images of another plan"):
        run_generate(session(generate__check=str(own), generate__count=4))
    with pytest.raises(MismatchError, match="holds images of another plan"):
        run_generate(session(generate__count=4))
    assert len(list(run.checker.iterdir())) == 2


def test_a_plan_for_another_check_is_refused(session: Open, run: RunFolder, own: Path) -> None:
    _, _, file = write_priced_plan(session(generate__check=str(own), generate__count=4), Wishes())
    with pytest.raises(MismatchError, match=r"other sampler settings: check '\w{16}', here None"):
        run_generate(session(), file)
    assert run_generate(session(generate__check=str(own)), file).results["images"] == 4


@pytest.mark.parametrize(
    ("check", "error", "says"),
    [
        ("digits", MismatchError, "the packaged digits classifier cannot check these labels: .*zero"),
        ("gone.onnx", NotFoundError, r"no classifier at gone\.onnx"),
        ("clip", NotFoundError, "cannot load the CLIP model 'nobody/nothing'"),
    ],
)
def test_what_does_not_fit_is_said_before_a_model_is_loaded(
    session: Open, monkeypatch: pytest.MonkeyPatch, check: str, error: type[Exception], says: str
) -> None:
    monkeypatch.setattr(generate, "open_run_engine", lambda *_: pytest.fail("too late"))
    for devices in ((), ("1",)):
        with pytest.raises(error, match=says):
            run_generate(session(generate__check=check, generate__check_model="nobody/nothing", scale__devices=devices))


def test_a_check_that_is_neither_a_name_nor_a_file(session: Open) -> None:
    with pytest.raises(UsageError, match=r"digits, features, clip, or the \.onnx"):
        session(generate__check="feature")
    assert session(generate__check="none").config.generate.check is None


def test_features_learn_from_the_runs_images(session: Open, run: RunFolder, adapter: Path) -> None:
    train = read_manifest(run.samples)
    grey = np.array([40, 120, 200])
    for path, label in zip(train.paths(), train.column("label"), strict=True):
        Image.new("RGB", (32, 32), tuple(int(c) for c in np.roll([grey[label], 90, 20], label))).save(path)
    run.run(Stage("score", {}, {}), lambda: Outcome([], "x"))
    opened = session(generate__check="features", score__feature_size=32)
    folder = prepare_check(opened, Job())
    assert folder is not None and folder.parent == run.checker
    shutil.rmtree(run.cache)
    images = np.stack([np.asarray(Image.open(path)) for path in train.paths()])
    assert open_label_check(folder)(images, train.column("label")).mean() > 0.9
    assert prepare_check(opened, Job()) == folder, "found again"
    assert prepare_check(session(generate__check="features", score__feature_size=48), Job()) != folder


@pytest.mark.parametrize("deliver", [False, True])
def test_workers_ask_the_same_classifier(
    session: Open, run: RunFolder, own: Path, monkeypatch: pytest.MonkeyPatch, deliver: bool
) -> None:
    """deliver: machines without a common disk are sent it."""
    monkeypatch.setattr(probe, "open_pool", lambda session, opener, placement, job: opener("cpu", lambda: False))
    opened = session(generate__check=str(own), generate__attempts=3, generate__per_class=2)
    here = list(sample_images(opened))
    placement = Placement(["cpu"], "ray" if deliver else "local", deliver)
    worker: Any = open_run_pool(opened, placement, Job(), open_sample_worker, score=True)
    rows = [row for batch in here for row in batch.rows]
    (made,) = worker.run(SampleTask(tuple(rows), worker.hello[0].generator))
    shows = [batch.verdict.shows for batch in here if batch.verdict is not None and batch.verdict.shows is not None]
    assert made.verdict.shows.tolist() == np.concatenate(shows).tolist()
    assert (made.images == np.concatenate([batch.images for batch in here])).all()


def test_sets_of_experiments_are_named_by_their_check(session: Open, run: RunFolder, own: Path) -> None:
    arms = tuple(named_arms(("dcdm",)))
    real = read_manifest(run.samples)

    def key(**flags: object) -> str:
        return GeneratedSets(session(**flags), Experiment(name="x", arms=arms), real, Job()).key(arms[0], 0.5, 1)

    before = {key(), key(generate__check=str(own)), key(generate__check="digits")}
    own_file(own.parent, seed=1)
    assert len(before | {key(generate__check=str(own))}) == 4


def test_a_set_of_an_experiment_is_checked(session: Open, run: RunFolder, own: Path) -> None:
    arms = tuple(named_arms(("dcdm",)))
    sets = GeneratedSets(
        session(generate__check=str(own)), Experiment(name="x", arms=arms), read_manifest(run.samples), Job()
    )
    sets.make(arms[0], 0.2, 1)
    share = sets.facts(arms[0], 0.2, 1)["label_checked"]
    assert 0 <= share <= 1 and sets.facts(arms[0], 0.2, 1)["label_checked"] == share


def test_probes_check_labels_as_generation_does(session: Open, run: RunFolder, own: Path) -> None:
    """So that adherence says how many images show their label."""
    opened = session(generate__check=str(own), generate__calibrated=False)
    engine = probe.open_run_engine(opened, run.adapter, Job())
    probed = probe.probe(opened, engine, [0.2, 0.4], 3, Job(), seed=5, calibrated=True)
    assert probed.shows is not None and probed.shows.shape == (6,)
    measured = replace(probed, realised=probed.target)  # this run has no scorer
    assert summary(measured, probed.agrees, NAMES)["label_checked"] == round(float(probed.shows.mean()), 4)
    assert "label_checked" not in summary(replace(measured, shows=None), probed.agrees, NAMES)
