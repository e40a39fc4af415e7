"""The encoder's own door: from folders and the hub's cache, into plain diffusers, with what our network computes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from huggingface_hub import hub_mixin

import dcdm_cli
from dcdm_cli import DifficultyEncoder
from dcdm_cli.errors import MismatchError, NotFoundError, UsageError
from dcdm_cli.model.adapter import CONFIG_FILE, LORA_FILE, adapter_hash, read_adapter
from dcdm_cli.model.base import encode_text
from dcdm_cli.model.card import adapter_card
from dcdm_cli.model.conditioning import NULL_DIFFICULTY, EncoderConfig, join_tokens
from dcdm_cli.model.fused import load_fused
from dcdm_cli.model.packaged import TINY_BASE

from ..generation.conftest import make_adapter
from ..generation.fakes import NAMES

PROMPT = f"a photo of a {NAMES[1]}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module")
def encoder(folder: Path) -> DifficultyEncoder:
    return DifficultyEncoder.from_pretrained(folder)


@pytest.fixture
def pipe() -> StableDiffusionPipeline:
    made = StableDiffusionPipeline.from_pretrained(TINY_BASE, dtype=torch.float32)
    made.set_progress_bar_config(disable=True)
    return made


def test_a_pipe_is_conditioned_as_our_own_network_is(
    folder: Path, encoder: DifficultyEncoder, pipe: StableDiffusionPipeline, library_log: list[str]
) -> None:
    wanted = encoder.condition(pipe, [PROMPT, "two"], label=[NAMES[1], 2], difficulty=[0.6, 0.1])
    ours = load_fused(folder)
    labels, difficulty = torch.tensor([1, 2]), torch.tensor([0.6, 0.1])
    with torch.no_grad():
        assert ours.network.encoder is not None
        text = encode_text(ours.base, [PROMPT, "two"])
        positive = join_tokens(text, ours.network.encoder(labels, difficulty), "append")
        nothing = ours.network.encoder(labels, torch.full((2,), NULL_DIFFICULTY))
        negative = join_tokens(encode_text(ours.base, ["", ""]), nothing, "append")
        assert torch.equal(wanted["prompt_embeds"], positive)
        assert torch.equal(wanted["negative_prompt_embeds"], negative)
        latents, step = torch.randn(2, 4, 8, 8), torch.tensor([500, 20])
        expected = ours.network(latents, step, text, labels, difficulty)
        found = pipe.unet(latents, step, encoder_hidden_states=wanted["prompt_embeds"], return_dict=False)[0]
    assert torch.allclose(found, expected, atol=1e-5)  # theirs adds the LoRA, ours has it in its weights
    assert not torch.allclose(load_fused(folder, lora_scale=0.0).network.unet(latents, step, positive)[0], found)
    images = pipe(**wanted, guidance_scale=3.0, num_inference_steps=2, height=32, width=32, output_type="np").images
    assert images.shape == (2, 32, 32, 3) and library_log == []


def test_the_lora_is_loaded_once(folder: Path, encoder: DifficultyEncoder, pipe: StableDiffusionPipeline) -> None:
    def ask(one: DifficultyEncoder = encoder) -> dict[str, torch.Tensor]:
        return one.condition(pipe, PROMPT, label=0, difficulty=None)

    first = ask()
    assert torch.equal(first["prompt_embeds"][:, -2:], encoder.null[None])  # None: no difficulty is given
    (name,) = pipe.get_list_adapters()["unet"]
    ask()
    assert pipe.get_list_adapters() == {"unet": [name]}
    pipe.unload_lora_weights()
    pipe.load_lora_weights(folder, adapter_name="mine")
    ask()
    assert pipe.get_list_adapters() == {"unet": ["mine"]}


def test_other_loras_stay_as_they_are(
    folder: Path, encoder: DifficultyEncoder, pipe: StableDiffusionPipeline, tmp_path: Path
) -> None:
    encoder.condition(pipe, PROMPT, label=0, difficulty=0.5)
    before = pipe.get_list_adapters()
    shutil.copytree(folder, tmp_path / "other")
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(folder / LORA_FILE, "pt") as file:
        metadata = file.metadata()
    changed = {key: tensor + 1 for key, tensor in load_file(folder / LORA_FILE).items()}
    save_file(changed, tmp_path / "other" / LORA_FILE, metadata=metadata)
    other = DifficultyEncoder.from_pretrained(tmp_path / "other")
    with pytest.raises(UsageError, match="the pipe has other LoRAs: dcdm_") as caught:
        other.condition(pipe, PROMPT, label=0, difficulty=0.5)
    assert "unload_lora_weights" in caught.value.hint and pipe.get_list_adapters() == before


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"label": "no such class"}, "no class 'no such class'"),
        ({"label": len(NAMES)}, "no class"),
        ({"difficulty": 1.5}, r"outside \[0, 1\]"),
        ({"difficulty": [0.1, 0.2], "label": [0, 1, 2]}, "2, 3 entries"),
    ],
)
def test_what_it_is_asked_for_is_checked(
    encoder: DifficultyEncoder, pipe: StableDiffusionPipeline, changed: dict, says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        encoder.condition(pipe, PROMPT, **{"label": 0, "difficulty": 0.5, **changed})
    assert pipe.get_list_adapters() == {}


def test_pipes_that_do_not_fit_are_refused(encoder: DifficultyEncoder, pipe: StableDiffusionPipeline) -> None:
    pipe.text_encoder.half()
    with pytest.raises(MismatchError, match=r"its text encoder torch\.float16") as caught:
        encoder.condition(pipe, PROMPT, label=0, difficulty=0.5)
    assert "dtype=torch.float32" in caught.value.hint
    with pytest.raises(UsageError, match="no classes and no base model"):
        DifficultyEncoder(EncoderConfig(classes=3, dim=64)).condition(pipe, PROMPT, label=0, difficulty=0.5)


def test_what_is_no_adapter_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="neither a folder nor on the hub"):
        DifficultyEncoder.from_pretrained(tmp_path / "gone")
    with pytest.raises(NotFoundError, match="neither a folder nor on the hub"):
        DifficultyEncoder.from_pretrained("nobody/nothing")
    with pytest.raises(NotFoundError, match="no adapter in"):
        DifficultyEncoder.from_pretrained(tmp_path)
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / CONFIG_FILE).write_text("{")
    with pytest.raises(MismatchError, match="is damaged"):
        DifficultyEncoder.from_pretrained(copy)


def test_it_goes_to_the_hub_whole_and_comes_back(
    folder: Path, encoder: DifficultyEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub is a folder here, laid out as its cache is."""
    snapshot = tmp_path / "models--me--birds" / "snapshots" / ("0" * 40)

    class Hub:
        def __init__(self, token: str | None = None) -> None: ...

        def create_repo(self, repo_id: str, **_: object) -> object:
            return type("Url", (), {"repo_id": repo_id})()

        def upload_folder(self, folder_path: Path, **_: object) -> str:
            shutil.copytree(folder_path, snapshot)
            return "done"

    monkeypatch.setattr(hub_mixin, "HfApi", Hub)
    assert encoder.push_to_hub("me/birds") == "done"
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(snapshot.name)
    found = DifficultyEncoder.from_pretrained("me/birds", cache_dir=tmp_path)
    assert found.class_names == NAMES and found.base == str(TINY_BASE) and not found.training
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in encoder.state_dict().items())
    assert adapter_hash(snapshot) == adapter_hash(folder) and read_adapter(snapshot) == read_adapter(folder)
    assert {file.name for file in snapshot.iterdir()} == {file.name for file in folder.iterdir()}
    with pytest.raises(UsageError, match="where this adapter comes from"):
        encoder.save_pretrained(folder)
    assert (folder / CONFIG_FILE).is_file()


def run_snippet(card: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("plain", [False, True])
def test_the_cards_python_runs_as_it_stands(folder: Path, tmp_path: Path, plain: bool) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    info = read_adapter(copy)
    card = (copy / "README.md").read_text("utf-8")
    if plain:
        card = adapter_card(info.base, info.class_names, info.resolution, None, None)
    done = run_snippet(card, copy)
    assert done.returncode == 0 and (copy / "image.png").is_file(), done.stderr


def head(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_card_has_what_the_hub_reads(folder: Path) -> None:
    ours = head((folder / "README.md").read_text("utf-8"))
    assert ours["library_name"] == "diffusers" and ours["license"] == "apache-2.0" and "lora" in ours["tags"]
    assert "base_model" not in ours and "datasets" not in ours  # not on the hub
    sd15 = head(adapter_card("stable-diffusion-v1-5/stable-diffusion-v1-5", ("a",), 512, None, "uoft-cs/cifar10"))
    assert sd15["base_model"] == "stable-diffusion-v1-5/stable-diffusion-v1-5" and sd15["license"] == "other"
    assert sd15["datasets"] == ["uoft-cs/cifar10"] and sd15["base_model_relation"] == "adapter"
    assert "base_model" not in head(adapter_card("/data/sd15", ("a",), 512, None, None))
    assert "label=0" in adapter_card("x/y", ("```", "\x1b[31m"), 512, EncoderConfig(2, 8), None)


def test_the_package_is_light_until_it_is_used() -> None:
    code = "import sys, dcdm_cli; print(sorted({'torch', 'pydantic', 'numpy', 'rich', 'typer'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    with pytest.raises(AttributeError, match="no attribute 'Rum'"):
        dcdm_cli.Rum  # noqa: B018
    assert {"Run", "DifficultyEncoder"} <= set(dir(dcdm_cli))
