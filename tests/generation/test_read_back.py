"""Generated sets as a source: in every format the classes are called what they were called."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dcdm_cli.data.candidates import ScanOptions
from dcdm_cli.data.sources import scan
from dcdm_cli.generation.layout import FORMATS, Layout
from dcdm_cli.generation.plan import make_plan
from dcdm_cli.generation.run import run_shards
from dcdm_cli.generation.targets import parse_target
from dcdm_cli.run.progress import Job

from .fakes import GENERATOR, FakeMaker, fake_measure, inputs

CLASSES = ("tench, Tinca tinca", "AC/DC", "猫", "rare")
OPTIONS = ScanOptions(judge_fraction=0.0, test_fraction=0.0)


@pytest.mark.parametrize("format", FORMATS)
def test_classes_keep_their_names_order_and_captions(tmp_path: Path, format: str) -> None:
    asked = inputs(class_names=CLASSES, captions=[[f"a photo of a {name}"] for name in CLASSES])
    plan = make_plan(asked, np.array([3, 2, 2, 0]), parse_target("fixed:0.5"), 0, GENERATOR, shard_size=4)
    maker = FakeMaker(measure=fake_measure)
    maker.facts = replace(maker.facts, class_names=CLASSES)
    made = run_shards(plan, maker, Layout(tmp_path, format, "png", CLASSES, plan.shards), Job())
    places = [tmp_path, tmp_path / ("train" if format == "folder" else "data")]
    for place in places:
        found = scan(str(place), OPTIONS, tmp_path / "kept").manifest
        assert found.class_names == CLASSES and found.class_counts().tolist() == [3, 2, 2, 0]
        known = dict(zip(made.manifest.column("class_name"), made.manifest.column("caption"), strict=True))
        assert dict(zip(found.column("class_name"), found.column("caption"), strict=True)) == known
    left_out = replace(OPTIONS, sparse_classes="drop")
    assert scan(str(tmp_path), left_out, tmp_path / "kept").manifest.class_names == CLASSES[:3]
