"""Images that start from real ones: which row starts from which, how much of the schedule is run, what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from dcdm_cli.errors import MismatchError, NumericalError, UsageError
from dcdm_cli.generation.engine import Engine, open_engine, render, sampler_settings
from dcdm_cli.generation.plan import SCHEMA, Plan, chosen_plan, grid_plan, make_plan
from dcdm_cli.generation.plan_file import PlanFile, read_plan, write_plan
from dcdm_cli.generation.render import render_close
from dcdm_cli.generation.starts import Starts
from dcdm_cli.generation.targets import parse_target
from dcdm_cli.model.schedule import SAMPLERS
from dcdm_cli.run.progress import Job

from .conftest import config, inputs, plan
from .fakes import EVERY, SOURCES, STARTS, fake_measure
from .test_engine import Elementwise, with_denoiser


def sourced_plan(seed: int = 0, generator: str = "g", **changes: object) -> Plan:
    return make_plan(
        inputs(**{"sources": SOURCES, **changes}), np.array([3, 2, 2]), parse_target("uniform:0,0.8"), seed, generator,
        shard_size=4,
    )  # fmt: skip


def from_images(engine: Engine, strength: float, **changes: object) -> Engine:
    """The same networks under another strength."""
    settings = config(strength=strength, **changes)
    return dataclasses.replace(engine, config=settings, starts=STARTS)


def made(engine: Engine, batch: int = 4, rows: list | None = None) -> np.ndarray:
    sized = dataclasses.replace(engine, config=engine.config.model_copy(update={"batch_size": batch}))
    return np.concatenate([images for _, images in render(sized, rows or sourced_plan().rows(), Job())])


def test_a_plan_without_sources_is_what_it_was_before_there_were_any() -> None:
    """Digests and ids are pinned: images that were made before go on where they were."""
    assert plan().hash == "af145e6ccb82da2525f1435d34473caa"
    assert plan().rows()[0].sample_id == "51e674d28196c28c" and plan().rows()[0].source_id is None
    assert "strength" not in sampler_settings(config()) and sampler_settings(config(strength=0.5))["strength"] == 0.5


def test_sources_are_of_the_rows_class_and_drawn_from_the_plans_seed() -> None:
    rows = sourced_plan().rows()
    assert all(row.source_id in SOURCES[row.label] for row in rows)
    assert sourced_plan().hash == sourced_plan().hash
    assert [row.source_id for row in sourced_plan(seed=1).rows()] != [row.source_id for row in rows]
    for other in ("caption", "seed", "target_difficulty", "label"):  # nothing else is drawn differently
        assert [getattr(row, other) for row in rows] == [getattr(row, other) for row in plan().rows()]
    fewer = sourced_plan(sources=[ids[:1] for ids in SOURCES]).rows()
    assert {row.sample_id for row in fewer} != {row.sample_id for row in rows}  # another source is another image
    for probe in (
        grid_plan(inputs(sources=SOURCES), [0.1, 0.5], 6, 0, "g"),
        chosen_plan(inputs(sources=SOURCES), np.array([2, 0]), np.array([0.1, 0.2]), 0, "g"),
    ):
        assert all(row.source_id in SOURCES[row.label] for row in probe.rows())
    picked = inputs(sources=SOURCES)
    assert picked.source_of(1, 6) == SOURCES[1][2] and inputs().source_of(1, 6) is None


def test_a_class_without_a_real_image_is_named() -> None:
    lacking = [*SOURCES[:2], []]
    with pytest.raises(UsageError, match="class 'two' has no usable training image to start from") as caught:
        sourced_plan(sources=lacking)
    assert "--strength 1" in caught.value.hint
    make_plan(inputs(sources=lacking), np.array([2, 2, 0]), parse_target("fixed:0.5"), 0, "g")  # not asked for


def test_sources_survive_the_disk_and_plans_from_before_are_read(tmp_path: Path) -> None:
    write_plan(sourced_plan(), tmp_path / "sourced.parquet")
    assert read_plan(tmp_path / "sourced.parquet").table.equals(sourced_plan().table)
    file = tmp_path / "old.parquet"
    write_plan(plan(), file)
    old = pq.read_table(file).drop_columns("source_id")
    pq.write_table(old, file)
    assert "source_id" not in pq.read_schema(file).names
    assert read_plan(file).rows() == plan().rows() and PlanFile(file).hash == plan().hash


@pytest.mark.parametrize(("row", "value", "rule"), [(2, "../../x", "must look like"), (2, "", "must look like"),
                                                    (0, None, "all rows of a plan start")])  # fmt: skip
def test_a_forged_source_is_refused(tmp_path: Path, row: int, value: str | None, rule: str) -> None:
    """Whoever can change a row can write digests that fit."""
    rows = sourced_plan().table.to_pylist()
    rows[row]["source_id"] = value
    write_plan(dataclasses.replace(sourced_plan(), table=pa.Table.from_pylist(rows, SCHEMA)), tmp_path / "plan.parquet")
    with pytest.raises(MismatchError, match=rf"source_id = .* in row [12]: {rule}"):
        PlanFile(tmp_path / "plan.parquet").shard_rows(0)


def test_an_edited_source_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "plan.parquet"
    write_plan(sourced_plan(), file)
    table = pq.read_table(file)
    edited = pa.array([EVERY[-1], *table["source_id"].to_pylist()[1:]])
    pq.write_table(table.set_column(table.schema.get_field_index("source_id"), "source_id", edited), file,
                   row_group_size=4)  # fmt: skip
    with pytest.raises(MismatchError, match="was changed after it was written"):
        PlanFile(file).shard_rows(0)


def test_strength_one_is_noise_alone_to_the_bit(engine: Engine) -> None:
    assert np.array_equal(made(engine, rows=plan().rows()), made(from_images(engine, 1.0), rows=plan().rows()))
    assert np.array_equal(made(engine), made(from_images(engine, 1.0)))  # whatever the rows say


@pytest.mark.parametrize("scheduler", sorted(SAMPLERS))
def test_the_row_decides_the_image_whatever_the_batch(engine: Engine, scheduler: str) -> None:
    begun = with_denoiser(from_images(engine, 0.5, scheduler=scheduler, steps=6), Elementwise())
    together = made(begun, 7)
    assert all(np.array_equal(made(begun, batch), together) for batch in (1, 3))
    padded = with_denoiser(begun, Elementwise(fixed_batch=True))
    assert np.array_equal(made(padded, 4), together)
    assert np.array_equal(made(begun, 4, sourced_plan().rows()[5:]), together[5:])
    rows = [dataclasses.replace(row, source_id=SOURCES[row.label][0]) for row in sourced_plan().rows()]
    assert not np.array_equal(made(begun, 7, rows), together)  # the source is part of it
    rows = [dataclasses.replace(row, seed=row.seed + 1) for row in sourced_plan().rows()]
    assert not np.array_equal(made(begun, 7, rows), together)  # and so is the seed


@pytest.mark.parametrize(("scheduler", "calls"), [("ddim", 6), ("dpmpp", 6), ("unipc", 6), ("pndm", 7)])
def test_only_the_tail_is_run(engine: Engine, scheduler: str, calls: int) -> None:
    counted = Elementwise()
    made(with_denoiser(from_images(engine, 0.75, scheduler=scheduler, steps=8), counted), 7)
    assert len(counted.batches) == calls  # PNDM evaluates one step twice


def test_guidance_is_limited_by_the_whole_schedule(engine: Engine) -> None:
    counted = Elementwise()
    limited = from_images(engine, 0.5, steps=8, guidance_interval=(0.0, 0.75), text_guidance=2, difficulty_guidance=6)
    made(with_denoiser(limited, counted), 7)
    assert counted.batches == [21, 21, 7, 7]  # steps 5 to 8 of 8


def test_less_strength_stays_nearer_to_the_source(engine: Engine) -> None:
    rows = sourced_plan().rows()
    latents = torch.from_numpy(STARTS.of(rows))

    def decode(latents: Tensor) -> Tensor:
        return latents[:, :3].tanh()

    shown = decode(latents).add(1).mul(127.5).permute(0, 2, 3, 1).numpy()
    away = []
    for strength in (0.1, 0.4, 0.8):
        begun = dataclasses.replace(from_images(engine, strength, steps=10, scheduler="ddim"), decode=decode)
        away.append(np.abs(made(begun, 7) - shown).mean())
    assert away == sorted(away) and away[0] < 0.6 * away[2], away


def test_a_redraw_starts_from_the_same_image(engine: Engine) -> None:
    begun = from_images(engine, 0.7, attempts=3, tolerance=0.0)
    asked: list[np.ndarray] = []
    kept = np.concatenate([batch.images for batch in render_close(
        begun, sourced_plan().rows(), Job(), lambda images, labels: asked.append(images) or fake_measure(images, labels)
    )])  # fmt: skip
    assert sum(map(len, asked)) == 21 and kept.shape == (7, 32, 32, 3)


def test_rows_that_name_no_source_of_this_run_are_refused(engine: Engine) -> None:
    begun = from_images(engine, 0.5, steps=6)
    with pytest.raises(MismatchError, match="row 0 of the plan names no usable training image"):
        made(begun, rows=plan().rows())
    foreign = [dataclasses.replace(row, source_id="f" * 32) for row in plan().rows()]
    with pytest.raises(MismatchError, match=f"starts from {'f' * 32}, which is no usable") as caught:
        made(begun, rows=foreign)
    assert "dcdm generate --plan" in caught.value.hint
    broken = Starts(STARTS.row_of, np.full_like(STARTS.latents, np.nan))
    with pytest.raises(NumericalError, match="not finite") as caught:
        made(dataclasses.replace(begun, starts=broken))
    assert "remove cache/" in caught.value.hint


def test_what_a_shard_needs_is_handed_over_once(engine: Engine) -> None:
    rows = sourced_plan().rows()
    needed = STARTS.needed_by(rows)
    assert set(needed.row_of) == {row.source_id for row in rows} and len(needed.latents) == len(needed.row_of)
    assert np.array_equal(needed.of(rows), STARTS.of(rows))


def test_a_strength_of_less_than_a_step_is_refused(adapter: Path) -> None:
    with pytest.raises(UsageError, match=r"strength = 0\.1 of 3 steps leaves not one") as caught:
        open_engine(adapter, config(strength=0.1), "cpu")
    assert "0.333" in caught.value.hint


def test_another_strength_is_another_generator(adapter: Path, engine: Engine) -> None:
    half = open_engine(adapter, config(strength=0.5), "cpu")
    assert half.generator != engine.generator == open_engine(adapter, config(strength=1), "cpu").generator
    assert json.dumps(sampler_settings(half.config))  # as calibrations keep them
