"""Which images are worth a look, and the reason that is given."""

from __future__ import annotations

import numpy as np

from dcdm_cli.data.manifest import Manifest
from dcdm_cli.evaluation.review import COPY, EASIEST, HARDEST, MISS, SUSPECT, copied, missed, near_twins, real_items

NAMES = ("cat", "dog")


def real(*rows: tuple[str, int, float, int, bool]) -> Manifest:
    """(id, label, difficulty, predicted, suspect)"""
    listed = [
        {
            "sample_id": name, "path": f"{i}.png", "label": label, "class_name": NAMES[label], "split": "train",
            "difficulty": s, "p_true": 1 - s, "predicted": predicted, "suspect_label": suspect,
        }
        for i, (name, label, s, predicted, suspect) in enumerate(rows)
    ]  # fmt: skip
    return Manifest.from_rows(listed, NAMES)


def made(*rows: tuple[int, float, float, int]) -> Manifest:
    """(label, target, measured, predicted)"""
    listed = [
        {
            "sample_id": str(i), "path": f"{i}.png", "label": label, "class_name": NAMES[label], "synthetic": True,
            "target_difficulty": target, "measured_difficulty": measured, "predicted": predicted,
        }
        for i, (label, target, measured, predicted) in enumerate(rows)
    ]  # fmt: skip
    return Manifest.from_rows(listed, NAMES)


def test_suspects_stand_apart_from_what_is_merely_hard() -> None:
    train = real(
        ("a", 0, 0.9, 1, False), ("b", 0, 0.95, 1, True), ("c", 1, 0.1, 1, False), ("d", 1, 0.99, 0, True),
        ("e", 0, 0.5, 0, False),
    )  # fmt: skip
    items = real_items(train, 2)
    found = {group: [i.sample_id for i in items if i.group == group] for group in (SUSPECT, HARDEST, EASIEST)}
    assert found == {SUSPECT: ["d", "b"], HARDEST: ["a", "e"], EASIEST: ["c"]}
    assert items[0].reason == "labelled dog, the scorer sees cat (p 0.01 for the label)"


def test_the_same_picture_twice_is_found_and_two_labels_come_first() -> None:
    train = real(
        ("aa-1", 0, 0.1, 0, False), ("aa-2", 0, 0.1, 0, False), ("bb-1", 0, 0.2, 0, False), ("bb-2", 1, 0.8, 0, False)
    )
    copies = [i for i in real_items(train, 9) if i.group == COPY]
    assert [i.sample_id for i in copies] == ["bb-2", "aa-2"]
    assert copies[0].reason == "the same picture as 2.png, which is labelled cat"


def test_nearly_equal_pictures_are_named_once_each_and_two_labels_come_first() -> None:
    train = real(
        ("aa-1", 0, 0.1, 0, False), ("ab-1", 0, 0.1, 0, False), ("ba-1", 0, 0.2, 0, False), ("bb-1", 1, 0.8, 0, False),
        ("ba-2", 0, 0.2, 0, False), ("cc-1", 1, 0.3, 1, False),
    )  # fmt: skip
    other, same = np.array([1, 0, 4, 2, 2, 0]), np.array([True, True, True, True, True, False])
    items = near_twins(train, other, same, 9)
    assert [i.sample_id for i in items] == ["bb-1", "ab-1"], "ba-1 and ba-2 are equal to the pixel"
    assert items[0].reason == "nearly the same picture as 2.png, which is labelled cat"
    assert items[1].reason == "nearly the same picture as 0.png" and {i.group for i in items} == {COPY}


def test_misses_are_lost_labels_and_then_the_furthest_from_their_target() -> None:
    images = made((0, 0.5, 0.52, 0), (0, 0.5, 0.9, 0), (1, 0.5, 0.55, 0), (1, 0.5, 0.75, 1))
    items = missed(images, "hard", 0.1, 9)
    assert [i.sample_id for i in items] == ["2", "1", "3"] and {i.group for i in items} == {MISS}
    assert items[0].reason == "made as dog, the scorer sees cat; 0.55 instead of 0.50"
    assert items[0].source == "hard"


def test_copies_name_the_image_they_repeat() -> None:
    images = made((0, 0.5, 0.5, 0), (1, 0.5, 0.5, 1))
    train = real(("a", 0, 0.1, 0, False))
    items = copied(images, "generated", np.array([False, True]), [*train.paths(), *train.paths()], 9)
    assert [(i.sample_id, i.reason) for i in items] == [("1", "repeats the training image 0.png")]
