"""What fine-tuning will do, told before it begins, and how long all of it takes once a step is timed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from dcdm_cli.generation.guidance import taught_guidance
from dcdm_cli.pace import LONG_S, Pace, estimated
from dcdm_cli.run.progress import Job
from dcdm_cli.run.session import Session
from dcdm_cli.run.settings import FinetuneConfig

TRAINING = "fine-tuning"  # as its progress is called
STEP_CALLS = 3  # network calls that a training step of one image is worth: one forwards, and about two backwards


@dataclass(frozen=True)
class Pieces:
    """steps: of the optimiser, of batch images each; images: drawn and looked at, of calls network calls each. told: a
    few words per piece, in the order in which they come."""

    steps: int
    batch: int
    images: int
    calls: int
    told: tuple[str, ...]

    def seconds(self, step: float) -> tuple[float, float]:
        """Of the steps, and a guess for the images from what a step takes: the same network, as often as it is called.
        step: seconds."""
        return self.steps * step, self.images * self.calls * step / (STEP_CALLS * self.batch)


def finetune_pieces(session: Session) -> Pieces:
    """Raises UsageError for a budget of probes that gives a point of strength too few images."""
    config, calibrate = session.config.finetune, session.config.calibrate
    plain = config.conditioning == "none"
    chosen = config.strength is None or config.strength == "auto"
    steps = config.steps if chosen else int(config.strength or 0)
    told, images = [f"{steps:,} steps of {config.batch_size} images"], 0
    if config.strength == "auto":
        points, each = _probes(session, config)
        probes = "1 probe" if points == 1 else f"{points} probes"
        told.append(f"{probes} of {each} images to choose how far to go")
        images += points * each
    if config.own_draws and not plain:
        told.append(f"{config.own_draws:,} own draws and {config.own_steps:,} steps to learn from them")
        images, steps = images + config.own_draws, steps + config.own_steps
    # as `run_calibrate` decides
    if calibrate.enabled and not plain and session.run.scorer.exists():
        told.append(f"{calibrate.points} x {calibrate.images} images of calibration")
        images += calibrate.points * calibrate.images
    generate = session.config.generate
    # step by step: with a guidance interval their number varies
    calls = sum(len(each) for each in taught_guidance(generate, plain=plain).schedule(generate.steps))
    return Pieces(steps, config.batch_size, images, calls, tuple(told))


def _probes(session: Session, config: FinetuneConfig) -> tuple[int, int]:
    """(points, images of each)"""
    from dcdm_cli.stages.strength import drawn_per_point, grid, images_per_point

    points = len(grid(session, config))
    return points, drawn_per_point(images_per_point(session.config.strength.probe_budget, points))


@dataclass
class Teller:
    """Says once how long all of it takes, from the pace of the training steps."""

    pieces: Pieces
    job: Job
    pace: Pace = field(default_factory=lambda: Pace(TRAINING))
    said: bool = False
    name: str = "finetune"  # of what is fine-tuned

    def progress(self, what: str, done: int, total: int) -> None:
        self.job.progress(what, done, total)
        if what != TRAINING or self.said:
            return
        self.pace.see(done)
        if (rate := self.pace.measured) is None:
            return
        self.said = True
        steps, images = self.pieces.seconds(1 / rate)
        if steps + images >= LONG_S:
            after = f", then about {estimated(images)} for {self.pieces.images:,} images" if images else ""
            self.job.note(
                f"{self.name}: about {estimated(steps)} for {self.pieces.steps:,} steps{after}, by the first steps"
            )


def foretelling(session: Session, job: Job, name: str = "finetune") -> Job:
    """The job that says what is to come: the pieces now, their time as soon as it is known."""
    pieces = finetune_pieces(session)
    session.console.note(f"{name}: {'; '.join(pieces.told)}")
    return replace(job, progress=Teller(pieces, job, name=name).progress)
