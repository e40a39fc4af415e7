"""Every name our TensorRT code uses exists in the real Python bindings of TensorRT 11, which run on no such machine.

The bindings import once three empty libraries stand in for TensorRT's own; then classes, enums and docstrings are real.
"""

from __future__ import annotations

import ast
import ctypes
import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import dcdm_cli.backends.trt_backend
import dcdm_export.trt_engine
from dcdm_export.trt_names import MODULE, OPTIONAL, USED

from . import fake_tensorrt

BINDINGS = "tensorrt_bindings"
LIBRARIES = ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11")
ENTRY_POINTS = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getBuilderPluginRegistry",
    "getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins",
)  # fmt: skip
DUMP = f"""
import ctypes, json, sys
for library in sys.argv[1:]:
    ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
import {BINDINGS} as trt
classes = {{name: value for name, value in vars(trt).items() if isinstance(value, type)}}
names = {{name: dir(value) for name, value in classes.items()}}
docs = {{f"{{c}}.{{n}}": getattr(v, n).__doc__ or "" for c, v in classes.items() for n in dir(v) if n[0] != "_"}}
json.dump({{"version": trt.__version__, "names": {{"{MODULE}": dir(trt), **names}}, "docs": docs}}, sys.stdout)
"""
# How our code names the objects it works with.
OBJECTS = {
    "trt": {MODULE}, "builder": {"Builder"}, "network": {"INetworkDefinition"}, "parser": {"OnnxParser", "ParserError"},
    "config": {"IBuilderConfig", "ITimingCache"}, "profile": {"IOptimizationProfile"},
    "layer": {"ILayer", "IAttentionOutputLayer", "IAttention"}, "engine": {"ICudaEngine"},
    "context": {"IExecutionContext"}, "_context": {"IExecutionContext"}, "inspector": {"EngineInspector"},
    "refitter": {"Refitter"}, "parser_refitter": {"OnnxParserRefitter"}, "serialization": {"ISerializationConfig"},
}  # fmt: skip


@pytest.fixture(scope="module")
def bindings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to make the empty libraries with")
    if find_spec(BINDINGS) is None:
        pytest.skip("TensorRT's Python bindings are not installed: pip install tensorrt-cu13-bindings")
    folder = tmp_path_factory.mktemp("empty")
    source = folder / "empty.c"
    source.write_text("\n".join(f"void *{name}(void) {{ return 0; }}" for name in ENTRY_POINTS))
    for name in LIBRARIES:
        words = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name), str(source)]
        subprocess.run(words, check=True)
    words = [sys.executable, "-c", DUMP, *(str(folder / name) for name in LIBRARIES)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def missing(names: dict[str, list[str]], used: dict[str, frozenset[str]]) -> list[str]:
    return [f"{kind}.{name}" for kind, wanted in used.items() for name in wanted if name not in names.get(kind, ())]


def test_every_name_exists_in_tensorrt_11(bindings: dict[str, object]) -> None:
    assert str(bindings["version"]).startswith("11.")
    assert missing(bindings["names"], USED) == []  # type: ignore[arg-type]
    assert missing(bindings["names"], OPTIONAL) == []  # type: ignore[arg-type]
    assert missing(bindings["names"], {"Builder": frozenset({"platform_has_fast_fp16"})}) != []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("IBuilderConfig.set_timing_cache", ("cache", "ignore_mismatch: bool")),
        ("IBuilderConfig.create_timing_cache", ("serialized_timing_cache",)),
        ("IOptimizationProfile.set_shape", ("input: str", "min", "opt", "max")),
        ("Builder.create_network", ("flags",)),
        ("Builder.build_serialized_network", ("network", "config")),
        ("OnnxParser.parse_from_file", ("model: str",)),
        ("IProgressMonitor.phase_start", ("phase_name", "parent_phase", "num_steps")),
        ("IProgressMonitor.step_complete", ("phase_name: str", "step", "-> bool")),
        ("Runtime.deserialize_cuda_engine", ("serialized_engine",)),
        ("ICudaEngine.get_tensor_profile_shape", ("name: str", "profile_index")),
        ("IExecutionContext.set_tensor_address", ("name: str", "memory", "-> bool")),
        ("IExecutionContext.set_input_shape", ("name: str", "shape", "-> bool")),
        ("IExecutionContext.infer_shapes", ("-> list[str]",)),
        ("IExecutionContext.execute_async_v3", ("stream_handle", "-> bool")),
        ("EngineInspector.get_engine_information", ("format", "-> str")),
        ("OnnxParserRefitter.refit_from_file", ("model: str", "-> bool")),
        ("Refitter.get_missing_weights", ("-> list[str]",)),
        ("Refitter.refit_cuda_engine", ("-> bool",)),
        ("ICudaEngine.serialize_with_config", ("ISerializationConfig",)),
        ("ISerializationConfig.set_flag", ("flag", "-> bool")),
    ],
)
def test_the_calls_take_what_we_give(bindings: dict[str, object], name: str, arguments: tuple[str, ...]) -> None:
    doc = bindings["docs"][name]  # type: ignore[index]
    assert [argument for argument in arguments if argument not in doc] == [], doc[:300]


def used_attributes() -> set[tuple[str, str]]:
    """(object, attribute) for every access on an object of TensorRT's in our code, chains included."""
    found = set()
    for module in (dcdm_export.trt_engine, dcdm_cli.backends.trt_backend):
        for node in ast.walk(ast.parse(Path(module.__file__ or "").read_text("utf-8"))):
            if isinstance(node, ast.Attribute) and (root := root_name(node.value)) in OBJECTS:
                found.add((root, node.attr))
    return found


def root_name(node: ast.AST) -> str:
    """The object a chain such as config.get_timing_cache().serialize starts from; `_context` for self._context."""
    while isinstance(node, (ast.Attribute, ast.Call)):
        if isinstance(node, ast.Attribute) and node.attr in OBJECTS:
            return node.attr
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


OURS = {
    *(("network", name) for name in ("inputs", "outputs", "shared_calls", "hash")),  # our NetworkFile
    *(("network", name) for name in ("run", "cpu", "numpy")),  # our TrtNetwork and its output
    *(("engine", name) for name in ("network", "batch")),  # our EngineFile
    ("layer", "__class__"),
    ("trt", "split"),  # of the version's text
}


def test_the_list_is_what_the_code_uses() -> None:
    listed = {name for names in (*USED.values(), *OPTIONAL.values()) for name in names} | set(USED) | set(OPTIONAL)
    unlisted = sorted(f"{root}.{name}" for root, name in used_attributes() - OURS if name not in listed)
    assert unlisted == []
    text = "".join(Path(m.__file__ or "").read_text() for m in (dcdm_export.trt_engine, dcdm_cli.backends.trt_backend))
    members = {name for names in (*USED.values(), *OPTIONAL.values()) for name in names}
    assert sorted(name for name in members if name not in text) == []


def test_the_imitation_invents_nothing() -> None:
    for name in vars(fake_tensorrt).keys() & USED.keys():
        public = {attribute for attribute in vars(getattr(fake_tensorrt, name)) if not attribute.startswith("_")}
        assert public <= USED[name], name


def test_the_empty_libraries_do_not_reach_this_process() -> None:
    for name in LIBRARIES:
        with pytest.raises(OSError):
            ctypes.CDLL(name)
