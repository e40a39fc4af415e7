"""Rewrites tensorrt_operators.json from a real parser: python -m tests.export.tensorrt_operators"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import onnx

LIST = Path(__file__).with_name("tensorrt_operators.json")


def supported_operators(rtx: ModuleType) -> list[str]:
    """Every ONNX operator that the parser says it supports."""
    log = rtx.Logger(rtx.Logger.ERROR)
    network = rtx.Builder(log).create_network(0)
    parser = rtx.OnnxParser(network, log)
    names = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    return sorted(name for name in names if parser.supports_operator(name))


if __name__ == "__main__":
    from .tensorrt_rtx import load_rtx

    module = load_rtx()
    source = f"OnnxParser.supports_operator of TensorRT-RTX {module.__version__}, asked for every operator of ONNX"
    LIST.write_text(json.dumps({"source": source, "operators": supported_operators(module)}, indent=1) + "\n", "utf-8")
