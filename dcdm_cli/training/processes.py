"""A group of training processes: letting the main one go first where work is to be done once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from dcdm_cli.workers.ranks import Ranks

if TYPE_CHECKING:
    from accelerate import PartialState

T = TypeVar("T")

PATIENCE = timedelta(days=1)  # encoding a large set takes the main process hours, and the others wait


@contextmanager
def main_first(ranks: Ranks, device: str) -> Iterator[None]:
    """The main process runs the block, then the others do. Joins the group; accelerate uses it later."""
    if ranks.world == 1:
        yield
        return
    with _joined(device).main_process_first():
        yield


def from_main(ranks: Ranks, device: str, compute: Callable[[], T]) -> T:
    """What the main process computes; the others wait for it and get the same. Joins the group."""
    if ranks.world == 1:
        return compute()
    from accelerate.utils import broadcast_object_list

    _joined(device)
    box: list[Any] = [compute() if ranks.is_main else None]
    return broadcast_object_list(box)[0]


def _joined(device: str) -> PartialState:
    from accelerate import PartialState

    return PartialState(cpu=device == "cpu", timeout=PATIENCE)
