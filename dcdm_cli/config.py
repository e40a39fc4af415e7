"""Settings: one frozen model per stage, resolved once from layers that remember where each value came from.

Order, last wins: defaults, preset, `dcdm.toml` in the run folder, `--config FILE`, `DCDM_<STAGE>__<KEY>` in the
environment, flags. Unknown keys are errors that name the nearest known one. Values the paper does not state are marked
"not from the paper" in DESIGN.md and the README; each is a setting here.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from dcdm_cli.errors import NotFoundError, UsageError

ENV_PREFIX = "DCDM_"
ENV_OWN = {"DCDM_RUN", "DCDM_DEBUG"}  # read elsewhere, not settings


Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class DataConfig(Section):
    source: str = Field(
        default="", description="class folder, hf:owner/name@revision, Parquet, CSV/JSONL manifest, - or digits"
    )
    split: str | None = Field(default=None, description="which split the source's rows are, where it does not say")
    image_column: str = "image"
    label_column: str = "label"
    caption_column: str | None = Field(default=None, description="column with captions; `caption` is found by itself")
    follow_links: bool = Field(default=False, description="follow links to folders outside the source")
    class_map: Path | None = Field(default=None, description="JSON list or {name: index} that fixes the class order")
    judge_fraction: float = Field(default=0.3, gt=0, lt=1, description="share of the test split kept for the judge")
    test_fraction: float = Field(
        default=0.2, gt=0, lt=1, description="share of train carved out when there is no test split"
    )
    max_bad: float = Field(default=0.01, ge=0, le=1, description="largest share of unreadable images that is tolerated")
    strict: bool = Field(default=False, description="stop at the first unreadable image")
    exif: bool = Field(default=True, description="turn images as their EXIF tag says")
    background: str = Field(default="white", description="colour behind transparent pixels")
    animated: Literal["first", "reject"] = "first"


class ClassifierConfig(Section):
    """A timm classifier trained from scratch; used for the scorer, the judge and the downstream arms."""

    model: str = Field(default="resnet18", description="timm model name")
    model_args: dict[str, Any] = Field(default_factory=dict, description="keyword arguments for timm.create_model")
    pretrained: bool = Field(default=False, description="start from timm's weights (needs the hub or its cache)")
    image_size: int = Field(default=224, ge=8, description="pixels per side")
    steps: int = Field(default=2000, ge=1, description="optimiser steps")
    batch_size: int = Field(default=64, ge=2)
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    scale: tuple[float, float] = Field(default=(0.35, 1.0), description="area range of the random crop")
    hflip: float = Field(default=0.5, ge=0, le=1, description="probability of a left-right flip; 0 for digits and text")
    rotate: float = Field(default=0.0, ge=0, le=180, description="largest random rotation, degrees")


class ScoreConfig(ClassifierConfig):
    method: Literal["crossfit", "classifier", "column"] = "crossfit"
    folds: int = Field(default=5, ge=2)
    repeats: int = Field(default=1, ge=1, description="rounds of cross-fitting with other folds, averaged")
    temperature: bool = Field(default=True, description="scale the logits by a temperature fitted out of fold")
    classifier: Path | None = Field(default=None, description="your own classifier: .safetensors of `model`, or .onnx")
    column: str | None = Field(default=None, description="score column of the source, for --method column")
    seed: int = 0


class CaptionConfig(Section):
    method: Literal["template", "model"] = "template"
    template: str = Field(default="a photo of a {class}", description="{class} is replaced by the class name")
    templates_file: Path | None = Field(default=None, description="JSON {class name: template} for single classes")
    model: str = Field(
        default="Salesforce/blip2-opt-2.7b", description="image-to-text or image-text-to-text model (the paper's)"
    )
    revision: str | None = None
    prompt: str | None = Field(default=None, description="question for image-text-to-text models")
    max_new_tokens: int = Field(default=40, ge=1)
    batch_size: int = Field(default=8, ge=1)
    prefix: str = Field(default="a photo of a {class}, ", description="put before a model's caption")
    sidecars: Path | None = Field(default=None, description="also write .txt files below this folder")
    metadata: Path | None = Field(default=None, description="also write metadata.jsonl into this folder")


class FinetuneConfig(Section):
    base: str = Field(
        default="stable-diffusion-v1-5/stable-diffusion-v1-5", description="hub id or folder of the pipeline"
    )
    revision: str | None = None
    resolution: int = Field(default=512, ge=8, description="pixels per side")
    steps: int = Field(default=5000, ge=1, description="optimiser steps")
    batch_size: int = Field(default=8, ge=1, description="images per device and forward pass")
    gradient_accumulation: int = Field(default=1, ge=1)
    gradient_checkpointing: bool = False
    lr: float = Field(default=1e-4, gt=0, description="LoRA learning rate")
    encoder_lr: float = Field(default=1e-3, gt=0, description="difficulty encoder learning rate")
    warmup_steps: int = Field(default=100, ge=0)
    lr_schedule: Literal["constant_with_warmup", "cosine", "linear"] = "constant_with_warmup"
    max_grad_norm: float = Field(default=1.0, gt=0)
    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=16, ge=1)
    lora_targets: tuple[str, ...] = Field(
        default=("to_q", "to_k", "to_v", "to_out.0"), description="UNet modules that get LoRA, by name ending"
    )
    conditioning: Literal["difficulty", "none"] = Field(
        default="difficulty", description="none = plain LoRA, the control without difficulty"
    )
    mode: Literal["append", "replace"] = Field(
        default="append", description="append to the text tokens, or replace the last"
    )
    tokens: int = Field(default=1, ge=1, description="difficulty tokens")
    label_embedding: Literal["onehot", "learned"] = "onehot"
    frequencies: int = Field(default=2, ge=0, description="octaves of Fourier features of s; more fit single images")
    hidden: int = Field(default=256, ge=8, description="width of the encoder's MLP")
    difficulty_balance: float = Field(
        default=0.0, ge=0, le=1, description="show images of rare difficulty more often; 0 = each once per epoch"
    )
    difficulty_dropout: float = Field(default=0.1, ge=0, lt=1, description="share of steps with the null token")
    text_dropout: float = Field(
        default=0.1, ge=0, lt=1, description="share of steps with the empty prompt and the null token"
    )
    snr_gamma: float | None = Field(default=5.0, description="Min-SNR weighting; null = the paper's plain MSE")
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    hflip: bool = Field(default=False, description="also train on mirrored images")
    views: int = Field(
        default=1, ge=1, description="the image and views-1 jittered copies, each scored on its own; for small sets"
    )
    keep_suspects: bool = Field(default=False, description="train on images whose label is suspect too")
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    checkpoint_every: int = Field(default=500, ge=1, description="optimiser steps between checkpoints")
    keep_checkpoints: int = Field(default=2, ge=1)
    seed: int = 0


class CalibrateConfig(Section):
    """The closed loop after fine-tuning: probe, score, fit requested -> realised. Not from the paper."""

    enabled: bool = True
    points: int = Field(default=9, ge=3, description="difficulties probed, evenly over [0, 1]")
    images: int = Field(default=60, ge=4, description="images per point, spread over the classes")


class ExportConfig(Section):
    target: Literal["onnx", "tensorrt", "all"] = Field(
        default="onnx", description="onnx: the graphs; tensorrt or all: the graphs and engines for this GPU"
    )
    precision: Literal["fp32", "fp16", "bf16"] = Field(
        default="fp32", description="of UNet and text encoder; the VAE decoder stays fp32"
    )
    batch: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(1, 8, 32), min_length=1, description="images per network call, one TensorRT engine each"
    )
    opset: int | None = Field(default=None, ge=18, description="ONNX opset; none = 21, for bf16 22")
    shared_calls: int | None = Field(
        default=None,
        ge=1,
        le=3,
        description="calls of a guided step that share work; none = as guidance is set, 1 = any",
    )
    fixed_batch: bool = Field(
        default=True, description="engines for exactly these batches, as CUDA graphs need; otherwise for 1 up to each"
    )
    optimization_level: int = Field(default=3, ge=0, le=5, description="how long TensorRT searches for fast kernels")
    tf32: bool = Field(default=False, description="let TensorRT round the inputs of fp32 products to 10 bits")


class GenerateConfig(Section):
    difficulty: str = Field(default="normal:0.5,0.1", description="normal:MEAN,STD | uniform:LO,HI | fixed:S | real")
    difficulty_cap: float = Field(
        default=0.8, gt=0, le=1, description="nothing harder is asked for: beyond it labels break"
    )
    calibrated: bool = Field(
        default=True, description="ask for what comes out at the target, by the stored calibration"
    )
    ratio: float | None = Field(default=0.1, gt=0, description="images as a share of the real training set")
    count: int | None = Field(default=None, ge=1, description="images in all, spread like the real classes")
    per_class: int | None = Field(default=None, ge=1, description="images of each class")
    attempts: int = Field(
        default=1, ge=1, description="draws per image until its measured difficulty is within the tolerance"
    )
    tolerance: float = Field(default=0.1, ge=0, le=1, description="largest miss of the target that is accepted")
    captions: Literal["class", "real"] = Field(default="real", description="captions of real images, or one per class")
    negative_prompt: str = ""
    scheduler: Literal["ddim", "unipc", "dpmpp", "pndm"] = "ddim"
    steps: int = Field(default=30, ge=1)
    text_guidance: float = Field(default=2.0, ge=1, description="w_text; 1 = off")
    difficulty_guidance: float = Field(
        default=4.0, ge=0, description="w_difficulty; equal to text_guidance = one scale"
    )
    lora_scale: float = Field(default=1.0, ge=0, le=2)
    clip_range: float | None = Field(
        default=None, gt=0, description="clip the clean-latent estimate to +-this; for small bases"
    )
    batch_size: int = Field(default=8, ge=1)
    decode_batch: int = Field(default=8, ge=1, description="images decoded at once")
    guidance_interval: tuple[Fraction, Fraction] | None = Field(
        default=None, description="guide only this part of the schedule, 0 = noise, 1 = image; fewer network calls"
    )
    backend: Literal["auto", "torch", "onnxruntime", "openvino", "tensorrt"] = Field(
        default="auto", description="what runs the network; all but torch need dcdm export"
    )
    compile: bool = Field(default=False, description="torch backend: torch.compile, minutes at the start")
    cuda_graphs: bool = Field(default=True, description="torch backend on CUDA: record the network and replay it")
    trust_engine: bool = Field(default=False, description="tensorrt: load engines whose origin is not known")
    spinning: bool = Field(default=True, description="onnxruntime on a CPU: idle threads spin; off on shared machines")
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    image_format: Literal["png", "webp", "jpg"] = "png"
    score: bool = Field(default=True, description="score finished images: the measured_difficulty column")
    seed: int = 0

    @field_validator("guidance_interval")
    @classmethod
    def _in_order(cls, interval: tuple[float, float] | None) -> tuple[float, float] | None:
        if interval is not None and interval[0] >= interval[1]:
            raise ValueError("the first number must be below the second, as in 0.2,0.8")
        return interval


class EvaluateConfig(Section):
    targets: tuple[float, ...] = Field(
        default=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8), description="difficulties checked"
    )
    per_target: int = Field(default=100, ge=4, description="fresh images per target")
    arms: tuple[str, ...] = Field(
        default=("real", "upsampled", "dcdm"), description="real upsampled plain easy dcdm hard"
    )
    seeds: int = Field(default=3, ge=1, description="paired classifier seeds, each with its own generated set")
    synthetic_ratio: float = Field(default=1.0, gt=0, description="generated images per real one in the arms")
    fresh_sets: bool = Field(default=False, description="a generated set of its own for every seed and arm")
    seed: int = 1000


class Config(Section):
    preset: str | None = None
    seed: int = Field(default=0, description="run seed; stages add their own")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:0, mps")
    threads: int | None = Field(default=None, ge=1, description="CPU threads; null = the library's choice")
    data: DataConfig = DataConfig()
    score: ScoreConfig = ScoreConfig()
    caption: CaptionConfig = CaptionConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    calibrate: CalibrateConfig = CalibrateConfig()
    export: ExportConfig = ExportConfig()
    generate: GenerateConfig = GenerateConfig()
    judge: ClassifierConfig = ClassifierConfig()
    downstream: ClassifierConfig = ClassifierConfig()
    evaluate: EvaluateConfig = EvaluateConfig()


_DIGITS_NET = {
    "model": "resnet10t",
    "model_args": {"channels": [16, 24, 32, 64], "stem_width": 8},
    "image_size": 32,
    "batch_size": 32,
    "lr": 6e-3,
    "scale": [0.7, 1.0],
    "hflip": 0.0,
    "rotate": 10.0,
}
PRESETS: dict[str, dict[str, Any]] = {
    "sd15": {
        "finetune": {"precision": "bf16", "gradient_checkpointing": True},
        "export": {"precision": "fp16"},
        "generate": {"precision": "fp16"},
    },
    "digits": {
        "data": {"source": "digits"},
        "score": {**_DIGITS_NET, "steps": 60, "batch_size": 16, "folds": 2, "repeats": 10},
        "judge": {**_DIGITS_NET, "steps": 300},
        "downstream": {**_DIGITS_NET, "steps": 300},
        "caption": {"template": "a photo of the digit {class}"},
        "finetune": {
            "base": "tiny",
            "resolution": 32,
            "steps": 600,
            "batch_size": 32,
            "lr": 2e-3,
            "encoder_lr": 4e-3,
            "warmup_steps": 20,
            "lr_schedule": "cosine",
            "lora_targets": [
                "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "conv1", "conv2",
                "ff.net.0.proj", "ff.net.2",
            ],
            "tokens": 4,
            "hidden": 128,
            "difficulty_balance": 0.5,
            "ema_decay": 0.99,
            "snr_gamma": None,
            "checkpoint_every": 200,
        },
        "generate": {
            "ratio": 1.0,
            "scheduler": "dpmpp",
            "steps": 10,
            "text_guidance": 2.0,
            "difficulty_guidance": 6.0,
            "clip_range": 4.0,
            "batch_size": 64,
            "decode_batch": 64,
        },
        "evaluate": {"fresh_sets": True},
    },
}  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """Settings from one place. origin: what `dcdm config show --origin` prints."""

    origin: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Resolved:
    """The final settings and, for each dotted key, where its value came from."""

    config: Config
    origins: Mapping[str, str]


def resolve(
    *, flags: Mapping[str, Any] | None = None, config_file: Path | None = None, run_file: Path | None = None
) -> Resolved:
    """flags: dotted key -> value, None = not given. Raises UsageError for unknown keys and values that break a rule."""
    layers = [
        *_file_layer(run_file, required=False),
        *_file_layer(config_file, required=True),
        _environment_layer(),
        Layer("flag", _nested({k: v for k, v in (flags or {}).items() if v is not None})),
    ]
    preset = next((layer.values["preset"] for layer in reversed(layers) if layer.values.get("preset")), None)
    layers.insert(0, _preset_layer(preset))
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        _refuse_unknown(layer)
        _merge(merged, layer.values)
        origins |= dict.fromkeys(_leaves(layer.values), layer.origin)
    config = _validate(merged, origins)
    known = {key: origins.get(key, "default") for key in _leaves(config.model_dump())}
    return Resolved(config, known | {k: v for k, v in origins.items() if k in known})


def known_keys() -> list[str]:
    """Every setting as a dotted key; a free-form table (model_args) counts as one key."""
    return list(_model_keys(Config))


def flat_items(config: Config) -> dict[str, Any]:
    """Dotted key -> plain JSON value."""
    dumped = config.model_dump(mode="json")
    return {key: _lookup(dumped, key) for key in known_keys()}


def nearest(word: str, choices: list[str]) -> str:
    """'did you mean …' or the list of choices when nothing is close."""
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(choices)}"


def _model_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _model_keys(kind, f"{prefix}{name}.")
        else:
            yield prefix + name


def _lookup(tree: Mapping[str, Any], key: str) -> Any:
    value: Any = tree
    for part in key.split("."):
        value = value[part]
    return value


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    sections = {key.rsplit(".", 1)[0] for key in known_keys() if "." in key}
    for key, value in values.items():
        if isinstance(value, Mapping) and prefix + key in sections:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def _refuse_unknown(layer: Layer) -> None:
    known = known_keys()
    for key in _leaves(layer.values):
        if key not in known:
            raise UsageError(f"unknown setting {key!r} ({layer.origin})", nearest(key, known))


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict) and key != "model_args":
            _merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in dotted.items():
        *sections, name = key.split(".")
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})
        branch[name] = value
    return tree


def _file_layer(path: Path | None, *, required: bool) -> list[Layer]:
    if path is None or (not required and not path.is_file()):
        return []
    if not path.is_file():
        raise NotFoundError(f"no settings file {path}", "check the path given with --config", file=path)
    try:
        return [Layer(str(path), tomllib.loads(path.read_text("utf-8")))]
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(
            f"{path} is not valid TOML: {error}", "fix that line, or move the file aside", file=path
        ) from error


def _preset_layer(name: str | None) -> Layer:
    if name is None:
        return Layer("default", {})
    if name not in PRESETS:
        raise UsageError(f"unknown preset {name!r}", nearest(name, sorted(PRESETS)))
    return Layer(f"preset {name}", {"preset": name, **PRESETS[name]})


def _environment_layer() -> Layer:
    names = [n for n in os.environ if n.startswith(ENV_PREFIX) and n not in ENV_OWN]
    known = known_keys()
    for name in names:
        key = name.removeprefix(ENV_PREFIX).lower().replace("__", ".")
        if key not in known:
            raise UsageError(f"unknown setting in the environment: {name}", nearest(key, known))
    return Layer("environment", _parse_environment() if names else {})


def _parse_environment() -> dict[str, Any]:
    from pydantic_settings import BaseSettings, EnvSettingsSource  # slow to import, and rarely needed

    class Environment(Config, BaseSettings):  # pyright: ignore[reportIncompatibleVariableOverride]
        pass

    source = EnvSettingsSource(Environment, env_prefix=ENV_PREFIX, env_nested_delimiter="__")
    return {name: value for name, value in source().items() if value is not None}


def _validate(merged: Mapping[str, Any], origins: Mapping[str, str]) -> Config:
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        known = [k for k in origins if key.startswith(k)]
        place = f" ({origins[known[0]]})" if known else ""
        raise UsageError(
            f"{key} = {first.get('input')!r}{place}: {first['msg']}",
            "dcdm config show lists every setting and its value",
        ) from error
