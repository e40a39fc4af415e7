"""The rewriter against a tiny random causal model of a real class, saved to a folder and loaded like any other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dcdm_cli.captioning import rewriter
from dcdm_cli.captioning.rewriter import LanguageModel, Request, answers, requests, sifted
from dcdm_cli.errors import InterruptedRunError, NotFoundError, UsageError
from dcdm_cli.run.progress import Job
from dcdm_cli.run.settings import CaptionConfig

from .test_captioner import IDS, NAMES, SMALL, WORDS, save_blip2

CHAT = "{{ messages[0]['content'] }}{% if add_generation_prompt %} a photo{% endif %}"


def save_llama(folder: Path, *, chat: bool = False) -> Path:
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SMALL, **IDS, vocab_size=len(WORDS))).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **(NAMES | {"pad_token": None}))
    if chat:
        tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return folder


def config(folder: Path, **changes: object) -> CaptionConfig:
    return CaptionConfig.model_validate({"llm": str(folder), "llm_tokens": 5, "batch_size": 2} | changes)


def test_requests_are_drawn_from_the_seed_and_differ() -> None:
    drawn = requests("cat", ["a cat", "the cat", "a cat"], 50, 0)
    assert len({request.key for request in drawn}) == 50 == len(drawn)
    assert {request.caption for request in drawn} == {"a cat", "the cat"}
    assert drawn == requests("cat", ["the cat", "a cat"], 50, 0) != requests("cat", ["the cat", "a cat"], 50, 1)
    assert len(requests("cat", ["a cat"], 10_000, 0)) == len(rewriter.SCENES)


@pytest.mark.parametrize("chat", [False, True])
def test_a_causal_model_answers_and_what_it_said_is_kept(
    tmp_path: Path, chat: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(save_llama(tmp_path / "llama", chat=chat))
    wanted = requests("cat", ["a photo of the cat"], 5, 0)
    with pytest.raises(InterruptedRunError, match="2 of 5 prompts are kept"):
        answers(wanted, settings, tmp_path, Job(stop_signal=lambda: "SIGTERM"))
    told: list[tuple[str, int, int]] = []
    said = answers(wanted, settings, tmp_path, Job(progress=lambda *step: told.append(step)))
    assert set(said) == {request.key for request in wanted} and all("\n" not in text for text in said.values())
    assert told == [("rewriting", 2, 3), ("rewriting", 3, 3)]
    alone = LanguageModel(settings).rewrite(wanted[:1])
    assert alone == [said[wanted[0].key]], "padding changes nothing"
    monkeypatch.setattr(rewriter, "LanguageModel", None)  # with everything known no model is loaded
    assert answers(wanted, settings, tmp_path, Job()) == said


def test_duplicates_and_overlong_ones_are_dropped_and_counted() -> None:
    texts = ["a cat in snow", "A CAT in snow", "", "a photo of a cat", "in {fog}", "a cat " + "far " * 40]
    wanted = [Request("cat", "a photo of a cat", f"{i}") for i in range(len(texts))]
    said = {request.key: text for request, text in zip(wanted, texts, strict=True)}
    prompts, counts = sifted(wanted, said, ["a photo of a cat"], "a photo of a {class}, ", lambda text: len(text) < 80)
    assert [prompt.prompt for prompt in prompts] == ["a cat in snow", "a photo of a cat, in (fog)"]
    assert counts == {"duplicate": 2, "empty": 1, "too_long": 1, "unnamed": 1}
    assert {prompt.source for prompt in prompts} == {"llm"}


def test_the_first_line_that_says_something_without_quotes() -> None:
    assert rewriter._bare('\n  New caption: "a  cat in snow"\nCaption: another') == "a cat in snow"
    assert rewriter._bare(" \n") == ""


def test_a_model_that_is_missing_or_of_another_kind_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="cannot load the language model"):
        LanguageModel(config(tmp_path / "none"))
    save_blip2(tmp_path / "blip2")
    with pytest.raises(UsageError, match="is no causal language model"):
        LanguageModel(config(tmp_path / "blip2"))
