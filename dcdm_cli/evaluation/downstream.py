"""What images are worth to a classifier: arms trained alike, paired by seed, tested on untouched images.

Every arm gets the same optimiser steps, so that more images do not mean more training. Beside accuracy, stated before
anything is measured, two numbers that are more sensitive: log-loss (mean of -ln p(true class), in nats; less is better)
and accuracy on the harder half of the test images, by the difficulty that the scorer gives them. The scorer never saw
them, and it is the one whose difficulty the tool speaks of. Intervals and verdicts are those of statistics.py;
differences are paired. Not from the paper.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel

from dcdm_cli.data.images import DecodeOptions, decode_options, set_decode_options
from dcdm_cli.data.manifest import Manifest
from dcdm_cli.difficulty.competence import DOWNSTREAM, chance_of, competence_of, guard, prior_of
from dcdm_cli.difficulty.fitting import PROGRESS as TRAINING
from dcdm_cli.difficulty.fitting import Keep
from dcdm_cli.difficulty.scores import log_loss
from dcdm_cli.errors import InterruptedRunError, NumericalError, UsageError
from dcdm_cli.evaluation.learners import Learner, learner_name, learner_settings, on_features
from dcdm_cli.evaluation.statistics import interval, paired
from dcdm_cli.files import hash_json
from dcdm_cli.gate import Amount, Count, Share, Word
from dcdm_cli.pace import LONG_S, Pace, estimated
from dcdm_cli.run.journals import append_rows, kept_rows
from dcdm_cli.run.progress import Job
from dcdm_cli.run.settings import ClassifierConfig, changed
from dcdm_cli.workers.devices import use_device

REAL, OURS = "real", "dcdm"
LESS_IS_BETTER = ("log_loss",)
PROGRESS = "downstream classifiers"
POLL_S = 0.2  # between looks for a signal while other processes train


@dataclass(frozen=True)
class Samples:
    """Image files with their labels, int64 [N]."""

    paths: Sequence[Path]
    labels: np.ndarray

    def __add__(self, other: Samples) -> Samples:
        return Samples([*self.paths, *other.paths], np.concatenate([self.labels, other.labels]))

    def __len__(self) -> int:
        return len(self.paths)


NOTHING = Samples([], np.zeros(0, np.int64))


@dataclass(frozen=True)
class Arm:
    """extra(seed): the images added to the real ones for that seed; key: what they are made from, whatever the arm is
    called. classifier: settings of this arm alone (stronger augmentation)."""

    name: str
    extra: Callable[[int], Samples]
    key: str
    classifier: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Trial:
    """What all arms share. content: hash of the real and the test images, which the ledger's keys depend on. baseline:
    the arm that all are compared with; focus: the one that is also compared with every other; pairs: (arm, against)
    that are compared besides. harder: bool [test images], the half that is measured apart; None = not known. cache:
    folder of features that are known already, for classifiers that rest on them."""

    real: Samples
    test: Samples
    classes: int
    content: str
    baseline: str = REAL
    focus: str = OURS
    pairs: Sequence[tuple[str, str]] = ()
    harder: np.ndarray | None = None
    cache: Path | None = None


@dataclass(frozen=True)
class Result:
    """Of one classifier on the test images. accuracy, hard_accuracy: shares, top-1; log_loss: nats. hard_accuracy is
    None where no half is known to be harder. chance: the accuracy of guessing its answers as often; None = not known.
    """

    accuracy: float
    log_loss: float
    hard_accuracy: float | None = None
    chance: float | None = None


class _Row(BaseModel):
    """One line: a finished classifier. What is no such line is trained again."""

    key: Word
    arm: Word
    seed: Count
    accuracy: Share
    log_loss: Amount
    hard_accuracy: Share | None = None
    chance: Share | None = None
    images: Count
    seconds: Amount


class TrialLedger:
    """Finished (arm, seed) results, one JSON line each: never lost, never computed twice. say: what to do with a
    sentence about lines that are not as they were written; these are computed again."""

    def __init__(self, file: Path, say: Callable[[str], None]) -> None:
        self.file = file
        self._known = {row.key: row.model_dump() for row in kept_rows(file, _Row, say)}  # older ones lack log_loss

    def begun(self, key: str) -> Path:
        """Where a classifier's training is kept until it is finished."""
        return self.file.parent / "begun" / key

    def get(self, key: str) -> dict[str, Any] | None:
        return self._known.get(key)

    def add(self, key: str, row: Mapping[str, Any]) -> None:
        """One write, so that several processes can share the file."""
        self._known[key] = {"key": key, **row}
        append_rows(self.file, [self._known[key]])


def open_ledger(folder: Path, say: Callable[[str], None]) -> TrialLedger:
    """The one ledger of an evaluation folder, which all experiments of the run share. say: as in `TrialLedger`."""
    folder.mkdir(parents=True, exist_ok=True)
    return TrialLedger(folder / "downstream.jsonl", say)


def trial_of(
    real: Manifest,
    test: Manifest,
    baseline: str = REAL,
    focus: str = OURS,
    *,
    pairs: Sequence[tuple[str, str]] = (),
    difficulty: np.ndarray | None = None,
    cache: Path | None = None,
) -> Trial:
    """difficulty: float [test images], the scorer's; None = there is none, and no half is measured apart."""
    train, held_out = (Samples(part.paths(), part.column("label").astype(np.int64)) for part in (real, test))
    harder = None if difficulty is None else harder_half(difficulty)
    content = [[part.column("sample_id").tolist(), part.column("label").tolist()] for part in (real, test)]
    if harder is not None:
        content.append([harder.tolist()])
    return Trial(train, held_out, len(real.class_names), hash_json(content), baseline, focus, pairs, harder, cache)


def harder_half(difficulty: np.ndarray) -> np.ndarray:
    """bool [N]: the N // 2 hardest; unknown difficulties count as easiest, equal ones are taken in order."""
    order = np.argsort(-np.nan_to_num(difficulty, nan=-1.0), kind="stable")
    harder = np.zeros(len(difficulty), bool)
    harder[order[: len(difficulty) // 2]] = True
    return harder


def seeds_of(first: int, count: int) -> list[int]:
    return [first + i for i in range(count)]


def arm_key(arm: Arm, trial: Trial, config: ClassifierConfig, seed: int) -> str:
    """Equal for arms that are the same in all but name: those are computed once, by whichever experiment is first."""
    return hash_json([arm.key, seed, learner_settings(_settings(arm, config)), trial.content])


def run_arms(
    arms: Sequence[Arm],
    trial: Trial,
    config: ClassifierConfig,
    seeds: Sequence[int],
    *,
    ledger: TrialLedger,
    job: Job,
    workers: int = 1,
) -> dict[str, Any]:
    """Trains one classifier per arm and seed that the ledger lacks, `workers` of them at a time in processes of their
    own; returns the `downstream` part of metrics.json."""
    # of the baseline, whose competence is what the report states too
    watched = [arm_key(arm, trial, config, seed) for arm in arms if arm.name == trial.baseline for seed in seeds]

    def check() -> None:
        """Nothing is gained by comparing classifiers that guess."""
        found = _known([row for row in map(ledger.get, watched) if row], trial)
        if found["verdict"] == "chance":
            # warnings wait for the end, or they would be said after every classifier
            guard(DOWNSTREAM, found, config.at_chance, lambda said: None)

    # before the first: what the ledger has may be enough to stop for
    check()
    missing = _Lesson.all(arms, trial, config, seeds, ledger)
    _train_missing(missing, trial, len(arms) * len(seeds), ledger, job, workers, check)
    rows = {arm.name: [ledger.get(arm_key(arm, trial, config, seed)) or {} for seed in seeds] for arm in arms}
    known = _known(rows.get(trial.baseline, ()), trial)
    guard(DOWNSTREAM, known, config.at_chance, job.warn)
    return {
        "classifier": learner_name(config),
        "steps": None if on_features(config) else config.steps,
        "test_images": len(trial.test),
        "hard_images": 0 if trial.harder is None else int(trial.harder.sum()),
        "real_images": len(trial.real),
        "seeds": len(seeds),
        "competence": known,
        "arms": [_summary(name, finished) for name, finished in rows.items()],
        "paired": _paired(rows, "accuracy", trial),
        "paired_log_loss": _paired(rows, "log_loss", trial),
        "paired_hard_accuracy": _paired(rows, "hard_accuracy", trial),
    }


def arm_result(
    train: Samples, trial: Trial, config: ClassifierConfig, seed: int, device: str, keep: Keep | None = None
) -> Result:
    """Of a classifier that learnt from `train`. keep: as in `train_classifier`."""
    report = keep.job.stoppable("this classifier is not tested yet") if keep else None
    learner = Learner(config, trial.classes, seed, device, trial.cache, keep)
    logits = learner.answers(train.paths, train.labels, trial.test.paths, report)
    if not np.isfinite(logits).all():
        lost = int((~np.isfinite(logits).all(axis=1)).sum())
        raise NumericalError(
            f"a downstream classifier ({learner_name(config)}) gives no finite answer for {lost} of {len(logits)} "
            "test images",
            f"lower its learning rate (lr = {config.lr:g} now)",
        )
    right = logits.argmax(1) == trial.test.labels
    # of a single test image the harder half is empty
    known = trial.harder is not None and trial.harder.any()
    hard = round(float(right[trial.harder].mean()), 6) if known else None
    chance = round(chance_of(logits.argmax(1), trial.test.labels), 6)
    return Result(round(float(right.mean()), 6), round(log_loss(logits, trial.test.labels), 6), hard, chance)


def arm_accuracy(
    train: Samples, test: Samples, config: ClassifierConfig, classes: int, seed: int, device: str
) -> float:
    """Top-1 accuracy on `test` of a classifier that learnt from `train`."""
    return arm_result(train, Trial(train, test, classes, ""), config, seed, device).accuracy


@dataclass(frozen=True)
class _Lesson:
    """One classifier that is still to be trained."""

    key: str
    arm: Arm
    seed: int
    config: ClassifierConfig

    @classmethod
    def all(
        cls, arms: Sequence[Arm], trial: Trial, config: ClassifierConfig, seeds: Sequence[int], ledger: TrialLedger
    ) -> list[_Lesson]:
        """Seed by seed, so that a stopped comparison has whole pairs; each only once."""
        wanted = [(arm_key(arm, trial, config, seed), arm, seed) for seed in seeds for arm in arms]
        missing = {key: cls(key, arm, seed, _settings(arm, config)) for key, arm, seed in wanted if not ledger.get(key)}
        return list(missing.values())


@dataclass
class _Teller:
    """Says once how long the training takes, from the first steps of the first classifier: hours may pass before that
    one is finished. classifiers, steps: of all that are to be trained, one after the other."""

    job: Job
    classifiers: int
    steps: int
    pace: Pace = field(default_factory=lambda: Pace(TRAINING))
    said: bool = False

    def progress(self, what: str, done: int, total: int) -> None:
        if what != TRAINING:
            self.job.progress(what, done, total)
            return
        # steps are not shown themselves: what is counted for people is classifiers
        self.pace.see(done)
        rate = self.pace.measured
        if rate is None or self.said:
            return
        self.said = True
        if (seconds := self.steps / rate) >= LONG_S:
            many = "1 classifier" if self.classifiers == 1 else f"{self.classifiers} classifiers"
            self.job.note(f"downstream: about {estimated(seconds)} for {many}, by the first steps")


def _train_missing(
    lessons: Sequence[_Lesson],
    trial: Trial,
    total: int,
    ledger: TrialLedger,
    job: Job,
    workers: int,
    check: Callable[[], None],
) -> None:
    """check: of what is known so far, after each."""
    done = total - len(lessons)

    def detail(what: str, text: str) -> None:
        job.detail(PROGRESS, text)
        job.progress(PROGRESS, done, total)

    teller = _Teller(job, len(lessons), sum(lesson.config.steps for lesson in lessons))
    shown = replace(job, detail=detail, progress=teller.progress)
    for lesson, result, seconds, images in _taught(lessons, trial, ledger, shown, workers):
        row = {"arm": lesson.arm.name, "seed": lesson.seed, **asdict(result), "images": images, "seconds": seconds}
        ledger.add(lesson.key, row)
        # after the row: whoever is killed in between trains nothing again
        Keep(job, ledger.begun(lesson.key)).forget()
        done += 1
        job.progress(PROGRESS, done, total)
        check()
        job.stop_if_asked(f"{done} of {total} classifiers are finished")
    job.stop_if_asked(f"{done} of {total} classifiers are finished")


Taught = tuple[_Lesson, Result, float, int]  # result, seconds, extra images


def _taught(lessons: Sequence[_Lesson], trial: Trial, ledger: TrialLedger, job: Job, workers: int) -> Iterator[Taught]:
    """Lessons as they are finished; those that a signal has stopped are not among them."""
    if workers == 1 or len(lessons) < 2:
        for lesson in lessons:
            extra = lesson.arm.extra(lesson.seed)
            keep = Keep(job, ledger.begun(lesson.key))
            yield (lesson, *_lesson(trial, extra, lesson.config, lesson.seed, keep), len(extra))
        return
    spawn = multiprocessing.get_context("spawn")  # a forked process cannot use a GPU its parent has used
    stop = spawn.Event()
    settled = (job.device, _threads() // workers, stop, decode_options())
    with ProcessPoolExecutor(workers, spawn, initializer=_settle, initargs=settled) as pool:
        waiting: dict[Future[tuple[Result, float] | None], tuple[_Lesson, int]] = {}
        for lesson in lessons:
            # asked here: an arm's function cannot be sent to a spawned process, its files can
            extra, folder = lesson.arm.extra(lesson.seed), ledger.begun(lesson.key)
            future = pool.submit(_lesson_apart, trial, extra, lesson.config, lesson.seed, job.device, folder)
            waiting[future] = lesson, len(extra)
        try:
            yield from _finished(waiting, job)
        finally:
            stop.set()  # workers save and end; without it the pool would wait for whole trainings
            pool.shutdown(cancel_futures=True)


def _finished(waiting: dict[Future[Any], tuple[_Lesson, int]], job: Job) -> Iterator[Taught]:
    """Ends early when a signal asks for it."""
    while waiting and not job.stop_signal():
        # with a limit, as a signal's handler only leaves a note, which somebody has to read
        for future in wait(waiting, POLL_S, FIRST_COMPLETED).done:
            lesson, images = waiting.pop(future)
            if (made := future.result()) is not None:
                yield (lesson, *made, images)


def _lesson(trial: Trial, extra: Samples, config: ClassifierConfig, seed: int, keep: Keep) -> tuple[Result, float]:
    clock = time.monotonic()
    result = arm_result(trial.real + extra, trial, config, seed, keep.job.device, keep)
    return result, round(time.monotonic() - clock, 2)


_stop: Any = None  # in a worker: set when the parent was asked to stop


def _lesson_apart(
    trial: Trial, extra: Samples, config: ClassifierConfig, seed: int, device: str, folder: Path
) -> tuple[Result, float] | None:
    """In a worker; None when it was stopped, with its checkpoint in `folder`."""
    # any name will do: only the parent, which knows the signal, says how it ends
    job = Job(device, stop_signal=lambda: "SIGINT" if _stop is not None and _stop.is_set() else None)
    try:
        return _lesson(trial, extra, config, seed, Keep(job, folder))
    except InterruptedRunError:
        return None


def _threads() -> int:
    return torch.get_num_threads()


def _settle(device: str, threads: int, stop: Any, decode: DecodeOptions) -> None:
    """In a worker: the parent's device and way of decoding, its share of the threads, and Ctrl-C is for the parent to
    handle, who says when to stop."""
    global _stop
    _stop = stop
    set_decode_options(decode)
    use_device(device)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(max(1, threads))  # 0 where there are more workers than threads


def _settings(arm: Arm, config: ClassifierConfig) -> ClassifierConfig:
    """Raises UsageError for augmentation of images that a head on frozen features never sees augmented."""
    if arm.classifier and on_features(config):
        raise UsageError(
            f"arm {arm.name}: a head on frozen features learns from images as they are, without augmentation",
            "leave the arm out, or train a network: --set downstream.method=network",
        )
    return changed(config, arm.classifier or {}, f"arm {arm.name}")


def _known(rows: Sequence[Mapping[str, Any]], trial: Trial) -> dict[str, Any]:
    """What classifiers of one arm know, on average; as `competence_of`. Those of before chance was kept count for
    nothing."""
    known = [(row["accuracy"], row["chance"]) for row in rows if row.get("chance") is not None]
    if not known:
        return competence_of(0, 0.0, 0.0, 0.0)
    accuracy, chance = (float(np.mean(column)) for column in zip(*known, strict=True))
    return competence_of(len(trial.test), accuracy, chance, prior_of(trial.test.labels))


def _summary(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    summary: dict[str, Any] = {"name": name, "synthetic_images": rows[-1]["images"]}
    for measure in ("accuracy", "log_loss", "hard_accuracy"):
        values = [row[measure] for row in rows]
        known = None not in values
        summary |= {
            measure: values if known else None,
            f"{measure}_mean": round(float(np.mean(values)), 6) if known else None,
            f"{measure}_ci95": interval(values) if known else None,
        }
    return summary


def _paired(rows: Mapping[str, Sequence[Mapping[str, Any]]], measure: str, trial: Trial) -> list[dict[str, Any]]:
    values = {name: [row[measure] for row in finished] for name, finished in rows.items()}
    # not known of some: what is left would be another comparison
    if any(None in row for row in values.values()):
        return []
    less = measure in LESS_IS_BETTER
    return paired(values, trial.baseline, trial.focus, trial.pairs, less_is_better=less)
