"""The captioner against tiny random models of real classes, saved to a folder and loaded like any other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from dcdm_cli.captioning.captioner import Captioner
from dcdm_cli.errors import DcdmError, NotFoundError, UsageError
from dcdm_cli.run.settings import CaptionConfig

WORDS = [
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    "<image>",
    *["a", "photo", "of", "the", "digit", "red", "blue", "cat", "dog", "question"],
]
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
NAMES = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = {**SMALL, "image_size": 16, "patch_size": 8}
SIZE = {"height": 16, "width": 16}
CHAT = "<image> {{ messages[0]['content'][1]['text'] }}{% if add_generation_prompt %} a photo{% endif %}"


def tokenizer(form: str = "<s> $A", **options) -> PreTrainedTokenizerFast:
    """One token per word, with the special tokens of `form` around them."""
    ids = {word: i for i, word in enumerate(WORDS)}
    words = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(form, special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=words, **NAMES, **options)


def save_blip(folder: Path) -> None:
    text = {**SMALL, **IDS, "sep_token_id": 2, "vocab_size": len(WORDS), "encoder_hidden_size": 16}
    config = BlipConfig(text_config=text, vision_config=VISION, projection_dim=16)
    BlipForConditionalGeneration(config).save_pretrained(folder)
    BlipProcessor(BlipImageProcessorPil(size=SIZE), tokenizer("<s> $A </s>")).save_pretrained(folder)


def save_blip2(folder: Path) -> None:
    text = {**SMALL, **IDS, "model_type": "opt", "vocab_size": len(WORDS), "ffn_dim": 16, "word_embed_proj_dim": 16}
    config = Blip2Config(
        text_config=text,
        vision_config=VISION,
        qformer_config={**SMALL, "vocab_size": len(WORDS), "encoder_hidden_size": 16},
        num_query_tokens=2,
        image_token_index=4,
    )
    Blip2ForConditionalGeneration(config).save_pretrained(folder)
    Blip2Processor(BlipImageProcessorPil(size=SIZE), tokenizer(), num_query_tokens=2).save_pretrained(folder)


def save_llava(folder: Path) -> None:
    text = {**SMALL, **IDS, "model_type": "llama", "vocab_size": len(WORDS), "num_key_value_heads": 2}
    vision = {**VISION, "model_type": "clip_vision_model"}
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_index=4, vision_feature_layer=-1)
    model = LlavaForConditionalGeneration(config)
    assert model.generation_config is not None
    model.generation_config.suppress_tokens = list(range(WORDS.index("a")))  # whatever its weights, it says words
    model.save_pretrained(folder)
    images = CLIPImageProcessorPil(size=SIZE, crop_size=SIZE)
    LlavaProcessor(
        images,
        tokenizer(extra_special_tokens={"image_token": "<image>"}),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    ).save_pretrained(folder)


def write_pictures(folder: Path, count: int) -> list[Path]:
    folder.mkdir(exist_ok=True)
    files = [folder / f"{number}.png" for number in range(count)]
    for number, file in enumerate(files):
        Image.new("RGB", (12, 20), (255 * number // count, 40, 200)).save(file)
    return files


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_pictures(tmp_path_factory.mktemp("images"), 3)


@pytest.mark.parametrize(
    ("save", "prompt"),
    [(save, prompt) for save in (save_blip, save_blip2, save_llava) for prompt in (None, "a photo of the digit")],
)
def test_one_line_per_image_whatever_the_batch(save, prompt, paths, tmp_path):
    torch.manual_seed(0)
    save(tmp_path)
    texts = []
    for batch_size in (1, 2):
        config = CaptionConfig(model=str(tmp_path), prompt=prompt, max_new_tokens=4, batch_size=batch_size)
        texts.append(list(Captioner(config).caption(paths)))
    assert texts[0] == texts[1]
    assert len(texts[0]) == len(paths)
    assert all(len(text.split()) <= 4 for text in texts[0]), "new words only, not the prompt"
    assert any(texts[0])


def test_reads_lazily_in_input_order(paths, tmp_path):
    save_blip(tmp_path)
    read = []

    def watched():
        for path in paths:
            read.append(path)
            yield path

    config = CaptionConfig(model=str(tmp_path), max_new_tokens=2, batch_size=2)
    captions = Captioner(config).caption(watched())
    next(captions)
    assert read == paths[:2]
    assert len(list(captions)) == 2
    assert read == paths


def test_an_image_that_went_bad_is_named(paths, tmp_path):
    save_blip(tmp_path)
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"<html>")
    captioner = Captioner(CaptionConfig(model=str(tmp_path), max_new_tokens=2, batch_size=1))
    with pytest.raises(DcdmError, match=r"bad\.png.*not_an_image"):
        list(captioner.caption([paths[0], bad]))
    assert captioner.revision is None, "a folder has no commit"


def test_a_missing_model_names_the_offline_way(tmp_path):
    with pytest.raises(NotFoundError) as caught:
        Captioner(CaptionConfig(model=str(tmp_path / "nothing")))
    assert "--method template" in caught.value.hint


def test_a_model_of_another_kind_is_a_usage_error(tmp_path):
    CLIPTextModel(CLIPTextConfig(**SMALL, vocab_size=len(WORDS))).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"not an image-to-text model|no processor"):
        Captioner(CaptionConfig(model=str(tmp_path)))
