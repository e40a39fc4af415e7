"""What a model has said is kept: a stopped run goes on, and nothing is captioned twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageOps

from dcdm_cli.captioning import bulk
from dcdm_cli.captioning.bulk import model_captions
from dcdm_cli.data.images import decode_image, image_hash
from dcdm_cli.data.manifest import Manifest
from dcdm_cli.errors import InterruptedRunError, MismatchError
from dcdm_cli.run.progress import Job
from dcdm_cli.run.settings import CaptionConfig

from .test_captioner import save_blip2, write_pictures


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    files = write_pictures(tmp_path / "images", 5)
    rows = [
        {"sample_id": f"id{i}", "path": file.name, "label": i % 2, "class_name": ("cat", "{dog}")[i % 2]}
        for i, file in enumerate(files)
    ]
    return Manifest.from_rows(rows, ("cat", "{dog}"), tmp_path / "images")


@pytest.fixture
def config(tmp_path: Path) -> CaptionConfig:
    torch.manual_seed(0)
    save_blip2(tmp_path / "blip2")
    return CaptionConfig(method="model", model=str(tmp_path / "blip2"), max_new_tokens=4, batch_size=2)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for file in folder.glob("captions-*.jsonl") for line in file.read_text().splitlines()]


def test_every_row_gets_its_prefix_and_the_models_words(
    manifest: Manifest, config: CaptionConfig, tmp_path: Path
) -> None:
    told: list[tuple[str, int, int]] = []
    captions, revision = model_captions(manifest, config, tmp_path, Job(progress=lambda *step: told.append(step)))
    assert revision is None  # a folder has no commit
    assert [caption.startswith(f"a photo of a {name}") for caption, name in zip(
        captions, manifest.column("class_name"), strict=True
    )] == [True] * 5  # fmt: skip
    assert told == [("captioning", 2, 5), ("captioning", 4, 5), ("captioning", 5, 5)]
    assert [row["sample_id"] for row in lines(tmp_path)] == [f"id{i}" for i in range(5)]


def test_a_stopped_run_goes_on_where_it_was(
    manifest: Manifest, config: CaptionConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    through, _ = model_captions(manifest, config, tmp_path / "through", Job())
    with pytest.raises(InterruptedRunError, match="2 of 5 captions are kept"):
        model_captions(manifest, config, tmp_path / "stopped", Job(stop_signal=lambda: "SIGTERM"))
    file = next((tmp_path / "stopped").glob("captions-*.jsonl"))
    file.write_bytes(file.read_bytes()[:-9])  # and the last line was torn by a crash
    told: list[int] = []
    resumed, _ = model_captions(
        manifest, config, tmp_path / "stopped", Job(progress=lambda _, __, total: told.append(total))
    )
    assert resumed == through and set(told) == {4}
    monkeypatch.setattr(bulk, "Captioner", None)  # with everything known no model is loaded
    assert model_captions(manifest, config, tmp_path / "stopped", Job())[0] == through


def test_a_caption_that_somebody_changed_is_written_again(
    manifest: Manifest, config: CaptionConfig, tmp_path: Path
) -> None:
    before, _ = model_captions(manifest, config, tmp_path, Job())
    file = next(tmp_path.glob("captions-*.jsonl"))
    caption = lines(tmp_path)[2]["caption"]
    file.write_text(file.read_text().replace(json.dumps(caption), json.dumps("a forged caption"), 1))
    said: list[str] = []
    assert model_captions(manifest, config, tmp_path, Job(note=said.append))[0] == before
    assert len(said) == 1 and "do not say what was written" in said[0]
    assert "forged" not in file.read_text()


def test_an_image_that_shows_something_else_by_now_is_not_captioned_under_its_id(
    manifest: Manifest, config: CaptionConfig, tmp_path: Path
) -> None:
    ids = [f"{image_hash(decode_image(path))}-{number:08x}" for number, path in enumerate(manifest.paths())]
    scanned = manifest.with_columns({"sample_id": ids})
    changed = manifest.paths()[3]
    with Image.open(changed) as image:
        ImageOps.invert(image.convert("RGB")).save(changed)
    with pytest.raises(MismatchError, match=f"{changed.name} does not show what it showed"):
        model_captions(scanned, config, tmp_path, Job())
    assert [row["sample_id"] for row in lines(tmp_path)] == ids[:2], "the batch before is kept"


def test_another_prefix_needs_no_model_and_another_question_does(
    manifest: Manifest, config: CaptionConfig, tmp_path: Path
) -> None:
    model_captions(manifest, config, tmp_path, Job())
    before = len(lines(tmp_path))
    again, _ = model_captions(manifest, config.model_copy(update={"prefix": "the {class}: "}), tmp_path, Job())
    assert again[1].startswith("the {dog}:") and len(lines(tmp_path)) == before
    model_captions(manifest, config.model_copy(update={"max_new_tokens": 3}), tmp_path, Job())
    assert len(lines(tmp_path)) == 2 * before
