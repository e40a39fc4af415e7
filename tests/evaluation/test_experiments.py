"""Experiments as data: built-in ones, files of the user's, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from dcdm_cli.errors import NotFoundError, UsageError
from dcdm_cli.evaluation.experiments import built_in_experiments, find_experiment, parse_experiment
from dcdm_cli.run.settings import ClassifierConfig, changed

ALL = {"ablation", "adherence", "buckets", "controls", "loop", "mean-sweep", "ratio-sweep", "target", "transfer"}


def test_one_experiment_per_result_of_the_paper() -> None:
    assert set(built_in_experiments()) == ALL
    for name in ALL:
        experiment = find_experiment(name)
        names = [arm.name for arm in experiment.arms]
        assert experiment.name == name and experiment.about
        if experiment.kind == "arms":
            assert experiment.baseline in names and experiment.focus in [*names, "dcdm"]
        for arm in experiment.arms:
            assert experiment.adapter(arm.adapter)


def test_controls_hold_everything_the_budget_could_have_bought() -> None:
    arms = {arm.name: arm for arm in find_experiment("controls").arms}
    assert {arm.source for arm in arms.values()} == {"none", "upsampled", "augmented", "generated"}
    assert {arm.adapter for arm in arms.values()} == {"ours", "plain", "shuffled", "no-encoder", "img2img"}
    assert find_experiment("controls").adapter("img2img").generate == {"strength": 0.75}


def test_controls_have_the_stronger_augmentation_on_both_sides() -> None:
    """What users have for nothing, alone, with ours and with plain images; compared with each other."""
    experiment = find_experiment("controls")
    arms = {arm.name: arm for arm in experiment.arms if arm.augmented}
    assert set(arms) == {"augmented", "augmented + plain LoRA", "augmented + dcdm"}
    for plain, strong in (("plain LoRA", "augmented + plain LoRA"), ("dcdm", "augmented + dcdm")):
        same = next(arm for arm in experiment.arms if arm.name == plain)
        assert arms[strong].model_copy(update={"name": plain, "augment": False}) == same
    assert len({(arm.policy, arm.mixup) for arm in arms.values()}) == 1
    assert ("augmented + dcdm", "augmented") in experiment.pairs


def test_every_ablation_changes_one_thing() -> None:
    experiment = find_experiment("ablation")
    ours = experiment.adapter("ours")
    for arm in experiment.arms:
        if arm.name in ("dcdm", "real"):
            continue
        spec = experiment.adapter(arm.adapter)
        parts = [spec.scores != ours.scores, len(spec.finetune) == 1, arm.calibrated is False, arm.attempts == 1]
        assert sum(parts) == 1, arm.name


def test_classifiers_of_the_transfer_can_be_built_at_their_sizes() -> None:
    from dcdm_cli.difficulty.classifier import build_classifier

    base = ClassifierConfig.model_validate({"image_size": 32})
    small = [spec for spec in find_experiment("transfer").classifiers if spec.sides[0] <= 32 <= spec.sides[1]]
    assert len(small) == 3
    for spec in small:
        build_classifier(changed(base, spec.settings, spec.name), 10)


def test_a_file_of_the_users_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        'ratios = [0.5]\nseeds = 2\n[[arms]]\nname = "a"\nadapter = "g"\n[adapters.g]\n'
        "generate = { difficulty_guidance = 3.0 }\n"
    )
    experiment = find_experiment(str(file))
    assert (experiment.name, experiment.ratios, experiment.seeds) == ("mine", (0.5,), 2)
    assert not experiment.adapter("g").retrains and experiment.adapter("plain").retrains


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("arms = 3", "arms = 3", "docs/evaluate.md"),
        ("[[arms", "not valid TOML", "fix that line"),
        ("about = 'x'", "has no arms", "[[arms]]"),
        ("[[arms]]\nname = 'a'\nratoi = 1", "ratoi", "ratio"),
        ("[[arms]]\nname = 'a'\nadapter = 'plian'", "no adapter 'plian'", "plain"),
        ("[[arms]]\nname = 'a'\n[[arms]]\nname = 'a'", "two arms are called 'a'", "name of its own"),
        ("baseline = 'rael'\n[[arms]]\nname = 'real'", "baseline = 'rael' is no arm", "real"),
        ("controls = ['plain']\n[[arms]]\nname = 'real'", "controls = 'plain' is no arm", "real"),
        ("ratios = [0]\n[[arms]]\nname = 'a'", "must all be above 0", "0.5"),
        ("[[arms]]\nname = 'a'\nsource = 'fake'", "source = 'fake'", "docs"),
        ("[" * 5000, "not valid TOML", "fix that line"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(text: str, says: str, hint: str) -> None:
    with pytest.raises(UsageError, match="here") as caught:
        parse_experiment(text, "here", "x")
    assert says in caught.value.message and hint in caught.value.hint


def test_unknown_names_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no experiment 'contrls'") as caught:
        find_experiment("contrls")
    assert "controls" in caught.value.hint
    with pytest.raises(NotFoundError, match=r"gone\.toml"):
        find_experiment(str(tmp_path / "gone.toml"))
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        find_experiment(str(tmp_path / "bad.toml"))


def test_settings_of_a_section_are_checked() -> None:
    base = ClassifierConfig()
    assert changed(base, {}, "x") is base
    assert changed(base, {"steps": 5}, "x").steps == 5
    with pytest.raises(UsageError, match="arm a: stpes") as caught:
        changed(base, {"stpes": 5}, "arm a")
    assert "steps" in caught.value.hint
    with pytest.raises(UsageError, match="arm a: steps = 0"):
        changed(base, {"steps": 0}, "arm a")
