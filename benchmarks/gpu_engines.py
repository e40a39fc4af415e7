"""Stable Diffusion 1.5's architecture exported for a GPU: ONNX Runtime's graphs or TensorRT's engines, against PyTorch.

    python benchmarks/gpu_engines.py onnxruntime             512 px, batch 32 x 2 calls, fp16
    python benchmarks/gpu_engines.py tensorrt                builds the engines first: minutes
    python benchmarks/gpu_engines.py onnxruntime --sketch    the same code on a toy architecture and a CPU

Parity first: graphs and engines pass the gate of `dcdm export` on this GPU, or there is no export; then two images of
the opened backend must be PyTorch's. Nothing is timed without. Writes results/gpu_engines_<backend>.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from common import WORK, gpu_or_sketch, interleaved, release, write_result
from gpu_paths import ALIKE, Conditions, alike, images_per_second, parity_images
from rivals import CALLS, Ours, config, engine_around, sd15_model, torch_engine, write_export

from dcdm_cli.backends.choice import Wanted, choose_backend
from dcdm_cli.backends.torch_backend import TorchOptions
from dcdm_cli.errors import CapabilityError
from dcdm_cli.generation.engine import Engine
from dcdm_cli.model.fused import FusedModel
from dcdm_cli.model.latents import torch_decoder
from dcdm_cli.run.settings import GenerateConfig
from dcdm_export.orders import EngineOrder

BACKENDS = ("onnxruntime", "tensorrt")
DECODED = 8  # images that the decoder's engine takes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("backend", choices=BACKENDS)
    parser.add_argument("--sketch", action="store_true")
    options = parser.parse_args()
    name = gpu_or_sketch(f"gpu_engines_{options.backend}", sketch=options.sketch)
    if name is None:
        return
    place = Conditions("cpu", "fp32", 2, 2, True) if options.sketch else Conditions("cuda", "fp16", 32, 20, False)
    try:
        found = measure(options.backend, place)
    except CapabilityError as error:  # no CUDA provider, no TensorRT, no GPU for it
        print(json.dumps({"name": name, "measured": False, "reason": error.message}))
        return
    write_result(name, document(found, place), found)


def measure(backend: str, place: Conditions) -> dict[str, Any]:
    """Images/s and a guided step of the network, of PyTorch and of the backend. Stops where the images differ."""
    clock, folder = time.monotonic(), WORK / f"gpu-engines-{backend}"
    make_files(backend, place, folder)
    made_in = time.monotonic() - clock
    settings = config(place.steps, precision=place.precision, batch_size=place.batch, decode_batch=DECODED)
    rows, reference = [], None
    for name in ("torch", backend):
        engine = open_backend(name, place, folder, settings)
        made = parity_images(engine)
        reference = made if reference is None else reference
        share = alike(made, reference)
        if share < ALIKE:
            sys.exit(f"{name} does not make PyTorch's images ({share:.1%} alike): no result is written")
        rows.append({"backend": name, "values alike": share, **speed(engine, place)})
        del engine
        release()
    return {"batch": place.batch, "seconds to export": round(made_in, 1), "table": rows}


def speed(engine: Engine, place: Conditions) -> dict[str, float]:
    rate, _ = images_per_second(engine, place.device, None)
    step = interleaved({"": Ours(engine).step(place.batch)}, 5, place.device)[""]
    return {"images/s": round(rate, 3), "ms per guided step": round(1e3 * statistics.median(step), 2)}


def make_files(backend: str, place: Conditions, folder: Path) -> None:
    """The export, compared with PyTorch where it will run. Raises CapabilityError where it cannot be made."""
    engines = engine_order(place) if backend == "tensorrt" else None
    model = on_cpu(sd15_model(place.device, "fp32", small=place.sketch))
    write_export(
        model, folder / "adapter", folder / "export", precision=place.precision, device=place.device, engines=engines
    )
    del model
    release()


def on_cpu(model: FusedModel) -> FusedModel:
    """Random weights are drawn on the device, which is faster; graphs are traced on the CPU."""
    for part in (model.network, model.base.vae, model.base.text_encoder):
        torch.nn.Module.to(part, "cpu")
    return model


def engine_order(place: Conditions) -> EngineOrder:
    from dcdm_cli.backends.trt_backend import cuda_gpu, engine_opener, tensorrt_problems
    from dcdm_export.engine_key import EngineSettings
    from dcdm_export.signature import DENOISER, VAE_DECODER
    from dcdm_export.trt_engine import import_tensorrt

    with tensorrt_problems():
        trt, gpu = import_tensorrt(), cuda_gpu()
    batches = {DENOISER: (place.batch,), VAE_DECODER: (DECODED,)}
    opener = engine_opener(trt, gpu, place.device)
    return EngineOrder(trt, gpu, batches, EngineSettings(), open=opener, attended=frozenset({DENOISER}))


def open_backend(name: str, place: Conditions, folder: Path, settings: GenerateConfig) -> Engine:
    """As a run opens it. torch: with its VAE in the network's precision, as the export has it."""
    model = sd15_model(place.device, place.precision, small=place.sketch)
    settings = settings.model_copy(update={"backend": name})
    half = torch.float32 if place.precision == "fp32" else torch.float16
    if name == "torch":
        engine = torch_engine(model, settings, place.device, TorchOptions(CALLS))
        return engine_around(model, engine.denoiser, torch_decoder(model.base.vae, half), settings)
    wanted = Wanted(folder / "adapter", model.info, settings, place.device, folder / "export", frozenset({CALLS}))
    opened = choose_backend(wanted).opened
    assert opened is not None, "asked for by name"
    return engine_around(model, opened.denoiser, opened.decode or torch_decoder(model.base.vae, half), settings)


def document(found: dict[str, Any], place: Conditions) -> dict[str, Any]:
    """With what `documents.py` shows of it."""
    first, second = found["table"]
    times = second["images/s"] / first["images/s"]
    where = f"SD 1.5 architecture, random weights, 512 px, two calls, batch {place.batch}, {place.precision}"
    sheet = {"title": "End to end to PNG files, and the network alone", "columns": list(first)}
    return {
        "title": f"{second['backend']} against PyTorch: {where}, {place.device}",
        "sentences": [
            f"{second['backend']}: {times:.2f} times PyTorch's images/s, {second['values alike']:.1%} alike."
        ],
        "tables": [{**sheet, "rows": [list(row.values()) for row in found["table"]]}],
        **found,
    }


if __name__ == "__main__":
    main()
