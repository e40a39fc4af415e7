"""What a first look with the preset `small` is, what to expect of it, and what the same run takes at full size."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from dcdm_cli.generation.guidance import taught_guidance
from dcdm_cli.model.packaged import SMALL_NAME
from dcdm_cli.pace import estimated
from dcdm_cli.run.resolution import resolve
from dcdm_cli.run.session import Session
from dcdm_cli.run.settings import Config
from dcdm_cli.run.standing import run_words
from dcdm_cli.run.store import RunFolder

if TYPE_CHECKING:
    from dcdm_cli.reports.advice import Advice

FULL_SIZE = "sd15"
# An optimiser step of that preset, one network call of one image, and the memory of a step; with random weights.
# They are those of benchmarks/results/bench_sd15_finetune.json and bench_sd15.json, which a test compares.
GPU, STEP_S, CALL_S, STEP_GIB = "an NVIDIA H200", 0.383, 0.00383, 4.35


def is_first_look(config: Config) -> bool:
    """Whether the base is the packaged one of 32 px, which is what the preset is about."""
    return config.finetune.base == SMALL_NAME


def first_look_sentences(config: Config) -> list[str]:
    """What it is and what to expect; empty where it is none."""
    if not is_first_look(config):
        return []
    side = f"{config.finetune.resolution} px"
    return [
        f"This is a first look. Pictures are reduced to {side}, and the base model is the small one in the box, which "
        "knows CIFAR-10's ten classes: airplane, automobile, bird, cat, deer, dog, frog, horse, ship and truck.",
        f"Expect of {side}: shapes and colours stay, details are lost. Classes that differ in details look alike, and "
        "images of classes that the base does not know are rough. Which images are hard and which labels look wrong is "
        "worth reading; what generated images are worth to you is decided at full size.",
    ]


def full_size_advice(session: Session, images: int) -> list[Advice]:
    """The same run with Stable Diffusion, and what it takes to make as many images; nothing where this is no first
    look."""
    if not is_first_look(session.config):
        return []
    from dcdm_cli.reports.advice import Advice

    config = resolve(flags={"preset": FULL_SIZE}).config
    training, each = full_size_seconds(config), image_seconds(config)
    probes = config.calibrate.points * config.calibrate.images
    why = (
        f"On {GPU}: about {estimated(training)} for fine-tuning's {config.finetune.steps:,} steps, in {STEP_GIB:.1f} "
        f"GiB of its memory; {estimated(probes * each)} for the {probes} images of calibration; "
        f"{estimated(images * each)} for {images} images of {config.finetune.resolution} px. Measured with random "
        "weights. A slower GPU takes longer in proportion, and the classifiers of scoring and evaluation come on top."
    )
    source, run = session.config.data.source, session.run.path
    # in a run folder of its own: scoring here would replace what this run is about
    beside = run_words(RunFolder(run.with_name(f"{run.name}-{FULL_SIZE}")))
    words = f"dcdm score {shlex.quote(source) if source else 'FOLDER'} --preset {FULL_SIZE}{beside}"
    return [Advice("And at full size?", "The same commands with Stable Diffusion, on a GPU", why, words)]


def full_size_seconds(config: Config) -> float:
    """Of fine-tuning with the full-size preset."""
    return config.finetune.steps * STEP_S


def image_seconds(config: Config) -> float:
    """Of one image with the full-size preset, as many network calls as its guidance takes."""
    guidance = taught_guidance(config.generate, plain=False)
    return CALL_S * sum(len(calls) for calls in guidance.schedule(config.generate.steps))
