"""The whole job through the command line, on three classes of real digits with settings that take seconds."""

from __future__ import annotations

import json
import shutil
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcdm_cli.data.manifest import read_manifest

from ..sd21 import save_sd21
from ..xl import save_xl
from .conftest import CLASSES, SETTINGS, SPLITS, STAGES, FinishedJob, document, new_run
from .runner import run

TRAIN = len(CLASSES) * SPLITS["train"]


def files(folder: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and ".lock" not in p.name}


def test_every_stage_reports_what_it_made(job: FinishedJob) -> None:
    said = job.documents
    assert said["score"]["classes"] == 3 and said["score"]["images"] == 3 * sum(SPLITS.values())
    assert said["score"]["scored"] == TRAIN and said["score"]["method"] == "crossfit"
    assert said["caption"]["distinct"] == 3
    assert said["caption"]["cut"] == sum(SPLITS.values())  # the name that is more than 16 tokens
    assert said["finetune"]["images"] == TRAIN - said["score"]["suspects"]
    assert (said["generate"]["images"], said["generate"]["failed"]) == (12, 0)
    assert said["evaluate"] == json.loads((job.run / "evaluation" / "metrics.json").read_text())


def test_the_run_folder_is_laid_out_as_documented(job: FinishedJob) -> None:
    expected = [
        "dcdm.toml", "samples.parquet", "rejected.jsonl", "scorer/scorer.json", "figures/difficulty.png",
        "figures/hardest.png", "figures/easiest.png", "adapter/pytorch_lora_weights.safetensors",
        "adapter/difficulty_encoder.safetensors", "adapter/config.json", "generated/plan.parquet",
        "generated/samples.parquet", "generated/README.md", "generated/train/metadata.jsonl",
        "evaluation/metrics.json", "evaluation/report.html", *(f"records/{stage}.json" for stage in STAGES),
    ]  # fmt: skip
    assert [name for name in expected if not (job.run / name).is_file()] == []
    assert not [p for p in job.run.rglob("*") if p.suffix in (".part", ".pt", ".pkl", ".bin", ".pth")]
    assert not list((job.run / "checkpoints").glob("*"))
    assert (job.run / "dcdm.toml").read_text() == SETTINGS


def test_records_say_what_was_done(job: FinishedJob) -> None:
    for stage in STAGES:
        record = json.loads((job.run / "records" / f"{stage}.json").read_text())
        assert set(record) == {
            "stage", "config", "inputs", "outputs", "fingerprint", "results", "seconds", "device", "peak_memory_mib",
            "energy_wh", "started", "versions", "schema", "one_off", "uncounted", "read", "wrote", "listed",
        }  # fmt: skip
        assert record["seconds"] >= 0 and record["device"] == "cpu" and record["peak_memory_mib"] > 50
        assert all((job.run / output).exists() for output in record["outputs"])


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_is_one_file_with_every_figure(job: FinishedJob) -> None:
    raw = (job.run / "evaluation" / "report.html").read_text("utf-8")
    page = Page(raw)
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    assert all("src" not in attributes for tag, attributes in page.tags if tag == "script")  # its own alone
    links = [
        value or "" for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")
    ]
    pictures = [link for link in links if link.startswith("data:image/")]
    assert len(pictures) >= 8 and all(link.startswith("#") for link in links if link not in pictures)
    assert "url(" not in raw and "@import" not in raw
    for title in (
        "Difficulty of the real training images", "Difficulty atlas", "Requested and realised difficulty",
        "What the images are worth", "Time", "Label frontier",
    ):  # fmt: skip
        assert title in page.text
    assert not set("\x1b\u202e") & set(raw)


def test_every_class_has_a_row_in_the_atlas(job: FinishedJob) -> None:
    from dcdm_cli.reports.plots import HEADER, TILE

    with Image.open(job.run / "evaluation" / "figures" / "atlas.png") as atlas:
        assert (atlas.height - HEADER) // TILE == 3  # rows; columns: easiest, one per target, hardest
        assert atlas.width >= 4 * TILE


@pytest.mark.parametrize("stage", [*STAGES, "config"])
def test_stdout_is_one_document_while_libraries_print(job: FinishedJob, copy: Path, photos: Path, stage: str) -> None:
    words = {"config": ["config", "show"], "score": ["score", photos]}.get(stage, [stage])
    force = [] if stage == "config" else ["--force"]
    done = run(*words, "--run", copy, "--json", *force, noisy=True)
    assert done.stdout.count("\n") == 1 and isinstance(document(done), dict)
    assert "noise from native code" in done.stderr
    if stage in ("score", "caption", "generate"):
        assert document(done) | {"path": ""} == job.documents[stage] | {"path": ""}


def test_running_it_again_does_nothing_even_when_moved(copy: Path, photos: Path) -> None:
    before = files(copy)
    for stage in STAGES:
        words = [stage, photos] if stage == "score" else [stage]
        assert "nothing changed, skipped" in run(*words, "--run", copy).stderr
    assert files(copy) == before


@pytest.mark.slow
def test_a_finished_run_can_be_exported_and_generated_from_anew(job: FinishedJob, copy: Path) -> None:
    """Its adapter knows the base by name alone."""
    made = document(run("export", "--run", copy, "--json"))
    assert [network["parity"] for network in made["networks"]] == ["passed"] * 3
    again = document(run("generate", "--run", copy, "--force", "--json"))
    assert again["backend"] in ("openvino", "onnxruntime")
    differences = np.concatenate(
        [
            np.abs(np.asarray(Image.open(old), np.int16) - np.asarray(Image.open(copy / old.relative_to(job.run))))
            for old in (job.run / "generated").rglob("*.png")
        ]
    )
    assert differences.size and (differences <= 1).mean() >= 0.999


def test_a_run_of_the_embedded_digits_can_be_moved(tmp_path: Path) -> None:
    folder = new_run(tmp_path / "digits", steps_12="2")
    run("score", "--run", folder)
    moved = folder.rename(tmp_path / "moved")
    assert "skipped" in run("score", "--run", moved).stderr
    assert all(
        path.is_relative_to(moved) and path.is_file() for path in read_manifest(moved / "samples.parquet").paths()
    )


def test_a_new_setting_makes_its_stage_and_what_follows_stale(copy: Path) -> None:
    made = run("caption", "--template", "the {class}", "--run", copy)
    assert "skipped" not in made.stderr
    captions = set(read_manifest(copy / "samples.parquet").column("caption"))
    assert captions == {"the one", "the test tube", "the"}  # the third is cut
    generated = run("generate", "--run", copy, code=12).stderr  # prompts are drawn from the captions
    assert "holds images of another plan" in generated and "the adapter is stale" in generated
    assert "skipped" not in run("finetune", "--run", copy).stderr


def test_scoring_again_does_not_pass_old_captions_off_as_new(copy: Path, photos: Path) -> None:
    run("score", photos, "--force", "--run", copy)
    for stage in ("finetune", "generate"):
        assert "dcdm caption" in run(stage, "--force", "--run", copy, code=10).stderr
    assert "skipped" not in run("caption", "--run", copy).stderr
    assert "skipped" in run("finetune", "--run", copy).stderr  # the same scores and captions as before


def test_a_flag_given_once_holds_for_the_stages_after_it(scored: Path, job: FinishedJob) -> None:
    run("finetune", "--rank", "2", "--run", scored)
    later = document(run("evaluate", "--dry-run", "--json", "--run", scored))
    assert later["finetune.rank"] == 2 and later["caption.template"] == "a photo of the {class}"
    assert (
        document(run("generate", "--dry-run", "--json", "--set", "finetune.rank=3", "--run", scored))["finetune.rank"]
        == 3
    )
    assert document(run("finetune", "--dry-run", "--json", "--run", scored))["finetune.rank"] == 4  # dcdm.toml again


def test_how_the_work_is_done_runs_nothing_again(copy: Path) -> None:
    how = {"finetune": ["--keep-checkpoints", "3"], "generate": ["--decode-batch", "3", "--no-spinning"]}
    how |= {"caption": ["--batch-size", "3"], "evaluate": ["--workers", "2"]}
    for stage, words in how.items():
        assert f"{stage}: nothing changed, skipped" in run(stage, *words, "--run", copy).stderr


def test_what_a_record_decides_is_said_and_shown(copy: Path, tmp_path: Path) -> None:
    made = json.loads((copy / "records" / "generate.json").read_text())["config"]["text_guidance"]
    file = copy / "dcdm.toml"
    assert "[generate]" in file.read_text()
    file.write_text(file.read_text().replace("[generate]", "[generate]\ntext_guidance = 9"))
    shown = run("config", "show", "evaluate", "--run", copy)
    (warning,) = shown.stderr.splitlines()
    for part in ("generate.text_guidance = 9.0", str(file), f"record of generate has {made}", "dcdm generate --run"):
        assert part in warning
    assert tomllib.loads(shown.stdout)["generate"]["text_guidance"] == made != 9
    assert f"text_guidance = {made} # record of generate\n" in shown.stdout and "# default" not in shown.stdout
    assert "# default" in run("config", "show", "evaluate", "--origin", "--run", copy).stdout
    as_file = tmp_path / "shown.toml"
    as_file.write_text(run("evaluate", "--dry-run", "--run", copy).stdout)
    again = run("config", "show", "evaluate", "--config", as_file, "--run", copy)
    assert tomllib.loads(again.stdout) == tomllib.loads(as_file.read_text())
    assert again.stderr == ""  # nothing contradicts the records any more
    plain = run("config", "show", "--run", copy)
    assert tomllib.loads(plain.stdout)["generate"]["text_guidance"] == 9
    assert plain.stderr == "stages of this run decide settings of later ones: dcdm config show COMMAND\n"
    assert tomllib.loads(run("generate", "--dry-run", "--run", copy).stdout)["generate"]["text_guidance"] == 9


def test_other_images_replace_the_old_only_with_force(copy: Path) -> None:
    old = sorted((copy / "generated" / "train").rglob("*.png"))
    made = run("generate", "--seed", "5", "--json", "--run", copy, code=12)
    assert "another plan" in made.stderr and sorted((copy / "generated" / "train").rglob("*.png")) == old
    run("generate", "--seed", "5", "--force", "--run", copy)
    new = sorted((copy / "generated" / "train").rglob("*.png"))
    assert len(new) == 12 and not {p.name for p in new} & {p.name for p in old}


def test_a_plan_alone_names_its_run(copy: Path, tmp_path: Path) -> None:
    plan = document(run("generate", "--plan", "--count", "13", "--json", "--run", copy))["plan"]
    assert "another plan" in run("generate", plan, cwd=tmp_path, code=12).stderr
    made = document(run("generate", plan, "--force", "--json", cwd=tmp_path))
    assert made["path"] == str(copy / "generated") and made["images"] == 13
    assert "no finished finetune" in run("generate", plan, "--run", tmp_path / "other", code=None).stderr
    assert "no finished finetune" in run("generate", plan, env={"DCDM_RUN": "other"}, cwd=tmp_path, code=None).stderr


def test_quiet_prints_the_path_alone(copy: Path) -> None:
    for stage, path in {
        "generate": "generated",
        "evaluate": "evaluation/report.html",
        "caption": "samples.parquet",
    }.items():
        made = run(stage, "--quiet", "--run", copy)
        assert (made.stdout, made.stderr) == (f"{copy / path}\n", "")


@pytest.mark.parametrize("source", ["train", "train/metadata.jsonl", "samples.parquet"])
def test_generated_images_can_be_scored_like_real_ones(job: FinishedJob, tmp_path: Path, source: str) -> None:
    images = shutil.copytree(job.run / "generated", tmp_path / "generated")
    columns = {"train": [], "train/metadata.jsonl": ["--label-column", "class_name"]}.get(
        source, ["--label-column", "class_name", "--image-column", "path"]
    )
    words = ["--set", "score.steps=2", "--test-fraction", "0.3", *columns]
    scored = document(run("score", images / source, *words, "--json", "--run", new_run(tmp_path / "again")))
    assert (scored["images"], scored["rejected"], scored["classes"]) == (12, 0, 3)
    if source != "train":
        names = read_manifest(tmp_path / "again" / "samples.parquet").class_names
        assert set(names) == set(CLASSES)


@pytest.mark.slow
def test_stable_diffusion_xl_goes_the_same_way(scored: Path, tmp_path: Path) -> None:
    closed_loop = ["calibrate.enabled=true", "calibrate.points=3", "calibrate.images=4"]
    words = [word for setting in closed_loop for word in ("--set", setting)]
    run("finetune", "--base", save_xl(tmp_path / "xl"), "--mode", "replace", *words, "--run", scored)
    calibration = json.loads((scored / "adapter" / "calibration.json").read_text())
    assert len(calibration["requested"]) == 3
    made = document(run("generate", "--set", "generate.calibrated=true", "--json", "--run", scored))
    assert (made["images"], made["failed"]) == (12, 0)


@pytest.mark.slow
def test_stable_diffusion_2_1_goes_the_same_way_and_from_its_export(scored: Path, tmp_path: Path) -> None:
    closed_loop = ["calibrate.enabled=true", "calibrate.points=3", "calibrate.images=4"]
    words = [word for setting in closed_loop for word in ("--set", setting)]
    run("finetune", "--base", save_sd21(tmp_path / "sd21"), *words, "--run", scored)
    calibration = json.loads((scored / "adapter" / "calibration.json").read_text())
    assert len(calibration["requested"]) == 3
    exported = document(run("export", "--json", "--run", scored))
    assert {network["parity"] for network in exported["networks"]} == {"passed"} and len(exported["networks"]) == 3
    made = document(run("generate", "--set", "generate.calibrated=true", "--json", "--run", scored))
    assert (made["images"], made["failed"]) == (12, 0) and made["backend"] != "torch"


@pytest.mark.slow
def test_the_whole_job_in_one_command_on_the_embedded_digits(tmp_path: Path) -> None:
    """`dcdm demo` with the smallest settings; its own are for `make demo`."""
    small = (
        "score.steps=4 score.repeats=1 score.at_chance=warn judge.steps=2 downstream.steps=2 finetune.steps=4 "
        "calibrate.enabled=false strength.lora_scales=[0.6] generate.steps=2 generate.ratio=0.2 evaluate.per_target=10 "
        "evaluate.targets=[0.5] evaluate.seeds=2 evaluate.synthetic_ratio=0.2"
    )
    words = [word for setting in small.split() for word in ("--set", setting)]
    made = run("demo", *words, "--json", "--run", tmp_path / "demo")
    metrics = document(made)
    assert [arm["name"] for arm in metrics["downstream"]["arms"]] == ["real", "augmented", "dcdm"]
    assert (metrics["downstream"]["real_images"], metrics["downstream"]["test_images"]) == (50, 997)
    assert metrics["adherence"]["frontier"][0]["real_n"] >= 0
    made_with = json.loads((tmp_path / "demo" / "records" / "generate.json").read_text())
    assert made_with["config"]["lora_scale"] == 0.6  # what fine-tuning chose
    assert made_with["results"]["backend"] != "torch"  # the export is used
    # dcdm.toml now holds the demo's settings, so that single commands go on with them.
    assert "skipped" in run("evaluate", "--run", tmp_path / "demo").stderr
