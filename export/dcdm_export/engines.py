"""Engines of an export: taken over, refitted or built, compared with PyTorch, looked into, and kept while they fit."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dcdm_export.engine_key import (
    EngineError,
    EngineKey,
    check_engine,
    engine_key,
    engine_name,
    read_key,
    write_engine,
)
from dcdm_export.finished import Finished, write_parity
from dcdm_export.orders import EngineOrder, NetworkRequest, Order, References
from dcdm_export.parity import ParityError, judge
from dcdm_export.signature import EngineFile, SignatureError
from dcdm_export.trt_engine import BuildMemoryError, build_engine, fused_attention, load_engine, refit_engine


@dataclass(frozen=True)
class EngineBuilder:
    """engines: those of the order. sources: what earlier exports left. references: what the networks must give."""

    order: Order
    engines: EngineOrder
    sources: Sequence[Finished]
    references: References

    def make_all(self, made: Finished) -> Finished:
        """`made` with all engines of the order. Raises EngineError, and ParityError for one that computes otherwise."""
        for network, batches in self.engines.batches.items():
            for batch in batches if network in made.signature.networks else ():
                made = self._take(network, batch, made) or self._make(network, batch, made)
        return made

    def _make(self, network: str, batch: int, made: Finished) -> Finished:
        """Halves the batch while memory runs out; an engine that is there already is none to make."""
        while True:
            try:
                return self._refit(network, batch, made) or self._build(network, batch, made)
            except BuildMemoryError as error:
                if batch == 1:
                    raise EngineError(f"{error}; a batch of one image is the smallest") from error
                self.order.note(f"{engine_name(network, batch)}: out of memory; built for {batch // 2} images instead")
            batch //= 2
            if any((engine.network, engine.batch) == (network, batch) for engine in made.signature.engines):
                return made
            if taken := self._take(network, batch, made):
                return taken

    def _build(self, network: str, batch: int, made: Finished) -> Finished:
        engines, key = self.engines, self._key(network, batch, made)

        def progress(what: str, done: int, total: int) -> None:
            self.order.progress(f"{what} of {network} for batch {batch}", done, total)

        clock = time.monotonic()
        plan = build_engine(
            engines.trt,
            made.folder / made.signature.networks[network].file,
            key.shapes,
            engines.settings,
            timing_cache=engines.timing_cache,
            progress=progress,
            tune=engines.tune,
        )
        if engines.timed is not None:
            engines.timed(time.monotonic() - clock)
        engine = write_engine(made.folder, network, batch, key, plan)
        return made.with_engine(engine, self._gate(engine, made))

    def _refit(self, network: str, batch: int, made: Finished) -> Finished | None:
        """An earlier engine with the graph's new weights, if it was built for that and computes what PyTorch does.

        None where there is none, or nothing here can compare it: an engine with other weights than it was built with
        counts only by comparison. What speaks against it is said.
        """
        key = self._key(network, batch, made)
        if not self.engines.settings.refit or self._request(network) is None:
            return None
        for path in self._refittable(network, key):
            name, graph = engine_name(network, batch), made.folder / made.signature.networks[network].file
            try:
                plan = refit_engine(self.engines.trt, path, graph)
                engine = write_engine(made.folder, network, batch, key, plan)
                entry = self._gate(engine, made)
            except (EngineError, ParityError) as error:
                self.order.note(f"{name} is built again, as new weights do not fit into the one there: {error}")
                return None
            self.order.note(f"{name}: took the new weights without a new build, and was compared")
            return made.with_engine(engine, entry | {"refitted": True})
        return None

    def _refittable(self, network: str, key: EngineKey) -> Iterator[Path]:
        """Sound engines of earlier exports that differ in nothing but the graph."""
        for source in self.sources:
            for engine in source.signature.engines:
                found = read_key(source.folder, engine)
                if engine.network != network or found is None or replace(found, graph=key.graph) != key:
                    continue
                try:
                    yield check_engine(source.folder, engine, tensorrt=key.tensorrt, gpu=key.gpu, graph=found.graph)
                except (EngineError, SignatureError):
                    continue

    def _gate(self, engine: EngineFile, made: Finished) -> Any:
        """An engine against PyTorch: its entry for parity.json, None where nothing can run it here.

        It reads the same cases as the graph did; a batch that the engine does not have is filled up or split. Raises
        ParityError or BuildMemoryError, and then the engine is gone.
        """
        try:
            return self._compared(engine, made)
        except ParityError as error:
            _drop(engine, made)
            write_parity(made.folder, made.parity | {engine.file: asdict(error.parity)})
            raise
        except (MemoryError, torch.OutOfMemoryError) as error:
            _drop(engine, made)
            raise BuildMemoryError(f"{engine.file} does not fit into memory: {error}") from error

    def _compared(self, engine: EngineFile, made: Finished) -> Any:
        engines, request = self.engines, self._request(engine.network)
        if engines.open is None or request is None:
            return None
        network = made.signature.networks[engine.network]
        rounded = engines.settings.tf32 and network.precision == "fp32"  # TF32 has float16's bits of mantissa
        # this engine alone: others that fit a case better would run it
        run = engines.open(made.folder, replace(made.signature, engines=(engine,)), engine.network)
        provider = f"TensorRT {engines.trt.__version__} on {engines.gpu}"
        precision, expected = "fp16" if rounded else network.precision, self.references.of(request)
        entry = asdict(judge(engine.file, precision, provider, run, request.cases, expected))
        del run  # and its memory, before the engine is loaded once more
        return entry | {"fused_attention": self._count_fused(engine, made)}

    def _request(self, network: str) -> NetworkRequest | None:
        """What its engines are compared by; None where nothing can run them."""
        requests = self.order.requests if self.engines.open is not None else ()
        return next((request for request in requests if request.graph.name == network), None)

    def _count_fused(self, engine: EngineFile, made: Finished) -> int | None:
        """Attention that runs in one kernel; none, where there should be some, costs most of an engine's worth."""
        fused = fused_attention(self.engines.trt, load_engine(self.engines.trt, made.folder / engine.file))
        if fused == 0 and engine.network in self.engines.attended:
            precision = made.signature.networks[engine.network].precision
            half = "; TensorRT fuses half precision only: --precision fp16" if precision == "fp32" else ""
            self.order.note(f"{engine.file} has no fused attention layer, so it is slower than it could be{half}")
        return fused

    def _take(self, network: str, batch: int, made: Finished) -> Finished | None:
        """The same engine from an earlier export, if it is what it was."""
        key = self._key(network, batch, made)
        for source in self.sources:
            for engine in source.signature.engines:
                if (engine.network, engine.cache_key) != (network, key.hash):
                    continue
                try:
                    check_engine(source.folder, engine, tensorrt=key.tensorrt, gpu=key.gpu, graph=key.graph)
                except (EngineError, SignatureError) as error:
                    self.order.note(f"{error}; it is built again")
                    continue
                made.link(source.folder, (engine.file, engine.key_file))
                # one that nothing could run where it was built is compared now, if something can
                return made.with_engine(engine, source.parity.get(engine.file) or self._gate(engine, made))
        return None

    def _key(self, network: str, batch: int, made: Finished) -> EngineKey:
        engines, graph = self.engines, made.signature.networks[network]
        return engine_key(engines.trt.__version__, engines.gpu, graph, batch, engines.settings)


def keep_engines(made: Finished, sources: Sequence[Finished], engines: EngineOrder | None) -> Finished:
    """Engines that this call did not ask for stay while they fit the graph, and the GPU and TensorRT if these are here.

    An engine is minutes of work, and a later call for other batches, or for graphs alone, does not make it wrong.
    """
    for source in sources:
        for engine in source.signature.engines:
            key, network = read_key(source.folder, engine), made.signature.networks.get(engine.network)
            if key is None or engine.file in {other.file for other in made.signature.engines}:
                continue
            here = (engines.trt.__version__, engines.gpu) if engines else (key.tensorrt, key.gpu)
            # no graph has an empty digest: without its network an engine fits nothing
            graph = network.hash if network else ""
            try:
                check_engine(source.folder, engine, tensorrt=here[0], gpu=here[1], graph=graph)
            except (EngineError, SignatureError):
                continue
            made.link(source.folder, (engine.file, engine.key_file))
            made = made.with_engine(engine, source.parity.get(engine.file))
    return made


def _drop(engine: EngineFile, made: Finished) -> None:
    for name in (engine.file, engine.key_file):
        (made.folder / name).unlink(missing_ok=True)
