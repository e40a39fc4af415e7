"""Text from outside (file, class and model names, captions) made safe to show on a terminal or in a report."""

from __future__ import annotations


def show(text: object) -> str:
    r"""`text` with every character that does not print written as an escape, such as \x1b, \n or \u202e.

    That covers control characters, ESC, lone surrogates (file names that are not UTF-8), bidi and other invisible
    format characters. Everything else, markup brackets included, stays as it is: wrap the result in `rich.text.Text`.
    """
    raw = str(text)
    if raw.isprintable():
        return raw
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in raw)
