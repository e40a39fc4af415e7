"""What stages record of files, and what `dcdm check` makes of damage, staleness and leftovers."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from dcdm_cli.model.packaged import TINY_BASE
from dcdm_cli.run.journals import HASH, changed_rows
from dcdm_cli.run.seals import FOR_PEOPLE, SEAL_SUFFIX, change_beside
from dcdm_export.signature import read_signature, verify

from .conftest import FinishedJob, document, last_error
from .runner import Finished, run

LORA = "adapter/pytorch_lora_weights.safetensors"
SCORER = "scorer/fold-0/model.safetensors"
METADATA = "generated/train/metadata.jsonl"
# Of a command with more than one stage.
RECORDS = {"evaluate": ("evaluate", "judge", "adherence", "agreement")}
MORE = {
    "calibrate": ("finetune", "calibrate"), "distill": ("distill", "calibrate-distilled"), "export": ("export",),
    "generate": ("generate",), "check": ("evaluate-artefacts", "judge", "agreement"),
    "filter": ("filter", "judge", "agreement"), "atlas": ("atlas", "judge"), "plan": ("next-plan",),
    "prompts": ("caption", "prompts"),
}  # fmt: skip
NEVER = ("records/", ".lock", "dcdm.toml")  # what says how to read, and is compared as settings and as ids
EXPORT = "export"
OF_SET = {"atlas": ("generated/",)}  # its images are held against the set's table, which is recorded


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-9] ^= 16
    file.write_bytes(content)


def without_tensor(file: Path) -> None:
    tensors = load_file(file)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, file)


def not_finite(file: Path) -> None:
    with safe_open(file, "np") as stored:
        metadata = stored.metadata()
    tensors = load_file(file)
    tensors[sorted(tensors)[0]].flat[0] = np.nan
    save_file(tensors, file, metadata)


def without_line(file: Path) -> None:
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))


def findings(said: Finished, state: str) -> list[str]:
    return [f"{row['stage']}: {row['text']}" for row in document(said)["findings"] if row["state"] == state]


@pytest.mark.parametrize("command", ["score", "caption", "finetune", "generate", "evaluate"])
def test_a_stage_records_every_file_that_it_opens(job: FinishedJob, command: str) -> None:
    assert job.opened[command] and unrecorded(job, command, RECORDS.get(command, (command,))) == []


@pytest.mark.slow
@pytest.mark.parametrize("command", MORE)
def test_so_does_what_is_optional(extended: FinishedJob, command: str) -> None:
    assert extended.opened[command] and unrecorded(extended, command, MORE[command]) == []


def unrecorded(job: FinishedJob, command: str, records: Sequence[str]) -> list[str]:
    """Files of the run that a command opened and none of its records names."""
    known, lists = set(), [EXPORT]
    for stage in records:
        record = json.loads((job.run / "records" / f"{stage}.json").read_text())
        known |= {*record["read"], *record["wrote"]}
        lists += record["listed"]
    made_of = {name for name in job.opened[command] - known if not set(Path(name).parts) & set(FOR_PEOPLE)}
    others = {name for name in made_of if not name.startswith((*NEVER, *OF_SET.get(command, ())))}
    listed = {name for name in others if name.startswith(tuple(f"{folder}/" for folder in lists))}
    return sorted((others - listed) | {name for name in listed if not is_sealed(job.run, name)})


def is_sealed(run: Path, name: str) -> bool:
    """Whether a file of a folder with a list of its own is held against a seal by its readers."""
    file = run / name
    if name.startswith("cache/") and file.suffix in (".npy", SEAL_SUFFIX):
        return file.with_suffix(SEAL_SUFFIX).is_file() and change_beside(file.with_suffix(".npy")) == ""
    if file.suffix == ".safetensors" and name.startswith("cache/features/"):
        with safe_open(file, "np") as stored:
            return "hash" in stored.metadata()
    if file.suffix == ".jsonl" and "/shards/" not in name:
        return all(HASH in json.loads(line) for line in file.read_text().splitlines()) and changed_rows(file) == ""
    if name.startswith("evaluation/judge/"):
        return name in json.loads((run / "records" / "judge.json").read_text())["wrote"]
    if name.startswith(f"{EXPORT}/"):
        return name in _exported(run)
    whole = hashlib.sha256(file.read_bytes()).hexdigest()
    return name.startswith(("generated/", "evaluation/sets/")) and bool({whole, whole[:32]} & _hashes_of_set(file))


def _exported(run: Path) -> set[str]:
    """The signature, which a record names, and what it has hashes of."""
    wrote = json.loads((run / "records" / "export.json").read_text())["wrote"]
    signature = read_signature(run / EXPORT)
    verify(run / EXPORT, signature)
    return {*wrote, *(f"{EXPORT}/{file}" for network in signature.networks.values() for file in network.files)}


@functools.cache
def _hashes_of_set(file: Path) -> set[str]:
    """Of all files of a set, by one of them: those of its shards' rows, and those that the rows have of images."""
    (folder,) = [place for place in file.parents if (place / "shards").is_dir()][:1]
    rows = [row for shard in (folder / "shards").glob("*.parquet") for row in pq.read_table(shard).to_pylist()]
    sidecars = [json.loads(one.read_text()) for one in (folder / "shards").glob("[0-9]*.json")]
    return {str(value) for row in (*rows, *sidecars) for name, value in row.items() if "sha256" in name}


def test_a_finished_run_is_fresh_wherever_it_lies(copy: Path) -> None:
    said = run("check", "--verify", "--json", "--run", copy)
    assert {row["state"] for row in document(said)["findings"]} <= {"fresh"}
    assert len(run("check", "--run", copy).stdout.splitlines()) == len(document(said)["findings"]) + 1


@pytest.mark.parametrize(
    ("file", "damage", "stage"),
    [
        (LORA, flip, "finetune"),
        (LORA, without_tensor, "finetune"),
        (LORA, not_finite, "finetune"),
        (SCORER, flip, "score"),
        (SCORER, without_tensor, "score"),
        ("samples.parquet", flip, "score"),
    ],
)
def test_damage_is_named_and_not_worked_with(copy: Path, file: str, damage: Callable[[Path], None], stage: str) -> None:
    damage(copy / file)
    said = run("check", "--json", "--run", copy, code=12)
    assert any(text.startswith(f"{stage}: {file} has ") for text in findings(said, "damaged"))
    refused = last_error(run("generate", "--force", "--json", "--run", copy, code=12))
    assert f"{file} is damaged" in refused["message"] and f"dcdm {stage}" in refused["hint"]


def test_what_is_cheap_is_repaired_and_the_rest_is_left(copy: Path) -> None:
    before = (copy / METADATA).read_bytes()
    without_line(copy / METADATA)
    flip(next((copy / "cache").glob("*.npy")))
    flip(copy / LORA)
    left = copy / "adapter" / ".config.json.1.part"
    left.write_text("half")
    assert document(run("check", "--json", "--run", copy, code=12))["code"] == 12
    said = run("check", "--repair", "--json", "--run", copy, code=12)
    assert (copy / METADATA).read_bytes() == before and not left.exists()
    assert len(findings(said, "repaired")) == 3
    assert findings(said, "damaged") == [f"finetune: {LORA} has other content than it had"]


def test_images_are_held_against_their_shards(copy: Path) -> None:
    first, second = sorted((copy / "generated" / "train").rglob("*.png"))[:2]
    first.rename(first.with_name("extra.png"))
    written = second.stat().st_mtime_ns
    flip(second)
    changed = f"{second.relative_to(copy / 'generated')} has other content"
    assert any(changed in text for text in findings(run("check", "--json", "--run", copy, code=12), "damaged"))
    os.utime(second, ns=(written, written))
    damaged = findings(run("check", "--json", "--run", copy, code=12), "damaged")
    assert any("is gone" in text for text in damaged) and any("in no row of any shard" in text for text in damaged)
    first.with_name("extra.png").rename(first)
    run("check", "--run", copy)
    assert "has other content" in findings(run("check", "--verify", "--json", "--run", copy, code=12), "damaged")[0]


@pytest.mark.parametrize("name", ["", "hard"])
def test_a_table_of_images_that_was_cut_is_a_finding(copy: Path, name: str) -> None:
    if name:
        (copy / "sets").mkdir()
        shutil.move(copy / "generated", copy / "sets" / name)
        shutil.move(copy / "records" / "generate.json", copy / "records" / f"generate-{name}.json")
    file = copy / ("sets/hard" if name else "generated") / "samples.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    said = findings(run("check", "--json", "--run", copy, code=12), "damaged")
    assert f"{' '.join(filter(None, ['generate', name]))}: samples.parquet cannot be read" in said


RECORDED = ("score", "caption", "finetune", "distill", "calibrate", "export", "generate", "evaluate", "judge",
            "adherence", "agreement", "evaluate-artefacts", "atlas")  # fmt: skip


def test_every_record_that_does_not_read_is_a_finding_and_stops_nothing_else(copy: Path) -> None:
    whole = (copy / "records" / "score.json").read_bytes()
    for name in RECORDED:
        (copy / "records" / f"{name}.json").write_bytes(whole[:40])
    (copy / "records" / ".score.begun").write_text("[")
    flip(copy / LORA)
    not_finite(copy / SCORER)
    said = findings(run("check", "--json", "--run", copy, code=12), "damaged")
    assert {text.partition(":")[0] for text in said if "is damaged: " in text} >= {*RECORDED}
    assert any(text.startswith(f"score: {SCORER}: ") for text in said)


def test_another_base_model_in_the_place_of_the_first_is_trained_on_and_not_worked_with(
    copy: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(TINY_BASE, tmp_path / "base")
    train = ["finetune", "--base", base, "--run", copy]
    run(*train)
    assert "nothing changed" in run(*train).stderr
    file = next((base / "unet").glob("*.safetensors"))
    flip(file)
    said = document(run("check", "--json", "--run", copy, code=3))["findings"]
    (found,) = [row for row in said if row["stage"] == "finetune"]
    assert f"{file} has other content" in found["text"] and f"dcdm finetune --base {base}" in found["fix"]
    refused = last_error(run("generate", "--force", "--json", "--run", copy, code=12))
    assert f"{file} has other content" in refused["message"] and f"--base {base}" in refused["hint"]
    assert "nothing changed" not in run(*train).stderr
    assert "finetune: " in findings(run("check", "--json", "--run", copy, code=3), "fresh")


@pytest.mark.parametrize("name", ["judge", "evaluate", "finetune"])
def test_what_lies_there_without_a_record_is_a_finding(copy: Path, name: str) -> None:
    (copy / "records" / f"{name}.json").unlink()
    said = findings(run("check", "--json", "--run", copy, code=3), "stale")
    assert any(text.startswith(f"{name}: ") and "no record says what it was made from" in text for text in said)


def test_classes_and_weights_of_everything_that_is_optional_are_looked_at(copy: Path) -> None:
    shutil.copytree(copy / "adapter", copy / "distilled" / "adapter")
    adapter = copy / "distilled" / "adapter" / "config.json"
    names = json.loads(adapter.read_text())["class_names"]
    adapter.write_text(json.dumps(json.loads(adapter.read_text()) | {"class_names": names[::-1]}))
    not_finite(copy / "distilled" / LORA)
    for folder in (copy / "export", copy / "distilled" / "export"):
        folder.mkdir()
        (folder / "signature.json").write_text(json.dumps({"model": {"class_names": names[::-1]}}))
    said = findings(run("check", "--json", "--run", copy, code=12), "damaged")
    for file in ("distilled/adapter/config.json", "export/signature.json", "distilled/export/signature.json"):
        assert sum(f": {file} has other classes than" in text for text in said) == 1
    assert any("lora_weights.safetensors: " in text and "not finite" in text for text in said)


def test_templates_of_captions_that_changed_make_captions_stale(copy: Path, tmp_path: Path) -> None:
    templates = tmp_path / "templates.json"
    templates.write_text('{"one": "the {class}"}')
    run("caption", "--set", f"caption.templates_file={templates}", "--run", copy)
    said = f"caption: the file of templates {templates} has changed since"
    assert said not in findings(run("check", "--json", "--run", copy, code=3), "stale"), "only what came after"
    templates.write_text('{"one": "an old {class}"}')
    assert said in findings(run("check", "--json", "--run", copy, code=3), "stale")
    templates.unlink()
    assert said in findings(run("check", "--json", "--run", copy, code=3), "stale")


def test_prompts_and_label_checks_that_changed_make_images_stale(copy: Path, tmp_path: Path) -> None:
    prompts, own = tmp_path / "prompts.csv", tmp_path / "own"
    prompts.write_text("class,prompt\n*,a {class}\n")
    shutil.copytree(copy / "evaluation" / "judge", own)
    record = copy / "records" / "generate.json"
    said = json.loads(record.read_text())
    said["config"] |= {"prompts": str(prompts), "check": str(own / "model.safetensors")}
    said["inputs"] |= {"prompts": "0" * 32, "check": "0" * 16}
    record.write_text(json.dumps(said))
    stale = findings(run("check", "--json", "--run", copy, code=3), "stale")
    assert any(f"the file of prompts {prompts} has changed since" in text for text in stale)
    assert any(f"the label check {own / 'model.safetensors'} has changed since" in text for text in stale)
    prompts.unlink()
    assert any("no prompts at" in text for text in findings(run("check", "--json", "--run", copy, code=3), "stale"))


@pytest.mark.parametrize("words", [["evaluate", "check"], ["evaluate", "atlas"], ["evaluate", "plan"], ["review"]])
def test_images_that_changed_places_are_not_measured(copy: Path, words: list[str]) -> None:
    first, second = sorted((copy / "generated" / "train").rglob("*.png"))[:2]
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])
    refused = last_error(run(*words, "--json", "--run", copy, code=12))
    assert "has other content than was generated" in refused["message"] and "dcdm generate" in refused["hint"]


def test_generated_images_whose_table_is_gone_are_missed(copy: Path) -> None:
    (copy / "generated" / "samples.parquet").unlink()
    missed = last_error(run("evaluate", "--json", "--run", copy, code=12))
    assert "samples.parquet is gone" in missed["message"] and "dcdm generate" in missed["hint"]
    run("generate", "--run", copy)
    assert (copy / "generated" / "samples.parquet").is_file()


def test_source_images_that_changed_places_are_not_learned_from(scored: Path, photos: Path) -> None:
    first, second = (next((photos / "train" / name).iterdir()) for name in ("one", "test tube"))
    contents, times = (first.read_bytes(), second.read_bytes()), (first.stat().st_mtime_ns, second.stat().st_mtime_ns)
    try:
        first.write_bytes(contents[1])
        second.write_bytes(contents[0])
        refused = last_error(run("finetune", "--json", "--run", scored, code=12))
    finally:
        for file, content, time in zip((first, second), contents, times, strict=True):
            file.write_bytes(content)
            os.utime(file, ns=(time, time))
    assert "does not show what it showed" in refused["message"] and "dcdm score" in refused["hint"]


@pytest.mark.parametrize("split", ["test", "judge"])
def test_images_to_test_on_that_changed_places_are_not_tested_on(copy: Path, photos: Path, split: str) -> None:
    first, second = (next((photos / split / name).iterdir()) for name in ("one", "test tube"))
    kept = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in (first, second)}
    try:
        os.utime(first, ns=(1, 1))
        said = run("evaluate", "--run", copy).stderr
        assert "nothing changed" in said and "has changed since" in said, "the same pictures"
        assert "has changed since" in run("finetune", "--run", copy).stderr
        first.write_bytes(kept[second][0])
        second.write_bytes(kept[first][0])
        for words in (["evaluate"], ["evaluate", "check"], ["evaluate", "--force"]):
            refused = last_error(run(*words, "--json", "--run", copy, code=12))
            assert f"{first} does not show what it showed" in refused["message"] and str(second) in refused["message"]
        for file in kept:  # and where neither size nor time tell
            _as_it_was(file, b"\0" * len(kept[file][0]), kept[file][1])
        assert str(first) in last_error(run("evaluate", "--force", "--json", "--run", copy, code=12))["message"]
    finally:
        for file, was in kept.items():
            _as_it_was(file, *was)


def test_a_damaged_judge_is_trained_again_by_the_command_that_check_names(copy: Path) -> None:
    flip(copy / "evaluation" / "judge" / "model.safetensors")
    (found,) = findings(run("check", "--json", "--run", copy, code=12), "damaged")
    assert found.startswith("judge: ")
    assert "what was measured with it is made again" in run("evaluate", "--run", copy).stderr
    run("check", "--run", copy)


def _as_it_was(file: Path, content: bytes, time: int) -> None:
    file.write_bytes(content)
    os.utime(file, ns=(time, time))


def test_a_ledger_that_somebody_changed_is_a_finding_and_measured_again(copy: Path) -> None:
    ledger = copy / "evaluation" / "downstream.jsonl"
    before = sorted(json.loads(line)["accuracy"] for line in ledger.read_text().splitlines())
    lines = ledger.read_text().splitlines()
    forged = json.dumps(json.loads(lines[0]) | {"accuracy": 0.999})
    ledger.write_text("\n".join([forged, *lines[1:]]) + "\n")
    assert "(line 1)" in findings(run("check", "--json", "--run", copy, code=12), "damaged")[0]
    said = run("evaluate", "--force", "--run", copy).stderr
    assert f"{ledger} has rows that do not say what was written (line 1)" in said
    assert sorted(json.loads(line)["accuracy"] for line in ledger.read_text().splitlines()) == before
    ledger.write_text("\n".join([forged, *lines[1:]]) + "\n")
    assert len(findings(run("check", "--repair", "--json", "--run", copy), "repaired")) == 1
    assert ledger.read_text().splitlines() == lines[1:]


def test_captions_and_sources_that_changed_make_stale_and_are_said(copy: Path, photos: Path) -> None:
    run("caption", "--template", "a drawing of the {class}", "--run", copy)
    said = run("check", "--json", "--run", copy, code=3)
    assert "generate: caption was made again since" in findings(said, "stale")
    generated = run("generate", "--run", copy, code=12)
    assert f"the adapter is stale (caption was made again since): dcdm finetune --run {copy} " in generated.stderr
    file = next(photos.rglob("*.png"))
    before = file.stat()
    try:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
        assert any(
            "has changed since" in text for text in findings(run("check", "--json", "--run", copy, code=3), "stale")
        )
    finally:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_other_images_do_not_replace_what_took_long(copy: Path, photos: Path) -> None:
    record = copy / "records" / "finetune.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"seconds": 7200.0}))
    refused = last_error(run("score", photos / "train", "--json", "--run", copy, code=12))
    assert "while the run is about" in refused["message"] and "finetune took 2 h" in refused["message"]
    assert "--force" in refused["hint"]
    run("check", "--run", copy)


def test_a_figure_that_is_gone_is_said_and_costs_nothing(copy: Path) -> None:
    record = copy / "records" / "finetune.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"seconds": 7200.0}))
    before = record.read_bytes()
    (copy / "figures" / "loss.png").unlink()
    assert any("loss.png is gone" in text for text in findings(run("check", "--json", "--run", copy), "missing"))
    assert "nothing changed" in run("finetune", "--run", copy).stderr
    refused = last_error(run("finetune", "--steps", "3", "--json", "--run", copy, code=12))
    assert "finetune took 2 h" in refused["message"] and record.read_bytes() == before


def test_scores_that_took_long_are_not_replaced_for_another_seed(copy: Path, photos: Path) -> None:
    record = copy / "records" / "score.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"seconds": 7200.0}))
    before = (copy / "samples.parquet").read_bytes()
    refused = last_error(run("score", photos, "--set", "score.seed=5", "--json", "--run", copy, code=12))
    assert "score took 2 h" in refused["message"] and "--force" in refused["hint"]
    assert (copy / "samples.parquet").read_bytes() == before
