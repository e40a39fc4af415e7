"""Files that a user gives from outside the run folder, changed, damaged or gone between two commands: for
`reliability.py`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import trials
from harm import cut_in_half, last_bit, with_settings
from PIL import Image, ImageOps
from place import CLASSES, OPTIONAL, SETTINGS, STAGES, Place

Change = Callable[[Path], Any]
WEIGHTS = (".safetensors", ".onnx")
# Of the base model, what every reader is tried with: all hold it against the seals of the same record.
FOR_ALL = ("base/unet/diffusion_pytorch_model.safetensors", "base/scheduler/scheduler_config.json")
# Command -> the record that says when it last worked.
CHECKS = {"check": "evaluate-artefacts", "plan": "next-plan"}
PHOTOS = ("score", "finetune", "evaluate")
GENERATING = ("generate", "evaluate", *CHECKS)
# What they are called in the given folder -> (the setting that names them, who reads them, what they hold, and then).
TABLES: dict[str, tuple[str, tuple[str, ...], str, str]] = {
    "classes.json": ("data.class_map", ("score",), json.dumps(CLASSES), json.dumps(CLASSES[::-1])),
    "drop.csv": ("data.drop", ("score",), "path\none/0.png\n", "path\none/1.png\n"),
    "relabel.csv": ("data.relabel", ("score",), "path,new_label\none/2.png,two\n", "path,new_label\none/2.png,three\n"),
    "templates.json": ("caption.templates_file", ("caption",), '{"one": "the {class}"}', '{"one": "an old {class}"}'),
    "counts.csv": ("generate.counts", ("generate",), "class,count\none,3\n", "class,count\ntwo,3\n"),
    "difficulty.csv": (
        "generate.difficulty_file", ("generate",),
        "class,difficulty\none,fixed:0.3\n", "class,difficulty\none,fixed:0.4\n",
    ),
    "prompts.csv": ("generate.prompts", GENERATING, "class,prompt\n*,a {class}\n", "class,prompt\n*,no {class}\n"),
}  # fmt: skip


class Given:
    """A folder of a user's files beside a run that was made with all of them; both are put back before every try."""

    def __init__(self, place: Place) -> None:
        self.place, self.folder, self._kept = place, place.root / "given", place.root / "given-kept"
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(place.source, self.folder / "photos")
        for name, (_, _, text, _) in TABLES.items():
            (self.folder / name).write_text(text)
        from dcdm_cli.model.packaged import TINY_BASE

        shutil.copytree(TINY_BASE, self.folder / "base")
        for name in ("scorer.onnx", "check.onnx"):
            _write_classifier(self.folder / name, 1.0)
        shutil.copytree(self.folder, self._kept)
        self._make_run()

    def put_back(self) -> None:
        shutil.rmtree(self.folder)
        shutil.copytree(self._kept, self.folder)
        self.place.reset("given-run")

    def words(self, command: str) -> list[object]:
        if command == "score":
            return ["score", self.folder / "photos"]
        return ["evaluate", command] if command in CHECKS else [command]

    def go(self, command: str) -> trials.Ended:
        return trials.run([*self.words(command), "--run", self.place.run], self.place.said)

    def begun(self, command: str) -> str:
        record = self.place.run / "records" / f"{CHECKS.get(command, command)}.json"
        return str(json.loads(record.read_text("utf-8"))["started"])

    def _make_run(self) -> None:
        run = self.place.run
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir()
        (run / "dcdm.toml").write_text(SETTINGS)
        named = {setting: self.folder / name for name, (setting, *_) in TABLES.items()}
        named |= {"score.classifier": self.folder / "scorer.onnx", "generate.check": self.folder / "check.onnx"}
        named["finetune.base"] = self.folder / "base"
        for setting, file in named.items():
            section, _, key = setting.partition(".")
            with_settings(run, section, (f'{key} = "{file}"',))
        for section in ("score", "judge", "downstream"):
            with_settings(run, section, ('at_chance = "warn"',))
        for command in (*STAGES, "distill", *CHECKS):
            ended = trials.run([*self.words(command), *OPTIONAL.get(command, ())[1:], "--run", run], self.place.said)
            assert ended.code == 0, ended.said
        shutil.copytree(run, self.place.root / "given-run", dirs_exist_ok=True)


def given(place: Place, _: int) -> dict[str, Any]:
    """Every file from outside the run folder changed, cut in half, or gone: whoever reads it works again, says so, or
    stops with an error that is meant; never "nothing changed" in silence, never with half of the weights. `dcdm check`
    names it too."""
    mine, bad = Given(place), list[Any]()
    by_stage: dict[str, int] = {}
    for name, commands, change in _tries(mine.folder):
        for how, harm in (("changed", change), ("half", cut_in_half), ("gone", Path.unlink)):
            mine.put_back()
            harm(mine.folder / name)
            checked = trials.run(["check", "--run", place.run], place.said).code
            if checked not in (3, 12):
                bad.append([name, how, "check", checked])
            for command in commands:
                mine.put_back()
                harm(mine.folder / name)
                by_stage[command] = by_stage.get(command, 0) + 1
                if said := _wrong(mine, command, name, how):
                    bad.append([name, how, command, *said])
    return {"count": sum(by_stage.values()), "by_stage": by_stage, "bad": len(bad), "first_bad": bad[:9]}


def _wrong(mine: Given, command: str, name: str, how: str) -> list[Any]:
    before = mine.begun(command)
    ended = mine.go(command)
    again = ended.code == 0 and mine.begun(command) != before
    told = "has changed since" in ended.said or Path(name).name in ended.said
    halved = again and how == "half" and Path(name).suffix in WEIGHTS
    return [ended.code, ended.said[-200:]] if not ended.is_clean or halved or not (ended.code or again or told) else []


def _tries(folder: Path) -> Iterator[tuple[str, Sequence[str], Change]]:
    """(file, commands that read it, how it becomes another one of its kind)."""
    for name, (_, commands, _, then) in TABLES.items():
        yield name, commands, lambda file, then=then: file.write_text(then)
    yield "photos/one/3.png", PHOTOS, _negative
    yield "scorer.onnx", ("score",), lambda file: _write_classifier(file, 2.0)
    yield "check.onnx", GENERATING, lambda file: _write_classifier(file, 2.0)
    for file in sorted((folder / "base").rglob("*")):
        if file.suffix in (".safetensors", ".json", ".txt") and file.parent.name != "base":
            change = last_bit if file.suffix == ".safetensors" else _with_a_blank
            name = file.relative_to(folder).as_posix()
            yield name, ("finetune", *(("distill", "export", *GENERATING) if name in FOR_ALL else ())), change


def _negative(file: Path) -> None:
    with Image.open(file) as image:
        ImageOps.invert(image.convert("RGB")).save(file)


def _with_a_blank(file: Path) -> None:
    """It says the same, in other bytes: who can tell?"""
    file.write_text(file.read_text("utf-8") + "\n", "utf-8")


def _write_classifier(file: Path, scale: float) -> None:
    """An ONNX graph from the mean of each colour to one class each."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ("n", 3, "h", "w"))
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ("n", len(CLASSES)))
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight"], ["logits"]),
    ]
    weight = numpy_helper.from_array((scale * np.eye(3)).astype(np.float32), "weight")
    graph = helper.make_graph(nodes, "own", [image], [logits], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"class_names": json.dumps(CLASSES)})
    onnx.save(model, file)
