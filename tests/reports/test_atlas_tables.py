"""What the atlas found, in words and in a table."""

from __future__ import annotations

from typing import Any

from dcdm_cli.reports.atlas_tables import group_sentences, groups_table, taken_for


def described(n: int, difficulty: float, *rivals: tuple[str, float]) -> dict[str, Any]:
    named = [{"class": name, "share": share} for name, share in rivals]
    return {"n": n, "difficulty": difficulty, "mistaken_for": named, "typical": []}


ROWS = [
    {"features": "lite0", "class": "cat", "group": 0, "real": described(12, 0.8, ("dog", 0.5), ("frog", 0.25)),
     "generated": described(5, 0.6)},
    {"features": "lite0", "class": "cat", "group": 1, "real": described(1, 0.1), "generated": None},
]  # fmt: skip


def test_a_group_is_told_by_what_it_is_taken_for() -> None:
    assert taken_for(ROWS[0]["real"]) == "taken for dog 50 %, frog 25 %" and taken_for(ROWS[1]["real"]) == ""
    first, second = group_sentences(ROWS)
    assert first.startswith("The hardest group, 12 images of mean difficulty 0.80, taken for dog 50 %, frog 25 %,")
    assert "the easiest, 1 image of mean difficulty 0.10, by how they look in lite0" in first
    assert second == "Generated images of group 1 are easier than its real ones: 5 images of mean difficulty 0.60."


def test_real_and_generated_stand_side_by_side() -> None:
    table = groups_table(ROWS)
    assert table.rows[0] == ("cat 1", "12", "0.80", "dog 50 %, frog 25 %", "5", "0.60")
    assert table.rows[1] == ("cat 2", "1", "0.10", "-", "-", "-")
    assert table.title == "Groups of alike images, in lite0"
    assert table.sentence.startswith("Hardest: cat, group 1, 12 images") and groups_table([]).rows == ()
