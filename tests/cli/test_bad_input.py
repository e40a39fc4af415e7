"""Every bad input ends in a sentence, a remedy and its exit code; nothing that was finished is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from dcdm_cli.data.manifest import read_manifest
from dcdm_cli.difficulty.classifier import build_classifier
from dcdm_cli.model.packaged import TINY_BASE
from dcdm_cli.run.settings import ClassifierConfig

from .conftest import CLASSES, SETTINGS, FinishedJob, last_error, new_run, write_images
from .runner import Finished, run

Dcdm = Callable[..., Finished]


def refused(done: Finished, kind: str, *says: str) -> None:
    """The last line of stderr is the error as JSON, with a hint; stdout is empty."""
    error = last_error(done)
    assert (error["type"], error["kind"], error["code"]) == ("error", kind, done.returncode)
    assert error["hint"] and done.stdout == ""
    for words in says:
        assert words in error["message"] + " | " + error["hint"]


def test_what_cannot_be_trained_on_is_said_by_score(tmp_path: Path) -> None:
    photos = write_images(tmp_path / "photos", {"cat": 12, "dog": 12, "eel": 1})
    (photos / "bird").mkdir()
    folder = new_run(tmp_path / "run")
    made = run("score", photos, "--json", "--run", folder)
    assert "folders without images passed over: 'bird'" in made.stderr
    assert "'eel' (1 in train, 1 in all)" in made.stderr and "--class-map" in made.stderr
    said = json.loads(made.stdout)
    assert said["left_out"] == [{"name": "eel", "train": 1, "images": 1}]
    assert [(one["split"], one["images"]) for one in said["splits"]] == [("train", 20), ("judge", 2), ("test", 2)]
    assert "set aside from train" in said["splits"][2]["origin"]
    assert said["class_counts"] == [{"class": name, "train": 10, "judge": 1, "test": 1} for name in ("cat", "dog")]
    table = (folder / "tables" / "images-by-class-and-split.csv").read_text("utf-8").splitlines()
    assert table == ["class,train,judge,test", "cat,10,1,1", "dog,10,1,1", "all,20,2,2"]
    assert read_manifest(folder / "samples.parquet").class_names == ("cat", "dog")


def test_what_later_stages_would_refuse_is_said_by_score(tmp_path: Path) -> None:
    """Three classes of a dozen images leave one image of each for the judge."""
    photos = write_images(tmp_path / "photos", {"cat": 12, "dog": 12, "eel": 12})
    asked = ("--set", "judge.method=auto", "--set", "finetune.strength=auto", "--set", "strength.probe_budget=30")
    made = run("score", photos, "--run", new_run(tmp_path / "run"), *asked)
    assert "dcdm evaluate: it will go on without a judge, as the judge's images are too few" in made.stderr
    assert "what it would say is left out: label agreement" in made.stderr and "evaluate will stop" not in made.stderr
    assert "dcdm finetune will stop: 3 real images are kept from fine-tuning" in made.stderr
    assert "dcdm finetune will stop: strength.probe_budget = 30 gives " in made.stderr
    again = f"dcdm finetune --strength 200 --run {tmp_path / 'run'}"
    for choice in ("3 of 3 classes, 1 at most", "--judge-fraction", "--test-fraction", "judge.method=scratch", again):
        assert choice in made.stderr
    run("caption", "--run", tmp_path / "run")
    more = ("--set", "strength.probe_budget=300")
    begun = run("finetune", "--run", tmp_path / "run", "--json", *asked, *more, code=2)
    refused(begun, "UsageError", "3 real images are kept from fine-tuning", again)
    assert "fine-tuning:" not in begun.stderr, "nothing is learned before it is refused"


def test_one_class_cannot_be_ranked(tmp_path: Path) -> None:
    photos = write_images(tmp_path / "photos", {"cat": 8})
    folder = new_run(tmp_path / "run")
    made = run("score", photos, "--json", "--run", folder, code=2)
    refused(made, "UsageError", "2 classes", "--classifier")
    assert "there is only one class, 'cat'" in made.stderr
    (photos / "dog").mkdir()
    refused(run("score", photos, "--json", "--run", folder, code=2), "UsageError", "2 classes")
    assert not (folder / "samples.parquet").exists()


def test_corrupt_images_are_skipped_listed_and_end_with_code_3(tmp_path: Path) -> None:
    photos = write_images(tmp_path / "photos", {"cat": 10, "test tube": 10})
    whole = next((photos / "cat").glob("*.png")).read_bytes()
    for name, content in {"text.png": b"no image", "half.png": whole[:150], "empty.jpg": b""}.items():
        (photos / "cat" / name).write_bytes(content)
    folder = new_run(tmp_path / "run")
    made = run("score", photos, "--max-bad", "0.2", "--json", "--run", folder, code=3)
    assert json.loads(made.stdout)["rejected"] == 3 and "'test tube'" in made.stderr
    reasons = {
        row["path"]: row["reason"] for row in map(json.loads, (folder / "rejected.jsonl").read_text().splitlines())
    }
    assert reasons == {"cat/text.png": "not_an_image", "cat/empty.jpg": "not_an_image", "cat/half.png": "truncated"}
    listed = f"; all in {folder / 'rejected.jsonl'}"
    said = "3 images are left out: 2 not_an_image, such as cat/empty.jpg, 1 truncated, such as cat/half.png"
    assert made.stderr.count(f"warning: {said}{listed}") == 1
    again = run("score", photos, "--max-bad", "0.2", "--run", folder, code=3).stderr  # still partial
    assert again.count("skipped") == 1 and again.count(f"3 of the source's images were left out{listed}") == 1
    for words in (["--strict"], []):
        made = run("score", photos, *words, "--json", "--run", tmp_path / "new", code=1)
        refused(made, "TooManyRejectedError", "--max-bad", f"listed in {tmp_path / 'new' / 'rejected.jsonl'}")
        assert (tmp_path / "new" / "rejected.jsonl").is_file()
    assert (photos / "cat" / "half.png").read_bytes() == whole[:150]


def test_an_image_that_vanishes_after_scoring_is_named(tmp_path: Path) -> None:
    photos = write_images(tmp_path / "photos", {"cat": 12, "dog": 12})
    folder = new_run(tmp_path / "run")
    run("score", photos, "--run", folder)
    run("caption", "--run", folder)
    gone = read_manifest(folder / "samples.parquet").split("train").paths()[0]
    gone.unlink()
    refused(run("finetune", "--json", "--run", folder, code=10), "NotFoundError", gone.name, "dcdm score")


@pytest.mark.parametrize(
    ("base", "code", "kind", "says"),
    [
        ("nowhere/at-all", 10, "NotFoundError", "cannot load the base model"),
        ("empty", 10, "NotFoundError", "cannot load the base model"),
        ("no-vae", 12, "MismatchError", "it has no vae"),
    ],
)
def test_a_base_model_that_is_none(scored: Path, tmp_path: Path, base: str, code: int, kind: str, says: str) -> None:
    (tmp_path / "empty").mkdir()
    part = Path(shutil.copytree(TINY_BASE, tmp_path / "no-vae"))
    index = json.loads((part / "model_index.json").read_text())
    (part / "model_index.json").write_text(json.dumps({k: v for k, v in index.items() if k != "vae"}))
    made = run("finetune", "--base", base, "--json", "--run", scored, code=code, cwd=tmp_path)
    refused(made, kind, says, "" if code == 12 else "--base")
    assert not (scored / "adapter").exists()


def test_a_classifier_with_other_classes_lists_both_sides(photos: Path, tmp_path: Path) -> None:
    names = ["one", "bee", "cat"]
    model = build_classifier(ClassifierConfig(model="resnet10t", image_size=32), len(names))
    save_file(model.state_dict(), tmp_path / "own.safetensors", {"class_names": json.dumps(names)})
    folder = new_run(tmp_path / "run")
    words = ["--classifier", tmp_path / "own.safetensors", "--model", "resnet10t", "--set", "score.model_args={}"]
    made = run("score", photos, *words, "--json", "--run", folder, code=12)
    refused(made, "MismatchError", "lacks 2 of the 3 classes", "test tube", "bee, cat")


def test_ones_own_classifier_scores_by_name_and_is_part_of_what_was_done(photos: Path, tmp_path: Path) -> None:
    names = [*reversed(CLASSES), "more"]
    model = build_classifier(ClassifierConfig(model="resnet10t", image_size=32), len(names))
    own = tmp_path / "own.safetensors"
    save_file(model.state_dict(), own)
    sidecar = own.with_suffix(".json")
    sidecar.write_text(json.dumps({"class_names": names, "model": "resnet10t", "image_size": 32}))
    folder = new_run(tmp_path / "run")
    made = json.loads(run("score", photos, "--classifier", own, "--json", "--run", folder).stdout)
    assert made["method"] == "classifier" and made["scored"] == 36 and (folder / "scorer" / "own.safetensors").is_file()
    assert "skipped" in run("score", photos, "--classifier", own, "--run", folder).stderr
    sidecar.write_text(json.dumps({"class_names": names, "model": "resnet10t", "image_size": 24}))
    assert "skipped" not in run("score", photos, "--classifier", own, "--run", folder).stderr


def csv(folder: Path, photos: Path, header: str = "path,label,hard") -> Path:
    files = sorted((photos / "train").rglob("*.png"))
    rows = [f'"{file.relative_to(photos)}","{file.parent.name}",{i / len(files)}' for i, file in enumerate(files)]
    (photos / "images.csv").write_text("\n".join([header, *rows]) + "\n")
    return photos / "images.csv"


def test_scores_from_a_column_are_taken_and_leave_no_old_scorer(copy: Path, photos: Path, tmp_path: Path) -> None:
    source = csv(tmp_path, Path(shutil.copytree(photos, tmp_path / "photos")))
    made = json.loads(run("score", source, "--column", "hard", "--json", "--run", copy).stdout)
    assert made["method"] == "column" and not (copy / "scorer").exists()
    train = read_manifest(copy / "samples.parquet").split("train")
    assert np.isfinite(train.column("difficulty")).all() and not np.isfinite(train.column("loss")).any()
    run("caption", "--run", copy)
    run("finetune", "--run", copy)
    refused(run("evaluate", "--json", "--run", copy, code=2), "UsageError", "scores from a column", "dcdm score")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--method", "column"], "--column NAME"),
        (["--method", "classifier"], "--classifier FILE"),
        (["--column", "hard", "--classifier", "x.onnx"], "leave out"),
        (["--column", "none-such"], "no column none-such"),
    ],
)
def test_a_way_of_scoring_that_is_not_said_whole(
    dcdm: Dcdm, photos: Path, tmp_path: Path, words: list[str], says: str
) -> None:
    source = csv(tmp_path, Path(shutil.copytree(photos, tmp_path / "photos")))
    refused(dcdm("score", source, *words, "--json", code=2), "UsageError", says)


def test_a_loss_that_is_not_finite_is_a_numerical_failure_everywhere(
    scored: Path, photos: Path, tmp_path: Path
) -> None:
    made = run("finetune", "--lr", "1e30", "--steps", "40", "--warmup-steps", "0", "--json", "--run", scored, code=4)
    refused(made, "NumericalError", "3 steps in a row", "--lr")
    assert not (scored / "adapter").exists()
    assert "fine-tuning: 8/8" in run("finetune", "--force", "--run", scored).stderr
    made = run("score", photos, "--lr", "1e30", "--json", "--run", new_run(tmp_path / "run"), code=4)
    refused(made, "NumericalError", "loss is", "learning rate")


def test_half_precision_training_needs_a_gpu(scored: Path) -> None:
    refused(run("finetune", "--precision", "fp16", "--json", "--run", scored, code=22), "CapabilityError", "fp32")


@pytest.mark.parametrize(
    ("damage", "stage", "code", "says"),
    [
        ("samples.parquet", "caption", 12, "dcdm score --force"),
        ("records/score.json", "caption", 12, "dcdm score --force"),
        ("adapter/config.json", "generate", 12, "dcdm finetune --force"),
        ("adapter/pytorch_lora_weights.safetensors", "generate", 12, "dcdm finetune --force"),
        ("generated/plan.parquet", "generate", 12, "dcdm generate --force"),
        ("scorer/scorer.json", "evaluate", 12, "dcdm score --force"),
    ],
)
def test_damaged_files_of_the_run_are_named(copy: Path, damage: str, stage: str, code: int, says: str) -> None:
    (copy / damage).write_bytes((copy / damage).read_bytes()[:40])
    stale = {
        "generate": ["--steps", "3"],
        "evaluate": ["--per-target", "7"],
        "caption": ["--template", "x {class}"],
    }
    refused(run(stage, *stale[stage], "--json", "--run", copy, code=code), "MismatchError", says)


@pytest.mark.parametrize("stage", ["caption", "finetune", "generate", "evaluate"])
def test_a_slip_in_run_leaves_no_folder_behind(dcdm: Dcdm, tmp_path: Path, stage: str) -> None:
    first = "dcdm score" if stage in ("caption", "finetune") else "dcdm finetune"
    refused(dcdm(stage, "--run", "brids", "--json", code=10), "NotFoundError", first)
    refused(dcdm("score", "photso", "--run", "brids", "--json", code=10), "NotFoundError", "photso")
    assert list(tmp_path.iterdir()) == []


def test_evaluation_needs_images_that_nobody_trained_on(tmp_path: Path) -> None:
    photos = write_images(tmp_path / "photos" / "train", {"cat": 8, "dog": 8})
    write_images(tmp_path / "photos" / "judge", {"cat": 4, "dog": 4}, start=8)
    folder = new_run(tmp_path / "run")
    run("score", photos.parent, "--test-fraction", "0.05", "--test-from", "train", "--run", folder)
    for stage in ("caption", "finetune"):
        run(stage, "--run", folder)
    refused(run("evaluate", "--json", "--run", folder, code=2), "UsageError", "no test images", "dcdm score")


def test_fewer_images_per_target_than_classes_are_enough(copy: Path) -> None:
    shutil.rmtree(copy / "evaluation")
    shutil.rmtree(copy / "generated")
    with_four = SETTINGS.replace("per_target = 6", "per_target = 4").replace("seeds = 2", "seeds = 1")
    (copy / "dcdm.toml").write_text(with_four)
    photos = write_images(copy / "five", dict.fromkeys("abcde", 6))
    run("score", photos, "--test-fraction", "0.4", "--judge-fraction", "0.5", "--run", copy)
    for stage in ("caption", "finetune"):
        run(stage, "--run", copy)
    run("evaluate", "--arms", "real", "--run", copy)
    assert (copy / "evaluation" / "report.html").is_file()


def test_unknown_arms_and_targets_out_of_reach(copy: Path) -> None:
    refused(run("evaluate", "--arms", "real,dcmd", "--json", "--run", copy, code=2), "UsageError", "did you mean dcdm")
    refused(run("evaluate", "--targets", "0.95", "--json", "--run", copy, code=2), "UsageError", "--targets")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--difficulty", "hard"], "normal:0.5,0.1"),
        (["--difficulty", "fixed:0.95"], "--difficulty-cap"),
        (["--ratio", "0.001", "--set", "generate.count=none"], "--count"),
        (["--scheduler", "heun"], "ddim"),
    ],
)
def test_what_cannot_be_generated(copy: Path, words: list[str], says: str) -> None:
    refused(run("generate", "--force", *words, "--json", "--run", copy, code=2), "UsageError", says)
    assert len(read_manifest(copy / "generated" / "samples.parquet")) == 12


def test_a_folder_of_hostile_names_reaches_no_terminal(tmp_path: Path) -> None:
    names = ["\x1b[31mred", "[/x]", "new\nline", "\u202erightleft", "-dash", "=1+1", "emoji 😀", "é" * 60]
    photos = write_images(tmp_path / "photos", dict.fromkeys(names, 3))
    (photos / "[/x]" / "\x1b]0;title\x07.png").write_bytes(b"broken")
    Image.new("RGB", (9, 9)).save(photos / "new\nline" / "copy.png")
    Image.new("RGB", (9, 9)).save(photos / "-dash" / "copy.png")
    made = run("score", photos, "--max-bad", "0.5", "--folds", "2", "--run", new_run(tmp_path / "run"), code=3)
    assert not set("\x1b\x07\u202e") & set(made.stdout + made.stderr)
    assert "train:-dash/copy.png = train:new\\nline/copy.png" in made.stderr
    assert "\\x1b[31mred" in made.stdout


def test_the_job_itself_made_it(job: FinishedJob) -> None:
    """Its classes are hostile already: a split word, markup, a tag and an escape went through every stage."""
    manifest = read_manifest(job.run / "generated" / "samples.parquet")
    assert set(manifest.column("class_name")) == set(CLASSES)
    assert all(path.is_file() and "<" not in str(path.relative_to(job.run)) for path in manifest.paths())
