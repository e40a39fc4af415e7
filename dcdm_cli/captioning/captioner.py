"""Captions by an image-to-text model: any that transformers' `AutoModelForImageTextToText` loads, BLIP-2 by default.

The paper captions its training images with BLIP-2. In: image paths. Out: one line of text per image, in input order,
so that the caller can journal what is done and call again with the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, ProcessorMixin

from dcdm_cli.data.images import RejectedImage, decode_image
from dcdm_cli.errors import DcdmError, NotFoundError, UsageError
from dcdm_cli.run.network import from_hub, reason
from dcdm_cli.run.settings import CaptionConfig
from dcdm_cli.safe_text import show

CHAT_PROMPT = "Describe this image in one short sentence."  # chat models need a question; captioners do not


class Captioner:
    """A loaded captioning model.

    revision: the commit the weights came from; None for a local folder. Weights are bfloat16 on CUDA, else float32.
    Raises NotFoundError when the model cannot be had, UsageError when it is not an image-to-text model. Never runs
    code that comes with a model.
    """

    def __init__(self, config: CaptionConfig, device: str | torch.device = "cpu") -> None:
        self.config = config
        self.device = torch.device(device)
        # Half precision is for GPUs: on a CPU it is many times slower.
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.processor, self.model = _load(config, self.dtype)
        self.model.to(self.device).eval()
        self.revision: str | None = getattr(self.model.config, "_commit_hash", None) or config.revision

    def caption(self, paths: Iterable[Path]) -> Iterator[str]:
        """Yields one caption per path, in order, reading no further ahead than one batch. May yield "".

        Raises DcdmError for an image that cannot be read.
        """
        remaining = iter(paths)
        while batch := list(islice(remaining, self.config.batch_size)):
            yield from self._caption_images([_read(path) for path in batch])

    @torch.inference_mode()
    def _caption_images(self, images: Sequence[Image]) -> list[str]:
        inputs = self._inputs(images).to(self.device, self.dtype)
        # Greedy: the same image gets the same caption in every run.
        ids = self.model.generate(**inputs, max_new_tokens=self.config.max_new_tokens, do_sample=False)
        texts = self._decode(ids)
        echoes = self._decode(inputs["input_ids"]) if "input_ids" in inputs else [""] * len(texts)
        # Most families repeat the prompt in front of their answer; comparing text covers those that do and do not.
        return [" ".join(text.removeprefix(echo).split()) for text, echo in zip(texts, echoes, strict=True)]

    def _inputs(self, images: Sequence[Image]) -> Any:
        """A BatchFeature: pixel values, and the prompt's tokens where there is a prompt."""
        prompt = self.config.prompt
        if getattr(self.processor, "chat_template", None):
            chats = [_chat(image, prompt or CHAT_PROMPT) for image in images]
            # Left padding, because generation continues at the right end.
            options = {"processor_kwargs": {"padding": True, "padding_side": "left"}}
            return self.processor.apply_chat_template(
                chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", **options
            )
        text = {"text": [prompt] * len(images)} if prompt else {}
        return self.processor(images=list(images), return_tensors="pt", **text)

    def _decode(self, ids: torch.Tensor) -> list[str]:
        return [text.strip() for text in self.processor.batch_decode(ids, skip_special_tokens=True)]


def _read(path: Path) -> Image:
    try:
        return decode_image(path)
    except RejectedImage as error:
        raise DcdmError(
            f"cannot caption {show(path)}: {error}", "it changed since it was scored: dcdm score --force", file=path
        ) from error


def _chat(image: Image, prompt: str) -> list[dict[str, Any]]:
    content = [{"type": "image", "image": image}, {"type": "text", "text": prompt}]
    return [{"role": "user", "content": content}]


def _load(config: CaptionConfig, dtype: torch.dtype) -> tuple[Any, Any]:
    """(processor, model). Typed Any: transformers picks the classes by the model's config."""
    source: dict[str, Any] = {"revision": config.revision, "trust_remote_code": False}
    try:
        with from_hub(config.model):
            processor = AutoProcessor.from_pretrained(config.model, **source)
            model = AutoModelForImageTextToText.from_pretrained(config.model, dtype=dtype, **source)
    except OSError as error:  # what transformers raises for a missing folder, id, file, access right or network
        raise NotFoundError(
            f"cannot load the captioning model {config.model!r}: {reason(error)}",
            "check caption.model and the network, or use --method template, which works offline",
        ) from error
    except ValueError as error:
        raise UsageError(
            f"{config.model!r} is not an image-to-text model: {reason(error)}",
            "choose a model that transformers lists under image-text-to-text, or use --method template",
        ) from error
    if not isinstance(processor, ProcessorMixin):  # only a tokenizer or an image processor was found
        raise UsageError(
            f"{config.model!r} has no processor for images and text", "choose another model, or use --method template"
        )
    return processor, model
