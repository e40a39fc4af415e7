"""The difficulty encoder E(y, s): the network, and the door by which other programs use it with plain diffusers.

Paper: a small MLP trained from scratch. From and to folders and the hub through huggingface_hub's mixin.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import ModelHubMixin, snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dcdm_cli.errors import MismatchError, NotFoundError, UsageError
from dcdm_cli.model.adapter import (
    ADAPTER_FILES,
    ENCODER_FILE,
    AdapterInfo,
    adapter_hash,
    read_adapter,
    save_encoder,
)
from dcdm_cli.model.conditioning import NULL_DIFFICULTY, EncoderConfig, fourier_features, join_tokens
from dcdm_cli.model.lora import attach_lora
from dcdm_cli.model.packaged import resolve_base
from dcdm_cli.model.text import Pipeline
from dcdm_cli.run.finite import refuse_not_finite_weights
from dcdm_cli.run.network import from_hub
from dcdm_cli.run.origins import nearest


@dataclass(frozen=True)
class Origin:
    """The adapter folder that an encoder was read from, on this machine, and its config.json."""

    folder: Path
    info: AdapterInfo


class DifficultyEncoder(nn.Module, ModelHubMixin):
    """(label int64 [B], difficulty float32 [B]) -> tokens float32 [B, tokens, dim].

    difficulty lies in [0, 1], 0 easy, 1 hard; a negative value yields the null token, whatever the label.

    One that `from_pretrained` has read knows its classes and its base model too, and conditions a pipeline.
    """

    origin: Origin | None = None

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.classes if config.label_embedding == "onehot" else config.hidden
        self.embedding = nn.Embedding(config.classes, width) if config.label_embedding == "learned" else None
        self.mlp = nn.Sequential(
            nn.Linear(width + 1 + 2 * config.frequencies, config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, config.tokens * config.dim),
            nn.Unflatten(1, (config.tokens, config.dim)),
            nn.LayerNorm(config.dim),  # as large as the text tokens, or attention overlooks them
        )
        self.null = nn.Parameter(torch.randn(config.tokens, config.dim))  # of the size that LayerNorm gives the others

    def forward(self, label: Tensor, difficulty: Tensor) -> Tensor:
        known = label.clamp_min(0)
        one_hot = F.one_hot(known, self.config.classes).to(difficulty.dtype)
        joined = one_hot if self.embedding is None else self.embedding(known)
        features = torch.cat([joined, fourier_features(difficulty, self.config.frequencies)], dim=1)
        return torch.where((difficulty < 0)[:, None, None], self.null, self.mlp(features))

    @property
    def base(self) -> str:
        """What `DiffusionPipeline.from_pretrained` takes for the base model: a hub id or a folder, which for the base
        that comes with dcdm is where it is installed."""
        return resolve_base(self._known().info.base)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._known().info.class_names

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> DifficultyEncoder:
        """The encoder of an adapter folder, as `dcdm finetune` writes it, or of a repository on the hub.

        options: of huggingface_hub: revision, token, cache_dir, local_files_only. Raises NotFoundError when there is
        none or the hub cannot be reached, MismatchError for a damaged adapter or a plain LoRA.
        """
        place = Path(pretrained_model_name_or_path)
        if place.is_dir():
            read_adapter(place)  # says what is wrong with a folder better than a JSON parser would
        try:
            return super().from_pretrained(str(pretrained_model_name_or_path), **options)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise NotFoundError(
                f"no adapter {str(place)!r}, neither a folder nor on the hub: {reason}",
                "give the folder that dcdm finetune names (RUN/adapter), or owner/name; without a network download it",
            ) from error

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Writes the whole adapter, LoRA, card and calibration included, into another folder. options: of
        huggingface_hub. Raises UsageError for the adapter's own folder, and for an encoder that was not read from one.
        """
        if Path(save_directory).resolve() == self._known().folder.resolve():
            raise UsageError(f"{save_directory} is where this adapter comes from", "name another folder")
        return super().save_pretrained(save_directory, **options)

    def condition(
        self,
        pipe: Pipeline,
        prompt: str | Sequence[str],
        *,
        label: str | int | Sequence[str | int],
        difficulty: float | Sequence[float] | None,
        negative_prompt: str = "",
    ) -> dict[str, Tensor]:
        """Keyword arguments for a call of `pipe`, a Stable Diffusion pipeline of this encoder's base model:
        `prompt_embeds` and `negative_prompt_embeds` [B, T, D], in the pipe's dtype and on its device; for Stable
        Diffusion XL `pooled_prompt_embeds` and `negative_pooled_prompt_embeds` [B, P] too.

        prompt, label (class name or index), difficulty in [0, 1] (None = none given): one for all images, or one each.
        The negative half gets the null token, so `guidance_scale` acts as equal text_guidance and difficulty_guidance.

        Loads the LoRA into `pipe` unless it has it; its strength is diffusers' own `cross_attention_kwargs={"scale":
        0.6}` of the call. Raises UsageError for an unknown class, a difficulty outside [0, 1], lists of different
        lengths or other LoRAs in the pipe, MismatchError for a pipe of another width or of mixed dtypes.
        """
        origin = self._known()
        self._check(pipe)
        prompts, labels, difficulties = _columns(prompt, label, difficulty)
        classes = torch.tensor([self._class_index(word) for word in labels])
        wanted = torch.tensor([_checked(value) for value in difficulties], dtype=self.null.dtype)
        # called by its weights, so that one that was fused into the pipe is known again by its name alone
        attach_lora(pipe, origin.folder, f"dcdm_{adapter_hash(origin.folder)[:8]}")
        encoded = _encoded(pipe, prompts, negative_prompt)
        nothing = torch.full_like(wanted, NULL_DIFFICULTY)
        return encoded | {
            "prompt_embeds": self._joined(encoded["prompt_embeds"], classes, wanted),
            "negative_prompt_embeds": self._joined(encoded["negative_prompt_embeds"], classes, nothing),
        }

    @torch.no_grad()
    def _joined(self, text: Tensor, label: Tensor, difficulty: Tensor) -> Tensor:
        # the encoder stays where it is, whatever device the pipe works on
        place = self.null.device
        tokens = self(label.to(place), difficulty.to(place))
        return join_tokens(text, tokens.to(text.device), self.config.mode)

    def _known(self) -> Origin:
        if self.origin is None:
            raise UsageError(
                "this encoder has no classes and no base model: it was made from a shape alone",
                "read a fine-tuned one: DifficultyEncoder.from_pretrained(FOLDER)",
            )
        return self.origin

    def _check(self, pipe: Pipeline) -> None:
        width, unet, text = pipe.unet.config["cross_attention_dim"], pipe.unet.dtype, pipe.text_encoder.dtype
        if width != self.config.dim:
            raise MismatchError(
                f"the pipe's UNet attends to {width} values per token, this encoder makes {self.config.dim}",
                f"load the base it was trained on: DiffusionPipeline.from_pretrained({self.base!r})",
            )
        # the embeddings come in the text encoder's dtype, and the UNet takes them as they are
        if unet != text:
            raise MismatchError(
                f"the pipe's UNet is {unet} and its text encoder {text}",
                f"load all in one: DiffusionPipeline.from_pretrained({self.base!r}, dtype={unet})",
            )

    def _class_index(self, word: str | int) -> int:
        names = self.class_names
        # "3" is a name and 3 a position, which differ where classes are called by numbers
        if isinstance(word, str) and word in names:
            return names.index(word)
        if isinstance(word, int) and 0 <= word < len(names):
            return word
        hint = nearest(word, list(names)) if isinstance(word, str) else f"0 to {len(names) - 1}, or a name"
        raise UsageError(f"this adapter has no class {word!r}", hint)

    def _save_pretrained(self, save_directory: Path) -> None:
        origin = self._known()
        for file in (origin.folder / name for name in ADAPTER_FILES):
            if file.is_file():
                shutil.copyfile(file, save_directory / file.name)
        # over the copied one: what this object holds counts, which may have learnt on since it was read
        save_encoder(save_directory, self.state_dict(), self.config)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **model_kwargs: Any,
    ) -> DifficultyEncoder:
        folder = Path(model_id)
        if not folder.is_dir():
            with from_hub(folder):
                got = snapshot_download(
                    model_id,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                    allow_patterns=list(ADAPTER_FILES),
                )
            folder = Path(got)
        info = read_adapter(folder)
        encoder = load_encoder(folder, info)
        if encoder is None:
            raise MismatchError(
                f"{folder} is a plain LoRA without difficulty",
                "use it with pipe.load_lora_weights, or fine-tune with --conditioning difficulty",
                file=folder,
            )
        # absolute: `condition` reads the LoRA from there, whatever folder the program stands in by then
        encoder.origin = Origin(folder.absolute(), info)
        return encoder


def load_encoder(folder: Path, info: AdapterInfo) -> DifficultyEncoder | None:
    """None for a plain LoRA. Raises MismatchError when the weights are missing, damaged or of another shape."""
    if info.encoder is None:
        return None
    try:
        encoder = DifficultyEncoder(info.encoder)
        state = load_file(folder / ENCODER_FILE)
        refuse_not_finite_weights(state, folder / ENCODER_FILE, "train it again: dcdm finetune --force")
        encoder.load_state_dict(state)
    except (OSError, SafetensorError, RuntimeError, TypeError) as error:
        file = folder / ENCODER_FILE
        raise MismatchError(f"{file} does not fit config.json: {error}", "dcdm finetune --force", file=file) from error
    return encoder.eval()


def _encoded(pipe: Any, prompts: list[str], negative_prompt: str) -> dict[str, Tensor]:
    """Prompts and as many negative ones, by the names that the pipe's call has for them."""
    device, negative = pipe._execution_device, [negative_prompt] * len(prompts)
    if getattr(pipe, "text_encoder_2", None) is None:
        names, found = ("", "negative_"), pipe.encode_prompt(prompts, device, 1, True, negative)
    else:  # Stable Diffusion XL, whose empty prompt may stand for zeros: for none at all, as the pipe sees it
        names = ("", "negative_", "pooled_", "negative_pooled_")
        found = pipe.encode_prompt(prompts, None, device, 1, True, negative if negative_prompt else None)
    return {f"{name}prompt_embeds": tensor for name, tensor in zip(names, found, strict=True)}


def _columns(*values: Any) -> tuple[list[Any], ...]:
    """Single values repeated to the length of the lists among them. Raises UsageError for lists of two lengths."""
    # a prompt is one value, though Python takes a text for a sequence of letters
    lists = [list(value) if isinstance(value, Sequence) and not isinstance(value, str) else None for value in values]
    lengths = {len(column) for column in lists if column is not None} or {1}
    if len(lengths) > 1:
        raise UsageError(
            f"prompt, label and difficulty have {', '.join(map(str, sorted(lengths)))} entries", "give as many of each"
        )
    count = lengths.pop()
    return tuple([value] * count if column is None else column for value, column in zip(values, lists, strict=True))


def _checked(difficulty: float | None) -> float:
    if difficulty is None:
        return NULL_DIFFICULTY
    if not 0 <= difficulty <= 1:
        raise UsageError(f"difficulty {difficulty} lies outside [0, 1]", "0 is easy, 1 is hard, None is none given")
    return float(difficulty)
