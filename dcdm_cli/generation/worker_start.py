"""Opening generation workers: everything a process on any machine needs to hold the model."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from dcdm_cli.data.images import DecodeOptions, set_decode_options
from dcdm_cli.difficulty.label_check import open_label_check
from dcdm_cli.difficulty.scorer import Scorer
from dcdm_cli.difficulty.verdict import Measure, with_check
from dcdm_cli.generation.engine import open_engine
from dcdm_cli.generation.render import EngineMaker
from dcdm_cli.generation.samples import SampleWorker
from dcdm_cli.generation.workers import SHARE, ShardWorker
from dcdm_cli.run.settings import GenerateConfig
from dcdm_cli.workers.messages import unshared


@dataclass(frozen=True)
class Parcel:
    """A folder's files by name, for machines that do not share a disk."""

    files: dict[str, bytes]

    @classmethod
    def of(cls, folder: Path) -> Parcel:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return cls({path.relative_to(folder).as_posix(): path.read_bytes() for path in files})

    def unpack(self) -> Path:
        """A temporary folder that lives as long as the process."""
        folder = Path(tempfile.mkdtemp(prefix="dcdm-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        for name, content in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return folder


@dataclass(frozen=True)
class Setup:
    """adapter, scorer, export, checker: folders; scorer None = images are not measured, export None = there is none to
    be used, checker None = labels are not checked. threads: CPU threads of one worker.

    deliver: images are sent to the coordinator; then the folders may be parcels.
    """

    adapter: Path | Parcel
    config: GenerateConfig
    scorer: Path | Parcel | None
    decode: DecodeOptions
    threads: int | None = None
    deliver: bool = False
    export: Path | Parcel | None = None
    checker: Path | Parcel | None = None


def open_shard_worker(setup: Setup, device: str, should_stop: Callable[[], bool]) -> ShardWorker:
    """A partial of this with `setup` is what a pool's transport takes."""
    return ShardWorker(_open_maker(setup, device), should_stop, deliver=setup.deliver)


def open_sample_worker(setup: Setup, device: str, should_stop: Callable[[], bool]) -> SampleWorker:
    """The same for images that are only looked at. A batch is short enough to finish."""
    return SampleWorker(_open_maker(setup, device))


def measure_with(scorer: Path | None, checker: Path | None, device: str) -> Measure | None:
    """Finished images measured by a stored scorer and looked at by a stored label check, where there are any."""
    measure = Scorer.load(scorer, device).verdicts if scorer else None
    return with_check(measure, open_label_check(checker, device) if checker else None)


def _open_maker(setup: Setup, device: str) -> EngineMaker:
    if setup.threads:
        torch.set_num_threads(setup.threads)
    # kept per process: without it a worker decodes by the defaults, not as the command does
    set_decode_options(setup.decode)
    adapter, export = _here(setup.adapter), _here(setup.export) if setup.export else None
    engine = open_engine(adapter, setup.config, device, export=export)
    scorer, checker = (_here(folder) if folder else None for folder in (setup.scorer, setup.checker))
    return EngineMaker(engine, measure_with(scorer, checker, device))


def _here(folder: Path | Parcel) -> Path:
    if isinstance(folder, Parcel):
        return folder.unpack()
    if not folder.is_dir():
        raise unshared(folder, SHARE)
    return folder
