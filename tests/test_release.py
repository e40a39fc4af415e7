"""What is around the package: metadata for the index and for citing, the container, cards that the hub reads."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml
from huggingface_hub import DatasetCardData

import dcdm_cli
from dcdm_cli.data.writers import write_card

ROOT = Path(dcdm_cli.__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def test_the_index_is_told_what_it_shows() -> None:
    assert PROJECT["urls"] and all(url.startswith("https://") for url in PROJECT["urls"].values())
    named = PROJECT["classifiers"]
    assert len(set(named)) == len(named) and "Typing :: Typed" in named
    least = PROJECT["requires-python"].removeprefix(">=")
    assert f"Programming Language :: Python :: {least}" in named
    assert not any(name.startswith("License ::") for name in named), (
        "an SPDX expression and a classifier exclude another"
    )


def test_the_citation_is_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert cited["cff-version"] == "1.2.0" and {"message", "title", "authors"} <= set(cited)
    assert (cited["version"], cited["license"]) == (dcdm_cli.__version__, PROJECT["license"])
    assert all(author["family-names"] for author in cited["preferred-citation"]["authors"])


def test_the_container_copies_what_is_there_and_runs_what_is_installed() -> None:
    lines = (ROOT / "Dockerfile").read_text("utf-8").splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}
    assert copied and set(copied) == allowed and all((ROOT / name).exists() for name in copied)
    [base] = [line.split()[1] for line in lines if line.startswith("FROM ")]
    version = tuple(map(int, re.findall(r"\d+", base)[:2]))
    assert version >= tuple(map(int, re.findall(r"\d+", PROJECT["requires-python"])))
    assert (
        'ENTRYPOINT ["dcdm"]' in lines and "dcdm" in PROJECT["scripts"] and any(line == "USER dcdm" for line in lines)
    )


def test_the_data_sets_card_has_what_the_hub_reads(tmp_path: Path) -> None:
    write_card(tmp_path, ["a", "b"], {"base model": "stable-diffusion-v1-5/stable-diffusion-v1-5"}, images=1500)
    head = yaml.safe_load((tmp_path / "README.md").read_text("utf-8").split("---\n")[1])
    card = DatasetCardData(**head)
    assert card.task_categories == ["image-classification"] and card.size_categories == ["1K<n<10K"]
    assert {"synthetic", "dcdm"} <= set(card.tags or ()) and card.annotations_creators == ["machine-generated"]
    assert card.license == "other" and head["license_link"].endswith("stable-diffusion-v1-5/stable-diffusion-v1-5")
    assert head["configs"][0]["data_files"] == [{"split": "train", "path": "train/**"}]
    write_card(tmp_path, ["a"], {"base model": "x/y\nlicense: mit"})  # a base that would write its own metadata
    head = yaml.safe_load((tmp_path / "README.md").read_text("utf-8").split("---\n")[1])
    assert head["license"] == "other" and "license_link" not in head and head["size_categories"] == ["n<1K"]
