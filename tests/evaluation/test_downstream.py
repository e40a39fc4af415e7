"""Arms, seeds, the ledger, and intervals on known numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from dcdm_cli.data.digits import digit_images
from dcdm_cli.errors import InterruptedRunError
from dcdm_cli.evaluation import downstream as module
from dcdm_cli.evaluation.downstream import NOTHING, Arm, Ledger, Samples, Trial, arm_accuracy, run_arms
from dcdm_cli.run.progress import Job
from dcdm_cli.run.settings import ClassifierConfig

SETTINGS = ClassifierConfig.model_validate(
    {
        "model": "resnet10t", "model_args": {"channels": [8, 12, 16, 32], "stem_width": 8}, "image_size": 32,
        "steps": 60, "batch_size": 16, "lr": 6e-3, "scale": [0.8, 1.0], "hflip": 0.0,
    }
)  # fmt: skip


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Samples, Samples]:
    """Zeros and ones: twelve to train on, forty to test with."""
    folder = tmp_path_factory.mktemp("pair")
    images, labels = digit_images()
    chosen = np.concatenate([np.flatnonzero(labels == digit)[:26] for digit in (0, 1)])
    chosen = chosen.reshape(2, 26).T.ravel()
    paths = [folder / f"{i}.png" for i in range(len(chosen))]
    for path, index in zip(paths, chosen, strict=True):
        Image.fromarray(images[index]).convert("RGB").save(path)
    return Samples(paths[:12], labels[chosen[:12]]), Samples(paths[12:], labels[chosen[12:]])


def test_a_classifier_learns_from_its_arm_and_wrong_images_harm_it(pair: tuple[Samples, Samples]) -> None:
    real, test = pair
    honest = arm_accuracy(real, test, SETTINGS, 2, 0, "cpu")
    assert honest > 0.9
    swapped = Samples([*real.paths] * 3, np.tile(1 - real.labels, 3))
    assert arm_accuracy(real + swapped, test, SETTINGS, 2, 0, "cpu") < honest - 0.3


@pytest.fixture
def accuracies(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, int], float]:
    """Training is replaced by a table (images, seed) -> accuracy, to check the arithmetic on known numbers."""
    table: dict[tuple[int, int], float] = {}
    monkeypatch.setattr(
        module, "arm_accuracy", lambda train, test, config, classes, seed, device: table[len(train), seed]
    )
    return table


def arms(calls: list[tuple[str, int]]) -> list[Arm]:
    def extra(name: str, count: int):
        def make(seed: int) -> Samples:
            calls.append((name, seed))
            return Samples([Path("x")] * count, np.zeros(count, np.int64))

        return make

    return [
        Arm("real", lambda seed: NOTHING, ""),
        Arm("plain", extra("plain", 3), "p"),
        Arm("dcdm", extra("dcdm", 5), "d"),
    ]


def trial(content: str = "data") -> Trial:
    real = Samples([Path("r")] * 10, np.zeros(10, np.int64))
    return Trial(real, real, 2, content)


def run(tmp_path: Path, calls: list[tuple[str, int]], job: Job | None = None, **changes: object) -> dict:
    how = {"arms": arms(calls), "trial": trial(), "config": SETTINGS, "seeds": [0, 1, 2]} | changes
    ledger = Ledger(tmp_path / "ledger.jsonl")
    return run_arms(**how, ledger=ledger, job=job or Job())  # type: ignore[arg-type]


KNOWN = {
    (10, 0): 0.90, (10, 1): 0.92, (10, 2): 0.91,
    (13, 0): 0.91, (13, 1): 0.91, (13, 2): 0.91,
    (15, 0): 0.93, (15, 1): 0.95, (15, 2): 0.95,
}  # fmt: skip


def test_means_intervals_and_paired_differences(tmp_path: Path, accuracies: dict) -> None:
    accuracies |= KNOWN
    made = run(tmp_path, [])
    assert (made["real_images"], made["test_images"], made["seeds"]) == (10, 10, 3)
    real, plain, dcdm = made["arms"]
    assert (real["name"], real["synthetic_images"], real["accuracy"]) == ("real", 0, [0.90, 0.92, 0.91])
    assert real["accuracy_mean"] == pytest.approx(0.91)
    half = stats.t.ppf(0.975, 2) * 0.01 / np.sqrt(3)
    assert real["accuracy_ci95"] == pytest.approx([0.91 - half, 0.91 + half], abs=1e-5)
    assert plain["accuracy_ci95"] == [0.91, 0.91] and dcdm["synthetic_images"] == 5
    paired = {(row["arm"], row["against"]): row for row in made["paired"]}
    assert set(paired) == {("plain", "real"), ("dcdm", "real"), ("dcdm", "plain")}
    difference = np.array([0.03, 0.03, 0.04])
    half = stats.t.ppf(0.975, 2) * difference.std(ddof=1) / np.sqrt(3)
    assert paired["dcdm", "real"]["difference_mean"] == pytest.approx(difference.mean(), abs=1e-5)
    assert paired["dcdm", "real"]["difference_ci95"] == pytest.approx(
        [difference.mean() - half, difference.mean() + half], abs=1e-5
    )


def test_every_arm_and_seed_is_computed_once(tmp_path: Path, accuracies: dict) -> None:
    accuracies |= KNOWN
    calls: list[tuple[str, int]] = []
    first = run(tmp_path, calls)
    assert sorted(calls) == [(name, seed) for name in ("dcdm", "plain") for seed in (0, 1, 2)]
    accuracies.clear()
    assert run(tmp_path, calls) == first and len(calls) == 6


def test_a_stopped_comparison_goes_on_and_a_torn_line_is_redone(tmp_path: Path, accuracies: dict) -> None:
    accuracies |= KNOWN
    calls: list[tuple[str, int]] = []
    with pytest.raises(InterruptedRunError, match="1 of 9 classifiers"):
        run(tmp_path, calls, Job(stop_signal=lambda: "SIGINT"))
    run(tmp_path, calls)
    ledger = tmp_path / "ledger.jsonl"
    lines = ledger.read_text().splitlines()
    assert len(lines) == 9 and {"arm", "seed", "accuracy", "images", "seconds", "key"} == set(json.loads(lines[0]))
    ledger.write_text("\n".join(lines)[:-9])
    calls.clear()
    run(tmp_path, calls)
    assert calls == [("dcdm", 2)]
    accuracies.clear()
    run(tmp_path, calls)  # the line after the torn one is whole
    assert calls == [("dcdm", 2)]


def test_arms_that_differ_in_name_alone_are_computed_once(tmp_path: Path, accuracies: dict) -> None:
    accuracies |= KNOWN
    calls: list[tuple[str, int]] = []
    real, _, dcdm = arms(calls)
    twice = [real, dcdm, replace(dcdm, name="mean 0.5")]
    made = run(tmp_path, calls, arms=twice)
    assert calls == [("dcdm", seed) for seed in (0, 1, 2)]
    assert made["arms"][1]["accuracy"] == made["arms"][2]["accuracy"]
    again = run(tmp_path, calls, arms=[replace(dcdm, name="ours")])  # another experiment, the same ledger
    assert len(calls) == 3 and again["arms"][0]["accuracy"] == made["arms"][1]["accuracy"]


@pytest.mark.parametrize("change", ["data", "classifier", "settings", "key"])
def test_anything_that_matters_is_computed_anew(tmp_path: Path, accuracies: dict, change: str) -> None:
    accuracies |= KNOWN
    calls: list[tuple[str, int]] = []
    dcdm = arms(calls)[2]
    run(tmp_path, calls, arms=[dcdm])
    changes: dict[str, object] = {"arms": [dcdm]}
    if change == "data":
        changes["trial"] = trial("other data")
    elif change == "classifier":
        changes["arms"] = [replace(dcdm, classifier={"mixup": 0.2})]
    elif change == "settings":
        changes["config"] = SETTINGS.model_copy(update={"steps": 61})
    else:
        changes["arms"] = [replace(dcdm, key="other images")]
    run(tmp_path, calls, **changes)
    assert len(calls) == 6


def test_several_processes_give_what_one_gives(tmp_path: Path, pair: tuple[Samples, Samples]) -> None:
    real, test = pair
    quick = SETTINGS.model_copy(update={"steps": 8})
    made = []
    for workers in (1, 2):
        how = {"trial": Trial(real, test, 2, "d"), "config": quick, "seeds": [0, 1], "workers": workers}
        folder = tmp_path / str(workers)
        folder.mkdir()
        made.append(run(folder, [], arms=[Arm("real", lambda seed: NOTHING, "")], **how))
        assert len((folder / "ledger.jsonl").read_text().splitlines()) == 2
    assert made[0] == made[1]
