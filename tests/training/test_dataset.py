"""Cached encodings, and draws that depend on seed and step alone."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dcdm_cli.data.images import decode_image, image_hash
from dcdm_cli.errors import MismatchError, NotFoundError, StorageError
from dcdm_cli.model.base import BaseModel
from dcdm_cli.run.progress import silent
from dcdm_cli.training import dataset
from dcdm_cli.training.dataset import (
    DrawSettings,
    TrainingSet,
    balanced_epoch,
    cache_latents,
    cached_originals,
    draw,
    encode_captions,
)
from dcdm_cli.training.views import Views

from .conftest import IMAGES

DRAWS = DrawSettings(seed=1, batch=8, timesteps=1000, text_dropout=0.1, difficulty_dropout=0.1)


def test_a_step_is_drawn_the_same_whatever_came_before(data: TrainingSet) -> None:
    first, second = draw(data, DRAWS, 7), draw(data, DRAWS, 7)
    for name in ("image", "timestep", "noise", "drop_text", "drop_difficulty"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    assert not torch.equal(first.noise, draw(data, DRAWS, 8).noise)


def test_every_image_is_seen_once_per_epoch_in_a_new_order(data: TrainingSet) -> None:
    settings = DrawSettings(seed=0, batch=8, timesteps=1000, text_dropout=0, difficulty_dropout=0)
    seen = torch.cat([draw(data, settings, step).image for step in range(6)])
    epochs = seen.view(-1, IMAGES)
    assert all(sorted(epoch.tolist()) == list(range(IMAGES)) for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == len(epochs)


def test_rare_difficulties_come_more_often_when_asked() -> None:
    difficulty = torch.tensor([0.01] * 16 + [0.55] * 4 + [1.0])
    assert balanced_epoch(difficulty, 0.0).tolist() == list(range(21))
    times = torch.bincount(balanced_epoch(difficulty, 0.5))
    assert times.tolist() == [1] * 16 + [2] * 4 + [4]
    assert torch.bincount(balanced_epoch(difficulty, 1.0))[-1] == 16


def test_an_epoch_holds_what_balancing_chose(data: TrainingSet) -> None:
    chosen = dataclasses.replace(data, epoch=torch.tensor([0, 1, 1, 2]))
    settings = DrawSettings(seed=0, batch=4, timesteps=1000, text_dropout=0, difficulty_dropout=0)
    assert all(sorted(draw(chosen, settings, step).image.tolist()) == [0, 1, 1, 2] for step in range(3))


def test_dropout_is_as_frequent_as_asked_and_text_takes_difficulty_along(data: TrainingSet) -> None:
    settings = DrawSettings(seed=0, batch=4000, timesteps=1000, text_dropout=0.1, difficulty_dropout=0.2)
    drawn = draw(data, settings, 0)
    assert drawn.drop_text.float().mean() == pytest.approx(0.1, abs=0.02)
    assert drawn.drop_difficulty.float().mean() == pytest.approx(0.28, abs=0.03)
    assert not (drawn.drop_text & ~drawn.drop_difficulty).any()
    assert drawn.timestep.min() < 10 and drawn.timestep.max() > 990


def test_latents_are_encoded_once(tiny: BaseModel, paths: list[Path], tmp_path: Path) -> None:
    told: list[int] = []

    def cache() -> np.ndarray:
        return cache_latents(tiny, Views(paths), 32, tmp_path, lambda _, done, __: told.append(done))

    first, second = cache(), cache()
    assert told == [IMAGES]
    assert np.array_equal(first, second)
    assert first.shape == (IMAGES, 4, 8, 8) and first.dtype == np.float32
    os.utime(paths[0], (1, 1))
    cache()
    assert told == [IMAGES, IMAGES]
    assert len(list(tmp_path.glob("*.npy"))) == 2


def test_latents_that_do_not_fit_on_the_disk_are_not_begun(
    tiny: BaseModel, paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, usage = list[int](), shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=IMAGES * 4 * 4 * 8 * 8))
    with pytest.raises(StorageError, match=f"the latents of {IMAGES} pictures need"):  # and a tenth to spare
        cache_latents(tiny, Views(paths), 32, tmp_path / "cache", lambda _, done, __: told.append(done))
    assert told == [] and not (tmp_path / "cache").exists()


def test_mirrored_views_follow_all_plain_ones(tiny: BaseModel, paths: list[Path], tmp_path: Path) -> None:
    both = cache_latents(tiny, Views(paths, mirror=True), 32, tmp_path, silent)
    for path in paths:
        with Image.open(path) as image:
            image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / path.name)
    other = Views([tmp_path / path.name for path in paths])
    mirrored = cache_latents(tiny, other, 32, tmp_path / "other", silent)
    assert len(both) == 2 * IMAGES
    assert np.allclose(both[IMAGES:], mirrored, atol=1e-4)


def test_the_originals_latents_are_found_by_what_is_in_the_images(
    tiny: BaseModel, paths: list[Path], tmp_path: Path
) -> None:
    ids = [f"{image_hash(decode_image(path))}-{number:08x}" for number, path in enumerate(paths)]

    def found(ids: list[str], fingerprint: str = tiny.fingerprint, resolution: int = 32) -> np.ndarray | None:
        return cached_originals(ids, fingerprint, resolution, tmp_path)

    assert found(ids) is None
    views = cache_latents(tiny, Views(paths, mirror=True), 32, tmp_path, silent, ids)
    originals = found(ids)
    assert originals is not None and np.array_equal(originals, views[:IMAGES]) and len(originals) == IMAGES
    assert found(ids[::-1]) is None and found(ids, "other") is None and found(ids, resolution=64) is None
    next(tmp_path.glob("latents-*.npy")).unlink()
    assert found(ids) is None  # encoded again, then


def test_an_image_that_shows_something_else_by_now_is_named_and_nothing_is_cached(
    tiny: BaseModel, paths: list[Path], tmp_path: Path
) -> None:
    """Its score, label and caption are of the picture that was there."""
    here = [Path(shutil.copy(path, tmp_path / path.name)) for path in paths]
    ids = [image_hash(decode_image(path)) for path in here]
    Image.open(here[3]).transpose(Image.Transpose.ROTATE_90).save(here[3])
    with pytest.raises(MismatchError, match=f"{here[3].name} does not show what it showed") as caught:
        cache_latents(tiny, Views(here, mirror=True), 32, tmp_path / "cache", silent, ids)
    assert "dcdm score" in caught.value.hint and not [*tmp_path.glob("cache/*.npy")]


def test_large_images_are_encoded_a_few_at_a_time(
    tiny: BaseModel, paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = cache_latents(tiny, Views(paths), 32, tmp_path / "together", silent)
    monkeypatch.setattr(dataset, "CHUNK_PIXELS", 3 * 32 * 32)
    told: list[int] = []
    few = cache_latents(tiny, Views(paths), 32, tmp_path / "few", lambda _, done, __: told.append(done))
    assert told[:2] == [3, 6]
    np.testing.assert_allclose(few, together, atol=1e-4)


def test_an_image_that_is_gone_is_named_and_nothing_is_cached(
    tiny: BaseModel, paths: list[Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n")
    with pytest.raises(NotFoundError, match=r"broken\.png") as caught:
        cache_latents(tiny, Views([*paths, broken]), 32, tmp_path / "cache", silent)
    assert "dcdm score" in caught.value.hint
    assert list((tmp_path / "cache").iterdir()) == []


def test_captions_are_encoded_once_each_with_the_empty_prompt_last(tiny: BaseModel) -> None:
    text, rows = encode_captions(tiny, ["a one", "a two", "a one"], silent)
    assert text.shape == (3, 16, 64) and rows.tolist() == [0, 1, 0]
    empty, _ = encode_captions(tiny, [], silent)
    assert np.allclose(text[-1], empty[-1], atol=1e-5)
