"""The manifest: round trip, and what a wrong or damaged file does."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dcdm_cli.data.candidates import ScanOptions
from dcdm_cli.data.digits import write_digits
from dcdm_cli.data.manifest import (
    COLUMNS,
    LATER,
    SCHEMA,
    Manifest,
    has_rows,
    read_manifest,
    share_true,
    write_manifest,
    write_manifest_parts,
)
from dcdm_cli.data.sources import scan
from dcdm_cli.errors import MismatchError, NotFoundError, UsageError

from .conftest import encoded, picture

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
# What a manifest promises; the order is the file's.
DESIGN = [
    "sample_id",
    "path",
    "label",
    "class_name",
    "split",
    "width",
    "height",
    "synthetic",
    "difficulty",
    "p_true",
    "loss",
    "margin",
    "entropy",
    "predicted",
    "fold",
    "suspect_label",
    "caption",
    "prompt",
    "seed",
    "target_difficulty",
    "requested_difficulty",
    "measured_difficulty",
    "label_checked",
    "generator",
    "source_id",
    "prompt_source",
]
VALUES = {
    pa.string(): text,
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.int64(): st.integers(0, 2**53 - 1),
    pa.bool_(): st.booleans(),
    pa.float32(): st.floats(0, 1, width=32),
}
NAMED = {
    "sample_id": st.from_regex("[0-9a-z]{16}", fullmatch=True, alphabet=st.characters(codec="ascii")),
    "source_id": st.from_regex("[0-9a-f]{32}(-[0-9a-f]{8})?", fullmatch=True, alphabet=st.characters(codec="ascii")),
    **dict.fromkeys(("width", "height"), st.integers(1, 2**20)),
    **dict.fromkeys(("label", "predicted", "fold"), st.integers(-1, 2)),
}
row = st.fixed_dictionaries(
    {"path": text.filter(lambda name: name and "\0" not in name)},
    optional={f.name: st.none() | NAMED.get(f.name, VALUES[f.type]) for f in SCHEMA if f.name != "path"},
)


def test_the_columns_are_those_of_the_design() -> None:
    assert list(COLUMNS) == DESIGN


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(row, max_size=20), class_names=st.lists(text, min_size=3, max_size=3, unique=True))
def test_round_trip(tmp_path: Path, rows: list[dict[str, object]], class_names: list[str]) -> None:
    manifest = Manifest.from_rows(rows, class_names, tmp_path)
    write_manifest(manifest, tmp_path / "samples.parquet")
    read = read_manifest(tmp_path / "samples.parquet")
    assert read.table.equals(manifest.table)
    assert (read.class_names, read.root) == (tuple(class_names), tmp_path)
    assert read.rows() == manifest.rows()


def test_manifests_from_before_there_were_label_checks_can_be_read(tmp_path: Path) -> None:
    file = tmp_path / "samples.parquet"
    write_manifest(Manifest.from_rows([{"path": "a.png", "label_checked": True}, {"path": "b.png"}], ["x"]), file)
    assert read_manifest(file).table["label_checked"].to_pylist() == [True, None]
    pq.write_table(pq.read_table(file).drop_columns("label_checked"), file)
    old = read_manifest(file)
    assert old.table.schema.equals(SCHEMA) and old.table["label_checked"].to_pylist() == [None, None]
    pq.write_table(pq.read_table(file).drop_columns("caption"), file)
    with pytest.raises(MismatchError):
        read_manifest(file)


def test_the_share_that_is_true_counts_rows_with_a_value() -> None:
    assert share_true(pa.chunked_array([[True, None, False], [True, True]])) == 0.75
    assert share_true(pa.chunked_array([[None, None]], pa.bool_())) is None


def test_without_a_root_paths_start_at_the_file(tmp_path: Path) -> None:
    write_manifest(Manifest.from_rows([{"path": "a.png"}], ["x"]), tmp_path / "run/samples.parquet")
    assert read_manifest(tmp_path / "run/samples.parquet").paths() == [tmp_path / "run/a.png"]


def test_images_below_the_manifest_move_with_it_and_others_stay_where_they_are(tmp_path: Path) -> None:
    for root in (tmp_path / "run/images", tmp_path / "elsewhere"):
        write_manifest(Manifest.from_rows([{"path": "a.png"}], ["x"], root), tmp_path / "run/samples.parquet")
        (tmp_path / "run").rename(tmp_path / "moved")
        (path,) = read_manifest(tmp_path / "moved/samples.parquet").paths()
        assert path == (tmp_path / "moved/images/a.png" if root.name == "images" else tmp_path / "elsewhere/a.png")
        (tmp_path / "moved").rename(tmp_path / "run")


def test_columns_selection_and_counts() -> None:
    rows = [{"label": i % 2, "split": "train" if i < 3 else "test", "difficulty": i / 4} for i in range(4)]
    manifest = Manifest.from_rows(rows, ["a", "b", "c"])
    assert manifest.class_counts().tolist() == [2, 2, 0]
    assert len(manifest.split("train")) == 3 and len(manifest.split("train", "test")) == 4
    assert manifest.select(np.array([3, 0])).column("difficulty").tolist() == [0.75, 0.0]
    scored = manifest.with_columns({"difficulty": [0.1, np.nan, 0.3, 0.4]})
    assert scored.table["difficulty"].null_count == 1 and np.isnan(scored.column("difficulty")[1])
    assert manifest.column("seed").tolist() == [-1] * 4


@pytest.mark.parametrize("bad", [{"nonsense": 1}, {"label": "x"}, {"label": 2**40}, {"path": "\ud800"}, {"path": 3}])
def test_rows_that_do_not_fit_are_usage_errors(bad: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Manifest.from_rows([bad], ["x"])


def test_a_missing_manifest_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        read_manifest(tmp_path / "samples.parquet", made_by="dcdm score")
    assert "dcdm score" in caught.value.hint


def test_any_damage_is_a_mismatch(tmp_path: Path) -> None:
    file = tmp_path / "samples.parquet"
    write_manifest(Manifest.from_rows([{"path": f"{i}.png", "label": 0} for i in range(20)], ["x"]), file)
    content = file.read_bytes()
    for position in range(0, len(content), 499):
        for damaged in (content[:position], content[:position] + bytes(8) + content[position + 8 :]):
            file.write_bytes(damaged)
            try:
                read_manifest(file)
            except MismatchError as error:
                assert "--force" in error.hint


@pytest.mark.parametrize(
    "bad",
    [
        {"sample_id": "../../x"}, {"label": 2}, {"label": -2}, {"difficulty": 1.5}, {"difficulty": float("-inf")},
        {"loss": float("inf")}, {"seed": -1}, {"width": 0}, {"path": "a\0b"}, {"path": None}, {"caption": "x" * 70_000},
    ],
)  # fmt: skip
def test_a_row_that_breaks_a_rule_is_named(tmp_path: Path, bad: dict[str, object]) -> None:
    good = {"path": "a.png", "label": 1, "sample_id": "0" * 32 + "-01234567", "difficulty": 0.5}
    rows = [good, good, {**good, **bad}]
    write_manifest(Manifest.from_rows(rows, ["x", "y"]), tmp_path / "samples.parquet")
    with pytest.raises(MismatchError, match=f"{next(iter(bad))} = .* in row 2: ") as caught:
        read_manifest(tmp_path / "samples.parquet")
    assert caught.value.hint == "make it again: dcdm score --force"


@pytest.mark.parametrize(
    "path", ["../secret.png", "/etc/hostname", "linked/secret.png", "out.tar#0+10/a.png", "a/../../x"]
)
def test_a_path_that_leads_out_of_the_root_is_refused(tmp_path: Path, path: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "linked").symlink_to(tmp_path)
    (run / "out.tar").symlink_to(tmp_path / "other.tar")
    write_manifest(Manifest.from_rows([{"path": path, "label": 0}], ["x"]), run / "samples.parquet")
    manifest = read_manifest(run / "samples.parquet")
    for use in (manifest.paths, lambda: manifest.image_paths()[0]):
        with pytest.raises(MismatchError, match="leads out of"):
            use()


def test_a_link_inside_and_a_member_of_a_tar_are_found(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "linked").symlink_to("real")
    paths = ["linked/a.png", "real/x.tar#0+10/a.png", str(tmp_path / "real/b.png")]
    write_manifest(Manifest.from_rows([{"path": path} for path in paths], ["x"]), tmp_path / "samples.parquet")
    assert read_manifest(tmp_path / "samples.parquet").paths() == [tmp_path / path for path in paths]


@pytest.mark.parametrize(
    "said", [b"[]", b'{"class_names": 3}', b'{"class_names": [1]}', b'{"class_names": [], "root": 5}', b"NaN"]
)
def test_what_a_manifest_says_of_itself_is_checked(tmp_path: Path, said: bytes) -> None:
    pq.write_table(SCHEMA.empty_table().replace_schema_metadata({b"dcdm": said}), tmp_path / "samples.parquet")
    with pytest.raises(MismatchError, match="is no manifest of dcdm"):
        read_manifest(tmp_path / "samples.parquet")


def test_half_a_million_rows_are_checked_in_seconds(tmp_path: Path) -> None:
    rows = 500_000
    columns = {name: pa.nulls(rows, kind) for name, kind in zip(SCHEMA.names, SCHEMA.types, strict=True)}
    columns |= {"path": pa.array([f"{i}.png" for i in range(rows)]), "label": pa.array(np.zeros(rows, np.int32))}
    columns["sample_id"] = pa.array(["0" * 16] * rows)
    write_manifest(Manifest(pa.table(columns, SCHEMA), ("x",)), tmp_path / "samples.parquet")
    clock = time.process_time()
    assert len(read_manifest(tmp_path / "samples.parquet")) == rows
    assert time.process_time() - clock < 5


def test_a_manifest_from_before_a_column_was_added_reads_as_nulls(tmp_path: Path) -> None:
    file = tmp_path / "samples.parquet"
    written = Manifest.from_rows([{"path": "a.png", "label": 0}, {"path": "b.png", "label": 1}], ("x", "y"))
    write_manifest(written, file)
    whole = pq.read_table(file)
    pq.write_table(whole.drop_columns(list(LATER)), file)
    found = read_manifest(file)
    assert found.table.equals(written.table) and found.table["source_id"].null_count == 2
    for name in ("seed", "generator"):  # any other column that is missing is a fault
        pq.write_table(whole.drop_columns([name]), file)
        with pytest.raises(MismatchError, match="is no manifest"):
            read_manifest(file)


def test_other_tools_open_the_paths_of_images_that_lie_elsewhere(tmp_path: Path) -> None:
    photos, run = tmp_path / "photos", tmp_path / "run"
    (photos / "cat").mkdir(parents=True)
    run.mkdir()
    (photos / "cat" / "é 1.png").write_bytes(b"x")
    names = ["cat/é 1.png", "cat.tar#1.png", "/elsewhere/2.png"]
    rows = [{"sample_id": f"{i:032x}", "path": name, "label": 0, "class_name": "cat"} for i, name in enumerate(names)]
    write_manifest(Manifest.from_rows(rows, ("cat",), photos), run / "samples.parquet")
    written = pq.read_table(run / "samples.parquet")["path"].to_pylist()
    assert written == [f"{photos}/{names[0]}", f"{photos}/{names[1]}", names[2]] and Path(written[0]).is_file()
    assert read_manifest(run / "samples.parquet").table["path"].to_pylist() == names


def test_other_tools_open_the_images_that_lie_below_the_manifest(tmp_path: Path) -> None:
    """`dcdm score . --run .` among them. The table is read where it was moved to, and right once it is written anew."""
    for below in ("run/images", "run"):
        run, root = tmp_path / "run", tmp_path / below
        (root / "cat").mkdir(parents=True)
        (root / "cat" / "1.png").write_bytes(b"x")
        write_manifest(Manifest.from_rows([{"path": "cat/1.png"}], ("cat",), root), run / "samples.parquet")
        [written] = pq.read_table(run / "samples.parquet")["path"].to_pylist()
        assert written == str(root / "cat" / "1.png") and Path(written).is_file()
        run.rename(tmp_path / "moved")
        moved = read_manifest(tmp_path / "moved" / "samples.parquet")
        assert moved.table["path"].to_pylist() == ["cat/1.png"] and moved.paths()[0].is_file()
        write_manifest(moved, tmp_path / "moved" / "samples.parquet")
        [written] = pq.read_table(tmp_path / "moved" / "samples.parquet")["path"].to_pylist()
        assert written.startswith(f"{tmp_path}/moved/") and Path(written).is_file()
        shutil.rmtree(tmp_path / "moved")


def test_a_data_set_that_is_published_whole_names_its_images_within_itself(tmp_path: Path) -> None:
    made = Manifest.from_rows([{"path": "train/1.png"}], ("cat",), tmp_path)
    write_manifest_parts([made.table], tmp_path / "samples.parquet", ("cat",), tmp_path)
    assert pq.read_table(tmp_path / "samples.parquet")["path"].to_pylist() == ["train/1.png"]
    assert read_manifest(tmp_path / "samples.parquet").paths() == [tmp_path / "train/1.png"]


@pytest.mark.parametrize("kind", ["digits", "parquet"])
def test_images_of_sources_that_are_unpacked_open_without_our_help(tmp_path: Path, kind: str) -> None:
    run = tmp_path / "run"
    if kind == "digits":
        source = write_digits(run / "images" / "digits", 20)
    else:
        content = [encoded(picture(seed=i)) for i in range(4)]
        rows = {"image": [{"bytes": one, "path": None} for one in content], "label": ["cat", "dog"] * 2}
        source = tmp_path / "photos.parquet"
        pq.write_table(pa.table(rows), source)
    found = scan(str(source), ScanOptions(), run / "images")
    write_manifest(found.manifest, run / "samples.parquet")
    written = [Path(name) for name in pq.read_table(run / "samples.parquet")["path"].to_pylist()]
    assert len(written) >= 4 and all(path.is_absolute() and path.is_file() for path in written)
    with Image.open(written[0]) as image:
        assert image.size == tuple(found.manifest.rows()[0][side] for side in ("width", "height"))
    run.rename(tmp_path / "moved")
    moved = read_manifest(tmp_path / "moved" / "samples.parquet")
    assert moved.rows() == found.manifest.rows() and all(path.is_file() for path in moved.paths())


def test_rows_of_a_file_are_held_against_what_was_written(tmp_path: Path) -> None:
    file = tmp_path / "samples.parquet"
    rows = [
        {
            "sample_id": f"id{i}",
            "path": f"{i}.png",
            "label": i % 2,
            "class_name": "ab"[i % 2],
            "loss": [0.5, None, np.nan][i % 3],
        }
        for i in range(7)
    ]
    parts = [Manifest.from_rows(rows[:4], "ab").table, Manifest.from_rows(rows[4:], "ab").table]
    write_manifest_parts(parts, file, ("a", "b"), tmp_path)
    assert has_rows(file, parts) and not has_rows(file, parts[:1]) and not has_rows(file, [*parts, parts[0]])
    for column, value in (("label", 1), ("class_name", "b"), ("loss", 0.25), ("path", "x.png")):
        other = Manifest.from_rows([{**rows[0], column: value}, *rows[1:4]], "ab").table
        assert not has_rows(file, [other, parts[1]])
    pq.write_table(pq.read_table(file).drop_columns(["source_id"]), file)
    assert has_rows(file, [pa.concat_tables(parts)]), "a file from before there was such a column"
