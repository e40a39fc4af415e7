"""Shards in every format: complete or absent, the same bytes every time, and read by the tools people train with."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import json
import os
import tarfile
import threading
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from dcdm_cli.data.images import decode_image
from dcdm_cli.errors import InterruptedRunError, MismatchError, NumericalError, StorageError
from dcdm_cli.files import write_bytes
from dcdm_cli.generation import layout as layout_module
from dcdm_cli.generation import ledger as ledger_module
from dcdm_cli.generation import shards
from dcdm_cli.generation.layout import Layout
from dcdm_cli.generation.ledger import Ledger
from dcdm_cli.generation.plan import Plan
from dcdm_cli.generation.run import Generated, ShardCoordinator, make_shard, run_shards
from dcdm_cli.generation.shards import Encoders, Journal, MadeShard, ShardTask
from dcdm_cli.run.progress import Job

from .fakes import NAMES, FakeMaker, contents, fake_measure, fake_plan

FORMATS = ("folder", "parquet", "webdataset")
PLAN = fake_plan(22, shard_size=8)
OF_X = hashlib.sha256(b"x").hexdigest()


def layout(folder: Path, format: str = "folder", plan: Plan = PLAN, image: str = "png") -> Layout:
    return Layout(folder, format, image, NAMES, plan.shards)


def run(folder: Path, format: str = "folder", maker: FakeMaker | None = None, job: Job | None = None) -> Generated:
    return run_shards(PLAN, maker or FakeMaker(measure=fake_measure), layout(folder, format), job or Job())


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_plan_gives_the_same_bytes(tmp_path: Path, format: str) -> None:
    made = run(tmp_path / "a", format)
    assert (made.images, made.failed, made.made) == (22, 0, 22)
    run(tmp_path / "b", format)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    again = run(tmp_path / "a", format, FakeMaker(measure=fake_measure))
    assert (again.images, again.made) == (22, 0)
    assert made.manifest.column("sample_id").tolist() == PLAN.table["sample_id"].to_pylist()


@pytest.mark.parametrize("format", FORMATS)
def test_every_shard_has_a_record_that_fits(tmp_path: Path, format: str) -> None:
    run(tmp_path, format)
    records = [json.loads(p.read_text()) for p in sorted((tmp_path / "shards").glob("0*.json"))]
    assert [record["count"] for record in records] == [8, 8, 6]
    for record, ids in zip(records, np.split(np.array(PLAN.table["sample_id"]), [8, 16]), strict=True):
        assert (record["first_id"], record["last_id"]) == (ids[0], ids[-1])
        if record["path"]:
            assert hashlib.sha256((tmp_path / record["path"]).read_bytes()).hexdigest() == record["sha256"]


@pytest.mark.parametrize("format", FORMATS)
def test_blank_images_are_left_out_and_counted(tmp_path: Path, format: str) -> None:
    made = run(tmp_path, format, FakeMaker(blank=3))
    blank = sum(seed % 3 == 0 for seed in PLAN.table["seed"].to_pylist())
    assert 0 < blank < 22 and (made.images, made.failed) == (22 - blank, blank)
    again = FakeMaker(blank=3)
    assert run(tmp_path, format, again).failed == blank and again.rendered == []


@pytest.mark.parametrize("format", FORMATS)
def test_images_that_are_all_blank_are_a_failure_with_a_list(tmp_path: Path, format: str) -> None:
    """No file, no success: the list of what was made in vain is there before the error is."""
    for _ in range(2):
        with pytest.raises(NumericalError, match="all 22 images are blank") as caught:
            run(tmp_path, format, FakeMaker(blank=1))
        assert caught.value.code == 4 and "--precision fp32" in caught.value.hint
        listed = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
        assert [row["path"] for row in listed] == PLAN.table["sample_id"].to_pylist()
        assert {row["reason"] for row in listed} == {"blank"}
    assert format == "folder" or list((tmp_path / "data").iterdir()) == []


def test_some_blank_images_are_listed(tmp_path: Path) -> None:
    made = run(tmp_path, "folder", FakeMaker(blank=3))
    assert len((tmp_path / "rejected.jsonl").read_text().splitlines()) == made.failed > 0
    assert run(tmp_path / "whole", "folder", FakeMaker()).failed == 0
    assert (tmp_path / "whole" / "rejected.jsonl").read_text() == ""


@pytest.mark.parametrize("format", ["parquet", "webdataset"])
def test_an_archive_that_could_not_be_published_does_not_fill_the_disk_further(
    tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **how: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ledger_module.pq, "write_table", full)
        with pytest.raises(StorageError):
            run(tmp_path, format, FakeMaker())
    assert not [path for path in tmp_path.rglob("*") if ".part" in path.name]
    assert run(tmp_path, format, FakeMaker()).images == 22


# Stopping, killing, resuming


class Killed(BaseException):
    """Stands for a kill: no handler of ours may rely on running."""


class DyingMaker(FakeMaker):
    """Dies before its n-th batch."""

    def __init__(self, batches: int) -> None:
        super().__init__(measure=fake_measure)
        self.left = batches

    def render(self, rows, job):  # type: ignore[no-untyped-def]
        for batch in super().render(rows, job):
            if self.left == 0:
                raise Killed
            self.left -= 1
            yield batch


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("batches", [0, 1, 2, 3, 5])
def test_a_run_that_died_goes_on_to_the_same_bytes(tmp_path: Path, format: str, batches: int) -> None:
    run(tmp_path / "through", format)
    with pytest.raises(Killed):
        run(tmp_path / "died", format, DyingMaker(batches))
    maker = FakeMaker(measure=fake_measure)
    run(tmp_path / "died", format, maker)
    assert contents(tmp_path / "died") == contents(tmp_path / "through")
    assert not set(maker.rendered) & set(range(batches * 4 // 8 * 8))  # finished shards are not made again


def test_a_stop_keeps_the_images_of_an_unfinished_folder_shard(tmp_path: Path) -> None:
    asked = iter([None] * 4)  # before each of two shards, and after two batches of the first
    with pytest.raises(InterruptedRunError, match="12 of 22 images are finished"):
        run(tmp_path, job=Job(stop_signal=lambda: next(asked, "SIGINT")))
    maker = FakeMaker(measure=fake_measure)
    run(tmp_path, maker=maker)
    assert maker.rendered == list(range(12, 22))


def test_a_stop_within_a_batch_keeps_those_before_it(tmp_path: Path) -> None:
    asked: list[str] = []

    class Stopped(FakeMaker):
        def render(self, rows, job):  # type: ignore[no-untyped-def]
            yield next(super().render(rows, job))
            asked.append("SIGINT")
            job.stop_if_asked("the second batch is lost")

    with pytest.raises(InterruptedRunError, match="4 of 22 images are finished"):
        run(tmp_path, maker=Stopped(measure=fake_measure), job=Job(stop_signal=lambda: next(iter(asked), None)))
    maker = FakeMaker(measure=fake_measure)
    run(tmp_path, maker=maker)
    assert maker.rendered == list(range(4, 22))


def test_the_journal_keeps_whole_batches_of_what_is_there(tmp_path: Path) -> None:
    file, ids = tmp_path / "shards" / "00000.journal", [f"{i:016x}" for i in range(6)]
    write_bytes(tmp_path / "train/cat" / f"{ids[0]}.png", b"x")
    journal = Journal(file, ids)
    entry = {"path": f"train/cat/{ids[0]}.png", "sha256": OF_X, "bytes": 1}
    journal.append([{"sample_id": i} | entry for i in ids[:2]])
    journal.append([{"sample_id": ids[2], "path": None, "sha256": None}, {"sample_id": ids[3]} | entry])
    journal.append([{"sample_id": ids[4]} | entry, {"sample_id": ids[5]} | entry | {"path": f"train/cat/{ids[5]}.png"}])
    whole = file.read_bytes()
    assert [e["sample_id"] for e in Journal(file, ids).entries] == ids[:4]
    file.write_bytes(whole[: whole.index(f'"{ids[3]}"'.encode()) + 20])  # torn in the fourth line
    assert [e["sample_id"] for e in Journal(file, ids).entries] == ids[:2]
    assert file.read_bytes().count(b"\n") == 2
    assert Journal(file, ["another", *ids]).entries == []


@pytest.mark.parametrize(
    "change",
    [
        {"path": "../../../outside.png"},
        {"path": "/etc/hostname"},
        {"path": "train/linked/0000000000000000.png"},
        {"sha256": "x"},
        {"sha256": "0" * 64},
        {"sha256": None},
        {"bytes": -1},
        {"bytes": 10**30},
        {"width": "wide"},
        {"difficulty": 2.0},
        {"batch": "1"},
        {"batch": 0},
    ],
)
def test_lines_of_a_journal_that_are_not_ours_are_made_again(tmp_path: Path, change: dict[str, Any]) -> None:
    folder, id = tmp_path / "run", "0" * 16
    write_bytes(folder / f"train/cat/{id}.png", b"x")
    write_bytes(tmp_path / "elsewhere" / f"{id}.png", b"x")
    (folder / "train/linked").symlink_to(tmp_path / "elsewhere")
    line = {"sample_id": id, "path": f"train/cat/{id}.png", "sha256": OF_X, "bytes": 1, "batch": 1}
    for changed, known in ((line, 1), (line | change, 0)):
        write_bytes(folder / "shards/00000.journal", json.dumps(changed).encode() + b"\n")
        assert len(Journal(folder / "shards/00000.journal", [id]).entries) == known


def test_the_renderer_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most a few batches wait to be written, however fast the renderer is: memory stays flat."""
    disk_is_free, maker, plan = threading.Event(), FakeMaker(), fake_plan(200, shard_size=200)
    real = shards.encode_image
    monkeypatch.setattr(shards, "encode_image", lambda *given: disk_is_free.wait(60) and real(*given))
    running = threading.Thread(target=run_shards, args=(plan, maker, layout(tmp_path, "folder", plan), Job()))
    running.start()
    deadline = time.monotonic() + 60
    while len(maker.rendered) < 4 * (shards.WAITING + 1) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert len(maker.rendered) == 4 * (shards.WAITING + 1)
    disk_is_free.set()
    running.join(60)
    assert len(maker.rendered) == 200


# Faults


@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk_is_named_and_finished_shards_stay(
    tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    second_shard = PLAN.table["sample_id"].to_pylist()[10]
    whole, write = Path.write_bytes, layout_module._HashedFile.write

    def into_a_file(path: Path, content: bytes) -> int:
        fill_disk(second_shard in path.name)
        return whole(path, content)

    def into_an_archive(self: layout_module._HashedFile, content: bytes) -> int:
        fill_disk("train-00001" in str(self.stream.name) and self.bytes > 500 and not self.given_up)
        return write(self, content)

    def fill_disk(full: bool) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", into_a_file)
    monkeypatch.setattr(layout_module._HashedFile, "write", into_an_archive)
    with pytest.raises(StorageError, match="No space left"):
        run(tmp_path / "full", format)
    monkeypatch.undo()
    assert (tmp_path / "full/shards/00000.json").is_file() and not list((tmp_path / "full").rglob("*.part"))
    maker = FakeMaker(measure=fake_measure)
    run(tmp_path / "full", format, maker)
    assert maker.rendered == list(range(8, 22))
    run(tmp_path / "through", format)
    assert contents(tmp_path / "full") == contents(tmp_path / "through")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"plan": "0" * 32}, "it belongs to another plan"),
        ({"bytes": 1}, "bytes instead of 1"),
        ({"rows_sha256": "0" * 32}, "00001.parquet is missing or was changed"),
        ({"shard": 99}, "the plan has 3 shards"),
        ({"surprise": 1}, "is damaged: surprise"),
        ({"path": "../../x.tar"}, "its file is data/train-00001.tar"),
        ({"count": -1}, "is damaged: count = -1"),
        ("{", "is damaged"),
    ],
)
def test_a_wrong_record_is_refused_with_the_remedy(tmp_path: Path, change: dict | str, says: str) -> None:
    run(tmp_path, "webdataset")
    file = tmp_path / "shards/00001.json"
    document = json.loads(file.read_text())
    file.write_text(change if isinstance(change, str) else json.dumps(document | change))
    before = contents(tmp_path)
    with pytest.raises(MismatchError, match=says) as caught:
        run(tmp_path, "webdataset")
    assert "that shard alone is made again" in caught.value.hint and contents(tmp_path) == before
    file.unlink()  # what the hint says
    maker = FakeMaker(measure=fake_measure)
    run(tmp_path, "webdataset", maker)
    assert maker.rendered == list(range(8, 16))


@pytest.mark.parametrize("format", FORMATS)
def test_verify_finds_content_that_changed(tmp_path: Path, format: str) -> None:
    run(tmp_path, format)
    run_shards(PLAN, FakeMaker(), layout(tmp_path, format), Job(), verify=True)
    flip(image_or_archive(tmp_path), same_time=True)
    assert run(tmp_path, format).images == 22  # not looked for unless asked
    with pytest.raises(MismatchError, match="has other content"):
        run_shards(PLAN, FakeMaker(), layout(tmp_path, format), Job(), verify=True)


def image_or_archive(folder: Path) -> Path:
    return next(p for p in sorted(folder.rglob("*")) if p.suffix == ".png" or p.parent.name == "data")


def flip(file: Path, *, same_time: bool) -> None:
    """One bit in the middle. same_time: no look at the file tells; otherwise it is written some time later."""
    content, written = bytearray(file.read_bytes()), file.stat().st_mtime_ns
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    later = written + (0 if same_time else 60 * 10**9)
    os.utime(file, ns=(later, later))


def found_in(folder: Path, format: str, *, verify: bool = False) -> list[tuple[str, str]]:
    return [*Ledger(PLAN, layout(folder, format)).differences(verify=verify)]


@pytest.mark.parametrize("format", FORMATS)
def test_content_that_changed_later_is_found_without_being_asked_for(tmp_path: Path, format: str) -> None:
    run(tmp_path, format)
    victim = image_or_archive(tmp_path)
    assert found_in(tmp_path, format, verify=True) == [] and Ledger(PLAN, layout(tmp_path, format)).missing() == ""
    flip(victim, same_time=False)
    [(said, again)] = found_in(tmp_path, format)
    assert f"{victim.relative_to(tmp_path)} has other content" in said and again.startswith(f"remove {victim}, then")
    assert "has other content" in Ledger(PLAN, layout(tmp_path, format)).missing()
    with pytest.raises(MismatchError, match="has other content"):
        run(tmp_path, format)
    victim.unlink()  # what the remedy says
    run(tmp_path, format)
    assert found_in(tmp_path, format, verify=True) == []


def test_a_folder_that_was_copied_with_new_times_is_as_it_was(tmp_path: Path) -> None:
    run(tmp_path)
    for file in tmp_path.rglob("*.png"):
        os.utime(file, ns=(2**62, 2**62))
    assert found_in(tmp_path, "folder") == [] and Ledger(PLAN, layout(tmp_path)).missing() == ""
    assert run(tmp_path).made == 0


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_of_another_size_is_told_and_an_empty_one_made_again(tmp_path: Path, format: str) -> None:
    run(tmp_path, format)
    before, victim = contents(tmp_path), image_or_archive(tmp_path)
    size, written = victim.stat().st_size, victim.stat().st_mtime_ns
    os.truncate(victim, size - 1)
    os.utime(victim, ns=(written, written))
    [(said, again)] = found_in(tmp_path, format)
    assert f"has {size - 1} bytes instead of {size}" in said and f"remove {victim}" in again
    with pytest.raises(MismatchError, match=f"has {size - 1} bytes instead of {size}"):
        run(tmp_path, format)
    os.truncate(victim, 0)
    os.utime(victim, ns=(written, written))
    [(said, again)] = found_in(tmp_path, format)
    assert "is empty" in said and again == "", "the same command mends it"
    assert "is empty" in Ledger(PLAN, layout(tmp_path, format)).missing()
    run(tmp_path, format)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("format", ["parquet", "webdataset"])
def test_an_archive_that_is_gone_or_changed_is_among_the_differences(tmp_path: Path, format: str) -> None:
    run(tmp_path, format)
    victim = image_or_archive(tmp_path)
    flip(victim, same_time=True)
    [(said, _)] = found_in(tmp_path, format, verify=True)
    assert "has other content" in said
    victim.unlink()
    [(said, again)] = found_in(tmp_path, format)
    assert "is gone" in said and again == ""


@pytest.mark.parametrize("format", FORMATS)
def test_a_manifest_with_other_rows_than_the_shards_is_not_believed(tmp_path: Path, format: str) -> None:
    run(tmp_path, format, FakeMaker(measure=fake_measure))
    samples, ledger = tmp_path / "samples.parquet", Ledger(PLAN, layout(tmp_path, format))
    assert ledger.doubt() == ""
    there = pq.read_table(samples)
    labels = there["label"].to_numpy().copy()
    labels[0] = 1 - labels[0]
    other = there.set_column(there.schema.get_field_index("label"), there.schema.field("label"), pa.array(labels))
    pq.write_table(other.replace_schema_metadata(there.schema.metadata), samples)
    said = "samples.parquet has other rows than the shards"
    assert ledger.doubt() == said and found_in(tmp_path, format) == [(said, "")]
    run(tmp_path, format)
    assert found_in(tmp_path, format) == [] and pq.read_table(samples).equals(there)
    (tmp_path / "shards" / "00000.json").unlink()
    assert "is gone" in ledger.doubt()


def test_rows_that_cannot_be_read_are_one_difference_and_no_error(tmp_path: Path) -> None:
    run(tmp_path)
    rows = tmp_path / "shards" / "00000.parquet"
    rows.write_bytes(rows.read_bytes()[: rows.stat().st_size // 2])
    said = [text for text, _ in found_in(tmp_path, "folder")]
    assert said[0] == "shard 00000: 00000.parquet is missing or was changed"
    assert "samples.parquet has other rows than the shards" not in said


def test_a_deleted_archive_is_made_again_alone(tmp_path: Path) -> None:
    run(tmp_path, "parquet")
    before = contents(tmp_path)
    next((tmp_path / "data").glob("train-00001*")).unlink()
    maker = FakeMaker(measure=fake_measure)
    run(tmp_path, "parquet", maker)
    assert maker.rendered == list(range(8, 16)) and contents(tmp_path) == before


def test_another_format_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(MismatchError, match="format 'folder' instead of 'parquet'"):
        run(tmp_path, "parquet")


def test_a_shard_made_twice_is_published_once(tmp_path: Path) -> None:
    place = layout(tmp_path, "webdataset")
    ledger = Ledger.open(PLAN, place, 4)
    task = ShardTask(0, tuple(PLAN.shard_rows(0)), place, PLAN.generator)
    with Encoders() as encoders:
        twice = [list(make_shard(task, FakeMaker(), encoders, Job()))[-1] for _ in range(2)]
    for made in twice:
        assert isinstance(made, MadeShard)
        ledger.publish(made)
    assert ledger.done == 8 and len(list((tmp_path / "data").iterdir())) == 1


def test_a_shard_that_two_workers_made_leaves_no_journal_and_counts_once(tmp_path: Path) -> None:
    place, told = layout(tmp_path), []
    ledger = Ledger.open(PLAN, place, 4)
    run_of = ShardCoordinator(PLAN, ledger, Job(progress=lambda what, done, total: told.append(done)))
    task = ShardTask(0, tuple(PLAN.shard_rows(0)), place, PLAN.generator)
    with Encoders() as encoders:
        for _ in range(2):  # the first died between its last word and its end
            for value in make_shard(task, FakeMaker(), encoders, Job()):
                run_of.said(0, value)
    assert max(told) == ledger.done == 8 and not list(tmp_path.rglob("*.journal"))


def test_a_backup_by_links_is_not_written_to(tmp_path: Path) -> None:
    place, journals = layout(tmp_path / "run"), []
    task = ShardTask(0, tuple(PLAN.shard_rows(0)), place, PLAN.generator)
    with Encoders() as encoders:
        for _ in make_shard(task, FakeMaker(), encoders, Job()):
            for journal in (tmp_path / "run").rglob("*.journal"):
                backup = tmp_path / f"{len(journals)}"
                os.link(journal, backup)
                journals.append((backup, backup.read_bytes()))
    assert len(journals) > 1 and all(backup.read_bytes() == was for backup, was in journals)


def test_an_image_that_a_power_cut_emptied_is_made_again(tmp_path: Path) -> None:
    place = layout(tmp_path)
    task = ShardTask(0, tuple(PLAN.shard_rows(0)), place, PLAN.generator)
    with Encoders() as encoders:
        list(make_shard(task, FakeMaker(), encoders, Job()))
    images = sorted(tmp_path.rglob("*.png"))
    assert images
    images[0].write_bytes(b"")
    run(tmp_path)
    assert all(image.stat().st_size for image in tmp_path.rglob("*.png"))


def test_an_image_that_changed_before_its_shard_was_finished_is_made_again(tmp_path: Path) -> None:
    run(tmp_path / "through")
    place = layout(tmp_path / "stopped")
    task = ShardTask(0, tuple(PLAN.shard_rows(0)), place, PLAN.generator)
    with Encoders() as encoders:
        list(make_shard(task, FakeMaker(measure=fake_measure), encoders, Job()))
    [victim] = place.folder.rglob(f"{task.rows[4].sample_id}.png")
    flip(victim, same_time=True)
    maker = FakeMaker(measure=fake_measure)
    run(place.folder, maker=maker)
    assert contents(place.folder) == contents(tmp_path / "through")
    assert maker.rendered == list(range(4, 22)), "its batch, and what comes after"


def test_a_model_that_the_plan_was_not_made_for_is_refused(tmp_path: Path) -> None:
    other = dataclasses.replace(PLAN, generator="other")
    with pytest.raises(MismatchError, match="made for the generator other, the model and settings here are fake"):
        run_shards(other, FakeMaker(), layout(tmp_path), Job())


# Golden readers


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return str(tmp_path / "cache")


def expected_image(sample_id: str) -> np.ndarray:
    row = next(row for row in PLAN.rows() if row.sample_id == sample_id)
    return FakeMaker()._image(row)


@pytest.mark.parametrize("image", ["png", "webp"])
def test_datasets_reads_parquet_with_images_and_class_names(tmp_path: Path, cache: str, image: str) -> None:
    run_shards(PLAN, FakeMaker(measure=fake_measure), layout(tmp_path / "made", "parquet", image=image), Job())
    names = sorted(p.name for p in (tmp_path / "made/data").iterdir())
    assert names == [f"train-{i:05d}-of-00003.parquet" for i in range(3)]
    read = datasets.load_dataset(str(tmp_path / "made"), split="train", cache_dir=cache)
    assert read.features["label"].names == list(NAMES) and len(read) == 22
    for row in read:
        assert (np.asarray(row["image"]) == expected_image(row["sample_id"])).all()  # lossless
        assert row["class_name"] == NAMES[row["label"]] and row["synthetic"] is True
        assert row["measured_difficulty"] == pytest.approx(np.asarray(row["image"]).mean() / 255, abs=1e-6)


def test_parquet_row_groups_are_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout_module, "ROW_GROUP", 3)
    run(tmp_path, "parquet")
    file = pq.ParquetFile(next((tmp_path / "data").glob("train-00000*")))
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [3, 3, 2]


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("measured", [True, False])
def test_datasets_and_webdataset_read_the_tars(tmp_path: Path, cache: str, measured: bool) -> None:
    run(tmp_path / "made", "webdataset", FakeMaker(measure=fake_measure if measured else None))
    tars = sorted(str(p) for p in (tmp_path / "made/data").iterdir())
    assert [Path(t).name for t in tars] == [f"train-{i:05d}.tar" for i in range(3)]
    read = datasets.load_dataset(str(tmp_path / "made"), split="train", cache_dir=cache)
    assert len(read) == 22 and {(r["json"]["class_name"], int(r["cls"])) for r in read} == {
        (n, i) for i, n in enumerate(NAMES)
    }
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8"))
    assert [s["__key__"] for s in samples] == PLAN.table["sample_id"].to_pylist()
    for sample in samples:
        assert (sample["png"] == expected_image(sample["__key__"])).all()
        assert sample["json"]["label"] == sample["cls"] and sample["json"]["synthetic"] is True


def test_tar_members_have_no_times_and_no_owners(tmp_path: Path) -> None:
    run(tmp_path, "webdataset")
    with tarfile.open(tmp_path / "data/train-00000.tar") as tar:
        members = tar.getmembers()
    assert {(m.mtime, m.uid, m.gid, m.uname, m.mode, m.isreg()) for m in members} == {(0, 0, 0, "", 0o644, True)}
    keys = [m.name.split(".")[0] for m in members]
    assert keys == [key for key in PLAN.table["sample_id"].to_pylist()[:8] for _ in range(3)]


def test_images_are_read_where_they_are_in_a_tar(tmp_path: Path) -> None:
    manifest = run(tmp_path, "webdataset").manifest
    first = manifest.rows()[0]
    assert first["path"] == f"data/train-00000.tar#512+{len(encode_image(first))}/{first['sample_id']}.png"
    for path, sample_id in zip(manifest.paths(), manifest.column("sample_id"), strict=True):
        assert (np.asarray(decode_image(path)) == expected_image(sample_id)).all()


def encode_image(row: dict) -> bytes:
    return shards.encode_image(Image.fromarray(expected_image(row["sample_id"])), "x.png")


def test_jpeg_is_as_pillow_writes_it(tmp_path: Path) -> None:
    run_shards(PLAN, FakeMaker(), layout(tmp_path, "webdataset", image="jpg"), Job())
    with tarfile.open(tmp_path / "data/train-00000.tar") as tar:
        content = tar.extractfile(tar.getmembers()[0]).read()  # type: ignore[union-attr]
    expected = io.BytesIO()
    Image.fromarray(expected_image(PLAN.rows()[0].sample_id)).save(expected, "JPEG", quality=95, subsampling=0)
    assert content == expected.getvalue()


def test_a_plan_of_another_size_is_another_plan(tmp_path: Path) -> None:
    run(tmp_path)
    other = dataclasses.replace(fake_plan(22, shard_size=11))
    with pytest.raises(MismatchError, match="another plan"):
        run_shards(other, FakeMaker(), layout(tmp_path, plan=other), Job())
