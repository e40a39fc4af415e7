"""The base model's tokenizer alone: what captions are measured by, without torch and without the network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dcdm_cli.model.packaged import resolve_base

MOST_TOKENS = 1_000_000  # of a limit; where none is known, transformers has a far larger number

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


def load_tokenizer(source: str, revision: str | None = None) -> CLIPTokenizer | None:
    """The base model's tokenizer alone, or None when it is not on this machine; nothing is fetched for it."""
    from transformers import CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(
            resolve_base(source), subfolder="tokenizer", revision=revision or "main", local_files_only=True
        )
    except (OSError, ValueError):
        return None
    words = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    # without its files transformers makes one that knows no word, or no limit
    return tokenizer if words and tokenizer.model_max_length < MOST_TOKENS else None
