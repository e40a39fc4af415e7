from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

from dcdm_cli.data.onnx_weights import external_data
from dcdm_cli.difficulty.classifier import Preprocessing, build_classifier, logits_of
from dcdm_cli.difficulty.own_classifier import align_classes, copy_own_classifier, load_own_classifier, score_with
from dcdm_cli.difficulty.own_files import classifier_files
from dcdm_cli.errors import DcdmError, MismatchError, NotFoundError, UsageError
from dcdm_cli.run.settings import ClassifierConfig, ScoreConfig
from tests.difficulty.conftest import NAMES, MakeManifest

Digits = tuple[np.ndarray, np.ndarray]
THEIRS = ["ant", "bee", "cat", "dog"]
OURS = ["dog", "ant", "cat"]  # another order, one class fewer
ORDER = [3, 0, 2, 1]


@pytest.fixture
def tiny(quick: ScoreConfig) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_classifier(quick, len(THEIRS)).eval()


def write_safetensors(model: torch.nn.Module, file: Path, names: list[str] | None = None) -> Path:
    save_file(model.state_dict(), file, {"class_names": json.dumps(names)} if names else None)
    return file


def write_onnx(
    file: Path,
    names: list[str] | None = None,
    shape: tuple[Any, ...] = ("n", 3, "h", "w"),
    *,
    softmax: bool = False,
    data: str | None = None,
    kind: int = TensorProto.FLOAT,
) -> Path:
    """Logits = the mean of each colour, and their sum: four outputs that are easy to recompute. softmax: at the end.
    data: where the weights are kept."""
    weight = np.concatenate([np.eye(3), np.ones((1, 3))]).astype(np.float32)
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight"], ["sums" if softmax else "logits"], transB=1),
        *([helper.make_node("Softmax", ["sums"], ["logits"], axis=1)] if softmax else []),
    ]
    weight = weight.astype(helper.tensor_dtype_to_np_dtype(kind))
    image = helper.make_tensor_value_info("image", kind, shape)
    logits = helper.make_tensor_value_info("logits", kind, (shape[0], 4))
    graph = helper.make_graph(nodes, "own", [image], [logits], [numpy_helper.from_array(weight, "weight")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    if names:
        helper.set_model_props(model, {"class_names": json.dumps(names)})
    file.parent.mkdir(exist_ok=True)
    external = {"save_as_external_data": True, "location": data, "size_threshold": 0} if data else {}
    onnx.save(model, file, **external)
    return file


def test_safetensors_are_aligned_by_name_and_read_timms_preprocessing(
    tmp_path: Path, digits: Digits, quick: ScoreConfig, tiny: torch.nn.Module
) -> None:
    own = load_own_classifier(write_safetensors(tiny, tmp_path / "a.safetensors", THEIRS), OURS, quick)
    assert own.class_names == ("dog", "ant", "cat", "bee")
    theirs = Preprocessing.of(tiny)
    assert own.preprocessing == theirs and theirs.data_config["input_size"] == (3, 176, 176)
    images = digits[0][:4]
    expected = logits_of([tiny], images, theirs, "cpu")[0][:, ORDER]
    np.testing.assert_allclose(logits_of([own.model], images, own.preprocessing, "cpu")[0], expected, atol=1e-5)


def test_names_may_come_from_the_sidecar_or_the_class_map(
    tmp_path: Path, quick: ScoreConfig, tiny: torch.nn.Module
) -> None:
    file = write_safetensors(tiny, tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match="does not name its classes") as caught:
        load_own_classifier(file, OURS, quick)
    assert "a.json" in caught.value.hint
    assert load_own_classifier(file, OURS, quick, class_map=THEIRS).class_names[:3] == tuple(OURS)
    sidecar = {"class_names": THEIRS, "model": quick.model, "model_args": quick.model_args, "image_size": 32}
    file.with_suffix(".json").write_text(json.dumps(sidecar))
    own = load_own_classifier(file, OURS, ClassifierConfig.model_validate({}))
    assert own.preprocessing.data_config["input_size"] == (3, 32, 32)


def test_onnx_is_aligned_by_name_and_reads_its_sidecar(tmp_path: Path, quick: ScoreConfig) -> None:
    file = write_onnx(tmp_path / "own.onnx", THEIRS)
    file.with_suffix(".json").write_text(json.dumps({"mean": [0, 0, 0], "std": [1, 1, 0.5], "image_size": 16}))
    own = load_own_classifier(file, OURS, quick)
    images = np.full((3, 16, 16, 3), (255, 51, 102), np.uint8)
    images[1:] //= 3
    expected = np.array([[1.0, 0.2, 0.8, 2.0]]) * np.array([[1], [1 / 3], [1 / 3]])
    answer = logits_of([own.model], images, own.preprocessing, "cpu", batch_size=2)[0]
    np.testing.assert_allclose(answer, expected[:, ORDER], rtol=1e-5)


def test_onnx_says_its_size_and_may_take_one_image_at_a_time(tmp_path: Path, quick: ScoreConfig) -> None:
    own = load_own_classifier(write_onnx(tmp_path / "own.onnx", THEIRS, (1, 3, 24, 24)), OURS, quick)
    assert own.preprocessing.data_config["input_size"] == (3, 24, 24)
    assert own.preprocessing.data_config["mean"] == (0.485, 0.456, 0.406)
    assert logits_of([own.model], np.zeros((5, 30, 30, 3), np.uint8), own.preprocessing, "cpu").shape == (1, 5, 4)


def test_a_torch_export_answers_like_the_network_it_came_from(
    tmp_path: Path, digits: Digits, quick: ScoreConfig, tiny: torch.nn.Module
) -> None:
    file, batch = tmp_path / "own.onnx", torch.export.Dim("batch")
    program = torch.onnx.export(
        tiny, (torch.zeros(2, 3, 32, 32),), dynamo=True, opset_version=18, dynamic_shapes=({0: batch},), verbose=False
    )
    assert program is not None
    program.save(file)
    file.with_suffix(".json").write_text(json.dumps({"class_names": THEIRS}))
    own = load_own_classifier(file, OURS, quick)
    expected = logits_of([tiny], digits[0][:5], own.preprocessing, "cpu")[0][:, ORDER]
    np.testing.assert_allclose(logits_of([own.model], digits[0][:5], own.preprocessing, "cpu")[0], expected, atol=1e-4)


def moved_weights(file: Path, name: str) -> Path:
    """The graph with its weights in a file of that name."""
    model = onnx.load(file)
    onnx.save(model, file, save_as_external_data=True, location="weights.bin", size_threshold=0)
    model = onnx.load(file, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = name if entry.key == "location" else entry.value
    file.write_bytes(model.SerializeToString())
    target = file.parent / name
    target.parent.mkdir(parents=True, exist_ok=True)
    (file.parent / "weights.bin").rename(target)
    return file


@pytest.mark.parametrize("name", ["own.onnx.data", "any name.bin", "parts/weights.bin"])
def test_weights_beside_a_graph_go_along_whatever_they_are_called(
    tmp_path: Path, digits: Digits, quick: ScoreConfig, name: str
) -> None:
    file = moved_weights(write_onnx(tmp_path / "theirs" / "net.onnx", THEIRS), name)
    own = load_own_classifier(file, OURS, quick)
    before = logits_of([own.model], digits[0][:3], own.preprocessing, "cpu")
    (tmp_path / "copy").mkdir()
    copied = tmp_path / "copy" / copy_own_classifier(own, tmp_path / "copy")
    shutil.rmtree(tmp_path / "theirs")
    again = load_own_classifier(copied, OURS, quick)
    np.testing.assert_array_equal(logits_of([again.model], digits[0][:3], own.preprocessing, "cpu"), before)


@pytest.mark.parametrize("name", ["../weights2.bin", "linked/weights2.bin", ""])
def test_weights_that_lie_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    file = moved_weights(write_onnx(tmp_path / "theirs" / "net.onnx", THEIRS), "weights2.bin")
    (tmp_path / "theirs/linked").symlink_to(tmp_path)
    (tmp_path / "theirs/weights2.bin").rename(tmp_path / "weights2.bin")
    with pytest.raises(UsageError, match=r"keeps weights in 'weights2\.bin', which is not there"):
        external_data(file)
    file.write_bytes(file.read_bytes().replace(b"\x0cweights2.bin", bytes([len(name)]) + name.encode()))
    with pytest.raises((UsageError, MismatchError)):
        external_data(file)


@given(content=st.binary(max_size=200))
def test_any_bytes_are_no_graph_or_one_without_weights(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    file = tmp_path_factory.mktemp("onnx") / "a.onnx"
    file.write_bytes(content)
    with contextlib.suppress(DcdmError):
        assert external_data(file) == []


def test_every_row_of_a_manifest_is_scored(
    tmp_path: Path, digits: Digits, quick: ScoreConfig, make_manifest: MakeManifest
) -> None:
    own = load_own_classifier(write_onnx(tmp_path / "own.onnx", THEIRS), OURS, quick)
    manifest = make_manifest(digits[0][:6], np.arange(6) % 3, tuple(OURS))
    scored = score_with(own, manifest, "cpu", calibrate=False)
    assert manifest.with_columns(scored.columns).column("difficulty").shape == (6,)
    assert (scored.columns["predicted"] < 4).all() and not np.isnan(scored.columns["loss"]).any()


def test_missing_classes_list_both_sides() -> None:
    with pytest.raises(MismatchError, match=r"lacks 2 of the 3 classes .*: eel, fox; it has 3 others: bee, cat, dog"):
        align_classes(THEIRS, ["eel", "ant", "fox"])
    with pytest.raises(MismatchError, match=r"k0, k1, .*k9, \.\.\."):
        align_classes(THEIRS, [f"k{i}" for i in range(30)])
    with pytest.raises(MismatchError, match="twice"):
        align_classes(["ant", "ant"], ["ant"])
    assert align_classes(THEIRS, OURS) == ORDER


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl", ".bin"])
def test_pickles_are_refused_unopened(tmp_path: Path, quick: ScoreConfig, suffix: str) -> None:
    file = tmp_path / f"own{suffix}"
    file.write_bytes(b"anything")
    with pytest.raises(UsageError) as caught:
        load_own_classifier(file, OURS, quick)
    assert "save_file" in caught.value.hint


def test_files_that_are_no_classifier(tmp_path: Path, quick: ScoreConfig, tiny: torch.nn.Module) -> None:
    with pytest.raises(NotFoundError):
        load_own_classifier(tmp_path / "none.onnx", NAMES, quick)
    for name in ("broken.onnx", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"\x00" * 64)
        with pytest.raises(MismatchError):
            load_own_classifier(tmp_path / name, OURS, quick)
    with pytest.raises(UsageError, match="has inputs"):
        load_own_classifier(write_onnx(tmp_path / "flat.onnx", THEIRS, ("n", 3, "x")), OURS, quick)
    with pytest.raises(MismatchError, match="4 outputs but names 3 classes"):
        load_own_classifier(write_onnx(tmp_path / "three.onnx", THEIRS[:3]), THEIRS[:3], quick)
    with pytest.raises(MismatchError, match="cannot read an image of shape"):
        (tmp_path / "size.json").write_text('{"image_size": 16}')
        load_own_classifier(write_onnx(tmp_path / "size.onnx", THEIRS, ("n", 3, 32, 32)), OURS, quick)
    with pytest.raises(MismatchError, match=r"fc\.weight \(4, 64\) instead of \(3, 64\)"):
        load_own_classifier(write_safetensors(tiny, tmp_path / "w.safetensors", THEIRS[:3]), THEIRS[:3], quick)


@pytest.mark.parametrize("sidecar", [{"means": [0, 0, 0]}, {"image_size": "big"}, {"mean": [1, 2]}])
def test_a_wrong_sidecar_is_not_guessed_at(tmp_path: Path, quick: ScoreConfig, sidecar: dict[str, Any]) -> None:
    file = write_onnx(tmp_path / "own.onnx", THEIRS)
    file.with_suffix(".json").write_text(json.dumps(sidecar))
    with pytest.raises(UsageError, match=next(iter(sidecar))):
        load_own_classifier(file, OURS, quick)


def test_metadata_that_is_not_json(tmp_path: Path, quick: ScoreConfig, tiny: torch.nn.Module) -> None:
    save_file(tiny.state_dict(), tmp_path / "a.safetensors", {"class_names": "ant, bee"})
    with pytest.raises(UsageError, match="is no JSON list of names"):
        load_own_classifier(tmp_path / "a.safetensors", OURS, quick)


def test_probabilities_are_recognised_and_mean_what_the_logits_do(
    tmp_path: Path, digits: Digits, quick: ScoreConfig, make_manifest: MakeManifest
) -> None:
    manifest = make_manifest(digits[0][:6], np.arange(6) % 3, tuple(OURS))
    plain = load_own_classifier(write_onnx(tmp_path / "plain.onnx", THEIRS), OURS, quick)
    soft = load_own_classifier(write_onnx(tmp_path / "soft.onnx", THEIRS, softmax=True), OURS, quick)
    assert (plain.gives_probabilities, soft.gives_probabilities) == (False, True)
    ours, theirs = (score_with(own, manifest, "cpu", calibrate=False).columns["difficulty"] for own in (plain, soft))
    np.testing.assert_allclose(theirs, ours, atol=1e-5)


def test_weights_beside_a_graph_are_among_its_files(tmp_path: Path, quick: ScoreConfig) -> None:
    folder = tmp_path / "scorer"
    folder.mkdir()
    own = load_own_classifier(write_onnx(tmp_path / "own.onnx", THEIRS, data="weights.bin"), OURS, quick)
    assert classifier_files(own.file) == [own.file, tmp_path / "weights.bin"]
    copy = load_own_classifier(folder / copy_own_classifier(own, folder), OURS, quick)
    images = np.full((1, 16, 16, 3), 80, np.uint8)
    answers = [logits_of([one.model], images, one.preprocessing, "cpu") for one in (own, copy)]
    np.testing.assert_array_equal(*answers)


def test_a_graphs_weights_stay_in_its_folder(tmp_path: Path) -> None:
    file = write_onnx(tmp_path / "own.onnx", THEIRS, data="weights.bin")
    model = onnx.load(file, load_external_data=False)
    next(entry for entry in model.graph.initializer[0].external_data if entry.key == "location").value = "../x.bin"
    file.write_bytes(model.SerializeToString())
    with pytest.raises(UsageError, match=r"the weights .*x\.bin"):
        classifier_files(file)


def test_the_type_of_an_input_that_cannot_be_used_is_named(tmp_path: Path, quick: ScoreConfig) -> None:
    with pytest.raises(UsageError, match=r"tensor\(float16\)"):
        load_own_classifier(write_onnx(tmp_path / "half.onnx", THEIRS, kind=TensorProto.FLOAT16), OURS, quick)


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_of_training_are_taken_off(
    tmp_path: Path, quick: ScoreConfig, tiny: torch.nn.Module, wrapper: str
) -> None:
    file = tmp_path / "a.safetensors"
    save_file({wrapper + key: tensor for key, tensor in tiny.state_dict().items()}, file)
    own = load_own_classifier(file, OURS, quick, class_map=THEIRS)
    images = np.zeros((1, 32, 32, 3), np.uint8)
    expected = logits_of([tiny], images, own.preprocessing, "cpu")[0][:, ORDER]
    np.testing.assert_allclose(logits_of([own.model], images, own.preprocessing, "cpu")[0], expected, atol=1e-5)


def test_a_folder_of_timms_says_all_itself(tmp_path: Path, quick: ScoreConfig, tiny: torch.nn.Module) -> None:
    save_file(tiny.state_dict(), tmp_path / "model.safetensors")
    described = {
        "architecture": quick.model,
        "num_classes": 4,
        "label_names": THEIRS,
        "model_args": quick.model_args,
        "pretrained_cfg": {"input_size": [3, 40, 40], "mean": [0.1, 0.2, 0.3], "std": [1, 1, 1], "crop_pct": 0.9,
                           "interpolation": "bilinear"},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(described))
    own = load_own_classifier(tmp_path, OURS, ClassifierConfig.model_validate({}))
    used = own.preprocessing.data_config
    assert own.class_names == ("dog", "ant", "cat", "bee") and used["input_size"] == (3, 40, 40)
    assert (used["mean"], used["crop_pct"], used["interpolation"]) == ((0.1, 0.2, 0.3), 0.9, "bilinear")
    assert tmp_path / "config.json" in classifier_files(tmp_path)
    (tmp_path / "config.json").write_text('{"architecture": "resnet10t", "pretrained_cfg": [1]}')
    with pytest.raises(UsageError, match="no description of a timm model"):
        load_own_classifier(tmp_path, OURS, quick)
