"""The CIFAR-10 experiments, in pieces: pretrain a base, then score, fine-tune and compare on 1,000 and 5,000 images.

    python benchmarks/cifar10_run.py --data DIR --state DIR [--piece-seconds 540] [--base DIR] [--only TARGET]
        [--setting gpu|cpu|taught|chosen|spanned|tiny]

Run it again until it says that it is done. Every piece ends in time, saved; finished steps, images and classifiers are
never made twice. The last line is JSON: which steps are done, and which waits. Code 0 = all done, 3 = there is more.
Results go to benchmarks/results (--results elsewhere) as soon as they are there. DIR of --data holds train*.parquet and
test*.parquet with an `image` struct and a `label` (ClassLabel) column. --pack and --unpack carry the state to another
machine, which must use the same --state path. --setting taught: how far images follow the request once the encoder and
the LoRA have learned from the generator's own draws (`finetune.own_draws`); chosen: once they are chosen among sixteen
draws instead of four; spanned: once guidance by text follows the request (`generate.guidance_span`), among eight draws.
"""

from __future__ import annotations

import argparse
import json
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from cifar10_data import assign, read_images, write_target
from common import RESULTS, provenance, save
from pieces import Clock, Done, Step

from dcdm_cli.run.presets import PRESETS

HERE = Path(__file__).resolve().parent
EXPERIMENTS = ("adherence", "buckets", "mean-sweep", "controls", "ratio-sweep")
TEXT, DIFFICULTY = (1.5, 3.0, 5.0), (4.0, 8.0)  # guidance; the best pair on validation images is used on all targets
GUESS = (3.0, 4.0)
PART_BYTES = 15 * 2**20
LEFT_BEHIND = {"checkpoints", "images", "sets", "cache"}  # made again where they are missed


@dataclass(frozen=True)
class Scale:
    """Settings that differ between machines, as dcdm settings. seeds: per target; without `tune` among them guidance is
    not chosen but `GUESS`. own: settings of one target alone. exported: images are made from the export, which is
    faster on a CPU. experiments: built in, or files of this folder; those in own_experiments are of one target."""

    settings: dict[str, dict[str, Any]]
    seeds: dict[str, int]
    own: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    exported: bool = False
    per_class: dict[str, int] | None = None
    test_per_class: int | None = None
    score_needs: float = 20
    experiments: tuple[str, ...] = EXPERIMENTS
    own_experiments: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def asked(self, target: str) -> tuple[str, ...]:
        return self.own_experiments.get(target, self.experiments)


NET = {"model": "resnet10t", "image_size": 64, "batch_size": 128, "lr": 3e-3, "scale": [0.5, 1.0], "hflip": 0.5}
NET |= {"model_args": {"channels": [32, 64, 128, 256], "stem_width": 32}}
LORA = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "conv1", "conv2", "ff.net.0.proj", "ff.net.2"]
FINETUNE = {
    "resolution": 32, "batch_size": 64, "lr": 5e-4, "encoder_lr": 2e-3, "warmup_steps": 50, "lr_schedule": "cosine",
    "rank": 16, "lora_targets": LORA, "tokens": 4, "hidden": 128, "difficulty_balance": 0.5, "ema_decay": 0.995,
    "hflip": True, "snr_gamma": 5.0,
}  # fmt: skip
GENERATE = {"ratio": 1.0, "scheduler": "dpmpp", "steps": 15, "attempts": 4, "clip_range": 4.0}
GPU = Scale(
    {
        "score": {**NET, "method": "crossfit", "steps": 800, "folds": 3},
        "judge": {**NET, "method": "scratch", "steps": 3000},
        "downstream": {**NET, "steps": 1000},
        "finetune": {**FINETUNE, "steps": 2000, "precision": "bf16"},
        "calibrate": {"images": 300},
        "generate": {**GENERATE, "batch_size": 512, "decode_batch": 512, "precision": "fp16"},
        "evaluate": {"features": "judge", "fresh_sets": True, "per_target": 500, "density_images": 2000, "workers": 6},
    },
    seeds={"tune": 3, "small": 5, "target": 3},
    score_needs=240,
)
LOOK = PRESETS["small"]  # what users of a CPU get
CPU_NET = {"model": "resnet10t", "image_size": 32, "batch_size": 64, "lr": 4e-3, "scale": [0.5, 1.0], "hflip": 0.5}
CPU_NET |= {"model_args": {"channels": [32, 64, 96, 128], "stem_width": 16}}
# On validation images weaker guidance by text was worth less at every strength (strength_rule.py --data).
CPU_STRENGTH = {"checkpoints": [75, 300], "guidance": [[3.0, 4.0]], "probe_budget": 400}
CPU = Scale(
    {
        **{name: LOOK[name] for name in ("score", "judge", "finetune")},
        "strength": CPU_STRENGTH,
        "downstream": {**CPU_NET, "steps": 400},
        "calibrate": {"images": 60},
        "generate": {**LOOK["generate"], "attempts": 4},
        "evaluate": {"fresh_sets": True, "per_target": 100, "density_images": 500, "workers": 1, "atlas_classes": 10},
    },
    seeds={"small": 6, "target": 6},
    own={
        "target": {
            "downstream": {"steps": 800},
            "finetune": {"steps": 1000, "batch_size": 64},
            "generate": {"ratio": 0.1},
        }
    },
    exported=True,
    score_needs=100,
    experiments=("adherence", "cifar10_worth.toml", "cifar10_features.toml", "target"),
    own_experiments={"target": ("adherence", "cifar10_ratios.toml", "cifar10_ratios_features.toml")},
)
TAUGHT = replace(
    CPU,
    settings={
        **CPU.settings,
        "finetune": {**LOOK["finetune"], "own_draws": 3000, "own_steps": 1500, "own_trains": "all"},
    },
    seeds={"taught": 6},
    experiments=("adherence", "cifar10_control.toml"),
)
CHOSEN = replace(
    CPU,
    settings={**CPU.settings, "generate": {**LOOK["generate"], "attempts": 16}},
    seeds={"chosen": 6},
    experiments=("adherence",),
)
SPANNED = replace(
    CPU,
    settings={**CPU.settings, "generate": {**LOOK["generate"], "attempts": 8, "guidance_span": [8.0, 1.5]}},
    seeds={"spanned": 6},
    experiments=("adherence", "cifar10_span.toml"),
)
TINY_NET = {**NET, "image_size": 32, "model_args": {"channels": [8, 12, 16, 32], "stem_width": 8}, "batch_size": 64}
TINY_NET |= {"steps": 4}
TINY = Scale(
    {
        "score": {**TINY_NET, "method": "crossfit", "folds": 2},
        "judge": {**TINY_NET, "method": "scratch"},
        "downstream": TINY_NET,
        "finetune": {**FINETUNE, "steps": 3, "rank": 2},
        "calibrate": {"enabled": False},
        "generate": {**GENERATE, "steps": 2, "batch_size": 32},
        "evaluate": {
            "features": "judge", "fresh_sets": True, "per_target": 10, "density_images": 10, "targets": [0.2, 0.5],
            "atlas_classes": 2,
        },
    },
    seeds={"tune": 1, "small": 2},
    per_class={"pool": 12, "small": 6, "judge": 8},
    test_per_class=5,
)  # fmt: skip
SCALES = {"gpu": GPU, "cpu": CPU, "taught": TAUGHT, "chosen": CHOSEN, "spanned": SPANNED, "tiny": TINY}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--piece-seconds", type=float, default=None)
    parser.add_argument("--setting", choices=SCALES, default="gpu")
    parser.add_argument("--only", help="one target of the setting: small, target, ...")
    parser.add_argument("--base", type=Path, help="what cifar10_base.py made, instead of pretraining again")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--pack", type=Path, help="afterwards write the state here, in parts of 15 MiB")
    parser.add_argument("--unpack", type=Path, help="first take the state from here")
    options = parser.parse_args()
    clock, state = Clock(options.piece_seconds), options.state.absolute()
    state.mkdir(parents=True, exist_ok=True)
    if options.unpack:
        unpack(options.unpack, state)
    progress = Done(state)
    if options.unpack:
        progress.forget(": images")  # they were left behind
    base = options.base.absolute() if options.base else None
    job = Experiments(options.data.absolute(), state, options.setting, options.results, clock, base, options.only)
    waiting = progress.run(list(job.steps()), clock)
    if options.pack:
        pack(state, options.pack)
    progress.leave(waiting)


@dataclass(frozen=True)
class Experiments:
    """The steps, in order. State: base/, runs/<target>/, images/, <target>.csv. finished: a base that is there."""

    data: Path
    state: Path
    setting: str
    results: Path
    clock: Clock
    finished: Path | None = None
    only: str | None = None

    @property
    def base(self) -> Path:
        return self.finished or self.state / "base"

    @property
    def scale(self) -> Scale:
        return SCALES[self.setting]

    def steps(self) -> Iterator[Step]:
        yield Step("base", self._base, needs=60)
        for target in self.scale.seeds if self.only is None else (self.only,):
            yield from self.first_steps(target)
            yield Step(f"{target}: finetune", lambda t=target: self._stage(t, "finetune"))
            if self.scale.exported:
                yield Step(f"{target}: export", lambda t=target: self._stage(t, "export"))
            if target == "tune":
                yield Step("tune: choose", self._choose)
                continue
            yield Step(f"{target}: generate", lambda t=target: self._stage(t, "generate"))
            yield Step(f"{target}: artefacts", lambda t=target: self._artefacts(t), needs=60)
            for name in self.scale.asked(target):
                yield Step(f"{target}: {name}", lambda t=target, n=name: self._experiment(t, n))

    def first_steps(self, target: str) -> Iterator[Step]:
        """Up to what fine-tuning starts from."""
        yield Step(f"{target}: images", lambda: self._images(target))
        yield Step(f"{target}: score", lambda: self._stage(target, "score", f"{target}.csv"), self.scale.score_needs)
        yield Step(f"{target}: caption", lambda: self._stage(target, "caption"))

    def _base(self) -> dict[str, Any]:
        if self.finished is None:
            words = ["--data", str(self.data), "--out", str(self.base), "--setting", self.setting]
            self.clock.run([sys.executable, str(HERE / "cifar10_base.py"), *words], self.state)
        return {"record": json.loads((self.base / "pretraining.json").read_text("utf-8"))}

    def _images(self, target: str) -> dict[str, Any]:
        train, test = read_images(self.data, "train"), read_images(self.data, "test")
        rows = assign(train.labels, self.scale.per_class)
        own = rows["target"] if target == "target" else rows["small"]
        judge = rows["rest"] if target == "tune" else rows["judge"]  # chosen on `rest`: the test file stays unseen
        limit = self.scale.test_per_class
        tested = assign(test.labels, {"pool": limit, "small": 0})["target"] if limit else range(len(test.labels))
        import numpy as np

        parts = {"train": (train, own, "train"), "judge": (train, judge, "train")}
        write_target(self.state, target, {**parts, "test": (test, np.asarray(tested), "test")})
        run = self.state / "runs" / target
        run.mkdir(parents=True, exist_ok=True)
        (run / "dcdm.toml").write_text(self.toml(target), "utf-8")
        return {split: len(part[1]) for split, part in parts.items()}

    def settings(self, target: str) -> dict[str, dict[str, Any]]:
        settings = {name: dict(part) for name, part in self.scale.settings.items()}
        for section, own in self.scale.own.get(target, {}).items():
            settings[section] |= own
        chosen = self.state / "chosen.json"
        if "text_guidance" not in settings["generate"]:
            known = chosen.is_file()
            settings["generate"] |= json.loads(chosen.read_text("utf-8"))["guidance"] if known else pair(*GUESS)
        settings["evaluate"] |= {"seeds": self.scale.seeds.get(target, 3)}
        return settings

    def toml(self, target: str) -> str:
        import tomlkit

        settings = self.settings(target)
        settings["finetune"]["base"] = str(self.base)
        settings["caption"] = {"template": "a photo of a {class}"}
        return tomlkit.dumps(settings)

    def _stage(self, target: str, stage: str, *words: str) -> dict[str, Any]:
        self.clock.dcdm(stage, *words, "--run", f"runs/{target}", folder=self.state)
        return {}

    def _choose(self) -> dict[str, Any]:
        """The pair of guidances by mean accuracy on the validation images."""
        file = self.state / "settings.toml"
        file.write_text(guidance_experiment(), "utf-8")
        words = ["experiment", "settings.toml", "--holdout", "validation", "--run", "runs/tune"]
        self.clock.dcdm("evaluate", *words, folder=self.state)
        document = self._document("tune", "settings")
        means = {arm["name"]: arm["accuracy_mean"] for cell in document["cells"] for arm in cell["arms"]}
        best = pair(*max(product(TEXT, DIFFICULTY), key=lambda values: means[title_of(*values)]))
        save({"guidance": best, "validation": means}, "chosen", self.state)
        self._publish("tune_settings", document, "dcdm evaluate experiment settings.toml --holdout validation")
        return best

    def _artefacts(self, target: str) -> dict[str, Any]:
        self.clock.dcdm("evaluate", "check", "--run", f"runs/{target}", folder=self.state)
        self.clock.dcdm("evaluate", "atlas", "--run", f"runs/{target}", folder=self.state)
        metrics = json.loads((self.state / "runs" / target / "evaluation" / "artefacts.json").read_text("utf-8"))
        title = f"CIFAR-10, {target}: the generated images"
        about = {"title": title, "setting": self.setting, **provenance("dcdm evaluate check")}
        save({**about, "metrics": metrics}, f"cifar10_{target}_artefacts", self.results)
        return {}

    def _experiment(self, target: str, name: str) -> dict[str, Any]:
        """name: built in, or a file of this folder."""
        if name.endswith(".toml"):
            (self.state / name).write_bytes((HERE / name).read_bytes())
        self.clock.dcdm("evaluate", "experiment", name, "--run", f"runs/{target}", folder=self.state)
        place = name.removesuffix(".toml")
        published = f"{target}_{place.removeprefix('cifar10_')}"
        self._publish(published, self._document(target, place), f"dcdm evaluate experiment {name}")
        return {}

    def _document(self, target: str, name: str) -> dict[str, Any]:
        file = self.state / "runs" / target / "evaluation" / "experiments" / f"{name}.json"
        return json.loads(file.read_text("utf-8"))

    def _publish(self, name: str, document: dict[str, Any], command: str) -> None:
        target = name.split("_")[0]
        size = 5000 if target == "target" else 1000
        title = f"CIFAR-10, {size} real images, {document['experiment']} ({self.setting} setting)"
        about = {"title": title, "setting": self.setting, "settings": self.settings(target), **provenance(command)}
        save({**about, "document": document}, f"cifar10_{name}", self.results)


def pair(text: float, difficulty: float) -> dict[str, float]:
    return {"text_guidance": text, "difficulty_guidance": difficulty}


def title_of(text: float, difficulty: float) -> str:
    return f"text {text:g}, difficulty {difficulty:g}"


def guidance_experiment() -> str:
    import tomlkit

    pairs = {title_of(*values): pair(*values) for values in product(TEXT, DIFFICULTY)}
    document = {
        "about": "Guidance by text and by difficulty, chosen on validation images",
        "arms": [{"name": "real", "source": "none"}, *({"name": name, "adapter": name} for name in pairs)],
        "adapters": {name: {"generate": values} for name, values in pairs.items()},
    }
    return tomlkit.dumps(document)


def pack(state: Path, folder: Path) -> None:
    """The state without what can be made again, as state.tar.000, state.tar.001, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / "state.tar"
    with tarfile.open(whole, "w") as archive:
        for path in sorted(state.rglob("*")):
            relative = path.relative_to(state)
            if path.is_file() and not LEFT_BEHIND & set(relative.parts[:-1]):
                archive.add(path, relative.as_posix())
    with whole.open("rb") as stream:
        for number, part in enumerate(iter(lambda: stream.read(PART_BYTES), b"")):
            (folder / f"state.tar.{number:03d}").write_bytes(part)
    whole.unlink()


def unpack(folder: Path, state: Path) -> None:
    parts: Sequence[Path] = sorted(folder.glob("state.tar.*"))
    if not parts:
        raise SystemExit(f"no state.tar.* in {folder}")
    whole = state / "state.part"
    with whole.open("wb") as stream:
        for part in parts:
            stream.write(part.read_bytes())
    with tarfile.open(whole) as archive:
        archive.extractall(state, filter="data")
    whole.unlink()


if __name__ == "__main__":
    main()
