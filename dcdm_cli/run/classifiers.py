"""Settings of classifiers: the scorer's, the judge's and the downstream one's."""

from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator

from dcdm_cli.run.roles import execution, result
from dcdm_cli.section import Section, Seed

# Arguments of timm.create_model by which it would read files and packages that nobody checked.
_MODEL_ARGS_REFUSED = ("checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


class ClassifierConfig(Section):
    """A timm classifier that is trained; used for the scorer, the judge and the downstream arms."""

    model: str = result(default="resnet18", description="timm model name, or packaged: the network that comes along")
    model_args: dict[str, Any] = result(default_factory=dict, description="keyword arguments for timm.create_model")
    pretrained: bool = result(
        default=False, description="start from timm's weights (from the hub or its cache), or the packaged"
    )
    image_size: int = result(default=224, ge=8, description="pixels per side")
    steps: int = result(default=2000, ge=1, description="optimiser steps")
    batch_size: int = result(default=64, ge=2, description="images per step")
    lr: float = result(default=1e-3, gt=0, description="learning rate of AdamW")
    weight_decay: float = result(default=0.05, ge=0, description="of AdamW")
    label_smoothing: float = result(default=0.0, ge=0, lt=1, description="share of the target spread over all classes")
    scale: tuple[float, float] = result(default=(0.35, 1.0), description="area range of the random crop")
    hflip: float = result(
        default=0.5, ge=0, le=1, description="probability of a left-right flip; 0 for digits and text"
    )
    rotate: float = result(default=0.0, ge=0, le=180, description="largest random rotation, degrees")
    policy: str | None = result(default=None, description="timm's augmentation policy, such as rand-m7-mstd0.5-inc1")
    mixup: float = result(default=0.0, ge=0, description="strength (alpha) of Mixup; 0 = off")
    at_chance: Literal["stop", "warn"] = execution(
        default="stop", description="what happens when it turns out no better than guessing"
    )

    @field_validator("model_args")
    @classmethod
    def _no_files(cls, given: dict[str, Any]) -> dict[str, Any]:
        refused = [name for name in _MODEL_ARGS_REFUSED if name in given]
        if refused:
            raise ValueError(f"{refused[0]} may not be given here: it would load weights from a file of any kind")
        return given


class SeeingConfig(ClassifierConfig):
    """A classifier that may also rest on frozen features of a network that was trained on other images."""

    features: str = result(
        default="packaged",
        description="what sees: packaged, a timm name with published weights, timm's folder or a .safetensors file",
    )
    feature_size: int | None = result(
        default=None,
        ge=16,
        description="pixels per side images are brought to; none = the network's own, packaged: 160",
    )


class FeaturesConfig(SeeingConfig):
    """One that features are tried for first."""

    budget: float = result(
        default=120.0, ge=0, description="seconds that --method auto may spend on a method slower than features"
    )


class ScoreConfig(FeaturesConfig):
    method: Literal["auto", "features", "crossfit", "classifier", "column"] = result(
        default="auto",
        description="the best of those in the budget; out-of-fold heads on features, or trained classifiers; your own",
    )
    folds: int = result(default=5, ge=2, description="parts; each is scored by a classifier trained on the others")
    repeats: int = result(default=1, ge=1, description="rounds of cross-fitting with other folds, averaged")
    temperature: bool = result(default=True, description="scale the logits by a temperature fitted out of fold")
    classifier: Path | None = result(default=None, description="your own classifier: .safetensors of `model`, or .onnx")
    column: str | None = result(default=None, description="score column of the source, for --method column")
    seed: Seed = result(default=0, description="of folds and classifiers")


class JudgeConfig(FeaturesConfig):
    method: Literal["auto", "features", "scratch"] = result(
        default="auto", description="the best of those in the budget; a head on frozen features; trained from scratch"
    )
    folds: int = result(default=5, ge=2, description="parts by which methods and the strength of the head are chosen")


class DownstreamConfig(SeeingConfig):
    method: Literal["network", "features"] = result(
        default="network", description="a network of its own, trained; a linear head on frozen features, in seconds"
    )
