"""The GPU scripts: what they would run, and the whole of them on a toy architecture and a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gpu_all
import gpu_engines
import gpu_kernels
import gpu_paths
import gpu_two
import pytest
from bench_sd15 import GOALS, JUDGED, SHIPPED
from common import gpu_or_sketch

from dcdm_cli.run.presets import PRESETS

HERE = Path(gpu_all.__file__).parent
ON_GPU = gpu_paths.Conditions("cuda", "fp16", 32, 20, False)
SKETCH = gpu_paths.Conditions("cpu", "fp32", 2, 2, True)
FITS = ("columns", "rows", "title")


def ran(script: str, out: Path, *words: str) -> dict[str, Any]:
    """The result that a sketch of the script leaves."""
    environment = {**os.environ, "BENCHMARK_RESULTS": str(out), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(HERE / f"{script}.py"), *words, "--sketch"],
        env=environment, cwd=out, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = out.glob(f"{script}*_sketch.json")
    made = json.loads(file.read_text("utf-8"))
    check_document(made)
    return made


def check_document(made: dict[str, Any]) -> None:
    """`documents.py` can show it."""
    assert made["title"] and made["sentences"] and all(map(str, made["sentences"]))
    for table in made["tables"]:
        assert tuple(sorted(table)) == FITS and table["rows"]
        assert all(len(row) == len(table["columns"]) for row in table["rows"])


@pytest.mark.parametrize("place", [ON_GPU, SKETCH])
def test_paths_differ_by_one_lever_and_end_with_the_preset(place: gpu_paths.Conditions) -> None:
    routes = gpu_paths.routes(place)
    assert len({route.name for route in routes}) == len(routes)
    assert not (routes[0].compile or routes[0].half_vae or routes[0].scored) and routes[0].alike
    for route in routes:
        scales = (route.settings.text_guidance, route.settings.difficulty_guidance)
        assert {1: scales == (1, 1), 2: scales[0] == scales[1] != 1, 3: scales[0] != scales[1]}[route.calls]
        assert route.alike == (route.calls == 2)  # one call and three make other images than two
    (shipped,) = [route for route in routes if route.scored]
    assert shipped.name == gpu_paths.SHIPPED_PATH
    for name, value in PRESETS["sd15"].get("generate", {}).items():
        assert getattr(shipped.settings, name) == value or (name, place.sketch) == ("steps", True)


def row(path: str, calls: int, **changed: Any) -> dict[str, Any]:
    alike = 1.0 if calls == 2 else None
    shares = {"of the ceiling, end to end": 0.3, "of the ceiling, network": 0.4 if calls == 2 else None}
    made = {"path": path, "batch": JUDGED, "steps": 20, "calls": calls, "images/s": 7.0, "times diffusers eager": 1.5}
    return {**made, **shares, "seconds to open": 1.0, "values alike": alike, **changed}


def test_goals_are_held_against_the_paths_that_they_are_of() -> None:
    rows = [row("a", 2), row("b", 2, **{"times diffusers eager": 2.1, "of the ceiling, network": 0.55})]
    assert set(gpu_paths.summarise(rows)) == {"times diffusers eager", f"share of the ceiling at batch {JUDGED}"}
    rows += [row("one call", 1, **{"times diffusers eager": 3.0}), row(gpu_paths.SHIPPED_PATH, 3, batch=8)]
    against = gpu_paths.Yardstick(3.0, 1e12, 10**9)
    made = gpu_paths.document(rows, ON_GPU, against, 5)
    check_document(made)
    assert {name: entry["met"] for name, entry in made["headline"].items()} == dict(
        zip(GOALS, (True, True, False, False), strict=True)
    )
    assert made["headline"][SHIPPED]["reached"] == 7.0 and not made["complete"]


def test_pieces_are_scripts_of_this_folder_with_names_of_their_own(tmp_path: Path) -> None:
    for sketch in (False, True):
        pieces = gpu_all.pieces(tmp_path, tmp_path, sketch=sketch)
        assert len({piece.name for piece in pieces}) == len(pieces)
        for piece in pieces:
            script = piece.words[0]
            assert script == "-m" or (HERE / script).is_file()
            assert ("--sketch" in piece.words) == (sketch and script != "-m" and script != "cifar10_run.py")
    assert "cifar10" not in [piece.name for piece in gpu_all.pieces(None, tmp_path, sketch=False)]
    (engines,) = [piece for piece in pieces if piece.name == "tensorrt"]
    assert engines.needs == ("tensorrt",)


def test_a_piece_that_lacks_a_package_or_time_is_left_out(tmp_path: Path) -> None:
    piece = gpu_all.Piece("x", ("gpu_two.py",), 1, ("no_such_package",))
    assert gpu_all.attempt(piece, tmp_path, 100).said == "no_such_package is not installed"
    assert gpu_all.attempt(gpu_all.Piece("x", ("gpu_two.py",), 1), tmp_path, 1).said == "no time left"
    assert gpu_all.wanted(piece, "") and gpu_all.wanted(piece, "y, x") and not gpu_all.wanted(piece, "y")


@pytest.mark.parametrize("script", [gpu_paths, gpu_kernels, gpu_two, gpu_engines])
def test_without_a_gpu_nothing_is_measured_and_a_sketch_has_its_own_name(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    words = ["onnxruntime"] if script is gpu_engines else []
    monkeypatch.setattr(sys, "argv", ["script", *words])
    script.main()
    assert json.loads(capsys.readouterr().out)["measured"] is False
    assert gpu_or_sketch("a", sketch=True) == "a_sketch"
    monkeypatch.setattr(sys, "argv", ["script", *words, "--sketched"])
    with pytest.raises(SystemExit):
        script.main()


def test_kernels_are_sorted_into_classes() -> None:
    names = {
        "flash_fwd_kernel": "attention", "cudnn::xmma_fprop_implicit_gemm": "convolution", "ampere_fp16_gemm": "linear",
        "nchwToNhwcKernel": "layout and copies", "vectorized_elementwise_kernel": "element-wise", "spin": "other",
    }  # fmt: skip
    assert {name: gpu_kernels.class_of(name) for name in names} == names
    made = gpu_kernels.by_class({"flash_a": 3.0, "flash_b": 1.0, "spin": 4.0})
    assert [entry["ms"] for entry in made["classes"]] == [4.0, 4.0] and made["longest"][0]["kernel"] == "spin"
    check_document(gpu_kernels.document({"batch": 2, "TFLOP/s": 1.0, **made}, "fp16, cuda"))


def test_what_two_processes_did_can_be_shown() -> None:
    found = {"images": 400, "seconds": {"one process": 20.0, "cuda:0,cuda:0": 10.0}, "largest difference of 255": 1}
    made = gpu_two.document(found)
    check_document(made)
    assert made["tables"][0]["rows"][1] == ["cuda:0,cuda:0", 10.0, 40.0]


@pytest.mark.slow
def test_paths_on_a_toy(tmp_path: Path) -> None:
    made = ran("gpu_paths", tmp_path, "--minutes", "14")
    assert made["complete"] and len(made["table"]) == 4 and made["against"]["ceiling"] > 0
    assert all(entry["times diffusers eager"] > 0 for entry in made["table"])


@pytest.mark.slow
def test_two_processes_on_a_toy(tmp_path: Path) -> None:
    made = ran("gpu_two", tmp_path)
    assert set(made["seconds"]) == {"one process", "cpu,cpu"} and made["largest difference of 255"] <= gpu_two.ALIKE


@pytest.mark.slow
def test_kernels_on_a_toy(tmp_path: Path) -> None:
    assert ran("gpu_kernels", tmp_path)["longest"]


@pytest.mark.slow
def test_exported_graphs_on_a_toy(tmp_path: Path) -> None:
    made = ran("gpu_engines", tmp_path, "onnxruntime")
    assert [entry["backend"] for entry in made["table"]] == ["torch", "onnxruntime"]
    assert made["table"][1]["values alike"] >= gpu_paths.ALIKE
