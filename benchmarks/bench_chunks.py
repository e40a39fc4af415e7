"""What a guided step costs on one CPU thread by the images that go through together, and where ONNX Runtime's time is.

    python benchmarks/bench_chunks.py --run bench-run    a finished `dcdm demo`, which is exported; a minute

Milliseconds of processor time per image and step, medians of interleaved rounds, so that other work on the machine
distorts little: OpenVINO and ONNX Runtime as the backends open them, and ONNX Runtime with the file as it is, whose
group norms have no kernel there (`dcdm_cli/backends/ort_graph.py`). Then the shares of ONNX Runtime's operators by its
own profiler. Writes results/bench_chunks.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from common import ROOT, write_result

from dcdm_cli.backends.ort_graph import for_cpu
from dcdm_cli.backends.ov_backend import shared_core
from dcdm_export.signature import NetworkFile, read_signature

CHUNKS, ROUNDS, SHOWN, SIX = (1, 2, 3, 4, 6, 8), 15, 8, 6
NAMES = ("openvino", "onnxruntime", "onnxruntime, the file as it is")
Feed = dict[str, np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=ROOT / "bench-run")
    folder = parser.parse_args().run / "export"
    signature = read_signature(folder)
    network = signature.networks["denoiser"]
    calls = network.shared_calls
    file = folder / network.file
    ours, plain = (opened(model) for model in (for_cpu(file), file))
    check_same(ours, plain, feed_of(network, calls * CHUNKS[0]))
    times = {images: measured(file, feed_of(network, calls * images), images, ours, plain) for images in CHUNKS}
    with tempfile.TemporaryDirectory() as place:
        shares = by_operator(for_cpu(file), feed_of(network, calls * SIX), Path(place))
    rows = [[images, *(f"{1000 * taken:.2f}" for taken in of.values())] for images, of in times.items()]
    fixed = {name: 1000 * fixed_cost({images: of[name] for images, of in times.items()}) for name in NAMES}
    sentences = [
        f"A call costs {fixed['openvino']:.1f} ms with OpenVINO and {fixed['onnxruntime']:.1f} ms with ONNX Runtime "
        f"whatever it holds: {len(onnx.load(file).graph.node)} operators, most of them short.",
        f"With InstanceNormalization in place of GroupNormalization ONNX Runtime takes "
        f"{times[SIX][NAMES[1]] / times[SIX][NAMES[2]] - 1:+.0%} at {SIX} images.",
    ]
    tables = [
        {"title": "ms of one thread per image and step", "columns": ["images", *NAMES], "rows": rows},
        {
            "title": "ONNX Runtime by operator",
            "columns": ["operator", "share"],
            "rows": [[name, f"{share:.1%}"] for name, share in shares.most_common(SHOWN)],
        },
    ]
    found = {"threads": 1, "calls": calls, "milliseconds of a call": {k: round(v, 2) for k, v in fixed.items()}}
    write_result("bench_chunks", {**found, "sentences": sentences, "tables": tables}, found)


def measured(
    file: Path, feed: Feed, images: int, ours: onnxruntime.InferenceSession, plain: onnxruntime.InferenceSession
) -> dict[str, float]:
    """Way -> seconds of processor time per image."""
    request = in_openvino(file, feed)
    works: tuple[Callable[[], Any], ...] = (
        lambda: request.infer(feed),
        lambda: ours.run(None, feed),
        lambda: plain.run(None, feed),
    )
    taken: dict[str, list[float]] = {name: [] for name in NAMES}
    for _ in range(ROUNDS):
        for name, work in zip(NAMES, works, strict=True):
            clock = time.process_time()
            work()
            taken[name].append((time.process_time() - clock) / images)
    return {name: statistics.median(times) for name, times in taken.items()}


def fixed_cost(seconds: dict[int, float]) -> float:
    """Of a call: where the line through seconds per call over images meets none."""
    images = np.array([*seconds], float)
    return float(np.polyfit(images, images * np.array([*seconds.values()]), 1)[1])


def feed_of(network: NetworkFile, rows: int) -> Feed:
    rng, feed = np.random.default_rng(0), {}
    for spec in network.inputs:
        shape = (rows, *(int(side) for side in spec.shape[1:]))
        feed[spec.name] = np.zeros(shape, np.int64) if spec.dtype == "int64" else rng.random(shape, np.float32)
    return feed


def opened(model: Path | bytes, profile: Path | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def in_openvino(file: Path, feed: Feed) -> Any:
    model = shared_core().read_model(file)
    model.reshape({name: list(tensor.shape) for name, tensor in feed.items()})
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    return shared_core().compile_model(model, "CPU", settings).create_infer_request()


def check_same(a: onnxruntime.InferenceSession, b: onnxruntime.InferenceSession, feed: Feed) -> None:
    """Raises SystemExit where they differ by more than rounding: what is compared must compute the same."""
    first, second = (np.asarray(session.run(None, feed)[0]) for session in (a, b))
    if not np.allclose(first, second, atol=1e-4 * float(np.abs(first).max())):
        raise SystemExit("the rewritten network computes something else")


def by_operator(model: Path | bytes, feed: Feed, place: Path) -> Counter[str]:
    """Share of the time in kernels, by kind of operator."""
    session = opened(model, place / "profile")
    for _ in range(ROUNDS):
        session.run(None, feed)
    events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    spent: Counter[str] = Counter()
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"]
    total = sum(spent.values())
    return Counter({name: microseconds / total for name, microseconds in spent.items()})


if __name__ == "__main__":
    main()
