"""Rules that no linter checks for us."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

import dcdm_cli
from dcdm_cli import errors

ROOT = Path(dcdm_cli.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
HEAVY = {
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "timm",
    "accelerate",
    "sklearn",
    "scipy",
    "datasets",
    "matplotlib",
}


def name(module: Path) -> str:
    return module.relative_to(ROOT).as_posix()


def imports(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("module", MODULES, ids=name)
def test_every_module_says_what_it_is_for(module: Path) -> None:
    text = module.read_text("utf-8")
    assert name(module).endswith("__init__.py") or ast.get_docstring(ast.parse(text)), "no docstring"
    assert len(text.splitlines()) <= 500


@pytest.mark.parametrize("module", MODULES, ids=name)
def test_no_pickles_and_no_click(module: Path) -> None:
    text = module.read_text("utf-8")
    assert not imports(ast.parse(text)) & {"pickle", "click", "joblib", "dill", "cloudpickle"}
    assert not re.search(r"torch\.(load|save)\(|allow_pickle=True|(?<![\w.])eval\(|(?<![\w.])exec\(", text)


ERRORS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.DcdmError)}


@pytest.mark.parametrize("module", MODULES, ids=name)
def test_every_error_has_a_remedy(module: Path) -> None:
    raised = [
        node
        for node in ast.walk(ast.parse(module.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS
    ]
    without = [node.lineno for node in raised if len(node.args) < 2 or ast.unparse(node.args[1]) in ("''", '""')]
    assert without == []


def test_the_export_package_knows_nothing_of_dcdm_cli() -> None:
    for module in (ROOT.parent / "export").rglob("*.py"):
        assert "dcdm_cli" not in imports(ast.parse(module.read_text("utf-8")))


def test_what_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text("utf-8"))["project"]
    extras = [line for name, lines in project["optional-dependencies"].items() if name != "dev" for line in lines]
    lines = [*project["dependencies"], *extras]
    declared = {re.split(r"[<>=;\[ ]", line)[0].lower().replace("-", "_") for line in lines}
    modules = {"pil": "pillow", "sklearn": "scikit_learn", "dcdm_cli": "", "dcdm_export": "", "__future__": ""}
    import sys

    used = set().union(*(imports(ast.parse(m.read_text("utf-8"))) for m in MODULES)) - set(sys.stdlib_module_names)
    needed = {modules.get(package.lower(), package.lower()) for package in used} - {""}
    assert needed - declared - {"onnxruntime", "pynvml"} == set()  # pynvml: the extra "energy"
