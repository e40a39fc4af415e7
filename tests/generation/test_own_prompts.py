"""Prompts of several sources in a plan: drawn from its seed, kept per row, and nothing else is drawn otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dcdm_cli.errors import UsageError
from dcdm_cli.generation.plan import OwnPrompts, Plan, make_plan
from dcdm_cli.generation.plan_file import PlanFile, read_plan, write_plan
from dcdm_cli.generation.targets import parse_target

from .conftest import plan
from .fakes import CAPTIONS, NAMES, inputs

TEXTS = [[f"{name} {i}" for i in range(3)] for name in NAMES]
ORIGINS = [["llm", "llm", "me"] for _ in NAMES]


def prompted(share: float = 1.0, texts: list[list[str]] = TEXTS, seed: int = 0) -> Plan:
    own = OwnPrompts(texts, ORIGINS, share)
    counts = np.array([30, 20, 20])
    return make_plan(inputs(prompts=own), counts, parse_target("uniform:0,0.8"), seed, "g", shard_size=32)


def test_a_plan_without_prompts_is_what_it_was() -> None:
    assert plan().hash == "af145e6ccb82da2525f1435d34473caa" and plan().rows()[0].prompt_source is None


def test_prompts_are_of_the_rows_class_and_named_by_source() -> None:
    rows = prompted().rows()
    assert all(row.caption in TEXTS[row.label] for row in rows)
    assert all(row.prompt_source == ORIGINS[0][TEXTS[row.label].index(row.caption)] for row in rows)
    assert {row.prompt_source for row in rows} == {"llm", "me"}
    assert prompted().hash == prompted().hash != prompted(seed=1).hash
    plain = make_plan(inputs(), np.array([30, 20, 20]), parse_target("uniform:0,0.8"), 0, "g", shard_size=32).rows()
    assert [(r.seed, r.target_difficulty) for r in rows] == [(r.seed, r.target_difficulty) for r in plain]


def test_a_share_leaves_the_others_their_captions() -> None:
    plain = make_plan(inputs(), np.array([30, 20, 20]), parse_target("uniform:0,0.8"), 0, "g", shard_size=32).rows()
    rows = prompted(0.5).rows()
    own = [row for row in rows if row.prompt_source != "captions"]
    assert 20 < len(own) < 50 and all(row.caption in TEXTS[row.label] for row in own)
    rest = [(row, other) for row, other in zip(rows, plain, strict=True) if row.prompt_source == "captions"]
    assert all(row.caption == other.caption and row.caption in CAPTIONS[row.label] for row, other in rest)


def test_a_class_without_a_prompt_is_named() -> None:
    with pytest.raises(UsageError, match=rf"class {NAMES[1]!r} has none of the prompts"):
        prompted(texts=[TEXTS[0], [], TEXTS[2]])


def test_sources_are_kept_on_disk_and_older_files_lack_them(tmp_path: Path) -> None:
    write_plan(prompted(), tmp_path / "a.parquet")
    assert read_plan(tmp_path / "a.parquet").rows() == prompted().rows()
    write_plan(plan(), tmp_path / "b.parquet")
    old = pq.read_table(tmp_path / "b.parquet").drop_columns("prompt_source")
    pq.write_table(old, tmp_path / "old.parquet", row_group_size=1024)
    assert PlanFile(tmp_path / "old.parquet").load().rows() == plan().rows()
