"""The packaged digits classifier: it knows digits from elsewhere, and so can say whether an image shows its label.

Trained on MNIST's training images in many styles (`digits_checker/origin.json`), never on the target's. Not from the
paper.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dcdm_cli.difficulty.classifier import StoredClassifier

DIGITS = "digits"  # its name in settings
FOLDER = Path(__file__).parent / "digits_checker"


def open_digits_checker(device: str) -> StoredClassifier:
    """Ten classes, "0" to "9"; images of 32 pixels."""
    from dcdm_cli.difficulty.classifier import load_classifier

    return load_classifier(FOLDER, device)
