"""Stable Diffusion 1.5 with random weights at 512 px on a GPU: diffusers, eager and compiled, against ours.

    python benchmarks/bench_sd15.py                 stops after 9 minutes; the same command goes on to the end
    python benchmarks/bench_sd15.py --eager         without the compiled ones, which take minutes to compile
    python benchmarks/bench_sd15.py --sketch        the same code on a toy architecture and a CPU, to try the script

End to end to PNG files at batch 1 to 64 and 20, 30 and 50 guided steps, and the network alone. Every finished cell is
kept in results/bench_sd15.partial.json. Reports images/s, images per GPU-hour, TFLOP/s inside the network and their
share of the bf16 matmul ceiling measured in the same run. Writes results/bench_sd15.json when nothing is missing.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import (
    RESULTS,
    WORK,
    gpu_or_sketch,
    hardware,
    interleaved,
    matmul_ceiling,
    release,
    seconds,
    versions,
    write_result,
)
from rivals import CALLS, PATH, Diffusers, Ours, config, plan_of, row_flops, sd15_model, torch_engine

from dcdm_cli.backends.torch_backend import TorchOptions
from dcdm_cli.files import write_json

Rival = Diffusers | Ours
RIVALS = ("diffusers eager", "diffusers compiled", "ours eager", "ours compiled")
SHIPPED = "the sd15 preset as shipped, images/s"
JUDGED = 32  # the batch at which the share of the ceiling is judged
GOALS = {
    "times diffusers eager": 2.0,  # lossless
    f"share of the ceiling at batch {JUDGED}": 0.5,
    "distilled, times diffusers eager": 4.0,  # this and the next: gpu_paths.py
    SHIPPED: 9.0,
}


@dataclass(frozen=True)
class Setting:
    """What is measured where. device, dtype: of torch. eager: nothing that is compiled."""

    device: str
    dtype: str
    batches: tuple[int, ...]
    steps: tuple[int, ...]
    sketch: bool
    eager: bool

    @property
    def rivals(self) -> tuple[str, ...]:
        return RIVALS[::2] if self.eager else RIVALS


class Cells:
    """Measured numbers by name, on disk after each; those of another machine or other versions are refused."""

    def __init__(self, file: Path, setting: Setting) -> None:
        self.file = file
        self.facts = {"hardware": hardware(), "versions": versions(), "setting": repr(setting)}
        known = json.loads(file.read_text()) if file.is_file() else {"facts": self.facts, "cells": {}}
        if known["facts"] != self.facts:
            sys.exit(f"{file} is of another machine, other versions or other settings; move it aside to start again")
        self.values: dict[str, Any] = known["cells"]

    def measure(self, name: str, work: Callable[[], Any]) -> None:
        """Does the work unless it was done; too little memory is a result too."""
        if name in self.values:
            return
        try:
            self.values[name] = work()
        except torch.OutOfMemoryError:
            self.values[name] = "out of memory"
        release()
        write_json(self.file, {"facts": self.facts, "cells": self.values})


def main() -> None:
    options = parse()
    name = gpu_or_sketch("bench_sd15", sketch=options.sketch)
    if name is None:
        return
    setting = (
        Setting("cpu", "fp32", (1, 2), (2, 3), True, True) if options.sketch
        else Setting("cuda", options.precision, tuple(options.batches), tuple(options.steps), False, options.eager)
    )  # fmt: skip
    cells, deadline = Cells(RESULTS / f"{name}.partial.json", setting), time.monotonic() + 60 * options.minutes
    complete = run(cells, setting, deadline)
    if not complete:
        print(json.dumps({"name": name, "complete": False, "cells": len(cells.values), "next": "the same command"}))
        return
    task = f"SD 1.5 architecture, random weights, 512 px, guidance scale 2, {setting.dtype}"
    rows = table(cells.values, setting)
    headline = summarise(rows)
    shown = {
        "title": f"Images per second, lossless ({PATH}; our VAE in fp32): {task}",
        "sentences": sentences(headline),
        "tables": [sheet(rows)],
    }
    measured = {"task": task, "cells": cells.values, "table": rows, "headline": headline}
    write_result(name, {**shown, **measured}, headline)
    cells.file.unlink()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sketch", action="store_true")
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--precision", choices=("fp16", "bf16"), default="fp16")
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 2, 4, 8, 16, 32, 64))
    parser.add_argument("--steps", type=int, nargs="+", default=(20, 30, 50))
    parser.add_argument("--minutes", type=float, default=9.0, help="stop then; the next call goes on")
    return parser.parse_args()


def run(cells: Cells, setting: Setting, deadline: float) -> bool:
    """True when all cells are measured. Parity comes first: nothing is timed without it."""
    cells.measure("ceiling_bf16", lambda: ceiling(setting))
    cells.measure("row_flops", lambda: row_flops(sd15_model(setting.device, setting.dtype, small=setting.sketch)))
    cells.measure("parity", lambda: parity(setting))
    if cells.values["parity"]["within_2"] < 0.999:
        sys.exit(f"ours does not make diffusers' images: {cells.values['parity']}")
    for name in setting.rivals:
        pending = [cell for cell in names(setting, name) if cell not in cells.values]
        rival = make_rival(name, setting) if pending else None
        for cell in pending:
            assert rival is not None
            if time.monotonic() > deadline:
                return False
            kind, batch, steps = cell.split("/")[1:]
            if kind == "network":
                cells.measure(cell, lambda r=rival, b=int(batch): network_seconds(r, b, setting))
            else:
                cells.measure(cell, lambda r=rival, b=int(batch), s=int(steps): end_to_end(r, b, s, setting))
        del rival
        release()
    return True


def names(setting: Setting, rival: str) -> Iterator[str]:
    """Batch by batch, so that each shape is compiled once."""
    for batch in setting.batches:
        yield f"{rival}/network/{batch}/1"
        for steps in setting.steps:
            yield f"{rival}/images/{batch}/{steps}"


def make_rival(name: str, setting: Setting) -> Rival:
    side, kind = name.split()
    model = sd15_model(setting.device, setting.dtype, small=setting.sketch)
    settings = config(max(setting.steps), precision=setting.dtype)
    if side == "diffusers":
        return Diffusers(model, settings, setting.device, compile=kind == "compiled")
    return Ours(torch_engine(model, settings, setting.device, TorchOptions(CALLS, compile=kind == "compiled")))


def ceiling(setting: Setting) -> float:
    return matmul_ceiling("float32" if setting.device == "cpu" else "bfloat16", setting.device)


def parity(setting: Setting) -> dict[str, Any]:
    """In float32 and a few steps: the share of values within 2 of 255 of diffusers' pipeline."""
    made, rows = [], plan_of(2, "parity").rows()
    exact = dataclasses.replace(setting, dtype="fp32", steps=(4,))
    for name in ("diffusers eager", "ours eager"):
        rival = with_steps(make_rival(name, exact), 4)
        made.append(np.stack([np.asarray(image) for image in rival.images(rows, 2)]).astype(int))
        del rival
        release()
    difference = np.abs(made[0] - made[1])
    return {"within_2": float((difference <= 2).mean()), "largest": int(difference.max())}


def network_seconds(rival: Rival, batch: int, setting: Setting) -> float:
    """Median of a guided step of the network alone."""
    return statistics.median(interleaved({"": rival.step(batch)}, 10, setting.device)[""])


def end_to_end(rival: Rival, batch: int, steps: int, setting: Setting) -> float:
    """images/s to PNG files over two batches, after a short run that compiles and warms up."""
    folder = WORK / "sd15"

    def to_files(sized: Rival, images: int) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        sized.to_files(images, batch, folder)

    to_files(with_steps(rival, 2), batch)
    return 2 * batch / seconds(lambda: to_files(with_steps(rival, steps), 2 * batch), setting.device)


def with_steps(rival: Rival, steps: int) -> Rival:
    if isinstance(rival, Ours):
        settings = rival.engine.config.model_copy(update={"steps": steps})
        return Ours(dataclasses.replace(rival.engine, config=settings))
    changed = copy.copy(rival)
    changed.settings = rival.settings.model_copy(update={"steps": steps})
    return changed


def table(cells: dict[str, Any], setting: Setting) -> list[dict[str, Any]]:
    """One row per rival and batch."""
    rows = []
    for name in setting.rivals:
        for batch in setting.batches:
            network = cells[f"{name}/network/{batch}/1"]
            flops = CALLS * batch * cells["row_flops"] / network if isinstance(network, float) else None
            row: dict[str, Any] = {"rival": name, "batch": batch}
            row["network_tflops"] = flops and round(flops / 1e12, 2)
            row["share_of_ceiling"] = flops and round(flops / cells["ceiling_bf16"], 3)
            for steps in setting.steps:
                rate = cells[f"{name}/images/{batch}/{steps}"]
                known = isinstance(rate, float)
                row[f"images/s at {steps} steps"] = round(rate, 3) if known else rate
                row[f"images per GPU-hour at {steps} steps"] = round(3600 * rate) if known else rate
            rows.append(row)
    return rows


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Best of ours per goal. The comparison with diffusers is best batch against best batch, at the fewest steps."""

    def best(side: str, column: str, among: list[dict[str, Any]] = rows) -> float:
        mine = [row[column] for row in among if row["rival"].startswith(side)]
        return max((value for value in mine if isinstance(value, float)), default=0)

    fewest = next(column for column in rows[0] if column.startswith("images/s"))
    reached = {column: best("ours", column) for column in rows[0] if column.startswith("images/s")}
    reached["times diffusers eager"] = best("ours", fewest) / best("diffusers eager", fewest)
    reached["share_of_ceiling"] = best("ours", "share_of_ceiling")
    judged = [row for row in rows if row["batch"] == JUDGED]
    if judged:
        reached[f"share of the ceiling at batch {JUDGED}"] = best("ours", "share_of_ceiling", judged)
    return judge(reached)


def judge(reached: dict[str, float]) -> dict[str, Any]:
    """Each figure with its goal, and whether it was met; None where it has none."""
    return {
        name: {
            "reached": round(value, 3),
            "goal": GOALS.get(name),
            "met": value >= GOALS[name] if name in GOALS else None,
        }
        for name, value in reached.items()
    }


def sentences(headline: dict[str, Any]) -> list[str]:
    """One per goal, the best of ours."""
    judged = [(name, facts) for name, facts in headline.items() if facts["goal"] is not None]
    return [
        f"{name}: {facts['reached']:.2f}; goal {facts['goal']:.1f} {'met' if facts['met'] else 'NOT met'}."
        for name, facts in judged
    ]


def sheet(rows: list[dict[str, Any]]) -> dict[str, Any]:
    rates = [column for column in rows[0] if column.startswith("images/s")]
    cells = [
        [
            row["rival"],
            row["batch"],
            row["network_tflops"],
            row["share_of_ceiling"] and f"{row['share_of_ceiling']:.0%}",
        ]
        + [f"{row[column]:.2f}" if isinstance(row[column], float) else row[column] for column in rates]
        for row in rows
    ]
    columns = ["", "batch", "TFLOP/s in the network", "of the bf16 matmul ceiling", *rates]
    return {"title": "End to end to PNG files, and the network alone", "columns": columns, "rows": cells}


if __name__ == "__main__":
    main()
