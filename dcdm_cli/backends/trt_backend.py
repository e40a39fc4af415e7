"""TensorRT engines of the denoiser and the VAE decoder: torch's CUDA memory, one CUDA graph per engine.

Comes in: an export folder with engines for this GPU. Each engine has a fixed set of buffers, so that a call copies its
rows in, replays one graph and copies what it gives out; engines for several batch sizes share the work of a call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dcdm_cli.errors import CapabilityError, MismatchError
from dcdm_cli.model.export_folder import signature_problems
from dcdm_cli.workers.devices import on_device
from dcdm_export.engine_key import EngineError, Gpu, check_engine
from dcdm_export.signature import DENOISER, VAE_DECODER, NetworkFile, Signature
from dcdm_export.trt_engine import MissingTensorRT, import_tensorrt, load_engine

REMEDY = "build engines here: dcdm export --target tensorrt"
# What one more call costs, in images. A call on few images is bound by launches and by reading the weights, not by
# arithmetic: public figures for Stable Diffusion on an H100 at batch 1 lie at 11 to 30 % of the batched rate.
CALL_COST = 4


def cuda_gpu(device: str = "cuda") -> Gpu:
    """The GPU that engines are built for and run on. Raises CapabilityError when there is none."""
    if not torch.cuda.is_available():
        raise CapabilityError(
            "TensorRT engines are built on the GPU that will run them, and there is none here",
            "use ONNX here, and dcdm export --target tensorrt on the machine with the GPU",
        )
    major, minor = torch.cuda.get_device_capability(device)
    return Gpu(torch.cuda.get_device_name(device), f"{major}.{minor}")


def open_tensorrt(
    folder: Path, signature: Signature, device: str, *, trust: bool = False
) -> tuple[TrtDenoiser, TrtDecoder | None]:
    """Denoiser and decoder of an export folder whose signature `open_export` gave; None = the decoder has no engine.

    trust: load engines although their origin is not known. Raises CapabilityError without TensorRT or GPU,
    MismatchError when no engine of the denoiser fits.
    """
    with tensorrt_problems():
        trt, gpu = import_tensorrt(), cuda_gpu(device)
        denoiser = TrtDenoiser(trt, gpu, folder, signature, device, trust=trust)
        try:
            return denoiser, TrtDecoder(trt, gpu, folder, signature, device, trust=trust)
        except EngineError:
            return denoiser, None


def engine_opener(trt: Any, gpu: Gpu, device: str) -> Callable[[Path, Signature, str], Callable[..., np.ndarray]]:
    """Opens the engines of a folder for the gate: (folder, signature, network) -> its inputs -> its output."""

    def open_engines(folder: Path, signature: Signature, name: str) -> Callable[..., np.ndarray]:
        network = TrtNetwork(trt, gpu, folder, signature, device, name)

        def run(*inputs: Tensor) -> np.ndarray:
            return network.run(*(tensor.to(device) for tensor in inputs)).cpu().numpy()

        return run

    return open_engines


@contextmanager
def tensorrt_problems() -> Iterator[None]:
    """Turns dcdm_export's exceptions into the errors users see, with the remedy."""
    try:
        with signature_problems():
            yield
    except MissingTensorRT as error:
        raise CapabilityError(str(error), "pip install 'dcdm-cli[tensorrt]', or use another backend") from error
    except EngineError as error:
        raise MismatchError(str(error), f"{REMEDY}, or pass --trust-engine if you know where it comes from") from error


class TrtNetwork:
    """Runs a batch of any size on a network's engines; inputs and output are float32. Engines load when first needed.

    trt: the tensorrt module. name: of the network in the signature. Raises EngineError when no engine fits.
    """

    def __init__(
        self,
        trt: Any,
        gpu: Gpu,
        folder: Path,
        signature: Signature,
        device: str,
        name: str,
        *,
        trust: bool = False,
    ) -> None:
        self.device = device
        self._trt, self._network = trt, _network_of(folder, signature, name)
        self.shared_calls = self._network.shared_calls
        self._files = _fitting_engines(trt, gpu, folder, signature, name, trust)
        self._open: dict[int, _Engine] = {}
        # one of its own: no graph can be captured on the default stream
        self._stream = torch.cuda.Stream(device) if device.startswith("cuda") else None

    @torch.inference_mode()
    def run(self, *inputs: Tensor) -> Tensor:
        """Inputs in the graph's order, the rows of an image `shared_calls` apart."""
        given = {spec.name: value for spec, value in zip(self._network.inputs, inputs, strict=True)}
        calls, images = self.shared_calls, _count_images(self._network, given)
        apart = {name: value.unflatten(0, (calls, images)) for name, value in given.items()}
        parts, start = [], 0
        with on_device(self.device):  # TensorRT loads and runs on the current GPU
            for size, count in split_batch(images, tuple(sorted(self._files))):
                rows = {name: value[:, start : start + count] for name, value in apart.items()}
                parts.append(self._engine(size).run(rows, count))
                start += count
        return torch.cat(parts, dim=1).flatten(0, 1)

    def release(self) -> None:
        """Gives memory back after it ran out: engines load again when they are needed."""
        self._open.clear()

    def _engine(self, size: int) -> _Engine:
        if size not in self._open:
            try:
                with tensorrt_problems():
                    engine = load_engine(self._trt, self._files[size])
                    self._open[size] = _Engine(self._trt, engine, self._network, size, self.device, self._stream)
            except (MemoryError, torch.OutOfMemoryError):
                # the smallest stays: where not even that fits, each call says so
                if size > min(self._files):
                    del self._files[size]  # a smaller batch must not be filled up to this one
                raise
        return self._open[size]


class TrtDenoiser(TrtNetwork):
    """The denoiser's engines behind the contract. Any batch is split over them, so none costs a new compilation."""

    name = "tensorrt"
    fixed_batch = False

    def __init__(
        self, trt: Any, gpu: Gpu, folder: Path, signature: Signature, device: str, *, trust: bool = False
    ) -> None:
        super().__init__(trt, gpu, folder, signature, device, DENOISER, trust=trust)

    def __call__(self, latents: Tensor, timestep: Tensor, text: Tensor, label: Tensor, difficulty: Tensor) -> Tensor:
        return self.run(latents, timestep.float(), text, label, difficulty)


class TrtDecoder(TrtNetwork):
    """The decoder's engines: scaled latents float32 [B, C, h, w] -> images float32 [B, 3, H, W] in about [-1, 1]."""

    def __init__(
        self, trt: Any, gpu: Gpu, folder: Path, signature: Signature, device: str, *, trust: bool = False
    ) -> None:
        super().__init__(trt, gpu, folder, signature, device, VAE_DECODER, trust=trust)

    def __call__(self, latents: Tensor) -> Tensor:
        return self.run(latents)


class _Engine:
    """One loaded engine with buffers for its largest batch and, when its batch is fixed, its CUDA graph."""

    def __init__(
        self, trt: Any, engine: Any, network: NetworkFile, size: int, device: str, stream: torch.cuda.Stream | None
    ) -> None:
        self._network, self._stream = network, stream
        self._fixed = _check_profile(trt, engine, network, size)
        self._context = context = engine.create_execution_context()
        if context is None:  # TensorRT's way of saying so
            raise MemoryError(f"TensorRT has no memory for the engine of batch {size}: out of memory")
        rows = size * network.shared_calls
        # zeros: a first batch that is not full computes the rows that were never filled too
        self._buffers = {
            spec.name: torch.zeros(rows, *spec.shape[1:], dtype=getattr(torch, spec.dtype), device=device)  # pyright: ignore
            for spec in (*network.inputs, *network.outputs)
        }
        for name, buffer in self._buffers.items():
            context.set_tensor_address(name, buffer.data_ptr())
        self._resize(size)
        self._graph = self._capture() if self._fixed and stream is not None else None

    def run(self, rows: Mapping[str, Tensor], count: int) -> Tensor:
        """rows: [shared_calls, count, ...] by input name -> the output [shared_calls, count, ...].

        A fixed batch that is not full computes the rows that were there before once more, and drops them.
        """
        if not self._fixed:
            self._resize(count)
        for name, value in rows.items():
            self._view(name)[:, :count].copy_(value)
        with _side_stream(self._stream):
            if self._graph is not None:
                self._graph.replay()
            else:
                self._execute()
        # the caller's own: solvers keep predictions, and the next call writes over the buffer
        return self._view(self._network.outputs[0].name)[:, :count].clone()

    def _execute(self) -> None:
        if not self._context.execute_async_v3(0 if self._stream is None else self._stream.cuda_stream):
            raise CapabilityError("TensorRT could not run the engine", REMEDY)

    def _capture(self) -> torch.cuda.CUDAGraph:
        with _side_stream(self._stream):
            self._execute()  # the first run sets things up that a graph must not contain
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            self._execute()
        return graph

    def _resize(self, images: int) -> None:
        """Tells the context how many rows come; the buffers stay where they are."""
        self._rows = images * self._network.shared_calls
        for spec in self._network.inputs:
            self._context.set_input_shape(spec.name, (self._rows, *spec.shape[1:]))
        if missing := self._context.infer_shapes():
            raise EngineError(f"the engine wants a shape for {', '.join(missing)}")

    def _view(self, name: str) -> Tensor:
        """The part of a buffer that the engine uses, [shared_calls, images, ...]."""
        return self._buffers[name][: self._rows].unflatten(0, (self._network.shared_calls, -1))


@lru_cache(maxsize=256)
def split_batch(images: int, sizes: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """How to run `images` images on engines of these sizes: (engine's size, images in it), the cheapest way.

    A call costs its size, full or not, and CALL_COST. sizes rise.
    """
    cost: list[int] = [0]
    plans: list[tuple[tuple[int, int], ...]] = [()]
    for n in range(1, images + 1):
        size = min(sizes, key=lambda size: size + CALL_COST + cost[max(0, n - size)])
        cost.append(size + CALL_COST + cost[max(0, n - size)])
        plans.append(((size, min(size, n)), *plans[max(0, n - size)]))
    return plans[images]


def _network_of(folder: Path, signature: Signature, name: str) -> NetworkFile:
    if name not in signature.networks:
        raise EngineError(f"{folder} holds no {name}")
    return signature.networks[name]


def _fitting_engines(trt: Any, gpu: Gpu, folder: Path, signature: Signature, name: str, trust: bool) -> dict[int, Path]:
    """A network's engines by batch size that were built for this machine. Raises EngineError when there is none."""
    graph, refused, found = signature.networks[name].hash, [], {}
    for engine in signature.engines:
        if engine.network != name:
            continue
        try:
            found[engine.batch] = check_engine(
                folder, engine, tensorrt=trt.__version__, gpu=gpu, graph=graph, trust=trust
            )
        except EngineError as error:
            refused.append(str(error))
    if not found:
        raise EngineError("; ".join(refused) or f"{folder} holds no engine of the {name}")
    return found


def _check_profile(trt: Any, engine: Any, network: NetworkFile, size: int) -> bool:
    """Whether the engine takes one batch only. Raises EngineError when it is not one of this network.

    Buffers are handed over as addresses: names, types and shapes must be right, or TensorRT reads past their ends.
    """
    specs = {spec.name: spec for spec in (*network.inputs, *network.outputs)}
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    types = {name: np.dtype(trt.nptype(engine.get_tensor_dtype(name))).name for name in names}
    if types != {name: spec.dtype for name, spec in specs.items()}:
        raise EngineError(f"the engine has inputs and outputs {types}, not those of signature.json")
    rows, fixed = size * network.shared_calls, True
    for spec in network.inputs:
        lowest, _, largest = (tuple(shape) for shape in engine.get_tensor_profile_shape(spec.name, 0))
        if largest != (rows, *spec.shape[1:]):
            raise EngineError(f"the engine takes {spec.name} up to {largest}, signature.json says {spec.shape}")
        fixed = fixed and lowest == largest
    return fixed


def _count_images(network: NetworkFile, given: Mapping[str, Tensor]) -> int:
    """Images in a batch. Raises MismatchError for shapes that the engines do not take."""
    rows = len(given[network.inputs[0].name])
    for spec in network.inputs:
        found = tuple(given[spec.name].shape)
        if found != (rows, *spec.shape[1:]) or rows == 0 or rows % network.shared_calls:
            raise MismatchError(
                f"{spec.name} is {list(found)}; the engines take {list(spec.shape)}",
                "export again for this resolution and text length: dcdm export",
            )
    return rows // network.shared_calls


@contextmanager
def _side_stream(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """Work inside waits for what the caller queued, and what the caller queues next waits for it."""
    if stream is None:
        yield
        return
    outer = torch.cuda.current_stream(stream.device)
    stream.wait_stream(outer)
    with torch.cuda.stream(stream):
        yield
    outer.wait_stream(stream)
