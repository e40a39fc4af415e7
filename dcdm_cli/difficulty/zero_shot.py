"""Zero-shot classification: images compared with texts by a CLIP that has never seen either. Not from the paper
(Radford et al., 2021).

The texts are encoded once and kept; afterwards it is a classifier like any other, image -> logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import normalize

from dcdm_cli.difficulty.classifier import Preprocessing
from dcdm_cli.errors import NotFoundError, UsageError
from dcdm_cli.run.network import from_hub, reason

RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers


class ZeroShot(nn.Module):
    """Image float [B, 3, H, W], standardised -> logits float32 [B, C]: cosines with the texts, times CLIP's scale.

    texts: float32 [C, D], of length 1.
    """

    def __init__(self, clip: nn.Module, texts: torch.Tensor, scale: float) -> None:
        super().__init__()
        self.clip, self.scale, self.num_classes = clip, scale, len(texts)
        self.register_buffer("texts", texts)
        self.texts: torch.Tensor

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        clip: Any = self.clip
        features = _pooled(clip.get_image_features(pixel_values=pixels))
        return self.scale * normalize(features.float(), dim=-1) @ self.texts.T


def open_zero_shot(
    model: str, captions: Sequence[str], device: torch.device | str = "cpu", *, revision: str | None = None
) -> tuple[ZeroShot, Preprocessing, str | None]:
    """(the classifier, in eval mode on `device`; how images reach it; the commit its weights came from, None for a
    folder). model: hub id or folder. captions: one per class.

    Raises NotFoundError when the model cannot be had, UsageError when it is no CLIP. Never runs a model's own code.
    """
    processor, clip = _load(model, revision)
    tokens = processor.tokenizer(list(captions), padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        texts = normalize(_pooled(clip.get_text_features(**tokens)).float(), dim=-1)
        # CLIP keeps the logarithm of what it multiplies cosines by
        scale = float(clip.logit_scale.exp())
    network = ZeroShot(clip, texts, scale).eval().requires_grad_(False).to(device)
    return network, _preprocessing(network, processor.image_processor), getattr(clip.config, "_commit_hash", None)


def _load(model: str, revision: str | None) -> tuple[Any, Any]:
    """(processor, model). Typed Any: transformers picks the classes by the model's config."""
    from transformers import AutoConfig, AutoProcessor, CLIPConfig, CLIPModel, ProcessorMixin

    source: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    try:
        with from_hub(model):
            # the config alone at first: weights of another kind of model are not fetched to be refused
            config = AutoConfig.from_pretrained(model, **source)
            if not isinstance(config, CLIPConfig):
                raise ValueError(f"it is of type {config.model_type}")
            processor = AutoProcessor.from_pretrained(model, **source)
            if not isinstance(processor, ProcessorMixin):  # only a tokenizer or an image processor was found
                raise ValueError("it has no processor for images and text")
            return processor, CLIPModel.from_pretrained(model, **source)
    except OSError as error:  # what transformers raises for a missing folder, id, file, access right or network
        raise NotFoundError(
            f"cannot load the CLIP model {model!r}: {reason(error)}",
            "go online once so that it reaches the hub's cache, name a folder that has it: --check-model FOLDER, or "
            "choose another --check",
            file=Path(model) if Path(model).exists() else None,
        ) from error
    except ValueError as error:
        raise UsageError(
            f"{model!r} is no CLIP model: {reason(error)}",
            "name one, such as openai/clip-vit-base-patch32, as generate.check_model",
        ) from error


def _preprocessing(network: nn.Module, images: Any) -> Preprocessing:
    """Whole squares, at the size and with the colours that CLIP was trained with."""
    size = dict(images.crop_size or images.size)
    # a crop names both sides, a size without one the shorter edge
    side = int(size.get("height") or size["shortest_edge"])
    return Preprocessing.of(
        network, input_size=(3, side, side), mean=tuple(images.image_mean), std=tuple(images.image_std), crop_pct=1.0,
        interpolation=RESAMPLING.get(int(images.resample), "bicubic"),
    )  # fmt: skip


def _pooled(found: Any) -> torch.Tensor:
    """transformers 5 wraps features in an output."""
    return getattr(found, "pooler_output", found)
