"""The table and the figure of a choice of strength."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from dcdm_cli.reports.strength import strength_curves, strength_table

MEASURED = {
    "worth": 0.51, "labels": 0.97, "difficulty": 0.53, "agreement": 0.9, "copies": 0.012, "density": 0.5, "low": 0.2,
    "high": 0.7, "correlation": 0.31, "error": 0.02,
    "seconds_per_image": 0.05,
}  # fmt: skip
STRENGTH = {
    "points": [
        {"steps": steps, "lora_scale": scale, "text_guidance": 1.5, "difficulty_guidance": 3.0,
         "coverage": steps / 1000 + scale / 10, **MEASURED}
        for steps in (20, 80, 320) for scale in (0.6, 1.0)
    ],
    "chosen": 3, "usable": True, "reason": "because", "settings": {}, "images_per_point": 100, "unseen": 600,
    "features": "packaged",
}  # fmt: skip


def test_the_table_marks_the_chosen_point_and_fits_eighty_columns() -> None:
    table = strength_table(STRENGTH)
    assert [row[0] for row in table.rows] == ["20", "20", "80", "80 *", "320", "320"]
    assert table.rows[3][3:8] == ("0.51", "0.53", "97%", "1.2%", "18%")
    assert sum(max(len(cell) for cell in column) + 3 for column in zip(table.columns, *table.rows, strict=True)) <= 80


def test_the_curves_are_drawn(tmp_path: Path) -> None:
    with Image.open(strength_curves(tmp_path / "strength.png", STRENGTH)) as image:
        assert image.size == (1080, 672)
