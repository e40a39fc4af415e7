"""What a page tells people to do, from measured numbers alone."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dcdm_cli.reports.advice import Advice, about_run, advice, advice_lines

DATA = Path(__file__).parent / "data"  # documents of experiments that were run (CIFAR-10, 1,000 images)


def document(name: str) -> dict[str, Any]:
    return json.loads((DATA / f"{name}.json").read_text("utf-8"))


def pair(verdict: str, gain: float = 0.01, **changes: Any) -> dict[str, Any]:
    made = {"arm": "dcdm", "against": "real", "difference_mean": gain, "difference_ci95": [gain - 0.005, gain + 0.005]}
    return {**made, "seeds": 3, "verdict": verdict, "seeds_needed": 12, **changes}


def go_on(metrics: dict[str, Any]) -> tuple[str, str]:
    found = advice(metrics)[0]
    return found.answer, found.command


def test_without_numbers_there_is_no_advice() -> None:
    assert advice({"schema": 1}) == []


@pytest.mark.parametrize(
    ("verdict", "answer", "command"),
    [
        ("better", "Go on: the images help", "dcdm evaluate experiment ratio-sweep"),
        ("points to better", "Go on, with more seeds", "dcdm evaluate --seeds 12"),
        ("cannot tell", "Cannot be told yet", "dcdm evaluate --seeds 12"),
        ("points to worse", "Stop", "dcdm evaluate experiment mean-sweep"),
        ("worse", "Stop", "dcdm evaluate experiment mean-sweep"),
    ],
)
def test_go_on_or_stop_follows_the_comparison(metrics: dict, verdict: str, answer: str, command: str) -> None:
    metrics["quality"]["leakage"]["level"] = "ok"
    metrics["downstream"]["paired"] = [pair(verdict)]
    found = go_on(metrics)
    assert found[0].startswith(answer) and found[1] == command


def test_a_difference_that_needs_hundreds_of_seeds_is_not_chased(metrics: dict) -> None:
    metrics["quality"]["leakage"]["level"] = "ok"
    metrics["downstream"]["paired"] = [pair("cannot tell", seeds_needed=565)]
    found = advice(metrics)[0]
    assert found.answer.startswith("Stop, or change something") and "565 seeds" in found.why and found.command == ""


def test_one_seed_asks_for_the_fewest_that_can_tell(metrics: dict) -> None:
    metrics["quality"]["leakage"]["level"] = "ok"
    metrics["downstream"]["paired"] = [pair("cannot tell", seeds=1, seeds_needed=None)]
    found = advice(metrics)[0]
    assert (found.answer, found.command) == ("Cannot be told yet", "dcdm evaluate --seeds 6")
    assert "6 seeds are the fewest that can tell" in found.why
    metrics["downstream"]["paired"] = [pair("cannot tell", seeds=8, seeds_needed=None)]
    assert "not expected to decide" in advice(metrics)[0].why


def test_leaks_and_lost_labels_stop_whatever_was_gained(metrics: dict) -> None:
    metrics["downstream"]["paired"] = [pair("better")]
    assert go_on(metrics) == ("Stop: held-out images leaked", "dcdm evaluate filter")
    metrics["quality"]["leakage"]["level"] = "ok"
    metrics["quality"]["label_agreement"] = 0.5
    assert go_on(metrics) == ("Stop: labels are lost", "dcdm finetune --strength auto --force")
    found = advice(metrics, strength_chosen=True)[0]
    assert "measured already" in found.why and found.command == ""


def test_labels_are_lost_only_where_the_judge_sees_them_in_real_images(metrics: dict) -> None:
    metrics["quality"] |= {"label_agreement": 0.5, "leakage": {**metrics["quality"]["leakage"], "level": "ok"}}
    metrics["downstream"]["paired"] = [pair("better")]
    metrics["competence"] = {"judge": {"accuracy": 0.9, "verdict": "good"}}
    assert advice(metrics)[0].why == (
        "The judge sees the label in 50.0 % of the images, and in 90.0 % of real ones that it did not learn from. "
        "This replaces the adapter; a run folder of its own (--run) keeps it."
    )
    metrics["competence"]["judge"]["accuracy"] = 0.6
    assert go_on(metrics)[0] == "Go on: the images help"


def test_a_judge_that_sees_too_little_tells_no_difficulty(metrics: dict) -> None:
    metrics["adherence"]["labels_hold_until"] = {"generated": None, "real": None}
    found = advice(metrics)[1]
    assert found.answer.startswith("Cannot be told") and "--judge-fraction" in found.why


def test_without_a_sweep_labels_and_reach_bound_the_difficulty(metrics: dict) -> None:
    metrics["adherence"]["labels_hold_until"]["generated"] = 0.7
    found = advice(metrics)[1]
    assert found.answer == "Up to 0.70" and "was not measured" in found.why
    assert found.command == "dcdm generate --difficulty normal:0.50,0.1 --difficulty-cap 0.70"
    metrics["adherence"]["labels_hold_until"]["generated"] = None
    assert advice(metrics)[1].answer.startswith("None yet")


def test_a_sweep_that_shows_nothing_says_so_and_one_that_does_names_the_best(metrics: dict) -> None:
    sweep = document("mean-sweep")["document"]
    swept = [arm["name"] for arm in sweep["cells"][0]["arms"] if arm["difficulty"]]
    for given in sweep["cells"][0]["paired"]:
        given["verdict"] = "cannot tell"
    found = advice(metrics, {"mean-sweep": sweep})[1]
    assert found.answer == "It is not the difficulty" and f"None of {len(swept)} tried" in found.why
    best = next(p for p in sweep["cells"][0]["paired"] if p["arm"] == swept[1] and p["against"] == "real")
    best |= {"difference_mean": 0.2, "verdict": "better"}
    found = advice(metrics, {"mean-sweep": sweep})[1]
    arm = next(arm for arm in sweep["cells"][0]["arms"] if arm["name"] == swept[1])
    assert found.answer == swept[1] and found.command == f"dcdm generate --difficulty {arm['difficulty']}"


def test_the_fewest_images_whose_gain_is_as_good_as_the_largest(metrics: dict) -> None:
    cells = [
        {"ratio": ratio, "paired": [pair("better", gain)]} for ratio, gain in ((0.1, 0.002), (0.5, 0.018), (2, 0.02))
    ]
    found = advice(metrics, {"ratio-sweep": {"cells": cells}})[2]
    assert found.answer == "0.5 per real image" and found.command == "dcdm generate --ratio 0.5"
    assert "2 per real image gain +2.0" in found.why
    for cell in cells:
        cell["paired"][0]["verdict"] = "cannot tell"
    found = advice(metrics, {"ratio-sweep": {"cells": cells}})[2]
    assert found.answer == "No number was shown to help" and "0.1, 0.5, 2" in found.why and found.command == ""


def test_a_measured_run_gets_an_answer_to_each_question(metrics: dict) -> None:
    found = advice(metrics, {"ratio-sweep": document("ratio-sweep")["document"]})
    assert [item.question for item in found] == ["Go on or stop?", "Which difficulty?", "How many images?"]
    assert all(item.answer and item.why for item in found)


def test_commands_name_the_run_and_stand_on_lines_of_their_own() -> None:
    found = about_run(
        [Advice("Go on?", "Yes", "It helps.", "dcdm generate"), Advice("More?", "No", "Why.")], " --run x y"
    )
    named = about_run([Advice("Which?", "This", "Why.", "dcdm generate")] * 2, " --run x", ["", "next-1"])
    assert [one.command for one in named] == [f"dcdm generate --name next-{n} --run x" for n in (2, 3)]
    assert [one.command for one in found] == ["dcdm generate --run x y", ""]
    console = Console(width=80, file=io.StringIO())
    with console.capture() as said:
        for line in advice_lines(found):
            console.print(line)
    assert [line.rstrip() for line in said.get().splitlines()] == [
        "Go on? Yes. It helps.",
        "  dcdm generate --run x y",
        "More? No. Why.",
    ]
