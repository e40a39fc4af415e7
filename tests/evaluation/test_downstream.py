"""Arms, seeds, the ledger, and intervals on known numbers."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from dcdm_cli.data.digits import digit_images
from dcdm_cli.data.images import DecodeOptions, decode_options, set_decode_options
from dcdm_cli.difficulty.fitting import PROGRESS as TRAINING
from dcdm_cli.difficulty.fitting import Keep
from dcdm_cli.errors import InterruptedRunError
from dcdm_cli.evaluation import downstream as module
from dcdm_cli.evaluation.downstream import (
    NOTHING,
    Arm,
    Result,
    Samples,
    Trial,
    TrialLedger,
    arm_accuracy,
    arm_result,
    harder_half,
    run_arms,
)
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

    def known(train: Samples, trial: Trial, config: object, seed: int, device: str, keep: object) -> Result:
        accuracy = table[len(train), seed]
        return Result(accuracy, round(2 * (1 - accuracy), 6), round(accuracy - 0.1, 6))

    monkeypatch.setattr(module, "arm_result", known)
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
    ledger = TrialLedger(tmp_path / "ledger.jsonl", print)
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


def test_how_long_all_classifiers_take_is_said_after_the_first_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, said, shown = iter(range(10_000)), list[str](), set[str]()
    monkeypatch.setattr("dcdm_cli.pace.time.monotonic", lambda: float(next(clock)))

    def slow(train: Samples, trial: Trial, config: ClassifierConfig, *rest: object) -> Result:
        for done in range(1, config.steps + 1):
            rest[-1].job.progress("training classifier", done, config.steps)  # type: ignore[attr-defined]
        return Result(0.5, 1.0, 0.5)

    monkeypatch.setattr(module, "arm_result", slow)
    run(tmp_path, [], Job(note=said.append, progress=lambda what, done, total: shown.add(what)))
    assert said == ["downstream: about 9 min for 9 classifiers, by the first steps"]
    assert shown == {"downstream classifiers"}


def test_a_network_tells_its_steps(pair: tuple[Samples, Samples]) -> None:
    told: list[tuple[str, int, int]] = []
    keep = Keep(Job(progress=lambda *one: told.append(one)))
    arm_result(pair[0], Trial(*pair, 2, ""), SETTINGS.model_copy(update={"steps": 3}), 0, "cpu", keep)
    assert [one for one in told if one[0] == TRAINING] == [(TRAINING, step, 3) for step in (1, 2, 3)]


def test_an_accuracy_that_somebody_changed_is_measured_again(
    tmp_path: Path, accuracies: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    accuracies |= KNOWN
    before = run(tmp_path, [])
    ledger = tmp_path / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace('"accuracy": 0.9,', '"accuracy": 0.999,'))
    made = run(tmp_path, [])
    assert made["arms"] == before["arms"] and "0.999" not in ledger.read_text()
    assert "do not say what was written (line 1)" in capsys.readouterr().out


def test_log_loss_and_the_harder_half_are_compared_like_accuracy(tmp_path: Path, accuracies: dict) -> None:
    """With the sign of log-loss: less is better."""
    accuracies |= KNOWN
    made = run(tmp_path, [])
    real = made["arms"][0]
    assert real["log_loss"] == [0.2, 0.16, 0.18] and real["log_loss_mean"] == pytest.approx(0.18)
    assert real["hard_accuracy_mean"] == pytest.approx(0.81) and real["hard_accuracy_ci95"] is not None
    key = ("dcdm", "real")
    by = {
        measure: {(row["arm"], row["against"]): row for row in made[name]}[key]
        for measure, name in (("accuracy", "paired"), ("loss", "paired_log_loss"), ("hard", "paired_hard_accuracy"))
    }
    assert by["hard"]["difference_mean"] == by["accuracy"]["difference_mean"] == pytest.approx(0.1 / 3, abs=1e-5)
    assert by["loss"]["difference_mean"] == pytest.approx(-0.2 / 3, abs=1e-5)
    assert {row["verdict"] for row in by.values()} == {"points to better"}


def test_a_classifier_is_measured_in_three_ways(pair: tuple[Samples, Samples]) -> None:
    real, test = pair
    harder = harder_half(np.linspace(0, 1, len(test)))
    assert harder.sum() == len(test) // 2 and not harder[0] and harder[-1]
    how = (SETTINGS.model_copy(update={"steps": 8}), 0, "cpu")
    whole = arm_result(real, Trial(real, test, 2, ""), *how)
    halves = [arm_result(real, Trial(real, test, 2, "", harder=half), *how) for half in (harder, ~harder)]
    assert whole.hard_accuracy is None and {half.accuracy for half in halves} == {whole.accuracy}
    hard = [half.hard_accuracy for half in halves]
    assert np.mean([value for value in hard if value is not None]) == pytest.approx(whole.accuracy)
    assert 0 < whole.log_loss < 5


def test_the_harder_half_takes_unknown_difficulties_last() -> None:
    assert harder_half(np.array([np.nan, 0.2, 0.9, 0.2, 0.5])).tolist() == [False, False, True, False, True]
    assert harder_half(np.array([0.3, 0.3, 0.3, 0.3])).tolist() == [True, True, False, False]


def test_a_stop_within_a_classifier_is_heard(tmp_path: Path, pair: tuple[Samples, Samples]) -> None:
    real, test = pair
    config, clock = SETTINGS.model_copy(update={"steps": 100_000}), time.monotonic()
    how = {"arms": [Arm("real", lambda seed: NOTHING, "")], "trial": Trial(real, test, 2, "d"), "config": config}
    job = Job(stop_signal=lambda: "SIGINT" if time.monotonic() - clock > 1 else None)
    with pytest.raises(InterruptedRunError, match=r"step \d+ of 100000") as caught:
        run(tmp_path, [], job, seeds=[0, 1], **how)
    assert caught.value.code == 130 and not (tmp_path / "ledger.jsonl").exists()
    assert len(list(tmp_path.glob("begun/*/step-*/state.json"))) == 1


def test_a_parent_that_waits_for_workers_hears_a_stop() -> None:
    waiting, clock = {Future(): (None, 0)}, time.monotonic()
    job = Job(stop_signal=lambda: "SIGINT" if time.monotonic() - clock > 0.3 else None)
    assert list(module._finished(waiting, job)) == [] and time.monotonic() - clock < 3  # type: ignore[arg-type]


def test_a_worker_that_is_told_to_stop_saves_and_says_nothing(
    tmp_path: Path, pair: tuple[Samples, Samples], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, test = pair
    told = threading.Event()
    monkeypatch.setattr(module, "_stop", told)
    threading.Timer(1.0, told.set).start()
    config = SETTINGS.model_copy(update={"steps": 100_000})
    assert module._lesson_apart(Trial(real, test, 2, "d"), NOTHING, config, 0, "cpu", tmp_path / "begun") is None
    assert len(list(tmp_path.glob("begun/step-*/state.json"))) == 1


def test_what_was_stopped_within_a_classifier_ends_as_it_would_have(
    tmp_path: Path, pair: tuple[Samples, Samples]
) -> None:
    real, test = pair
    how = {"arms": [Arm("real", lambda seed: NOTHING, "")], "trial": Trial(real, test, 2, "d"), "seeds": [0]}
    how["config"] = SETTINGS.model_copy(update={"steps": 9, "at_chance": "warn"})
    folders = [tmp_path / name for name in ("through", "stopped")]
    for folder in folders:
        folder.mkdir()
    through = run(folders[0], [], **how)
    asked = iter([None] * (len(real) + 4))
    with pytest.raises(InterruptedRunError, match="goes on at step 5 of 9"):
        run(folders[1], [], Job(stop_signal=lambda: next(asked, "SIGTERM")), **how)
    assert run(folders[1], [], **how) == through
    assert [path.name for path in folders[1].iterdir()] == ["ledger.jsonl"]


def test_further_pairs_are_compared_once_each(tmp_path: Path, accuracies: dict) -> None:
    accuracies |= KNOWN
    asked = (("plain", "dcdm"), ("dcdm", "plain"), ("dcdm", "gone"))
    made = run(tmp_path, [], trial=replace(trial(), pairs=asked))
    pairs = [(row["arm"], row["against"]) for row in made["paired"]]
    assert pairs == [("plain", "real"), ("dcdm", "real"), ("dcdm", "plain"), ("plain", "dcdm")]


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
    assert len(lines) == 9 and {
        "arm",
        "seed",
        "accuracy",
        "log_loss",
        "hard_accuracy",
        "chance",
        "images",
        "seconds",
        "key",
        "row_hash",
    } == set(json.loads(lines[0]))
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


@pytest.mark.slow
def test_several_processes_give_what_one_gives(
    tmp_path: Path, pair: tuple[Samples, Samples], request: pytest.FixtureRequest
) -> None:
    real, test = pair
    quick = SETTINGS.model_copy(update={"steps": 8, "at_chance": "warn"})
    made, usual = [], decode_options()
    set_decode_options(DecodeOptions(reduce_to=4))  # which the processes do not know by themselves
    request.addfinalizer(lambda: set_decode_options(usual))
    for workers in (1, 2):
        how = {"trial": Trial(real, test, 2, "d"), "config": quick, "seeds": [0, 1], "workers": workers}
        folder = tmp_path / str(workers)
        folder.mkdir()
        made.append(run(folder, [], arms=[Arm("real", lambda seed: NOTHING, "")], **how))
        assert len((folder / "ledger.jsonl").read_text().splitlines()) == 2
    assert made[0] == made[1]


def test_the_loss_is_told_beside_the_count_of_classifiers(pair: tuple[Samples, Samples], tmp_path: Path) -> None:
    told: list[tuple[object, ...]] = []
    job = Job(detail=lambda *said: told.append(said), progress=lambda *said: told.append(said))
    config = SETTINGS.model_copy(update={"steps": 20})
    ledger = TrialLedger(tmp_path / "ledger.jsonl", print)
    run_arms([Arm("real", lambda seed: NOTHING, "")], Trial(*pair, 2, "x"), config, [0, 1], ledger=ledger, job=job)
    mine = [said for said in told if said[0] == "downstream classifiers"]
    first, before, after = mine[:3]
    assert str(first[1]).startswith("loss ") and before[1:] == (0, 2) and after[1:] == (1, 2)
    assert mine[-1][1:] == (2, 2) and len(mine) == 6
