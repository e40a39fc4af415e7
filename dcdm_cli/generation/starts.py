"""What images begin from where it is not noise alone: latents of real images, by the sample ids that plan rows name.

Needs no torch. Whoever deals out work hands over what its rows need, so that workers see neither the images nor the
cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dcdm_cli.errors import MismatchError, NumericalError
from dcdm_cli.generation.plan import PlanRow


@dataclass(frozen=True)
class Starts:
    """latents: float32 [N, 4, h, w], perhaps a memory map. row_of: sample id -> row of it."""

    row_of: Mapping[str, int]
    latents: np.ndarray

    def of(self, rows: Sequence[PlanRow]) -> np.ndarray:
        """float32 [len(rows), 4, h, w]. Raises MismatchError for a row without a source, or with one that is not here,
        NumericalError for latents that are not finite."""
        latents = np.stack([self.latents[self._place(row)] for row in rows])
        if not np.isfinite(latents).all():
            raise NumericalError(
                "the cached latents of a source image are not finite: the cache is damaged",
                "remove cache/ in the run folder and run it again",
            )
        return latents

    def needed_by(self, rows: Sequence[PlanRow]) -> Starts:
        """A copy of what these rows begin from, each image once."""
        places = {row.source_id or "": self._place(row) for row in rows}
        latents = np.asarray(self.latents[list(places.values())])  # of a memory map, no memory map
        return Starts(dict(zip(places, range(len(places)), strict=True)), latents)

    def _place(self, row: PlanRow) -> int:
        place = self.row_of.get(row.source_id or "")
        if place is None:
            named = f"starts from {row.source_id}, which is no" if row.source_id else "names no"
            raise MismatchError(
                f"row {row.index} of the plan {named} usable training image of this run",
                "make a new plan: dcdm generate --plan, or restore the images that it was made for (dcdm score)",
            )
        return place
