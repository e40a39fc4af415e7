"""What messages tell the user to type exists: every `--flag` and every `dcdm verb` in a string of the source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from click import Context
from typer.main import get_command

from dcdm_cli.cli import COMMANDS, build_app, exit_code
from dcdm_cli.console import Console
from dcdm_cli.errors import MismatchError

ROOT = Path(__file__).parents[1]
OWN_APPS = ("demo/pretrain.py", "__main__.py")  # scripts with an argument parser of their own
SOURCES = sorted([*(ROOT / "dcdm_cli").rglob("*.py"), *(ROOT / "export" / "dcdm_export").rglob("*.py")])
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
VERB = re.compile(r"\bdcdm ([a-z]+)\b((?: (?!dcdm )[^,;:()\n]*)?)")
OTHERS = re.compile(r"\b(?:docker run|ray start)[^:;]*")  # other programs have flags of their own


WORD = re.compile(r"[a-z][a-z-]*")
SAYS = {"shows"}  # what a sentence says of a command, where a word of its own could stand


@cache
def commands() -> dict[str, Any]:
    """Every command by its words, as the app itself has them: `config` and `config show`."""
    root: Any = get_command(build_app(list(COMMANDS)))
    found, waiting = {"": root}, [("", root)]
    while waiting:
        words, command = waiting.pop()
        below = {f"{words} {name}".strip(): one for name, one in getattr(command, "commands", {}).items()}
        found |= below
        waiting += below.items()
    return found


@cache
def flags() -> dict[str, set[str]]:
    """Of each command, those of its own commands with them."""
    found = {words: _of(command) for words, command in commands().items()}
    return {words: own.union(*_below(words, found)) if words else own for words, own in found.items()}


def _below(words: str, found: dict[str, set[str]]) -> Iterator[set[str]]:
    return (own for name, own in found.items() if name.startswith(f"{words} "))


@cache
def next_words(words: str) -> set[str]:
    """What may come next after these: the command's own commands, or what a shell is offered for its first argument."""
    command = commands()[words]
    if below := getattr(command, "commands", {}):
        return set(below)
    first = next((one for one in command.params if one.param_type_name == "argument"), None)
    offered = first.shell_complete(Context(command), "") if first is not None else []
    return {item.value for item in offered if item.type == "plain"}


def _of(command: Any) -> set[str]:
    names = (name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts))
    return {name for name in names if name.startswith("--")} | {"--help"}


def strings() -> Iterator[tuple[str, int, str]]:
    """Literals that are no docstrings; of an f-string its text, with {} for what is filled in."""
    for file in SOURCES:
        if file.as_posix().endswith(OWN_APPS):
            continue
        tree = ast.parse(file.read_text("utf-8"))
        documents = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef))
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
                yield file.relative_to(ROOT).as_posix(), node.lineno, "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents | inside:
                yield file.relative_to(ROOT).as_posix(), node.lineno, node.value


def wrong(text: str) -> list[str]:
    """What the text names and the app does not have."""
    text, known = OTHERS.sub("", text), set().union(*flags().values())
    found = [flag for flag in FLAG.findall(text) if flag not in known and not flag.endswith("-")]
    for verb, rest in VERB.findall(text):
        if verb not in flags():
            found.append(f"dcdm {verb}")
            continue
        words, fault = walked(verb, rest)
        found += [f"dcdm {words} {flag}" for flag in FLAG.findall(rest) if flag not in flags()[words]]
        found += [fault] if fault else []
    return found


def walked(words: str, rest: str) -> tuple[str, str]:
    """(the command that is meant, down to the last of its words; what stands where there is no such word)."""
    for word in rest.split():
        known = next_words(words)
        if not known or word.rstrip(".") in SAYS or not WORD.fullmatch(word.rstrip(".")):
            break
        if word.rstrip(".") not in known:
            return words, f"dcdm {words} {word}"
        if f"{words} {word}" not in commands():
            break  # an argument
        words = f"{words} {word}"
    return words, ""


def test_every_flag_and_command_that_a_message_names_exists() -> None:
    faults = [f"{file}:{line}: {fault} in {text[:90]!r}" for file, line, text in strings() for fault in wrong(text)]
    assert faults == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("name it: dcdm score --score-column x", "--score-column"),
        ("make it: dcdm train --force", "dcdm train"),
        ("dcdm caption --steps 3", "dcdm caption --steps"),
        ("make it again: dcdm evaluate nonsense --force", "dcdm evaluate nonsense"),
        ("dcdm config nonsense", "dcdm config nonsense"),
        ("dcdm config show --repair", "dcdm config show --repair"),
        ("dcdm push everything me/birds", "dcdm push everything"),
        (
            "dcdm evaluate experiment FILE, dcdm evaluate shows it, dcdm config show --origin, dcdm evaluate {}",
            "",
        ),
        ("dcdm finetune --steps 3, then dcdm generate --clip-range 4 and --no-score", ""),
    ],
)
def test_a_message_that_names_what_is_not_there_is_found(text: str, fault: str) -> None:
    assert (fault in wrong(text)) if fault else wrong(text) == []


def test_the_app_is_read_and_not_a_list_of_ours() -> None:
    assert isinstance(build_app([]), typer.Typer)
    assert {"--steps", "--devices"} <= flags()["finetune"] and "--origin" in flags()["config"]


def test_what_is_nested_too_deeply_is_no_bug_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(RecursionError("maximum recursion depth exceeded"), Console()) == MismatchError.code
    said = capsys.readouterr().err
    assert "nested too deeply" in said and "-mindepth" in said and "report it" not in said
