"""Captions from templates, and the cut to what the text encoder can read.

A template is plain text with `{class}` in it. Replacement is by token, never `str.format`: a template cannot reach
attributes, and braces in a class name mean nothing.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dcdm_cli.data.manifest import Manifest
from dcdm_cli.errors import NotFoundError, UsageError
from dcdm_cli.gate import Text, parse_json, typed
from dcdm_cli.run.origins import nearest
from dcdm_cli.run.settings import CaptionConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENS = ("{class}",)
_TOKEN = re.compile(r"\{[^{}]*\}")
_CHARACTERS_PER_TOKEN = 64  # more than any token of a real vocabulary has; bounds the work on absurd captions


def caption_from_template(template: str, class_name: str) -> str:
    """One line of text: `{class}` replaced, runs of white space made one space.

    Raises UsageError for any other `{token}`, and when nothing is left.
    """
    for token in _TOKEN.findall(template):
        if token not in TOKENS:
            raise UsageError(f"unknown token {token} in the caption template {template!r}", "the only token is {class}")
    caption = _one_line(template.replace("{class}", class_name))
    if not caption:
        raise UsageError(f"the caption template {template!r} gives an empty caption", "a photo of a {class}")
    return caption


def prefixed(prefix: str, class_name: str, caption: str | None) -> str:
    """A model's caption behind the filled-in prefix, which names the class that the model may have missed."""
    return _one_line(f"{caption_from_template(prefix, class_name) if prefix.strip() else ''} {caption or ''}")


def read_templates(path: Path, class_names: Sequence[str]) -> dict[str, str]:
    """Per-class templates from a JSON object {class name: template}.

    Raises NotFoundError without the file; UsageError when it is something else, or names a class that is not there.
    """
    if not path.is_file():
        raise NotFoundError(f"no caption templates at {path}", "check caption.templates_file", file=path)
    try:
        templates = typed(dict[Text, Text], parse_json(path.read_text("utf-8-sig")))
    except ValueError as error:
        raise UsageError(
            f"{path} is not a JSON object of texts: {error}", 'write {"class name": "template"}', file=path
        ) from error
    known = set(class_names)
    for name in templates:
        if name not in known:
            raise UsageError(f"{path} names an unknown class {name!r}", nearest(name, list(class_names)), file=path)
    return templates


def template_captions(manifest: Manifest, config: CaptionConfig) -> list[str]:
    """One caption per row, in row order. Raises UsageError and NotFoundError as `read_templates` does."""
    by_label = class_captions(manifest.class_names, config)
    return [by_label[label] for label in manifest.column("label")]


def class_captions(class_names: Sequence[str], config: CaptionConfig) -> list[str]:
    """One caption per class. Raises UsageError and NotFoundError as `read_templates` does."""
    own = read_templates(config.templates_file, class_names) if config.templates_file else {}
    return [caption_from_template(own.get(name, config.template), name) for name in class_names]


def cut_to_limit(captions: Iterable[str | None], tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], int]:
    """Captions that fit the text encoder whole, and how many had to be cut.

    The limit is `tokenizer.model_max_length` tokens with the special ones. Captions are cut at the end of a word, or
    inside the first word when that alone is too long. A missing caption becomes "". Equal captions are cut once.
    """
    texts = [_one_line(caption or "") for caption in captions]
    limit = tokenizer.model_max_length

    def fits(text: str) -> bool:
        if len(text) > limit * _CHARACTERS_PER_TOKEN:
            return False
        # verbose: it would warn of each text that is too long
        return len(tokenizer(text, verbose=False)["input_ids"]) <= limit

    cut = {text: _longest_that_fits(text, fits) for text in set(texts)}
    return [cut[text] for text in texts], sum(cut[text] != text for text in texts)


def _longest_that_fits(text: str, fits: Callable[[str], bool]) -> str:
    if fits(text):
        return text
    word_ends = [match.end() for match in re.finditer(r"\S+", text)]
    return _bisect(text, word_ends, fits) or _bisect(text, range(1, word_ends[0]), fits)


def _bisect(text: str, ends: Sequence[int], fits: Callable[[str], bool]) -> str:
    # Longer texts never fit where shorter ones do not, so a few calls of the tokenizer find the end.
    kept = bisect_right(ends, False, key=lambda end: not fits(text[:end]))
    return text[: ends[kept - 1]] if kept else ""


def _one_line(text: str) -> str:
    return " ".join(text.split())
