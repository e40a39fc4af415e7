from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from dcdm_cli.captioning.templates import (
    caption_from_template,
    cut_to_limit,
    prefixed,
    read_templates,
    template_captions,
)
from dcdm_cli.data.manifest import Manifest
from dcdm_cli.errors import NotFoundError, UsageError
from dcdm_cli.run.settings import CaptionConfig

LIMIT = 8


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Built like CLIP's: lower case, one token per character except a few words, start and end token."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    pieces = [*sorted(alphabet), "ca", "cat", "Ġcat", "Ġa", "<s>", "</s>"]
    merges = [("c", "a"), ("ca", "t"), ("Ġ", "cat"), ("Ġ", "a")]
    tool = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    tool.normalizer = normalizers.Lowercase()
    tool.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tool.decoder = decoders.ByteLevel()
    ends = [(piece, tool.token_to_id(piece)) for piece in ("<s>", "</s>")]
    tool.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tool, bos_token="<s>", eos_token="</s>", pad_token="</s>", model_max_length=LIMIT
    )


def manifest(*names: str) -> Manifest:
    rows = [{"path": f"{i}.png", "label": i, "class_name": name} for i, name in enumerate(names)]
    return Manifest.from_rows(rows, names)


def test_the_class_token_is_replaced_everywhere():
    assert caption_from_template("a {class}, just a {class}", "cat") == "a cat, just a cat"


@pytest.mark.parametrize("name", ["{class}", "{0.__class__}", "%s", "{}", "[/x]", "{prompt}"])
def test_a_class_name_is_never_a_template(name):
    assert caption_from_template("a {class}", name) == f"a {name}"


@pytest.mark.parametrize("token", ["{label}", "{class.__init__}", "{0}", "{}", "{Class}"])
def test_an_unknown_token_is_named(token):
    with pytest.raises(UsageError) as caught:
        caption_from_template(f"a {token}", "cat")
    assert token in caught.value.message
    assert "{class}" in caught.value.hint


def test_captions_are_one_line_and_not_empty():
    assert caption_from_template(" a\n{class}\t", "big\ncat") == "a big cat"
    with pytest.raises(UsageError, match="empty"):
        caption_from_template("  ", "cat")


def test_a_prefix_goes_before_the_models_caption():
    assert prefixed("a photo of a {class}, ", "cat", "on a mat\n") == "a photo of a cat, on a mat"
    assert prefixed("a {class}", "cat", None) == "a cat"
    assert prefixed("", "cat", "on a mat") == "on a mat"


def test_captions_follow_the_rows_and_single_classes_have_their_own(tmp_path):
    file = tmp_path / "templates.json"
    file.write_text(json.dumps({"dog": "the {class}"}), "utf-8")
    rows = [{"path": "x", "label": label, "class_name": name} for label, name in [(1, "dog"), (0, "cat"), (1, "dog")]]
    config = CaptionConfig(templates_file=file)
    assert template_captions(Manifest.from_rows(rows, ["cat", "dog"]), config) == [
        "the dog",
        "a photo of a cat",
        "the dog",
    ]


def test_a_row_without_a_class_name_takes_its_labels(tmp_path):
    rows = [{"path": "x", "label": 1}]
    assert template_captions(Manifest.from_rows(rows, ["cat", "dog"]), CaptionConfig()) == ["a photo of a dog"]


def test_an_unknown_class_in_the_file_gets_a_suggestion(tmp_path):
    file = tmp_path / "templates.json"
    file.write_text('{"catt": "the {class}"}')
    with pytest.raises(UsageError) as caught:
        template_captions(manifest("cat", "dog"), CaptionConfig(templates_file=file))
    assert "catt" in caught.value.message
    assert "did you mean cat?" in caught.value.hint


@pytest.mark.parametrize("content", ["", "[1]", '{"cat": 3}', '{"cat": null}', "[" * 100_000, "\xff"])
def test_a_bad_templates_file_is_a_usage_error(content, tmp_path):
    file = tmp_path / "templates.json"
    file.write_text(content, "latin-1")
    with pytest.raises(UsageError):
        read_templates(file, ["cat"])


def test_a_missing_templates_file_is_not_found(tmp_path):
    with pytest.raises(NotFoundError):
        read_templates(tmp_path / "none.json", ["cat"])


def test_short_captions_stay_as_they_are(tokenizer):
    assert cut_to_limit(["A cat", None, ""], tokenizer) == (["A cat", "", ""], 0)


def test_long_captions_end_at_a_word(tokenizer):
    texts, cut = cut_to_limit(["a cat cat cat cat, a cat", "a cat", "a cat cat cat cat, a cat"], tokenizer)
    assert texts == ["a cat cat cat cat,", "a cat", "a cat cat cat cat,"]
    assert cut == 2


def test_one_long_word_is_cut_inside(tokenizer):
    assert cut_to_limit(["x" * 50], tokenizer) == (["x" * (LIMIT - 2)], 1)


def test_ten_megabytes_are_no_problem(tokenizer):
    texts, cut = cut_to_limit(["cat " * 2_500_000, "y" * 10_000_000], tokenizer)
    assert texts == ["cat cat cat cat cat cat", "y" * (LIMIT - 2)]
    assert cut == 2


@given(st.text(max_size=60))
def test_what_is_kept_fits_and_is_a_prefix(tokenizer, caption):
    [kept], cut = cut_to_limit([caption], tokenizer)
    line = " ".join(caption.split())
    assert line.startswith(kept)
    assert cut == (kept != line)
    assert len(tokenizer(kept)["input_ids"]) <= LIMIT
