"""The training loop of every classifier: a stop between any two steps, and a restart that ends with the same weights.

Every random draw of a step is fixed by (seed, step) alone, whoever makes it and in whichever process; so 100 steps
equal 50, a restart, and 50 more. The recipe is not from the paper.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from timm.data.mixup import Mixup
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset

from dcdm_cli.errors import NumericalError
from dcdm_cli.run.checkpoint import (
    Awaited,
    SavedState,
    ScheduleState,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from dcdm_cli.run.progress import Job
from dcdm_cli.run.settings import ClassifierConfig
from dcdm_cli.workers.devices import on_device

PROGRESS = "training classifier"
CHECK_EVERY = 20  # steps between looks at the loss; a look makes a GPU wait
SAVE_EVERY_S = 60.0  # what a kill may cost; a stop saves whatever the clock says
IMAGES, NETWORK = 0, 1  # streams of random numbers of one step


@dataclass(frozen=True)
class FittingState(SavedState):
    """state.json of a classifier's training."""

    schedule: ScheduleState

    @property
    def rates(self) -> ScheduleState:
        return self.schedule


@dataclass(frozen=True)
class Keep:
    """What lets a training stop between two steps and go on from there. job: says when to stop. folder: for its
    checkpoints, of this one training alone, which the caller drops once the result is safe (`forget`); None = what is
    stopped is lost."""

    job: Job
    folder: Path | None = None

    def forget(self) -> None:
        """Drops the checkpoints, and the folder around them if nothing else is in it."""
        if self.folder is None:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.parent.is_dir() and not any(self.folder.parent.iterdir()):
            self.folder.parent.rmdir()


@dataclass(frozen=True)
class Training:
    """Of one training. settings: hash of all that its weights depend on. progress: told after every step."""

    config: ClassifierConfig
    seed: int
    settings: str
    progress: Callable[[str, int, int], None] | None = None
    keep: Keep | None = None


class SeededBatches(Dataset[tuple[Tensor, Tensor]]):
    """Item n: the whole batch of step n, its random transforms seeded by (seed, n). rows: int64 [steps, B]."""

    def __init__(self, images: Dataset[tuple[Tensor, int]], rows: np.ndarray, seed: int) -> None:
        self._images, self._rows, self._seed = images, rows, seed

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        seed_step(self._seed, step, IMAGES)
        pixels, labels = zip(*(self._images[row] for row in self._rows[step].tolist()), strict=True)
        return torch.stack(pixels), torch.tensor(labels)


def fit(
    model: nn.Module,
    standardise: Callable[[Tensor], Tensor],
    batches_from: Callable[[int], Iterable[tuple[Tensor, Tensor]]],
    lesson: Training,
) -> None:
    """Trains `model` in place for `config.steps` optimiser steps, or what is left of them.

    batches_from: a first step -> (pixels uint8 [B, 3, H, W], labels int64 [B]) of every step from it on. Raises
    NumericalError for a loss or weights that are not finite, InterruptedRunError when asked to stop.
    """
    training = _Training(model, lesson)
    training.resume()
    device = next(model.parameters()).device
    for pixels, labels in batches_from(training.step):
        loss = training.take(standardise(pixels.to(device, non_blocking=True)), labels.to(device))
        if training.step % CHECK_EVERY == 0 or training.step == lesson.config.steps:
            training.check(loss)
            training.tell(loss)
        if lesson.progress:
            lesson.progress(PROGRESS, training.step, lesson.config.steps)
        training.stop_or_save(loss)
    # buffers too: running statistics of normalisation can overflow while the loss is finite
    if not all(torch.isfinite(value).all() for value in model.state_dict().values()):
        raise _diverged("its weights are not finite", lesson)


class _Training:
    """State of one training; `step` counts finished optimiser steps."""

    def __init__(self, model: nn.Module, lesson: Training) -> None:
        config = lesson.config
        self.model, self.lesson, self.step = model.train(), lesson, 0
        self.optimiser = create_optimizer_v2(model, "adamw", lr=config.lr, weight_decay=config.weight_decay, fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, _cosine_with_warmup(config.steps))
        self._mixup, self._saved = _mixup(config, model), time.monotonic()

    def take(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """One optimiser step; returns its loss."""
        config = self.lesson.config
        seed_step(self.lesson.seed, self.step, NETWORK, inputs.device)
        inputs, targets = self._mixup(inputs, labels)
        loss = cross_entropy(self.model(inputs), targets, label_smoothing=config.label_smoothing)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.schedule.step()
        self.step += 1
        return loss.detach()

    def check(self, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            steps = self.lesson.config.steps
            raise _diverged(f"its loss is {loss.item()} at step {self.step} of {steps}", self.lesson)

    def tell(self, loss: Tensor) -> None:
        """Beside the progress, when the loss is looked at anyway."""
        if self.lesson.keep is not None:
            self.lesson.keep.job.detail(PROGRESS, f"loss {loss.item():.3g}")

    def stop_or_save(self, loss: Tensor) -> None:
        """At the end there is nothing to stop: the caller keeps the result, and asks itself."""
        keep, steps = self.lesson.keep, self.lesson.config.steps
        if keep is None or self.step == steps:
            return
        asked, folder = keep.job.stop_signal(), keep.folder
        if folder is not None and (asked or time.monotonic() - self._saved > SAVE_EVERY_S):
            self.check(loss)  # a checkpoint of a diverged training would be gone on from for ever
            self._save(folder)
        if asked:
            goes_on = "is trained anew next time" if folder is None else f"goes on at step {self.step} of {steps}"
            keep.job.stop_if_asked(f"this classifier {goes_on}")

    def resume(self) -> None:
        """Checkpoints of another training count as none: what a classifier depends on is its caller's to decide."""
        folder = self.lesson.keep.folder if self.lesson.keep else None
        if folder is None:
            return
        awaited = Awaited(self._tensors(), self.optimiser, self.lesson.config.steps)
        found = load_checkpoint(folder, self.lesson.settings, kind=FittingState, awaited=awaited, replace=True)
        if found is None:
            shutil.rmtree(folder, ignore_errors=True)
            return
        tensors, state = found
        prefix = "model."
        self.model.load_state_dict({n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)})
        restore_optimizer(self.optimiser, tensors)
        self.schedule.load_state_dict(state["schedule"])
        for group, rate in zip(self.optimiser.param_groups, self.schedule.get_last_lr(), strict=True):
            group["lr"] = rate  # the schedule sets it for the step after next only
        self.step = state["step"]

    def _tensors(self) -> dict[str, Tensor]:
        """Of a checkpoint, without the optimiser's."""
        return {f"model.{name}": value for name, value in self.model.state_dict().items()}

    def _save(self, folder: Path) -> None:
        state = {"settings": self.lesson.settings, "schedule": self.schedule.state_dict()}
        save_checkpoint(folder, self.step, self._tensors() | optimizer_tensors(self.optimiser), state, keep=1)
        self._saved = time.monotonic()


def batch_rows(count: int, batch_size: int, steps: int, seed: int) -> np.ndarray:
    """int64 [steps, min(batch_size, count)]: one shuffled pass over the images after the other, cut into batches."""
    batch_size = min(batch_size, count)
    rng = np.random.default_rng(seed)
    # a step never has less than a whole batch: one pass goes over into the next
    passes = -(-steps * batch_size // count)
    stream = np.concatenate([rng.permutation(count) for _ in range(passes)])
    return stream[: steps * batch_size].reshape(steps, batch_size)


def seed_step(seed: int, step: int, stream: int, device: torch.device | None = None) -> None:
    """Seeds the global generators, which timm and torchvision use, for what one step draws. device: also its own."""
    number = int(np.random.SeedSequence((seed, step, stream)).generate_state(1)[0])
    random.seed(number)
    np.random.seed(number)
    torch.default_generator.manual_seed(number)
    if device is not None and device.type == "cuda":
        with on_device(str(device)):  # else the current GPU's is seeded
            torch.cuda.manual_seed(number)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds the global generators that timm and torchvision use, and restores them afterwards."""
    before, numpys = random.getstate(), np.random.get_state()
    on_cuda = device.type == "cuda"
    # only this device's generator is put back, so only it may be seeded: torch.manual_seed seeds every GPU's
    with torch.random.fork_rng([device] if on_cuda else []):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # NumPy takes no larger one
        torch.default_generator.manual_seed(seed)
        if on_cuda:
            with on_device(str(device)):  # else the current GPU's is seeded
                torch.cuda.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(before)
            np.random.set_state(numpys)


def _diverged(what: str, lesson: Training) -> NumericalError:
    return NumericalError(
        f"the training of a classifier ({lesson.config.model}) diverged: {what}",
        f"lower its learning rate (lr = {lesson.config.lr:g} now)",
    )


def _mixup(config: ClassifierConfig, model: nn.Module) -> Callable[..., tuple[Tensor, Tensor]]:
    """(inputs, labels) -> mixed inputs and class probabilities, by timm's Mixup; unchanged where it is off."""
    if not config.mixup:
        return lambda inputs, labels: (inputs, labels)
    # 0: the loss smooths labels, mixed or not
    mix = Mixup(config.mixup, label_smoothing=0.0, num_classes=cast(Any, model).num_classes)

    def mixed(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        even = len(labels) // 2 * 2  # images are mixed in pairs
        return mix(inputs[:even], labels[:even])

    return mixed


def _cosine_with_warmup(steps: int) -> Callable[[int], float]:
    """Factor of the learning rate at a step: linear rise over the first twentieth, then half a cosine towards 0."""
    warmup = max(1, steps // 20)

    def factor(step: int) -> float:
        rest = (step - warmup) / max(1, steps - warmup)
        # + 1, or the first step would learn at a rate of 0
        return (step + 1) / (warmup + 1) if step < warmup else 0.5 * (1 + float(np.cos(np.pi * rest)))

    return factor
