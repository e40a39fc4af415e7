"""Where weak fine-tuning is worth most, difficulty may not follow the request: said, and gone on with."""

from __future__ import annotations

import numpy as np
import pytest

from dcdm_cli.difficulty.calibration import fit_calibration
from dcdm_cli.errors import FlatResponseError
from dcdm_cli.run.session import Session
from dcdm_cli.stages import calibrate

from .conftest import Open


def test_a_flat_response_stops_only_where_the_strength_was_not_chosen(
    session: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flat(opened: Session) -> None:
        requested = np.repeat([0.2, 0.5, 0.8], 4)
        fit_calibration(requested, 1 - requested, requested > 0, np.zeros(12, int), 1, {})

    monkeypatch.setattr(calibrate, "run_calibrate", flat)
    with pytest.raises(FlatResponseError, match="does not rise with the request"):
        calibrate.calibrate_chosen(session(finetune__strength=None))
    assert calibrate.calibrate_chosen(session(finetune__strength="auto")) is None
