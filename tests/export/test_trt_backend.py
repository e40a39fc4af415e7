"""Engines of several batch sizes run a batch of any size, and only engines that are ours are loaded."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dcdm_cli.backends import trt_backend
from dcdm_cli.backends.trt_backend import (
    CALL_COST,
    TrtDenoiser,
    cuda_gpu,
    engine_opener,
    open_tensorrt,
    split_batch,
    tensorrt_problems,
)
from dcdm_cli.errors import CapabilityError, MismatchError
from dcdm_cli.generation.engine import _is_out_of_memory
from dcdm_export.engine_key import EngineError, EngineKey, EngineSettings, Gpu, engine_key, read_key, write_engine
from dcdm_export.finished import read_parity
from dcdm_export.folder import make_export
from dcdm_export.onnx_graph import Graph, export_graph
from dcdm_export.orders import EngineOrder, NetworkRequest, Order
from dcdm_export.parity import TOLERANCE, Case, ParityError
from dcdm_export.seal import is_sealed, seal
from dcdm_export.signature import DENOISER, VAE_DECODER, NetworkFile, Signature
from dcdm_export.trt_engine import BuildMemoryError, _make_log

from ..fake_cuda import pretend_gpus
from . import fake_tensorrt
from .test_signature import FACTS

GPU = Gpu("imitated", "9.0")


class ToyDenoiser(nn.Module):
    """The denoiser's signature with one layer; rows of shared calls use the first call's latents."""

    def __init__(self, calls: int = 1, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer, self.calls = nn.Conv2d(4, 4, 1), calls
        self.eval().requires_grad_(False)

    def forward(self, latents: Tensor, timestep: Tensor, text: Tensor, label: Tensor, difficulty: Tensor) -> Tensor:
        shared = self.layer(latents[: latents.shape[0] // self.calls]).repeat(self.calls, 1, 1, 1)
        condition = text.mean((1, 2)) + label + difficulty + timestep / 1000
        return shared + condition[:, None, None, None]


def inputs(images: int, calls: int = 1) -> tuple[Tensor, ...]:
    """All rows differ, but for latents and timestep of shared calls."""
    generator = torch.Generator().manual_seed(images)
    rows = images * calls
    latents = torch.randn(images, 4, 2, 2, generator=generator).repeat(calls, 1, 1, 1)
    timestep = torch.arange(images).repeat(calls)
    text = torch.randn(rows, 3, 5, generator=generator)
    return latents, timestep, text, torch.arange(rows), torch.linspace(-1, 1, rows)


def export(folder: Path, calls: int = 1) -> NetworkFile:
    named = zip(("latents", "timestep", "text", "label", "difficulty"), inputs(2, calls), strict=True)
    example = {name: value.float() if name == "timestep" else value for name, value in named}
    graph = Graph(DENOISER, ToyDenoiser(calls), example, "prediction", shared_calls=calls)
    return export_graph(graph, folder)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NetworkFile]:
    folder = tmp_path_factory.mktemp("plain")
    return folder, export(folder)


@pytest.fixture
def network(plain: tuple[Path, NetworkFile], tmp_path: Path) -> NetworkFile:
    """The toy's graph, copied to tmp_path."""
    shutil.copy(plain[0] / plain[1].file, tmp_path)
    return plain[1]


@pytest.fixture(scope="module", params=[1, 3])
def toy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NetworkFile]:
    folder = tmp_path_factory.mktemp("toy")
    return folder, export(folder, request.param)


def with_engines(folder: Path, network: NetworkFile, *batches: int, fixed: bool = True, gpu: Gpu = GPU) -> Signature:
    settings = EngineSettings(fixed=fixed)
    engines = []
    for batch in batches:
        key = engine_key(fake_tensorrt.__version__, gpu, network, batch, settings)
        lowest, _, highest = key.shapes["latents"]
        plan = fake_tensorrt.plan(folder / network.file, lowest[0], highest[0])
        engines.append(write_engine(folder, DENOISER, batch, key, plan))
    return Signature(FACTS, {DENOISER: network}, "0", {}, engines=tuple(engines))


def denoiser(folder: Path, signature: Signature, **changes: Any) -> TrtDenoiser:
    return TrtDenoiser(fake_tensorrt, GPU, folder, signature, "cpu", **changes)


@pytest.mark.parametrize("fixed", [True, False])
def test_any_batch_gives_what_the_module_gives(toy: tuple[Path, NetworkFile], fixed: bool) -> None:
    folder, network = toy
    made = denoiser(folder, with_engines(folder, network, 1, 4, fixed=fixed))
    module = ToyDenoiser(network.shared_calls)
    for images in (1, 2, 4, 7, 9, 3, 1):  # smaller ones after larger: old rows must not show
        given = inputs(images, network.shared_calls)
        torch.testing.assert_close(made(*given), module(*given), atol=1e-5, rtol=0)


def test_the_prediction_is_the_callers_own(toy: tuple[Path, NetworkFile]) -> None:
    folder, network = toy
    made = denoiser(folder, with_engines(folder, network, 4))
    first = made(*inputs(4, network.shared_calls))
    kept = first.clone()
    made(*inputs(3, network.shared_calls))
    assert torch.equal(first, kept)


def test_engines_are_loaded_when_they_are_needed(toy: tuple[Path, NetworkFile]) -> None:
    folder, network = toy
    made = denoiser(folder, with_engines(folder, network, 1, 16))
    made(*inputs(1, network.shared_calls))
    assert set(made._open) == {1}


@pytest.mark.parametrize(
    ("images", "plan"),
    [
        (1, ((1, 1),)),
        (8, ((8, 8),)),
        (7, ((8, 7),)),
        (9, ((8, 8), (1, 1))),
        (28, ((32, 28),)),
        (33, ((32, 32), (1, 1))),
        (64, ((32, 32), (32, 32))),
        (10, ((8, 8), (1, 1), (1, 1))),
    ],
)
def test_a_batch_is_split_the_cheapest_way(images: int, plan: tuple[tuple[int, int], ...]) -> None:
    assert sorted(split_batch(images, (1, 8, 32))) == sorted(plan)


def least(images: int, sizes: set[int]) -> int:
    """The cost of the cheapest calls, by trying how many there are of each size."""
    costs = [size + CALL_COST for size in sizes]
    most = -(-images // max(sizes)) * (max(sizes) + CALL_COST)
    reached = {0: 0}  # cost -> images that it can pay for
    for cost in range(1, most + 1):
        reached[cost] = max(reached[cost - c] + c - CALL_COST if cost >= c else 0 for c in [*costs])
        reached[cost] = max(reached[cost], reached[cost - 1])
        if reached[cost] >= images:
            return cost
    raise AssertionError


@given(st.integers(1, 90), st.sets(st.integers(1, 40), min_size=1, max_size=4))
def test_no_split_loses_or_doubles_an_image(images: int, sizes: set[int]) -> None:
    plan = split_batch(images, tuple(sorted(sizes)))
    assert sum(count for _, count in plan) == images
    assert all(0 < count <= size and size in sizes for size, count in plan)
    assert sum(size + CALL_COST for size, _ in plan) == least(images, sizes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda given: (*given[:2], given[2][:, :2], *given[3:]),
            r"text is \[2, 2, 5\]; the engines take \['batch', 3",
        ),
        (lambda given: (given[0][..., :1], *given[1:]), r"latents is \[2, 4, 2, 1\]"),
        (lambda given: (*given[:4], given[4][:1]), r"difficulty is \[1\]"),
        (lambda given: tuple(value[:0] for value in given), "latents is"),
    ],
)
def test_shapes_outside_the_profile_are_refused(network: NetworkFile, tmp_path: Path, change: Any, said: str) -> None:
    made = denoiser(tmp_path, with_engines(tmp_path, network, 4))
    with pytest.raises(MismatchError, match=said):
        made(*change(inputs(2)))


def test_engines_are_loaded_and_run_on_their_gpu(
    network: NetworkFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two, where = pretend_gpus(monkeypatch, 2), []

    class Engine:
        def __init__(self, *_: Any) -> None:
            where.append(("open", two.current))

        def run(self, rows: dict[str, Tensor], count: int) -> Tensor:
            where.append(("run", two.current))
            return rows["latents"].clone()

    def load(trt: Any, path: Path) -> None:
        where.append(("load", two.current))

    monkeypatch.setattr(trt_backend, "_Engine", Engine)
    monkeypatch.setattr(trt_backend, "load_engine", load)
    made = TrtDenoiser(fake_tensorrt, GPU, tmp_path, with_engines(tmp_path, network, 4), "cuda:1")
    made(*inputs(4))
    assert where == [("load", 1), ("open", 1), ("run", 1)] and two.current == 0


def little_memory(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """TensorRT gives no context for engines of more images."""
    make = fake_tensorrt.ICudaEngine.create_execution_context

    def limited(self: fake_tensorrt.ICudaEngine) -> fake_tensorrt.IExecutionContext | None:
        return make(self) if self._range[1] <= most else None

    monkeypatch.setattr(fake_tensorrt.ICudaEngine, "create_execution_context", limited)


def test_a_context_that_does_not_fit_counts_as_out_of_memory(
    network: NetworkFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    little_memory(monkeypatch, 4)
    made = denoiser(tmp_path, with_engines(tmp_path, network, 2, 4, 16))
    with pytest.raises(MemoryError, match="engine of batch 16: out of memory") as caught:
        made(*inputs(16))
    assert _is_out_of_memory(caught.value)  # generation halves the batch, and asks for memory back
    made.release()
    for images in (8, 16, 3):  # a smaller batch is not filled up to the engine that does not fit
        torch.testing.assert_close(made(*inputs(images)), ToyDenoiser()(*inputs(images)), atol=1e-5, rtol=0)


def test_the_smallest_engine_fails_again_and_again(
    network: NetworkFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    little_memory(monkeypatch, 1)
    made = denoiser(tmp_path, with_engines(tmp_path, network, 4))
    for _ in range(2):
        with pytest.raises(MemoryError):
            made(*inputs(1))


def an_order(
    build: Any, monkeypatch: pytest.MonkeyPatch, notes: list[str] | None = None, seed: int = 0, **changes: Any
) -> Order:
    """The toy with engines of 1 and 4 images. build: (graph's path, rows) -> an engine's content. seed: of weights."""
    monkeypatch.setattr(
        "dcdm_export.engines.build_engine", lambda trt, graph, shapes, *_, **__: build(graph, shapes["latents"][2][0])
    )

    def example(images: int) -> dict[str, Tensor]:
        named = zip(("latents", "timestep", "text", "label", "difficulty"), inputs(images), strict=True)
        return {name: value.float() if name == "timestep" else value for name, value in named}

    graph = Graph(DENOISER, ToyDenoiser(seed=seed), example(2), "prediction", key=f"toy {seed}")
    cases = [Case(f"batch {images}", example(images)) for images in (1, 5)]
    opener = engine_opener(fake_tensorrt, GPU, "cpu")
    batches, attended = {DENOISER: (1, 4), VAE_DECODER: (2,)}, frozenset({DENOISER})
    settings = EngineSettings(**changes)
    engines = EngineOrder(fake_tensorrt, GPU, batches, settings, open=opener, attended=attended)
    return Order(
        FACTS, [NetworkRequest(graph, cases)], {}, "0", engines, note=(notes if notes is not None else []).append
    )


def true_engine(graph: Path, rows: int) -> bytes:
    return fake_tensorrt.plan(graph, rows, rows)


def test_engines_pass_the_graphs_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order, target, work = an_order(true_engine, monkeypatch), tmp_path / "export", tmp_path / "work"
    signature = make_export(order, target, work)
    parity = read_parity(target)
    assert set(parity) == {DENOISER, *(engine.file for engine in signature.engines)} and len(parity) == 3
    entry = parity[signature.engines[1].file]
    assert entry["status"] == "passed" and entry["provider"] == f"TensorRT {fake_tensorrt.__version__} on {GPU}"
    assert [case["name"] for case in entry["cases"]] == ["batch 1", "batch 5"]
    assert entry["fused_attention"] == 1
    make_export(order, target, work)  # taken over with their figures
    assert read_parity(target) == parity


def test_an_engine_that_computes_something_else_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other.onnx"

    def wrong(graph: Path, rows: int) -> bytes:
        """From batch 4 on, an engine of a graph with a bias that is off."""
        model = onnx.load(graph)
        for tensor in model.graph.initializer:
            if tuple(tensor.dims) == (4,) and tensor.data_type == onnx.TensorProto.FLOAT:
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(4, 3.0, np.float32), tensor.name))
        onnx.save(model, other)
        return fake_tensorrt.plan(other if rows == 4 else graph, rows, rows)

    target, work = tmp_path / "export", tmp_path / "work"
    with pytest.raises(ParityError, match=r"denoiser\.b4\.engine in fp32 differs from PyTorch"):
        make_export(an_order(wrong, monkeypatch), target, work)
    assert not target.exists() and not list(work.glob("denoiser.b4*")) and list(work.glob("denoiser.b1.engine"))
    assert read_parity(work)["denoiser.b4.engine"]["status"] == "failed"
    assert len(make_export(an_order(true_engine, monkeypatch), target, work).engines) == 2


def test_a_tf32_engine_is_held_to_tf32s_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signature = make_export(an_order(true_engine, monkeypatch, tf32=True), tmp_path / "export", tmp_path / "work")
    assert read_parity(tmp_path / "export")[signature.engines[0].file]["tolerance"] == TOLERANCE["fp16"]


def test_an_engine_without_fused_attention_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    split = ("matmul", {"Name": "node_mha_to_out", "Metadata": "mha"}, {"Name": "softmax", "LayerType": "kgen"})
    built = {1: fake_tensorrt.FUSED, 4: split[:1] + split[2:]}
    order = an_order(lambda g, rows: fake_tensorrt.plan(g, rows, rows, layers=built[rows]), monkeypatch, notes)
    signature = make_export(order, tmp_path / "export", tmp_path / "work")
    counted = [read_parity(tmp_path / "export")[engine.file]["fused_attention"] for engine in signature.engines]
    assert counted == [1, 0]
    assert notes == [
        "denoiser.b4.engine has no fused attention layer, so it is slower than it could be; TensorRT fuses half "
        "precision only: --precision fp16"
    ]


@pytest.mark.parametrize("answer", ["", "no JSON", "{}", "[]"])
def test_an_inspector_that_cannot_be_read_stops_nothing(
    answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_tensorrt.EngineInspector, "get_engine_information", lambda self, format: answer)
    notes: list[str] = []
    signature = make_export(an_order(true_engine, monkeypatch, notes), tmp_path / "export", tmp_path / "work")
    counted = [read_parity(tmp_path / "export")[engine.file]["fused_attention"] for engine in signature.engines]
    assert counted == [None, None] and notes == []


def test_a_build_that_runs_out_of_memory_is_halved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []

    def little(graph: Path, rows: int) -> bytes:
        if rows > 2:
            raise BuildMemoryError("no room")
        return fake_tensorrt.plan(graph, rows, rows)

    target, work = tmp_path / "export", tmp_path / "work"
    signature = make_export(an_order(little, monkeypatch, notes), target, work)
    assert [engine.batch for engine in signature.engines] == [1, 2]
    assert notes == ["denoiser.b4.engine: out of memory; built for 2 images instead"]
    little_memory(monkeypatch, 1)  # built, but not to be run
    signature = make_export(an_order(true_engine, monkeypatch, notes), target, work, afresh=True)
    assert [engine.batch for engine in signature.engines] == [1] and not list(target.glob("denoiser.b4*"))
    little_memory(monkeypatch, 0)
    with pytest.raises(EngineError, match="a batch of one image is the smallest"):
        make_export(an_order(true_engine, monkeypatch), target, work, afresh=True)


@pytest.mark.parametrize(
    ("message", "memory"),
    [
        ("[defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)", True),
        ("Error Code 2: OutOfMemory (Requested size was 1073741824 bytes.)", True),
        ("Error Code 10: Could not find any implementation for node conv", False),
    ],
)
def test_a_lack_of_memory_is_told_from_other_failures(message: str, memory: bool) -> None:
    log = _make_log(fake_tensorrt)
    log.log(fake_tensorrt.ILogger.ERROR, message)
    log.log(fake_tensorrt.ILogger.ERROR, "Engine could not be created because build failed")
    assert log.out_of_memory is memory and log.last.startswith("Engine could not")


def test_an_engine_takes_the_weights_of_a_new_lora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, work, built, notes = tmp_path / "export", tmp_path / "work", list[int](), list[str]()

    def build(graph: Path, rows: int) -> bytes:
        built.append(rows)
        return fake_tensorrt.plan(graph, rows, rows, refit=True)

    make_export(an_order(build, monkeypatch, refit=True), target, work)
    assert built == [1, 4]
    for seed in (1, 2):  # what was refitted can be refitted again
        signature = make_export(an_order(build, monkeypatch, notes, seed=seed, refit=True), target, work)
        assert built == [1, 4] and len(signature.engines) == 2
        for engine in signature.engines:
            entry = read_parity(target)[engine.file]
            assert entry["status"] == "passed" and entry["refitted"] is True
            key = read_key(target, engine)
            assert key is not None and key.graph == signature.networks[DENOISER].hash and key.settings.refit
        made = denoiser(target, signature)(*inputs(5))
        torch.testing.assert_close(made, ToyDenoiser(seed=seed)(*inputs(5)), atol=1e-5, rtol=0)
    assert len(notes) == 4 and "took the new weights without a new build, and was compared" in notes[0]
    make_export(an_order(build, monkeypatch, seed=3), target, work)  # without the setting: built
    assert built == [1, 4, 1, 4]


@pytest.mark.parametrize("fault", ["refused", "wrong", "never meant to"])
def test_an_engine_that_cannot_take_new_weights_is_built(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, work, built, notes = tmp_path / "export", tmp_path / "work", list[int](), list[str]()

    def build(graph: Path, rows: int) -> bytes:
        built.append(rows)
        return fake_tensorrt.plan(graph, rows, rows, refit=fault != "never meant to")

    make_export(an_order(build, monkeypatch, refit=True), target, work)
    if fault == "refused":
        monkeypatch.setattr(fake_tensorrt, "_weights", lambda content: {str(hash(content)): (1,)})
    if fault == "wrong":  # says that it did, and did not
        monkeypatch.setattr(fake_tensorrt.Refitter, "refit_cuda_engine", lambda self: True)
    signature = make_export(an_order(build, monkeypatch, notes, seed=1, refit=True), target, work)
    words = {"refused": "has another shape", "wrong": "differs from PyTorch", "never meant to": "was not built to take"}
    assert built == [1, 4, 1, 4] and len(notes) == 2 and all(words[fault] in note for note in notes)
    assert not any(read_parity(target)[engine.file].get("refitted") for engine in signature.engines)
    made = denoiser(target, signature)(*inputs(5))
    torch.testing.assert_close(made, ToyDenoiser(seed=1)(*inputs(5)), atol=1e-5, rtol=0)


def test_engines_from_before_refitting_keep_their_key() -> None:
    old = {"fixed": True, "optimization_level": 3, "tf32": False}
    key = EngineKey("11.0", GPU, "graph", {}, EngineSettings())
    facts = {"tensorrt": "11.0", "gpu": dataclasses.asdict(GPU), "graph": "graph", "shapes": {}, "settings": old}
    assert key.hash == hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    assert dataclasses.replace(key, settings=EngineSettings(refit=True)).hash != key.hash


def refused(folder: Path, signature: Signature, **changes: Any) -> str:
    with pytest.raises(MismatchError) as caught, tensorrt_problems():
        denoiser(folder, signature, **changes)
    assert "dcdm export --target tensorrt" in caught.value.hint
    return caught.value.message


def test_engines_for_another_machine_are_refused(network: NetworkFile, tmp_path: Path) -> None:
    signature = with_engines(tmp_path, network, 2, gpu=Gpu("other", "8.9"))
    assert "was made for something else: GPU other (8.9), here imitated (9.0)" in refused(tmp_path, signature)
    assert "was made for something else" in refused(tmp_path, signature, trust=True)
    mine = with_engines(tmp_path, network, 2)
    key = mine.engines[0].key_file
    newer = dataclasses.replace(mine, networks={DENOISER: dataclasses.replace(network, sha256={network.file: "0"})})
    assert "graph" in refused(tmp_path, newer) and (tmp_path / key).is_file()


def test_of_several_engines_those_that_fit_are_used(network: NetworkFile, tmp_path: Path) -> None:
    mine = with_engines(tmp_path, network, 2)
    other = with_engines(tmp_path, network, 8, gpu=Gpu("other", "8.9"))
    both = dataclasses.replace(mine, engines=(*mine.engines, *other.engines))
    assert denoiser(tmp_path, both)(*inputs(5)).shape == (5, 4, 2, 2)


def test_an_engine_of_unknown_origin_needs_trust(network: NetworkFile, tmp_path: Path) -> None:
    signature = with_engines(tmp_path, network, 2)
    key = tmp_path / signature.engines[0].key_file
    document = json.loads(key.read_text())
    forged = document | {"made_for": document["made_for"] | {"tensorrt": "12.0"}}
    for content in ("", "{", "[1]", json.dumps(forged), json.dumps(document | {"sha256": "0"})):
        key.write_text(content)
        assert "is of unknown origin" in refused(tmp_path, signature)
        assert len(denoiser(tmp_path, signature, trust=True)(*inputs(2))) == 2
    key.unlink()
    assert "is of unknown origin" in refused(tmp_path, signature)
    os.mkfifo(key)  # to open it would wait for ever
    assert "is of unknown origin" in refused(tmp_path, signature)


def test_an_engine_that_somebody_else_built_needs_trust(
    network: NetworkFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A received folder fits together; what tells it apart is a secret that no folder carries."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "theirs"))
    signature = with_engines(tmp_path, network, 2)
    assert len(denoiser(tmp_path, signature)(*inputs(2))) == 2
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "mine"))
    assert "is not sealed by who starts this" in refused(tmp_path, signature)
    assert not (tmp_path / "mine").exists()  # loading makes no secret
    assert len(denoiser(tmp_path, signature, trust=True)(*inputs(2))) == 2


@pytest.mark.parametrize("by", ["", "0" * 64, "é", 5, None])
def test_no_other_seal_will_do(network: NetworkFile, tmp_path: Path, by: object) -> None:
    signature = with_engines(tmp_path, network, 2)
    key = tmp_path / signature.engines[0].key_file
    key.write_text(json.dumps(json.loads(key.read_text()) | {"seal": by}))
    assert "is of unknown origin" in refused(tmp_path, signature)


def test_the_secret_is_for_its_owner_alone_and_one_that_cannot_be_kept_seals_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert is_sealed("a", seal("a")) and seal("a") == seal("a") and not is_sealed("b", seal("a"))
    assert [(f.name, f.stat().st_mode & 0o777) for f in (tmp_path / "state/dcdm").iterdir()] == [("seal.key", 0o600)]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert seal("a") == "" and not is_sealed("a", "")


def test_a_changed_engine_is_not_even_given_to_tensorrt(
    network: NetworkFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signature = with_engines(tmp_path, network, 2)
    file = tmp_path / signature.engines[0].file
    file.write_bytes(file.read_bytes() + b" ")
    monkeypatch.setattr(fake_tensorrt, "Runtime", None)
    assert "its content has changed" in refused(tmp_path, signature)
    file.unlink()
    assert "is missing" in refused(tmp_path, signature)
    assert "holds no engine" in refused(tmp_path, dataclasses.replace(signature, engines=()))


def test_what_tensorrt_cannot_load_is_said(network: NetworkFile, tmp_path: Path) -> None:
    signature = with_engines(tmp_path, network, 2)
    (tmp_path / signature.engines[0].file).write_bytes(b"other")
    made = denoiser(tmp_path, signature, trust=True)
    with pytest.raises(MismatchError, match=r"cannot load .*denoiser.b2.engine: magic tag does not match"):
        made(*inputs(2))


def test_a_trusted_engine_of_another_network_is_refused_before_it_gets_an_address(
    network: NetworkFile, tmp_path: Path
) -> None:
    signature = with_engines(tmp_path, network, 2)
    engine = tmp_path / signature.engines[0].file
    engine.write_bytes(fake_tensorrt.plan(tmp_path / network.file, 16, 16))
    with pytest.raises(MismatchError, match=r"takes latents up to \(16, 4, 2, 2\)"):
        denoiser(tmp_path, signature, trust=True)(*inputs(2))
    export_graph(Graph("other", nn.Conv2d(4, 4, 1).eval(), {"latents": inputs(2)[0]}, "noise"), tmp_path)
    engine.write_bytes(fake_tensorrt.plan(tmp_path / "other.onnx", 2, 2))
    with pytest.raises(MismatchError, match=r"the engine has inputs and outputs .*noise"):
        denoiser(tmp_path, signature, trust=True)(*inputs(2))


def test_without_gpu_or_tensorrt_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CapabilityError, match="there is none here"):
        cuda_gpu()
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    with pytest.raises(CapabilityError, match="TensorRT cannot be imported") as caught:
        open_tensorrt(tmp_path, Signature(FACTS, {}, "0", {}), "cuda")
    assert "dcdm-cli[tensorrt]" in caught.value.hint


def test_an_old_tensorrt_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", fake_tensorrt)
    monkeypatch.setattr(fake_tensorrt, "__version__", "10.11.0.33")
    with pytest.raises(CapabilityError, match=r"TensorRT 10.11.0.33 is too old: 10.12 or later"):
        open_tensorrt(tmp_path, Signature(FACTS, {}, "0", {}), "cuda")


def test_engine_errors_reach_the_user_as_ours() -> None:
    with pytest.raises(MismatchError, match="x"), tensorrt_problems():
        raise EngineError("x")
