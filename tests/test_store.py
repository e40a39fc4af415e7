"""Records, staleness, the lock, and the starter file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dcdm_cli.errors import LockedError, MismatchError, NotFoundError, StorageError
from dcdm_cli.run.resolution import resolve
from dcdm_cli.run.session import chosen_strength, recorded_layers, write_starter_config
from dcdm_cli.run.store import Outcome, RunFolder, Stage, command_of

STAGE = Stage("score", {"folds": 5}, {"source": "abc"})


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    return folder


class Work:
    """Writes its output and counts how often it was asked to."""

    def __init__(self, run: RunFolder, content: str = "x") -> None:
        self.run, self.content, self.times = run, content, 0

    def __call__(self) -> Outcome:
        self.times += 1
        self.run.samples.write_text(self.content)
        return Outcome([self.run.samples], self.content, {"images": 3})


def test_an_unchanged_stage_is_skipped(run: RunFolder) -> None:
    work = Work(run)
    first, done = run.run(STAGE, work)
    second, again = run.run(STAGE, work)
    assert (done, again, work.times) == (True, False, 1)
    assert first == second == run.require("score")
    assert first.results == {"images": 3} and first.outputs == ["samples.parquet"]
    assert first.versions["torch"] and first.peak_memory_mib > 0


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="getrusage is all there is")
def test_the_memory_of_whoever_started_us_is_not_ours() -> None:
    child = "from dcdm_cli.run.memory import resident_peak_mib; print(resident_peak_mib())"
    parent = (
        f"import subprocess, sys; held = b'x' * 2**29; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    )
    said = subprocess.run([sys.executable, "-c", parent], check=True, capture_output=True, text=True).stdout
    assert 10 < int(said) < 400


@pytest.mark.parametrize(
    "changed", [Stage("score", {"folds": 4}, {"source": "abc"}), Stage("score", {"folds": 5}, {"source": "abd"})]
)
def test_other_settings_or_inputs_run_it_again(run: RunFolder, changed: Stage) -> None:
    work = Work(run)
    run.run(STAGE, work)
    assert run.is_fresh(changed) is None
    run.run(changed, work)
    assert work.times == 2


def test_a_missing_output_or_force_run_it_again(run: RunFolder) -> None:
    work = Work(run)
    run.run(STAGE, work)
    run.samples.unlink()
    run.run(STAGE, work)
    run.run(STAGE, work, force=True)
    assert work.times == 3


def test_a_stage_that_fails_leaves_no_record(run: RunFolder) -> None:
    def fail() -> Outcome:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        run.run(STAGE, fail)
    assert run.record("score") is None


def test_later_stages_depend_on_what_came_out(run: RunFolder) -> None:
    one, _ = run.run(STAGE, Work(run, "one"))
    same, _ = run.run(STAGE, Work(run, "one"), force=True)
    other, _ = run.run(STAGE, Work(run, "two"), force=True)
    assert one.id == same.id != other.id


def test_a_run_folder_can_move(run: RunFolder) -> None:
    run.run(STAGE, Work(run))
    moved = RunFolder(run.path.rename(run.path.with_name("moved")))
    assert moved.is_fresh(STAGE) is not None


def test_a_stage_that_was_forgotten_is_named(run: RunFolder) -> None:
    with pytest.raises(NotFoundError, match="no finished score stage") as caught:
        run.require("score")
    assert f"dcdm score FOLDER --run {run.path}" in caught.value.hint


def test_a_damaged_record_names_the_file_and_the_remedy(run: RunFolder) -> None:
    run.run(STAGE, Work(run))
    file = run.path / "records" / "score.json"
    file.write_text(file.read_text()[:50])
    with pytest.raises(MismatchError, match=r"score\.json is damaged") as caught:
        run.record("score")
    assert "dcdm score --force" in caught.value.hint


def test_only_one_process_writes_and_the_holder_is_named(run: RunFolder) -> None:
    code = (
        "import sys; from pathlib import Path; from dcdm_cli.run.store import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).lock('dcdm caption'): print('held', flush=True); sys.stdin.readline()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with other:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(LockedError, match=f"dcdm caption \\(process {other.pid} ") as caught,
            run.lock("dcdm score"),
        ):
            pass
        assert "--run" in caught.value.hint
        other.stdin.write("\n")
    with run.lock("dcdm score"):
        assert json.loads((run.path / ".lock.json").read_text())["pid"] == os.getpid()


def test_the_lock_of_a_killed_process_is_free(run: RunFolder) -> None:
    code = "import os, sys; from pathlib import Path; from dcdm_cli.run.store import RunFolder\n"
    code += "lock = RunFolder(Path(sys.argv[1])).lock('x'); lock.__enter__(); os._exit(9)"
    subprocess.run([sys.executable, "-c", code, str(run.path)], check=False)
    with run.lock("dcdm score"):
        pass


def test_a_command_of_several_stages_holds_one_lock_until_the_last_has_ended(run: RunFolder) -> None:
    with run.lock("dcdm finetune"):
        with run.lock("dcdm finetune (calibration)"):
            pass
        code = "import sys; from pathlib import Path; from dcdm_cli.run.store import RunFolder\n"
        code += "with RunFolder(Path(sys.argv[1])).lock('other'): pass"
        other = subprocess.run([sys.executable, "-c", code, str(run.path)], check=False, capture_output=True, text=True)
        assert "LockedError" in other.stderr and "dcdm finetune" in other.stderr
    with RunFolder(run.path).lock("dcdm score"):
        pass


def test_what_killed_writers_left_is_swept_when_the_next_one_comes(run: RunFolder) -> None:
    places = ("", "plans/", "evaluation/adapters/x/", "records/", "checkpoints/adapter/", "images/ab/")
    for name in (f"{place}.a.1.ff.part" for place in places):
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_text("half")
    for name in (".adapter.1.ff.part", ".adapter.1.ff.part.old"):
        (run.path / name / "deep").mkdir(parents=True)
    keep = [run.path / "mine.part", run.path / "generated" / ".x.1.ff.part"]  # not ours; the journal's own
    for file in keep:
        file.parent.mkdir(exist_ok=True)
        file.write_text("x")
    with run.lock("dcdm score"):
        assert sorted(p for p in run.path.rglob("*") if ".part" in p.name) == sorted(keep)


def test_outputs_about_to_change_are_not_taken_for_the_recorded_ones(run: RunFolder) -> None:
    run.run(STAGE, Work(run))
    run.forget("score", "never-made")
    assert run.record("score") is None
    with pytest.raises(NotFoundError):
        run.require("score")


def test_a_folder_comes_only_after_the_stage_before(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no finished score stage"):
        RunFolder(tmp_path / "brids").create(after="score")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write to the run folder") as caught:
        RunFolder(tmp_path / "file" / "run").create()
    assert "--run" in caught.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o500)
    with pytest.raises(StorageError, match="cannot write to the run folder"):
        RunFolder(tmp_path / "run").create()


def test_the_starter_file_is_written_once_and_read_back(run: RunFolder) -> None:
    told = {"data.source": 'a "b"', "preset": "digits", "finetune.snr_gamma": None, "score.model_args": {"depth": [1]}}
    write_starter_config(run, {**told, "seed": 3})
    write_starter_config(run, {"preset": "sd15", "data.source": "other"})
    resolved = resolve(run_file=run.config_file)
    config = resolved.config
    assert (config.preset, config.data.source, config.seed) == ("digits", 'a "b"', 3)
    assert (config.finetune.snr_gamma, config.score.model_args) == (None, {"depth": [1]})
    assert resolved.origins["data.source"] == str(run.config_file)


def test_of_a_choice_of_strength_nothing_but_scales_is_taken(run: RunFolder) -> None:
    """A received record must not say, of what generation does, more than fine-tuning can have chosen."""
    settings = {"lora_scale": 0.5, "text_guidance": 1.5, "difficulty_guidance": 2.0}
    run.run(Stage("finetune", {}, {}), lambda: Outcome([], "", {"strength": {"settings": settings, "chosen": 0}}))
    assert chosen_strength(run.require("finetune")) == settings
    file = run.path / "records" / "finetune.json"
    written = json.loads(file.read_text())
    for said in ({"trust_engine": True}, {"backend": "tensorrt"}, {"lora_scale": "much"}, {"lora_scale": float("inf")}):
        written["results"]["strength"]["settings"] = settings | said
        file.write_text(json.dumps(written))
        with pytest.raises(MismatchError, match="is damaged"):
            run.require("finetune")


@pytest.mark.parametrize(
    ("record", "command"),
    [
        ("score", "score"), ("calibrate", "finetune"), ("judge", "evaluate"), ("filter", "evaluate filter"),
        ("generate-hard-2", "generate --name hard-2"), ("evaluate-artefacts-hard", "evaluate check --name hard"),
        ("evaluate-mean-sweep", "evaluate experiment mean-sweep"), ("prompts", "caption"),
        ("export-distilled", "export --guidance distilled"),
    ],
)  # fmt: skip
def test_a_damaged_record_names_the_command_that_makes_it_again(run: RunFolder, record: str, command: str) -> None:
    assert command_of(record) == command
    (run.path / "records").mkdir(exist_ok=True)
    (run.path / "records" / f"{record}.json").write_text("{")
    fault = run.records_or_faults()[record]
    assert isinstance(fault, MismatchError) and f"dcdm {command} --force" in fault.hint and run.records() == {}


@pytest.mark.parametrize("said", ["../../x", "caption", "", "generate"])
def test_a_record_that_says_it_is_of_another_stage_is_damaged(run: RunFolder, said: str) -> None:
    run.run(STAGE, Work(run))
    file = run.path / "records" / "score.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"stage": said}))
    with pytest.raises(MismatchError, match=r"score\.json is damaged: it says that it is of the stage") as caught:
        run.record("score")
    assert "dcdm score --force" in caught.value.hint and run.records() == {}


@pytest.mark.parametrize(
    ("stage", "file", "of"),
    [
        ("generate", "generate", True), ("generate", "generate-hard-2", True), ("generate", "generate-../x", False),
        ("generate", "generated", False), ("calibrate", "calibrate-distilled", True), ("score", "score-hard", False),
        ("score", "score-distilled", False), ("filter-hard", "filter-hard", True),
    ],
)  # fmt: skip
def test_files_of_a_record(run: RunFolder, stage: str, file: str, of: bool) -> None:
    record, _ = run.run(Stage(stage, {}, {}), lambda: Outcome([], ""))
    assert record.names(file) is of


OUTWARD = (
    "generated", ".lock", "records/score.json", "export/denoiser.onnx", "sets/hard/shards",
    "sets/hard/train/bird/00.png", "evaluation/judge/fold-0/cache", "distilled/adapter/config.json", "checkpoints",
    ".generated.old", ".probe.1.part",
)  # fmt: skip


@pytest.mark.parametrize("place", OUTWARD)
def test_links_that_lead_out_of_a_run_folder_are_refused_before_anything_is_written(run: RunFolder, place: str) -> None:
    mine = run.path.parent / "mine"
    mine.write_text("precious")
    link = run.path / place
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(mine)
    for use in (run.create, run.lock("dcdm score").__enter__):
        with pytest.raises(MismatchError, match="leads out of") as caught:
            use()
        assert str(link) in caught.value.message and "--run" in caught.value.hint
    assert mine.read_text() == "precious"
    link.unlink()
    (run.path / "real").mkdir()
    link.symlink_to(run.path / "real")  # stays inside, and what is removed at our place would be something else
    for use in (run.create, run.lock("dcdm score").__enter__):
        with pytest.raises(MismatchError, match="is a link") as caught:
            use()
        assert str(link) in caught.value.message and "--run" in caught.value.hint
    link.unlink()
    (run.path / "mine").symlink_to(run.path / "real")  # no place of ours
    (run.path.parent / "settings.toml").write_text("")
    run.config_file.symlink_to(run.path.parent / "settings.toml")  # is only read
    run.create()


def test_pipes_are_refused_before_anything_is_opened(run: RunFolder) -> None:
    for place in (run.samples, run.adapter / "weights.safetensors", run.holder_file):
        place.parent.mkdir(exist_ok=True)
        os.mkfifo(place)
        with pytest.raises(MismatchError, match=f"{place} is neither file nor folder"):
            run.create()
        place.unlink()
    os.mkfifo(run.path / "mine")
    run.create()


@pytest.mark.parametrize(
    ("part", "name", "says"),
    [("read", "../../etc/passwd", "names no file"), ("wrote", "adapter/../../x", "names no file"),
     ("read", "", "names no file"), ("wrote", "/etc/passwd", "lies outside")],
)  # fmt: skip
def test_a_record_names_no_file_outside(run: RunFolder, part: str, name: str, says: str) -> None:
    run.run(STAGE, Work(run))
    file = run.path / "records/score.json"
    document = json.loads(file.read_text())
    seal = {"size": 1, "mtime_ns": 2, "sha256": "0" * 32}
    file.write_text(json.dumps(document | {"read": {"/my/base.safetensors": seal}}))
    assert run.require("score").read  # the user's own base model
    file.write_text(json.dumps(document | {part: {name: seal}}))
    with pytest.raises(MismatchError, match=says) as caught:
        run.record("score")
    assert str(file) in caught.value.message and "dcdm score --force" in caught.value.hint


@pytest.mark.parametrize("change", [{"data": "x"}, {"score": [1]}, {"score": None}])
def test_a_section_of_a_record_that_is_no_table_is_the_records_fault(run: RunFolder, change: dict[str, Any]) -> None:
    run.run(Stage("score", {"data": {}, "score": {"folds": 5}}, {}), Work(run))
    assert recorded_layers(run, "caption")[0].values["score"] == {"folds": 5}
    file = run.path / "records/score.json"
    document = json.loads(file.read_text())
    file.write_text(json.dumps(document | {"config": document["config"] | change}))
    with pytest.raises(MismatchError, match=rf"score\.json is damaged: config\.{next(iter(change))} = .* is no table"):
        recorded_layers(run, "caption")
