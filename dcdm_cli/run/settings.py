"""Settings: one frozen model per stage, resolved once from layers that remember where each value came from.

Order, last wins: defaults, preset, `dcdm.toml` in the run folder, `--config FILE`, `DCDM_<STAGE>__<KEY>` in the
environment, flags. Unknown keys are errors that name the nearest known one. Values the paper does not state are marked
"not from the paper" in DESIGN.md and the README; each is a setting here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from dcdm_cli.errors import UsageError
from dcdm_cli.run.origins import Layer, file_layer, follow, nearest, nested, preset_layer, split_list

ENV_PREFIX = "DCDM_"
ENV_OWN = {"DCDM_RUN", "DCDM_DEBUG"}  # read elsewhere, not settings


Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _none(cls, value: Any, info: ValidationInfo) -> Any:
        """TOML, flags and the environment have no null: `none` switches an optional setting off."""
        field = cls.model_fields[info.field_name or ""]
        return None if value == "none" and type(None) in get_args(field.annotation) else value


AnySection = TypeVar("AnySection", bound=Section)


class DataConfig(Section):
    source: str = Field(
        default="", description="class folder, hf:owner/name@revision, Parquet, CSV/JSONL manifest, - or digits"
    )
    split: str | None = Field(default=None, description="which split the source's rows are, where it does not say")
    image_column: str = Field(default="image", description="column with images, in Parquet and data sets")
    label_column: str = Field(default="label", description="column with labels, in tables and manifests")
    caption_column: str | None = Field(default=None, description="column with captions; `caption` is found by itself")
    follow_links: bool = Field(default=False, description="follow links, as long as they stay inside the source")
    class_map: Path | None = Field(default=None, description="JSON list or {name: index} that fixes the class order")
    drop: Path | None = Field(default=None, description="CSV of images to leave out, such as dcdm review writes")
    relabel: Path | None = Field(default=None, description="CSV with the right class of images in its new_label column")
    judge_fraction: float = Field(default=0.3, gt=0, lt=1, description="share of the test split kept for the judge")
    test_fraction: float = Field(
        default=0.2, gt=0, lt=1, description="share of train carved out when there is no test split"
    )
    max_bad: float = Field(default=0.01, ge=0, le=1, description="largest share of unreadable images that is tolerated")
    strict: bool = Field(default=False, description="stop at the first unreadable image")
    exif: bool = Field(default=True, description="turn images as their EXIF tag says")
    background: str = Field(default="white", description="colour behind transparent pixels")
    animated: Literal["first", "reject"] = Field(default="first", description="what is done with animations")


class ClassifierConfig(Section):
    """A timm classifier trained from scratch; used for the scorer, the judge and the downstream arms."""

    model: str = Field(default="resnet18", description="timm model name")
    model_args: dict[str, Any] = Field(default_factory=dict, description="keyword arguments for timm.create_model")
    pretrained: bool = Field(default=False, description="start from timm's weights (needs the hub or its cache)")
    image_size: int = Field(default=224, ge=8, description="pixels per side")
    steps: int = Field(default=2000, ge=1, description="optimiser steps")
    batch_size: int = Field(default=64, ge=2, description="images per step")
    lr: float = Field(default=1e-3, gt=0, description="learning rate of AdamW")
    weight_decay: float = Field(default=0.05, ge=0, description="of AdamW")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="share of the target spread over all classes")
    scale: tuple[float, float] = Field(default=(0.35, 1.0), description="area range of the random crop")
    hflip: float = Field(default=0.5, ge=0, le=1, description="probability of a left-right flip; 0 for digits and text")
    rotate: float = Field(default=0.0, ge=0, le=180, description="largest random rotation, degrees")
    policy: str | None = Field(default=None, description="timm's augmentation policy, such as rand-m7-mstd0.5-inc1")
    mixup: float = Field(default=0.0, ge=0, description="strength (alpha) of Mixup; 0 = off")


class ScoreConfig(ClassifierConfig):
    method: Literal["crossfit", "classifier", "column"] = Field(
        default="crossfit", description="out-of-fold classifiers, your own one, or scores of your own"
    )
    folds: int = Field(default=5, ge=2, description="parts; each is scored by a classifier trained on the others")
    repeats: int = Field(default=1, ge=1, description="rounds of cross-fitting with other folds, averaged")
    temperature: bool = Field(default=True, description="scale the logits by a temperature fitted out of fold")
    classifier: Path | None = Field(default=None, description="your own classifier: .safetensors of `model`, or .onnx")
    column: str | None = Field(default=None, description="score column of the source, for --method column")
    seed: int = Field(default=0, description="of folds and classifiers")


class CaptionConfig(Section):
    method: Literal["template", "model"] = Field(default="template", description="one text per class, or a model")
    template: str = Field(default="a photo of a {class}", description="{class} is replaced by the class name")
    templates_file: Path | None = Field(default=None, description="JSON {class name: template} for single classes")
    model: str = Field(
        default="Salesforce/blip2-opt-2.7b", description="image-to-text or image-text-to-text model (the paper's)"
    )
    revision: str | None = Field(default=None, description="commit of the captioning model; none = the newest")
    prompt: str | None = Field(default=None, description="question for image-text-to-text models")
    max_new_tokens: int = Field(default=40, ge=1, description="longest caption of a model")
    batch_size: int = Field(default=8, ge=1, description="images captioned at once")
    prefix: str = Field(default="a photo of a {class}, ", description="put before a model's caption")
    sidecars: Path | None = Field(default=None, description="also write .txt files below this folder")
    metadata: Path | None = Field(default=None, description="also write metadata.jsonl into this folder")
    overwrite: bool = Field(default=False, description="replace sidecars and metadata that are already there")


class FinetuneConfig(Section):
    base: str = Field(
        default="stable-diffusion-v1-5/stable-diffusion-v1-5", description="hub id or folder of the pipeline"
    )
    revision: str | None = Field(default=None, description="commit of the pipeline; none = the newest")
    resolution: int = Field(default=512, ge=8, description="pixels per side")
    steps: int = Field(default=5000, ge=1, description="optimiser steps; with --strength auto at most so many")
    strength: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        default=None, description="auto: how far to train is measured and chosen; or steps; none = --steps"
    )
    batch_size: int = Field(default=8, ge=1, description="images per device and forward pass")
    gradient_accumulation: int = Field(default=1, ge=1, description="forward passes per optimiser step")
    gradient_checkpointing: bool = Field(
        default=False,
        description="less memory, more time: 4 instead of 11 GiB, 2.5 times the seconds, at 8 images of 512 px",
    )
    lr: float = Field(default=1e-4, gt=0, description="LoRA learning rate")
    encoder_lr: float = Field(default=1e-3, gt=0, description="difficulty encoder learning rate")
    warmup_steps: int = Field(default=100, ge=0, description="steps in which the learning rates rise")
    lr_schedule: Literal["constant_with_warmup", "cosine", "linear"] = Field(
        default="constant_with_warmup", description="what the learning rates do after the warm-up"
    )
    max_grad_norm: float = Field(default=1.0, gt=0, description="gradients are clipped to this norm")
    rank: int = Field(default=16, ge=1, description="of the LoRA matrices")
    alpha: int = Field(default=16, ge=1, description="the LoRA is scaled by alpha / rank")
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
    label_embedding: Literal["onehot", "learned"] = Field(
        default="onehot", description="how the encoder sees the class"
    )
    frequencies: int = Field(default=2, ge=0, description="octaves of Fourier features of s; more fit single images")
    hidden: int = Field(default=256, ge=8, description="width of the encoder's MLP")
    difficulty_balance: float = Field(
        default=0.0, ge=0, le=1, description="show images of rare difficulty more often; 0 = each once per epoch"
    )
    difficulty_dropout: float = Field(default=0.1, ge=0, lt=1, description="share of steps with the null token")
    text_dropout: float = Field(
        default=0.1, ge=0, lt=1, description="share of steps with the empty prompt and the null token"
    )
    snr_gamma: float | None = Field(default=5.0, description="Min-SNR weighting; none = the paper's plain MSE")
    ema_decay: float = Field(default=0.999, ge=0, lt=1, description="of the running mean of the weights, which is kept")
    hflip: bool = Field(default=False, description="also train on mirrored images")
    views: int = Field(
        default=1, ge=1, description="the image and views-1 jittered copies, each scored on its own; for small sets"
    )
    keep_suspects: bool = Field(default=False, description="train on images whose label is suspect too")
    precision: Literal["fp32", "fp16", "bf16"] = Field(default="fp32", description="of the frozen base in training")
    checkpoint_every: int = Field(default=500, ge=1, description="optimiser steps between checkpoints")
    keep_checkpoints: int = Field(default=2, ge=1, description="newest ones that stay while training goes on")
    sample_every: int = Field(
        default=0, ge=0, description="steps between sheets of images in figures/, always of the same seeds; 0 = none"
    )
    log_with: Literal["tensorboard", "wandb", "trackio"] | None = Field(
        default=None, description="also send loss and learning rates there; loss.csv is written anyway"
    )
    seed: int = Field(default=0, description="of weights, order, noise and dropout")


WATCHING = frozenset({"sample_every", "log_with"})  # settings of fine-tuning that change nothing of what comes out


class StrengthConfig(Section):
    """What `finetune.strength = auto` tries, and what it asks of a point. Not from the paper."""

    checkpoints: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(), description="steps probed; none given = five on a log scale up to finetune.steps"
    )
    lora_scales: tuple[Annotated[float, Field(gt=0, le=2)], ...] = Field(
        default=(0.6, 1.0), min_length=1, description="strengths of the LoRA probed"
    )
    guidance: tuple[tuple[Annotated[float, Field(ge=1)], Annotated[float, Field(ge=0)]], ...] = Field(
        default=((1.5, 3.0),), min_length=1, description="pairs of text and difficulty guidance probed"
    )
    probe_budget: int = Field(default=2000, ge=1, description="images made for the choice, over all points")
    most_copies: Fraction = Field(
        default=0.05, description="largest share of images nearer to a training image than 99 % of unseen real ones"
    )
    least_agreement: Fraction = Field(default=0.5, description="smallest share of images that keep their label")
    keep_back: float = Field(
        default=0.2, gt=0, lt=1, description="share of train kept from fine-tuning where there is no judge split"
    )


class CalibrateConfig(Section):
    """The closed loop after fine-tuning: probe, score, fit requested -> realised. Not from the paper."""

    enabled: bool = Field(default=True, description="measure what comes out, so that it can be asked for")
    points: int = Field(default=9, ge=3, description="difficulties probed, evenly over the real images' own")
    tails: float = Field(
        default=0.05,
        ge=0,
        lt=0.5,
        description="share of real images at each end of the scale that no request goes beyond",
    )
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
    counts: Path | None = Field(default=None, description="CSV class,count or JSON {class: count}; others get none")
    balance: bool = Field(default=False, description="fill rare classes up to the largest, or as far as count goes")
    difficulty_file: Path | None = Field(
        default=None, description="CSV class,difficulty or JSON {class: difficulty}; the others keep difficulty"
    )
    shard_size: int = Field(default=1024, ge=1, description="images per shard, the unit that workers are handed")
    captions: Literal["class", "real"] = Field(default="real", description="captions of real images, or one per class")
    negative_prompt: str = Field(default="", description="text of the unconditional call")
    scheduler: Literal["ddim", "unipc", "dpmpp", "pndm"] = Field(default="ddim", description="sampler, of diffusers")
    steps: int = Field(default=30, ge=1, description="sampler steps per image")
    text_guidance: float = Field(default=2.0, ge=1, description="w_text; 1 = off")
    difficulty_guidance: float = Field(
        default=4.0, ge=0, description="w_difficulty; equal to text_guidance = one scale"
    )
    lora_scale: float = Field(default=1.0, ge=0, le=2, description="strength of the LoRA; 1 = as trained")
    clip_range: float | None = Field(
        default=None, gt=0, description="clip the clean-latent estimate to +-this; for small bases"
    )
    batch_size: int = Field(default=8, ge=1, description="images made at once")
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
    precision: Literal["fp32", "fp16", "bf16"] = Field(default="fp32", description="of UNet and text encoder")
    format: Literal["folder", "parquet", "webdataset"] = Field(
        default="folder", description="class folders with metadata.jsonl, or one Parquet file or tar per shard"
    )
    image_format: Literal["png", "webp", "jpg"] = Field(default="png", description="png and webp keep every pixel")
    score: bool = Field(default=True, description="score finished images: the measured_difficulty column")
    seed: int = Field(default=0, description="of the plan: difficulties, captions and noise")

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
        default=("real", "upsampled", "dcdm"), description="real upsampled augmented plain easy dcdm hard"
    )
    seeds: int = Field(default=3, ge=1, description="paired classifier seeds, each with its own generated set")
    workers: int = Field(default=1, ge=1, description="classifiers trained at a time, each in its own process")
    synthetic_ratio: float = Field(default=1.0, gt=0, description="generated images per real one in the arms")
    fresh_sets: bool = Field(default=False, description="a generated set of its own for every seed and arm")
    holdout: Literal["test", "validation"] = Field(
        default="test", description="what arms are tested on; validation = the judge's images, to choose settings by"
    )
    density_images: int = Field(default=200, ge=10, description="images per arm in the adherence experiment")
    plan_folds: int = Field(default=3, ge=2, description="folds of the classifiers behind a plan from what is hard")
    atlas_targets: tuple[float, ...] = Field(
        default=(0.1, 0.25, 0.4, 0.55, 0.7), description="difficulties shown in the atlas, from one seed each"
    )
    atlas_classes: int = Field(default=100, ge=1, description="classes in the atlas, hardest first")
    gpu_hour_price: float | None = Field(default=None, ge=0, description="money per GPU-hour, for the bill")
    seed: int = Field(default=1000, description="first of the evaluation's own seeds")


class ScaleConfig(Section):
    """How work is spread. Nothing here changes what comes out, so no stage becomes stale by it."""

    devices: tuple[str, ...] = Field(
        default=(), description="one process each: N (of --device's kind), all, or names: cuda:0,cuda:2"
    )
    engine: Literal["local", "ray"] = Field(default="local", description="processes of this machine, or a Ray cluster")
    address: str | None = Field(default=None, description="Ray cluster: host:port or auto; none = one on this machine")
    results: Literal["shared", "driver"] = Field(
        default="shared", description="Ray workers write to a folder that all see, or send images to this process"
    )


class Config(Section):
    preset: str | None = Field(default=None, description="settings to start from: digits, sd15")
    seed: int = Field(default=0, description="run seed; stages add their own")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:0, mps")
    threads: int | None = Field(default=None, ge=1, description="CPU threads; none = the library's choice")
    data: DataConfig = DataConfig()
    score: ScoreConfig = ScoreConfig()
    caption: CaptionConfig = CaptionConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    strength: StrengthConfig = StrengthConfig()
    calibrate: CalibrateConfig = CalibrateConfig()
    export: ExportConfig = ExportConfig()
    generate: GenerateConfig = GenerateConfig()
    judge: ClassifierConfig = ClassifierConfig()
    downstream: ClassifierConfig = ClassifierConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    scale: ScaleConfig = ScaleConfig()


@dataclass(frozen=True)
class Resolved:
    """The final settings and, for each dotted key, where its value came from."""

    config: Config
    origins: Mapping[str, str]


def resolve(
    *,
    flags: Mapping[str, Any] | None = None,
    config_file: Path | None = None,
    run_file: Path | None = None,
    recorded: Iterable[Layer] = (),
    lowest: Mapping[str, Any] | None = None,
) -> Resolved:
    """flags: dotted key -> value, None = not given. Raises UsageError for unknown keys and values that break a rule.

    recorded: what earlier stages of the run were done with; only flags win over it, because it is a fact. lowest: what
    a command starts from, dotted; a preset named elsewhere replaces its `preset`, everything else wins over it.
    """
    layers = [
        *file_layer(run_file, required=False),
        *file_layer(config_file, required=True),
        _environment_layer(),
        *(Layer(layer.origin, _known_only(layer.values)) for layer in recorded),
        Layer("flag", nested({k: v for k, v in (flags or {}).items() if v is not None})),
    ]
    starting = Layer("command", nested(lowest or {}))
    named = (layer.values["preset"] for layer in (*reversed(layers), starting) if layer.values.get("preset"))
    starting = Layer("command", {key: value for key, value in starting.values.items() if key != "preset"})
    layers = [preset_layer(next(named, None)), starting, *layers]
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        _refuse_unknown(layer)
        _merge(merged, layer.values)
        origins |= dict.fromkeys(_leaves(layer.values), layer.origin)
    follow(merged, origins, "score", ("judge", "downstream"), list(ClassifierConfig.model_fields))
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


def changed(section: AnySection, settings: Mapping[str, Any], where: str) -> AnySection:
    """A checked copy of a section with some settings replaced. Raises UsageError naming `where` they were written."""
    if not settings:
        return section
    try:
        return type(section).model_validate({**section.model_dump(), **settings})
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else ""
        hint = nearest(key, list(type(section).model_fields)) if first["type"] == "extra_forbidden" else ""
        raise UsageError(f"{where}: {key} = {first.get('input')!r}: {first['msg']}", hint) from error


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


def _known_only(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without the settings that an older version had."""
    known = set(known_keys())
    return nested({key: _lookup(values, key) for key in _leaves(values) if key in known})


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


def _environment_layer() -> Layer:
    names = [n for n in os.environ if n.startswith(ENV_PREFIX) and n not in ENV_OWN]
    known = known_keys()
    for name in names:
        key = name.removeprefix(ENV_PREFIX).lower().replace("__", ".")
        if key not in known:
            raise UsageError(f"unknown setting in the environment: {name}", nearest(key, known))
    return Layer("environment", _parse_environment() if names else {})


def _parse_environment() -> dict[str, Any]:
    from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsError  # slow to import, and rarely needed

    class Environment(Config, BaseSettings):  # pyright: ignore[reportIncompatibleVariableOverride]
        pass

    class Source(EnvSettingsSource):
        def decode_complex_value(self, field_name: str, field: Any, value: Any) -> Any:
            """Tables are JSON; lists may be written with commas, as in flags."""
            is_list = get_origin(field.annotation) is tuple and not value.lstrip().startswith("[")
            return split_list(value) if is_list else super().decode_complex_value(field_name, field, value)

    try:
        values = Source(Environment, env_prefix=ENV_PREFIX, env_nested_delimiter="__")()
    except SettingsError as error:
        raise UsageError(f"cannot read the environment: {error}", "write lists as 1,2 and tables as JSON") from error
    return {name: value for name, value in values.items() if value is not None}


def _validate(merged: Mapping[str, Any], origins: Mapping[str, str]) -> Config:
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        known = [k for k in origins if key.startswith(k)]
        place = f" ({origins[max(known, key=len)]})" if known else ""
        raise UsageError(
            f"{key} = {first.get('input')!r}{place}: {first['msg']}",
            "dcdm config show lists every setting and its value",
        ) from error
