"""The plan decides everything about an image, and cannot be changed unnoticed."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dcdm_cli.difficulty.calibration import fit_calibration
from dcdm_cli.errors import MismatchError, NotFoundError, UsageError
from dcdm_cli.generation.budget import Budget, fill_level, read_class_table, read_counts
from dcdm_cli.generation.plan import SCHEMA, Plan, grid_plan, make_plan
from dcdm_cli.generation.plan_file import PlanFile, read_plan, write_plan
from dcdm_cli.generation.seeds import image_seed, image_seeds
from dcdm_cli.generation.targets import Targets, parse_target

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


def test_every_first_part_of_a_sample_comes_from_all_over_the_plan() -> None:
    rows = plan((100, 4, 4)).sampled_rows(60)
    numbers = [row.index for row in rows]
    assert len(set(numbers)) == 60 and numbers == [row.index for row in plan((100, 4, 4)).sampled_rows(60)]
    for part in (numbers[:20], numbers[20:40], numbers[40:]):
        assert min(part) < 27 and max(part) >= 81
    assert sorted(row.index for row in plan((2, 2, 1)).sampled_rows(60)) == [0, 1, 2, 3, 4]


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


def test_a_grid_of_fewer_images_than_classes_has_a_sample_of_them_that_the_seed_draws() -> None:
    names = [f"class {number:02}" for number in range(30)]
    many = inputs(class_names=names, captions=[[name] for name in names])
    same, all_of_them = (grid_plan(many, [0.1, 0.6], 12, 0, "g", all_classes=wide).table for wide in (False, True))
    labels = same["label"].to_pylist()
    assert labels[:12] == labels[12:] and len(set(labels)) == 12, "difficulties can be compared"
    assert sorted(labels[:12]) != list(range(12)), "the first by name are no sample"
    assert len(set(all_of_them["label"].to_pylist())) == 24, "as many classes as there are images"
    assert labels != grid_plan(many, [0.1, 0.6], 12, 1, "g").table["label"].to_pylist()
    wide = grid_plan(many, [0.1, 0.6, 0.9], 20, 0, "g", all_classes=True).table["label"].to_numpy()
    assert np.bincount(wide, minlength=30).tolist() == [2] * 30


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
    with pytest.raises(MismatchError, match="is no plan of dcdm"):
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


# Budgets


def test_an_explicit_budget_excludes_another() -> None:
    with pytest.raises(UsageError, match="--per-class and --balance exclude each other"):
        Budget(per_class=3, balance=True).per_label(np.array([1, 2]))


def test_counts_name_single_classes_and_the_others_get_none() -> None:
    assert Budget(ratio=0.1, counts={2: 7}).per_label(np.array([50, 30, 20])).tolist() == [0, 0, 7]


def test_balance_fills_up_to_the_largest_class_or_as_far_as_the_count_goes() -> None:
    real = np.array([50, 30, 2])
    assert Budget(ratio=0.1, balance=True).per_label(real).tolist() == [0, 20, 48]
    assert Budget(count=10, balance=True).per_label(real).tolist() == [0, 0, 10]
    assert Budget(count=71, balance=True).per_label(real).tolist() == [1, 21, 49]


@given(st.lists(st.integers(0, 60), min_size=1, max_size=12).filter(any), st.integers(1, 400))
def test_a_level_fill_spends_its_budget_and_never_widens_the_gap(real: list[int], total: int) -> None:
    counts = fill_level(np.array(real), total)
    whole = np.array(real) + counts
    assert counts.sum() == total and counts.min() >= 0
    grown = whole[counts > 0]
    assert grown.max() - grown.min() <= 1 and grown.max() <= whole[counts == 0].min(initial=10**9) + 1


@pytest.mark.parametrize(
    "text", ["class,count\nzero,3\ntwo,0\n", '{"zero": 3, "two": 0}', "\ufeffclass,count\r\nzero,3\r\ntwo,0"]
)
def test_a_table_of_counts_is_csv_or_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "counts").write_text(text)
    assert read_counts(tmp_path / "counts", NAMES) == {0: 3, 2: 0}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("class,count\nzer0,3\n", "there is no class 'zer0'"),
        ("class,count\nzero,3\nzero,4\n", "class 'zero' comes twice"),
        ('{"zero": 3, "zero": 4}', "class 'zero' comes twice"),
        ("class,count\nzero,-3\n", "give a whole number"),
        ("class,count\nzero,1.5\n", "give a whole number"),
        ("name,count\nzero,3\n", "cannot read"),
        ("{", "cannot read"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "counts").write_text(text)
    with pytest.raises(UsageError, match=says):
        read_counts(tmp_path / "counts", NAMES)
    with pytest.raises(NotFoundError, match="no table at"):
        read_class_table(tmp_path / "gone", "count", NAMES)


def test_single_classes_may_have_a_difficulty_of_their_own() -> None:
    target = Targets(parse_target("fixed:0.2"), {1: parse_target("uniform:0.6,0.7")})
    rows = make_plan(inputs(), np.array([4, 4, 4]), target, 0, "g").rows()
    assert {row.target_difficulty for row in rows if row.label != 1} == {np.float32(0.2)}
    assert all(0.6 <= row.target_difficulty <= 0.7 for row in rows if row.label == 1)


# Shards and files


def test_shards_depend_on_the_index_alone() -> None:
    made = make_plan(inputs(), np.array([3, 2, 2]), parse_target("fixed:0.5"), 0, "g", shard_size=3)
    assert made.shards == 3 and made.table["shard"].to_pylist() == [0, 0, 0, 1, 1, 1, 2]
    assert [row.index for shard in range(3) for row in made.shard_rows(shard)] == list(range(7))
    same = make_plan(inputs(), np.array([3, 2, 2]), parse_target("fixed:0.5"), 0, "g")
    assert same.table.drop("shard").equals(made.table.drop("shard")) and same.hash != made.hash


def test_no_two_images_of_a_run_start_from_the_same_noise() -> None:
    """torch's CPU generator looks at 32 bits of the seed only."""
    seeds = image_seeds(5, np.arange(200_000))
    assert len(np.unique(seeds.astype(np.uint32))) == 200_000 and seeds.max() < 2**53
    assert image_seeds(5, np.array([7]))[0] == image_seed(5, 7) == seeds[7]
    assert image_seed(5, 7) != image_seed(5, 7 + 2**32)


@given(st.integers(0, 2**40), st.integers(0, 2**62))
def test_seeds_of_any_run_and_index_are_in_range(run: int, index: int) -> None:
    assert 0 <= image_seed(run, index) < 2**53


def test_one_shard_is_read_and_checked_without_the_others(tmp_path: Path) -> None:
    made = make_plan(inputs(), np.array([3, 2, 2]), parse_target("fixed:0.5"), 0, "g", shard_size=3, made_for={"a": 1})
    write_plan(made, tmp_path / "plan.parquet")
    file = PlanFile(tmp_path / "plan.parquet")
    file.verify()
    assert (len(file), file.shards, file.hash, file.generator) == (7, 3, made.hash, "g")
    assert (file.class_names, file.made_for, file.shard_size) == (NAMES, {"a": 1}, 3)
    assert file.shard_rows(2) == made.shard_rows(2) and file.load().hash == made.hash


def test_the_hash_is_over_values_not_over_their_storage() -> None:
    made = plan()
    chunked = pa.concat_tables([made.table.slice(0, 2), made.table.slice(2)])
    assert dataclasses.replace(made, table=chunked).hash == made.hash


@pytest.mark.parametrize("column", ["seed", "caption", "requested_difficulty", "sample_id", "index"])
def test_an_edit_of_any_column_is_noticed(tmp_path: Path, column: str) -> None:
    made = make_plan(inputs(), np.array([3, 2, 2]), parse_target("fixed:0.5"), 0, "g", shard_size=3)
    write_plan(made, tmp_path / "plan.parquet")
    table = pq.read_table(tmp_path / "plan.parquet")
    values = table[column].to_pylist()
    edited = pa.array([*values[:-1], values[0]], table.schema.field(column).type)
    table = table.set_column(table.schema.get_field_index(column), table.schema.field(column), edited)
    pq.write_table(table, tmp_path / "plan.parquet", row_group_size=3)
    file = PlanFile(tmp_path / "plan.parquet")
    assert file.shard_rows(0) == made.shard_rows(0)  # that shard is what it was
    if values[-1] != values[0]:
        with pytest.raises(MismatchError, match="was changed after it was written"):
            file.verify()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("sample_id", "../../../../x"), ("sample_id", "ABCDEFGHIJKLMNOP"), ("sample_id", None), ("label", -1),
        ("label", 3), ("class_name", "other"), ("class_name", None), ("caption", "x" * 70_000), ("shard", 1),
        ("target_difficulty", float("nan")), ("requested_difficulty", 1.5), ("seed", -1), ("seed", 2**60), ("index", 9),
    ],
)  # fmt: skip
def test_a_plan_that_was_forged_as_a_whole_still_keeps_the_rules(tmp_path: Path, column: str, value: object) -> None:
    """Whoever can change a row can write digests that fit."""
    made = make_plan(inputs(), np.array([3, 2, 2]), parse_target("fixed:0.5"), 0, "g", shard_size=4)
    rows = made.table.to_pylist()
    rows[2][column] = value
    forged = dataclasses.replace(made, table=pa.Table.from_pylist(rows, SCHEMA))
    write_plan(forged, tmp_path / "plan.parquet")
    file = PlanFile(tmp_path / "plan.parquet")
    with pytest.raises(MismatchError, match=f"{column} = .* in row 2: ") as caught:
        file.shard_rows(0)
    assert "dcdm generate" in caught.value.hint
    file.shard_rows(1)


@pytest.mark.parametrize(
    "change",
    [
        {"shard_size": 0},
        {"shard_size": 10**9},
        {"unreachable": -1},
        {"class_names": [1]},
        {"class_names": None},
        {"schema": 1},
    ],
)
def test_a_header_that_breaks_a_rule_is_no_plan(
    tmp_path: Path, change: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    header = plan().header()
    monkeypatch.setattr(Plan, "header", lambda self: {**header, **change})
    write_plan(plan(), tmp_path / "plan.parquet")
    with pytest.raises(MismatchError, match=f"is no plan of dcdm: header.{next(iter(change))}"):
        PlanFile(tmp_path / "plan.parquet")


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_plan_raises_only_our_errors(tmp_path: Path, data: st.DataObject) -> None:
    file = tmp_path / "plan.parquet"
    write_plan(plan(), file)
    content = bytearray(file.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    file.write_bytes(bytes(content)[: data.draw(st.sampled_from([None, len(content) // 2]))])
    with contextlib.suppress(MismatchError):
        PlanFile(file).verify()


def test_a_million_rows_are_planned_in_seconds() -> None:
    """The real figure is benchmarks/bench_scaling.py's; this catches a return to a loop over rows."""
    started = time.process_time()
    made = make_plan(inputs(), np.full(3, 40_000), parse_target("normal:0.5,0.1"), 0, "g")
    assert len(made.hash) == 32 and len(made) == 120_000
    assert time.process_time() - started < 3
