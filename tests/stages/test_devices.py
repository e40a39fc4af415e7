"""Workers of a command do what the command itself would do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dcdm_cli.console import Console
from dcdm_cli.data.images import decode_options, set_decode_options
from dcdm_cli.run.resolution import resolve
from dcdm_cli.run.session import Session
from dcdm_cli.run.store import RunFolder
from dcdm_cli.stages.devices import Placement, pool_of
from dcdm_cli.stages.jobs import open_job

from ..workers.toys import DecodingWorker


@pytest.fixture
def usual_decoding() -> Iterator[None]:
    before = decode_options()
    yield
    set_decode_options(before)


@pytest.mark.usefixtures("usual_decoding")
def test_workers_decode_images_as_the_command_does(tmp_path: Path) -> None:
    flags = {"device": "cpu", "data.max_pixels": 200_000_000, "data.fit": "pad", "data.reduce_to": 32}
    session = Session(RunFolder(tmp_path / "run"), resolve(flags=flags), Console(quiet=True), False, False, flags)
    job = open_job(session)
    opened = pool_of(session, Placement(["cpu"], threads=1), job)
    assert opened is not None
    with opened(DecodingWorker) as pool:
        assert pool.first_hello()["decodes"] == decode_options()
    assert (decode_options().max_pixels, decode_options().fit, decode_options().reduce_to) == (200_000_000, "pad", 32)
