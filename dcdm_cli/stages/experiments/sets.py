"""Generated sets of the arms, below `evaluation/sets/<key>/`: made when first asked for, found again afterwards.

A set is named by everything it is made from, so that arms that differ in name alone share it. It is made in one band
per ratio that its experiment asks for, which nest: the smaller set is part of the larger one, so that a sweep over
ratios costs no more than its largest point, and a single ratio is made in one go.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel

from dcdm_cli.data.manifest import share_true
from dcdm_cli.errors import MismatchError, NotFoundError
from dcdm_cli.evaluation.downstream import NOTHING, Samples
from dcdm_cli.evaluation.learners import learner_settings
from dcdm_cli.files import hash_json, write_json
from dcdm_cli.gate import Amount, Count, Share, Word, read_document
from dcdm_cli.run.progress import Job
from dcdm_cli.run.roles import IMAGES, fingerprint
from dcdm_cli.stages.devices import run_features
from dcdm_cli.stages.experiments.generators import VariantFolder, arm_session, as_chosen, ready_for
from dcdm_cli.stages.experiments.named_sets import finished_set, set_record
from dcdm_cli.stages.given import image_input
from dcdm_cli.stages.probe import make_measure, open_run_engine, plan_inputs

if TYPE_CHECKING:
    from dcdm_cli.data.manifest import Manifest
    from dcdm_cli.evaluation.experiments import AdapterSpec, ArmSpec, Experiment
    from dcdm_cli.generation.engine import Engine
    from dcdm_cli.generation.plan import Plan
    from dcdm_cli.run.session import Session

MOST_BANDS = 1000  # more ratios than anyone asks for: keeps the seeds of bands apart
FACTS, MADE_BY = "facts.json", "dcdm evaluate"


class SetFacts(BaseModel):
    """facts.json of a set's folder. None: not known."""

    images: Count
    made: Count = 0
    seconds: Amount | None = None
    device: Word = ""
    realised_mean: Share | None = None
    realised_std: Share | None = None
    label_agreement: Share | None = None
    label_checked: Share | None = None


class GeneratedSets:
    """The sets of one experiment. The networks of one generator are held at a time."""

    def __init__(self, session: Session, experiment: Experiment, real: Manifest, job: Job) -> None:
        self.session, self.experiment, self.real, self.job = session, experiment, real, job
        self._open: tuple[str, Engine] | None = None
        self._named: dict[str, dict[str, Any]] = {}
        self._whole: set[Path] = set()  # sets that were held against their ledgers

    @property
    def difficulty(self) -> str:
        """The run's own target distribution."""
        return self.session.config.generate.difficulty

    def key(self, arm: ArmSpec, ratio: float, seed: int | None = None) -> str:
        """Hash of what the arm's images come from; without a seed, of all its sets."""
        session = self._session(arm, seed)
        run, calibration = session.run, session.run.record("calibrate")
        variant = isinstance(run, VariantFolder)
        made_from = [
            # a variant may not be calibrated yet: what it is made from is in its name, and how it will be just below
            run.path.name if variant else ".".join(run.adapter_ids().values()),
            calibration.id if calibration and not variant else "",
            fingerprint(session.config.calibrate),
            self._made_with(session),
            session.config.caption.template,
            hash_json(self.real.column("sample_id").tolist()),
            # the downstream classifier plans the rounds, and so is part of what they are made from
            [ratio, arm.rounds, learner_settings(session.config.downstream)]
            if arm.rounds
            else self._ratios(arm, ratio),
            session.config.seed,
            "own targets",  # once all arms of a generator were made at the target of the first of them
            "every seed" if seed is None and session.config.evaluate.fresh_sets else self._set_seed(seed or 0),
        ]
        if seed is None and self.experiment.fresh_adapters > 1:
            made_from.append(f"{self.experiment.fresh_adapters} adapters")
        return hash_json(made_from)[:16]

    def _made_with(self, session: Session) -> dict[str, Any]:
        """Sets from before there were label checks and prompts are found again while there is none."""
        settings = fingerprint(session.config.generate, *IMAGES)
        off = {name for name in ("check", "check_model", "prompts", "prompt_share") if settings[name] is None}
        made_with = {name: value for name, value in settings.items() if name not in off}
        return made_with | image_input(session)

    def make(self, arm: ArmSpec, ratio: float, seed: int) -> Samples:
        """The arm's images for a seed: all of them, or one set for every seed without `evaluate.fresh_sets`."""
        if arm.rounds:
            return self._make_rounds(arm, ratio, self._set_seed(seed), self._folder(arm, ratio, seed))
        made, session = NOTHING, self._session(arm, seed)
        for number, (edge, counts) in enumerate(self._bands(arm, ratio)):
            place = self._folder(arm, edge, seed)
            if not _finished(place):
                engine, ready = self._engine(arm, session, seed)
                plan = _plan(ready, counts, self._set_seed(seed) * MOST_BANDS + number, engine.generator)
                self._run(plan, engine, place)
            made = made + _samples(self._read(place))
        return made

    def facts(self, arm: ArmSpec, ratio: float, seed: int) -> dict[str, Any]:
        """What scorer and label check find in a finished set, and what it cost: realised_mean, realised_std,
        label_agreement, label_checked, images, seconds. Measured once and kept beside the images; None where nobody
        looked. Empty when the set is not there any more."""
        if arm.set:
            return self._named_facts(arm.set)
        if arm.rounds:
            folders = [self._folder(arm, ratio, seed) / f"{number}" for number in range(arm.rounds)]
        else:
            folders = [self._folder(arm, edge, seed) for edge, _ in self._bands(arm, ratio)]
        if not all(_finished(folder) for folder in folders):
            return {}
        return _joined([self._measured(folder) for folder in folders])

    def unmade(self, arm: ArmSpec, ratio: float, seeds: Sequence[int]) -> dict[Path, int]:
        """Folder -> images of the arm's sets that are not there yet."""
        if arm.rounds:
            wanted = [(self._folder(arm, ratio, seed), round(ratio * len(self.real))) for seed in seeds]
            return {folder: count for folder, count in wanted if not _finished(folder / f"{arm.rounds - 1}")}
        bands = [(self._folder(arm, edge, seed), counts) for seed in seeds for edge, counts in self._bands(arm, ratio)]
        return {folder: int(counts.sum()) for folder, counts in bands if not _finished(folder)}

    def untrained(self, arm: ArmSpec, seeds: Sequence[int]) -> set[Path]:
        """Folders of the arm's generators that are still to be fine-tuned."""
        own = [(self._session(arm, seed).run, self._adapter(arm, seed)) for seed in seeds]
        return {run.path for run, spec in own if spec.retrains and run.record("finetune") is None}

    def _named_facts(self, name: str) -> dict[str, Any]:
        """The same of a set of the run, measured once per experiment."""
        if name not in self._named:
            images, record = finished_set(self.session.run, name), set_record(self.session.run, name)
            self._named[name] = {"images": len(images), "seconds": record.seconds, **self._measure(images)}
        return self._named[name]

    def _ratios(self, arm: ArmSpec, ratio: float) -> list[float]:
        """Ratios up to this one that the experiment asks for in arms like this one, smallest first: its bands."""
        own = self.experiment.ratios or (self.session.config.evaluate.synthetic_ratio,)
        alike = [spec for spec in self.experiment.arms if _but_name(spec) == _but_name(arm)]
        asked = {wanted for spec in alike for wanted in ((spec.ratio,) if spec.ratio else own)}
        return [*sorted(wanted for wanted in asked if wanted < ratio), ratio]

    def _bands(self, arm: ArmSpec, ratio: float) -> Iterator[tuple[float, np.ndarray]]:
        """Per band its ratio and the images per class, int64 [classes], that smaller ratios have not. Largest
        remainders may give a class fewer at a larger ratio, which takes none away."""
        from dcdm_cli.generation.budget import Budget

        real = self.real.class_counts()
        before = np.zeros_like(real)
        for edge in self._ratios(arm, ratio):
            counts = np.maximum(Budget(ratio=edge).per_label(real) - before, 0)
            if counts.sum():
                yield edge, counts
            before = before + counts

    def _folder(self, arm: ArmSpec, ratio: float, seed: int) -> Path:
        """Of the last band that the ratio needs; of all rounds."""
        return self.session.run.evaluation / "sets" / self.key(arm, ratio, seed)

    def _set_seed(self, seed: int) -> int:
        config = self.session.config
        return seed if config.evaluate.fresh_sets else config.evaluate.seed + config.seed

    def by_adapter(self, seeds: Sequence[int]) -> list[int]:
        """The seeds in the order that opens each adapter once."""
        return sorted(seeds, key=self._turn)

    def _turn(self, seed: int | None) -> int:
        """Which of `fresh_adapters` is a seed's. 0 = the first, trained with the run's own seed."""
        return 0 if seed is None else self._set_seed(seed) % self.experiment.fresh_adapters

    def _adapter(self, arm: ArmSpec, seed: int | None) -> AdapterSpec:
        spec, turn = self.experiment.adapter(arm.adapter), self._turn(seed)
        if not turn:
            return spec
        own = spec.finetune.get("seed", self.session.config.finetune.seed) + turn
        return spec.model_copy(update={"finetune": {**spec.finetune, "seed": own}})

    def _session(self, arm: ArmSpec, seed: int | None = None) -> Session:
        return arm_session(self.session, arm, self._adapter(arm, seed))

    def _make_rounds(self, arm: ArmSpec, ratio: float, seed: int, folder: Path) -> Samples:
        """Each round asks for what classifiers that know the rounds before find hard."""
        from dcdm_cli.stages.next_plan import plan_demand

        session, made = self._session(arm, seed), NOTHING
        total = round(ratio * len(self.real))
        edges = np.linspace(0, total, arm.rounds + 1).round().astype(int)
        for number, (start, stop) in enumerate(pairwise(edges.tolist())):
            place = folder / f"{number}"
            if not _finished(place):
                engine, ready = self._engine(arm, session, seed)
                asked = plan_demand(
                    ready, self.real, made, stop - start, seed + 1000 * number, engine.generator, self.job
                )
                self._run(asked.plan, engine, place)
            made = made + _samples(self._read(place))
        return made

    def _read(self, folder: Path) -> Manifest:
        """A finished set, once it has been held against its ledger. Raises MismatchError for one that does not fit."""
        from dcdm_cli.generation.finished import read_generated
        from dcdm_cli.generation.ledger import ledger_in

        if folder not in self._whole:
            try:
                said = ledger_in(folder).doubt()
            except (MismatchError, NotFoundError) as error:  # no plan, or none that can be read
                said = error.message
            if said:
                again = f"remove {folder}: {MADE_BY} makes it again"
                raise MismatchError(f"{folder} is damaged: {said}", again, file=folder)
            self._whole.add(folder)
        return read_generated(folder, made_by=MADE_BY)

    def _run(self, plan: Plan, engine: Engine, folder: Path) -> None:
        from dcdm_cli.generation.run import run_plan

        clock = time.monotonic()
        # The scorer looks while draws are made only where it chooses among them; a label check always does.
        measure = make_measure(self.session, self.job, score=engine.config.attempts > 1)
        made = run_plan(plan, engine, folder, self.job, measure)
        spent = {"seconds": round(time.monotonic() - clock, 3), "made": made.made, "images": made.images}
        write_json(folder / FACTS, {**spent, "device": self.job.device})

    def _engine(self, arm: ArmSpec, session: Session, seed: int) -> tuple[Engine, Session]:
        """The arm's engine, and its session with what fine-tuning chose."""
        from dcdm_cli.generation.engine import sampler_settings

        settings, spec = session.config.generate, self._adapter(arm, seed)
        draws = [settings.attempts, settings.tolerance, settings.precision, settings.backend]
        key = hash_json([str(session.run.path), sampler_settings(settings), draws])
        if self._open is None or self._open[0] != key:
            self._open = None  # the old networks must go before the new ones come
            ready = ready_for(arm, self.session, spec, self.job)
            self._open = key, open_run_engine(ready, ready.run.adapter, self.job)
        return self._open[1], as_chosen(session, spec)  # the arm's own target, whoever opened the engine

    def _measured(self, folder: Path) -> dict[str, Any]:
        """seconds is None where the process ended between the last image and the writing of the facts."""
        file, facts = folder / FACTS, {}
        if not file.is_file():
            self.job.note(f"what the images in {folder} took is not known: {FACTS} is not there")
        else:
            # only what the file says: a key that is missing was not measured yet, None was and is not known
            facts = read_document(file, SetFacts, f"remove {file}: it is written again").model_dump(exclude_unset=True)
        if "realised_mean" not in facts:
            images = self._read(folder)
            facts = {"seconds": None, "images": len(images), **facts, **self._measure(images)}
            write_json(folder / FACTS, facts)
        return facts

    def _measure(self, images: Manifest) -> dict[str, Any]:
        from dcdm_cli.difficulty.known import found_in
        from dcdm_cli.difficulty.scorer import Scorer

        checked = share_true(images.table["label_checked"])
        rest = {"label_checked": checked if checked is None else round(checked, 4)}
        unknown = {"realised_mean": None, "realised_std": None, "label_agreement": None}
        if not self.session.run.scorer.exists() or not len(images):
            return unknown | rest
        labels, difficulty, predicted = (images.column(n) for n in ("label", "measured_difficulty", "predicted"))
        if not np.isfinite(difficulty).all():  # drawn once, and so not measured on the way
            asked, looked = Scorer.load(self.session.run.scorer, self.job.device), run_features(self.session, self.job)
            found = found_in(images, asked, looked, self.job, "the images are finished")
            difficulty, predicted = found.difficulty, found.predicted
        known = np.isfinite(difficulty)  # the others say nothing about their labels
        if not known.any():
            return unknown | rest
        values = (difficulty[known].mean(), difficulty[known].std(), (predicted == labels)[known].mean())
        return {name: round(float(value), 4) for name, value in zip(unknown, values, strict=True)} | rest


def _plan(session: Session, counts: np.ndarray, seed: int, generator: str) -> Plan:
    """`counts` images per class at the arm's target distribution."""
    from dcdm_cli.generation.plan import make_plan
    from dcdm_cli.generation.targets import parse_target

    config = session.config
    return make_plan(plan_inputs(session), counts, parse_target(config.generate.difficulty), seed, generator)


def _but_name(arm: ArmSpec) -> ArmSpec:
    """Arms that are the same but for what is no matter of their images."""
    return arm.model_copy(update={"name": "", "ratio": None, "augment": False})


def _finished(folder: Path) -> bool:
    """samples.parquet is written last."""
    return (folder / "samples.parquet").is_file()


def _samples(images: Manifest) -> Samples:
    return Samples(images.paths(), images.column("label"))


def _joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Facts of several folders as one, weighted by their images; what one does not know is not known of all."""
    images, seconds = [part["images"] for part in parts], [part["seconds"] for part in parts]
    joined: dict[str, Any] = {"images": sum(images), "seconds": None if None in seconds else round(sum(seconds), 3)}
    for name in ("realised_mean", "realised_std", "label_agreement", "label_checked"):
        known = [(part[name], n) for part, n in zip(parts, images, strict=True) if part.get(name) is not None and n]
        total = sum(n for _, n in known)
        joined[name] = round(sum(value * n for value, n in known) / total, 4) if total else None
    return joined
