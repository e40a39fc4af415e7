"""Opening a generation worker: everything a process on any machine needs to hold the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dcdm_cli.config import GenerateConfig
from dcdm_cli.data.images import DecodeOptions, set_decode_options
from dcdm_cli.difficulty.scorer import Scorer
from dcdm_cli.generation.bulk import EngineMaker
from dcdm_cli.generation.engine import open_engine
from dcdm_cli.generation.shards import Measure
from dcdm_cli.generation.workers import ShardWorker


@dataclass(frozen=True)
class Setup:
    """adapter, scorer: folders; scorer None = images are not measured. threads: CPU threads of one worker."""

    adapter: Path
    config: GenerateConfig
    scorer: Path | None
    decode: DecodeOptions
    threads: int | None = None
    deliver: bool = False


def open_shard_worker(setup: Setup, device: str, should_stop: Callable[[], bool]) -> ShardWorker:
    """A partial of this with `setup` is what a crew's transport takes."""
    if setup.threads:
        torch.set_num_threads(setup.threads)
    set_decode_options(setup.decode)
    engine = open_engine(setup.adapter, setup.config, device)
    measure = measure_with(setup.scorer, device) if setup.scorer else None
    return ShardWorker(EngineMaker(engine, measure), should_stop, deliver=setup.deliver)


def measure_with(scorer: Path, device: str) -> Measure:
    """Finished images measured by a stored scorer."""
    loaded = Scorer.load(scorer, device)

    def measure(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        measured = loaded.measure(images, labels)
        return measured.difficulty, measured.predicted

    return measure
