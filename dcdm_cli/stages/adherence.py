"""Fresh images at each reachable target: scored by the scorer, their labels checked by the judge, none of them kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dcdm_cli.errors import UsageError
from dcdm_cli.run.roles import IMAGES, all_others, fingerprints
from dcdm_cli.run.store import Outcome, Stage, StageRecord
from dcdm_cli.stages.caption import caption_input
from dcdm_cli.stages.devices import run_features, settle_placement
from dcdm_cli.stages.given import image_input
from dcdm_cli.stages.label_check import generator_files
from dcdm_cli.stages.probe import Probed, open_run_engine, probe, probe_with_pool, usable_calibration

if TYPE_CHECKING:
    from dcdm_cli.data.manifest import Manifest
    from dcdm_cli.evaluation.data import Evaluated
    from dcdm_cli.evaluation.judge import Judge
    from dcdm_cli.generation.plan import PlanRow
    from dcdm_cli.reports.plots import GridRow
    from dcdm_cli.run.progress import Job
    from dcdm_cli.run.session import Session

GRID_CLASSES = 12


class Gallery:
    """Of all images that pass by, the one per class and target whose realised difficulty comes closest to it."""

    def __init__(self, classes: int = GRID_CLASSES) -> None:
        self.classes = classes
        self.best: dict[tuple[int, float], tuple[float, np.ndarray]] = {}

    def see(self, rows: Sequence[PlanRow], images: np.ndarray, realised: np.ndarray) -> None:
        for row, image, s in zip(rows, images, realised.tolist(), strict=True):
            key = row.label, row.target_difficulty
            if row.label < self.classes and (key not in self.best or abs(s - key[1]) < abs(self.best[key][0] - key[1])):
                self.best[key] = s, image.copy()  # a view would keep its whole batch in memory

    def of(self, label: int) -> list[tuple[float, np.ndarray]]:
        """(realised difficulty, image) in the order of the targets."""
        return [self.best[key] for key in sorted(self.best) if key[0] == label]


def measured_adherence(session: Session, data: Evaluated, judge: Judge | None, job: Job) -> StageRecord:
    """Its record holds the `adherence` part of metrics.json; made again only when something it depends on changed."""
    work = lambda: _probe_targets(session, data, judge, job)  # noqa: E731
    return session.run.run(adherence_stage(session), work, force=session.force)[0]


def adherence_stage(session: Session) -> Stage:
    run, config = session.run, session.config
    evaluate, judge = config.evaluate, {"judge": config.judge}
    made = {"generate": config.generate}
    settings: dict[str, Any] = {**fingerprints(made, *IMAGES), **fingerprints(judge)}
    settings |= {"targets": list(evaluate.targets), "per_target": evaluate.per_target, "holdout": evaluate.holdout}
    settings |= {"seed": evaluate.seed + config.seed}
    calibration = run.record("calibrate")
    inputs = {"score": run.require("score").id, **caption_input(run)} | run.adapter_ids()
    inputs |= {"calibrate": calibration.id if calibration else "", **image_input(session)}
    uncounted = {**all_others(made, *IMAGES), **all_others(judge)}
    return Stage("adherence", settings, inputs, uncounted, generator_files(session))


def reachable_targets(session: Session) -> tuple[tuple[float, float], list[float]]:
    """What the calibration says can be reached, and the wanted targets inside it. Raises UsageError without any."""
    config, calibration = session.config, usable_calibration(session)
    low, high = calibration.reachable if calibration else (0.0, 1.0)
    targets = [t for t in config.evaluate.targets if low <= t <= high and t <= config.generate.difficulty_cap]
    if not targets:
        raise UsageError(
            f"no target of {list(config.evaluate.targets)} can be reached ({low:.2f} to {high:.2f})",
            "give others: --targets",
        )
    return (low, high), targets


def summary(probed: Probed, agrees: np.ndarray | None, names: Sequence[str]) -> dict[str, Any]:
    from dcdm_cli.evaluation.adherence import adherence, per_class, per_source

    results = adherence(probed.target, probed.realised, agrees)
    checked = None if probed.shows is None else round(float(probed.shows.mean()), 4)
    results |= {"label_checked": checked} if checked is not None else {}
    by_source = per_source(probed.target, probed.realised, agrees, probed.prompt_source)
    results |= {"prompt_sources": by_source} if by_source else {}
    return results | {"classes": per_class(probed.target, probed.realised, agrees, probed.label, names)}


def atlas_rows(train: Manifest, gallery: Gallery) -> list[GridRow]:
    """Per class: the easiest real image, generated ones at each target, the hardest real one."""
    from dcdm_cli.data.images import decode_image
    from dcdm_cli.reports.plots import GridRow

    labels, s, paths = train.column("label"), train.column("difficulty"), train.paths()
    rows = []
    for label, name in list(enumerate(train.class_names))[: gallery.classes]:
        mine = np.flatnonzero((labels == label) & np.isfinite(s))
        if not len(mine):
            continue
        easiest, hardest = mine[s[mine].argmin()], mine[s[mine].argmax()]
        made = gallery.of(label)
        images = [decode_image(paths[easiest]), *(Image.fromarray(i) for _, i in made), decode_image(paths[hardest])]
        captions = [f"real {s[easiest]:.2f}", *(f"{value:.2f}" for value, _ in made), f"real {s[hardest]:.2f}"]
        rows.append(GridRow(title=name, images=images, captions=captions))
    return rows


def _probe_targets(session: Session, data: Evaluated, judge: Judge | None, job: Job) -> Outcome:
    from dcdm_cli.evaluation.adherence import Agreement

    config = session.config
    reachable, targets = reachable_targets(session)
    agreement, gallery = Agreement(judge.labels if judge else None), Gallery()

    def watch(rows: Sequence[PlanRow], images: np.ndarray, realised: np.ndarray) -> None:
        agreement.add(images, np.array([row.label for row in rows]))
        gallery.see(rows, images, realised)

    seed, count = config.evaluate.seed + config.seed, config.evaluate.per_target
    placement = settle_placement(session)
    if placement:
        probed = probe_with_pool(session, placement, targets, count, job, seed=seed, watch=watch)
    else:
        engine = open_run_engine(session, session.run.adapter, job)
        probed = probe(session, engine, targets, count, job, seed=seed, calibrated=True, watch=watch)
    results = summary(probed, agreement.agrees, data.manifest.class_names)
    results["reachable"] = [round(edge, 4) for edge in reachable]
    results["targets_out_of_reach"] = [t for t in config.evaluate.targets if t not in targets]
    if judge is not None and agreement.agrees is not None:
        results |= _judged(_real(session, data, judge, job), (probed.realised, agreement.agrees))
    return Outcome([_grid(session, data.real, gallery)], "", results, job.device)


def _judged(real: tuple[np.ndarray, np.ndarray], generated: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
    """What the judge says of labels; real, generated: as `frontier` takes them."""
    from dcdm_cli.evaluation.adherence import label_frontier

    accuracy = round(float(np.mean(real[1])), 4) if len(real[1]) else None
    return {"judge_accuracy": accuracy, **label_frontier(real, generated)}


def _real(session: Session, data: Evaluated, judge: Judge, job: Job) -> tuple[np.ndarray, np.ndarray]:
    """Difficulty and label agreement of real images that neither scorer nor judge has seen: the test split's. None of
    them while settings are being chosen: the test images are not to be looked at then."""
    from dcdm_cli.evaluation.data import held_out_difficulty

    if session.config.evaluate.holdout != "test":
        return np.zeros(0, np.float32), np.zeros(0, bool)
    looked, saved = run_features(session, job), "adherence is measured again"
    difficulty = held_out_difficulty(session.run.scorer, data.held_out, looked, job, saved)
    return difficulty, judge.labels_of(data.held_out) == data.held_out.column("label")


def _grid(session: Session, train: Manifest, gallery: Gallery) -> Path:
    from dcdm_cli.reports.plots import image_grid

    folder = session.run.evaluation / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    title = "Class by difficulty: real easiest, generated, real hardest"
    return image_grid(folder / "atlas.png", atlas_rows(train, gallery), title)
