"""The fine-tuning loop: LoRA carries the domain, the encoder carries difficulty, one loss trains both (paper).

accelerate moves it to the device, the precision and the processes there are; every random draw of a step is fixed by
(seed, step) alone (dataset.py), so that 100 steps equal 50, a restart, and 50 more.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from dcdm_cli.errors import CapabilityError, NumericalError
from dcdm_cli.files import check_room, hash_json
from dcdm_cli.gate import Count, Finite
from dcdm_cli.model.adapter import adapter_hash, read_adapter
from dcdm_cli.model.base import BaseModel
from dcdm_cli.model.conditioning import NULL_DIFFICULTY, EncoderConfig
from dcdm_cli.model.denoiser import ConditionedUNet
from dcdm_cli.model.encoder import DifficultyEncoder, load_encoder
from dcdm_cli.model.lora import add_lora, inject_lora, lora_parameters
from dcdm_cli.model.schedule import add_noise, training_scheduler
from dcdm_cli.run.checkpoint import (
    Awaited,
    SavedState,
    ScheduleState,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from dcdm_cli.run.precision import settle_precision
from dcdm_cli.run.progress import Job
from dcdm_cli.run.roles import fingerprint
from dcdm_cli.run.settings import FinetuneConfig
from dcdm_cli.training.dataset import Draws, DrawSettings, TrainingSet, draw, refuse_not_finite
from dcdm_cli.training.objective import denoising_loss, min_snr_weights

log = logging.getLogger(__name__)
MAX_BAD_STEPS = 3  # in a row, with a loss or gradient that is not finite
MAX_SCALED_STEPS = 20  # of fp16, whose scaler finds the gradients' range by overflowing while the loss is finite
DIVERGED = 100.0  # a loss that nothing learnt has; predicting nothing at all costs 1
CHECKED_AT_ONCE = 4096  # images' latents
STOP_SIGNALS = (None, "SIGINT", "SIGTERM")  # as numbers, to be compared across processes


@dataclass(frozen=True)
class Snapshots:
    """Steps after which the EMA weights are shown to `keep`, in the main process, on the way to the last step."""

    steps: tuple[int, ...]
    keep: Callable[[int, ConditionedUNet], None]


@dataclass(frozen=True)
class EarlierAdapter:
    """An adapter to go on from: its LoRA acts at `lora_scale`, and learns on only with `train_lora`. with_encoder: its
    encoder learns on too, instead of a fresh one."""

    folder: Path
    lora_scale: float
    train_lora: bool
    with_encoder: bool = False


@dataclass(frozen=True)
class Teacher:
    """Whose predictions are learned instead of the noise, at difficulties of the whole scale. key: hash of all that
    they depend on. predict: (latents [B, 4, h, w], timestep [B], text [B, T, D], label [B], difficulty [B]) ->
    prediction [B, 4, h, w], without gradients."""

    predict: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
    key: str


@dataclass(frozen=True)
class Course:
    """start: what to go on from; None = from nothing. replace: checkpoints of other settings or data, or damaged ones,
    give way instead of being refused. teacher: None = the images alone teach."""

    snapshots: Snapshots | None = None
    start: EarlierAdapter | None = None
    replace: bool = False
    teacher: Teacher | None = None


@dataclass(frozen=True)
class Trained:
    """network: EMA weights in place. losses: one mean per stretch of steps; skipped: steps with a non-finite loss."""

    network: ConditionedUNet
    losses: list[tuple[int, float]]
    skipped: int


@dataclass(frozen=True)
class TrainerState(SavedState):
    """state.json of fine-tuning. losses, window, skipped: as in `Trainer`; scaler: of fp16 alone."""

    lr: ScheduleState
    ema_step: Count
    losses: list[tuple[Count, Finite]]
    window: list[Finite]
    skipped: Count
    scaler: dict[str, Finite] | None

    @property
    def rates(self) -> ScheduleState:
        return self.lr


def finetune(
    base: BaseModel,
    data: TrainingSet,
    classes: int,
    config: FinetuneConfig,
    checkpoints: Path,
    job: Job,
    course: Course | None = None,
) -> Trained:
    """Trains in place of `base.unet`. The same call goes on from the newest checkpoint, which a stop writes first.

    Raises NumericalError for data, losses or weights that are not finite, after `MAX_BAD_STEPS` steps in a row with the
    last good checkpoint kept; MismatchError for checkpoints of another training, InterruptedRunError when asked to
    stop.
    """
    course = course or Course()
    _check_data(data)
    trainer = Trainer(base, data, classes, config, checkpoints, job, course)
    # one more than are kept: a new one is whole before the oldest is deleted
    check_room(checkpoints, trainer.checkpoint_bytes * (config.keep_checkpoints + 1), "the checkpoints")
    trainer.resume(replace=course.replace)
    while trainer.step < config.steps:
        trainer.train_step()
        trainer.report()
        if course.snapshots is not None and trainer.step in course.snapshots.steps:
            trainer.show(course.snapshots)  # before the checkpoint of this step: what goes on from there finds it made
        stop = trainer.asked_to_stop()  # once a step: a signal between save and stop would lose the save
        if trainer.step % config.checkpoint_every == 0 or trainer.step == config.steps or stop:
            trainer.save()
        if stop:
            _stop(job, stop, f"checkpoint at step {trainer.step} of {config.steps}")
    return trainer.finish()


def build_network(
    base: BaseModel, classes: int, config: FinetuneConfig, start: EarlierAdapter | None = None
) -> ConditionedUNet:
    """Adds LoRA to the base's UNet and makes a fresh encoder (none for the plain control). start: with that LoRA."""
    with torch.random.fork_rng(devices=[]):  # weights depend on the seed alone, and nobody else's draws on them
        torch.manual_seed(config.seed)
        if start is None:
            add_lora(base.unet, config.rank, config.alpha, config.lora_targets)
        else:
            _go_on_from(base.unet, start)
        encoder = None
        if start is not None and start.with_encoder:
            encoder = _encoder_of(start)
        elif config.conditioning == "difficulty":
            encoder = DifficultyEncoder(
                EncoderConfig(
                    classes=classes,
                    dim=base.unet.config["cross_attention_dim"],
                    tokens=config.tokens,
                    hidden=config.hidden,
                    frequencies=config.frequencies,
                    label_embedding=config.label_embedding,
                    mode=config.mode,
                )
            )
    return ConditionedUNet(base.unet, encoder, config.resolution)


def _go_on_from(unet: UNet2DConditionModel, start: EarlierAdapter) -> None:
    inject_lora(unet, start.folder, start.lora_scale)
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(start.train_lora and "lora_" in name)
        if parameter.requires_grad:  # half-precision trainable weights lose small updates
            parameter.data = parameter.data.float()


def _encoder_of(start: EarlierAdapter) -> DifficultyEncoder | None:
    """As it was fine-tuned, ready to learn on."""
    encoder = load_encoder(start.folder, read_adapter(start.folder))
    return encoder.train().requires_grad_(True) if encoder is not None else None


class Trainer:
    """State of one fine-tuning run; `step` counts finished optimiser steps."""

    def __init__(
        self,
        base: BaseModel,
        data: TrainingSet,
        classes: int,
        config: FinetuneConfig,
        checkpoints: Path,
        job: Job,
        course: Course | None = None,
    ) -> None:
        course = course or Course()
        self.config, self.data, self.checkpoints, self.job = config, data, checkpoints, job
        self.teacher = course.teacher
        self.accelerator = _accelerator(config, job)
        self.schedule = training_scheduler(base.scheduler_config)
        network = build_network(base, classes, config, course.start)
        if config.gradient_checkpointing:
            network.unet.enable_gradient_checkpointing()
        # before accelerate wraps it: names in checkpoints must not depend on the number of processes
        self.names, parameters = _trainable(network)
        self.optimizer = torch.optim.AdamW(_groups(network, config), weight_decay=1e-2)
        self.lr = get_scheduler(
            config.lr_schedule, self.optimizer, num_warmup_steps=config.warmup_steps, num_training_steps=config.steps
        )
        self.network, self.optimizer = self.accelerator.prepare(network, self.optimizer)
        self.parameters = parameters
        self.ema = EMAModel(parameters, decay=config.ema_decay)
        world = self.accelerator.num_processes
        self.settings = _settings_hash(config, data, base, world, course)
        self.step, self.skipped, self.bad_in_a_row = 0, 0, 0
        self.losses: list[tuple[int, float]] = []
        self._window: list[float] = []
        self.draws = DrawSettings(
            seed=config.seed,
            batch=global_batch(config, world),
            timesteps=self.schedule.config["num_train_timesteps"],
            text_dropout=config.text_dropout,
            difficulty_dropout=config.difficulty_dropout,
            any_difficulty=course.teacher is not None,
        )

    @property
    def checkpoint_bytes(self) -> int:
        """Weights, their moving average and two moments of AdamW."""
        return 4 * sum(parameter.numel() * parameter.element_size() for parameter in self.parameters)

    def train_step(self) -> None:
        draws = draw(self.data, self.draws, self.step)
        accumulation, total = self.config.gradient_accumulation, 0.0
        for micro in range(accumulation):
            with self.accelerator.accumulate(self.network):
                loss = self._loss(draws, self._rows(micro))
                total += self._mean_over_processes(loss) / accumulation
                self.accelerator.backward(loss)
        rates = [float(rate) for rate in self.lr.get_last_lr()]  # before the schedule moves on: these are this step's
        self._apply(total)
        self.step += 1
        self.job.detail("fine-tuning", f"loss {total:.3g}")
        if self.accelerator.is_main_process:
            self.job.log({"step": self.step, "loss": total, "lr": rates[0], "encoder_lr": rates[-1]})

    def asked_to_stop(self) -> str | None:
        """The signal that asked this process or another one of the group: all stop after the same step."""
        name = self.job.stop_signal()
        if self.accelerator.num_processes == 1:
            return name
        # a signal without a number of its own, such as SIGHUP, counts as SIGINT
        own = torch.tensor([STOP_SIGNALS.index(name) if name in STOP_SIGNALS else bool(name)])
        asked = self.accelerator.gather(own.to(self.accelerator.device))
        assert isinstance(asked, Tensor)
        return STOP_SIGNALS[int(asked.max())]

    def report(self) -> None:
        self.job.progress("fine-tuning", self.step, self.config.steps)
        # some 50 points however long the training is; none where all steps of a stretch were skipped
        if self._window and (self.step % max(1, self.config.steps // 50) == 0 or self.step == self.config.steps):
            self.losses.append((self.step, sum(self._window) / len(self._window)))
            self._window.clear()

    def save(self) -> None:
        """The main process writes; the others wait, so that none of them ends the group too early."""
        if self.accelerator.is_main_process:
            self._save()
        self.accelerator.wait_for_everyone()

    def _tensors(self) -> dict[str, Tensor]:
        """Of a checkpoint, without the optimiser's."""
        kept: dict[str, Tensor] = {f"model.{n}": p for n, p in zip(self.names, self.parameters, strict=True)}
        return kept | {f"ema.{n}": p for n, p in zip(self.names, self.ema.shadow_params, strict=True)}

    def _save(self) -> None:
        state = {
            "settings": self.settings,
            "lr": self.lr.state_dict(),
            "ema_step": self.ema.optimization_step,
            "losses": self.losses,
            "window": self._window,
            "skipped": self.skipped,
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
        }
        save_checkpoint(
            self.checkpoints,
            self.step,
            self._tensors() | optimizer_tensors(self.optimizer),
            state,
            self.config.keep_checkpoints,
        )

    def resume(self, *, replace: bool = False) -> None:
        awaited = Awaited(self._tensors(), self.optimizer, self.config.steps)
        found = load_checkpoint(self.checkpoints, self.settings, kind=TrainerState, awaited=awaited, replace=replace)
        self.accelerator.wait_for_everyone()  # before the main process deletes or adds one
        if found is None:
            if self.accelerator.is_main_process:
                shutil.rmtree(self.checkpoints, ignore_errors=True)  # others that give way, or damaged ones
            return
        tensors, state = found
        with torch.no_grad():
            for name, value in awaited.tensors.items():
                value.copy_(tensors[name])
        restore_optimizer(self.optimizer, tensors)
        self.lr.load_state_dict(state["lr"])
        for group, rate in zip(self.optimizer.param_groups, self.lr.get_last_lr(), strict=True):
            group["lr"] = rate  # the scheduler sets it for the step after next only
        self.ema.optimization_step = state["ema_step"]
        self.step, self.skipped, self._window = state["step"], state["skipped"], state["window"]
        self.losses = [(step, loss) for step, loss in state["losses"]]
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def show(self, snapshots: Snapshots) -> None:
        """Puts the EMA weights in place for as long as `keep` looks at them."""
        if self.accelerator.is_main_process:
            self.ema.store(self.parameters)
            self.ema.copy_to(self.parameters)
            snapshots.keep(self.step, self.accelerator.unwrap_model(self.network))
            self.ema.restore(self.parameters)
        self.accelerator.wait_for_everyone()

    def finish(self) -> Trained:
        self.ema.copy_to(self.parameters)
        self._check_result()
        network = self.accelerator.unwrap_model(self.network)
        if self.accelerator.num_processes > 1:
            self.accelerator.wait_for_everyone()
            torch.distributed.destroy_process_group()  # what follows is the main process's alone
        return Trained(network.eval(), self.losses, self.skipped)

    def _check_result(self) -> None:
        """Of the weights that are about to be written: a run may end before bad steps are enough of them, or with
        numbers that are finite and mean nothing."""
        what = ""
        if self.bad_in_a_row:
            what = f"the last {self.bad_in_a_row} of {self.step} steps had a loss or gradient that was not finite"
        elif not (loss := self._loss_to_come()) < DIVERGED:  # not `>=`: NaN is neither
            what = f"the trained weights have a loss of {loss:.3g}, where predicting nothing costs about 1"
        if what:
            raise _diverged(what, self.config, self.checkpoints)

    @torch.no_grad()
    def _loss_to_come(self) -> float:
        """Of a step that would come next, of up to `MAX_BAD_STEPS` the first that means something; the same in every
        process."""
        loss = math.nan
        for step in range(self.step, self.step + MAX_BAD_STEPS):
            loss = self._mean_over_processes(self._loss(draw(self.data, self.draws, step), self._rows(0)))
            if loss < DIVERGED:  # one bad batch is no divergence: training would have skipped it too
                break
        return loss

    def _rows(self, micro: int) -> slice:
        """This process's share of the global batch in one of the accumulated parts of a step."""
        size, accumulation = self.config.batch_size, self.config.gradient_accumulation
        first = (self.accelerator.process_index * accumulation + micro) * size
        return slice(first, first + size)

    def _loss(self, draws: Draws, rows: slice) -> Tensor:
        device = self.accelerator.device
        image, caption = draws.image[rows], self.data.caption[draws.image[rows]]
        caption = torch.where(draws.drop_text[rows], len(self.data.text) - 1, caption)  # last: the empty prompt
        latents = torch.from_numpy(self.data.latents[image.numpy()]).to(device)
        noise, timestep = draws.noise[rows].to(device), draws.timestep[rows].to(device)
        noisy, target = add_noise(self.schedule, latents, noise, timestep)
        text = torch.from_numpy(self.data.text[caption.numpy()]).to(device)
        difficulty = torch.where(draws.drop_difficulty[rows], NULL_DIFFICULTY, draws.difficulty[rows]).to(device)
        asked = noisy, timestep, text, self.data.label[image].to(device), difficulty
        if self.teacher is not None:
            target = self.teacher.predict(*asked)
        with self.accelerator.autocast():
            prediction = self.network(*asked)
        kind = self.schedule.config["prediction_type"]
        weights = min_snr_weights(self.schedule.alphas_cumprod, timestep, self.config.snr_gamma, kind)
        return denoising_loss(prediction, target, weights)

    def _mean_over_processes(self, loss: Tensor) -> float:
        gathered = self.accelerator.gather(loss.detach())
        assert isinstance(gathered, Tensor)
        return gathered.mean().item()

    def _apply(self, loss: float) -> None:
        norm = self.accelerator.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        assert norm is not None
        finite = math.isfinite(loss) and math.isfinite(norm)  # fp16's gradients overflow while the loss is still finite
        if finite or self.accelerator.scaler is not None:  # fp16's scaler skips such a step itself, and adapts to it
            self.optimizer.step()
        if finite:
            self.lr.step()
            self.ema.step(self.parameters)
            self._window.append(loss)
            self.bad_in_a_row = 0
        else:
            self._skip(loss)
        self.optimizer.zero_grad()

    def _skip(self, loss: float) -> None:
        self.skipped += 1
        self.bad_in_a_row += 1
        log.warning("step %d: loss %.4g or its gradient is not finite; step skipped", self.step + 1, loss)
        scaled = self.accelerator.scaler is not None and math.isfinite(loss)
        bad = self.bad_in_a_row
        if bad < (MAX_SCALED_STEPS if scaled else MAX_BAD_STEPS):
            return
        last, self.step = self.step + 1, self.step + 1 - bad  # nothing has changed since: as good as a save back then
        self.skipped -= bad
        self.bad_in_a_row = 0
        self.save()
        raise _diverged(
            f"loss or gradient were not finite for {bad} steps in a row (up to step {last})",
            self.config,
            self.checkpoints,
        )


def _check_data(data: TrainingSet) -> None:
    """Raises NumericalError for latents or text that are not finite, before a step is spent on them."""
    for start in range(0, len(data.latents), CHECKED_AT_ONCE):
        refuse_not_finite(data.latents[start : start + CHECKED_AT_ONCE], start)
    if not np.isfinite(data.text).all():
        raise NumericalError("the text encodings are not finite", "use --precision fp32")


def _diverged(what: str, config: FinetuneConfig, checkpoints: Path) -> NumericalError:
    newest = max((path.name for path in checkpoints.glob("step-*")), default="")
    kept = f"; the last good checkpoint is kept: {checkpoints / newest}" if newest else ""
    return NumericalError(
        f"fine-tuning diverged: {what}; no adapter was written{kept}",
        f"lower --lr ({config.lr:g} now) or --encoder-lr ({config.encoder_lr:g}), or use --precision fp32; "
        "with other settings also --force, which starts over",
        file=checkpoints if newest else None,
    )


def _stop(job: Job, name: str, saved: str) -> None:
    """Raises InterruptedRunError for a signal that this process or another one was sent."""
    replace(job, stop_signal=lambda: name).stop_if_asked(saved)


def _accelerator(config: FinetuneConfig, job: Job) -> Accelerator:
    settled = settle_precision(config.precision, job.device, training=True)
    precision = "no" if settled == "fp32" else settled
    if precision == "fp16" and job.device == "cpu":
        raise CapabilityError("fp16 training needs a GPU", "use --precision fp32 on a CPU")
    return Accelerator(
        mixed_precision=precision, gradient_accumulation_steps=config.gradient_accumulation, cpu=job.device == "cpu"
    )


def _trainable(network: ConditionedUNet) -> tuple[list[str], list[nn.Parameter]]:
    pairs = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    return [name for name, _ in pairs], [p for _, p in pairs]


def _groups(network: ConditionedUNet, config: FinetuneConfig) -> list[dict[str, Any]]:
    lora = lora_parameters(network.unet)
    groups: list[dict[str, Any]] = [{"params": lora, "lr": config.lr}] if lora else []  # none of a frozen one
    if network.encoder is not None:
        groups.append({"params": list(network.encoder.parameters()), "lr": config.encoder_lr})
    return groups


def global_batch(config: FinetuneConfig, processes: int) -> int:
    """Images per optimiser step, over all processes."""
    return config.batch_size * config.gradient_accumulation * processes


def _settings_hash(config: FinetuneConfig, data: TrainingSet, base: BaseModel, processes: int, course: Course) -> str:
    """What a checkpoint must agree on to be continued. How the global batch is shared out is not part of it: a run may
    go on with another number of processes."""
    whole = {"batch_size": global_batch(config, processes), "gradient_accumulation": 1}
    ours = fingerprint(config.model_copy(update=whole))
    rows = [data.label.tolist(), data.difficulty.tolist(), data.caption.tolist()]
    start, teacher = course.start, course.teacher
    begun = [adapter_hash(start.folder), start.lora_scale, start.train_lora] if start else []
    taught = [teacher.key] if teacher else []
    return hash_json([ours, rows, base.fingerprint, *begun, *taught])
