"""Readers, and the next run, never see half a file; a disk that refuses is named."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from dcdm_cli.errors import CapabilityError, DcdmError, NotFoundError, StorageError
from dcdm_cli.files import (
    PART_SUFFIX,
    append_json_lines,
    atomic_folder,
    atomic_path,
    check_room,
    error_number,
    hash_bytes,
    hash_file,
    hash_json,
    hash_tree,
    leftovers,
    storage_error,
    storage_errors,
    strange,
    sweep,
    system_error,
    write_bytes,
    write_json,
)
from dcdm_cli.gate import read_lines
from dcdm_cli.run.seals import seal_all

from .nested import nested


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.txt"
    with atomic_path(target) as part:
        part.write_text("new")
        assert part.parent == target.parent and not target.exists()
    assert target.read_text() == "new"
    assert names(target.parent) == ["a.txt"]


def test_names_as_long_as_a_disk_takes_can_be_written(tmp_path: Path) -> None:
    target = tmp_path / ("猫" * 83 + ".txt")
    with atomic_path(target) as part:
        part.write_text("new")
    with atomic_folder(tmp_path / ("x" * 255)) as part:
        (part / "a").write_text("new")
    assert names(tmp_path) == sorted([target.name, "x" * 255])


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(target) as part:
        part.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_folder_is_swapped_whole(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    target.mkdir()
    (target / "old").write_text("old")
    with atomic_folder(target) as part:
        (part / "new").write_text("new")
        assert names(target) == ["old"]
    assert names(target) == ["new"]
    assert names(tmp_path) == ["adapter"]


def test_a_failed_folder_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(RuntimeError), atomic_folder(target) as part:
        (part / "new").write_text("half")
        raise RuntimeError
    assert names(target) == ["old"]
    assert names(tmp_path) == ["adapter"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_disk_that_refuses_is_an_error_with_a_remedy(code: int) -> None:
    with pytest.raises(StorageError, match=r"cannot write /x/y") as caught, storage_errors(Path("/x/y")):
        raise OSError(code, "refused")
    assert caught.value.file == "/x/y"
    assert "--run" in caught.value.hint


def test_a_full_disk_is_known_when_safetensors_wraps_it(tmp_path: Path) -> None:
    with pytest.raises(SafetensorError) as wrapped:
        save_file({"x": torch.zeros(9)}, tmp_path / "no" / "folder")
    assert storage_error(wrapped.value, tmp_path) is None  # no such folder: not the disk's fault
    full = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    refused = storage_error(full, tmp_path / "x")
    assert refused is not None and refused.message.endswith("No space left on device") and refused.code == 20


def test_a_forbidden_folder_has_another_remedy_than_a_full_one() -> None:
    full, forbidden = (storage_error(OSError(code, ""), "/x") for code in (errno.ENOSPC, errno.EROFS))
    assert full is not None and "free some space" in full.hint
    assert forbidden is not None and "you may write to" in forbidden.hint


def test_lines_are_appended_and_torn_ones_dropped(tmp_path: Path) -> None:
    file = tmp_path / "new" / "log.jsonl"
    assert read_lines(file, dict[str, Any]) == []
    append_json_lines(file, [{"a": "é"}, {"a": "x\ny"}])
    append_json_lines(file, [])
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        append_json_lines(file, [{"a": 3}])  # what was torn must not take the next line with it
        kept = whole[:length].count(b"\n")
        found = read_lines(file, dict[str, Any])
        assert found[-1] == {"a": 3} and found[:kept] == [{"a": "é"}, {"a": "x\ny"}][:kept]


def test_what_is_appended_is_in_no_backup_that_shares_the_file(tmp_path: Path) -> None:
    file, backup = tmp_path / "log.jsonl", tmp_path / "backup.jsonl"
    append_json_lines(file, [{"a": 1}])
    os.link(file, backup)
    append_json_lines(file, [{"a": 2}])
    append_json_lines(file, [{"a": 3}])
    assert read_lines(backup, dict[str, Any]) == [{"a": 1}]
    assert read_lines(file, dict[str, Any]) == [{"a": 1}, {"a": 2}, {"a": 3}]
    assert names(tmp_path) == ["backup.jsonl", "log.jsonl"]
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="is no file"):
        append_json_lines(tmp_path / "pipe", [{"a": 1}])


@pytest.mark.parametrize("code", [e for e in errno.errorcode if e != errno.EPIPE])
def test_no_error_of_the_operating_system_is_called_a_bug(code: int) -> None:
    """Whatever its number: file, cause and a remedy are named."""
    told = system_error(OSError(code, os.strerror(code), "/data/x.png"))
    assert told is not None and os.strerror(code) in told.message and "/data/x.png" in told.message
    assert told.hint and "report" not in told.hint and told.file == "/data/x.png"


@pytest.mark.parametrize(
    ("code", "kind", "word"),
    [
        (errno.EIO, StorageError, "dmesg"),
        (errno.ESTALE, StorageError, "network"),
        (errno.EROFS, StorageError, "--run"),
        (errno.EDQUOT, StorageError, "free some space"),
        (errno.EMFILE, CapabilityError, "ulimit -n"),
        (errno.ENOENT, NotFoundError, "path"),
        (errno.EISDIR, DcdmError, "look at"),
    ],
)
def test_each_cause_has_its_own_code_and_remedy(code: int, kind: type[DcdmError], word: str) -> None:
    told = system_error(OSError(code, os.strerror(code), "x"))
    assert type(told) is kind and word in told.hint


def test_numbers_that_libraries_wrap_are_read_and_other_errors_are_not_the_systems() -> None:
    assert error_number(OSError("[Errno 5] Error reading bytes: Input/output error")) == errno.EIO
    assert type(system_error(OSError("cannot connect to example.org"))) is DcdmError
    assert system_error(ValueError("[Errno 5]")) is None and system_error(KeyError("x")) is None


def test_leftovers_are_swept_wherever_they_are_and_nothing_else(tmp_path: Path) -> None:
    """By their names alone: no list of places that would have to be kept."""
    swept = ["a/b/c/.x.png.12.ff.part", ".probe-abc.part/1.png", "q/.adapter.1.ff.part.old/deep/w", "plans/.p.1.a.part"]
    kept = ["mine.part", "a/.hidden", "a/part", "generated/shards/.x.1.ff.part"]
    for name in (*swept, *kept):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    sweep(tmp_path, leave=[tmp_path / "generated"])
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()) == sorted(kept)


def test_walks_go_through_a_thousand_folders_in_one_another(tmp_path: Path) -> None:
    part, top = f".x{PART_SUFFIX}", tmp_path / "top"
    with nested(top, part, "x.json") as deep:
        (deep / "link").symlink_to("x.json")
        assert [*leftovers(top)] == [deep / part] and [*strange(top)] == [deep / "link"]
        assert len(hash_tree(top)) == 32
        assert [*seal_all(top, [top])] == [str((deep / name).relative_to(top)) for name in ("link", "x.json")]


def test_what_does_not_fit_is_refused_before_it_is_begun(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    check_room(tmp_path / "not" / "there", 1000, "the images")
    with pytest.raises(StorageError, match=r"the images need about .* are free") as caught:
        check_room(tmp_path, int(free * 0.95), "the images")
    assert caught.value.code == 20


def test_other_system_errors_pass_through() -> None:
    with pytest.raises(FileNotFoundError), storage_errors(Path("/x")):
        raise FileNotFoundError(errno.ENOENT, "none")


def test_a_full_disk_is_reported_by_the_real_device() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(StorageError, match="No space left"), storage_errors(Path("/dev/full")):
        Path("/dev/full").write_bytes(b"x")


def test_json_that_others_refuse_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert names(tmp_path) == []
    write_json(tmp_path / "a.json", {"x": "é"})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"x": "é"}


def test_hashes_tell_apart_where_one_part_ends() -> None:
    assert hash_bytes(b"ab", b"c") != hash_bytes(b"a", b"bc")
    assert hash_json({"a": 1, "b": 2}) == hash_json({"b": 2, "a": 1})
    assert hash_json([1]) != hash_json(["1"])


def test_the_hash_of_a_folder_sees_names_and_content_but_no_leftovers(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a" / "x", b"1")
    before = hash_tree(tmp_path)
    (tmp_path / "a" / "y.part").write_bytes(b"rest")
    assert hash_tree(tmp_path) == before
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "z")
    assert hash_tree(tmp_path) != before
    assert hash_tree(tmp_path / "a" / "z") == hash_file(tmp_path / "a" / "z")
