"""Settings: one frozen model per stage. Each field is declared with its role (`roles.py`): what it changes.

`resolution.py` says where values come from: flags, then records, the environment, --config, dcdm.toml, the preset.
Values the paper does not state are marked "not from the paper" where they are used; each is a setting here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError, field_validator

from dcdm_cli.errors import UsageError
from dcdm_cli.run.classifiers import ClassifierConfig, DownstreamConfig, FeaturesConfig, JudgeConfig, ScoreConfig
from dcdm_cli.run.network import DEFAULT_SECONDS
from dcdm_cli.run.origins import nearest
from dcdm_cli.run.presets import PRESET_NAMES
from dcdm_cli.run.roles import execution, plan, result
from dcdm_cli.section import Fraction, Scale, Section, Seed, Side

# settings too, from a file of their own
__all__ = ["ClassifierConfig", "DownstreamConfig", "FeaturesConfig", "JudgeConfig", "ScoreConfig"]
CHECKS = ("digits", "features", "clip")  # label checks that have a name
WantedPrecision = Literal["auto", "fp32", "fp16", "bf16"]
GeneratedPrecision = WantedPrecision | Literal["fp8"]
AnySection = TypeVar("AnySection", bound=Section)


class DataConfig(Section):
    source: str = result(
        default="",
        description="class folder, hf:owner/name@revision, Parquet, CSV/JSONL manifest, -, digits or digits:50",
    )
    split: str | None = result(
        default=None, description="read this split only; where the source names none, the split its rows are"
    )
    split_map: tuple[str, ...] = result(
        default=(), description="NAME=SPLIT: what the source's parts are: train, judge, test, none, class"
    )
    exclude: tuple[str, ...] = result(default=(), description="patterns of files and folders that are not read")
    image_column: str = result(default="image", description="column with images, in tables and lists")
    label_column: str = result(default="label", description="column with labels, in tables and lists")
    caption_column: str | None = result(default=None, description="column with captions; `caption` is found by itself")
    caption_files: bool = result(default=True, description="take a .txt or .caption beside an image for its caption")
    image_root: Path | None = result(
        default=None, description="folder that a list's paths start from and stay inside; none = the list's own"
    )
    follow_links: bool = result(default=False, description="follow links, as long as they stay inside the source")
    class_map: Path | None = result(default=None, description="JSON list or {name: index} that fixes the class order")
    sparse_classes: Literal["drop", "keep", "stop"] = result(
        default="drop", description="classes with too few training images to be scored: left out, kept, or an error"
    )
    drop: Path | None = result(default=None, description="CSV of images to leave out, such as dcdm review writes")
    relabel: Path | None = result(
        default=None, description="CSV with the right class of images in its new_label column"
    )
    judge_fraction: float = result(
        default=0.3, gt=0, lt=1, description="the judge's share of the held-out images, where they are not split"
    )
    test_fraction: float = result(
        default=0.2, gt=0, lt=1, description="share of train set aside when the source holds no images out"
    )
    test_from: Literal["auto", "train"] = result(
        default="auto", description="a missing test split: of the validation split where there is one, or of train"
    )
    max_bad: float = result(
        default=0.01, ge=0, le=1, description="largest share of unreadable images that is tolerated"
    )
    strict: bool = result(default=False, description="stop at the first unreadable image")
    exif: bool = result(default=True, description="turn images as their EXIF tag says")
    background: str = result(default="white", description="colour behind transparent pixels")
    animated: Literal["first", "reject"] = result(default="first", description="what is done with animations")
    value_range: tuple[float, float] | None = result(
        default=None, description="black and white of deep grey images, 0,4095 for 12 bits; none = the type's range"
    )
    fit: Literal["auto", "crop", "pad", "stretch"] = result(
        default="auto", description="images as squares: the middle, all with bars, distorted; auto distorts beyond 2:1"
    )
    reduce_to: int | None = result(
        default=None,
        ge=8,
        description="classifiers see no more pixels per side than this, as the generator makes them; none = all",
    )
    max_pixels: int = result(default=64_000_000, ge=1, description="larger images are rejected before they are decoded")

    @field_validator("value_range")
    @classmethod
    def _rising(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not value[0] < value[1]:
            raise ValueError("black must be below white, as in 0,4095")
        return value


class CaptionConfig(Section):
    method: Literal["template", "model", "llm"] = result(
        default="template",
        description="one text per class; a model that sees each image; or llm: prompts for generate --prompts besides",
    )
    own: Literal["keep", "replace"] = result(
        default="keep", description="captions that came with the images: kept, gaps being filled, or replaced"
    )
    template: str = result(default="a photo of a {class}", description="{class} is replaced by the class name")
    templates_file: Path | None = result(default=None, description="JSON {class name: template} for single classes")
    model: str = result(
        default="Salesforce/blip2-opt-2.7b", description="image-to-text or image-text-to-text model (the paper's)"
    )
    revision: str | None = result(default=None, description="commit of the captioning model; none = the newest")
    prompt: str | None = result(default=None, description="question for image-text-to-text models")
    max_new_tokens: int = result(default=40, ge=1, description="longest caption of a model")
    batch_size: int = execution(default=8, ge=1, description="images captioned at once")
    prefix: str = result(default="a photo of a {class}, ", description="put before a model's caption")
    llm: str = result(
        of="prompts",
        default="HuggingFaceTB/SmolLM2-360M-Instruct",
        description="--method llm: any causal language model, hub id or folder",
    )
    llm_revision: str | None = result(of="prompts", default=None, description="commit of the llm; none = the newest")
    llm_tokens: int = result(of="prompts", default=40, ge=1, description="longest answer of the llm")
    llm_prompts: int = result(of="prompts", default=20, ge=1, le=10_000, description="prompts asked for of each class")
    sidecars: Path | None = result(of="files", default=None, description="also write .txt files below this folder")
    metadata: Path | None = result(of="files", default=None, description="also write metadata.jsonl into this folder")
    overwrite: bool = execution(default=False, description="replace sidecars and metadata that are already there")


class FinetuneConfig(Section):
    base: str = result(
        default="stable-diffusion-v1-5/stable-diffusion-v1-5", description="hub id, folder or one .safetensors file"
    )
    revision: str | None = result(default=None, description="commit of the pipeline; none = the newest")
    variant: str | None = result(
        default=None,
        description="which weight files, such as fp16; none = the plain ones, or fp16 if there are no others",
    )
    base_config: Path | None = result(
        default=None, description="folder with configs and tokenizer, for a base that is one .safetensors file"
    )
    resolution: Side = result(default=512, description="pixels per side")
    steps: int = result(default=5000, ge=1, description="optimiser steps; with --strength auto at most so many")
    strength: Annotated[int, Field(ge=1)] | Literal["auto"] | None = result(
        default=None, description="auto: how far to train is measured and chosen; or steps; none = --steps"
    )
    batch_size: int = result(default=8, ge=1, description="images per device and forward pass")
    gradient_accumulation: int = result(default=1, ge=1, description="forward passes per optimiser step")
    gradient_checkpointing: bool = execution(
        default=False,
        description="less memory, more time: 4 instead of 11 GiB, 2.5 times the seconds, at 8 images of 512 px",
    )
    lr: float = result(default=1e-4, gt=0, description="LoRA learning rate")
    encoder_lr: float = result(default=1e-3, gt=0, description="difficulty encoder learning rate")
    warmup_steps: int = result(default=100, ge=0, description="steps in which the learning rates rise")
    lr_schedule: Literal["constant_with_warmup", "cosine", "linear"] = result(
        default="constant_with_warmup", description="what the learning rates do after the warm-up"
    )
    max_grad_norm: float = result(default=1.0, gt=0, description="gradients are clipped to this norm")
    rank: int = result(default=16, ge=1, description="of the LoRA matrices")
    alpha: int = result(default=16, ge=1, description="the LoRA is scaled by alpha / rank")
    lora_targets: tuple[str, ...] = result(
        default=("to_q", "to_k", "to_v", "to_out.0"), description="UNet modules that get LoRA, by name ending"
    )
    conditioning: Literal["difficulty", "none"] = result(
        default="difficulty", description="none = plain LoRA, the control without difficulty"
    )
    mode: Literal["append", "replace"] = result(
        default="append", description="append to the text tokens, or replace the last"
    )
    tokens: int = result(default=1, ge=1, description="difficulty tokens")
    label_embedding: Literal["onehot", "learned"] = result(
        default="onehot", description="how the encoder sees the class"
    )
    frequencies: int = result(default=2, ge=0, description="octaves of Fourier features of s; more fit single images")
    hidden: int = result(default=256, ge=8, description="width of the encoder's MLP")
    difficulty_balance: float = result(
        default=0.0, ge=0, le=1, description="show images of rare difficulty more often; 0 = each once per epoch"
    )
    difficulty_dropout: float = result(default=0.1, ge=0, lt=1, description="share of steps with the null token")
    text_dropout: float = result(
        default=0.1, ge=0, lt=1, description="share of steps with the empty prompt and the null token"
    )
    snr_gamma: float | None = result(default=5.0, description="Min-SNR weighting; none = the paper's plain MSE")
    ema_decay: float = result(
        default=0.999, ge=0, lt=1, description="of the running mean of the weights, which is kept"
    )
    hflip: bool = result(default=False, description="also train on mirrored images")
    views: int = result(
        default=1, ge=1, description="the image and views-1 jittered copies, each scored on its own; for small sets"
    )
    keep_suspects: bool = result(default=False, description="train on images whose label is suspect too")
    own_draws: int = result(
        default=0, ge=0, description="images of its own from which the encoder then learns difficulty; 0 = off"
    )
    own_steps: int = result(default=1000, ge=1, description="optimiser steps on its own draws")
    own_trains: Literal["encoder", "all"] = result(
        default="encoder", description="what learns from them: the encoder over the frozen LoRA, or the LoRA too"
    )
    precision: WantedPrecision = result(
        default="auto", description="of the frozen base in training; auto = half on a GPU that has it, fp32 on a CPU"
    )
    checkpoint_every: int = execution(default=500, ge=1, description="optimiser steps between checkpoints")
    keep_checkpoints: int = execution(default=2, ge=1, description="newest ones that stay while training goes on")
    sample_every: int = execution(
        default=0, ge=0, description="steps between sheets of images in figures/, always of the same seeds; 0 = none"
    )
    log_with: Literal["tensorboard", "wandb", "trackio"] | None = execution(
        default=None, description="also send loss and learning rates there; loss.csv is written anyway"
    )
    seed: Seed = result(default=0, description="of weights, order, noise and dropout")


class StrengthConfig(Section):
    """What `finetune.strength = auto` tries, and what it asks of a point. Not from the paper."""

    checkpoints: tuple[Annotated[int, Field(ge=1)], ...] = result(
        default=(), description="steps probed; none given = four on a log scale up to finetune.steps"
    )
    lora_scales: tuple[Annotated[float, Field(gt=0, le=2)], ...] = result(
        default=(0.3, 0.6, 1.0), min_length=1, description="strengths of the LoRA probed"
    )
    guidance: tuple[tuple[Annotated[float, Field(ge=1)], Annotated[float, Field(ge=0)]], ...] = result(
        default=((1.5, 3.0),), min_length=1, description="pairs of text and difficulty guidance probed"
    )
    features: str = result(
        default="packaged",
        description="in what copies and coverage are measured: packaged, digits, a timm name, a folder or a file",
    )
    probe_budget: int = result(default=2000, ge=1, description="images made for the choice, over all points")
    most_copies: Fraction = result(
        default=0.05, description="largest share of images nearer to a training image than 99 % of unseen real ones"
    )
    least_labels: Fraction = result(
        default=0.5,
        description="smallest share of images whose label is seen by eyes that learned from unseen real ones",
    )
    keep_back: float = result(
        default=0.2, gt=0, lt=1, description="share of train kept from fine-tuning where there is no judge split"
    )


class DistillConfig(Section):
    """One network call that gives what the guided ones give. Not from the paper; Meng et al. 2022, arXiv 2210.03142."""

    steps: int = result(default=2000, ge=1, description="optimiser steps")
    batch_size: int = result(default=8, ge=1, description="images per forward pass")
    gradient_accumulation: int = result(default=1, ge=1, description="forward passes per optimiser step")
    lr: float = result(default=1e-4, gt=0, description="LoRA learning rate, at first")
    encoder_lr: float = result(default=1e-3, gt=0, description="difficulty encoder learning rate, at first")
    warmup_steps: int = result(default=100, ge=0, description="steps in which the learning rates rise")
    lr_schedule: Literal["constant_with_warmup", "cosine", "linear"] = result(
        default="cosine", description="what the learning rates do after the warm-up"
    )
    ema_decay: float = result(
        default=0.999, ge=0, lt=1, description="of the running mean of the weights, which is kept"
    )
    checkpoint_every: int = execution(default=500, ge=1, description="optimiser steps between checkpoints")
    keep_checkpoints: int = execution(default=2, ge=1, description="newest ones that stay while training goes on")
    seed: Seed = result(default=0, description="of order, noise and difficulties")


class CalibrateConfig(Section):
    """The closed loop after fine-tuning: probe, score, fit requested -> realised. Not from the paper."""

    enabled: bool = result(default=True, description="measure what comes out, so that it can be asked for")
    points: int = result(default=9, ge=3, description="difficulties probed, evenly over the real images' own")
    tails: float = result(
        default=0.05,
        ge=0,
        lt=0.5,
        description="share of real images at each end of the scale that no request goes beyond",
    )
    images: int = result(default=60, ge=4, description="images per point, spread over the classes")


class ExportConfig(Section):
    target: Literal["onnx", "tensorrt", "all"] = result(
        default="onnx", description="onnx: the graphs; tensorrt or all: the graphs and engines for this GPU"
    )
    batch: tuple[Annotated[int, Field(ge=1)], ...] = result(
        default=(1, 8, 32), min_length=1, description="images per network call, one TensorRT engine each"
    )
    opset: int | None = result(default=None, ge=18, description="ONNX opset; none = 21, for bf16 22, for a GPU 23")
    shared_calls: int | None = result(
        default=None,
        ge=1,
        le=3,
        description="calls of a guided step that share work; none = as guidance is set, 1 = any",
    )
    fixed_batch: bool = result(
        default=True, description="engines for exactly these batches, as CUDA graphs need; otherwise for 1 up to each"
    )
    optimization_level: int = result(default=3, ge=0, le=5, description="how long TensorRT searches for fast kernels")
    tf32: bool = result(default=False, description="let TensorRT round the inputs of fp32 products to 10 bits")
    refit: bool = result(default=False, description="engines that take a new LoRA's weights without a new build")


class GenerateConfig(Section):
    difficulty: str = plan(
        default="normal:0.5,0.1", description="normal:MEAN,STD | uniform:LO,HI | VALUE | real | best"
    )
    difficulty_cap: float = plan(
        default=0.8, gt=0, le=1, description="nothing harder is asked for: beyond it labels break"
    )
    calibrated: bool = plan(default=True, description="ask for what comes out at the target, by the stored calibration")
    ratio: float | None = plan(of="budget", default=0.1, gt=0, description="images as a share of the real training set")
    count: int | None = plan(of="budget", default=None, ge=1, description="images in all, spread like the real classes")
    per_class: int | None = plan(of="budget", default=None, ge=1, description="images of each class")
    attempts: int = result(
        of="uncalibrated",
        default=1,
        ge=1,
        description="draws per image until its measured difficulty is within the tolerance",
    )
    tolerance: float = result(
        of="uncalibrated", default=0.1, ge=0, le=1, description="largest miss of the target that is accepted"
    )
    check: str | None = result(
        of="uncalibrated",
        default=None,
        description="who else must see an image's label: digits, features, clip, or your classifier's file; none = off",
    )
    check_model: str | None = result(
        of="uncalibrated",
        default=None,
        description="CLIP of --check clip: hub id or folder; none = openai/clip-vit-base-patch32",
    )
    counts: Path | None = plan(
        of="budget", default=None, description="CSV class,count or JSON {class: count}; others get none"
    )
    balance: bool = plan(
        of="budget", default=False, description="fill rare classes up to the largest, or as far as count goes"
    )
    difficulty_file: Path | None = plan(
        of="budget",
        default=None,
        description="CSV class,difficulty or JSON {class: difficulty}; the others keep difficulty",
    )
    shard_size: int = plan(
        of="budget", default=1024, ge=1, description="images per shard, the unit that workers are handed"
    )
    captions: Literal["class", "real"] = plan(default="real", description="captions of real images, or one per class")
    prompts: Path | None = plan(
        default=None, description="prompts of your own: CSV or JSON lines class,prompt, or a folder of CLASS.txt"
    )
    prompt_share: Fraction | None = plan(
        default=None, description="share of images with one of --prompts, the rest as --captions says; none = all"
    )
    negative_prompt: str = result(default="", description="text of the unconditional call")
    scheduler: Literal["ddim", "unipc", "dpmpp", "pndm", "lcm", "tcd", "euler"] = result(
        default="dpmpp", description="sampler, of diffusers; lcm, tcd and euler for few-step LoRAs"
    )
    extra_lora: str | None = result(default=None, description="few-step LoRA to fuse besides: FILE or FILE:WEIGHT")
    steps: int = result(default=20, ge=1, description="sampler steps per image")
    strength: float = result(default=1.0, description="share of the steps, from a noised real image; 1 = noise alone")
    text_guidance: float = result(default=2.0, ge=1, description="w_text; 1 = off")
    difficulty_guidance: float = result(default=4.0, ge=0, description="w_difficulty; as text_guidance = one scale")
    guidance_span: tuple[Scale, Scale] | None = result(default=None, description="w_text at request 0 and 1: 8,1.5")
    guidance: Literal["calls", "distilled"] = result(
        default="calls", description="two or three network calls a step, or the one of dcdm distill, at these scales"
    )
    lora_scale: float = result(default=1.0, ge=0, le=2, description="strength of the LoRA; 1 = as trained")
    clip_range: float | None = result(default=None, gt=0, description="clip clean latents to +-this; for small bases")
    batch_size: int = execution(default=8, ge=1, description="images made at once")
    decode_batch: int = execution(default=8, ge=1, description="images decoded at once")
    guidance_interval: tuple[Fraction, Fraction] | None = result(
        default=None, description="guide only this part of the schedule, 0 = noise, 1 = image; fewer network calls"
    )
    backend: Literal["auto", "torch", "onnxruntime", "openvino", "tensorrt"] = execution(
        default="auto", description="what runs the network; all but torch need dcdm export"
    )
    compile: bool = execution(default=False, description="torch backend: torch.compile, minutes at the start")
    cuda_graphs: bool = execution(default=True, description="torch backend on CUDA: record the network and replay it")
    trust_engine: bool = execution(default=False, description="tensorrt: load engines whose origin is not known")
    spinning: bool = execution(
        default=True, description="onnxruntime on a CPU: idle threads spin; off on shared machines"
    )
    precision: GeneratedPrecision = result(
        of="uncalibrated",
        default="auto",
        description="of UNet and text encoder, exported ones too; auto = fp16 on a GPU, fp32 on a CPU; fp8: an export",
    )
    vae_precision: Literal["auto", "fp32", "fp16", "bf16"] = execution(
        default="auto", description="of the VAE decoder; auto = as the network on a GPU; overflows are done in fp32"
    )
    format: Literal["folder", "parquet", "webdataset"] = result(
        of="files",
        default="folder",
        description="class folders with metadata.jsonl, or one Parquet file or tar per shard",
    )
    image_format: Literal["png", "webp", "jpg"] = result(
        of="files", default="png", description="png and webp keep every pixel"
    )
    score: bool = result(of="files", default=True, description="score finished images: the measured_difficulty column")
    seed: Seed = plan(of="budget", default=0, description="of the plan: difficulties, captions and noise")

    @field_validator("strength")
    @classmethod
    def _a_share(cls, strength: float) -> float:
        if not 0 < strength <= 1:
            raise ValueError("give a share above 0 and up to 1, such as 0.75; 1 starts from noise alone")
        return strength

    @field_validator("prompts")
    @classmethod
    def _from_anywhere(cls, prompts: Path | None) -> Path | None:
        """Evaluation reads it again, perhaps from another folder."""
        return prompts.expanduser().absolute() if prompts is not None else None

    @field_validator("check")
    @classmethod
    def _check_or_file(cls, check: str | None) -> str | None:
        if check is not None and check not in CHECKS and not Path(check).suffix and "/" not in check:
            raise ValueError(f"{', '.join(CHECKS)}, or the .onnx or .safetensors file of your own classifier")
        return check

    @field_validator("guidance_interval")
    @classmethod
    def _in_order(cls, interval: tuple[float, float] | None) -> tuple[float, float] | None:
        if interval is not None and interval[0] >= interval[1]:
            raise ValueError("the first number must be below the second, as in 0.2,0.8")
        return interval


class EvaluateConfig(Section):
    targets: tuple[float, ...] = result(
        default=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8), description="difficulties checked"
    )
    per_target: int = result(default=100, ge=4, description="fresh images per target")
    features: str = result(
        default="packaged",
        description="in what images are compared: packaged, judge, a timm name with published weights, or its folder",
    )
    arms: tuple[str, ...] = result(
        default=("real", "upsampled", "dcdm"),
        description="real, upsampled, augmented, plain, easy, dcdm, hard, augmented + plain, augmented + dcdm",
    )
    seeds: int = result(default=3, ge=1, description="paired classifier seeds, each with its own generated set")
    workers: int = execution(default=1, ge=1, description="classifiers trained at a time, each in its own process")
    synthetic_ratio: float = result(default=1.0, gt=0, description="generated images per real one in the arms")
    fresh_sets: bool = result(default=False, description="a generated set of its own for every seed and arm")
    holdout: Literal["test", "validation"] = result(
        default="test", description="what arms are tested on; validation = the judge's images, to choose settings by"
    )
    density_images: int = result(default=200, ge=10, description="images per arm in the adherence experiment")
    plan_folds: int = result(default=3, ge=2, description="folds of the classifiers behind a plan from what is hard")
    atlas_targets: tuple[float, ...] = result(
        default=(0.1, 0.25, 0.4, 0.55, 0.7), description="difficulties shown in the atlas, from one seed each"
    )
    atlas_classes: int = result(default=100, ge=1, description="classes in the atlas, hardest first")
    gpu_hour_price: float | None = result(default=None, ge=0, description="money per GPU-hour, for the bill")
    seed: Seed = result(default=1000, description="first of the evaluation's own seeds")


class ScaleConfig(Section):
    """How work is spread. Nothing here changes what comes out, so no stage becomes stale by it."""

    devices: tuple[str, ...] = execution(
        default=(), description="one process each: N (of --device's kind), all, or names: cuda:0,cuda:2"
    )
    engine: Literal["local", "ray"] = execution(
        default="local", description="processes of this machine, or a Ray cluster"
    )
    address: str | None = execution(default=None, description="Ray cluster: host:port or auto; none = started here")
    results: Literal["shared", "driver"] = execution(
        default="shared", description="Ray workers write to a folder that all see, or send images to this process"
    )


class Config(Section):
    preset: str | None = execution(default=None, description=f"settings to start from: {PRESET_NAMES}")
    seed: Seed = result(default=0, description="run seed; stages add their own")
    device: str = execution(default="auto", description="auto, cpu, cuda, cuda:0, mps")
    threads: int | None = execution(default=None, ge=1, description="CPU threads; none = the library's choice")
    network_seconds: float = execution(
        default=DEFAULT_SECONDS, gt=0, description="longest wait for a network that does not answer, once per command"
    )
    data: DataConfig = Field(default_factory=DataConfig)
    score: ScoreConfig = Field(default_factory=ScoreConfig)
    caption: CaptionConfig = Field(default_factory=CaptionConfig)
    finetune: FinetuneConfig = Field(default_factory=FinetuneConfig)
    strength: StrengthConfig = Field(default_factory=StrengthConfig)
    distill: DistillConfig = Field(default_factory=DistillConfig)
    calibrate: CalibrateConfig = Field(default_factory=CalibrateConfig)
    export: ExportConfig = Field(default_factory=ExportConfig)
    generate: GenerateConfig = Field(default_factory=GenerateConfig)
    judge: JudgeConfig = Field(default_factory=JudgeConfig)
    downstream: DownstreamConfig = Field(default_factory=DownstreamConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    scale: ScaleConfig = Field(default_factory=ScaleConfig)


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
