"""Where a setting comes from, and what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dcdm_cli.errors import NotFoundError, UsageError
from dcdm_cli.run.origins import FOREIGN, Layer, toml_document
from dcdm_cli.run.precision import settle_precision
from dcdm_cli.run.presets import PRESETS
from dcdm_cli.run.resolution import flat_items, known_keys, resolve
from dcdm_cli.run.session import overridden_text, recorded_layers
from dcdm_cli.run.settings import Config
from dcdm_cli.run.store import Outcome, RunFolder, Stage


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.parametrize("make", [
    lambda file: file.symlink_to("gone.toml"), lambda file: file.mkdir(), os.mkfifo,
])  # fmt: skip
def test_settings_that_cannot_be_read_are_not_passed_over(tmp_path: Path, make: Callable[[Path], None]) -> None:
    file = tmp_path / "dcdm.toml"
    assert resolve(run_file=file).config == Config()  # none is there
    make(file)
    for given in ({"run_file": file}, {"config_file": file}):
        with pytest.raises(UsageError, match=f"{file} are .*no file") as caught:
            resolve(**given)
        assert caught.value.file == str(file) and caught.value.hint


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


def test_a_difficulty_may_be_a_number() -> None:
    assert resolve(flags={"generate.difficulty": 0.5}).config.generate.difficulty == "0.5"
    with pytest.raises(UsageError, match=r"generate\.difficulty = True"):
        resolve(flags={"generate.difficulty": True})


def test_a_preset_named_later_replaces_the_earlier_one(tmp_path: Path) -> None:
    run = toml(tmp_path / "run.toml", 'preset = "digits"\n')
    assert resolve(flags={"preset": "sd15"}, run_file=run).config.finetune.resolution == 512


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_is_valid(name: str) -> None:
    assert resolve(flags={"preset": name}).config.preset == name


@pytest.mark.parametrize(
    ("key", "near"), [("score.fold", "score.folds"), ("generate.text_guidence", "text_guidance"), ("zzz", "known: ")]
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
        ("evaluate.targets", [0.1, float("inf")], "finite"),
        ("finetune.lr", float("nan"), "finite"),
        ("finetune.lr", "inf", "finite"),
        ("score.scale", [0.1, float("nan")], "finite"),
        ("generate.seed", -1, "greater than or equal to 0"),
        ("generate.seed", 2**64, "less than 1073741824"),
        ("seed", 2**30, "less than 1073741824"),
        ("finetune.steps", 10**30, "at most 2147483647"),
        ("score.model_args", {"channels": [16, float("inf")]}, "finite"),
        ("score.model_args", {"checkpoint_path": "x.pth"}, "weights from a file"),
        ("data.source", "a\0b", "without NUL"),
    ],
)
def test_a_value_that_breaks_a_rule_names_key_value_and_rule(key: str, value: object, rule: str) -> None:
    with pytest.raises(UsageError, match=key.replace(".", r"\.")) as caught:
        resolve(flags={key: value})
    assert rule in caught.value.message + caught.value.hint


def test_what_was_done_wins_over_files_and_the_environment_but_not_over_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = toml(tmp_path / "x.toml", "[finetune]\nrank = 4\nalpha = 4\nhidden = 99\n")
    monkeypatch.setenv("DCDM_FINETUNE__ALPHA", "5")
    done = {"rank": 2, "alpha": 2, "steps": 7, "run_seed": 0, "a_setting_of_an_older_version": 1, "snr_gamma": None}
    layers = [Layer("record of finetune", {"finetune": done})]
    resolved = resolve(flags={"finetune.steps": 9}, config_file=file, recorded=layers)
    made = resolved.config.finetune
    assert (made.rank, made.alpha, made.steps, made.hidden, made.snr_gamma) == (2, 2, 9, 99, None)
    assert resolved.origins["finetune.rank"] == "record of finetune"


def test_what_a_record_decides_against_files_and_the_environment_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = toml(tmp_path / "dcdm.toml", 'preset = "digits"\n[generate]\ntext_guidance = 9\nsteps = 7\nratio = 0.5\n')
    monkeypatch.setenv("DCDM_SCORE__STEPS", "77")
    done = {"generate": {"text_guidance": 3.0, "steps": 7, "ratio": 0.25, "clip_range": 1.0}}
    layers = [Layer("record of score", {"score": {"steps": 50, "folds": 9}}), Layer("record of generate", done)]
    resolved = resolve(run_file=run, recorded=layers, flags={"generate.ratio": 0.75})
    assert resolved.config.generate.text_guidance == 3.0 and resolved.config.score.steps == 50
    assert [(o.key, o.said, o.said_in, o.used, o.record) for o in resolved.overridden] == [
        ("score.steps", 77, "environment", 50, "record of score"),
        ("generate.text_guidance", 9.0, str(run), 3.0, "record of generate"),
    ]  # steps agree, a flag decides ratio, and nobody wrote folds or clip_range, which the preset has
    said = overridden_text(resolved.overridden, RunFolder(tmp_path), None)
    assert "generate.text_guidance = 9.0" in said and "3.0" in said
    assert f"dcdm score --run {tmp_path}, then dcdm generate --run {tmp_path}" in said
    assert resolve(run_file=run).overridden == ()


def test_a_scale_that_the_choice_of_strength_decided_is_made_effective_by_a_flag(tmp_path: Path) -> None:
    folder, chosen = RunFolder(tmp_path), {"settings": {"text_guidance": 3.0, "lora_scale": 0.6}}
    folder.create()
    folder.run(Stage("finetune", {}, {}), lambda: Outcome([], "x", {"strength": chosen}))
    folder.run(Stage("generate", {"text_guidance": 3.0, "steps": 8}, {}), lambda: Outcome([], "y"))
    file = toml(tmp_path / "dcdm.toml", "[generate]\ntext_guidance = 9\nsteps = 7\n")
    for command, also in {"generate": "", "evaluate": f", then dcdm generate --run {tmp_path}"}.items():
        resolved = resolve(run_file=file, recorded=recorded_layers(folder, command))
        assert resolved.config.generate.text_guidance == 3.0
        said = overridden_text(resolved.overridden, folder, None)
        assert said.endswith(f"dcdm finetune --run {tmp_path} --set=generate.text_guidance=9.0{also}")


def test_records_pass_on_what_came_out_and_not_how_it_was_made(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.create()
    generate = {"steps": 7, "batch_size": 3, "spinning": False, "precision": "fp16", "run_seed": 0}
    for name, config, inputs in (
        ("finetune", {"rank": 2, "keep_checkpoints": 9}, {}),
        ("export", {"precision": "bf16", "batch": [1]}, {"finetune": "another"}),
        ("generate", generate, {}),
    ):
        run.run(Stage(name, config, inputs), lambda: Outcome([], ""))
    layers = {layer.origin: layer.values for layer in recorded_layers(run, "evaluate")}
    assert layers["record of finetune"] == {"finetune": {"rank": 2}}
    assert layers["record of generate"] == {"generate": {"steps": 7, "precision": "fp16", "run_seed": 0}}
    assert layers["record of export"] == {}  # of another adapter
    finetune = run.require("finetune").id
    run.run(Stage("export", {"precision": "bf16"}, {"finetune": finetune}), lambda: Outcome([], ""))
    assert resolve(recorded=recorded_layers(run, "generate")).config.generate.precision == "bf16"


@pytest.mark.parametrize("where", ["file", "environment", "flag"])
def test_the_old_key_of_a_setting_is_understood_and_the_new_one_named(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = toml(tmp_path / "x.toml", '[export]\nprecision = "fp16"\nopset = 23\n' if where == "file" else "")
    if where == "environment":
        monkeypatch.setenv("DCDM_EXPORT__PRECISION", "fp16")
    resolved = resolve(config_file=file, flags={"export.precision": "fp16"} if where == "flag" else {})
    assert resolved.config.generate.precision == "fp16"
    (hint,) = resolved.renamed
    assert "export.precision" in hint and "generate.precision" in hint
    assert resolved.config.export.opset == (23 if where == "file" else None)


def test_two_values_of_one_setting_are_refused(tmp_path: Path) -> None:
    file = toml(tmp_path / "x.toml", '[export]\nprecision = "fp16"\n[generate]\nprecision = "fp32"\n')
    with pytest.raises(UsageError, match=r"export\.precision = 'fp16' and generate\.precision = 'fp32'"):
        resolve(config_file=file)


def test_none_takes_a_preset_back(tmp_path: Path) -> None:
    run = toml(tmp_path / "run.toml", 'preset = "digits"\n')
    assert resolve(run_file=run, config_file=toml(tmp_path / "x.toml", 'preset = "none"\n')).config == Config()


@pytest.mark.parametrize("preset", [None, *sorted(PRESETS)])
@pytest.mark.parametrize("with_origins", [False, True])
def test_settings_as_toml_are_read_back(preset: str | None, with_origins: bool, tmp_path: Path) -> None:
    odd = 'a "quoted"\\path\n\x1b[31m \u202e # [x]\t'
    flags = {"preset": preset, "score.model_args": {"depth": [1, {"a b": 2}]}, "generate.negative_prompt": odd}
    resolved = resolve(flags={**flags, "generate.guidance_interval": [0.1, 0.5], "data.class_map": "x/y.json"})
    text = toml_document(flat_items(resolved.config), resolved.origins if with_origins else None)
    assert all(character.isprintable() or character == "\n" for character in text)
    again = resolve(config_file=toml(tmp_path / "x.toml", text))
    assert again.config == resolved.config
    assert ("# flag" in text) == with_origins


@pytest.mark.parametrize(
    ("asked", "device", "capability", "training", "settled"),
    [
        ("auto", "cpu", None, True, "fp32"),
        ("auto", "mps", None, False, "fp32"),
        ("auto", "cuda:1", (9, 0), True, "bf16"),
        ("auto", "cuda", (9, 0), False, "fp16"),
        ("auto", "cuda", (7, 5), True, "fp16"),
        ("auto", "cuda", (6, 1), False, "fp32"),
        ("fp16", "cpu", None, False, "fp16"),
        ("fp32", "cuda", (9, 0), True, "fp32"),
    ],
)
def test_precision_follows_the_device(
    asked: Any, device: str, capability: tuple[int, int] | None, training: bool, settled: str, monkeypatch: Any
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert settle_precision(asked, device, training=training) == settled


def test_what_a_command_starts_from_loses_to_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lowest = {"preset": "digits", "evaluate.seeds": 3, "evaluate.arms": ["real"], "score.folds": 9}
    run = toml(tmp_path / "run.toml", "[evaluate]\nseeds = 5\n")
    monkeypatch.setenv("DCDM_SCORE__FOLDS", "7")
    resolved = resolve(lowest=lowest, run_file=run)
    config = resolved.config
    assert (config.preset, config.evaluate.seeds, config.evaluate.arms, config.score.folds) == (
        "digits",
        5,
        ("real",),
        7,
    )
    assert resolved.origins["preset"] == "preset digits" and resolved.origins["evaluate.arms"] == "command"
    assert resolve(flags={"preset": "sd15"}, lowest=lowest).config.finetune.base != "tiny"


@pytest.mark.parametrize("key", ["finetune.snr_gamma", "generate.count", "generate.clip_range", "caption.sidecars"])
def test_none_switches_an_optional_setting_off(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert flat_items(resolve(flags={"preset": "sd15", key: "none"}).config)[key] is None
    monkeypatch.setenv("DCDM_" + key.upper().replace(".", "__"), "none")
    assert flat_items(resolve().config)[key] is None


def test_none_is_a_word_where_it_is_a_choice_and_no_number() -> None:
    assert resolve(flags={"finetune.conditioning": "none"}).config.finetune.conditioning == "none"
    with pytest.raises(UsageError, match=r"finetune\.rank"):
        resolve(flags={"finetune.rank": "none"})


@pytest.mark.parametrize("text", ["0.1,0.2", "[0.1, 0.2]", " 0.1 , 0.2 "])
def test_lists_in_the_environment(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCDM_EVALUATE__TARGETS", text)
    monkeypatch.setenv("DCDM_SCORE__MODEL_ARGS", '{"depth": 3}')
    assert resolve().config.evaluate.targets == (0.1, 0.2)
    assert resolve().config.score.model_args == {"depth": 3}


@pytest.mark.parametrize(("name", "text"), [("DCDM_SCORE__MODEL_ARGS", "{"), ("DCDM_EVALUATE__TARGETS", "a,b")])
def test_a_value_in_the_environment_that_cannot_be_read(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, text)
    with pytest.raises(UsageError, match="environment"):
        resolve()


def test_a_bad_value_names_the_place_it_came_from_not_a_neighbours(tmp_path: Path) -> None:
    file = toml(tmp_path / "x.toml", '[score]\nmodel = "resnet18"\n')
    with pytest.raises(UsageError, match=r"score\.model_args .*\(flag\)"):
        resolve(flags={"score.model_args": 3}, config_file=file)


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


FOREIGN_VALUES = {
    "caption.sidecars": "/elsewhere",
    "caption.metadata": "/elsewhere",
    "caption.overwrite": True,
    "finetune.log_with": "wandb",
    "generate.trust_engine": True,
    "scale.engine": "ray",
    "scale.address": "host:1",
}


@pytest.mark.parametrize("key", FOREIGN)
def test_a_run_folder_does_not_decide_what_is_written_elsewhere_or_whose_code_runs(tmp_path: Path, key: str) -> None:
    section, name = key.split(".")
    value = FOREIGN_VALUES[key]
    written = json.dumps(value)
    file = toml(tmp_path / "dcdm.toml", f"[{section}]\n{name} = {written}\n")
    with pytest.raises(UsageError) as caught:
        resolve(run_file=file)
    assert key in caught.value.message and repr(value) in caught.value.message and str(file) in caught.value.message
    assert "--" + name.replace("_", "-") in caught.value.hint and "--config" in caught.value.hint
    mine = resolve(config_file=file, run_file=toml(tmp_path / "run.toml", ""))
    assert str(getattr(getattr(mine.config, section), name)) == str(value)
    kept = resolve(recorded=[Layer("record", {section: {name: value}})])  # a record lies in the run folder too
    assert kept.origins[key] == "default"


def test_a_run_folder_may_say_the_default(tmp_path: Path) -> None:
    resolve(
        run_file=toml(
            tmp_path / "x.toml", "[caption]\nsidecars = 'none'\noverwrite = false\n[scale]\nengine = 'local'\n"
        )
    )


def test_judge_and_downstream_follow_the_scorer_where_nothing_is_said_of_them() -> None:
    resolved = resolve(flags={"score.image_size": 64, "score.steps": 300, "downstream.steps": 500})
    assert (resolved.config.judge.image_size, resolved.config.judge.steps) == (64, 300)
    assert (resolved.config.downstream.image_size, resolved.config.downstream.steps) == (64, 500)
    assert resolved.config.judge.model == "resnet18"
    assert resolved.origins["judge.steps"] == "as score.steps" and resolved.origins["downstream.steps"] == "flag"


def test_what_a_preset_says_of_the_judge_stays() -> None:
    resolved = resolve(flags={"preset": "digits", "score.steps": 7})
    assert resolved.config.judge.steps == 300 and resolved.origins["judge.steps"] == "preset digits"
