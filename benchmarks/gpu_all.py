"""Everything about a GPU in one go, within nine minutes on a bare machine: in order of worth, each result kept at once.

    python benchmarks/gpu_all.py --out DIR [--wheels DIR] [--data CIFAR10_DIR] [--minutes 9]
    python benchmarks/gpu_all.py --out DIR --sketch      every piece on a toy architecture and a CPU, to try the script

--wheels: a folder of wheels to install dcdm and its dependencies from, without a network. Pieces are scripts of this
folder; a piece that would not end in time is stopped, its finished cells stay. What fails parity writes no result; the
others go on. DIR gets the results, a log per piece and `gpu_all.json`: each piece's seconds and outcome. Results are
published by copying them to benchmarks/results and running benchmarks/documents.py.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
GRACE = 10  # seconds to save after SIGTERM
LEAST = 15  # seconds below which nothing is begun
LAST_LINES = 5
SLOWER = 20  # a busy CPU, as against a GPU


@dataclass(frozen=True)
class Piece:
    """words: after `python`. most: minutes, however much is left. needs: packages without which it says nothing."""

    name: str
    words: tuple[str, ...]
    most: float
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """state: done, failed (its own code), stopped (time) or left out (why)."""

    name: str
    state: str
    seconds: float = 0.0
    said: str = ""


def pieces(data: Path | None, out: Path, *, sketch: bool) -> list[Piece]:
    """In order of worth: a session that ends early has measured what matters most."""
    small = ("--sketch",) if sketch else ()
    cells = small or ("--batches", "32", "8", "--steps", "20", "--minutes", "3")
    found = [
        Piece("paths", ("gpu_paths.py", *small), 3),
        Piece("diffusers", ("bench_sd15.py", "--eager", *cells), 2),
        Piece("kernels", ("gpu_kernels.py", *small), 1),
        Piece("two processes", ("gpu_two.py", *small), 1.5),
        Piece("fine-tuning", ("bench_sd15_finetune.py", *(small or ("--batches", "8", "16"))), 1),
        Piece("compiled", ("bench_sd15.py", *cells), 3),
        Piece("onnxruntime", ("gpu_engines.py", "onnxruntime", *small), 2.5, ("onnxruntime",)),
        Piece("tensorrt", ("gpu_engines.py", "tensorrt", *small), 5, ("tensorrt",)),
        Piece("tests", ("-m", "pytest", "-q", "-m", "gpu", str(ROOT / "tests")), 1.5, ("pytest",)),
    ]
    if data is not None:
        setting = "tiny" if sketch else "gpu"
        words = ("cifar10_run.py", "--data", str(data), "--state", str(out / "cifar10"), "--setting", setting)
        found.append(Piece("cifar10", (*words, "--results", str(out), "--piece-seconds", "120"), 2.5))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--wheels", type=Path)
    parser.add_argument("--data", type=Path, help="CIFAR-10 as Parquet, for the experiments on it")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--only", default="", help="names of pieces, with commas between them")
    parser.add_argument("--sketch", action="store_true")
    options = parser.parse_args()
    out, end = options.out.absolute(), time.monotonic() + 60 * options.minutes
    out.mkdir(parents=True, exist_ok=True)
    if options.wheels:
        install(options.wheels.absolute(), out)
    outcomes: list[Outcome] = []
    chosen = [piece for piece in pieces(options.data, out, sketch=options.sketch) if wanted(piece, options.only)]
    for piece in chosen:
        most = piece.most * (SLOWER if options.sketch else 1)
        outcomes.append(attempt(piece, out, min(end - time.monotonic(), 60 * most)))
        document = {"pieces": [asdict(outcome) for outcome in outcomes], "sketch": options.sketch}
        (out / "gpu_all.json").write_text(json.dumps(document, indent=1) + "\n", "utf-8")
        print(f"{piece.name}: {outcomes[-1].state}, {outcomes[-1].seconds:.0f} s", flush=True)
    raise SystemExit(1 if any(outcome.state == "failed" for outcome in outcomes) else 0)


def wanted(piece: Piece, only: str) -> bool:
    return not only or piece.name in [name.strip() for name in only.split(",")]


def install(wheels: Path, out: Path) -> None:
    """From the folder alone. Raises CalledProcessError when something is missing there."""
    words = ("-m", "pip", "install", "--no-index", "--find-links", str(wheels), "-e", f"{ROOT}[dev]")
    with (out / "install.log").open("w") as log:
        subprocess.run([sys.executable, *words], check=True, stdout=log, stderr=subprocess.STDOUT)


def attempt(piece: Piece, out: Path, left: float) -> Outcome:
    """Runs one piece for as long as it may."""
    missing = [name for name in piece.needs if importlib.util.find_spec(name) is None]
    if missing:
        return Outcome(piece.name, "left out", said=f"{missing[0]} is not installed")
    if left < LEAST:
        return Outcome(piece.name, "left out", said="no time left")
    log, started = out / f"{piece.name.replace(' ', '-')}.log", time.monotonic()
    code = run(command(piece), out, log, left - GRACE)
    tail = " | ".join(log.read_text("utf-8", "replace").strip().splitlines()[-LAST_LINES:])
    state = "stopped" if code is None else "done" if code in (0, 3) else "failed"
    return Outcome(piece.name, state, round(time.monotonic() - started, 1), tail)


def command(piece: Piece) -> list[str]:
    first, *rest = piece.words
    return [sys.executable, str(HERE / first) if first.endswith(".py") else first, *rest]


def run(words: list[str], out: Path, log: Path, seconds: float) -> int | None:
    """The exit code; None when time was up. The results land in `out`."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "export"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "BENCHMARK_RESULTS": str(out)}
    with log.open("w") as stream:
        process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT)
        try:
            return process.wait(max(1.0, seconds))
        except subprocess.TimeoutExpired:
            process.terminate()
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return None


if __name__ == "__main__":
    main()
