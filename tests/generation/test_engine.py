"""An image depends on its plan row alone."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dcdm_cli.errors import MismatchError, NotFoundError
from dcdm_cli.generation.engine import Engine, open_engine, render, sampler_settings
from dcdm_cli.job import Job
from dcdm_cli.model.adapter import CONFIG_FILE

from .conftest import config, plan


def images(engine: Engine, batch: int) -> np.ndarray:
    resized = dataclasses.replace(engine, config=engine.config.model_copy(update={"batch_size": batch}))
    return np.concatenate([made for _, made in render(resized, plan().rows(), Job())])


def test_images_do_not_depend_on_the_batch_size(engine: Engine) -> None:
    together = images(engine, 7).astype(int)
    assert together.shape == (7, 32, 32, 3)
    for batch in (1, 2, 5):
        assert np.abs(images(engine, batch).astype(int) - together).max() <= 2


def test_the_row_decides_the_image(engine: Engine) -> None:
    rows = plan().rows()[:1]
    harder = [dataclasses.replace(rows[0], requested_difficulty=0.9)]
    reseeded = [dataclasses.replace(rows[0], seed=rows[0].seed + 1)]
    (_, image), (_, other), (_, new) = (next(render(engine, chosen, Job())) for chosen in (rows, harder, reseeded))
    assert (image != other).any() and (image != new).any()


def test_progress_counts_images(engine: Engine) -> None:
    told: list[tuple[int, int]] = []
    list(render(engine, plan().rows(), Job(progress=lambda _, done, total: told.append((done, total)))))
    assert told == [(4, 7), (7, 7)]


def test_the_generator_follows_what_changes_images(adapter: Path, engine: Engine) -> None:
    assert open_engine(adapter, config(batch_size=9, image_format="webp"), "cpu").generator == engine.generator
    assert open_engine(adapter, config(steps=4), "cpu").generator != engine.generator
    assert "batch_size" not in sampler_settings(config())


def test_another_base_than_the_adapters_is_refused(adapter: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    document = json.loads((copy / CONFIG_FILE).read_text())
    (copy / CONFIG_FILE).write_text(json.dumps(document | {"base_fingerprint": "other"}))
    with pytest.raises(MismatchError, match="is not the one this adapter was trained on"):
        open_engine(copy, config(), "cpu")
    (copy / CONFIG_FILE).write_text(json.dumps(document | {"base": str(tmp_path / "gone")}))
    with pytest.raises(NotFoundError, match="cannot load the base model"):
        open_engine(copy, config(), "cpu")


def test_a_plain_lora_has_one_guidance_scale(engine: Engine) -> None:
    plain = dataclasses.replace(engine, info=dataclasses.replace(engine.info, encoder=None))
    assert plain.guidance.difficulty == plain.guidance.text == 2.0
    assert engine.guidance.difficulty == 4.0
