"""What a file was, what became of it, and which stages that makes stale or damaged."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dcdm_cli.errors import MismatchError
from dcdm_cli.model.adapter import CONFIG_FILE
from dcdm_cli.model.conditioning import ENCODER_FILE
from dcdm_cli.model.lora import LORA_FILE
from dcdm_cli.run.seals import change, change_beside, seal, seal_all, seal_beside
from dcdm_cli.run.store import ADAPTER_WEIGHTS, Outcome, RunFolder, Stage

LORA = "adapter/pytorch_lora_weights.safetensors"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """score writes samples.parquet, caption rewrites it, fine-tuning reads it and writes weights."""
    folder = RunFolder(tmp_path / "run")
    folder.create()
    folder.run(SCORE, writer(folder, folder.samples, "scored"))
    folder.run(caption(folder), writer(folder, folder.samples, "captioned", caption=True))
    folder.run(finetune(folder), writer(folder, folder.path / LORA, "weights"))
    return folder


SCORE = Stage("score", {}, {})


def caption(run: RunFolder) -> Stage:
    return Stage("caption", {}, {"score": run.require("score").id}, reads=(run.samples,))


def finetune(run: RunFolder) -> Stage:
    return Stage("finetune", {}, {"score": run.require("score").id}, reads=(run.samples,))


def writer(run: RunFolder, file: Path, content: str, *, caption: bool = False) -> Callable[[], Outcome]:
    def work() -> Outcome:
        file.parent.mkdir(exist_ok=True)
        if caption:
            run.forget("caption", replaces=file)
        file.write_text(content)
        return Outcome([file], content)

    return work


def spoil(file: Path) -> None:
    """One bit, and neither size nor time."""
    stat, content = file.stat(), bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_the_names_of_the_weights_are_those_of_the_model() -> None:
    assert ADAPTER_WEIGHTS == (LORA_FILE, ENCODER_FILE, CONFIG_FILE)


def test_a_file_that_was_only_touched_or_copied_is_the_same(run: RunFolder, tmp_path: Path) -> None:
    os.utime(run.samples)
    assert all(run.is_fresh(stage) for stage in (SCORE, caption(run), finetune(run)))
    shutil.copytree(run.path, tmp_path / "copy", copy_function=shutil.copy)  # with new times
    copied = RunFolder(tmp_path / "copy")
    assert all(copied.is_fresh(stage) for stage in (SCORE, caption(copied), finetune(copied)))


def test_weights_are_compared_by_content_whatever_their_time(run: RunFolder) -> None:
    spoil(run.path / LORA)
    assert run.is_fresh(finetune(run)) is None
    assert [*run.changes(run.require("finetune"))] == [(LORA, "has other content than it had")]


def test_other_files_are_believed_while_size_and_time_are_the_same(run: RunFolder) -> None:
    spoil(run.samples)
    assert run.is_fresh(finetune(run))
    os.utime(run.samples)
    assert run.is_fresh(finetune(run)) is None


def test_a_stage_does_not_read_what_no_stage_left(run: RunFolder) -> None:
    run.samples.write_text("xxxxxxxxx")
    for stage in (caption(run), finetune(run)):
        with pytest.raises(MismatchError, match=r"samples\.parquet is damaged: it has other content") as caught:
            run.run(stage, lambda: Outcome([], ""))
        assert f"dcdm score --force --run {run.path}" in caught.value.hint
    assert run.is_fresh(SCORE) is None, "or the remedy would be skipped"


def test_a_stage_that_was_killed_between_file_and_record_has_damaged_nothing(run: RunFolder) -> None:
    def killed() -> Outcome:
        writer(run, run.samples, "captioned otherwise", caption=True)()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.run(caption(run), killed, force=True)
    assert run.is_fresh(SCORE) and run.is_fresh(caption(run)) is None
    run.run(caption(run), writer(run, run.samples, "captioned otherwise", caption=True))
    assert run.is_fresh(SCORE) and run.is_fresh(caption(run)) and run.is_fresh(finetune(run)) is None
    assert not list((run.path / "records").glob(".*"))


def test_captions_that_are_gone_again_are_written_again(run: RunFolder) -> None:
    run.samples.write_text("scored")
    assert run.is_fresh(SCORE) and run.is_fresh(caption(run)) is None
    run.run(caption(run), writer(run, run.samples, "captioned", caption=True))
    assert run.is_fresh(finetune(run))


def test_a_record_that_is_gone_makes_nobody_elses_file_damaged(run: RunFolder) -> None:
    """Who read the table after captioning says that captioning left it like that."""
    made = finetune(run)
    run.run(replace(made, inputs={**made.inputs, "caption": run.require("caption").id}), lambda: Outcome([], ""))
    (run.path / "records" / "caption.json").unlink()
    assert [*run.changes(run.require("score"))] == []
    run.run(caption(run), writer(run, run.samples, "captioned", caption=True))
    (run.path / "records" / "caption.json").unlink()
    run.samples.write_text("by somebody")
    assert [name for name, _ in run.changes(run.require("score"))] == ["samples.parquet"]
    with pytest.raises(MismatchError, match=r"samples\.parquet is damaged"):
        run.run(caption(run), lambda: Outcome([], ""))


def test_of_a_record_that_is_gone_only_what_fits_the_others_is_believed(run: RunFolder) -> None:
    made, captioned = finetune(run), run.samples.read_text()
    run.run(replace(made, inputs={**made.inputs, "caption": run.require("caption").id}), lambda: Outcome([], ""))
    (run.path / "records" / "caption.json").unlink()
    run.run(Stage("score", {"steps": 2}, {}), writer(run, run.samples, "scored otherwise"))
    run.samples.write_text(captioned)
    assert [name for name, _ in run.changes(run.require("score"))] == ["samples.parquet"]


def test_captions_that_were_written_twice_leave_scoring_fresh(run: RunFolder) -> None:
    run.run(caption(run), writer(run, run.samples, "again", caption=True), force=True)
    assert run.is_fresh(SCORE) and run.is_fresh(caption(run))


def test_records_from_before_files_were_recorded_count_as_they_did(run: RunFolder) -> None:
    record = run.require("finetune")
    spoil(run.path / LORA)
    assert [*run.changes(replace(record, read={}, wrote={}))] == []


def test_a_base_model_of_ones_own_is_what_fine_tuning_read(run: RunFolder, tmp_path: Path) -> None:
    base = tmp_path / "base.safetensors"
    base.write_text("base")
    train = replace(finetune(run), config={"base": "it's mine"}, base=(base, tmp_path / "none.json"))
    run.run(train, writer(run, run.path / LORA, "weights"))
    assert run.base_files() == (base,) and run.is_fresh(train)
    generate = Stage("generate", {}, {"finetune": run.require("finetune").id}, reads=(run.path / LORA, base))
    assert {LORA, str(base)} == {*run.run(generate, lambda: Outcome([], ""))[0].read}
    os.utime(base)
    assert run.is_fresh(train) and run.is_fresh(generate), "touched, and the same"
    spoil(base)
    os.utime(base, ns=(1, 1))
    assert run.is_fresh(train) is None and run.is_fresh(generate) is None
    with pytest.raises(MismatchError, match=r"base\.safetensors has other content than it had") as caught:
        run.run(generate, lambda: Outcome([], ""), force=True)
    assert "dcdm finetune --base 'it'\"'\"'s mine' --run" in caught.value.hint
    run.run(train, writer(run, run.path / LORA, "weights"))
    run.run(generate, lambda: Outcome([], ""))
    base.unlink()
    with pytest.raises(MismatchError, match=r"base\.safetensors is gone"):
        run.sealed((base,))


def test_a_base_model_is_believed_while_size_and_time_are_the_same(run: RunFolder, tmp_path: Path) -> None:
    """Gigabytes are not read for every command."""
    base = tmp_path / "base.safetensors"
    base.write_text("base")
    train = replace(finetune(run), base=(base,))
    run.run(train, writer(run, run.path / LORA, "weights"))
    spoil(base)
    assert run.is_fresh(train)


def test_what_is_for_people_and_temporary_files_are_not_sealed(tmp_path: Path) -> None:
    for name in ("a.json", "README.md", "figures/loss.png", ".a.1.part", ".b.part/c.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    assert set(seal_all(tmp_path, [tmp_path])) == {"a.json"}


def test_a_cached_file_has_its_seal_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "latents-1.npy"
    assert change_beside(file) == "is gone"
    file.write_bytes(b"abc")
    assert change_beside(file) == "", "one from before there were seals is believed, and sealed"
    file.write_bytes(b"abd")
    os.utime(file, ns=(1, 1))
    assert change_beside(file) == "has other content than it had"
    seal_beside(file)
    assert change_beside(file) == ""
    file.with_suffix(".seal").write_text("{")
    assert change_beside(file) == "has a damaged seal"


def test_a_change_is_told_by_its_kind(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text("1")
    was = seal(file)
    file.write_text("12")
    assert change(file, was) == "has 2 bytes and had 1"
    file.unlink()
    assert change(file, was) == "is gone"
