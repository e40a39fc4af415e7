"""Prompts of classes in files: the user's own to be read, a language model's to be written. Needs no torch.

A list is CSV or JSON lines with the columns `class` and `prompt`, and `source` if wanted; a folder has a text file per
class, `<class>.txt`, with a prompt per line. `{class}` in a prompt is replaced by the class name, and `*` for a class
means every class.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dcdm_cli.captioning.templates import caption_from_template
from dcdm_cli.data.lists import parse_rows
from dcdm_cli.data.writers import class_folders, write_json_lines
from dcdm_cli.errors import NotFoundError, UsageError
from dcdm_cli.files import hash_json
from dcdm_cli.gate import MAX_TEXT, shorten
from dcdm_cli.run.origins import nearest

EVERY = "*"
OWN = "own prompts"  # the source of rows that name none
_CLASS_COLUMNS, _PROMPT_COLUMNS = ("class", "class_name", "label"), ("prompt", "caption", "text")
_SHAPE = 'write columns class,prompt, JSON lines {"class": ..., "prompt": ...}, or a folder with CLASS.txt'
MOST_SOURCES = 32  # what is measured per source is a table that somebody reads


@dataclass(frozen=True)
class ClassPrompt:
    """One prompt of a class; source: who wrote it, in a word or two."""

    class_name: str
    prompt: str
    source: str = OWN


def read_prompts(path: Path, class_names: Sequence[str]) -> list[list[ClassPrompt]]:
    """Per class its prompts in the order of the file, each once. A class may have none.

    Raises NotFoundError without the file; UsageError for another shape, an unknown class, an empty or overlong prompt
    and too many sources, each naming file and row.
    """
    if not path.exists():
        raise NotFoundError(f"no prompts at {path}", f"check --prompts; {_SHAPE}", file=path)
    labels = {name: label for label, name in enumerate(class_names)}
    found: list[dict[str, ClassPrompt]] = [{} for _ in class_names]
    for where, row in _folder_rows(path, class_names) if path.is_dir() else _list_rows(path):
        for name in class_names if row.class_name == EVERY else (row.class_name,):
            if name not in labels:
                hint = nearest(name, list(class_names)) or f"the classes are {', '.join(class_names[:8])}, …"
                raise UsageError(f"{where}: unknown class {shorten(name)}", hint, file=path)
            text = _checked(row.prompt, name, where, path)
            found[labels[name]].setdefault(text, ClassPrompt(name, text, row.source))
    if not any(found):
        raise UsageError(f"{path} holds no prompt", _SHAPE, file=path)
    sources = {prompt.source for prompts in found for prompt in prompts.values()}
    if len(sources) > MOST_SOURCES:
        raise UsageError(
            f"{path} names {len(sources)} sources; what they cost is measured for each, so at most {MOST_SOURCES}",
            "put a few words for who wrote a prompt into the source column, or leave it out",
            file=path,
        )
    return [list(prompts.values()) for prompts in found]


def write_prompts(path: Path, prompts: Iterable[ClassPrompt]) -> None:
    """JSON lines that `read_prompts` reads. Raises StorageError."""
    rows = ({"class": row["class_name"], **row} for row in map(asdict, prompts))
    write_json_lines(path, ({k: v for k, v in row.items() if k != "class_name"} for row in rows))


def prompts_key(path: Path, class_names: Sequence[str]) -> str:
    """Hash of what `read_prompts` finds, and so the same for a folder and a list with the same prompts."""
    return hash_json([[asdict(prompt) for prompt in prompts] for prompts in read_prompts(path, class_names)])


def _checked(prompt: str, class_name: str, where: str, path: Path) -> str:
    if len(prompt) > MAX_TEXT:
        raise UsageError(f"{where}: a prompt of {len(prompt)} characters", f"use at most {MAX_TEXT}", file=path)
    if not prompt.strip():
        raise UsageError(f"{where}: the prompt is empty", "write what is to be seen, or remove the row", file=path)
    try:
        # "x": a prompt that is the bare name is not empty.
        caption_from_template(prompt.replace(class_name, " ") + "x", class_name)  # braces of the name are no token
    except UsageError as error:
        raise UsageError(f"{where}: {error.message}", error.hint, file=path) from error
    return " ".join(prompt.replace("{class}", class_name).split())


def _list_rows(path: Path) -> Iterator[tuple[str, ClassPrompt]]:
    columns: tuple[str, str] | None = None
    for number, row in enumerate(parse_rows(path, str(path)), 1):
        where = f"{path}, row {number}"
        columns = columns or (_column(row, _CLASS_COLUMNS, where, path), _column(row, _PROMPT_COLUMNS, where, path))
        class_name, prompt = (_text(row.get(name)) for name in columns)
        yield where, ClassPrompt(class_name, prompt, _text(row.get("source")) or OWN)


def _column(row: Mapping[str, Any], names: Sequence[str], where: str, path: Path) -> str:
    for name in names:
        if name in row:
            return name
    raise UsageError(f"{where}: no column {names[0]!r}, it has {', '.join(map(str, row))}", _SHAPE, file=path)


def _text(value: Any) -> str:
    """Numbers are class names too; lists and objects are nothing."""
    return value.strip() if isinstance(value, str) else json.dumps(value) if isinstance(value, int | float) else ""


def _folder_rows(path: Path, class_names: Sequence[str]) -> Iterator[tuple[str, ClassPrompt]]:
    """Files are called as classes are, or as their folders among generated images are."""
    # classes last: a file that is called like a class is that of this class
    called = dict(zip(class_folders(class_names), class_names, strict=True)) | {name: name for name in class_names}
    for file in sorted(path.glob("*.txt")):
        try:
            lines = file.read_text("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise UsageError(f"{file} is not UTF-8: {error}", "save it as UTF-8", file=file) from error
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"{file}, line {number}", ClassPrompt(called.get(file.stem, file.stem), line)
