"""The preset `small` from a folder of photographs to a report, as README has it, with settings that take seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from dcdm_cli.api.run import Run

SIDE, EACH = 64, 30  # pixels, pictures per class
SHRUNK: dict[str, Any] = {
    "score": {"folds": 2, "repeats": 1, "at_chance": "warn"},
    "judge": {"folds": 2, "at_chance": "warn"},
    "finetune": {"steps": 2, "batch_size": 4, "rank": 2, "hflip": False, "warmup_steps": 1},
    "strength": {"probe_budget": 20, "checkpoints": [2], "guidance": [[3.0, 4.0]]},
    "calibrate": {"points": 3, "images": 4},
    "generate": {"steps": 2, "count": 8, "ratio": None, "attempts": 1},
    "downstream": {"at_chance": "warn"},
    "evaluate": {"per_target": 4, "targets": [0.3, 0.6], "arms": ["real", "dcdm"], "synthetic_ratio": 0.2},
}  # fmt: skip


def photographs(folder: Path) -> Path:
    """folder/<class>/<number>.png: squares cut out of the two photographs that come with scikit-learn."""
    rng = np.random.default_rng(0)
    for name, photo in zip(("temple", "flower"), load_sample_images().images, strict=True):
        (folder / name).mkdir(parents=True)
        for number in range(EACH):
            y, x = (rng.integers(0, size - 2 * SIDE) for size in photo.shape[:2])
            cut = Image.fromarray(photo[y : y + 2 * SIDE, x : x + 2 * SIDE])
            cut.resize((SIDE, SIDE)).save(folder / name / f"{number:02}.png")
    return folder


@pytest.mark.slow
def test_a_folder_of_photographs_ends_with_a_report(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", preset="small", device="cpu", **SHRUNK)
    scored = run.score(photographs(tmp_path / "photos"))
    assert scored.results["images"] == 2 * EACH and scored.results["competence"]["verdict"] == "good"
    run.caption()
    tuned = run.finetune()
    assert len(tuned.results["strength"]["points"]) == 1
    made = run.generate()
    assert (made.results["images"], made.results["failed"]) == (8, 0)
    metrics = run.evaluate().results
    assert {arm["name"] for arm in metrics["downstream"]["arms"]} == {"real", "dcdm"}
    assert set(metrics["competence"]) == {"scorer", "judge", "downstream"}
    page = (run.folder.evaluation / "report.html").read_text("utf-8")
    assert "This is a first look" in page and "And at full size?" in page
    for table in (run.folder.samples, run.folder.generated / "samples.parquet"):
        rows = pq.read_table(table).to_pylist()
        assert {row["class_name"] for row in rows} == {"temple", "flower"}
    with Image.open(run.folder.generated / rows[0]["path"]) as image:
        assert image.size == (32, 32)
