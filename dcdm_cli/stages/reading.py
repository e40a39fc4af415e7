"""How much of a text the base's text encoder reads: what is too long is cut, and that is said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dcdm_cli.console import Console
from dcdm_cli.run.session import Session

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

SHOWN = 60  # characters of a text, where one is shown
MOST_WORDS = 75  # that CLIP's text encoders can read: 77 tokens, two of them special, and a word is at least one


def readable(session: Session, texts: Sequence[str], what: str) -> tuple[list[str], int]:
    """The texts as far as the base's text encoder reads them, and how many had to be cut; as they are, with a warning,
    where nobody can tell more than which are certainly too long. what: they are, for people. Nothing is fetched."""
    tokenizer = tokenizer_of(session, what)
    if tokenizer is not None:
        return cut_texts(texts, tokenizer, what, session.console)
    if too_long := [text for text in texts if len(text.split()) > MOST_WORDS]:
        session.console.warn(
            f"{what}: {len(too_long)} of {len(texts)} have more than {MOST_WORDS} words, and so are certainly too "
            f"long; their ends will not be read, as of: {shortened(too_long[0])}"
        )
    return list(texts), 0


def shortened(text: str) -> str:
    """The beginning of a text that is shown as an example: at most `SHOWN` characters."""
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3].rstrip()}..."


def tokenizer_of(session: Session, what: str) -> CLIPTokenizer | None:
    """Of the base; None, with a warning, where it is not on this machine."""
    from dcdm_cli.model.tokens import load_tokenizer

    config = session.config.finetune
    tokenizer = load_tokenizer(config.base, config.revision)
    if tokenizer is None:
        session.console.warn(
            f"{what}: not checked for length, since the tokenizer of {config.base} is not on this machine; what is too "
            "long for the text encoder is not read"
        )
    return tokenizer


def cut_texts(texts: Sequence[str], tokenizer: CLIPTokenizer, what: str, console: Console) -> tuple[list[str], int]:
    """The texts as far as this tokenizer's text encoder reads them, and how many were cut, which is said."""
    from dcdm_cli.captioning.templates import cut_to_limit

    whole, cut = cut_to_limit(texts, tokenizer)
    if cut:
        # cutting also makes one line of a text, which alone is no cut
        first = next(after for before, after in zip(texts, whole, strict=True) if " ".join(before.split()) != after)
        ending = first if len(first) < SHOWN else f"...{first[-SHOWN:]}"
        console.warn(
            f"{what}: {cut} of {len(texts)} were cut at the text encoder's limit of {tokenizer.model_max_length} "
            f"tokens; one now ends: {ending!r}"
        )
    return whole, cut
