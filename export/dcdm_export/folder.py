"""The export folder: one finished network after the other in a work folder, then everything into place at once.

Comes in: an `Order`. Goes out: the folder with graphs, engines, parity.json and, last, signature.json. What an earlier
export or an interrupted one left is taken over when its key and its hashes are right; the old folder stays as it is
until the new one is complete.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from dcdm_export.engines import EngineBuilder, keep_engines
from dcdm_export.finished import (
    AFRESH_FILE,
    UNFINISHED_FILE,
    Finished,
    drop_strays,
    open_work,
    read_finished,
    swap_folders,
    write_parity,
)
from dcdm_export.fp8 import export_fp8
from dcdm_export.onnx_graph import ExportError, Graph, check_graph, export_graph
from dcdm_export.orders import NetworkRequest, Order, References
from dcdm_export.parity import ParityError, compare
from dcdm_export.signature import (
    SIGNATURE_FILE,
    Signature,
    SignatureError,
    read_signature,
    verify_files,
    write_signature,
)


def make_export(
    order: Order, target: Path, work: Path, *, afresh: bool = False, before_swap: Callable[[], None] = lambda: None
) -> Signature:
    """Fills `work`, a folder on the same disk, and swaps it into `target`'s place. The same call again resumes.

    afresh: takes nothing over but what an interrupted call with `afresh` has finished. Raises ExportError, ParityError,
    EngineError, and OSError when the disk is full.
    """
    open_work(work, afresh=afresh)
    found = (read_finished(work, UNFINISHED_FILE), None if afresh else read_finished(target, SIGNATURE_FILE))
    sources = [source for source in found if source is not None]
    made = Finished(work, Signature(order.facts, {}, order.dcdm_version, dict(order.versions)), {})
    references = References(order.device)
    for request in order.requests:
        made = _take_network(request, made, sources, order) or _make_network(request, made, order, references)
    if order.engines is not None:
        made = EngineBuilder(order, order.engines, sources, references).make_all(made)
    made = keep_engines(made, sources, order.engines)
    drop_strays(work, made.signature)
    write_signature(work, made.signature)
    # what the caller has recorded is of the old folder, and must not outlive it
    before_swap()
    swap_folders(work, target)
    # only now: a call that is killed before the swap goes on by these notes
    for note in (UNFINISHED_FILE, AFRESH_FILE):
        (target / note).unlink(missing_ok=True)
    _recheck(target, order)
    return made.signature


def _make_network(request: NetworkRequest, made: Finished, order: Order, references: References) -> Finished:
    """Reference values, graph, comparison. Only a graph that passed enters the signature."""
    graph, what = request.graph, f"exporting {request.graph.name}"
    order.progress(what, 0, 3)
    _check_space(made.folder, graph)
    # before the cast, which rounds the very weights that the reference is computed with
    expected = references.of(request)
    if request.cast is not None:
        request.cast()
    order.progress(what, 1, 3)
    network = (
        export_graph(graph, made.folder) if request.calls is None else export_fp8(graph, request.calls(), made.folder)
    )
    order.progress(what, 2, 3)
    try:
        parity = compare(graph.name, made.folder, network, request.cases, expected, order.device)
    except ParityError as error:
        # the figures of a failure too: the message that users see names this file
        write_parity(made.folder, made.parity | {graph.name: asdict(error.parity)})
        raise
    if parity.status == "not checked":
        order.note(f"{graph.name}: {parity.reason}")
    made = made.with_network(graph.name, network, asdict(parity))
    order.progress(what, 3, 3)
    return made


def _take_network(
    request: NetworkRequest, made: Finished, sources: Sequence[Finished], order: Order
) -> Finished | None:
    """The same network from an earlier export, if its files are what they were."""
    name = request.graph.name
    for source in sources:
        network = source.signature.networks.get(name)
        # without its figures nothing says that it passed
        if network is None or network.key != request.graph.key or name not in source.parity:
            continue
        try:
            verify_files(source.folder, network.sha256)
        except SignatureError as error:
            order.note(f"{error}; it is exported again")
            continue
        made.link(source.folder, network.files)
        return made.with_network(name, network, source.parity[name])
    return None


def _check_space(folder: Path, graph: Graph) -> None:
    """Fails before the slow part. The weights' size and a tenth; half precision needs half, fp8 both for a while."""
    elements = sum(tensor.numel() for tensor in (*graph.module.parameters(), *graph.module.buffers()))
    needed = int(elements * {"fp32": 4, "fp8": 6}.get(graph.precision, 2) * 1.1)
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, f"{graph.name} needs {needed / 2**20:.0f} MiB", str(folder))


def _recheck(target: Path, order: Order) -> None:
    """Every graph once more from its final place; what does not hold there must not be called finished."""
    try:
        signature = read_signature(target)
        for request in order.requests:
            if check_graph(target, request.graph) != signature.networks[request.graph.name]:
                raise ExportError(f"{request.graph.name} in {target} is not what was written")
    except (SignatureError, ExportError):
        (target / SIGNATURE_FILE).unlink(missing_ok=True)
        raise
