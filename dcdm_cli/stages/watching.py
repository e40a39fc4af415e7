"""What can be watched while fine-tuning goes on: its numbers, and a sheet of images every so many steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcdm_cli.run.progress import Job
from dcdm_cli.run.session import Session
from dcdm_cli.run.settings import FinetuneConfig

if TYPE_CHECKING:
    from torch import Tensor

    from dcdm_cli.data.manifest import Manifest
    from dcdm_cli.generation.engine import Engine
    from dcdm_cli.generation.plan import PlanRow
    from dcdm_cli.model.adapter import AdapterInfo
    from dcdm_cli.model.base import BaseModel
    from dcdm_cli.model.denoiser import ConditionedUNet

SHEET_CLASSES, SHEET_DIFFICULTIES = 4, (0.1, 0.3, 0.5, 0.7, 0.9)


@contextmanager
def step_log(session: Session, job: Job, name: str = "") -> Iterator[Job]:
    """The job whose steps go to logs/loss.csv, and to the tracker of `finetune.log_with`. name: of a training whose
    steps go to logs/NAME-loss.csv."""
    from dcdm_cli.training.step_log import StepLog, Tracker

    config, folder = session.config.finetune, session.run.logs
    tracker = Tracker(config.log_with, folder, config.model_dump(mode="json")) if config.log_with else None
    log = StepLog(folder / f"{name}-loss.csv".lstrip("-"))

    def both(numbers: Any) -> None:
        log.add(numbers)
        if tracker:
            tracker.add(numbers)

    try:
        yield replace(job, log=both)
    finally:
        log.flush()
        if tracker:
            tracker.close()


@dataclass(frozen=True)
class Sheets:
    """figures/samples/<adapter>/step-N.png: a few classes at fixed difficulties, from the same noise every time."""

    session: Session
    rows: Manifest
    base: BaseModel
    info: AdapterInfo
    config: FinetuneConfig
    adapter: str

    def steps(self) -> range:
        every = self.config.sample_every
        return range(every, self.config.steps + 1, every)

    def draw(self, step: int, network: ConditionedUNet, job: Job) -> None:
        """With the network as it is; it is in training mode again afterwards, and no random number is drawn."""
        from dcdm_cli.generation.engine import render
        from dcdm_cli.reports.plots import GridRow, image_grid

        training = network.training
        network.eval()
        try:
            made = [
                image for _, batch in render(self._engine(network, job), self.plan, Job(job.device)) for image in batch
            ]
        finally:
            network.train(training)
        folder = self.session.run.figures / "samples" / self.adapter
        folder.mkdir(parents=True, exist_ok=True)
        rows = [
            GridRow(title=name, images=[_picture(i) for i in made[at : at + width]], captions=self._captions(at, width))
            for name, at, width in self._lines()
        ]
        image_grid(
            folder / f"step-{step:08d}.png", rows, f"After {step} steps: difficulty asked for, same noise per row"
        )

    @cached_property
    def plan(self) -> Sequence[PlanRow]:
        from dcdm_cli.generation.plan import PlanRow
        from dcdm_cli.generation.seeds import image_seed

        labels, captions = self.rows.column("label"), self.rows.column("caption")
        rows = []
        for label, name in list(enumerate(self.rows.class_names))[:SHEET_CLASSES]:
            mine = [str(captions[i]) for i in range(len(labels)) if labels[i] == label]
            for s in SHEET_DIFFICULTIES if mine else ():
                seed = image_seed(self.config.seed, label)
                rows.append(PlanRow(len(rows), str(len(rows)), label, name, mine[0], s, s, seed))
        return rows

    def _lines(self) -> Iterator[tuple[str, int, int]]:
        width = len(SHEET_DIFFICULTIES)
        for at in range(0, len(self.plan), width):
            yield self.plan[at].class_name, at, width

    def _captions(self, at: int, width: int) -> list[str]:
        return [f"{row.requested_difficulty:.1f}" for row in self.plan[at : at + width]]

    def _engine(self, network: ConditionedUNet, job: Job) -> Engine:
        from dcdm_cli.generation.engine import Engine
        from dcdm_cli.generation.prompts import PromptCache
        from dcdm_cli.model.base import encode_text
        from dcdm_cli.model.latents import torch_decoder

        # strength 1: the same noise every time, and no source images, whatever generation will start from
        encoder, generate = network.encoder, self.session.config.generate.model_copy(update={"strength": 1.0})
        info = replace(self.info, encoder=encoder.config if encoder else None)
        prompts = PromptCache(lambda captions: encode_text(self.base, captions), job.device)
        denoiser = _InTraining(network, job.device, self.config.precision)
        return Engine(denoiser, torch_decoder(self.base.vae), self.base, info, generate, prompts, "", "training")


@dataclass(frozen=True)
class _InTraining:
    """The network as it is being trained, asked without being changed for inference."""

    network: ConditionedUNet
    device: str
    precision: str
    name: str = "torch (training)"
    shared_calls: int = 1
    fixed_batch: bool = False

    def __call__(self, latents: Tensor, timestep: Tensor, text: Tensor, label: Tensor, difficulty: Tensor) -> Tensor:
        import torch

        half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(self.precision)
        with torch.no_grad(), torch.autocast(self.device.split(":")[0], half) if half else nullcontext():
            return self.network(latents, timestep, text, label, difficulty).float()


def _picture(pixels: Any) -> Any:
    from PIL import Image

    return Image.fromarray(pixels)


def draw_losses(file: Path, results: Mapping[str, Any]) -> Path:
    """The losses of `train_adapter`'s results as a figure."""
    from dcdm_cli.reports.plots import loss_curve

    steps, losses = zip(*results["losses"], strict=True) if results["losses"] else ((), ())
    file.parent.mkdir(exist_ok=True)
    return loss_curve(file, steps, losses)
