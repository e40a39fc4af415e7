"""What stages record of files, and what `dcdm check` makes of damage, staleness and leftovers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from .conftest import FinishedJob, document, last_error
from .runner import Finished, run

LORA = "adapter/pytorch_lora_weights.safetensors"
SCORER = "scorer/fold-0/model.safetensors"
METADATA = "generated/train/metadata.jsonl"
RECORDS = {"evaluate": ("evaluate", "judge", "adherence")}  # of a command with more than one stage
NEVER = ("records/", ".lock", "dcdm.toml")  # what says how to read, and is compared as settings and as ids


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-9] ^= 16
    file.write_bytes(content)


def without_tensor(file: Path) -> None:
    tensors = load_file(file)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, file)


def not_finite(file: Path) -> None:
    with safe_open(file, "np") as stored:
        metadata = stored.metadata()
    tensors = load_file(file)
    tensors[sorted(tensors)[0]].flat[0] = np.nan
    save_file(tensors, file, metadata)


def without_line(file: Path) -> None:
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))


def findings(said: Finished, state: str) -> list[str]:
    return [f"{row['stage']}: {row['text']}" for row in document(said)["findings"] if row["state"] == state]


@pytest.mark.parametrize("command", ["score", "caption", "finetune", "generate", "evaluate"])
def test_a_stage_records_every_file_that_it_opens(job: FinishedJob, command: str) -> None:
    known, lists = set(), []
    for stage in RECORDS.get(command, (command,)):
        record = json.loads((job.run / "records" / f"{stage}.json").read_text())
        known |= {*record["read"], *record["wrote"]}
        lists += record["listed"]
    unknown = [name for name in job.opened[command] - known if not name.startswith((*NEVER, *(f"{n}/" for n in lists)))]
    assert job.opened[command] and unknown == []


def test_a_finished_run_is_fresh_wherever_it_lies(copy: Path) -> None:
    said = run("check", "--verify", "--json", "--run", copy)
    assert {row["state"] for row in document(said)["findings"]} <= {"fresh"}
    assert len(run("check", "--run", copy).stdout.splitlines()) == len(document(said)["findings"]) + 1


@pytest.mark.parametrize(
    ("file", "damage", "stage"),
    [
        (LORA, flip, "finetune"),
        (LORA, without_tensor, "finetune"),
        (LORA, not_finite, "finetune"),
        (SCORER, flip, "score"),
        (SCORER, without_tensor, "score"),
        ("samples.parquet", flip, "score"),
    ],
)
def test_damage_is_named_and_not_worked_with(copy: Path, file: str, damage: Callable[[Path], None], stage: str) -> None:
    damage(copy / file)
    said = run("check", "--json", "--run", copy, code=12)
    assert any(text.startswith(f"{stage}: {file} has ") for text in findings(said, "damaged"))
    refused = last_error(run("generate", "--force", "--json", "--run", copy, code=12))
    assert f"{file} is damaged" in refused["message"] and f"dcdm {stage}" in refused["hint"]


def test_what_is_cheap_is_repaired_and_the_rest_is_left(copy: Path) -> None:
    before = (copy / METADATA).read_bytes()
    without_line(copy / METADATA)
    flip(next((copy / "cache").glob("*.npy")))
    flip(copy / LORA)
    left = copy / "adapter" / ".config.json.1.part"
    left.write_text("half")
    assert document(run("check", "--json", "--run", copy, code=12))["code"] == 12
    said = run("check", "--repair", "--json", "--run", copy, code=12)
    assert (copy / METADATA).read_bytes() == before and not left.exists()
    assert len(findings(said, "repaired")) == 3
    assert findings(said, "damaged") == [f"finetune: {LORA} has other content than it had"]


def test_images_are_held_against_their_shards(copy: Path) -> None:
    first, second = sorted((copy / "generated" / "train").rglob("*.png"))[:2]
    first.rename(first.with_name("extra.png"))
    flip(second)
    damaged = findings(run("check", "--json", "--run", copy, code=12), "damaged")
    assert any("is gone" in text for text in damaged) and any("in no row of any shard" in text for text in damaged)
    first.with_name("extra.png").rename(first)
    run("check", "--run", copy)
    assert "has other content" in findings(run("check", "--verify", "--json", "--run", copy, code=12), "damaged")[0]


def test_captions_and_sources_that_changed_make_stale_and_are_said(copy: Path, photos: Path) -> None:
    run("caption", "--template", "a drawing of the {class}", "--run", copy)
    said = run("check", "--json", "--run", copy, code=3)
    assert "generate: caption was made again since" in findings(said, "stale")
    generated = run("generate", "--run", copy, code=12)
    assert "the adapter is stale (caption was made again since)" in generated.stderr
    file = next(photos.rglob("*.png"))
    before = file.stat()
    try:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
        assert any(
            "has changed since" in text for text in findings(run("check", "--json", "--run", copy, code=3), "stale")
        )
    finally:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_other_images_do_not_replace_what_took_long(copy: Path, photos: Path) -> None:
    record = copy / "records" / "finetune.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"seconds": 7200.0}))
    refused = last_error(run("score", photos / "train", "--json", "--run", copy, code=12))
    assert "while the run is about" in refused["message"] and "finetune took 2 h" in refused["message"]
    assert "--force" in refused["hint"]
    run("check", "--run", copy)
