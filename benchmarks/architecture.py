"""docs/architecture.md: rooms, their files and what the house measures, from the sources themselves.

    python benchmarks/architecture.py            # re-makes the blocks of docs/architecture.md
    python benchmarks/architecture.py --measure ROOT   # figures of another checkout, as one JSON line

Blocks stand between `<!-- house:NAME -->` and `<!-- /house -->`; a test re-makes that of rooms and compares. Figures
are as of the last time that the script was run: most of them change with every line.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from dcdm_cli.files import write_text

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = Path("docs") / "architecture.md"
BEFORE = Path("benchmarks") / "results" / "house_before.json"
BLOCK = re.compile(r"(<!-- house:(\w+) -->\n).*?(<!-- /house -->)", re.DOTALL)
# The package's lazy door says to type checkers what it hands out; it imports nothing.
DOOR = "dcdm_cli"
SESSION = ("Session",)
FIGURES = {
    "command_lines": "lines in `commands/`",
    "command_files": "files in `commands/`",
    "longest_command": "longest of them, lines",
    "circles": "circles of imports, those inside functions counted",
    "upward": "imports of a higher room",
    "files_with_session": "files with a function that takes the session",
    "below_stages_with_session": "of them below `stages/` and `commands/`, `run/` apart",
    "files_from_experiment": "files that an experiment can enter, of all",
    "files_with_steps": "files that read a number of steps",
    "files_with_plan_row": "files that a row of the plan passes through",
    "public_members": "public names: what `import dcdm_cli` offers, and the verbs of `Run`",
    "public_lines": "lines of the doors for Python",
    "python_files": "Python files in the wheel",
    "python_lines": "lines of Python in the wheel",
    "longest_file": "longest file, lines",
}

Graph = Mapping[str, set[str]]


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file of every module of the package."""
    found = sorted((root / "dcdm_cli").rglob("*.py"))
    return {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in found}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(module, name taken from it or "") of all imports, those inside functions and for type checkers included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node.module, alias.name) for alias in node.names)


@cache
def import_graph(root: Path) -> dict[str, set[str]]:
    """Module -> modules of the package that it imports anywhere; without the door's."""
    known = modules(root)
    graph: dict[str, set[str]] = {name: set() for name in known}
    for name, path in known.items():
        if name == DOOR:
            continue
        for module, taken in imported(parsed(path)):
            full = f"{module}.{taken}"
            graph[name] |= {full if full in known else module} & known.keys()
        graph[name].discard(name)
    return graph


def circles(graph: Graph) -> list[list[str]]:
    """Sets of modules that reach each other, each in order of its names."""
    reach = {name: reached(graph, name) for name in graph}
    found = {tuple(sorted(other for other in reach[name] if name in reach[other])) for name in graph}
    return sorted(list(circle) for circle in found if len(circle) > 1)


def reached(graph: Graph, start: str) -> set[str]:
    """What can be come to from `start`, itself included when a way leads back to it."""
    seen: set[str] = set()
    left = list(graph[start])
    while left:
        name = left.pop()
        if name not in seen:
            seen.add(name)
            left += graph[name]
    return seen


def layers(root: Path) -> dict[str, int]:
    """Room -> its height, from the contract that import-linter enforces."""
    contract = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"][0]
    rows = [re.split(r"\s*\|\s*", row) for row in contract["layers"]]
    return {room: len(rows) - number for number, row in enumerate(rows) for room in row}


def upward(root: Path, graph: Graph) -> list[tuple[str, str]]:
    """Imports of a room above, or of a neighbour that a room must not know."""
    heights = layers(root)
    rooms = {name: next((room for room in heights if f"{name}.".startswith(f"{room}.")), "") for name in graph}
    return [
        (name, other)
        for name, others in graph.items()
        for other in sorted(others)
        if rooms[name] and rooms[other] and rooms[name] != rooms[other]
        if heights[rooms[other]] >= heights[rooms[name]]
    ]


def takes_session(tree: ast.AST) -> bool:
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    parameters = (arg for function in functions for arg in (*function.args.args, *function.args.kwonlyargs))
    return any(arg.annotation is not None and ast.unparse(arg.annotation) in SESSION for arg in parameters)


def measure(root: Path) -> dict[str, Any]:
    """The figures of a checkout of this project, of today or of before."""
    known, graph = modules(root), import_graph(root)
    lines = {name: len(path.read_text("utf-8").splitlines()) for name, path in known.items()}
    commands = {name: count for name, count in lines.items() if name.startswith("dcdm_cli.commands")}
    session = [name for name, path in known.items() if takes_session(parsed(path))]
    rooms = ("dcdm_cli.commands.", "dcdm_cli.stages.", "dcdm_cli.api.", "dcdm_cli.run.", "dcdm_cli.cli")
    start = next(name for name in known if name.endswith((".commands.experiment", ".stages.experiments.run")))
    doors = [name for name in known if name == DOOR or name.startswith("dcdm_cli.api")]
    return {
        "command_lines": sum(commands.values()),
        "command_files": len(commands) - 1,  # without __init__
        "longest_command": max(commands.values()),
        "circles": len(circles(graph)),
        "upward": len(upward(root, graph)),
        "files_with_session": len(session),
        "below_stages_with_session": sum(not name.startswith(rooms) for name in session),
        "files_from_experiment": f"{len(reached(graph, start))} of {len(known)}",
        "files_with_steps": sum(_reads(path, "steps") for path in known.values()),
        "files_with_plan_row": sum(_names(path, "PlanRow") for path in known.values()),
        "public_members": len(public_names(root)),
        "public_lines": sum(lines[name] for name in doors),
        "python_files": len(known),
        "python_lines": sum(lines.values()),
        "longest_file": max(lines.values()),
    }


def public_names(root: Path) -> list[str]:
    """The package's `__all__`, and the public methods of `Run`."""
    offered = [
        name
        for node in parsed(root / "dcdm_cli" / "__init__.py").body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        for name in ast.literal_eval(node.value)
    ]
    door = root / "dcdm_cli" / "api" / "run.py"
    body = parsed(door).body if door.is_file() else []
    run = next((node for node in body if isinstance(node, ast.ClassDef) and node.name == "Run"), None)
    methods = [node.name for node in run.body if isinstance(node, ast.FunctionDef)] if run else []
    return [*(offered or ["__version__"]), *(f"Run.{name}" for name in methods if not name.startswith("_"))]


def _reads(path: Path, attribute: str) -> bool:
    return any(isinstance(node, ast.Attribute) and node.attr == attribute for node in ast.walk(parsed(path)))


def _names(path: Path, word: str) -> bool:
    tree = parsed(path)
    used = any(isinstance(node, ast.Name) and node.id == word for node in ast.walk(tree))
    return used or any(taken == word for _, taken in imported(tree))


def rooms_table(root: Path) -> str:
    """Every file with the first sentence of what it says it is for, room by room, the highest first; at the end the
    files that are a room of their own."""
    known = modules(root)
    rooms = [room for room in layers(root) if _is_folder(known, room)]
    inside = {room: {n: p for n, p in known.items() if f"{n}.".startswith(f"{room}.")} for room in rooms}
    parts = [part for room in rooms for part in _room(room, inside[room])]
    alone = {name: path for name, path in known.items() if not any(name in files for files in inside.values())}
    parts += ["**Outside of rooms**", "", "| file | what it is for |", "|---|---|"]
    return "\n".join([*parts, *(f"| `{path.name}` | {summary_of(path)} |" for path in alone.values()), ""])


def _is_folder(known: Mapping[str, Path], room: str) -> bool:
    return room in known and known[room].name == "__init__.py"


def _room(room: str, files: Mapping[str, Path]) -> list[str]:
    title = f"**`{room.removeprefix('dcdm_cli.')}`**: {summary_of(files[room])}"
    rows = []
    for name, path in files.items():
        if name != room:
            shown = name.removeprefix(f"{room}.").replace(".", "/") + ("/" if path.name == "__init__.py" else ".py")
            rows.append(f"| `{shown}` | {summary_of(path)} |")
    return [title, "", "| file | what it is for |", "|---|---|", *rows, ""]


def summary_of(path: Path) -> str:
    """The first sentence of the module's docstring, on one line, as a table's cell."""
    text = " ".join((ast.get_docstring(parsed(path)) or "").partition("\n\n")[0].split())
    return re.split(r"(?<=[a-z`)\]])\. (?=[A-Z])", text)[0].replace("|", "\\|")


def measured_table(root: Path) -> str:
    before, now = json.loads((root / BEFORE).read_text("utf-8")), measure(root)
    rows = [f"| {title} | {_cell(before['figures'][key])} | {_cell(now[key])} |" for key, title in FIGURES.items()]
    return "\n".join([f"| | {before['title']} | after |", "|---|---|---|", *rows, ""])


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def rendered(root: Path, text: str, names: Sequence[str] = ("rooms", "measured")) -> str:
    """The document with its blocks of these names re-made. Raises KeyError for a block that nobody makes."""
    made = {"rooms": rooms_table, "measured": measured_table}

    def block(found: re.Match[str]) -> str:
        return f"{found[1]}\n{made[found[2]](root)}\n{found[3]}" if found[2] in names else found[0]

    return BLOCK.sub(block, text)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", type=Path, metavar="ROOT")
    measured = parser.parse_args(words).measure
    if measured is not None:
        print(json.dumps(measure(measured)))
        return 0
    file = ROOT / DOCUMENT
    text = file.read_text("utf-8")
    made = rendered(ROOT, text)
    if made != text:
        write_text(file, made)
    print(json.dumps({"document": DOCUMENT.as_posix(), "changed": made != text}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
