"""The plan decides everything about an image, and cannot be changed unnoticed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcdm_cli.difficulty.calibration import fit_calibration
from dcdm_cli.errors import MismatchError, UsageError
from dcdm_cli.generation.plan import Budget, grid_plan, make_plan, read_plan, write_plan
from dcdm_cli.generation.seeds import image_seed
from dcdm_cli.generation.targets import parse_target

from .conftest import CAPTIONS, NAMES, inputs, plan


def test_the_same_arguments_give_the_same_plan_and_others_another() -> None:
    assert plan().hash == plan().hash
    assert len({plan().hash, plan(seed=1).hash, plan(generator="h").hash, plan((3, 2, 3)).hash}) == 4


def test_rows_have_their_class_its_captions_and_their_own_seed() -> None:
    rows = plan((3, 2, 2)).rows()
    assert [row.label for row in rows] == [0, 1, 2, 0, 1, 2, 0]
    assert all(row.class_name == NAMES[row.label] and row.caption in CAPTIONS[row.label] for row in rows)
    assert [row.index for row in rows] == list(range(7))
    assert len({row.seed for row in rows}) == len({row.sample_id for row in rows}) == 7
    assert all(0 <= row.target_difficulty <= 0.8 and row.requested_difficulty == row.target_difficulty for row in rows)


def test_a_prefix_of_the_plan_is_balanced() -> None:
    labels = [row.label for row in plan((5, 5, 5)).rows()]
    assert np.bincount(labels[:6]).tolist() == [2, 2, 2]


def test_a_seed_depends_on_run_and_index_alone_and_fits_a_float() -> None:
    assert image_seed(3, 7) == image_seed(3, 7) != image_seed(3, 8) != image_seed(4, 7)
    assert all(image_seed(i, i) == int(float(image_seed(i, i))) for i in range(200))


def test_calibrated_requests_and_what_lies_outside() -> None:
    asked = np.tile(np.linspace(0, 1, 5), 60)
    label = np.repeat(np.arange(3), 100)
    curve = fit_calibration(asked, asked / 2, asked < 2, label, 3, {})
    made = make_plan(inputs(calibration=curve), np.array([4, 4, 4]), parse_target("fixed:0.2"), 0, "g")
    assert np.allclose(made.table["requested_difficulty"].to_numpy(), 0.4, atol=0.02)
    assert np.allclose(made.table["target_difficulty"].to_numpy(), 0.2) and made.unreachable == 0
    high = make_plan(inputs(calibration=curve), np.array([4, 4, 4]), parse_target("fixed:0.75"), 0, "g")
    assert high.unreachable == 12 and np.allclose(high.table["requested_difficulty"].to_numpy(), 1)


def test_a_grid_has_every_class_at_every_target() -> None:
    grid = grid_plan(inputs(), [0.1, 0.6], 6, 0, "g").table
    pairs = list(zip(grid["target_difficulty"].to_pylist(), grid["label"].to_pylist(), strict=True))
    assert sorted(pairs) == sorted((np.float32(t).item(), y) for t in (0.1, 0.6) for y in (0, 0, 1, 1, 2, 2))


def test_a_plan_survives_the_disk(tmp_path: Path) -> None:
    write_plan(plan(), tmp_path / "plan.parquet")
    assert read_plan(tmp_path / "plan.parquet").table.equals(plan().table)


def test_a_plan_that_was_edited_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "plan.parquet"
    write_plan(plan(), file)
    table = pq.read_table(file)
    seeds = table["seed"].to_pylist()
    edited = table.set_column(table.schema.get_field_index("seed"), "seed", pa.array([0, *seeds[1:]]))
    pq.write_table(edited, file)
    with pytest.raises(MismatchError, match="was changed after it was written") as caught:
        read_plan(file)
    assert "--force" in caught.value.hint
    file.write_bytes(b"no parquet")
    with pytest.raises(MismatchError, match="is not a dcdm plan"):
        read_plan(file)


def test_budgets() -> None:
    real = np.array([50, 30, 20])
    assert Budget(per_class=4).per_label(real).tolist() == [4, 4, 4]
    assert Budget(count=10).per_label(real).tolist() == [5, 3, 2]
    assert Budget(ratio=0.1).per_label(real).tolist() == [5, 3, 2]
    assert Budget(count=7, ratio=0.5).per_label(real).sum() == 7


@pytest.mark.parametrize("budget", [Budget(ratio=0.001), Budget(count=0), Budget()])
def test_a_budget_of_nothing_is_refused(budget: Budget) -> None:
    with pytest.raises(UsageError, match="no images"):
        budget.per_label(np.array([50, 30, 20]))


@given(st.integers(1, 500), st.lists(st.integers(0, 100), min_size=1, max_size=20).filter(any))
def test_a_count_is_spread_exactly_and_nearly_in_proportion(count: int, real: list[int]) -> None:
    counts = Budget(count=count).per_label(np.array(real))
    assert counts.sum() == count and counts.min() >= 0
    assert np.abs(counts - count * np.array(real) / sum(real)).max() < 1


def test_a_class_without_captions_names_the_command() -> None:
    with pytest.raises(UsageError, match="class 'two' has no caption") as caught:
        make_plan(inputs(captions=[["a"], ["b"], []]), np.array([1, 1, 1]), parse_target("fixed:0.5"), 0, "g")
    assert "dcdm caption" in caught.value.hint
