"""`dcdm export` on the embedded base with an adapter: one network, compared, complete, and refused when it is not."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from dcdm_cli.backends.torch_backend import TorchDenoiser
from dcdm_cli.backends.trt_backend import TrtDecoder, TrtDenoiser
from dcdm_cli.errors import MismatchError, NotFoundError, NumericalError
from dcdm_cli.model.adapter import adapter_hash
from dcdm_cli.model.base import encode_text
from dcdm_cli.model.export_folder import open_export
from dcdm_cli.model.fused import FusedModel, load_fused
from dcdm_cli.model.latents import decode_latents, torch_decoder
from dcdm_cli.run.store import RunFolder
from dcdm_cli.stages.export import _export_problems, decoder_batches
from dcdm_export.engine_key import EngineError, EngineSettings, engine_key, write_engine
from dcdm_export.finished import read_parity
from dcdm_export.onnx_graph import read_metadata
from dcdm_export.parity import Parity, ParityError
from dcdm_export.signature import read_signature

from . import fake_tensorrt
from .conftest import DCDM, dcdm
from .tensorrt_operators import LIST, supported_operators
from .test_trt_backend import GPU

FILES = ["denoiser.onnx", "parity.json", "signature.json", "text_encoder.onnx", "vae_decoder.onnx"]
Exported = tuple[RunFolder, str]


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def session(folder: Path, name: str) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def model(exported: Exported) -> FusedModel:
    return load_fused(exported[0].adapter)


CALLS = 3  # of a guided step at the default scales; they share latents and timestep


def batch(model: FusedModel, images: int) -> tuple[torch.Tensor, ...]:
    rows, generator = CALLS * images, torch.Generator().manual_seed(images)
    latents = torch.randn(images, 4, 8, 8, generator=generator).repeat(CALLS, 1, 1, 1)
    timestep = torch.tensor([999.0, 1.0, 500.0, 10.0, 750.0])[torch.arange(images) % 5].repeat(CALLS)
    text = encode_text(model.base, [f"number {i}" for i in range(rows)])
    return latents, timestep, text, torch.arange(rows) % 3, torch.linspace(-0.2, 1, rows)


def test_the_document_says_what_was_made(exported: Exported) -> None:
    run, stdout = exported
    document = json.loads(stdout)
    assert (document["stage"], document["path"]) == ("export", str(run.export))
    assert [network["name"] for network in document["networks"]] == ["denoiser", "vae_decoder", "text_encoder"]
    for network in document["networks"]:
        assert network["parity"] == "passed" and network["max_abs"] <= 1e-4
        assert network["mib"] == pytest.approx((run.export / network["file"]).stat().st_size / 2**20, abs=0.01)
    assert document["engines"] == [] and names(run.export) == FILES
    assert run.record("export") is not None and not (run.cache / "export").exists()


def test_parity_holds_for_every_batch(exported: Exported) -> None:
    for entry in read_parity(exported[0].export).values():
        assert [case["name"] for case in entry["cases"]] == ["batch 1", "batch 2", "batch 5"]
        assert entry["tolerance"] == 1e-4 and all(case["max_abs"] <= 1e-4 for case in entry["cases"])


@pytest.mark.parametrize("images", [1, 2, 5])
def test_the_graph_is_the_torch_backend(exported: Exported, model: FusedModel, images: int) -> None:
    given = batch(model, images)
    graph = session(exported[0].export, "denoiser")

    def run(*values: torch.Tensor) -> np.ndarray:
        feeds = {i.name: value.numpy() for i, value in zip(graph.get_inputs(), values, strict=True)}
        return np.asarray(graph.run(None, feeds)[0])

    expected = TorchDenoiser(model.network, "cpu")(*given).numpy()
    assert np.abs(run(*given) - expected).max() <= 1e-4
    without = run(*given[:4], torch.full_like(given[4], -1.0))
    assert np.abs(without - expected).max() > 1e-3  # difficulty is inside the graph


def test_text_and_images_are_those_of_the_base(exported: Exported, model: FusedModel) -> None:
    folder, base = exported[0].export, model.base
    captions = ["", "a photo of a test tube", "x " * 40]
    tokens = base.tokenizer(
        captions, padding="max_length", truncation=True, max_length=base.tokenizer.model_max_length, return_tensors="np"
    ).input_ids
    (text,) = session(folder, "text_encoder").run(None, {"token_ids": tokens})
    np.testing.assert_allclose(np.asarray(text), encode_text(base, captions).numpy(), atol=1e-4)
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    (images,) = session(folder, "vae_decoder").run(None, {"latents": latents.numpy()})
    values = np.asarray(images)
    assert np.abs(values).max() <= 1
    pixels = np.rint((values + 1) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)
    assert np.abs(pixels.astype(int) - decode_latents(torch_decoder(base.vae), latents, 2)).max() <= 1


def test_the_tensorrt_backend_runs_the_graph(exported: Exported, model: FusedModel, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported[0].export, tmp_path / "export"))
    signature = read_signature(folder)
    network = signature.networks["denoiser"]
    key = engine_key(fake_tensorrt.__version__, GPU, network, 4, EngineSettings())
    engine = write_engine(folder, "denoiser", 4, key, fake_tensorrt.plan(folder / network.file, 4 * CALLS, 4 * CALLS))
    signature = type(signature)(**{**vars(signature), "engines": (engine,)})
    made = TrtDenoiser(fake_tensorrt, GPU, folder, signature, "cpu")
    given = batch(model, 6)
    assert made.shared_calls == CALLS
    torch.testing.assert_close(made(*given), TorchDenoiser(model.network, "cpu")(*given), atol=1e-4, rtol=0)


def test_tensorrt_decodes_with_its_own_engine(exported: Exported, model: FusedModel, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported[0].export, tmp_path / "export"))
    signature = read_signature(folder)
    with pytest.raises(EngineError, match="holds no engine of the vae_decoder"):
        TrtDecoder(fake_tensorrt, GPU, folder, signature, "cpu")
    network = signature.networks["vae_decoder"]
    key = engine_key(fake_tensorrt.__version__, GPU, network, 4, EngineSettings())
    engine = write_engine(folder, "vae_decoder", 4, key, fake_tensorrt.plan(folder / network.file, 4, 4))
    decode = TrtDecoder(fake_tensorrt, GPU, folder, replace(signature, engines=(engine,)), "cpu")
    latents = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    exact = decode_latents(torch_decoder(model.base.vae), latents, 6)
    assert np.abs(decode_latents(decode, latents, 6).astype(int) - exact).max() <= 1


@pytest.mark.slow
def test_a_decoder_in_half_precision_passes_the_gate_and_is_asked_for_by_its_setting(run: RunFolder) -> None:
    made = dcdm("export", "--run", str(run.path), "--threads", "1", "--set", "generate.vae_precision=fp16")
    assert "the decoder is in fp32, and fp16 is set; it is exported again" in made.stderr
    assert "exporting vae_decoder" in made.stderr and "exporting denoiser" not in made.stderr
    signature, parity = read_signature(run.export), read_parity(run.export)["vae_decoder"]
    assert signature.networks["vae_decoder"].precision == "fp16" and parity["tolerance"] == 1e-2
    assert 1e-6 < max(case["relative"] for case in parity["cases"]) < 1e-2
    assert not any(node.op_type == "Clip" for node in onnx.load(run.export / "vae_decoder.onnx").graph.node)


def test_the_decoders_engines_are_those_that_its_chunks_can_fill() -> None:
    assert decoder_batches((1, 8, 32), 8) == (1, 8) and decoder_batches((1, 8, 32), 40) == (1, 8, 32)
    assert decoder_batches((16, 32), 8) == (16,)


def test_a_decoder_that_is_wrong_names_its_own_remedy(tmp_path: Path) -> None:
    parity = Parity("vae_decoder.b8.engine", "fp16", "failed", "TensorRT", 1e-2)
    for name, remedy in (("vae_decoder.b8.engine", "--set generate.vae_precision=fp32"), ("denoiser", "--precision")):
        with pytest.raises(NumericalError, match="differs") as caught, _export_problems(tmp_path):
            raise ParityError("differs", replace(parity, network=name))
        assert remedy in caught.value.hint and str(tmp_path / "parity.json") in caught.value.hint


def test_the_signature_and_the_file_explain_the_model(exported: Exported) -> None:
    run = exported[0]
    signature = read_signature(run.export)
    facts = signature.model
    assert facts.class_names == ("zero", "test tube", "two") and facts.adapter_hash == adapter_hash(run.adapter)
    assert (facts.latent_shape, facts.text_shape, facts.resolution) == ((4, 8, 8), (16, 64), 32)
    assert signature.networks["denoiser"].shared_calls == CALLS
    assert (facts.mode, facts.tokens, facts.prediction_type, facts.lora_scale) == ("append", 2, "epsilon", 1.0)
    inside = read_metadata(run.export / "denoiser.onnx")
    assert json.loads(inside["dcdm.model"])["class_names"] == ["zero", "test tube", "two"]
    assert set(json.loads(inside["dcdm.versions"])) == {
        "dcdm",
        "torch",
        "onnx",
        "onnxscript",
        "diffusers",
        "transformers",
    }
    assert "adapter_hash" not in json.loads(read_metadata(run.export / "vae_decoder.onnx")["dcdm.model"])
    for name in FILES:
        assert str(Path(__file__).parents[2]).encode() not in (run.export / name).read_bytes()


@pytest.mark.slow
def test_half_precision_takes_over_what_stays_the_same(
    exported: Exported, exported_fp16: tuple[RunFolder, subprocess.CompletedProcess[str]]
) -> None:
    run, made = exported_fp16
    assert "exporting vae_decoder" not in made.stderr and "exporting denoiser" in made.stderr
    assert (run.export / "vae_decoder.onnx").read_bytes() == (exported[0].export / "vae_decoder.onnx").read_bytes()
    signature = read_signature(run.export)
    assert {name: n.precision for name, n in signature.networks.items()} == {
        "denoiser": "fp16", "vae_decoder": "fp32", "text_encoder": "fp16"
    }  # fmt: skip
    half, full = ((folder / "denoiser.onnx").stat().st_size for folder in (run.export, exported[0].export))
    assert half < 0.6 * full
    assert {spec.dtype for spec in signature.networks["denoiser"].inputs} == {"float32", "int64"}
    assert "fp16" in made.stdout and made.stdout.rstrip().endswith(str(run.export))
    errors = [case["relative"] for case in read_parity(run.export)["denoiser"]["cases"]]
    assert 1e-6 < max(errors) < 1e-2


def operators(folder: Path) -> Counter[str]:
    graphs = [onnx.load(file, load_external_data=False) for file in folder.glob("*.onnx")]
    assert all({opset.domain for opset in graph.opset_import} <= {"", "ai.onnx"} for graph in graphs)
    return Counter(node.op_type for graph in graphs for node in graph.graph.node)


@pytest.mark.slow
def test_tensorrts_parser_knows_every_operator(exported: Exported, exported_fp16: tuple[RunFolder, Any]) -> None:
    known = set(json.loads(LIST.read_text())["operators"])
    used = operators(exported[0].export) + operators(exported_fp16[0].export)
    assert len(used) > 20 and sorted(set(used) - known) == []
    assert used["GroupNormalization"] and not used["Attention"] and "SplitToSequence" not in known


@pytest.mark.tensorrt_rtx
def test_the_operator_list_is_the_parsers(rtx: Any) -> None:
    known = set(json.loads(LIST.read_text())["operators"])
    assert sorted(known - set(supported_operators(rtx))) == []


@pytest.mark.slow
def test_the_same_command_again_does_nothing(run: RunFolder) -> None:
    before = {file: file.stat().st_mtime_ns for file in run.export.iterdir()}
    made = dcdm("export", "--run", str(run.path), "--quiet")
    assert made.stdout == f"{run.export}\n" and made.stderr == ""
    assert {file: file.stat().st_mtime_ns for file in run.export.iterdir()} == before
    assert "nothing changed, skipped" in dcdm("export", "--run", str(run.path)).stderr


@pytest.mark.slow
def test_a_changed_file_is_noticed_and_made_again_after_a_stop_too(run: RunFolder) -> None:
    before, file = names(run.export), run.export / "text_encoder.onnx"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(MismatchError, match=r"text_encoder.onnx is not the file that was exported"):
        open_export(run.export, adapter_hash=adapter_hash(run.adapter), lora_scale=1.0)
    words = [*DCDM, "export", "--run", str(run.path), "--threads", "1"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        said = process.stderr.readline()  # that something is wrong, long before it is made again
        process.send_signal(signal.SIGTERM)
        said += process.stderr.read()
    assert process.returncode == 143 and re.search(
        r"finished (networks and engines are|work is) kept", said.replace("\n", " ")
    ), said
    assert names(run.export) == before and not list(run.cache.rglob("*.part"))
    made = dcdm("export", "--run", str(run.path), "--threads", "1")
    assert "is not the file that was exported" in made.stderr
    assert "exporting text_encoder" in made.stderr and "exporting denoiser" not in made.stderr
    open_export(run.export, adapter_hash=adapter_hash(run.adapter), lora_scale=1.0)


def test_a_moved_run_still_loads(run: RunFolder, tmp_path: Path) -> None:
    moved = RunFolder(run.path.rename(tmp_path / "moved"))
    signature = open_export(moved.export, adapter_hash=adapter_hash(moved.adapter), lora_scale=1.0)
    assert set(signature.networks) == {"denoiser", "vae_decoder", "text_encoder"}


def test_another_adapter_or_scale_is_refused(run: RunFolder) -> None:
    with pytest.raises(MismatchError, match="exported from another adapter") as caught:
        open_export(run.export, adapter_hash="other", lora_scale=1.0)
    assert "dcdm export" in caught.value.hint
    with pytest.raises(MismatchError, match=r"lora_scale = 1.0, generation asks for 0.5"):
        open_export(run.export, adapter_hash=adapter_hash(run.adapter), lora_scale=0.5)
    with pytest.raises(NotFoundError, match="no finished export"):
        open_export(run.cache, adapter_hash="", lora_scale=1.0)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--opset", "21", "--precision", "bf16"], 2, "opset 21 does not serve bf16"),
        (["--opset", "7"], 2, "export.opset"),
        (["--batch", "0,8"], 2, "export.batch"),
        (["--batch", ","], 2, "export.batch"),
        (["--precision", "int8"], 2, "generate.precision"),
    ],
)
def test_wrong_settings_are_refused_at_once(exported: Exported, words: list[str], code: int, said: str) -> None:
    made = dcdm("export", "--run", str(exported[0].path), *words, code=code)
    assert said in made.stderr and "try:" in made.stderr


def test_engines_without_tensorrt_name_the_extra(exported: Exported) -> None:
    if __import__("importlib").util.find_spec("tensorrt"):
        pytest.skip("TensorRT is installed here")
    made = dcdm("export", "--run", str(exported[0].path), "--target", "tensorrt", code=22)
    assert "pip install 'dcdm-cli[tensorrt]'" in made.stderr and names(exported[0].export) == FILES


def test_without_an_adapter_the_command_before_is_named(tmp_path: Path) -> None:
    made = dcdm("export", "--run", str(tmp_path / "run"), code=10)
    assert "dcdm finetune" in made.stderr and names(tmp_path / "run") == [".lock"]
