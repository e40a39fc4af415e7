"""Which network calls a step makes, and with which weights. Needs no torch.

eps = e(none, none) + w_text * (e(text, none) - e(none, none)) + w_difficulty * (e(text, s) - e(text, none))

Not from the paper. Equal scales need no text-only call, w_text = 1 no unconditional one: two calls instead of three.
Outside the guidance interval both scales are 1, which leaves e(text, s) alone: one call.

More guidance by text makes images that are more typical of it, and easier. With a span each image has a scale of its
own, by the difficulty that is asked for, so that difficulty follows the request whether or not an encoder has learned
it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcdm_cli.errors import MismatchError, UsageError
from dcdm_cli.run.settings import GenerateConfig

if TYPE_CHECKING:
    from dcdm_cli.model.adapter import AdapterInfo


STANDS_FOR = ("text_guidance", "difficulty_guidance", "guidance_interval", "negative_prompt", "lora_scale")


@dataclass(frozen=True)
class Guidance:
    """interval: the part of the schedule that is guided, as fractions of its steps; 0 = pure noise, 1 = the image.

    Limited intervals: Kynkäänniemi et al. 2024, arXiv 2404.07724. Not from the DCDM paper.

    span: the text's scale at the request 0 and at the request 1, in between in proportion, in the place of `text`,
    which then says only whether there is one scale for both, as it is where it equals `difficulty`.
    """

    text: float = 1.0
    difficulty: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    span: tuple[float, float] | None = None

    def weights(self, requested: Any = 0.0) -> dict[str, Any]:
        """Weight of each network call of a guided step; calls with weight 0 are not made. requested: difficulty in
        [0, 1], a number or a tensor of such that has as many dimensions as what is weighted; it counts with a span
        alone, and weights are of its kind then."""
        if self.span is not None:
            return self._by_request(self.span[0] + (self.span[1] - self.span[0]) * requested)
        calls = {"none": 1 - self.text, "text": self.text - self.difficulty, "full": self.difficulty}
        return {name: weight for name, weight in calls.items() if weight != 0}

    def _by_request(self, text: Any) -> dict[str, Any]:
        # the same calls for all images of a batch, whose weights may be 0 for some
        if self.text == self.difficulty:
            return {"none": 1 - text, "full": text}
        return {"none": 1 - text, "text": text - self.difficulty, "full": self.difficulty}

    def schedule(self, steps: int, requested: Any = 0.0) -> list[dict[str, Any]]:
        """`weights` of each step. A step counts as inside the interval when its middle is."""
        low, high = self.interval
        inside = [low <= (step + 0.5) / steps <= high for step in range(steps)]
        weights = self.weights(requested)
        return [weights if guided else {"full": 1.0} for guided in inside]

    def call_counts(self, steps: int) -> frozenset[int]:
        """The numbers of calls that steps make: one number, or two with an interval."""
        return frozenset(len(weights) for weights in self.schedule(steps))

    def shared_calls(self, steps: int) -> int:
        """How many calls may share their prefix: those of a step if all steps make as many, else 1."""
        counts = self.call_counts(steps)
        return max(counts) if len(counts) == 1 else 1


def guidance_of(config: GenerateConfig, *, plain: bool) -> Guidance:
    """plain: a LoRA without difficulty has no difficulty term; one scale for both makes it two calls. What is distilled
    is guided already: one call."""
    return Guidance() if config.guidance == "distilled" else taught_guidance(config, plain=plain)


def taught_guidance(config: GenerateConfig, *, plain: bool) -> Guidance:
    """The guidance of the scales, by calls: what is distilled learns this one."""
    text, difficulty = config.text_guidance, config.difficulty_guidance
    return Guidance(text, text if plain else difficulty, config.guidance_interval or (0.0, 1.0), config.guidance_span)


def stands_for(config: GenerateConfig) -> dict[str, Any]:
    """The settings that a distilled adapter has in it, and that it can be used with alone, as plain JSON values."""
    return config.model_dump(mode="json", include=set(STANDS_FOR))


def check_guidance(adapter: Path, info: AdapterInfo, config: GenerateConfig) -> None:
    """Raises MismatchError when the adapter is not distilled and one call is asked for, the other way round, or when it
    was distilled for other settings than these."""
    if config.guidance == "calls":
        if info.distilled is not None:
            raise MismatchError(
                f"the adapter in {adapter} is distilled: its one call is guided already", "use --guidance distilled"
            )
        return
    check_one_scale(config)
    if info.distilled is None:
        raise MismatchError(f"the adapter in {adapter} is not distilled", "dcdm distill, or use --guidance calls")
    wanted, made = {name: getattr(config, name) for name in STANDS_FOR}, asdict(info.distilled)
    others = [name for name, value in wanted.items() if value != made[name]]
    if others:
        said = ", ".join(f"{name} = {_said(made[name])}, not {_said(wanted[name])}" for name in others)
        back = " ".join(f"--set generate.{name}={_said(made[name])}" for name in others)
        again = " ".join(f"--set generate.{name}={_said(wanted[name])}" for name in others)
        raise MismatchError(
            f"the adapter in {adapter} was distilled for {said}",
            f"use it as it was made: {back}, or make it again: dcdm distill {again}",
        )


def check_one_scale(config: GenerateConfig) -> None:
    """Raises UsageError where images have scales of their own: what is distilled has one for all."""
    if config.guidance_span is not None:
        raise UsageError(
            "generate.guidance_span gives each image a scale of its own, and a distilled call has one for all",
            "leave one of them out: --guidance-span none, or --guidance calls",
        )


def _said(value: Any) -> str:
    """As `--set` takes it."""
    if isinstance(value, tuple):
        return f"[{', '.join(f'{part:g}' for part in value)}]"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else repr(value)
