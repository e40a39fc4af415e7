"""Generated sets of the arms, below `evaluation/sets/<key>/`: made when first asked for, found again afterwards.

A set is named by everything it is made from, so that arms that differ in name alone share it. It is made in bands of
growing ratio, which nest: the first tenth of a set is part of its first quarter, so that a sweep over ratios costs no
more than its largest point.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dcdm_cli.commands.probing import make_measure, open_run_engine, plan_inputs
from dcdm_cli.commands.variants import VariantFolder, arm_context, prepare_variant
from dcdm_cli.evaluation.downstream import NOTHING, Samples
from dcdm_cli.files import hash_json, write_json
from dcdm_cli.job import Job

if TYPE_CHECKING:
    from dcdm_cli.commands.options import Context
    from dcdm_cli.data.manifest import Manifest
    from dcdm_cli.evaluation.experiments import ArmSpec, Experiment
    from dcdm_cli.generation.engine import Engine
    from dcdm_cli.generation.plan import Plan

BANDS = (0.1, 0.25, 0.5, 1.0, 2.0)  # generated images per real one; larger sets have one band more
MOST_BANDS = 16
INDIFFERENT = {"batch_size", "decode_batch", "score", "ratio", "count", "per_class", "seed"}  # change no image of a set
FACTS = "facts.json"


class GeneratedSets:
    """The sets of one experiment. The networks of one generator are held at a time."""

    def __init__(self, context: Context, experiment: Experiment, real: Manifest, job: Job) -> None:
        self.context, self.experiment, self.real, self.job = context, experiment, real, job
        self._open: tuple[str, Engine] | None = None

    @property
    def difficulty(self) -> str:
        """The run's own target distribution."""
        return self.context.config.generate.difficulty

    def key(self, arm: ArmSpec, ratio: float, seed: int | None = None) -> str:
        """Hash of what the arm's images come from; without a seed, of all its sets."""
        context = self._context(arm)
        run, calibration = context.run, context.run.record("calibrate")
        variant = isinstance(run, VariantFolder)
        made_from = [
            run.path.name if variant else run.require("finetune").id,
            calibration.id if calibration and not variant else "",
            context.config.calibrate.model_dump(mode="json"),
            context.config.generate.model_dump(mode="json", exclude=INDIFFERENT),
            context.config.caption.template,
            hash_json(self.real.column("sample_id").tolist()),
            [ratio, arm.rounds, context.config.downstream.model_dump(mode="json")]
            if arm.rounds
            else max(BANDS[-1], ratio),
            context.config.seed,
            "every seed" if seed is None and context.config.evaluate.fresh_sets else self._set_seed(seed or 0),
        ]
        return hash_json(made_from)[:16]

    def make(self, arm: ArmSpec, ratio: float, seed: int) -> Samples:
        """The arm's images for a seed: all of them, or one set for every seed without `evaluate.fresh_sets`."""
        folder = self._folder(arm, ratio, seed)
        if arm.rounds:
            return self._make_rounds(arm, ratio, self._set_seed(seed), folder)
        parts, context = [], self._context(arm)
        for number, (low, high) in enumerate(_bands(ratio)):
            place, counts = folder / f"{number}", np.maximum(self._counts(high) - self._counts(low), 0)
            if not counts.sum():
                continue
            if not _finished(place):
                engine = self._engine(arm, context)
                plan = _plan(context, counts, self._set_seed(seed) * MOST_BANDS + number, engine.generator)
                self._run(plan, engine, place)
            parts.append(_read(place))
        return _rows(parts, self._counts(ratio))

    def facts(self, arm: ArmSpec, ratio: float, seed: int) -> dict[str, Any]:
        """What the scorer finds in a finished set, and what it cost: realised_mean, realised_std, label_agreement,
        images, seconds. Measured once and kept beside the images; the first three are None without a scorer. Empty when
        the set is not there any more."""
        if not self._folder(arm, ratio, seed).is_dir():
            return {}
        folders = [folder for folder in sorted(self._folder(arm, ratio, seed).iterdir()) if _finished(folder)]
        folders = folders if arm.rounds else folders[: len(_bands(ratio))]
        return _joined([self._measured(folder) for folder in folders])

    def _folder(self, arm: ArmSpec, ratio: float, seed: int) -> Path:
        return self.context.run.evaluation / "sets" / self.key(arm, ratio, seed)

    def _set_seed(self, seed: int) -> int:
        config = self.context.config
        return seed if config.evaluate.fresh_sets else config.evaluate.seed + config.seed

    def _context(self, arm: ArmSpec) -> Context:
        return arm_context(self.context, arm, self.experiment.adapter(arm.adapter))

    def _counts(self, ratio: float) -> np.ndarray:
        """Images per class at a ratio, int64 [classes]; never fewer at a larger ratio, as largest remainders could."""
        from dcdm_cli.generation.budget import Budget

        real = self.real.class_counts()
        edges = [edge for edge in BANDS if edge < ratio and round(edge * real.sum()) >= 1]
        edges += [ratio] if ratio else []
        return np.max([np.zeros(len(real), np.int64), *(Budget(ratio=edge).per_label(real) for edge in edges)], axis=0)

    def _make_rounds(self, arm: ArmSpec, ratio: float, seed: int, folder: Path) -> Samples:
        """Each round asks for what classifiers that know the rounds before find hard."""
        from dcdm_cli.commands.next_plan import plan_demand

        context, made = self._context(arm), NOTHING
        total = round(ratio * len(self.real))
        edges = np.linspace(0, total, arm.rounds + 1).round().astype(int)
        for number, (start, stop) in enumerate(pairwise(edges.tolist())):
            place = folder / f"{number}"
            if not _finished(place):
                engine = self._engine(arm, context)
                asked = plan_demand(
                    context, self.real, made, stop - start, seed + 1000 * number, engine.generator, self.job
                )
                self._run(asked.plan, engine, place)
            images = _read(place)
            made = made + Samples(images.paths(), images.column("label"))
        return made

    def _run(self, plan: Plan, engine: Engine, folder: Path) -> None:
        from dcdm_cli.generation.bulk import run_plan

        clock = time.monotonic()
        measure = make_measure(self.context, self.job) if engine.config.attempts > 1 else None  # it chooses the draws
        made = run_plan(plan, engine, folder, self.job, measure)
        spent = {"seconds": round(time.monotonic() - clock, 3), "made": made.made, "images": made.images}
        write_json(folder / FACTS, {**spent, "device": self.job.device})

    def _engine(self, arm: ArmSpec, context: Context) -> Engine:
        from dcdm_cli.generation.engine import sampler_settings

        settings = context.config.generate
        draws = [settings.attempts, settings.tolerance, settings.precision, settings.backend]
        key = hash_json([str(context.run.path), sampler_settings(settings), draws])
        if self._open is None or self._open[0] != key:
            self._open = None  # the old networks must go before the new ones come
            prepare_variant(context, self.experiment.adapter(arm.adapter), self.job)
            self._open = key, open_run_engine(context, context.run.adapter, self.job)
        return self._open[1]

    def _measured(self, folder: Path) -> dict[str, Any]:
        facts = json.loads((folder / FACTS).read_text("utf-8")) if (folder / FACTS).is_file() else {}
        if "realised_mean" not in facts:
            facts |= self._measure(_read(folder))
            write_json(folder / FACTS, facts)
        return facts

    def _measure(self, images: Manifest) -> dict[str, Any]:
        from dcdm_cli.difficulty.scorer import Scorer

        unknown = {"realised_mean": None, "realised_std": None, "label_agreement": None}
        if not self.context.run.scorer.exists() or not len(images):
            return unknown
        labels = images.column("label")
        found = Scorer.load(self.context.run.scorer, self.job.device).measure(images.paths(), labels)
        values = (found.difficulty.mean(), found.difficulty.std(), (found.predicted == labels).mean())
        return {name: round(float(value), 4) for name, value in zip(unknown, values, strict=True)}


def _plan(context: Context, counts: np.ndarray, seed: int, generator: str) -> Plan:
    """`counts` images per class at the arm's target distribution."""
    from dcdm_cli.generation.plan import make_plan
    from dcdm_cli.generation.targets import parse_target

    config = context.config
    return make_plan(plan_inputs(context), counts, parse_target(config.generate.difficulty), seed, generator)


def _bands(ratio: float) -> list[tuple[float, float]]:
    """(from, to) of the bands that a ratio needs, smallest first."""
    edges = [0.0, *(edge for edge in BANDS if edge < ratio)]
    last = next((edge for edge in BANDS if edge >= ratio), ratio)
    return list(pairwise([*edges, last]))


def _finished(folder: Path) -> bool:
    """samples.parquet is written last."""
    return (folder / "samples.parquet").is_file()


def _read(folder: Path) -> Manifest:
    from dcdm_cli.data.manifest import read_manifest

    return read_manifest(folder / "samples.parquet", made_by="dcdm evaluate")


def _rows(parts: Sequence[Manifest], counts: np.ndarray) -> Samples:
    """The first `counts[label]` images of each class."""
    paths = [path for part in parts for path in part.paths()]
    labels = np.concatenate([part.column("label") for part in parts])
    keep = np.flatnonzero(_place_in_class(labels) < counts[labels])
    return Samples([paths[i] for i in keep], labels[keep])


def _place_in_class(labels: np.ndarray) -> np.ndarray:
    """0 for the first row of its class, 1 for the second, ...: int64 [N]."""
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    place = np.empty(len(labels), np.int64)
    place[order] = np.arange(len(labels)) - starts
    return place


def _joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Facts of several folders as one, weighted by their images."""
    images = [part["images"] for part in parts]
    joined: dict[str, Any] = {"images": sum(images), "seconds": round(sum(part["seconds"] for part in parts), 3)}
    for name in ("realised_mean", "realised_std", "label_agreement"):
        known = [(part[name], n) for part, n in zip(parts, images, strict=True) if part.get(name) is not None and n]
        total = sum(n for _, n in known)
        joined[name] = round(sum(value * n for value, n in known) / total, 4) if total else None
    return joined
