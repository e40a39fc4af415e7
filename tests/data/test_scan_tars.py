"""WebDataset tars as a source: read in place, by the conventions of that library, without trusting the archive."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dcdm_cli.data import examine
from dcdm_cli.data.archives import member_place, sample_key
from dcdm_cli.data.images import RejectedImage, decode_image
from dcdm_cli.data.sources import Scan, ScanOptions, TooManyRejectedError, scan_on_disk
from dcdm_cli.data.tar_listing import expand_braces
from dcdm_cli.errors import InterruptedRunError, NotFoundError, UsageError
from dcdm_cli.run.progress import Job

from .conftest import encoded, picture

Scanned = Callable[..., Scan]


def write_tar(path: Path, members: dict[str, bytes | str], **facts: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            content = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in facts.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(content))
    return path


def samples(first: int, count: int, classes: int = 2) -> dict[str, bytes | str]:
    found: dict[str, bytes | str] = {}
    for index in range(first, first + count):
        found |= {f"{index:04d}.png": encoded(picture(index)), f"{index:04d}.cls": str(index % classes)}
    return found


def test_samples_are_read_in_place(tmp_path: Path, scanned: Scanned) -> None:
    for shard in range(3):
        write_tar(tmp_path / f"in/train-{shard:05d}.tar", samples(4 * shard, 4))
    for source in ("in", "in/*.tar", "in/train-{00000..00002}.tar"):
        scan = scanned(tmp_path / source)
        assert (len(scan.manifest), scan.rejected, scan.manifest.class_names) == (12, (), ("0", "1"))
        assert scan.manifest.column("label").tolist() == [i % 2 for i in range(12)]
        pixels = [decode_image(path).tobytes() for path in scan.manifest.paths()]
        assert pixels == [picture(i).tobytes() for i in range(12)]
    assert not (tmp_path / "kept").exists()  # nothing is copied
    assert scan.manifest.rows()[5]["path"].startswith("train-00001.tar#")
    assert set(scan.manifest.column("split")) == {"train"}


def test_names_of_tars_are_splits(tmp_path: Path, scanned: Scanned) -> None:
    write_tar(tmp_path / "in/train-0.tar", samples(0, 4))
    write_tar(tmp_path / "in/val-0.tar", samples(4, 2))
    assert scanned(tmp_path / "in").manifest.column("split").tolist() == ["train"] * 4 + ["judge"] * 2


def test_labels_and_captions_come_from_where_users_put_them(tmp_path: Path, scanned: Scanned) -> None:
    image, facts = encoded(picture(1)), json.dumps({"label": 7, "name": "cat", "caption": "a cat", "hard": 0.25})
    write_tar(
        tmp_path / "a.tar",
        {"x/1.png": image, "x/1.json": facts, "x/2.png": image, "x/2.cls": "dog", "x/2.txt": "a dog"},
    )
    found = scanned(tmp_path / "a.tar").manifest
    assert found.column("class_name").tolist() == ["7", "dog"] and found.column("caption").tolist() == [
        "a cat",
        "a dog",
    ]
    named = scanned(tmp_path / "a.tar", label_column="name", score_column="hard", max_bad=0.5)
    assert named.manifest.column("class_name").tolist() == ["cat"] and named.rejected[0].reason == "no_label"
    assert named.manifest.column("difficulty").tolist() == [0.25]


def test_a_class_map_names_the_numbers(tmp_path: Path, scanned: Scanned) -> None:
    write_tar(tmp_path / "a.tar", samples(0, 4))
    (tmp_path / "classes.json").write_text('["cat", "dog"]')
    found = scanned(tmp_path / "a.tar", class_map=tmp_path / "classes.json").manifest
    assert found.column("class_name").tolist() == ["cat", "dog", "cat", "dog"]


def test_what_is_wrong_with_a_sample_is_told(tmp_path: Path, scanned: Scanned) -> None:
    image = encoded(picture(0))
    write_tar(
        tmp_path / "a.tar",
        {
            "good.png": image, "good.cls": "a", "half.png": image[:-40], "half.cls": "a", "none.cls": "a",
            "bad.png": image, "bad.json": "[1]", "text.png": image, "text.cls": b"\xff\xfe\x00", "bare.png": image,
        },
    )  # fmt: skip
    scan = scanned(tmp_path / "a.tar", max_bad=1.0)
    reasons = {Path(r.path).name: r.reason for r in scan.rejected}
    assert reasons == {
        "half.png": "truncated", "none.cls": "not_an_image", "bad.png": "bad_metadata", "text.png": "bad_metadata",
        "bare.png": "no_label",
    }  # fmt: skip
    assert len(scan.manifest) == 1


def test_hostile_members_are_no_samples_and_no_paths(tmp_path: Path, scanned: Scanned) -> None:
    image, outside = encoded(picture(0)), tmp_path / "outside.png"
    outside.write_bytes(encoded(picture(9)))
    names = ["../../outside.png", "/etc/x.png", "a\nb.png", ".png", "dir/../../outside.png"]
    write_tar(tmp_path / "in/a.tar", dict.fromkeys(names, image) | {"ok.png": image, "ok.cls": "a"})
    scan = scanned(tmp_path / "in")
    assert len(scan.manifest) == 1 and any("no sample may have" in warning for warning in scan.warnings)
    assert all(".." not in path for path in scan.manifest.column("path"))
    link = tarfile.TarInfo("l.png")
    link.type, link.linkname = tarfile.SYMTYPE, str(outside)
    with tarfile.open(tmp_path / "links.tar", "w") as tar:
        tar.addfile(link)
        fifo = tarfile.TarInfo("f.png")
        fifo.type = tarfile.FIFOTYPE
        tar.addfile(fifo)
    with pytest.raises(NotFoundError, match="no images found"):
        scanned(tmp_path / "links.tar")


def test_sizes_are_capped_and_must_fit_the_file(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", {"a.png": encoded(picture(0))})
    for path, reason in (
        (f"{tar}#0+{2**40}/a.png", "too_large"),
        (f"{tar}#512+99999999/a.png", "truncated"),
        (f"{tmp_path}/gone.tar#512+9/a.png", "unreadable"),
        (f"{tar}#512+9/a.png", "not_an_image"),
    ):
        with pytest.raises(RejectedImage) as caught:
            decode_image(Path(path))
        assert caught.value.reason in (reason, "unreadable"), path


def test_a_tar_cut_between_members_is_told(tmp_path: Path, scanned: Scanned) -> None:
    whole = write_tar(tmp_path / "in/a.tar", samples(0, 8))
    with tarfile.open(whole) as tar:
        third = tar.getmembers()[4].offset
    whole.write_bytes(whole.read_bytes()[:third])
    scan = scanned(tmp_path / "in", max_bad=0.5)
    assert len(scan.manifest) == 2
    assert [(lost.path, lost.reason) for lost in scan.rejected] == [("a.tar", "truncated")]  # and so no exit code 0
    with pytest.raises(TooManyRejectedError, match=r"a\.tar: truncated"):
        scanned(tmp_path / "in")


@pytest.mark.parametrize("content", [b"no tar at all" * 100, b"\x1f\x8b" + bytes(600)])
def test_what_is_no_plain_tar_is_refused(tmp_path: Path, scanned: Scanned, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(UsageError, match="is not a plain tar file"):
        scanned(tmp_path / "a.tar")


def test_a_gap_in_a_range_is_told(tmp_path: Path, scanned: Scanned) -> None:
    write_tar(tmp_path / "a-0.tar", samples(0, 2))
    with pytest.raises(NotFoundError, match=r"no such file: .*a-1\.tar"):
        scanned(tmp_path / "a-{0..2}.tar")
    with pytest.raises(NotFoundError, match="no such file or folder: pipe:"):
        scanned("pipe:cat x.tar")


def test_braces() -> None:
    assert expand_braces("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand_braces("{a,b}-{0..1}.tar") == ["a-0.tar", "a-1.tar", "b-0.tar", "b-1.tar"]
    assert expand_braces("plain.tar") == ["plain.tar"]
    with pytest.raises(UsageError, match="more than 1000000 names"):
        expand_braces("{0..99999999}.tar")
    with pytest.raises(UsageError, match="more than 1000000 names"):
        expand_braces("{0.." + "9" * 5000 + "}.tar")


def test_keys_end_at_the_first_dot_as_in_webdataset() -> None:
    assert sample_key("a/b.c.png") == ("a/b", "c.png") and sample_key("x.PNG") == ("x", "png")
    assert [sample_key(name) for name in ("noext", "/a.png", "a/../b.png", "a/.png", "a\x1b.png")] == [None] * 5
    assert member_place(Path("a#1+2/b.png")) is None and member_place(Path("x/a.tar#1+2/b.png")) is not None


# Stopping and going on


@pytest.mark.parametrize(
    ("name", "again"),
    [("000000.parquet", 12), ("000001.parquet", 7), ("000001.seal", 7), ("000002.parquet", 2), ("end.json", 0),
     ("scan.json", 12)],
)  # fmt: skip
@pytest.mark.parametrize("how", ["bit", "half", "gone"])
def test_what_a_finished_scan_has_left_is_compared_and_read_again_from_there_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, again: int, how: str
) -> None:
    """Of a score that was stopped later; the source's notes come back with it."""
    monkeypatch.setattr(examine, "CHUNK", 5)
    write_tar(tmp_path / "a.tar", samples(0, 12))
    decoded: list[int] = []
    real = examine.decode_image
    monkeypatch.setattr(examine, "decode_image", lambda *given: (decoded.append(1), real(*given))[1])

    def run() -> Scan:
        return scan_on_disk(str(tmp_path / "a.tar"), ScanOptions(), tmp_path / "kept", tmp_path / "spool", "k", Job())

    through, file = run(), tmp_path / "spool" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content[: len(content) // (2 if how == "half" else 1)])
    if how == "gone":
        file.unlink()
    decoded.clear()
    resumed = run()
    assert len(decoded) == again and resumed.manifest.table.equals(through.manifest.table)
    decoded.clear()
    assert run().manifest.table.equals(through.manifest.table) and not decoded


def test_a_stopped_scan_goes_on_without_looking_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine, "CHUNK", 5)
    write_tar(tmp_path / "a.tar", samples(0, 23) | {"bad.png": b"x", "bad.cls": "0"})
    options = ScanOptions(judge_fraction=0.1, test_fraction=0.2, max_bad=0.1)
    decoded: list[int] = []
    real = examine.decode_image
    monkeypatch.setattr(examine, "decode_image", lambda *given: (decoded.append(1), real(*given))[1])

    def run(spool: str, key: str, job: Job) -> Scan:
        return scan_on_disk(str(tmp_path / "a.tar"), options, tmp_path / "kept", tmp_path / spool, key, job)

    through = run("through", "k", Job())
    decoded.clear()
    with pytest.raises(InterruptedRunError, match=r"; \d+ images are read") as caught:
        run("stopped", "k", Job(stop_signal=lambda: "SIGINT" if len(decoded) >= 10 else None))
    kept = int(str(caught.value).split("; ")[1].split()[0])
    decoded.clear()
    resumed = run("stopped", "k", Job())
    assert 5 < kept <= 10 and len(decoded) == 24 - kept  # within a chunk, too
    assert resumed.manifest.table.equals(through.manifest.table) and resumed.rejected == through.rejected
    decoded.clear()
    run("stopped", "another key", Job())
    assert len(decoded) == 24
