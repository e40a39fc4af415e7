"""Experiments as data: which training sets are compared, with which classifiers, ratios and seeds.

An experiment is a TOML file, of the user or one of those in `builtin/` (one per result of the paper). Arms describe
where extra images come from; adapters describe how a generator differs from the run's own. Nothing here does any work.
"""

from __future__ import annotations

from collections import Counter
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from dcdm_cli.errors import NotFoundError, UsageError
from dcdm_cli.gate import parse_toml, shorten
from dcdm_cli.run.origins import nearest
from dcdm_cli.section import Section

OURS = "ours"  # the run's own adapter
LARGEST_FILE = 2**20  # bytes; a description of an experiment is not larger


class ArmSpec(Section):
    """One training set: the real images, what is added to them, and how strongly all of it is augmented."""

    name: str = Field(min_length=1)
    source: Literal["none", "upsampled", "augmented", "generated"] = Field(
        default="generated", description="what is added; augmented = nothing, but the policy and Mixup below"
    )
    set: str | None = Field(
        default=None,
        min_length=1,
        description="a generated set that is there, whole: a name of generate --name, or generated for the unnamed one",
    )
    ratio: float | None = Field(default=None, gt=0, description="extra images per real one; null = the experiment's")
    adapter: str = Field(default=OURS, description="name of an adapter; ours = the run's own")
    difficulty: str | None = Field(default=None, description="target distribution; null = the run's own")
    cap: float | None = Field(default=None, gt=0, le=1, description="difficulty cap; null = the run's own")
    calibrated: bool | None = Field(default=None, description="ask through the calibration; null = the run's own")
    attempts: int | None = Field(
        default=None, ge=1, description="draws per image until its difficulty fits; null = the run's own"
    )
    rounds: int = Field(
        default=0, ge=0, description="0 = the target distribution; n = plans from what a classifier finds hard, n times"
    )
    augment: bool = Field(
        default=False, description="train with the policy and Mixup below, whatever is added; augmented has it anyway"
    )
    policy: str = Field(default="rand-m7-mstd0.5-inc1", description="timm's augmentation policy, where augmented")
    mixup: float = Field(default=0.2, ge=0, description="strength of timm's Mixup, where augmented")

    @property
    def augmented(self) -> bool:
        return self.augment or self.source == "augmented"


# What says how images are made, which those of a finished set have been.
MAKING = frozenset({"source", "ratio", "adapter", "difficulty", "cap", "calibrated", "attempts", "rounds"})


class AdapterSpec(Section):
    """How a generator differs from the run's own adapter. Without new training the run's weights are used."""

    scores: Literal["crossfit", "in-sample", "shuffled", "margin", "loss", "entropy"] = Field(
        default="crossfit", description="what stands for difficulty in training"
    )
    finetune: dict[str, Any] = Field(default_factory=dict, description="other settings of [finetune]")
    generate: dict[str, Any] = Field(default_factory=dict, description="other settings of [generate]")

    @property
    def retrains(self) -> bool:
        return self.scores != "crossfit" or bool(self.finetune)


class ClassifierSpec(Section):
    """A downstream classifier: settings that differ from [downstream], for image sizes in `sides` (pixels)."""

    name: str = "downstream"
    sides: tuple[int, int] = (1, 100_000)
    settings: dict[str, Any] = Field(default_factory=dict)


class Experiment(Section):
    """kind arms: classifiers are trained and compared. kind adherence: requested and realised difficulty."""

    name: str = Field(min_length=1)
    about: str = ""
    kind: Literal["arms", "adherence"] = "arms"
    arms: tuple[ArmSpec, ...] = ()
    adapters: dict[str, AdapterSpec] = Field(default_factory=dict)
    classifiers: tuple[ClassifierSpec, ...] = (ClassifierSpec(),)
    ratios: tuple[float, ...] = Field(default=(), description="empty = evaluate.synthetic_ratio")
    seeds: int | None = Field(default=None, ge=1, description="null = evaluate.seeds")
    fresh_adapters: int = Field(
        default=1, ge=1, description="adapters of each kind, each fine-tuned with a seed of its own; seeds take turns"
    )
    baseline: str = Field(default="real", description="the arm all others are compared with")
    focus: str = Field(default="dcdm", description="the arm that is also compared with every other")
    pairs: tuple[tuple[str, str], ...] = Field(
        default=(), description="further comparisons: the first arm of each with the second"
    )
    holdout: Literal["test", "validation"] | None = Field(
        default=None, description="what arms are tested on; null = evaluate.holdout"
    )
    axis: Literal["none", "difficulty", "ratio"] = Field(default="none", description="what the figure is drawn over")
    controls: tuple[str, ...] = Field(
        default=(), description="ratio sweeps: the arms whose best point is looked for at less cost"
    )

    def adapter(self, name: str) -> AdapterSpec:
        return self.adapters.get(name) or BUILT_IN_ADAPTERS[name]


BUILT_IN_ADAPTERS = {
    OURS: AdapterSpec(),
    "plain": AdapterSpec(finetune={"conditioning": "none", "difficulty_balance": 0.0}),
    "shuffled": AdapterSpec(scores="shuffled"),
    "in-sample": AdapterSpec(scores="in-sample"),
    "margin": AdapterSpec(scores="margin"),
    "loss": AdapterSpec(scores="loss"),
    "entropy": AdapterSpec(scores="entropy"),
    "replace": AdapterSpec(finetune={"mode": "replace"}),
    "learned-label": AdapterSpec(finetune={"label_embedding": "learned"}),
    "no-encoder": AdapterSpec(generate={"difficulty_guidance": 0.0}),
    "img2img": AdapterSpec(generate={"strength": 0.75}),  # Real-Fake's
}


def built_in_experiments() -> list[str]:
    folder = resources.files("dcdm_cli.evaluation") / "builtin"
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))


def find_experiment(name: str) -> Experiment:
    """A built-in experiment by name, or one from a TOML file.

    Raises UsageError for a name that is neither or for contents that break a rule, NotFoundError without the file.
    """
    if name in built_in_experiments():
        text = (resources.files("dcdm_cli.evaluation") / "builtin" / f"{name}.toml").read_text("utf-8")
        return parse_experiment(text, f"experiment {name}", name)
    if not name.endswith(".toml"):
        hint = f"{nearest(name, built_in_experiments())}; or give a TOML file (docs/evaluate.md describes it)"
        raise UsageError(f"there is no experiment {name!r}", hint)
    file = Path(name)
    if not file.is_file():
        raise NotFoundError(f"no experiment file {file}", "check the path: dcdm evaluate experiment FILE", file=file)
    if file.stat().st_size > LARGEST_FILE:
        raise UsageError(
            f"{file} is larger than {LARGEST_FILE} bytes: no description of an experiment",
            "check the path: dcdm evaluate experiment FILE",
            file=file,
        )
    return parse_experiment(_text(file), str(file), file.stem)


def parse_experiment(text: str, where: str, name: str) -> Experiment:
    """Checks shape and sense. Raises UsageError that names the place."""
    try:
        raw = parse_toml(text)
    except ValueError as error:
        raise UsageError(f"{where} is not valid TOML: {error}", "fix that line") from error
    try:
        # what the file calls itself goes before its file name
        experiment = Experiment.model_validate({"name": name, **raw})
    except ValidationError as error:
        raise _refusal(error, where) from error
    _check(experiment, where)
    return experiment


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8: {error}", "save it as UTF-8", file=file) from error


def _refusal(error: ValidationError, where: str) -> UsageError:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    hint = "docs/evaluate.md lists the keys of an experiment"
    if first["type"] == "extra_forbidden":
        # of all tables: a key is often right, and stands in the wrong one
        known = {name for model in (Experiment, ArmSpec, AdapterSpec, ClassifierSpec) for name in model.model_fields}
        hint = nearest(str(first["loc"][-1]), sorted(known))
    return UsageError(f"{where}: {key} = {shorten(first.get('input'))}: {first['msg']}", hint)


def _check(experiment: Experiment, where: str) -> None:
    twice = [name for name, count in Counter(arm.name for arm in experiment.arms).items() if count > 1]
    if twice:
        raise UsageError(f"{where}: two arms are called {twice[0]!r}", "give every arm a name of its own")
    if experiment.kind == "arms" and not experiment.arms:
        raise UsageError(f"{where} has no arms", 'add one: [[arms]] name = "real", source = "none"')
    if any(ratio <= 0 for ratio in experiment.ratios):
        raise UsageError(f"{where}: ratios = {list(experiment.ratios)} must all be above 0", "for example [0.5, 1.0]")
    _check_names(experiment, where)
    named = next((arm for arm in experiment.arms if arm.set), None)
    if named and experiment.kind == "adherence":
        raise UsageError(
            f"{where}: arm {named.name!r} names a set, and an experiment of adherence makes its own images",
            'compare accuracies: kind = "arms"; adherence of a set: dcdm evaluate check --name NAME',
        )
    for arm in experiment.arms:
        if told := sorted(MAKING & arm.model_fields_set) if arm.set else []:
            raise UsageError(
                f"{where}: arm {arm.name!r} takes the images of the set {arm.set!r} as they are, and has {told[0]}",
                "leave out one of the two",
            )
    known = [*BUILT_IN_ADAPTERS, *experiment.adapters]
    for arm in experiment.arms:
        if arm.adapter not in known:
            raise UsageError(f"{where}: arm {arm.name!r} has no adapter {arm.adapter!r}", nearest(arm.adapter, known))


def _check_names(experiment: Experiment, where: str) -> None:
    """Arms that are named must be there; the defaults need not be."""
    arms, given = [arm.name for arm in experiment.arms], experiment.model_fields_set
    named = [(key, getattr(experiment, key)) for key in ("baseline", "focus") if key in given]
    named += [("controls", control) for control in experiment.controls]
    named += [("pairs", name) for pair in experiment.pairs for name in pair]
    for key, name in named:
        if name not in arms:
            raise UsageError(f"{where}: {key} = {name!r} is no arm", nearest(name, arms))
