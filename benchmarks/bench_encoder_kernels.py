"""Which part of the difficulty token's cost is the encoder's: the time inside OpenVINO's kernels, by its own clock.

    python benchmarks/bench_encoder_kernels.py       about 3 minutes on 2 cores

On the wall clock the token is lost among what neighbours on the machine and the place of the memory do to a step
(bench_encoder_overhead.py). The runtime's own profile times each kernel; only those whose work a token can change are
compared. Four graphs of the tiny base take turns: with and without the token, with the token in place of a padding
token, and with a text that is longer by a token but no encoder. Writes results/bench_encoder_kernels.json and ends with
it as a JSON line.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from bench_encoder_overhead import (
    GOAL,
    LONGER_SHAPE,
    NO_ENCODER,
    PLAIN,
    REPLACING,
    TINY_SHAPE,
    exported,
    guided_inputs,
    make_adapters,
)
from common import WORK, in_turn, mean_of_medians, write_result

from dcdm_cli.backends.ov_backend import shared_core
from dcdm_export.signature import DENOISER, read_signature

APPENDED, REPLACED = "1 token", f"1 token {REPLACING}"
ENCODER, TEXT, ATTENTION, REST = "encoder", "append and projections", "attention to the text", "the rest"
CHANGING = (ENCODER, TEXT, ATTENTION)  # the rest is the same work in every graph, and drifts by more than the token
Profile = Mapping[str, float]  # part -> seconds of a step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16, help="images of one chunk, as generation cuts them")
    parser.add_argument("--openings", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60, help="per opening")
    options = parser.parse_args()
    if not importlib.util.find_spec("openvino"):
        sys.exit("this needs OpenVINO: pip install 'dcdm-cli[openvino]'")
    adapters, profiles = make_adapters(WORK / "overhead"), dict[str, list[list[Profile]]]()
    for _ in range(options.openings):
        steps = open_steps(adapters, options.batch)
        for name, found in in_turn(steps, options.steps).items():
            profiles.setdefault(name, []).append(found)
    table = [row(name, profiles) for name in profiles if name != PLAIN]
    whole = statistics.median(sum(step.values()) for part in profiles[PLAIN] for step in part)
    document = {
        "title": "What of the token's cost is the encoder's",
        "sentences": sentences(table),
        "tables": [sheet(table)],
    }
    headline = {entry["network"]: entry["overhead"] for entry in table}
    more = {"batch": options.batch, "ms_without": round(1e3 * whole, 3), "networks": table}
    write_result("bench_encoder_kernels", {**document, **more, "headline": headline}, headline)


def open_steps(adapters: Mapping[str, Path], batch: int) -> dict[str, Callable[[], Profile]]:
    return {
        PLAIN: profiled(exported(adapters[PLAIN])[1], batch, TINY_SHAPE),
        NO_ENCODER: profiled(exported(adapters[PLAIN], 1)[1], batch, LONGER_SHAPE),
        APPENDED: profiled(exported(adapters[APPENDED])[1], batch, TINY_SHAPE),
        REPLACED: profiled(exported(adapters[REPLACED])[1], batch, TINY_SHAPE),
    }


def profiled(export: Path, batch: int, shape: tuple[int, int, int]) -> Callable[[], Profile]:
    """A guided step on one thread, which returns what its kernels took."""
    network = read_signature(export).networks[DENOISER]
    model, parts = shared_core().read_model(export / network.file), parts_of(export / network.file)
    model.reshape({spec.name: [2 * batch, *spec.shape[1:]] for spec in network.inputs})
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "PERF_COUNT": True}
    compiled = shared_core().compile_model(model, "CPU", settings)
    kernels = {kernel.get_friendly_name(): part_of(kernel, parts) for kernel in compiled.get_runtime_model().get_ops()}
    request = compiled.create_infer_request()
    for spec, tensor in zip(network.inputs, guided_inputs(batch, shape), strict=True):
        request.get_tensor(spec.name).data[:] = tensor.numpy()

    def step() -> Profile:
        request.infer()
        taken = dict.fromkeys((*CHANGING, REST), 0.0)
        for node in request.get_profiling_info():
            taken[kernels.get(node.node_name, REST)] += node.real_time.total_seconds()
        return taken

    return step


def parts_of(file: Path) -> dict[str, str]:
    """Node of the graph -> part, by the inputs it depends on."""
    graph = onnx.load(file, load_external_data=False).graph
    depends = {entry.name: {entry.name} for entry in graph.input}
    parts: dict[str, str] = {}
    for node in graph.node:  # in topological order
        above = [depends.get(name, set()) for name in node.input]
        own = set[str]().union(*above)
        depends |= dict.fromkeys(node.output, own)
        if own and own <= {"label", "difficulty"}:
            parts[node.name] = ENCODER
        elif own and own <= {"text", "label", "difficulty"}:
            parts[node.name] = TEXT
        elif any("text" in names and "latents" not in names for names in above):
            parts[node.name] = ATTENTION
    return parts


def part_of(kernel: Any, parts: Mapping[str, str]) -> str:
    """The part of a kernel, which may be several nodes fused: attention before projections before encoder."""
    names = kernel.get_rt_info()["originalLayersNames"].astype(str).split(",")
    found = {parts[name] for name in names if name in parts}
    return next((part for part in reversed(CHANGING) if part in found), REST)


def row(name: str, profiles: Mapping[str, Sequence[Sequence[Profile]]]) -> dict[str, Any]:
    """How much more than without the token, as a part of the whole step without it."""

    def more(parts: Sequence[str]) -> tuple[float, float, float]:
        return mean_of_medians(
            [
                [sum(mine[part] - plain[part] for part in parts) / sum(plain.values()) for mine, plain in turns]
                for turns in map(zip, profiles[name], profiles[PLAIN])
            ]
        )

    value, low, high = more(CHANGING)
    by_part = {part: round(more([part])[0], 5) for part in CHANGING}
    return {"network": name, "overhead": round(value, 5), "interval": [round(low, 5), round(high, 5)], "parts": by_part}


def sentences(table: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = {entry["network"]: entry for entry in table}
    longer, appended, replaced = (rows[name] for name in (NO_ENCODER, APPENDED, REPLACED))
    alone, judged = appended["parts"][ENCODER], "met" if appended["parts"][ENCODER] <= GOAL else "NOT met"
    left = "no encoder can" if longer["overhead"] > GOAL else "an encoder could"
    return [
        f"The encoder itself takes {alone:.2%} of a step; goal {GOAL:.0%} {judged}.",
        f"A text longer by a token takes {longer['overhead']:.2%} without any encoder, so {left} be appended to this "
        f"base's texts for {GOAL:.0%}: with ours it is {appended['overhead']:.2%}.",
        f"In place of a padding token, everything together takes {replaced['overhead']:.2%}.",
    ]


def sheet(table: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    rows = [
        [entry["network"], f"{entry['overhead']:+.2%}", "{:+.2%} to {:+.2%}".format(*entry["interval"])]
        + [f"{entry['parts'][part]:+.2%}" for part in CHANGING]
        for entry in table
    ]
    columns = ["network", "all three", "95 % interval", *CHANGING]
    return {
        "title": "Time inside OpenVINO's kernels, as part of a step without token",
        "columns": columns,
        "rows": rows,
    }


if __name__ == "__main__":
    main()
