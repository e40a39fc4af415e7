"""Networks that settings name, opened before a command's work begins: one that cannot be had is said at once, not after
hours of training. The packaged ones are always there."""

from __future__ import annotations

from dcdm_cli.difficulty.packaged import PACKAGED
from dcdm_cli.run.session import Session


def check_compared_by(session: Session) -> None:
    """Of `evaluate.features` and of the classifiers that learn from the arms. Raises what opening a network raises."""
    from dcdm_cli.evaluation.features import JUDGE
    from dcdm_cli.evaluation.learners import check_learner

    # the judge is trained in the run: there is nothing to fetch
    if session.config.evaluate.features != JUDGE:
        _check_features(session.config.evaluate.features)
    check_learner(session.config.downstream)


def check_judged_by(session: Session) -> None:
    """Of `strength.features`."""
    from dcdm_cli.difficulty.checker import DIGITS

    if session.config.strength.features != DIGITS:
        _check_features(session.config.strength.features)


def _check_features(name: str) -> None:
    from dcdm_cli.difficulty.features import open_extractor

    if name != PACKAGED:
        open_extractor(name)
