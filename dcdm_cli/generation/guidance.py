"""Which network calls a step makes, and with which weights. Needs no torch.

eps = e(none, none) + w_text * (e(text, none) - e(none, none)) + w_difficulty * (e(text, s) - e(text, none))

Not from the paper. Equal scales need no text-only call, w_text = 1 no unconditional one: two calls instead of three.
Outside the guidance interval both scales are 1, which leaves e(text, s) alone: one call.
"""

from __future__ import annotations

from dataclasses import dataclass

from dcdm_cli.run.settings import GenerateConfig


@dataclass(frozen=True)
class Guidance:
    """interval: the part of the schedule that is guided, as fractions of its steps; 0 = pure noise, 1 = the image.

    Limited intervals: Kynkäänniemi et al. 2024, arXiv 2404.07724. Not from the DCDM paper.
    """

    text: float = 1.0
    difficulty: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)

    def weights(self) -> dict[str, float]:
        """Weight of each network call of a guided step; calls with weight 0 are not made."""
        calls = {"none": 1 - self.text, "text": self.text - self.difficulty, "full": self.difficulty}
        return {name: weight for name, weight in calls.items() if weight != 0}

    def schedule(self, steps: int) -> list[dict[str, float]]:
        """`weights` of each step. A step counts as inside the interval when its middle is."""
        low, high = self.interval
        inside = [low <= (step + 0.5) / steps <= high for step in range(steps)]
        return [self.weights() if guided else {"full": 1.0} for guided in inside]

    def call_counts(self, steps: int) -> frozenset[int]:
        """The numbers of calls that steps make: one number, or two with an interval."""
        return frozenset(len(weights) for weights in self.schedule(steps))

    def shared_calls(self, steps: int) -> int:
        """How many calls may share their prefix: those of a step if all steps make as many, else 1."""
        counts = self.call_counts(steps)
        return max(counts) if len(counts) == 1 else 1


def guidance_of(config: GenerateConfig, *, plain: bool) -> Guidance:
    """plain: a LoRA without difficulty has no difficulty term; one scale for both makes it two calls."""
    text, difficulty = config.text_guidance, config.difficulty_guidance
    return Guidance(text, text if plain else difficulty, config.guidance_interval or (0.0, 1.0))
