"""Few-step LoRAs beside the adapter (LCM, TCD, Hyper-SD, Lightning), and the samplers they were made for.

Not from the paper. Such a LoRA is distilled from a base's many steps, and its guidance is part of it: it gives an image
in one to eight steps of its own sampler with little guidance or none, and nonsense otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from dcdm_cli.errors import NotFoundError, UsageError
from dcdm_cli.files import hash_file
from dcdm_cli.model.lora import LORA_FILE, fuse, load_into

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

    from dcdm_cli.run.settings import GenerateConfig

MOST_GUIDANCE = {"lcm": 2.0, "tcd": 1.0, "euler": 1.0}  # as their authors use them; 1 = off
STOCHASTIC = ("lcm", "tcd")  # they add fresh noise at every step
MOST_STEPS = {"lcm": 50}  # of the schedule that LCMs were distilled on
_NAME = "few-step"


@dataclass(frozen=True)
class ExtraLora:
    """file: safetensors, in diffusers' or kohya's names. weight: how strongly it acts."""

    file: Path
    weight: float

    @property
    def identity(self) -> str:
        """Of what it does to the network: it may be moved, not changed."""
        stat = self.file.stat()
        return f"{_digest(self.file, stat.st_size, stat.st_mtime_ns)[:16]}:{self.weight:g}"


def parse_extra_lora(text: str) -> ExtraLora:
    """`FILE`, `FOLDER`, or either with `:WEIGHT`. Raises UsageError for a weight that is none, NotFoundError when there
    is no such file."""
    place, colon, tail = text.rpartition(":")
    if not colon:
        place, tail = text, "1"
    try:
        weight = float(tail)
    except ValueError:
        place, weight = text, 1.0  # a colon in the path
    if not 0 < weight <= 2:
        raise UsageError(f"generate.extra_lora = {text!r}: the weight must lie above 0 and up to 2", "such as PATH:1")
    path = Path(place).expanduser()
    file = path / LORA_FILE if path.is_dir() else path
    if not file.is_file():
        raise NotFoundError(f"generate.extra_lora: no file {file}", "give PATH or PATH:WEIGHT", file=file)
    return ExtraLora(file, weight)


def extra_lora_of(config: GenerateConfig) -> ExtraLora | None:
    """The settings' few-step LoRA; raises what `parse_extra_lora` raises."""
    return parse_extra_lora(config.extra_lora) if config.extra_lora else None


def identity_of(config: GenerateConfig) -> str:
    """Of the settings' few-step LoRA, "" without one. One that is gone is its name: `dcdm status` must not fail."""
    try:
        extra = extra_lora_of(config)
    except NotFoundError:
        return str(config.extra_lora)
    return extra.identity if extra else ""


def check_few_steps(config: GenerateConfig) -> None:
    """Raises UsageError when sampler, few-step LoRA, guidance and steps do not go together."""
    name, extra = config.scheduler, config.extra_lora
    if extra and name not in MOST_GUIDANCE:
        raise UsageError(
            f"generate.extra_lora is for few-step LoRAs, and generate.scheduler = {name!r} is no sampler of theirs",
            f"give the one it was made for: --scheduler {' | '.join(MOST_GUIDANCE)}",
        )
    if extra and config.guidance == "distilled":
        raise UsageError(
            "generate.extra_lora and generate.guidance = 'distilled' are two ways to few calls, and do not go together",
            "leave one of them out",
        )
    # Euler without such a LoRA is a sampler like any other, and bears any guidance
    if not extra and name not in STOCHASTIC:
        return
    most = MOST_GUIDANCE[name]
    lower: dict[str, str] = dict.fromkeys(("text_guidance", "difficulty_guidance"), f"{most:g}")
    asked = {scale: getattr(config, scale) for scale in lower}
    if config.guidance_span is not None:
        asked["guidance_span"], lower["guidance_span"] = max(config.guidance_span), "none"
    for scale, value in asked.items():
        if value > most:
            raise UsageError(
                f"generate.{scale} = {value:g} is more than few-step sampling with {name} bears: {most:g}",
                " ".join(f"--{flag.replace('_', '-')} {lowest}" for flag, lowest in lower.items()),
            )
    if config.steps > MOST_STEPS.get(name, config.steps):
        raise UsageError(f"{name} has a schedule of {MOST_STEPS[name]} steps", "--steps 4 to --steps 8 are usual")
    if name in STOCHASTIC and config.strength < 1:
        raise UsageError(f"{name} starts from noise alone", "leave generate.strength at 1, or take --scheduler euler")


def fuse_extra(unet: UNet2DConditionModel, extra: ExtraLora) -> None:
    """Adds it to the weights, for good. Raises MismatchError when it was made for another UNet, or not for it alone."""
    load_into(
        unet,
        extra.file,
        _NAME,
        again="get the file again",
        remedy="take the few-step LoRA that was made for it, or leave generate.extra_lora out",
    )
    fuse(unet, _NAME, extra.weight)


@lru_cache(maxsize=16)
def _digest(file: Path, size: int, time: int) -> str:
    """size, time: of the file, so that another one in its place is read."""
    return hash_file(file)
