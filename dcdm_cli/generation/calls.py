"""What a sampler asks of its network: the calls that an 8-bit network's ranges are set by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import gcd

import numpy as np
from torch import Tensor

from dcdm_cli.backends.base import Denoiser
from dcdm_cli.generation.engine import Engine, render
from dcdm_cli.generation.plan import PlanRow
from dcdm_cli.run.progress import Job

INPUTS = ("latents", "timestep", "text", "label", "difficulty")


@dataclass
class RecordingDenoiser:
    """The same network, and every `every`-th of its calls."""

    network: Denoiser
    every: int
    seen: int = 0
    calls: list[dict[str, np.ndarray]] = field(default_factory=list)

    name = property(lambda self: self.network.name)
    device = property(lambda self: self.network.device)
    shared_calls = property(lambda self: self.network.shared_calls)
    fixed_batch = property(lambda self: self.network.fixed_batch)

    def __call__(self, latents: Tensor, timestep: Tensor, text: Tensor, label: Tensor, difficulty: Tensor) -> Tensor:
        asked = latents, timestep, text, label, difficulty
        if self.seen % self.every == 0:
            # copies: on a CPU numpy() alone shares the tensor's memory
            copies = (tensor.detach().cpu().numpy().copy() for tensor in asked)
            self.calls.append(dict(zip(INPUTS, copies, strict=True)))
        self.seen += 1
        return self.network(*asked)


def record_calls(
    engine: Engine, rows: Sequence[PlanRow], job: Job, batch: int, most: int
) -> list[dict[str, np.ndarray]]:
    """About `most` calls, evenly over the schedule, of one shape: a guided step of `batch` images. Rows that fill no
    batch are left out."""
    whole = rows[: len(rows) // batch * batch]
    every = max(1, len(whole) // batch * engine.config.steps // most)
    # without a common factor: else the same few steps would be seen in each batch
    while gcd(every, engine.config.steps) > 1:
        every += 1
    recorder = RecordingDenoiser(engine.denoiser, every)
    config = engine.config.model_copy(update={"batch_size": batch})
    for _ in render(replace(engine, denoiser=recorder, config=config), whole, job):
        job.stop_if_asked("nothing is exported yet")
    # outside a guidance interval steps have fewer rows, and `export_fp8` takes calls of one shape
    largest = max(len(call["latents"]) for call in recorder.calls)
    return [call for call in recorder.calls if len(call["latents"]) == largest]
