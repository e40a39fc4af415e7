"""Whether images still show what they showed when they were scanned."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from dcdm_cli.data.images import decode_image, image_hash
from dcdm_cli.data.manifest import Manifest
from dcdm_cli.data.shown import refuse_other_pictures
from dcdm_cli.errors import MismatchError
from dcdm_cli.run.progress import silent


@pytest.fixture
def images(tmp_path: Path) -> Manifest:
    for number in range(6):
        Image.new("RGB", (4, 4), (number, 9, 9)).save(tmp_path / f"{number}.png")
    files = sorted(tmp_path.iterdir())
    ids = [f"{image_hash(decode_image(file))}-{number:08x}" for number, file in enumerate(files)]
    rows = [{"sample_id": one, "path": file.name, "label": 0} for one, file in zip(ids, files, strict=True)]
    return Manifest.from_rows(rows, ("a",), tmp_path)


def test_the_same_pictures_in_other_files_are_the_same(images: Manifest) -> None:
    for file in images.paths():
        with Image.open(file) as image:
            image.save(file, "PNG", compress_level=0)
    refuse_other_pictures(images, silent)


def test_other_pictures_and_those_that_are_gone_are_named(images: Manifest) -> None:
    first, second, third, fourth, fifth, _ = images.paths()
    Image.new("RGB", (4, 4), (99, 9, 9)).save(second)
    with pytest.raises(MismatchError, match=rf"^{second} does not show what it showed when it was scored$"):
        refuse_other_pictures(images, silent)
    third.unlink()
    fourth.write_bytes(b"x")
    fifth.write_bytes(first.read_bytes())
    with pytest.raises(
        MismatchError, match=f"; 4 images are not as they were, others are {third}, {fourth}, …"
    ) as caught:
        refuse_other_pictures(images, silent)
    second.unlink()
    with pytest.raises(MismatchError, match=f"^{second} can no longer be read "):
        refuse_other_pictures(images, silent)
    assert "dcdm score" in caught.value.hint and caught.value.file == str(second)


def test_ids_that_no_scan_made_say_nothing(images: Manifest) -> None:
    refuse_other_pictures(images.with_columns({"sample_id": ["a", "", "b", "c", "0" * 16, "d"]}), silent)
