"""A group of training processes: letting the main one go first where work is to be done once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from dcdm_cli.crew.ranks import Ranks

PATIENCE = timedelta(days=1)  # encoding a large set takes the main process hours, and the others wait


@contextmanager
def main_first(ranks: Ranks, device: str) -> Iterator[None]:
    """The main process runs the block, then the others do. Joins the group; accelerate uses it later."""
    if ranks.world == 1:
        yield
        return
    from accelerate import PartialState

    state = PartialState(cpu=device == "cpu", timeout=PATIENCE)
    with state.main_process_first():
        yield
