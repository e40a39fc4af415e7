"""docs/cli.md: every command with its sentence, its options in their panels, defaults and exit codes.

    python benchmarks/commands_page.py

Asked of the commands themselves, as they are registered; a test makes the page again and compares. Defaults are those
of the settings: no run folder, preset or machine has a say.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import typer
from architecture import ROOT, parsed

from dcdm_cli.api.session import GENERAL
from dcdm_cli.cli import COMMANDS, build_app
from dcdm_cli.commands.flags import metavar, plain_type
from dcdm_cli.commands.help import PanelCommand, as_words
from dcdm_cli.errors import ExitCode
from dcdm_cli.files import write_text
from dcdm_cli.run.settings import Config

DOCUMENT = Path("docs") / "cli.md"
TYPERS = ("help", "install_completion", "show_completion")  # options that typer makes, with its version's words
ERRORS = Path("dcdm_cli") / "errors.py"
HEAD = """# Commands, options and exit codes

Made by `python benchmarks/commands_page.py` from the commands themselves; a test compares. Defaults are those without a
preset: `dcdm COMMAND -h` shows the ones that a run folder and `--preset` give. An option that is a setting is a key of
`dcdm.toml` too, which stands beside its help ([settings.md](settings.md) says which value decides).
"""


def page(root: Path) -> str:
    """The whole document."""
    app = typer.main.get_command(build_app(list(COMMANDS)))
    parts = [HEAD, *_section(app, "dcdm"), *exit_codes(root)]
    return "\n".join(parts)


def _section(command: Any, path: str) -> Iterator[str]:
    """A command, and those below it."""
    ctx = typer.Context(command, info_name=path)
    sentences, _, examples = (command.help or "").partition("\b")
    yield f"## `{path}`\n\n{sentences.strip()}\n\n    {path} {_usage(command)}\n"
    lines = [line.removeprefix("Example: ") for line in examples.split("\n") if line]
    if lines:
        yield "```\n" + "\n".join(lines) + "\n```\n"
    yield from _options(command, ctx)
    for name, below in getattr(command, "commands", {}).items():
        yield from _section(below, f"{path} {name}")


def _usage(command: Any) -> str:
    arguments = [
        (_words(command, param).strip("[]"), param.required) for param in command.params if _is_argument(param)
    ]
    words = [word if required else f"[{word}]" for word, required in arguments]
    return " ".join([*(["COMMAND"] if hasattr(command, "commands") else []), *words, "[OPTIONS]"])


def _options(command: Any, ctx: typer.Context) -> Iterator[str]:
    words = {param.name: _words(command, param) for param in command.params if param.name not in TYPERS}
    rows = [f"| `{_cell(words[p.name])}` | {_cell(p.help or '')} |" for p in command.params if _is_argument(p)]
    yield from _table("Arguments", ("argument", "what it is"), rows)
    is_panelled = isinstance(command, PanelCommand)
    panels = command.panels(ctx) if is_panelled else {"Options": [p for p in command.params if not _is_argument(p)]}
    keys = {name: name for name in GENERAL} | (dict(command.keys) if is_panelled else {})
    for title, options in panels.items():
        ours = [option for option in options if option.name in words]
        rows = [_row(option, words[option.name], keys.get(option.name, "")) for option in ours]
        yield from _table(title, ("option", "default", "what it is"), rows)


def _row(option: Any, words: str, key: str) -> str:
    """key: the setting that the option is, dotted, or "": then the option has a default of its own."""
    help = option.help or ""
    help += f" (`{key}`)" if "." in key else ""
    help += f" (or `${option.envvar}`)" if option.envvar else ""
    default = reduce(getattr, key.split("."), Config()) if key else option.default
    shown = "" if option.is_flag and not key else f"`{_cell(as_words(default))}`"
    return f"| `{_cell(words)}` | {shown} | {_cell(help)} |"


def _words(command: Any, param: Any) -> str:
    """An option as it is typed, with a word for what follows; an argument's word. Not typer's own words for types: they
    differ by its version."""
    if _is_argument(param):
        return param.metavar or str(param.name).upper()
    names = ", ".join(param.opts) + "".join(f" / {other}" for other in param.secondary_opts)
    if param.is_flag:
        return names
    kind, *_ = get_args(command.callback.__annotations__[param.name])
    return f"{names} {param.metavar or metavar(plain_type(kind))}"


def _is_argument(param: Any) -> bool:
    return param.param_type_name == "argument"


def _table(title: str, columns: tuple[str, ...], rows: list[str]) -> Iterator[str]:
    if rows:
        head = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
        yield "\n".join([f"**{title}**", "", *head, *rows, ""])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def exit_codes(root: Path) -> list[str]:
    """A row per code: the text below each name is what it means. Raises KeyError for a code without one."""
    tree = parsed(root / ERRORS)
    body = next(n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == ExitCode.__name__)
    meant = {
        ast.unparse(code.targets[0]): str(ast.literal_eval(text.value))
        for code, text in pairwise(body)
        if isinstance(code, ast.Assign) and isinstance(text, ast.Expr)
    }
    rows = [f"| {code.value} | {_cell(meant[code.name])} |" for code in ExitCode]
    return ["## Exit codes\n", "| code | meaning |", "|---|---|", *rows, ""]


def main() -> int:
    file, made = ROOT / DOCUMENT, page(ROOT)
    changed = not file.is_file() or file.read_text("utf-8") != made
    if changed:
        write_text(file, made)
    print(json.dumps({"document": DOCUMENT.as_posix(), "changed": changed}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
