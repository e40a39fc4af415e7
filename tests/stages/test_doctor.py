"""What the doctor says of a machine, asked of this one, and of packages and folders that are not as they should be."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from dcdm_cli.backends import sessions
from dcdm_cli.files import leftovers
from dcdm_cli.run import file_system
from dcdm_cli.run.store import RunFolder
from dcdm_cli.stages import doctor


def test_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = {finding.topic: finding for finding in doctor.run_doctor(RunFolder(tmp_path / "run"))}
    assert found["torch"].state == "ok" and "cpu" in found["torch"].text
    assert found["onnxruntime"].state == "ok" and "on CPU" in found["onnxruntime"].text
    assert "HF_HUB_OFFLINE" in found["hub"].text and "fsync" in found["run folder"].text
    assert {"dcdm", "packages", "cpu", "disk", "open files", "token"} <= found.keys()
    assert os.listdir(tmp_path) == [], "nothing is left, and no run folder is made"


def test_what_a_killed_doctor_leaves_is_swept_like_everything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Path] = []
    monkeypatch.setattr(file_system, "_write", lambda place: found.extend(leftovers(tmp_path)))
    file_system.probe_file_system(tmp_path)
    assert [path.name.startswith(".dcdm-doctor-") for path in found] == [True] and os.listdir(tmp_path) == []


def test_the_token_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_TOKEN", "hf_not_to_be_shown")
    assert doctor.Finding("token", "ok", "there is one") in list(doctor.hub(1))
    assert "hf_not_to_be_shown" not in str(list(doctor.hub(1)))


def test_packages_below_their_floors_are_named() -> None:
    needed = ["numpy>=1", "numpy>=99", "no-such-package>=1", 'ray>=99; extra == "ray"']
    assert [line for line, _ in doctor.outdated(needed)] == ["numpy>=99", "no-such-package>=1"]


def test_an_answer_has_a_time_limit_and_a_failure_is_one() -> None:
    clock = time.monotonic()
    assert doctor.within(0.1, lambda: time.sleep(5) or "") == "no answer within 0.1 s"
    assert time.monotonic() - clock < 2
    assert doctor.within(5, lambda: str(1 // 0)).startswith("ZeroDivisionError")


def test_a_backend_that_computes_something_else_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong():
        sessions._check([[2.0, 2.0], [2.0, 3.0]])
        yield "never"

    def absent():
        import no_such_library  # noqa: F401  # pyright: ignore[reportMissingImports]

        yield "never"

    monkeypatch.setattr(sessions, "TRIES", {"torch": wrong, "tensorrt": absent})
    torch, tensorrt = sessions.try_backends()
    assert torch.works is False and "1 + 1" in torch.text
    assert tensorrt.works is None and "dcdm-cli[tensorrt]" in tensorrt.text
    assert [finding.state for finding in doctor.backends()] == ["fault", "note"]


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_a_file_system_that_fails_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def refuse(*words: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(file_system.os, "fsync" if step == "fsync" else "replace", refuse)
    found = file_system.probe_file_system(tmp_path / "not" / "there")
    assert found.failed == f"{step}: {os.strerror(errno.EIO)}" and os.listdir(tmp_path) == []
    finding = next(iter(doctor.file_system(RunFolder(tmp_path))))
    assert finding.state == "fault" and doctor.any_fault([finding])
