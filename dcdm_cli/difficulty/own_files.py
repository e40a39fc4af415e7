"""The files of a user's own classifier: weights, an ONNX graph's external data, and what describes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dcdm_cli.errors import MismatchError, NotFoundError, UsageError

TIMM_WEIGHTS, TIMM_CONFIG = "model.safetensors", "config.json"


def classifier_file(given: Path) -> Path:
    """The weights or graph that a path means; of a folder, what timm writes for the hub. Raises NotFoundError."""
    file = given / TIMM_WEIGHTS if given.is_dir() else given
    if not file.is_file():
        raise NotFoundError(
            f"no classifier at {file}",
            f"check the path of your classifier; a folder holds {TIMM_WEIGHTS} and {TIMM_CONFIG}, as timm writes them",
            file=file,
        )
    return file


def classifier_files(given: Path) -> list[Path]:
    """All files that what the classifier says depends on, as far as they are there."""
    file = given / TIMM_WEIGHTS if given.is_dir() else given
    beside = [file, file.with_suffix(".json"), file.with_name(TIMM_CONFIG), *external_data(file)]
    return [one for one in dict.fromkeys(beside) if one.is_file()]


def external_data(file: Path) -> list[Path]:
    """The files beside an ONNX graph that hold its weights; none for other files, and for what cannot be read.

    Raises MismatchError for a place outside the graph's folder.
    """
    if file.suffix.lower() != ".onnx" or not file.is_file():
        return []
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(str(file), load_external_data=False).graph
    except DecodeError:  # opening it says so better
        return []
    found = dict.fromkeys(location for tensor in _tensors(graph) for location in _locations(tensor))
    return [_inside(file, location) for location in found]


def timm_description(file: Path) -> dict[str, Any]:
    """What timm's `config.json` beside the weights says, in the words of a sidecar; empty without one.

    Raises UsageError for one that is no JSON object.
    """
    config = file.with_name(TIMM_CONFIG)
    if not config.is_file():
        return {}
    try:
        stated = json.loads(config.read_text("utf-8"))
        if "architecture" not in stated:
            return {}
        cfg = stated.get("pretrained_cfg") or {}
        names = stated.get("label_names") or cfg.get("label_names")
        size = cfg.get("input_size")
        said = {
            "class_names": names,
            "model": stated["architecture"],
            "model_args": stated.get("model_args"),
            "image_size": size[-1] if size else None,
            **{key: cfg.get(key) for key in ("mean", "std", "crop_pct", "interpolation")},
        }
    except (OSError, ValueError, TypeError, AttributeError, IndexError, KeyError, RecursionError) as error:
        raise UsageError(
            f"{config} is no description of a timm model: {error}",
            "write it again: timm.models.save_for_hf",
            file=config,
        ) from error
    return {key: value for key, value in said.items() if value is not None}


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _tensors(inner)


def _locations(tensor: Any) -> Iterator[str]:
    return (entry.value for entry in tensor.external_data if entry.key == "location")


def _inside(file: Path, location: str) -> Path:
    place = (file.parent / location).resolve()
    if not place.is_relative_to(file.parent.resolve()):
        raise MismatchError(
            f"{file} keeps weights outside its folder, at {location!r}", "export it with its data beside it", file=file
        )
    return file.parent / location
