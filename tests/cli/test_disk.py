"""A full, tiny or read-only disk: exit 20, what was finished stays valid, and with room the same command goes on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dcdm_cli.data.manifest import read_manifest

from .conftest import FinishedJob, document, new_run
from .runner import run

KIB = 1024


def storage_error(stderr: str) -> dict:
    error = json.loads(stderr.splitlines()[-1])
    assert (error["kind"], error["code"]) == ("StorageError", 20), stderr
    assert "--run" in error["hint"]
    return error


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".lock") and path.parent.name != "logs"  # of the newest attempt
    }


@pytest.mark.parametrize(
    ("stage", "kib"),
    [
        ("score", 8),
        ("score", 60),
        ("caption", 2),
        ("finetune", 20),
        ("finetune", 100),
        ("generate", 1),
        ("generate", 6),
    ],
)
def test_no_room_for_a_file(scored: Path, job: FinishedJob, photos: Path, tmp_path: Path, stage: str, kib: int) -> None:
    """No file may outgrow the limit, which the system tells as it tells of a full disk."""
    folder = scored
    if stage == "score":
        folder = new_run(tmp_path / "fresh")
    if stage == "generate":
        shutil.copytree(job.run / "adapter", scored / "adapter")
        shutil.copy(job.run / "records" / "finetune.json", scored / "records")
    before = snapshot(folder)
    words = ["score", photos] if stage == "score" else [stage, *(["--template", "x {class}"] * (stage == "caption"))]
    made = run(*words, "--json", "--run", folder, code=20, file_bytes=kib * KIB)
    assert "File too large" in storage_error(made.stderr)["message"]
    kept = snapshot(folder)
    assert {name: kept.get(name) for name in before} == before, "what was there was touched"
    assert not (folder / "records" / f"{stage}.json").exists() or stage == "caption"
    assert document(run(*words, "--json", "--run", folder))
    assert not [path for path in folder.rglob(".*") if ".part" in path.name]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 3 MiB; only where mounting is allowed."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3072k", "none", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting needs rights")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_disk_that_fills_up_and_is_emptied_again(scored: Path, job: FinishedJob, tiny_disk: Path) -> None:
    shutil.copytree(job.run / "adapter", scored / "adapter")
    shutil.copy(job.run / "records" / "finetune.json", scored / "records")
    folder = Path(shutil.copytree(scored, tiny_disk / "run", ignore=shutil.ignore_patterns("figures", "scorer")))
    free = os.statvfs(tiny_disk)
    ballast = tiny_disk / "ballast"
    ballast.write_bytes(b"x" * (free.f_bavail * free.f_frsize - 60 * KIB))
    words = ["generate", "--count", "40", "--batch-size", "2", "--json", "--run", folder]
    made = run(*words, code=20)
    assert "No space left" in storage_error(made.stderr)["message"]
    done = len((folder / "generated" / "shards" / "00000.journal").read_bytes().splitlines())
    ballast.unlink()
    finished = document(run(*words))
    assert finished["images"] == 40 and 0 < finished["made_now"] <= 40 - (
        done - 2
    )  # the batch that met the full disk is made again
    assert all(path.is_file() for path in read_manifest(folder / "generated" / "samples.parquet").paths())


def test_a_read_only_disk_is_refused_before_anything_is_loaded(scored: Path, tiny_disk: Path) -> None:
    ignored = shutil.ignore_patterns("figures", "scorer")
    folder = Path(shutil.copytree(scored, tiny_disk / "run", ignore=ignored))
    subprocess.run(["mount", "-o", "remount,ro", tiny_disk], check=True)
    made = run("finetune", "--json", "--run", folder, code=20)
    assert "Read-only" in storage_error(made.stderr)["message"] and "device:" not in made.stderr
    assert run("config", "show", "--run", folder).returncode == 0  # reading is fine
