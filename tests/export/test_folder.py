"""An export folder is complete or as it was before; what is finished is taken over, and nothing else."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dcdm_export.finished import UNFINISHED_FILE, read_parity
from dcdm_export.folder import make_export
from dcdm_export.onnx_graph import Graph
from dcdm_export.orders import NetworkRequest, Order
from dcdm_export.parity import Case, ParityError
from dcdm_export.signature import SIGNATURE_FILE, Signature, read_signature, verify

from .test_signature import FACTS
from .toys import Toy, toy_inputs

NAMES = ("denoiser", "vae_decoder")
Told = list[tuple[str, int, int]]


def request(name: str, key: str = "k", **changes: Any) -> NetworkRequest:
    graph = Graph(name, Toy(), toy_inputs(), "prediction", key=key)
    cases = [Case(f"batch {batch}", toy_inputs(batch)) for batch in (1, 3)]
    return NetworkRequest(**({"graph": graph, "cases": cases} | changes))


def order(told: Told | None = None, notes: list[str] | None = None, **changes: Any) -> Order:
    def progress(what: str, done: int, total: int) -> None:
        if told is not None:
            told.append((what, done, total))

    chosen: dict[str, Any] = {"facts": FACTS, "requests": [request(name) for name in NAMES], "versions": {}}
    return Order(**(chosen | {"dcdm_version": "0", "progress": progress, "note": (notes or []).append} | changes))


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def exported_now(told: Told) -> set[str]:
    return {what.removeprefix("exporting ") for what, _, _ in told}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Signature]:
    folder = tmp_path_factory.mktemp("run")
    return folder, make_export(order(), folder / "export", folder / "work")


@pytest.fixture
def run(first: tuple[Path, Signature], tmp_path: Path) -> Path:
    return Path(shutil.copytree(first[0], tmp_path / "run"))


def test_the_folder_holds_what_its_signature_says(first: tuple[Path, Signature]) -> None:
    folder, signature = first
    assert names(folder) == ["export"]
    assert names(folder / "export") == ["denoiser.onnx", "parity.json", "signature.json", "vae_decoder.onnx"]
    assert read_signature(folder / "export") == signature
    verify(folder / "export", signature)
    parity = read_parity(folder / "export")
    assert set(parity) == set(NAMES) and {entry["status"] for entry in parity.values()} == {"passed"}


def test_progress_is_told_per_network(tmp_path: Path) -> None:
    told: Told = []
    make_export(order(told, requests=[request("denoiser")]), tmp_path / "export", tmp_path / "work")
    assert told == [("exporting denoiser", done, 3) for done in range(4)]


def test_what_is_unchanged_is_taken_over(run: Path) -> None:
    told: Told = []
    before = {name: (run / "export" / name).read_bytes() for name in names(run / "export")}
    make_export(order(told), run / "export", run / "work")
    assert told == [] and {name: (run / "export" / name).read_bytes() for name in names(run / "export")} == before


def test_one_new_key_makes_one_network_anew(run: Path) -> None:
    told: Told = []
    changed = order(told, requests=[request("denoiser", key="other"), request("vae_decoder")])
    signature = make_export(changed, run / "export", run / "work")
    assert exported_now(told) == {"denoiser"} and signature.networks["denoiser"].key == "other"


def test_force_makes_all_anew(run: Path) -> None:
    told: Told = []
    make_export(order(told, requests=[request("denoiser")]), run / "export", run / "work", afresh=True)
    assert exported_now(told) == {"denoiser"}


class Interrupted(Exception):
    """While the second network is exported."""


def interrupt(run: Path, *, afresh: bool, key: str = "k") -> None:
    def progress(what: str, done: int, total: int) -> None:
        if what == "exporting vae_decoder":
            raise Interrupted

    chosen = order(requests=[request(name, key=key) for name in NAMES], progress=progress)
    with pytest.raises(Interrupted):
        make_export(chosen, run / "export", run / "work", afresh=afresh)


def test_an_interrupted_force_goes_on_with_what_it_made_itself(run: Path) -> None:
    interrupt(run, afresh=True)
    told: Told = []
    make_export(order(told), run / "export", run / "work", afresh=True)
    assert exported_now(told) == {"vae_decoder"}
    assert names(run / "export") == ["denoiser.onnx", "parity.json", "signature.json", "vae_decoder.onnx"]


@pytest.mark.parametrize("between", [False, True])
def test_force_takes_over_nothing_that_was_begun_without_it(run: Path, between: bool) -> None:
    """Nor what was begun by force, once a call without it has taken over what was there before."""
    if between:
        interrupt(run, afresh=True, key="new")
    interrupt(run, afresh=False, key="new")
    told: Told = []
    changed = order(told, requests=[request(name, key="new") for name in NAMES])
    make_export(changed, run / "export", run / "work", afresh=True)
    assert exported_now(told) == set(NAMES)


def test_a_file_that_was_changed_is_made_again_and_said(run: Path) -> None:
    told, notes = [], ["start"]
    with (run / "export" / "vae_decoder.onnx").open("r+b") as stream:
        stream.seek(100)
        stream.write(b"tampered")
    make_export(order(told, notes), run / "export", run / "work")
    assert exported_now(told) == {"vae_decoder"}
    assert "vae_decoder.onnx is not the file that was exported" in notes[1]
    verify(run / "export", read_signature(run / "export"))


@pytest.mark.parametrize("content", ["", "{", "[3]", '{"networks": 3}', "[" * 100_000])
def test_figures_that_cannot_be_read_are_none(tmp_path: Path, content: str) -> None:
    assert read_parity(tmp_path) == {}
    (tmp_path / "parity.json").write_text(content)
    assert read_parity(tmp_path) == {}
    (tmp_path / "parity.json").unlink()
    os.mkfifo(tmp_path / "parity.json")  # to open it would wait for ever
    assert read_parity(tmp_path) == {}


def test_without_its_figures_a_network_is_not_finished(run: Path) -> None:
    told: Told = []
    (run / "export" / "parity.json").unlink()
    make_export(order(told, requests=[request("denoiser")]), run / "export", run / "work")
    assert exported_now(told) == {"denoiser"}


def wrong_cast(module: Toy) -> Callable[[], None]:
    """As if the exporter had lost a layer: the graph is made of other weights than the reference."""

    def cast() -> None:
        module.last.weight.data += 1

    return cast


def test_a_graph_out_of_tolerance_leaves_the_old_export(run: Path) -> None:
    before = names(run / "export")
    bad = request("denoiser", key="new")
    bad = NetworkRequest(bad.graph, bad.cases, wrong_cast(bad.graph.module))  # type: ignore[arg-type]
    with pytest.raises(ParityError, match="denoiser in fp32 differs from PyTorch"):
        make_export(order(requests=[bad]), run / "export", run / "work")
    assert names(run / "export") == before
    assert read_signature(run / "export").networks["denoiser"].key == "k"
    assert not (run / "work" / SIGNATURE_FILE).exists()
    failed = read_parity(run / "work")["denoiser"]
    assert failed["status"] == "failed" and max(case["max_abs"] for case in failed["cases"]) > 0.1


def test_a_failed_export_claims_nothing(tmp_path: Path) -> None:
    bad = request("denoiser")
    bad = NetworkRequest(bad.graph, bad.cases, wrong_cast(bad.graph.module))  # type: ignore[arg-type]
    with pytest.raises(ParityError):
        make_export(order(requests=[bad]), tmp_path / "export", tmp_path / "work")
    assert not (tmp_path / "export").exists()
    make_export(order(requests=[request("denoiser")]), tmp_path / "export", tmp_path / "work")
    assert names(tmp_path / "export") == ["denoiser.onnx", "parity.json", "signature.json"]


class Stop(Exception):
    pass


def test_a_stop_between_networks_is_resumed(tmp_path: Path) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if what == "exporting vae_decoder":
            raise Stop

    with pytest.raises(Stop):
        make_export(order(progress=stop), tmp_path / "export", tmp_path / "work")
    assert not (tmp_path / "export").exists() and (tmp_path / "work" / UNFINISHED_FILE).exists()
    told: Told = []
    make_export(order(told), tmp_path / "export", tmp_path / "work")
    assert exported_now(told) == {"vae_decoder"} and names(tmp_path) == ["export"]


CHILD = """
import sys
from pathlib import Path
from tests.export.test_folder import order
from dcdm_export.folder import make_export
folder = Path(sys.argv[1])
make_export(order(), folder / "export", folder / "work")
"""


def test_a_killed_export_is_resumed(run: Path) -> None:
    shutil.rmtree(run / "export")
    with subprocess.Popen([sys.executable, "-c", CHILD, str(run)], cwd=Path(__file__).parents[2]) as child:
        deadline = time.monotonic() + 60
        while not (run / "work" / UNFINISHED_FILE).exists():
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
    (run / "work" / ".torn.part").mkdir()
    (run / "work" / ".torn.part" / "vae_decoder.onnx").write_bytes(b"half")
    told: Told = []
    make_export(order(told), run / "export", run / "work")
    assert exported_now(told) <= {"vae_decoder"} and names(run) == ["export"]
    assert names(run / "export") == ["denoiser.onnx", "parity.json", "signature.json", "vae_decoder.onnx"]


def test_a_crash_in_the_swap_loses_nothing(run: Path) -> None:
    (run / "export").rename(run / ".export.old")
    shutil.copytree(run / ".export.old", run / "work")
    (run / "work" / SIGNATURE_FILE).rename(run / "work" / UNFINISHED_FILE)
    told: Told = []
    make_export(order(told), run / "export", run / "work")
    assert told == [] and names(run) == ["export"]


def test_files_of_an_unfinished_export_do_not_stay(run: Path) -> None:
    (run / "work").mkdir()
    (run / "work" / "text_encoder.onnx").write_bytes(b"of other settings")
    make_export(order(), run / "export", run / "work")
    assert "text_encoder.onnx" not in names(run / "export")


def test_too_little_space_is_said_before_the_work(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(run)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(OSError, match="denoiser needs") as caught:
        make_export(order(requests=[request("denoiser", key="new")]), run / "export", run / "work")
    assert caught.value.errno == errno.ENOSPC
    verify(run / "export", read_signature(run / "export"))


def test_a_disk_that_fills_up_keeps_the_old_export(run: Path) -> None:
    before, limit = names(run / "export"), resource.getrlimit(resource.RLIMIT_FSIZE)
    told: Told = []
    requests = [request("denoiser", key="new")]
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises(OSError) as caught:
            make_export(order(told, requests=requests), run / "export", run / "work")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert caught.value.errno == errno.EFBIG
    assert names(run / "export") == before and not list((run / "work").glob("*.onnx"))
    assert make_export(order(requests=requests), run / "export", run / "work").networks["denoiser"].key == "new"


def test_half_precision_is_cast_after_the_reference(tmp_path: Path) -> None:
    toy = Toy()

    def cast() -> None:
        toy.to(torch.float16)
        toy.dtype = torch.float16

    graph = Graph("denoiser", toy, toy_inputs(), "prediction", precision="fp16")
    requests = [NetworkRequest(graph, request("denoiser").cases, cast)]
    signature = make_export(order(requests=requests), tmp_path / "export", tmp_path / "work")
    assert signature.networks["denoiser"].precision == "fp16"
    assert 1e-6 < max(case["max_abs"] for case in read_parity(tmp_path / "export")["denoiser"]["cases"]) < 1e-2


def test_a_file_that_was_taken_over_is_no_link_to_the_old_one(run: Path) -> None:
    make_export(order(), run / "export", run / "work")
    assert os.stat(run / "export" / "denoiser.onnx").st_nlink == 1
