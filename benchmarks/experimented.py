"""What an experiment of a run leaves, changed, damaged or gone before it goes on: for `reliability.py`."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import trials
from harm import cut_in_half, last_bit
from place import Place

from dcdm_cli.files import hash_file

# A generator of its own, one with other scales on the run's weights, and one that is the run's.
EXPERIMENT = """
about = "every kind of generator"
ratios = [1.0]

[[arms]]
name = "real"
source = "none"

[[arms]]
name = "plain"
adapter = "plain"
attempts = 1

[[arms]]
name = "other scales"
adapter = "scaled"

[[arms]]
name = "dcdm"

[adapters.plain.finetune]
conditioning = "none"
difficulty_balance = 0.0

[adapters.scaled.generate]
text_guidance = 2.0
"""
HARMS = {"a bit": last_bit, "half": cut_in_half, "gone": Path.unlink}
# Nothing is made from these: for people and other tools; steps of training that is finished.
BESIDE = ("README.md", "metadata.jsonl", "rejected.jsonl", "comfyui_a1111_lora.safetensors")


def experiments(place: Place, _: int) -> dict[str, Any]:
    """Every file that an experiment has made and works with, damaged before it trains other classifiers: it stops with
    an error that is meant, puts the file right, or makes what it belongs to again; it never works with it."""
    _prepare(place)
    bad: list[Any] = []
    by_kind: dict[str, int] = {}
    for name in _files(place.root / "experimented"):
        for how, harm in HARMS.items():
            place.reset("experimented")
            right = trials.digest(place.run / name)
            harm(place.run / name)
            harmed = time.time_ns()
            if not name.startswith("evaluation/sets/"):  # else what is there is used, and no generator opened
                shutil.rmtree(place.run / "evaluation" / "sets")
            ended = _go(place, "--seeds", "2", "--set", "downstream.steps=5")
            by_kind[_kind(name)] = by_kind.get(_kind(name), 0) + 1
            mended = trials.digest_or_none(place.run / name) == right or _made_again(place.run, name, harmed)
            mended = mended or _says_the_same(place.run / name, place.root / "experimented" / name)
            told = Path(name).stem in ended.said  # a calibration that is gone, which nobody must have
            if not ended.is_clean or (ended.code == 0 and not mended and not (told and how == "gone")):
                bad.append([name, how, ended.code, ended.said[-200:]])
    return {"count": sum(by_kind.values()), "by_kind": by_kind, "bad": len(bad), "first_bad": bad[:9]}


def _prepare(place: Place) -> None:
    if (place.root / "experimented").exists():
        return
    place.prepare_optional()
    place.reset("extended")
    (place.root / "kinds.toml").write_text(EXPERIMENT)
    ended = _go(place, "--seeds", "1")
    assert ended.code == 0, ended.said
    shutil.copytree(place.run, place.root / "experimented")


def _go(place: Place, *more: str) -> trials.Ended:
    words = ["evaluate", "experiment", place.root / "kinds.toml", "--run", place.run, *more]
    return trials.run(words, place.said)


def _files(run: Path) -> Iterator[str]:
    """Of the run's generator and of the experiment's own, and of one set, with one of its images."""
    folders = [run / "adapter", run / "scorer", *sorted((run / "evaluation").glob("adapters/*"))]
    folders += sorted((run / "evaluation").glob("sets/*"))[:1]
    for folder in folders:
        files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name not in BESIDE]
        images = [file for file in files if file.suffix == ".png"]
        for file in [*(file for file in files if file.suffix != ".png"), *images[:1]]:
            if "checkpoints" not in file.parts:
                yield file.relative_to(run).as_posix()


def _made_again(run: Path, name: str, harmed: int) -> bool:
    """Whether a record that was written since says that this is what its stage left: weights that are trained anew
    are as good as the old ones, and not always the same."""
    file = run / name
    if not file.is_file():
        return False
    for record in run.glob("**/records/*.json"):
        home = record.parent.parent
        if file.is_relative_to(home) and record.stat().st_mtime_ns > harmed:
            seal = json.loads(record.read_text("utf-8")).get("wrote", {}).get(file.relative_to(home).as_posix())
            if seal and seal["sha256"] == hash_file(file):
                return True
    return False


def _says_the_same(file: Path, was: Path) -> bool:
    """A bit of a table that no value hangs on, such as the name of the library that wrote it."""
    try:
        return file.suffix == ".parquet" and pq.read_table(file).equals(pq.read_table(was), check_metadata=True)
    except (OSError, ValueError):  # pa.ArrowInvalid is a ValueError
        return False


def _kind(name: str) -> str:
    return name.split("/")[1] if name.startswith("evaluation/") else name.split("/")[0]
