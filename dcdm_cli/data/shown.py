"""Whether images still show what they showed when they were scanned: their ids begin with a hash of that.

Scores, labels, captions and features stand under the ids. What has another picture by now is refused by name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from dcdm_cli.data.images import RejectedImage, decode_image, image_hash
from dcdm_cli.data.manifest import Manifest
from dcdm_cli.errors import MismatchError
from dcdm_cli.gate import SCAN_ID
from dcdm_cli.run.progress import Progress

_SCANNED = re.compile(SCAN_ID)
_WAVE = 256  # images between two reports
_ANOTHER = "does not show what it showed when it was scored"
_NAMED = 3  # of those that have changed, in a message


def refuse_others(pictures: Sequence[Image.Image], ids: Sequence[str], paths: Sequence[Path]) -> None:
    """pictures: RGB, the first of them at `paths`; ids: their sample ids, as far as they are known; views of images
    follow. Raises MismatchError for those that are not what their ids were made from."""
    rows = zip(pictures, ids, paths, strict=False)
    _refuse([(path, _ANOTHER) for picture, sample, path in rows if not _shows(picture, sample)])


def refuse_other_pictures(images: Manifest, progress: Progress) -> None:
    """As `refuse_others`, of the files of a manifest's rows; one that can no longer be read is such a file too."""
    ids, paths = images.column("sample_id").tolist(), images.image_paths()
    changed: list[tuple[Path, str]] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(ids), _WAVE):
            here = list(paths[start : start + _WAVE])
            found = pool.map(_change, here, ids[start : start + _WAVE])
            changed += [(path, said) for path, said in zip(here, found, strict=True) if said]
            progress("looking whether images are those that were scored", start + len(here), len(ids))
    _refuse(changed)


def _shows(picture: Image.Image, sample: str) -> bool:
    """Ids that no scan has made say nothing."""
    return not _SCANNED.fullmatch(sample) or sample.startswith(image_hash(picture))


def _change(path: Path, sample: str) -> str:
    """What became of an image file since it was scored; empty where it shows the same."""
    try:
        return "" if _shows(decode_image(path), sample) else _ANOTHER
    except RejectedImage as error:
        return f"can no longer be read ({error})"


def _refuse(changed: Sequence[tuple[Path, str]]) -> None:
    if not changed:
        return
    (first, said), *others = changed
    named, more = ", ".join(str(path) for path, _ in others[: _NAMED - 1]), ", …" if len(changed) > _NAMED else ""
    all_of_them = f"; {len(changed)} images are not as they were, others are {named}{more}" if others else ""
    again = "score the images as they are now: dcdm score, or put back what was there"
    raise MismatchError(f"{first} {said}{all_of_them}", again, file=first)
