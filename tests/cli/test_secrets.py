"""What is secret in the environment stays there: no file of a run holds it, and no command says it."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from .conftest import SECRETS, FinishedJob
from .runner import run

OTHERS = (["doctor", "--json"], ["config", "show"], ["status"], ["status", "--json"], ["check"])


def betrayed(folder: Path) -> list[str]:
    """Files whose names or contents hold a secret, packed ones unpacked."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return [str(file) for file in files if secrets_in(str(file).encode(), *contents(file))]


def secrets_in(*texts: bytes) -> list[str]:
    return [name for name, value in SECRETS.items() if any(value.encode() in text for text in texts)]


def contents(file: Path) -> Iterator[bytes]:
    yield file.read_bytes()
    if file.suffix == ".parquet":
        table = pq.read_table(file)
        yield str(table.schema).encode() + str(table.schema.metadata).encode() + str(table.to_pylist()).encode()
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as packed:
            yield from (packed.read(name) for name in packed.namelist())


def test_a_secret_would_be_found_wherever_it_is(tmp_path: Path) -> None:
    value = SECRETS["HF_TOKEN"]
    (tmp_path / "plain.json").write_text(f'{{"env": "{value}"}}')
    pq.write_table(pa.table({"caption": [value] * 50}), tmp_path / "table.parquet", compression="zstd")
    with zipfile.ZipFile(tmp_path / "arrays.npz", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a", value * 50)
    (tmp_path / value).touch()
    (tmp_path / "clean.txt").write_text("nothing")
    assert [Path(file).name for file in betrayed(tmp_path)] == ["arrays.npz", value, "plain.json", "table.parquet"]


def test_no_stage_writes_or_says_what_is_secret_in_the_environment(job: FinishedJob) -> None:
    assert {"README.md", "report.html", "dcdm.toml"} <= {file.name for file in job.run.rglob("*")}, "cards and reports"
    assert betrayed(job.run) == [] and secrets_in(job.said.encode()) == []


@pytest.mark.slow
def test_nor_does_what_is_optional(extended: FinishedJob) -> None:
    assert (extended.run / "export" / "signature.json").is_file()
    assert betrayed(extended.run) == [] and secrets_in(extended.said.encode()) == []


@pytest.mark.parametrize("words", OTHERS, ids=" ".join)
def test_nor_does_a_command_that_looks_around(words: list[str], copy: Path) -> None:
    done = run(*words, "--run", copy, env=SECRETS, code=None)
    assert done.returncode in (0, 3) and done.stdout
    assert secrets_in(done.stdout.encode(), done.stderr.encode()) == [] and betrayed(copy) == []


def test_nor_does_an_error(copy: Path) -> None:
    done = run("generate", "--count", "many", "--json", "--run", copy, env=SECRETS, code=2)
    assert done.stderr and secrets_in(done.stdout.encode(), done.stderr.encode()) == []
