"""Scanning Parquet files and saved datasets."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from dcdm_cli.data.candidates import ScanOptions
from dcdm_cli.data.images import decode_image, image_hash
from dcdm_cli.data.sources import Scan, scan
from dcdm_cli.errors import UsageError
from dcdm_cli.run.progress import Job

from .conftest import encoded, picture
from .test_scan_tars import write_tar

Scanned = Callable[..., Scan]


def write_parquet(file: Path, images: Sequence[Any], labels: Sequence[Any], **columns: Sequence[Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": list(images), "label": list(labels), **columns}), file)
    return file


def pictures(*seeds: int) -> list[dict[str, Any]]:
    return [{"bytes": encoded(picture(seed)), "path": f"{seed}.png"} for seed in seeds]


def dataset(*seeds: int, names: Sequence[str] = ("cat", "dog")) -> Dataset:
    """Labels alternate between the classes."""
    rows = {"image": [picture(seed) for seed in seeds], "label": [i % len(names) for i in range(len(seeds))]}
    return Dataset.from_dict(rows, Features(image=datasets.Image(), label=ClassLabel(names=list(names))))


def test_images_in_a_table_are_kept_as_they_came(scanned: Scanned, tmp_path: Path) -> None:
    jpeg = encoded(picture(1), "JPEG")
    file = write_parquet(
        tmp_path / "x.parquet", [{"bytes": jpeg, "path": None}, *pictures(2, 2)], ["cat", "dog", "dog"]
    )
    scan = scanned(file)
    manifest = scan.manifest
    assert manifest.class_names == ("cat", "dog") and manifest.root == tmp_path / "kept"
    first, second, third = manifest.paths()
    assert first.read_bytes() == jpeg and first.suffix == ".jpg"
    assert second == third and second.suffix == ".png"
    assert len(set(manifest.column("sample_id"))) == 3
    assert image_hash(decode_image(second)) == image_hash(picture(2))
    assert scanned(file).manifest.table.equals(manifest.table)
    assert not list((tmp_path / "kept").rglob("*.part"))


@pytest.mark.parametrize("image", [encoded(picture(1)), {"bytes": encoded(picture(1)), "path": "a.png"}])
def test_bytes_and_structs_are_images(scanned: Scanned, tmp_path: Path, image: Any) -> None:
    assert len(scanned(write_parquet(tmp_path / "x.parquet", [image], ["cat"])).manifest) == 1


def test_paths_in_a_table_must_stay_beside_it(scanned: Scanned, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for file in ("data/in.png", "out.png"):
        (tmp_path / file).write_bytes(encoded(picture(1)))
    rows = [{"bytes": None, "path": path} for path in ("in.png", "../out.png", "/etc/passwd", "none.png", None)]
    scan = scanned(write_parquet(tmp_path / "data/x.parquet", rows, ["cat"] * 5), max_bad=1.0)
    assert len(scan.manifest) == 1
    reasons = [rejection.reason for rejection in scan.rejected]
    assert reasons == ["outside_root", "outside_root", "unreadable", "not_an_image"]
    assert scan.rejected[0].path == "x.parquet#1"


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        (["dog", "cat"], ("cat", "dog"), [1, 0]),
        ([10, 9], ("9", "10"), [1, 0]),
        ([1.0, 0.0], ("0", "1"), [1, 0]),
    ],
)
def test_labels_without_stated_names(
    scanned: Scanned, tmp_path: Path, labels: list[Any], names: tuple[str, ...], expected: list[int]
) -> None:
    manifest = scanned(write_parquet(tmp_path / "x.parquet", pictures(1, 2), labels)).manifest
    assert manifest.class_names == names and manifest.column("label").tolist() == expected


def test_class_names_come_from_the_parquet_schema(scanned: Scanned, tmp_path: Path) -> None:
    dataset(1, 2, names=["zebra", "ant", "bee"]).to_parquet(str(tmp_path / "x.parquet"))
    scan = scanned(tmp_path / "x.parquet")
    assert scan.manifest.class_names == ("zebra", "ant", "bee")
    assert [row["class_name"] for row in scan.manifest.rows()] == ["zebra", "ant"]
    assert any("'bee'" in warning for warning in scan.warnings)


def test_labels_that_name_no_class_are_rejected(scanned: Scanned, tmp_path: Path) -> None:
    for labels in (["cat", None, ""], [0, -1, None], [0.0, float("nan"), 0.5]):
        scan = scanned(write_parquet(tmp_path / "x.parquet", pictures(1, 2, 3), labels), max_bad=1.0)
        assert [rejection.reason for rejection in scan.rejected] == ["no_label", "no_label"]


def test_column_names_captions_and_scores(scanned: Scanned, tmp_path: Path) -> None:
    table = pa.table({"img": pictures(1, 2), "fine": ["a", "b"], "text": ["one", None], "s": [0.5, float("nan")]})
    pq.write_table(table, tmp_path / "x.parquet")
    options = {"image_column": "img", "label_column": "fine", "caption_column": "text", "score_column": "s"}
    rows = scanned(tmp_path / "x.parquet", **options).manifest.rows()
    assert [(row["caption"], row["difficulty"]) for row in rows] == [("one", 0.5), (None, None)]
    with pytest.raises(UsageError, match="no column image, label; it has img, fine, text, s"):
        scanned(tmp_path / "x.parquet")


def test_files_named_like_splits_are_splits(scanned: Scanned, tmp_path: Path) -> None:
    write_parquet(tmp_path / "data/train-00000-of-00002.parquet", pictures(1), ["cat"])
    write_parquet(tmp_path / "data/train-00001-of-00002.parquet", pictures(2), ["dog"])
    write_parquet(tmp_path / "data/test-00000-of-00001.parquet", pictures(3), ["cat"])
    (tmp_path / "data/README.md").write_text("x")
    expected = ["test", "train", "train"]
    assert scanned(tmp_path / "data").manifest.column("split").tolist() == expected
    assert scanned(tmp_path / "data/*.parquet").manifest.column("split").tolist() == expected
    assert len(scanned(tmp_path / "data", split="test").manifest) == 1


def test_folders_named_like_splits_are_splits(scanned: Scanned, tmp_path: Path) -> None:
    write_parquet(tmp_path / "data/train/0.parquet", pictures(1), ["cat"])
    write_parquet(tmp_path / "data/validation/0.parquet", pictures(2), ["dog"])
    assert scanned(tmp_path / "data").manifest.column("split").tolist() == ["train", "judge"]


def test_files_of_which_some_are_no_splits_are_one_set(scanned: Scanned, tmp_path: Path) -> None:
    write_parquet(tmp_path / "data/test tube.parquet", pictures(1), ["cat"])
    write_parquet(tmp_path / "data/beaker.parquet", pictures(2), ["dog"])
    assert set(scanned(tmp_path / "data").manifest.column("split")) == {"train"}
    assert set(scanned(tmp_path / "data/test*.parquet", split="test").manifest.column("split")) == {"test"}


@pytest.mark.parametrize("content", [b"", b"PAR1", b"text"])
def test_a_file_that_is_no_parquet_is_a_usage_error(scanned: Scanned, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(UsageError, match="not a readable Parquet"):
        scanned(tmp_path / "x.parquet")


def test_a_damaged_page_is_a_usage_error(scanned: Scanned, tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "x.parquet", pictures(*range(5)), ["cat"] * 5)
    content = bytearray(file.read_bytes())
    content[4:60] = bytes(56)
    file.write_bytes(content)
    with pytest.raises(UsageError, match="damaged"):
        scanned(file)


@pytest.mark.parametrize("prefix", ["", "hf:"])
def test_a_saved_dataset_is_read(scanned: Scanned, tmp_path: Path, prefix: str) -> None:
    DatasetDict(train=dataset(1, 2), validation=dataset(3), test=dataset(4)).save_to_disk(str(tmp_path / "saved"))
    manifest = scanned(f"{prefix}{tmp_path / 'saved'}").manifest
    assert manifest.column("split").tolist() == ["train", "train", "judge", "test"]
    assert manifest.class_names == ("cat", "dog")
    assert image_hash(decode_image(manifest.paths()[1])) == image_hash(picture(2))


def test_a_saved_dataset_without_splits_is_one_split(scanned: Scanned, tmp_path: Path) -> None:
    dataset(1, 2).save_to_disk(str(tmp_path / "saved"))
    assert set(scanned(tmp_path / "saved", split="test").manifest.column("split")) == {"test"}
    (tmp_path / "saved/dataset_info.json").write_text("{")
    with pytest.raises(UsageError, match="saved dataset"):
        scanned(tmp_path / "saved")


def test_a_split_of_a_saved_dataset_must_be_known(scanned: Scanned, tmp_path: Path) -> None:
    DatasetDict(unsupervised=dataset(1)).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UsageError, match="not a split"):
        scanned(tmp_path / "saved")


def test_plain_value_columns_of_a_dataset(scanned: Scanned, tmp_path: Path) -> None:
    rows = {"image": [encoded(picture(1))], "label": ["cat"]}
    features = Features(image=Value("binary"), label=Value("string"))
    Dataset.from_dict(rows, features).save_to_disk(str(tmp_path / "saved"))
    assert json.dumps(scanned(tmp_path / "saved").manifest.class_names) == '["cat"]'


def test_parts_of_a_dataset_are_named_kept_or_left_out(scanned: Scanned, tmp_path: Path) -> None:
    DatasetDict(train=dataset(1, 2), holdout=dataset(3)).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UsageError, match="'holdout' is not a split") as caught:
        scanned(tmp_path / "saved")
    assert "--split-map holdout=test" in caught.value.hint and "--split train" in caught.value.hint
    assert len(scanned(tmp_path / "saved", split="train").manifest) == 2
    assert scanned(tmp_path / "saved", split="holdout").manifest.column("split").tolist() == ["train"]
    mapped = scanned(tmp_path / "saved", split_map={"holdout": "judge"}).manifest
    assert mapped.column("split").tolist() == ["train", "train", "judge"]
    with pytest.raises(UsageError, match=r"'test' is not a split of this source, which has 'train', 'holdout'"):
        scanned(tmp_path / "saved", split="test")


def test_an_unlabelled_split_is_named(scanned: Scanned, tmp_path: Path) -> None:
    unlabelled = dataset(3, 4).map(lambda row: {"label": -1})
    DatasetDict(train=dataset(1, 2), test=unlabelled).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UsageError, match="the split 'test' has no labels: 2 images") as caught:
        scanned(tmp_path / "saved")
    assert "--split-map test=none" in caught.value.hint and "--split train" in caught.value.hint
    assert scanned(tmp_path / "saved", split_map={"test": "none"}).manifest.column("split").tolist() == ["train"] * 2


def test_a_split_without_the_column_of_labels_can_be_left_out(scanned: Scanned, tmp_path: Path) -> None:
    write_parquet(tmp_path / "data/train.parquet", pictures(1, 2), ["cat", "dog"])
    pq.write_table(pa.table({"image": pictures(3), "id": [7]}), tmp_path / "data/test.parquet")
    with pytest.raises(UsageError, match=r"test\.parquet, the split 'test', has no column label, as train") as caught:
        scanned(tmp_path / "data")
    assert "--split-map test=none" in caught.value.hint and "--label-column" in caught.value.hint
    found = scanned(tmp_path / "data", split_map={"test": "none"})
    assert found.manifest.column("split").tolist() == ["train", "train"] and not found.rejected
    (tmp_path / "data/test.parquet").rename(tmp_path / "data/secret.parquet")
    with pytest.raises(UsageError) as caught:
        scanned(tmp_path / "data", split_map={"secret": "test"})
    assert "--split-map secret=none" in caught.value.hint
    assert len(scanned(tmp_path / "data", split_map={"secret": "none"}).manifest) == 2
    with pytest.raises(UsageError, match="has no column kind; it has"):
        scanned(tmp_path / "data", split_map={"secret": "none"}, label_column="kind")


def test_a_file_beside_splits_is_asked_about(scanned: Scanned, tmp_path: Path) -> None:
    for seed, name in enumerate(("train-0", "test-0", "extra")):
        write_parquet(tmp_path / f"data/{name}.parquet", pictures(seed), ["cat"])
    with pytest.raises(UsageError, match=r"a split by its name, extra\.parquet is not") as caught:
        scanned(tmp_path / "data")
    assert "--split-map extra=train" in caught.value.hint
    found = scanned(tmp_path / "data", split_map={"extra": "train"}).manifest
    assert sorted(found.column("split")) == ["test", "train", "train"]
    assert len(scanned(tmp_path / "data", exclude=("extra*",)).manifest) == 2


def test_a_table_that_describes_tars_is_not_the_images(scanned: Scanned, tmp_path: Path) -> None:
    write_tar(tmp_path / "in/00000.tar", {"0.png": encoded(picture(1)), "0.json": '{"label": "cat", "caption": "c"}'})
    pq.write_table(pa.table({"url": ["x"], "caption": ["c"]}), tmp_path / "in/00000.parquet")
    scan = scanned(tmp_path / "in")
    assert scan.manifest.class_names == ("cat",) and any("read from tars" in warning for warning in scan.warnings)
    write_parquet(tmp_path / "in/more.parquet", pictures(2), ["cat"])
    with pytest.raises(UsageError, match="both hold images") as caught:
        scanned(tmp_path / "in")
    assert "*.tar" in caught.value.hint


@pytest.mark.parametrize("kind", ["parquet", "saved", "excluded"])
def test_how_many_images_there_are_to_read_is_told_where_a_table_knows(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "x"
    if kind == "saved":
        dataset(1, 2, 3).save_to_disk(source)
    else:
        source = write_parquet(tmp_path / "x.parquet", pictures(1, 2, 3), ["cat", "dog", "dog"])
    told: list[tuple[str, int, int]] = []
    exclude = ("*#0",) if kind == "excluded" else ()  # names are known once they are read
    job = Job(progress=lambda *said: told.append(said))
    scan(str(source), ScanOptions(exclude=exclude, min_train=1), tmp_path / "kept", job)
    count = 2 if kind == "excluded" else 3
    reading = [(done, total) for what, done, total in told if what == "reading images"]
    expected = [(1, 0), (2, 0), (2, 2)] if kind == "excluded" else [(done, count) for done in range(1, count + 1)]
    assert reading == expected
