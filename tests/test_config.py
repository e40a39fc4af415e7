"""Where a setting comes from, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from dcdm_cli.config import Config, flat_items, known_keys, resolve
from dcdm_cli.errors import NotFoundError, UsageError
from dcdm_cli.presets import PRESETS


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [n for n in os.environ if n.startswith("DCDM_")]:
        monkeypatch.delenv(name)


def toml(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_without_layers_everything_is_a_default() -> None:
    resolved = resolve()
    assert resolved.config == Config()
    assert set(resolved.origins.values()) == {"default"}
    assert set(resolved.origins) == set(known_keys())


def test_each_layer_wins_over_the_one_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = toml(tmp_path / "run.toml", 'preset = "digits"\n[finetune]\nsteps = 11\nlr = 0.5\nrank = 3\nalpha = 9\n')
    file = toml(tmp_path / "file.toml", "[finetune]\nlr = 0.25\nrank = 4\nalpha = 9\n")
    monkeypatch.setenv("DCDM_FINETUNE__RANK", "5")
    monkeypatch.setenv("DCDM_FINETUNE__ALPHA", "9")
    resolved = resolve(flags={"finetune.alpha": 6, "finetune.hidden": None}, config_file=file, run_file=run)
    made = resolved.config.finetune
    assert (made.resolution, made.steps, made.lr, made.rank, made.alpha) == (32, 11, 0.25, 5, 6)
    origins = [resolved.origins[f"finetune.{key}"] for key in ("resolution", "steps", "lr", "rank", "alpha", "mode")]
    assert origins == ["preset digits", str(run), str(file), "environment", "flag", "default"]
    assert made.hidden == 128  # a flag that was not given changes nothing


def test_a_preset_named_later_replaces_the_earlier_one(tmp_path: Path) -> None:
    run = toml(tmp_path / "run.toml", 'preset = "digits"\n')
    assert resolve(flags={"preset": "sd15"}, run_file=run).config.finetune.resolution == 512


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_is_valid(name: str) -> None:
    assert resolve(flags={"preset": name}).config.preset == name


@pytest.mark.parametrize(
    ("key", "near"), [("score.fold", "score.folds"), ("generate.guidance", "guidance"), ("zzz", "known: ")]
)
def test_an_unknown_setting_is_refused_with_the_nearest_one(key: str, near: str) -> None:
    with pytest.raises(UsageError, match=f"unknown setting '{key}'") as caught:
        resolve(flags={key: 1})
    assert near in caught.value.hint


def test_an_unknown_setting_in_a_file_or_the_environment_names_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = toml(tmp_path / "x.toml", "[score]\nfold = 3\n")
    with pytest.raises(UsageError, match=r"score\.fold.*x\.toml"):
        resolve(config_file=file)
    monkeypatch.setenv("DCDM_SCORE__FOLD", "3")
    with pytest.raises(UsageError, match="DCDM_SCORE__FOLD") as caught:
        resolve()
    assert "score.folds" in caught.value.hint


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("score.folds", 1, "greater than or equal to 2"),
        ("finetune.lr", 0, "greater than 0"),
        ("finetune.mode", "prepend", "append"),
        ("generate.steps", "many", "integer"),
        ("evaluate.targets", [0.1, "x"], "number"),
    ],
)
def test_a_value_that_breaks_a_rule_names_key_value_and_rule(key: str, value: object, rule: str) -> None:
    with pytest.raises(UsageError, match=key.replace(".", r"\.")) as caught:
        resolve(flags={key: value})
    assert rule in caught.value.message + caught.value.hint


def test_a_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"broken\.toml is not valid TOML"):
        resolve(config_file=toml(tmp_path / "broken.toml", "a = = 1"))
    with pytest.raises(NotFoundError, match=r"none\.toml"):
        resolve(config_file=tmp_path / "none.toml")


def test_a_run_folder_without_settings_is_fine(tmp_path: Path) -> None:
    assert resolve(run_file=tmp_path / "dcdm.toml").config == Config()


def test_settings_flatten_to_plain_values() -> None:
    flat = flat_items(Config())
    assert set(flat) == set(known_keys())
    assert flat["finetune.lora_targets"] == ["to_q", "to_k", "to_v", "to_out.0"]
