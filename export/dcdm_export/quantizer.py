"""The process in which ModelOpt quantises a graph: python -m dcdm_export.quantizer GRAPH CALLS MADE

CALLS: an .npz with `<number>/<input>` for each call, all of one shape. It ends when its stdin does.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime.quantization import CalibrationDataReader


class StoredCalls(CalibrationDataReader):
    """As ONNX Runtime's calibration and ModelOpt read them, several times over."""

    def __init__(self, file: Path) -> None:
        with np.load(file, allow_pickle=False) as stored:
            self._calls: dict[int, dict[str, np.ndarray]] = {}
            for key in stored.files:
                number, _, name = key.partition("/")
                self._calls.setdefault(int(number), {})[name] = stored[key]
        self.rewind()

    def get_next(self) -> Any:
        return next(self._coming, None)

    def get_first(self) -> Mapping[str, np.ndarray]:
        return self._calls[0]

    def rewind(self) -> None:
        self._coming = iter(self._calls.values())


def main(graph: str, calls: str, made: str) -> None:
    from modelopt.onnx.quantization import quantize

    reader = StoredCalls(Path(calls))
    # ModelOpt follows shapes through the graph, and takes a batch without a number for one
    shapes = ",".join(f"{name}:{'x'.join(map(str, array.shape))}" for name, array in reader.get_first().items())
    quantize(
        graph,
        quantize_mode="fp8",
        calibration_data_reader=reader,
        calibration_method="max",
        calibration_eps=["cpu"],
        override_shapes=shapes,
        use_external_data_format=Path(f"{graph}.data").exists(),
        high_precision_dtype="fp16",
        output_path=made,
        log_level="ERROR",
    )


def _end_with_the_parent() -> None:
    # nobody writes to it, so that it ends with the parent
    sys.stdin.read()
    os._exit(1)  # sys.exit would end this thread alone


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    main(*sys.argv[1:])
