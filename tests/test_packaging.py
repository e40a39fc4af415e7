"""What is installed: the wheel's contents, a copy that works without the clone, and the gate's own files."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import dcdm_cli

CLONE = Path(dcdm_cli.__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the backend itself: no network, no environment of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    code = "import sys, hatchling.build as build; print(build.build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False, cwd=CLONE
    )
    if "No module named 'hatchling'" in done.stderr:
        pytest.skip("the build backend is not installed; .ci/run builds the wheel")
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_two_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"dcdm_cli", "dcdm_export"}
    assert {"dcdm_cli/model/tiny_base/model_index.json", "dcdm_cli/reports/report.html.j2", "dcdm_cli/py.typed"} <= set(
        names
    )
    base = sum(info.file_size for info in zipfile.ZipFile(wheel).infolist() if "tiny_base" in info.filename)
    assert base < 13 * 2**20
    eyes = {
        Path(info.filename).name: info.file_size
        for info in zipfile.ZipFile(wheel).infolist()
        if "lite0" in info.filename
    }
    assert set(eyes) == {"config.json", "model.safetensors", "origin.json", "LICENSE.txt"}
    assert sum(eyes.values()) < 10 * 2**20
    assert not [name for name in names if name.endswith((".pt", ".pth", ".bin", ".pkl", ".part"))]


def test_an_installed_copy_works_away_from_the_clone(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    clean = {key: value for key, value in os.environ.items() if not key.startswith("DCDM_")}
    environment = {**clean, "PYTHONPATH": str(tmp_path / "site")}

    def installed(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "dcdm_cli", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)

    code = "import dcdm_cli; print(dcdm_cli.__file__)"
    place = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
    )
    assert place.stdout.startswith(str(tmp_path / "site"))
    assert "Commands:" in installed("--help").stdout
    assert installed("--version").stdout == f"{dcdm_cli.__version__}\n"
    assert installed("demo", "--dry-run").returncode == 0


def test_the_project_declares_what_the_readers_of_the_issue_expect() -> None:
    document = tomllib.loads((CLONE / "pyproject.toml").read_text())
    project = document["project"]
    assert project["scripts"] == {"dcdm": "dcdm_cli.__main__:main"} and project["requires-python"] == ">=3.11"
    core = " ".join(project["dependencies"])
    for name in [
        "typer",
        "rich",
        "pydantic",
        "pydantic-settings",
        "tomlkit",
        "numpy",
        "pillow",
        "pyarrow",
        "datasets",
        "torch",
        "torchvision",
        "timm",
        "diffusers",
        "transformers",
        "peft",
        "accelerate",
        "safetensors",
        "scikit-learn",
        "scipy",
        "matplotlib",
        "jinja2",
        "onnx",
        "onnxscript",
        "onnxruntime",
    ]:
        assert f"{name}>=" in core or f"{name}-gpu>=" in core
    assert "tensorrt" not in core and "tensorrt" in project["optional-dependencies"]
    assert document["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["dcdm_cli", "export/dcdm_export"]


def test_the_gate_is_the_same_everywhere() -> None:
    workflow = yaml.safe_load((CLONE / ".github" / "workflows" / "ci.yml").read_text())
    *before, gate = [step["run"] for step in workflow["jobs"]["gate"]["steps"] if "run" in step]
    assert gate == "bash .ci/run"
    assert len(before) == 1 and "apt-get install --yes zsh fish" in before[0]  # shells that completion is asked of
    gate = (CLONE / ".ci" / "run").read_text()
    assert "make test" in gate and "--wheel" in gate and os.access(CLONE / ".ci" / "run", os.X_OK)
    makefile = (CLONE / "Makefile").read_text()
    hooks = yaml.safe_load((CLONE / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    for tool in ("ruff format", "ruff check", "basedpyright", "lint-imports"):
        assert f"$(BIN)/{tool}" in makefile and any(tool in hook["entry"] for hook in hooks)
    for target in ("demo", "test", "check", "bench"):
        assert f"\n{target}:" in makefile
