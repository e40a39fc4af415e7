"""Two folders compared: copies are found, what cannot be compared is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from dcdm_cli.data.digits import digit_images
from dcdm_cli.difficulty.feature_cache import FeatureCache
from dcdm_cli.errors import NotFoundError, UsageError
from dcdm_cli.evaluation.features import Space, frozen_space
from dcdm_cli.evaluation.image_sets import compared_sets, read_set
from dcdm_cli.evaluation.leakage import look, nearest_other, nearest_other_in
from dcdm_cli.reports.quality_tables import image_set_tables
from dcdm_cli.run.progress import Job


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Thirty digits; twenty others, the first three of the thirty to the pixel and the next two mirrored; one twin."""
    pictures = [Image.fromarray(pixels).convert("RGB") for pixels in digit_images()[0][:60]]
    real, made = tmp_path / "real", tmp_path / "made" / "deep"
    real.mkdir()
    made.mkdir(parents=True)
    for number in range(30):
        pictures[number].save(real / f"{number}.png")
    new = [*pictures[:3], *map(ImageOps.mirror, pictures[3:5]), *pictures[40:54], pictures[40]]
    for number, picture in enumerate(new):
        picture.save(made / f"{number}.png")
    return made.parent, real


def test_copies_mirror_images_and_twins_are_found(folders: tuple[Path, Path]) -> None:
    made, real = (read_set(folder, 100, Job()) for folder in folders)
    pixels = Space("pixels", lambda rows: look(rows.paths()).thumbnails, lambda images: look(images).thumbnails)
    found = compared_sets(made, real, [pixels])
    assert found["exact"] == 3
    thumbnails, in_space = found["copies"]
    assert (thumbnails["near"], thumbnails["twins"], thumbnails["reference_twins"]) == (5, 2, 0)
    assert in_space["features"] == "pixels" and in_space["near"] >= 3 and in_space["twins"] == 2
    assert thumbnails["closer"] >= 0.25 > thumbnails["closer_expected"]
    likeness, halves = found["likeness"]
    assert likeness["generated"] == 20 and halves["generated"] == halves["reference"] == 15
    sides = {"images": made.document(), "against": real.document()}
    tables = image_set_tables({"features": "pixels", **sides, **found})
    assert "pixels" in tables[0].title and "3 of 20 images" in tables[1].sentence
    assert [len(row) for row in tables[0].rows] == [len(tables[0].columns)] * 2


def test_of_many_images_an_even_selection_is_read(folders: tuple[Path, Path]) -> None:
    some = read_set(folders[1], 10, Job())
    assert (some.listed, len(some.rows), len(some.looks.thumbnails)) == (30, 10, 10)


def test_broken_images_are_counted_and_the_rest_is_compared(folders: tuple[Path, Path]) -> None:
    (folders[0] / "deep" / "a.png").write_bytes(b"no image")
    made = read_set(folders[0], 100, Job())
    assert len(made.rows) == 20 and made.document()["rejected"][0]["path"] == "deep/a.png"


def test_what_is_no_folder_of_images(folders: tuple[Path, Path], tmp_path: Path) -> None:
    empty, broken, one = tmp_path / "empty", tmp_path / "broken", tmp_path / "one"
    for folder in (empty, broken, one):
        folder.mkdir()
    (broken / "a.png").write_bytes(b"no image")
    Image.new("RGB", (20, 20)).save(one / "a.png")
    with pytest.raises(NotFoundError, match="no such folder"):
        read_set(tmp_path / "nowhere", 10, Job())
    with pytest.raises(NotFoundError, match="no image files"):
        read_set(empty, 10, Job())
    with pytest.raises(UsageError, match="no folder"):
        read_set(one / "a.png", 10, Job())
    with pytest.raises(UsageError, match="none of the 1 images"):
        read_set(broken, 10, Job())
    with pytest.raises(UsageError, match="needs 2"):
        compared_sets(read_set(folders[0], 10, Job()), read_set(one, 10, Job()), [])


def test_the_packaged_features_are_kept(folders: tuple[Path, Path], tmp_path: Path) -> None:
    rows = read_set(folders[0], 4, Job()).rows
    space = frozen_space("packaged", FeatureCache(tmp_path / "cache"), Job())
    assert space.of(rows).shape == (4, 1280) and "packaged" in space.name
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 1


def test_the_nearest_other_is_never_the_image_itself(folders: tuple[Path, Path]) -> None:
    looks = read_set(folders[0], 100, Job()).looks
    for found in (nearest_other(looks), nearest_other_in(looks.thumbnails)):
        assert not (found.row == np.arange(20)).any() and np.isfinite(found.distance).all()
    alone = read_set(folders[0], 1, Job()).looks
    assert np.isinf(nearest_other(alone).distance).all()
