"""The preset `small` says what it is, and what the same run takes at full size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import dcdm_cli
from dcdm_cli.console import Console
from dcdm_cli.run.resolution import resolve
from dcdm_cli.run.session import Session
from dcdm_cli.run.store import RunFolder
from dcdm_cli.stages import first_look

RESULTS = Path(dcdm_cli.__file__).parents[1] / "benchmarks" / "results"


def result(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))


def test_what_full_size_takes_is_what_was_measured() -> None:
    step = next(row for row in result("bench_sd15_finetune")["table"]
                if row["batch"] == 8 and row["gradient checkpointing"])  # fmt: skip
    images = next(row for row in result("bench_sd15")["table"] if row["rival"] == "ours eager" and row["batch"] == 8)
    assert pytest.approx(step["seconds per step"], abs=5e-4) == first_look.STEP_S
    assert step["peak GiB"] == first_look.STEP_GIB, "rounded where it is told, as the documents round it"
    assert pytest.approx(1 / images["images/s at 20 steps"] / 20 / 2, abs=5e-6) == first_look.CALL_S
    for name in ("bench_sd15_finetune", "bench_sd15"):
        assert first_look.GPU.removeprefix("an ") in result(name)["hardware"]


def test_the_preset_it_is_compared_with_is_the_one_that_was_measured() -> None:
    config = resolve(flags={"preset": first_look.FULL_SIZE}).config
    assert (config.finetune.batch_size, config.finetune.gradient_checkpointing) == (8, True)
    assert first_look.image_seconds(config) == pytest.approx(20 * 3 * first_look.CALL_S)  # two scales: three calls


def opened(folder: Path, preset: str) -> Session:
    given = {"preset": preset}
    return Session(RunFolder(folder), resolve(flags=given), Console(quiet=True), False, False, given)


def test_small_says_what_to_expect_and_others_say_nothing(tmp_path: Path) -> None:
    small, other = opened(tmp_path, "small"), opened(tmp_path, "sd15")
    said = " ".join(first_look.first_look_sentences(small.config))
    assert "first look" in said and "32 px" in said and "CIFAR-10" in said
    advice = first_look.full_size_advice(small, 400)[0]
    assert (
        "400 images" in advice.why
        and advice.command.endswith(f"--preset sd15 --run {tmp_path}-sd15")
        and "GPU" in advice.answer
        and f"in {result('bench_sd15_finetune')['table'][1]['peak GiB']:.1f} GiB" in advice.why
    )
    assert first_look.first_look_sentences(other.config) == [] == first_look.full_size_advice(other, 400)
