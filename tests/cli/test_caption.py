"""`dcdm caption`: a BLIP-2 of the real class, files beside the images, and nothing of the user's overwritten."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from dcdm_cli.data.manifest import read_manifest
from tests.captioning.test_captioner import save_blip2

from .conftest import CLASSES, SPLITS, document, last_error, new_run, write_images
from .runner import run, started

IMAGES = len(CLASSES) * sum(SPLITS.values())


@pytest.fixture
def blip2(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    save_blip2(tmp_path / "blip2")
    return tmp_path / "blip2"


def test_a_blip2_model_writes_the_captions_and_a_killed_run_goes_on(scored: Path, blip2: Path) -> None:
    words = ["caption", "--method", "model", "--model", blip2, "--max-new-tokens", "3", "--batch-size", "4"]
    with started(*words, "--run", scored) as command:
        command.wait_until(lambda: [f for f in (scored / "cache").glob("captions-*.jsonl") if f.stat().st_size])
        command.process.kill()
    (kept,) = (scored / "cache").glob("captions-*.jsonl")
    already = len(kept.read_text().splitlines())
    made = run(*words, "--json", "--run", scored)
    assert document(made)["method"] == "model" and document(made)["images"] == IMAGES
    assert already > 0 and f"captioning: {IMAGES - already}/{IMAGES - already}" in made.stderr
    captions = read_manifest(scored / "samples.parquet").column("caption")
    assert all(str(caption).startswith("a photo of") for caption in captions)


def test_captions_longer_than_the_text_encoder_are_cut_and_counted(scored: Path) -> None:
    made = run("caption", "--template", "{class} " + "a very long caption " * 9, "--json", "--run", scored)
    assert document(made)["cut"] == IMAGES
    assert f"captions: {IMAGES} of {IMAGES} were cut at the text encoder's limit of 16 tokens" in made.stderr


def test_another_base_counts_other_tokens(scored: Path, tmp_path: Path) -> None:
    run("caption", "--run", scored)
    made = run("caption", "--set", f"finetune.base={tmp_path / 'none'}", "--run", scored)
    assert "skipped" not in made.stderr and "is not on this machine" in made.stderr


def test_sidecars_and_metadata_lie_beside_copies_and_replace_nothing_unasked(tmp_path: Path) -> None:
    photos = write_images(tmp_path / "photos", {"cat": 8, "dog": 8})
    folder = new_run(tmp_path / "run")
    run("score", photos, "--run", folder)
    mine = next((photos / "cat").glob("*.png")).with_suffix(".txt")
    mine.write_text("my own words\n")
    (photos / "metadata.jsonl").write_text("{}\n")
    for words, says in ((["--sidecars", photos], mine.name), (["--metadata", photos], "metadata.jsonl")):
        error = last_error(run("caption", *words, "--json", "--run", folder, code=2))
        assert says in error["message"] and "--overwrite" in error["hint"]
    assert mine.read_text() == "my own words\n" and len(list(photos.rglob("*.txt"))) == 1
    assert (photos / "metadata.jsonl").read_text() == "{}\n"
    run("caption", "--sidecars", photos, "--metadata", photos, "--overwrite", "--run", folder)
    assert {file.read_text() for file in photos.rglob("*.txt")} == {"a photo of the cat\n", "a photo of the dog\n"}
    rows = [json.loads(line) for line in (photos / "metadata.jsonl").read_text().splitlines()]
    assert len(rows) == 16 and all((photos / row["file_name"]).is_file() and row["caption"] for row in rows)
    again = ["caption", "--sidecars", photos, "--run", folder]
    run(*again)  # the same texts are no conflict


def test_copies_of_captions_are_written_of_a_finished_run_too(scored: Path, tmp_path: Path) -> None:
    before = json.loads((scored / "records" / "caption.json").read_text())
    words = ["caption", "--metadata", tmp_path / "out", "--run", scored]
    assert "skipped" not in run(*words).stderr
    assert len((tmp_path / "out" / "metadata.jsonl").read_text().splitlines()) == IMAGES
    assert "skipped" in run(*words).stderr  # no conflict with its own file
    assert json.loads((scored / "records" / "caption.json").read_text()) == before
    assert "--overwrite" in run("caption", "--template", "x", *words[1:], code=2).stderr


def test_templates_of_single_classes_are_part_of_what_was_done(scored: Path, tmp_path: Path) -> None:
    file = tmp_path / "templates.json"
    file.write_text(json.dumps({"one": "the lonely {class}"}))
    words = ["caption", "--templates-file", file, "--run", scored]
    run(*words)
    assert "the lonely one" in set(read_manifest(scored / "samples.parquet").column("caption"))
    assert "skipped" in run(*words).stderr
    file.write_text(json.dumps({"one": "a {class}"}))
    assert "skipped" not in run(*words).stderr
    file.write_text(json.dumps({"onne": "a {class}"}))
    assert "did you mean one" in last_error(run(*words, "--json", code=2))["hint"]


def test_a_missing_captioning_model_names_the_offline_way(scored: Path, tmp_path: Path) -> None:
    before = (scored / "samples.parquet").read_bytes()
    made = run("caption", "--method", "model", "--model", tmp_path / "none", "--json", "--run", scored, code=10)
    assert "--method template" in last_error(made)["hint"]
    assert (scored / "samples.parquet").read_bytes() == before
    shutil.rmtree(tmp_path / "none", ignore_errors=True)
