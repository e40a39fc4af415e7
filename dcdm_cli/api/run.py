"""`Run`: one run folder and what can be done with it. The commands are built on it.

run = Run("birds", preset="sd15")
run.score("photos/"); run.caption(); run.finetune(steps=3000); run.export()
for batch in run.generate(count=4, difficulty=0.5): ...   # batch.images, batch.rows, batch.verdict
run.evaluate().results["adherence"]
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dcdm_cli.api.session import dotted, open_session
from dcdm_cli.console import Console
from dcdm_cli.errors import UsageError
from dcdm_cli.run.session import DEFAULT_RUN, Session, by_calls, checked_name, with_chosen_strength
from dcdm_cli.run.settings import Config
from dcdm_cli.run.store import RunFolder, StageRecord
from dcdm_cli.workers.environment import SAFE_PATH, variables

if TYPE_CHECKING:
    from dcdm_cli.generation.plan import Plan
    from dcdm_cli.generation.pricing import Price
    from dcdm_cli.generation.shards import Rendered
    from dcdm_cli.run.standing import RunStanding
    from dcdm_cli.stages.doctor import Finding


@dataclass(frozen=True)
class GeneratedImages(StageRecord):
    """The record of `generate`, and by iteration its finished images, read back from `folder` batch by batch."""

    folder: Path = Path()
    batch_size: int = 1

    def __iter__(self) -> Iterator[Rendered]:
        from dcdm_cli.generation.finished import finished_batches

        return finished_batches(self.folder, self.batch_size, self.results["plan"])


class PricedPlan(NamedTuple):
    """A plan, what it will cost, and the file that `generate` takes."""

    plan: Plan
    price: Price
    file: Path


class Run:
    """A run folder as the command line sees it: the same settings from the same places, records, errors and files.

    Every verb takes its command's flags as keyword arguments (`steps=3000` for `--steps 3000`), other sections as
    mappings (`strength={"probe_budget": 500}` for `--set`), `seed`, `device`, `threads` and `preset`; does nothing when
    nothing changed, unless `force`; and returns the stage's record. All raise `DcdmError` with message and hint.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        config: str | Path | None = None,
        quiet: bool = False,
        name: str = "",
        **settings: Any,
    ) -> None:
        """folder: None = $DCDM_RUN or ./dcdm-run. config: TOML file with settings. quiet: only warnings on stderr.
        name: which of the run's generated sets is meant, as `--name`.

        settings: of all verbs, as if given with each: `preset`, `device`, sections as mappings.
        """
        self.folder = RunFolder(Path(folder or os.environ.get("DCDM_RUN") or DEFAULT_RUN), checked_name(name))
        self.console = Console(quiet=quiet)
        self._given = dotted(settings)
        self._config_file = Path(config) if config is not None else None
        self._session: Session | None = None
        self.settings()  # what is wrong is said here, not at the first verb

    @classmethod
    def of(cls, session: Session) -> Run:
        """The run as a command has opened it: every verb works with that session instead of opening one."""
        # not `__init__`: it would resolve the settings again, without what the command was told
        run = cls.__new__(cls)
        run.folder, run.console, run._given = session.run, session.console, {}
        run._config_file, run._session = session.config_file, session
        return run

    def __repr__(self) -> str:
        return f"Run({str(self.folder.path)!r})"

    def settings(self, verb: str = "") -> Config:
        """All settings as `verb` would see them; without one, what records of finished stages say does not count."""
        return self._open(verb, False, {}).config

    def record(self, stage: str) -> StageRecord | None:
        """What a finished stage did, calibrate included; None when it was not run."""
        return self.folder.record(stage)

    def score(self, source: str | Path | None = None, *, force: bool = False, **settings: Any) -> StageRecord:
        """How hard each real image is. source: as after `dcdm score`; None = the setting data.source."""
        from dcdm_cli.stages.score import run_score

        with self._opened("score", force, settings) as session:
            return run_score(session, None if source is None else str(source))

    def caption(self, *, force: bool = False, **settings: Any) -> StageRecord:
        """A caption for each image."""
        from dcdm_cli.stages.caption import run_caption

        with self._opened("caption", force, settings) as session:
            return run_caption(session)

    def finetune(self, *, force: bool = False, **settings: Any) -> StageRecord:
        """LoRA and difficulty encoder, then their calibration, whose results the record holds as `calibration`. Images
        without a caption get the template's first, where no `caption` was run and the settings ask for no other.

        Raises UsageError when the settings ask for several devices: such a group of processes is the command's.
        """
        from dcdm_cli.stages.calibrate import calibrate_chosen
        from dcdm_cli.stages.caption import caption_by_template
        from dcdm_cli.stages.finetune import run_finetune

        with self._opened("finetune", force, settings) as session:
            if self._session is None:
                _refuse_devices(session)
            session.run.create(after="score")
            with session.run.lock("dcdm finetune"):  # until calibration has ended: nobody may change the adapter before
                caption_by_template(session)
                record = run_finetune(session)
                chosen = with_chosen_strength(session)
                # of the fine-tuned adapter, whichever one images will be made with
                calibrated = calibrate_chosen(by_calls(chosen))
            if self._session is not None:
                self._session = chosen  # the demo goes on with this session, and generates with what was chosen
            results = {"calibration": calibrated.results} if calibrated else {}
            return replace(record, results=record.results | results)

    def distill(self, *, force: bool = False, **settings: Any) -> StageRecord:
        """One network call that gives what the guided calls give, at the scales that the run generates with, then its
        calibration, whose results the record holds as `calibration`; `generate(guidance="distilled")` uses it."""
        from dcdm_cli.stages.calibrate import run_calibrate
        from dcdm_cli.stages.distill import run_distill

        with self._opened("distill", force, settings) as session:
            session.run.create(after="finetune")
            with session.run.lock("dcdm distill"):
                record = run_distill(session)
                # a session guided so looks at the distilled adapter, which is the one to be measured
                calibrated = run_calibrate(session.with_settings(generate={"guidance": "distilled"}))
            results = {"calibration": calibrated.results} if calibrated else {}
            return replace(record, results=record.results | results)

    def export(self, *, force: bool = False, **settings: Any) -> StageRecord:
        """The fused network as ONNX graphs and TensorRT engines, compared with PyTorch."""
        from dcdm_cli.stages.export import run_export

        with self._opened("export", force, settings) as session:
            return run_export(session)

    def plan(
        self, *, budget_hours: float | None = None, gpu_hour_price: float | None = None, **settings: Any
    ) -> PricedPlan:
        """What `dcdm generate --plan` does: draws a plan, measures what it will cost, writes it; generates nothing."""
        from dcdm_cli.stages.plan import Wishes, write_priced_plan

        with self._opened("generate", False, settings) as session:
            session.run.create(after="finetune")
            with session.run.lock("dcdm generate --plan"):
                return PricedPlan(*write_priced_plan(session, Wishes(budget_hours, gpu_hour_price)))

    def generate(
        self,
        plan: str | Path | None = None,
        *,
        verify: bool = False,
        join: bool = False,
        force: bool = False,
        **settings: Any,
    ) -> GeneratedImages:
        """Makes the images of a plan file, or of the plan that the settings give, in the run's `generated` folder. What
        is there already is not made again; other images there are replaced only with `force`. join: makes none, joins
        what parts of the plan file made."""
        from dcdm_cli.stages.generate import run_generate

        with self._opened("generate", force, settings) as session:
            file = None if plan is None else Path(plan)
            record = run_generate(self._for_plan(session, file, settings), file, verify=verify, join=join)
            batch = session.config.generate.batch_size
            return GeneratedImages(**vars(record), folder=session.run.generated, batch_size=batch)

    def part(self, plan: str | Path, number: int, of: int, **settings: Any) -> dict[str, Any]:
        """Makes part `number` of `of` (1 is the first) of a plan file, without the run's lock, so that jobs that know
        nothing of each other share the work; `generate(plan, join=True)` publishes. Returns what it did."""
        from dcdm_cli.stages.parts import Part, run_part

        with self._opened("generate", False, settings) as session:
            return run_part(self._for_plan(session, Path(plan), settings), Path(plan), Part(number, of))

    def sample(self, **settings: Any) -> Iterator[Rendered]:
        """The images that `generate` would make, a batch at a time while they are made; nothing is written."""
        from dcdm_cli.stages.generate import sample_images

        with self._opened("generate", False, settings) as session:
            yield from sample_images(session)

    def evaluate(self, job: str = "run", which: str = "", *, force: bool = False, **settings: Any) -> StageRecord:
        """Adherence, label agreement, quality, what the images are worth, and the bill.

        job: as the word after `dcdm evaluate`: `run`, `experiment` (which: a built-in name or a TOML file), `check`,
        `filter`, `atlas`, `plan`. `compare_images` is the job of two folders, `compare_sets` that of all sets. Raises
        UsageError for another one.
        """
        from dcdm_cli.stages.evaluation_jobs import run_job

        with self._opened("evaluate", force, settings) as session:
            return run_job(session, job, which)

    def compare_images(self, images: str | Path, against: str | Path, **settings: Any) -> dict[str, Any]:
        """`dcdm evaluate --images FOLDER --against FOLDER`: copies, near duplicates, coverage, density and Fréchet
        distance of any two folders. Needs no finished stage."""
        from dcdm_cli.stages.image_sets import run_image_sets

        with self._opened("evaluate", False, settings) as session:
            return run_image_sets(session, Path(images), Path(against))

    def compare_sets(self, **settings: Any) -> dict[str, Any]:
        """`dcdm evaluate check --name all`: the figures of every generated set, by its name."""
        from dcdm_cli.stages.artefacts import run_compare

        with self._opened("evaluate", False, settings) as session:
            return run_compare(session)

    def review(self, most: int = 60) -> dict[str, Any]:
        """Images to look at, at most `most` of each group, as a table that comes back corrected and as a page."""
        from dcdm_cli.stages.review import run_review

        with self._opened("review", False, {}) as session:
            return run_review(session, most)

    def check(self, *, repair: bool = False, verify: bool = False) -> list[Finding]:
        """Whether what lies in the folder is what the stages left there. repair: writes again what is cheap to make.
        verify: reads every generated image and exported network too."""
        from dcdm_cli.stages.check import run_check

        with self._opened("check", False, {}) as session:
            return run_check(session, repair=repair, verify=verify)

    def status(self) -> RunStanding:
        """Which stages are done, stale or running, what they took, and the next command."""
        from dcdm_cli.stages.status import run_status

        return run_status(self.folder)

    def push(self, what: str, repository: str, *, public: bool = False) -> dict[str, Any]:
        """Puts the `adapter`, or the generated `images`, on the hub; says where they are."""
        from dcdm_cli.stages.push import run_push

        with self._opened("push", False, {}) as session:
            return run_push(session, what, repository, public=public)

    def _for_plan(self, session: Session, plan: Path | None, settings: Mapping[str, Any]) -> Session:
        """What was said of every call is not said of a finished plan, and must not count as a wish to change it."""
        said = self._session is None and plan is not None
        return replace(session, given=dotted(settings, "generate")) if said else session

    def _open(self, verb: str, force: bool, settings: Mapping[str, Any]) -> Session:
        if self._session is not None:
            assert not settings, "a command's session has all its settings"
            return replace(self._session, force=self._session.force or force)
        flags = self._given | dotted(settings, verb)
        place, name = self.folder.path, self.folder.images_name
        return open_session(place, verb, flags, self.console, config_file=self._config_file, force=force, name=name)

    @contextmanager
    def _opened(self, verb: str, force: bool, settings: Mapping[str, Any]) -> Iterator[Session]:
        with variables(SAFE_PATH):  # not for good: the environment of a program that uses this is its own
            try:
                yield self._open(verb, force, settings)
            finally:
                self.console.end_progress()


def _refuse_devices(session: Session) -> None:
    devices = session.config.scale.devices
    if devices:
        raise UsageError(
            "fine-tuning on several devices starts a program once for each of them, and this one is yours",
            f"dcdm finetune --run {session.run.path} --devices {','.join(devices)}",
        )
