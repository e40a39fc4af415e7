"""Near-duplicates, blanks, and a filter that leaves medium-hard images alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from dcdm_cli.errors import NotFoundError
from dcdm_cli.evaluation.leakage import (
    MEDIUM,
    Findings,
    Looks,
    Nearest,
    copying,
    counted,
    filter_reasons,
    leakage,
    look,
    nearest,
    to_own,
)
from dcdm_cli.evaluation.quality import _as_one


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Ten different pictures with structure at every scale."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    paths = []
    for i in range(10):
        coarse = Image.fromarray(rng.integers(0, 255, (5, 5, 3), dtype=np.uint8)).resize(
            (64, 48), Image.Resampling.BICUBIC
        )
        paths.append(folder / f"{i}.png")
        coarse.save(paths[-1])
    return paths


def test_copies_are_found_whatever_was_done_to_them(photos: list[Path], tmp_path: Path) -> None:
    source = Image.open(photos[3])
    copies = {
        "jpg": source,
        "small": source.resize((32, 24)),
        "mirror": ImageOps.mirror(source),
        "brighter": ImageEnhance.Brightness(source).enhance(1.02),
    }
    for name, image in copies.items():
        image.convert("RGB").save(tmp_path / f"{name}.jpg", quality=90)
    found = nearest(look([tmp_path / f"{name}.jpg" for name in copies]), look(photos))
    assert found.row.tolist() == [3] * 4 and found.same.all()
    assert not nearest(look(photos[:5]), look(photos[5:])).same.any()


def test_nothing_to_compare_with_is_far_away(photos: list[Path]) -> None:
    empty = look([])
    assert np.isinf(nearest(look(photos[:2]), empty).distance).all()
    assert nearest(empty, look(photos)).row.shape == (0,)


def test_a_constant_image_has_no_spread(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9), (10, 200, 30)).save(tmp_path / "blank.png")  # its channels differ: still constant
    assert look([tmp_path / "blank.png"]).spread.tolist() == [0.0]
    with pytest.raises(NotFoundError, match=r"gone\.png can no longer be read"):
        look([tmp_path / "gone.png"])


def at(*distance: float) -> Nearest:
    return Nearest(np.zeros(len(distance), int), np.array(distance, np.float32))


def test_a_leak_is_an_error_memorisation_a_warning() -> None:
    real = at(*np.linspace(0.1, 0.3, 100))
    made = leakage(at(0.01, 0.2, 0.05), at(0.3, 0.3, 0.3), real)
    assert (made["near_train"], made["near_test"], made["level"]) == (1, 0, "warning")
    assert made["closer_than_real"] == pytest.approx(2 / 3, abs=1e-4) and made["real_overlap"] == 0
    assert leakage(at(0.2), at(0.001), real)["level"] == "error"
    assert leakage(at(0.2), at(0.2), real)["level"] == "ok"


def test_images_are_compared_with_what_they_started_from(photos: list[Path]) -> None:
    real = look(photos)
    own = to_own(look([photos[2], photos[4], photos[5]]), real, np.array([2, 3, -1]))
    assert own.same.tolist() == [True, False, False] and np.isinf(own.distance[2])
    mirrored = Looks(real.thumbnails[:1].reshape(-1, 16, 16, 3)[:, :, ::-1].reshape(1, -1), real.spread[:1])
    assert to_own(mirrored, real, np.array([0])).distance[0] == 0
    far = at(0.2, 0.2, 0.2)
    assert leakage(far, far, far)["near_source"] is None and leakage(far, far, far)["from_source"] is None
    said = leakage(far, far, far, own)
    assert (said["from_source"], said["near_source"]) == (2, 1)


def findings(**columns: list) -> Findings:
    count = len(next(iter(columns.values())))
    whole: dict = {name: np.zeros(count, bool) for name in ("blank", "near_test", "near_train")}
    whole |= {"agrees": np.ones(count, bool), "difficulty": np.full(count, 0.5)}
    return Findings(**whole | {name: np.array(values) for name, values in columns.items()})


def test_the_first_reason_counts_and_lost_labels_only_beyond_the_frontier() -> None:
    found = findings(
        blank=[True, False, False, False, False],
        near_test=[True, True, False, False, False],
        agrees=[False, False, False, False, True],
        difficulty=[0.9, 0.9, 0.9, 0.5, 0.99],
    )
    reasons = filter_reasons(found, 0.7)
    assert reasons == ["blank", "near_test", "label_lost", None, None]
    assert filter_reasons(found, 0.95)[2] is None
    counts = counted(reasons, found)
    assert counts["kept"] == 2 and counts["removed"] == {"blank": 1, "near_test": 1, "near_train": 0, "label_lost": 1}
    assert [(row["images"], row["kept"]) for row in counts["by_difficulty"]] == [(0, 0), (1, 1), (4, 1)]


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=30), st.floats(0, 1))
def test_no_medium_hard_image_ever_goes_for_its_label(images: list[tuple[float, bool]], frontier: float) -> None:
    found = findings(difficulty=[s for s, _ in images], agrees=[agrees for _, agrees in images])
    for (s, _), reason in zip(images, filter_reasons(found, frontier), strict=True):
        assert reason is None or s > MEDIUM


def test_an_image_without_a_difficulty_is_kept() -> None:
    assert filter_reasons(findings(agrees=[False], difficulty=[np.nan]), 0.5) == [None]


def test_many_thumbnails_are_compared_in_chunks() -> None:
    rng = np.random.default_rng(0)
    reference = Looks(rng.random((3000, 768), dtype=np.float32), np.ones(3000, np.float32))
    asked = Looks(reference.thumbnails[::100] + np.float32(0.005), np.ones(30, np.float32))
    found = nearest(asked, reference)
    assert found.row.tolist() == list(range(0, 3000, 100)) and found.same.all()


def test_copies_are_found_in_a_feature_space() -> None:
    rng = np.random.default_rng(0)
    train, held_out = rng.normal(size=(200, 16)), rng.normal(size=(60, 16))
    made = np.concatenate([train[:5] * 3 + rng.normal(0, 0.05, (5, 16)), held_out[:2], rng.normal(size=(20, 16))])
    found = copying(made, train, held_out)
    assert (found["near_train"], found["near_test"], found["real_overlap"], found["images"]) == (5, 2, 0, 27)
    assert found["level"] == "error" and found["limit"] > 0
    assert copying(made[7:], train, held_out)["level"] == "ok"
    overlapping = copying(made, np.concatenate([train, held_out[:20]]), held_out)
    assert overlapping["real_overlap"] == 20 and overlapping["near_train"] == 7  # a third of copies does no harm
    assert copying(made[:0], train, held_out)["closer_than_real"] is None
    assert copying(made, train, held_out[:0])["near_train"] == 0


def test_looks_at_several_sets_of_images_have_one_end() -> None:
    told: list[tuple[str, int, int]] = []
    report = _as_one(lambda *one: told.append(one), 5)
    for total in (2, 3):
        for done in range(total):
            report("reading images", done + 1, total)
    assert told == [("reading images", done, 5) for done in (1, 2, 3, 4, 5)]
