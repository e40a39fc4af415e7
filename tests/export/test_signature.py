"""signature.json is read as it was written, and vouches for the files beside it."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcdm_export.signature import (
    SIGNATURE_FILE,
    EngineFile,
    ModelFacts,
    NetworkFile,
    Signature,
    SignatureError,
    TensorSpec,
    as_document,
    digest,
    read_signature,
    verify,
    write_signature,
)

FACTS = ModelFacts(
    class_names=("zero", "test tube"),
    resolution=32,
    latent_shape=(4, 8, 8),
    text_shape=(24, 64),
    scaling_factor=0.18215,
    shift_factor=0.0,
    prediction_type="epsilon",
    mode="append",
    tokens=2,
    base_fingerprint="b" * 32,
    adapter_hash="a" * 64,
    lora_scale=1.0,
)


def network(folder: Path, name: str) -> NetworkFile:
    files = (f"{name}.onnx", f"{name}.onnx.data")
    for file in files:
        (folder / file).write_bytes(file.encode())
    return NetworkFile(
        file=files[0],
        sha256={file: digest(folder / file) for file in files},
        inputs=(TensorSpec("latents", "float32", ("batch", 4, 8, 8)),),
        outputs=(TensorSpec("prediction", "float32", ("batch", 4, 8, 8)),),
        opset=21,
        precision="fp32",
        external_data=files[1:],
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "export"
    made.mkdir()
    networks = {name: network(made, name) for name in ("denoiser", "vae_decoder")}
    engine = EngineFile("denoiser", "denoiser.b8.engine", 8, "g" * 64, "k" * 64, "denoiser.b8.engine.json", "e" * 64)
    write_signature(made, Signature(FACTS, networks, "0.1.0", {"torch": "2.14"}, engines=(engine,)))
    return made


def change(folder: Path, **changes: object) -> None:
    file = folder / SIGNATURE_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_what_was_written_is_read(folder: Path) -> None:
    signature = read_signature(folder)
    assert write_signature(folder, signature) == folder / SIGNATURE_FILE
    assert read_signature(folder) == signature
    assert signature.model == FACTS and signature.networks["denoiser"].inputs[0].shape == ("batch", 4, 8, 8)
    assert sorted(file.name for file in folder.iterdir() if file.name.startswith(".")) == []


@settings(max_examples=25)
@given(st.lists(st.text(max_size=8), max_size=4), st.floats(0.01, 9), st.integers(1, 3))
def test_any_names_and_numbers_survive(names: list[str], scale: float, calls: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as made:
        one = dataclasses.replace(network(Path(made), "denoiser"), shared_calls=calls)
        facts = dataclasses.replace(FACTS, class_names=tuple(n for n in names if n.isprintable()), scaling_factor=scale)
        signature = Signature(facts, {"denoiser": one}, "0.1.0", {})
        write_signature(Path(made), signature)
        assert read_signature(Path(made)) == signature


def test_a_moved_folder_still_loads(folder: Path, tmp_path: Path) -> None:
    moved = Path(shutil.move(folder, tmp_path / "elsewhere"))
    verify(moved, read_signature(moved))


@pytest.mark.parametrize("name", ["denoiser.onnx", "denoiser.onnx.data"])
def test_changed_and_missing_files_are_named(folder: Path, name: str) -> None:
    signature = read_signature(folder)
    (folder / name).write_bytes(b"other")
    with pytest.raises(SignatureError, match=f"{name} is not the file that was exported") as caught:
        verify(folder, signature)
    assert caught.value.file == folder / name
    verify(folder, signature, ["vae_decoder"])
    (folder / name).unlink()
    with pytest.raises(SignatureError, match=f"{name} is missing"):
        verify(folder, signature, ["denoiser"])


def test_a_network_that_was_not_exported_is_said(folder: Path) -> None:
    with pytest.raises(SignatureError, match="holds no text_encoder; exported: denoiser, vae_decoder"):
        verify(folder, read_signature(folder), ["text_encoder"])


def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    outside = Path(shutil.move(folder / "denoiser.onnx", tmp_path / "denoiser.onnx"))
    (folder / "denoiser.onnx").symlink_to(outside)
    with pytest.raises(SignatureError, match="leads out of"):
        read_signature(folder)
    outside.rename(folder / "real.onnx")
    (folder / "denoiser.onnx").unlink()
    (folder / "denoiser.onnx").symlink_to("real.onnx")
    verify(folder, read_signature(folder))


@pytest.mark.parametrize("name", ["/etc/passwd", "../denoiser.onnx", "a/../../b", "", "c:\\x", "a\\b", "n\0l"])
def test_names_that_leave_the_folder_are_refused(folder: Path, name: str) -> None:
    document = as_document(read_signature(folder))
    one = json.loads(json.dumps(document["networks"]))["denoiser"]
    change(folder, networks={"denoiser": one | {"file": name, "sha256": {name: "0", "denoiser.onnx.data": "0"}}})
    with pytest.raises(SignatureError, match="is not a file name inside"):
        read_signature(folder)
    change(folder, networks=document["networks"], parity=name)
    with pytest.raises(SignatureError, match="is not a file name inside"):
        read_signature(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schema": 2}, "has schema 2; this version reads 1"),
        ({"networks": {"denoiser": {"file": "x"}}}, "damaged: networks.denoiser"),
        ({"model": "x"}, "damaged: model"),
        ({"engines": 3}, "damaged: engines"),
    ],
)
def test_damage_is_located(folder: Path, changes: dict[str, object], said: str) -> None:
    change(folder, **changes)
    with pytest.raises(SignatureError, match=said):
        read_signature(folder)


def test_a_file_without_a_digest_is_damage(folder: Path) -> None:
    document = json.loads((folder / SIGNATURE_FILE).read_text())
    del document["networks"]["denoiser"]["sha256"]["denoiser.onnx.data"]
    change(folder, **document)
    with pytest.raises(SignatureError, match="digests of denoiser are not those of its files"):
        read_signature(folder)


@pytest.mark.parametrize("content", [b"", b"[1, 2]", b"\xff\xfe", b"[" * 100_000, b"{", b"null", b"{}"])
def test_what_is_no_signature_is_refused(folder: Path, content: bytes) -> None:
    (folder / SIGNATURE_FILE).write_bytes(content)
    with pytest.raises(SignatureError):
        read_signature(folder)


def test_no_signature_means_not_finished(folder: Path) -> None:
    (folder / SIGNATURE_FILE).unlink()
    with pytest.raises(SignatureError, match="nothing was exported there, or not to the end"):
        read_signature(folder)


def test_the_graphs_hash_follows_the_external_data(folder: Path) -> None:
    before = read_signature(folder).networks["denoiser"]
    assert before.hash != dataclasses.replace(before, sha256=before.sha256 | {"denoiser.onnx.data": "0" * 64}).hash


def test_it_needs_neither_torch_nor_onnx() -> None:
    code = (
        "import dcdm_export.signature, sys; sys.exit(', '.join({'torch', 'onnx', 'dcdm_cli'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"resolution": 0}, "resolution"), ({"scaling_factor": float("nan")}, "scaling_factor"),
        ({"latent_shape": [4, 8, 10**12]}, "latent_shape"), ({"tokens": -1}, "tokens"),
        ({"lora_scale": "1e999"}, "lora_scale"),
    ],
)  # fmt: skip
def test_numbers_that_no_network_has_are_damage(folder: Path, wrong: dict[str, object], says: str) -> None:
    document = as_document(read_signature(folder))
    change(folder, model=json.loads(json.dumps(document["model"])) | wrong)
    with pytest.raises(SignatureError, match=says):
        read_signature(folder)


@settings(max_examples=50)
@given(st.binary(max_size=60) | st.sampled_from([b"NaN", b"[" * 100_000, b"1" * 9000, b"{}", b'{"schema": 1}']))
def test_any_bytes_are_no_signature(content: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as made:
        Path(made, SIGNATURE_FILE).write_bytes(content)
        with pytest.raises(SignatureError):
            read_signature(Path(made))
