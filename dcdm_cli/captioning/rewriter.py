"""Prompts by a language model: a class's captions in other surroundings, light and views. Not from the paper.

Any model that transformers' `AutoModelForCausalLM` loads. Which scene is asked for is drawn from the seed, and answers
are greedy, so that the same settings give the same prompts. What a model has said is kept: a stopped run goes on.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dcdm_cli.captioning.prompt_files import ClassPrompt
from dcdm_cli.captioning.templates import prefixed
from dcdm_cli.errors import NotFoundError, UsageError
from dcdm_cli.files import hash_json
from dcdm_cli.gate import Text, Word
from dcdm_cli.run.journals import append_rows, kept_rows
from dcdm_cli.run.network import from_hub, reason
from dcdm_cli.run.progress import Job
from dcdm_cli.run.settings import CaptionConfig

SOURCE = "llm"
SURROUNDINGS = ("in a street", "in a meadow", "in a forest", "at the seaside", "in a room", "on a table", "in snow",
                "in a garden", "against a plain wall", "in a workshop", "on a road", "in a crowd")  # fmt: skip
LIGHT = ("in bright sunlight", "under an overcast sky", "at dusk", "at night under lamps", "in soft window light",
         "against the light", "in fog", "with hard shadows")  # fmt: skip
VIEWS = ("from the front", "from the side", "from above", "from below", "from behind", "close up", "from far away",
         "partly hidden")  # fmt: skip
SCENES = tuple(itertools.product(SURROUNDINGS, LIGHT, VIEWS))
MOST_CAPTIONS = 64  # captions of a class that are rewritten; more would change little
TASK = (
    "Rewrite this image caption in one short sentence, so that the same subject is shown {scene}. Keep the words "
    '"{name}". Answer with the new caption only.\nCaption: {caption}'
)
# For models that only continue a text.
EXAMPLE = (
    "Caption: a photo of a kettle\nScene: in a garden, at dusk, from above\n"
    "New caption: a photo of a kettle in a garden at dusk, seen from above\n\n"
)


@dataclass(frozen=True)
class Request:
    """One rewriting that is wanted. scene: surroundings, light and view in words."""

    class_name: str
    caption: str
    scene: str

    @property
    def key(self) -> str:
        return hash_json([self.class_name, self.caption, self.scene])[:16]


@dataclass(frozen=True)
class Answer:
    """A row of the file that keeps what a model said."""

    request: Word
    text: Text


def requests(class_name: str, captions: Sequence[str], count: int, seed: int) -> list[Request]:
    """`count` different pairs of a caption and a scene, or as many as there are, drawn from the seed."""
    known = sorted(set(captions))[:MOST_CAPTIONS]  # sorted: the order of a set changes from run to run
    # by its name: what a class is asked stays the same when others come or go
    rng = np.random.default_rng([seed, int(hash_json(class_name)[:8], 16)])
    drawn = rng.permutation(len(known) * len(SCENES))[:count].tolist()
    return [Request(class_name, known[n % len(known)], ", ".join(SCENES[n // len(known)])) for n in drawn]


def answers(wanted: Sequence[Request], config: CaptionConfig, folder: Path, job: Job) -> dict[str, str]:
    """Request key -> what the model said. folder: keeps a JSON-lines file per model and way of asking it.

    Raises what `LanguageModel` raises, and InterruptedRunError between batches when asked to stop.
    """
    key = hash_json([config.llm, config.llm_revision, config.llm_tokens, TASK, EXAMPLE])[:16]
    file = folder / f"prompts-{key}.jsonl"
    known = {row.request: row.text for row in kept_rows(file, Answer, job.note)}
    missing = [request for request in wanted if request.key not in known]
    model = LanguageModel(config, job.device) if missing else None
    for start in range(0, len(missing), config.batch_size):
        assert model is not None
        batch = missing[start : start + config.batch_size]
        said = [Answer(request.key, text) for request, text in zip(batch, model.rewrite(batch), strict=True)]
        append_rows(file, map(asdict, said))
        known |= {row.request: row.text for row in said}
        job.progress("rewriting", start + len(batch), len(missing))
        job.stop_if_asked(f"{start + len(batch)} of {len(missing)} prompts are kept")
    return {request.key: known[request.key] for request in wanted}


def sifted(
    wanted: Iterable[Request], said: dict[str, str], captions: Sequence[str], prefix: str, fits: Callable[[str], bool]
) -> tuple[list[ClassPrompt], Counter[str]]:
    """The prompts of one class, and what happened to the others: `empty`, `duplicate` (of each other or of a caption,
    case aside), `too_long`. `unnamed` ones did not name the class, and are kept behind the prefix, which does.

    fits: whether the text encoder reads a prompt whole.
    """
    seen, kept, counts = {caption.casefold() for caption in captions}, [], Counter[str]()
    for request in wanted:
        text = said[request.key].translate({ord("{"): "(", ord("}"): ")"})  # a prompt file has tokens in braces
        fate = "empty" if not text else ""
        if text and request.class_name.casefold() not in text.casefold():
            text = prefixed(prefix or "{class}", request.class_name, text)
            counts["unnamed"] += 1
        fate = fate or ("duplicate" if text.casefold() in seen else "" if fits(text) else "too_long")
        seen.add(text.casefold())
        if fate:
            counts[fate] += 1
        else:
            kept.append(ClassPrompt(request.class_name, text, SOURCE))
    return kept, counts


class LanguageModel:
    """A loaded causal language model: bfloat16 on CUDA, else float32. Never runs code that comes with a model.

    revision: the commit the weights came from; None for a local folder. Raises NotFoundError when it cannot be had,
    UsageError when it is no causal language model.
    """

    def __init__(self, config: CaptionConfig, device: str | torch.device = "cpu") -> None:
        self.config, self.device = config, torch.device(device)
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.tokenizer, self.model = _load(config, dtype)
        self.model.to(self.device).eval()
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token  # many have none, and a batch needs one; it is masked
        self.tokenizer.padding_side = "left"  # generation goes on at the right end
        self.revision: str | None = getattr(self.model.config, "_commit_hash", None) or config.llm_revision

    @torch.inference_mode()
    def rewrite(self, wanted: Sequence[Request]) -> list[str]:
        """One line of text per request; may be empty."""
        inputs = self.tokenizer([self._asked(request) for request in wanted], return_tensors="pt", padding=True)
        # not token_type_ids, which some tokenizers add and causal models refuse
        inputs = {name: inputs[name].to(self.device) for name in ("input_ids", "attention_mask")}
        ids = self.model.generate(
            **inputs,
            max_new_tokens=self.config.llm_tokens,
            do_sample=False,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        new = ids[:, inputs["input_ids"].shape[1] :]
        return [_bare(text) for text in self.tokenizer.batch_decode(new, skip_special_tokens=True)]

    def _asked(self, request: Request) -> str:
        if not self.tokenizer.chat_template:
            return f"{EXAMPLE}Caption: {request.caption}\nScene: {request.scene}\nNew caption:"
        task = TASK.format(scene=request.scene, name=request.class_name, caption=request.caption)
        chat = [{"role": "user", "content": task}]
        return self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)


def _bare(text: str) -> str:
    """The first line that says something, without quotes and a repeated `New caption:`."""
    lines = [line for line in text.splitlines() if line.strip()]
    line = lines[0].strip() if lines else ""
    for head in ("New caption:", "Caption:"):
        line = line.removeprefix(head).strip()
    return " ".join(line.strip("\"'“”").split())


def _load(config: CaptionConfig, dtype: torch.dtype) -> tuple[Any, Any]:
    """(tokenizer, model). Typed Any: transformers picks the classes by the model's config."""
    source: dict[str, Any] = {"revision": config.llm_revision, "trust_remote_code": False}
    try:
        with from_hub(config.llm):
            tokenizer = AutoTokenizer.from_pretrained(config.llm, **source)
            return tokenizer, AutoModelForCausalLM.from_pretrained(config.llm, dtype=dtype, **source)
    except OSError as error:  # what transformers raises for a missing folder, id, file, access right or network
        raise NotFoundError(
            f"cannot load the language model {config.llm!r}: {reason(error)}",
            "check caption.llm and the network, or write prompts yourself: dcdm generate --prompts FILE",
        ) from error
    except (ValueError, KeyError) as error:
        raise UsageError(
            f"{config.llm!r} is no causal language model: {reason(error)}",
            "choose a model that transformers lists under text-generation",
        ) from error
