"""The base models that come with the package: whole, small, and with their origin beside them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dcdm_cli.model.base import load_base
from dcdm_cli.model.packaged import PACKAGED, resolve_base
from dcdm_cli.run.presets import PRESETS

MOST_BYTES = {"tiny": 12 * 2**20, "small": 20 * 2**20}


@pytest.mark.parametrize("name", PACKAGED)
def test_a_packaged_base_is_small_and_says_what_it_learned_from(name: str) -> None:
    folder = PACKAGED[name]
    record = json.loads((folder / "pretraining.json").read_text("utf-8"))
    assert record["data"] and record["recipe"]["images"] and record["date"]
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < MOST_BYTES[name]


@pytest.mark.parametrize("name", PACKAGED)
def test_a_packaged_base_is_found_by_its_name_and_makes_images_of_its_preset(name: str) -> None:
    base = load_base(name)
    presets = [preset["finetune"] for preset in PRESETS.values() if preset["finetune"].get("base") == name]
    assert presets, "a base that no preset uses"
    assert {preset["resolution"] for preset in presets} == {32} and base.vae.config["sample_size"] == 32


def test_any_other_name_stays_what_it_is(tmp_path: Path) -> None:
    assert resolve_base(str(tmp_path)) == str(tmp_path) and resolve_base("owner/name") == "owner/name"
