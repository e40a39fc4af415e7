"""What is known to be wrong before images are read is said before they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from dcdm_cli.api.run import Run
from dcdm_cli.errors import NotFoundError, UsageError


def test_a_network_that_cannot_be_had_stops_before_any_image_is_read(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", device="cpu", quiet=True)
    with pytest.raises(NotFoundError, match="no pretrained weights") as refused:
        run.score("digits:20", features="resnet18.a1_in1k")
    assert ". " not in refused.value.message and "features = packaged" in refused.value.hint
    assert not (run.folder.checkpoints / "scorer").exists()


def test_a_classifier_and_a_column_contradict_each_other_at_once(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", device="cpu", quiet=True)
    with pytest.raises(UsageError, match="a classifier and a score column"):
        run.score("digits:20", classifier=tmp_path / "model.onnx", column="difficulty")
    assert not (run.folder.checkpoints / "scorer").exists()
