"""The gate lets a true graph through, stops a false one, and does not pretend to have checked what it cannot run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from dcdm_export.onnx_graph import OPSETS, Graph, export_graph
from dcdm_export.parity import CPU, CUDA, TOLERANCE, Case, ParityError, _providers, compare, expected_outputs
from dcdm_export.signature import NetworkFile, Precision

from ..fake_cuda import pretend_gpus
from .toys import Toy, toy_inputs

CASES = [Case(f"batch {batch}", toy_inputs(batch)) for batch in (1, 2, 5)]


def export(folder: Path, module: nn.Module, precision: Precision = "fp32") -> NetworkFile:
    return export_graph(Graph("toy", module, toy_inputs(), "prediction", precision, OPSETS[precision]), folder)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NetworkFile]:
    folder = tmp_path_factory.mktemp("toy")
    return folder, export(folder, Toy())


@pytest.fixture(scope="module")
def expected() -> list[np.ndarray]:
    return expected_outputs(Toy(), CASES)


def test_a_true_graph_passes_with_its_figures(exported: tuple[Path, NetworkFile], expected: list[np.ndarray]) -> None:
    parity = compare("toy", *exported, CASES, expected)
    assert (parity.status, parity.provider) == ("passed", "CPUExecutionProvider")
    assert [(error.name, error.batch) for error in parity.cases] == [("batch 1", 1), ("batch 2", 2), ("batch 5", 5)]
    assert parity.max_abs is not None and 0 <= parity.max_abs < 1e-5
    by_hand = max(float(np.abs(one).max()) for one in expected)
    last = parity.cases[-1]
    assert last.max_abs is not None and last.relative == pytest.approx(last.max_abs / by_hand)
    assert last.mean_abs is not None and last.mean_abs <= last.max_abs


def test_other_weights_are_found_out(exported: tuple[Path, NetworkFile], expected: list[np.ndarray]) -> None:
    moved = [one + 2 * TOLERANCE["fp32"] for one in expected]
    with pytest.raises(ParityError, match=r"toy in fp32 differs from PyTorch by 0.0002 \(batch . ?\)?") as caught:
        compare("toy", *exported, CASES, moved)
    assert caught.value.parity.status == "failed" and len(caught.value.parity.cases) == 3


def test_one_wrong_value_in_one_case_is_enough(exported: tuple[Path, NetworkFile], expected: list[np.ndarray]) -> None:
    spoilt = [one.copy() for one in expected]
    spoilt[1][0, 2] += 0.5
    with pytest.raises(ParityError, match=r"by 0.5 \(batch 2\)"):
        compare("toy", *exported, CASES, spoilt)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_never_passes(exported: tuple[Path, NetworkFile], expected: list[np.ndarray], value: float) -> None:
    spoilt = [one.copy() for one in expected]
    spoilt[2][4, 0] = value
    with pytest.raises(ParityError, match=r"NaN or infinity \(batch 5\)") as caught:
        compare("toy", *exported, CASES, spoilt)
    assert caught.value.parity.max_abs is None


def test_half_precision_is_measured_against_float32(tmp_path: Path, expected: list[np.ndarray]) -> None:
    parity = compare("toy", tmp_path, export(tmp_path, Toy(torch.float16), "fp16"), CASES, expected)
    assert parity.status == "passed"
    assert parity.max_abs is not None and 1e-5 < parity.max_abs < 1e-2  # rounded weights show
    assert all(error.relative is not None and error.relative <= TOLERANCE["fp16"] for error in parity.cases)


def test_what_no_provider_runs_is_not_claimed(tmp_path: Path, expected: list[np.ndarray]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine can run bfloat16 graphs")
    parity = compare("toy", tmp_path, export(tmp_path, Toy(torch.bfloat16), "bf16"), CASES, expected)
    assert (parity.status, parity.cases, parity.max_abs) == ("not checked", (), None)
    assert parity.reason.startswith("not checked on this machine:") and "implementation" in parity.reason


def test_another_shape_is_an_error(exported: tuple[Path, NetworkFile], expected: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match=r"batch 1: the graph gives \(1, 4\), the module \(1, 3\)"):
        compare("toy", *exported, CASES, [one[:, :3] for one in expected])


def test_no_cases_are_no_proof(exported: tuple[Path, NetworkFile]) -> None:
    with pytest.raises(ValueError, match="nothing to compare toy by"):
        compare("toy", *exported, [], [])


def test_the_reference_on_a_device_is_whole_float32_and_comes_back(expected: list[np.ndarray]) -> None:
    seen: list[tuple[bool, bool]] = []

    class Watching(Toy):
        def forward(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
            return super().forward(latents, timestep)

    module, before = Watching(), torch.backends.cudnn.allow_tf32
    found = expected_outputs(module, CASES, "cpu:0")  # takes the path of a GPU
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    assert set(seen) == {(False, False)} and torch.backends.cudnn.allow_tf32 == before
    assert next(module.parameters()).device == torch.device("cpu")


def test_a_graph_is_checked_on_the_gpu_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.preload_dlls", lambda: None)
    assert _providers("cuda:1") == [CPU] or CUDA in onnxruntime.get_available_providers()
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [CUDA, CPU])
    pretend_gpus(monkeypatch, 2).current = 1
    for device, number in {"cuda:0": 0, "cuda:1": 1, "cuda": 1}.items():
        (first, options), second = _providers(device)
        assert (first, second) == (CUDA, CPU) and options == {"device_id": number, "use_tf32": 0}
    assert _providers("cpu") == [CPU]
