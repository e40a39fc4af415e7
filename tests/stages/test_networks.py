"""A network that cannot be had is said before anything is trained: there is no hub in tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dcdm_cli.errors import NotFoundError
from dcdm_cli.evaluation.learners import check_learner
from dcdm_cli.run.settings import DownstreamConfig
from dcdm_cli.stages.evaluate import run_evaluate
from dcdm_cli.stages.finetune import run_finetune
from tests.evaluating.conftest import finished, run, session_of

__all__ = ["finished", "run"]
NAME = "vit_small_patch14_reg4_dinov2.lvd142m"


@pytest.mark.parametrize(
    "given", [{"evaluate__features": NAME}, {"downstream__method": "features", "downstream__features": NAME}]
)
def test_evaluate_says_so_before_the_judge_is_trained(run: Path, given: dict[str, Any]) -> None:
    with pytest.raises(NotFoundError, match="no pretrained weights"):
        run_evaluate(session_of(run, **given))
    assert not (run / "evaluation/judge").exists()


def test_the_choice_of_strength_says_so_before_anything_is_trained(run: Path) -> None:
    given = {"finetune__strength": "auto", "strength__features": NAME, "strength__probe_budget": 400}
    with pytest.raises(NotFoundError, match="no pretrained weights"):
        run_finetune(session_of(run, **given))
    assert not (run / "checkpoints/adapter").exists()


def test_pretrained_classifiers_of_arms_are_looked_for_too() -> None:
    with pytest.raises(NotFoundError, match="no pretrained weights for 'resnet18'"):
        check_learner(DownstreamConfig(model="resnet18", pretrained=True))
    for known in ({"model": "packaged", "pretrained": True}, {"method": "features"}, {"model": "resnet18"}):
        check_learner(DownstreamConfig.model_validate(known))
