"""Which files of a base model decide what it makes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dcdm_cli.model.base import load_base
from dcdm_cli.model.base_files import base_files
from dcdm_cli.model.packaged import TINY_BASE

from ..opened import opened


def test_a_packaged_base_and_one_on_the_hub_are_nobodys_files() -> None:
    assert base_files("tiny") == base_files("owner/name") == ()


def test_every_file_of_a_folder_that_loading_opens_is_among_them(tmp_path: Path) -> None:
    folder = shutil.copytree(TINY_BASE, tmp_path / "base")
    (folder / "samples").mkdir()
    (folder / "samples" / "a.json").write_text("{}")
    (folder / "unet" / "old.ckpt").write_text("")
    with opened(folder) as found:
        load_base(str(folder))
    named = {file.relative_to(folder).as_posix() for file in base_files(str(folder))}
    assert found and found <= named and {"samples/a.json", "unet/old.ckpt"}.isdisjoint(named)


def test_a_single_file_comes_with_the_folder_of_its_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base.safetensors").write_text("")
    assert base_files("base.safetensors") == (tmp_path / "base.safetensors",)
    found = base_files("base.safetensors", TINY_BASE)
    assert found[0] == tmp_path / "base.safetensors" and TINY_BASE / "model_index.json" in found
