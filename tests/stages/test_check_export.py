"""`dcdm check` holds an export against its own signature, which its record does not repeat."""

from __future__ import annotations

from pathlib import Path

import pytest

from dcdm_cli.console import Console
from dcdm_cli.run.resolution import resolve
from dcdm_cli.run.session import Session
from dcdm_cli.run.store import Outcome, RunFolder, Stage
from dcdm_cli.stages.check import DAMAGED, FRESH, run_check
from dcdm_export.signature import SIGNATURE_FILE, EngineFile, Signature, digest, write_signature

from ..export.test_signature import FACTS, network


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """With nothing but an export: a graph with its external data, and an engine."""
    run = RunFolder(tmp_path / "run")
    run.create()
    run.export.mkdir()
    (run.export / "denoiser.engine").write_bytes(b"engine" * 100)
    engine = EngineFile("denoiser", "denoiser.engine", 8, "g", "k", "denoiser.json",
                        digest(run.export / "denoiser.engine"))  # fmt: skip
    networks = {"denoiser": network(run.export, "denoiser")}
    write_signature(run.export, Signature(FACTS, networks, "0.1.0", {}, engines=(engine,)))
    run.run(Stage("export", {}, {}), lambda: Outcome([run.export / SIGNATURE_FILE], ""))
    return run


def found(run: RunFolder, *, verify: bool) -> list[tuple[str, str]]:
    session = Session(run, resolve(), Console(quiet=True), False, False, {})
    return [(one.state, one.text) for one in run_check(session, verify=verify) if one.topic == "export"]


@pytest.mark.parametrize("name", ["denoiser.onnx", "denoiser.onnx.data", "denoiser.engine"])
def test_a_network_that_changed_is_damage_and_no_longer_fresh(run: RunFolder, name: str) -> None:
    assert found(run, verify=True) == [(FRESH, "")] == found(run, verify=False)
    file = run.export / name
    content = bytearray(file.read_bytes())
    content[-9] ^= 16
    file.write_bytes(content)
    assert found(run, verify=False) == [(FRESH, "")], "contents are read where that is asked for"
    [(state, text)] = found(run, verify=True)
    assert state == DAMAGED and f"{file} is not the file that was exported" in text
    file.unlink()
    [(state, text)] = found(run, verify=False)
    assert state == DAMAGED and f"{file} is missing" in text
