"""The house as it is built: no circle, thin commands, and a document that says what is there."""

from __future__ import annotations

import ast
from pathlib import Path

import commands_page
import pytest
from architecture import circles, import_graph, imported, layers, modules, parsed, public_names, rendered, upward

import dcdm_cli
from dcdm_cli.cli import COMMANDS
from dcdm_cli.errors import ExitCode

ROOT = Path(dcdm_cli.__file__).parents[1]
DOCUMENT = ROOT / "docs" / "architecture.md"
HELPERS = {
    "__init__",
    "flags",
    "help",
    "jobs",
    "options",
    "panels",
    "shared",
}  # of commands/: what all verbs share


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports inside of functions and for type checkers are counted too."""
    assert circles(import_graph(ROOT)) == []


def test_no_import_goes_up_or_aside() -> None:
    assert upward(ROOT, import_graph(ROOT)) == []


def test_a_circle_is_found_wherever_its_imports_stand(tmp_path: Path) -> None:
    (tmp_path / "dcdm_cli" / "low").mkdir(parents=True)
    texts = {"__init__": "", "low/__init__": "", "low/a": "def f():\n    from dcdm_cli.low import b\n",
             "low/b": "from dcdm_cli.high import go\n", "high": "import dcdm_cli.low.a\n"}  # fmt: skip
    for name, text in texts.items():
        (tmp_path / "dcdm_cli" / f"{name}.py").write_text(text)
    (tmp_path / "pyproject.toml").write_text(
        '[[tool.importlinter.contracts]]\nlayers = ["dcdm_cli.high", "dcdm_cli.low"]\n[tool.importlinter]\n'
    )
    graph = import_graph(tmp_path)
    assert circles(graph) == [["dcdm_cli.high", "dcdm_cli.low.a", "dcdm_cli.low.b"]]
    assert upward(tmp_path, graph) == [("dcdm_cli.low.b", "dcdm_cli.high")]


def test_only_commands_and_the_app_know_typer() -> None:
    know = {name for name, path in modules(ROOT).items() for module, _ in imported(parsed(path)) if _top(module)}
    assert know and {name for name in know if not name.startswith("dcdm_cli.commands.")} == {"dcdm_cli.cli"}


def _top(module: str) -> bool:
    return module.partition(".")[0] in ("typer", "click")


def test_stages_return_what_commands_print() -> None:
    """Notes on the way are said where they arise; the result's one printer is the command."""
    results = {"console.result", "console.text"}
    stages = {name: path for name, path in modules(ROOT).items() if name.startswith("dcdm_cli.stages")}
    calls = {name: {ast.unparse(n.func) for n in ast.walk(parsed(path)) if isinstance(n, ast.Call)}
             for name, path in stages.items()}  # fmt: skip
    assert {name for name, called in calls.items() if any(word.endswith(tuple(results)) for word in called)} == set()


def test_commands_are_one_thin_file_per_verb() -> None:
    files = {path.stem: len(path.read_text("utf-8").splitlines()) for path in (ROOT / "dcdm_cli" / "commands").iterdir()
             if path.suffix == ".py"}  # fmt: skip
    assert set(files) - HELPERS == set(COMMANDS)
    assert {name: lines for name, lines in files.items() if lines > 120} == {}
    assert sum(files.values()) <= 1_100


def test_the_document_says_what_is_there() -> None:
    text = DOCUMENT.read_text("utf-8")
    assert rendered(ROOT, text, ("rooms",)) == text, "run python benchmarks/architecture.py"


def test_the_page_of_commands_says_what_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"DCDM_RUN": "elsewhere", "DCDM_PRESET": "sd15", "DCDM_GENERATE__STEPS": "7"}.items():
        monkeypatch.setenv(name, value)  # decides when a command is run, and nothing on the page
    made = commands_page.page(ROOT)
    assert (ROOT / commands_page.DOCUMENT).read_text("utf-8") == made, "run python benchmarks/commands_page.py"
    assert all(f"## `dcdm {command}`\n" in made for command in [*COMMANDS, "config show"])
    assert all(f"| {code.value} | " in made for code in ExitCode)


def test_every_file_and_room_the_document_names_is_there() -> None:
    text = DOCUMENT.read_text("utf-8").partition("## What it measures")[0]
    named = {word for word in text.replace("(", " ").replace(")", " ").split() if word.strip("`,.;").endswith(".py")}
    for word in named:
        path = word.strip("`,.;:")
        assert (ROOT / path).is_file() or (ROOT / "dcdm_cli" / path).is_file(), path
    for room in layers(ROOT):
        assert room.removeprefix("dcdm_cli.") in DOCUMENT.read_text("utf-8")


def test_public_names_are_those_of_the_doors() -> None:
    names = public_names(ROOT)
    assert [name for name in names if "." not in name] == dcdm_cli.__all__
    assert {"Run.score", "Run.generate", "Run.evaluate"} <= set(names)


def test_one_word_is_one_thing() -> None:
    """No two classes or types have the same name, one for another module's reader to take for the other; the exporter,
    which knows nothing of the rest, may define the same thing once more."""
    defined: dict[str, set[str]] = {}
    for path in [*modules(ROOT).values(), *(ROOT / "export" / "dcdm_export").glob("*.py")]:
        for node in parsed(path).body:
            if isinstance(node, ast.ClassDef):
                defined.setdefault(node.name, set()).add(str(path))
            elif (
                isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and _is_type(node.targets[0].id)
            ):
                defined.setdefault(node.targets[0].id, set()).add(ast.unparse(node.value))
    assert {name: sorted(found) for name, found in defined.items() if len(found) > 1} == {}


def _is_type(name: str) -> bool:
    return name[0].isupper() and not name.isupper()
