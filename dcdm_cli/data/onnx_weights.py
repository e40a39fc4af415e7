"""Weights that an ONNX graph keeps in files beside itself: which they are. Their names come from the graph, so they are
not trusted: each must lie in the graph's folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dcdm_cli.errors import MismatchError, UsageError
from dcdm_export import places

_AGAIN = "export it again, or name another file"
_BESIDE = "put them beside the graph, under the name that the graph has for them"


def external_data(file: Path) -> list[str]:
    """Names of the files beside an ONNX graph that hold its weights, relative to its folder; none for another file.

    Raises UsageError for one that is missing or lies outside that folder, MismatchError for what is no ONNX file.
    """
    if file.suffix.lower() != ".onnx":
        return []
    import onnx
    from onnx.external_data_helper import uses_external_data

    try:
        model = onnx.load(str(file), load_external_data=False)  # where it says its weights are is not trusted yet
        tensors = [tensor for tensor in _tensors(model.graph) if uses_external_data(tensor)]
    except Exception as error:  # protobuf's and onnx's own
        raise MismatchError(f"{file} is not a readable ONNX file: {error}", _AGAIN, file=file) from error
    stored = [{entry.key: entry.value for entry in tensor.external_data}.get("location", "") for tensor in tensors]
    names = list(dict.fromkeys(stored))
    for name in names:
        try:
            found = places.inside(file.parent, name).is_file()
        except places.OutsideError as error:
            raise UsageError(f"{file}: the weights {error}", _BESIDE, file=file) from error
        if not found:
            raise UsageError(f"{file} keeps weights in {name!r}, which is not there", _BESIDE, file=file)
    return names


def _tensors(graph: Any) -> Iterator[Any]:
    """Every stored tensor of a graph and of the graphs in it."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            # protobuf gives an empty message for a field that is not set
            yield from ([attribute.t] if attribute.HasField("t") else [])
            yield from attribute.tensors
            for inner in ([attribute.g] if attribute.HasField("g") else []), attribute.graphs:
                for one in inner:
                    yield from _tensors(one)
