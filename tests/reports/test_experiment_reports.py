"""Tables, sentences and figures of experiment documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dcdm_cli.difficulty.competence import competence_of
from dcdm_cli.reports import experiment_plots
from dcdm_cli.reports.experiment_tables import cell_name, experiment_sentences, experiment_tables

from .conftest import COST, HOSTILE


def arm(name: str, images: int, mean: float, **more: Any) -> dict[str, Any]:
    spread = {
        "accuracy": [mean - 0.01, mean + 0.01],
        "accuracy_mean": mean,
        "accuracy_ci95": [mean - 0.02, mean + 0.02],
    }
    return {"name": name, "synthetic_images": images, **spread, **more}


def pair(name: str, difference: float, verdict: str) -> dict[str, Any]:
    bounds = [difference - 0.01, difference + 0.01]
    return {
        "arm": name, "against": "real", "difference_mean": difference, "difference_ci95": bounds, "p_value": 0.02,
        "seeds": 8, "verdict": verdict, "seeds_needed": 20,
    }  # fmt: skip


def cell(ratio: float, shift: float = 0.0) -> dict[str, Any]:
    made = {
        "difficulty": "normal:0.5,0.1",
        "set_realised_mean": 0.42,
        "set_label_agreement": 0.9,
        "set_seconds": 3.0,
        "set_hours": 0.0008,
        "set_unit": "CPU-hours",
    }
    return {
        "classifier": "resnet10t", "classifier_name": "the run's own", "ratio": ratio, "steps": 300, "seeds": 8,
        "test_images": 997, "real_images": 200,
        "arms": [
            arm("real", 0, 0.95), arm("plain", int(200 * ratio), 0.94, **made),
            arm(HOSTILE, int(200 * ratio), 0.96 + shift, **made),
        ],
        "paired": [pair("plain", -0.01, "cannot tell"), pair(HOSTILE, 0.02 + shift, "better")],
    }  # fmt: skip


def document(ratios: tuple[float, ...] = (1.0,), **more: Any) -> dict[str, Any]:
    head = {"kind": "arms", "axis": "none", "experiment": "x", "about": "a", "tested_on": "test", "device": "cpu"}
    return {**head, "warnings": [], "cells": [cell(r, r / 100) for r in ratios], "crossings": {}, **more}


POINT = {"ratio": 1.0, "images": 200, "accuracy_mean": 0.94, "generation_seconds": 10.0}
CROSSING = {
    "control": POINT, "ours": {**POINT, "images": 40}, "image_share": 0.2, "cost_share": 0.25,
    "whole_share": 0.6,
    "comparison": pair("x", 0.001, "cannot tell"),
}  # fmt: skip


def test_an_arm_is_shown_with_what_came_out_of_it() -> None:
    arms, pairs = experiment_tables(document())
    assert "997 test images, 200 real training images" in arms.title and "8 seeds" in arms.title
    row = next(row for row in arms.rows if row[0] == "plain")
    assert row[1:5] == ("200", "N(0.5, 0.1)", "0.42", "90.0 %") and row[-1] == "3.0 s"
    assert pairs.rows[1][-2:] == ("better", "20")
    text = "\n".join(experiment_sentences(document()))
    assert "plain vs real: -1.0 points" in text and "cannot tell at 8 seeds; about 20 would" in text


def test_the_sensitive_measures_have_columns_and_tables_where_they_are_known() -> None:
    made = document()
    for row in made["cells"][0]["arms"]:
        row |= {"log_loss_mean": 0.1234, "hard_accuracy_mean": 0.875}
    made["cells"][0] |= {
        "hard_images": 498,
        "paired_log_loss": [pair("plain", -0.02, "better")],
        "paired_hard_accuracy": [pair("plain", 0.03, "better")],
    }
    _, beside, pairs, loss, hard = experiment_tables(made)
    assert beside.columns[1:] == ("log-loss", "harder half") and beside.rows[0][1:] == ("0.1234", "87.50 %")
    assert "less is better" in loss.title and loss.columns[1] == "nats"
    assert loss.rows[0][1:3] == ("-0.0200", "[-0.0300, -0.0100]")
    assert "498 harder test images" in hard.title and hard.rows[0][1] == "+3.00" and pairs.columns[1] == "points"
    assert len(experiment_tables(document())) == 2  # results from before they were measured


def test_what_the_classifiers_know_stands_beside_what_they_say() -> None:
    made = document((0.5, 1.0), competence={"scorer": competence_of(400, 0.67, 0.34, 0.5)})
    for cell in made["cells"]:
        cell["competence"] = competence_of(997, 0.36, 0.34, 0.5)
    known = experiment_tables(made)[-1]
    assert known.columns[:3] == ("classifier", "accuracy", "guessing")
    assert [row[:2] for row in known.rows] == [
        ("scorer", "67.0 %"), ("downstream: 50 % extra images", "36.0 %"), ("downstream: 100 % extra images", "36.0 %"),
    ]  # fmt: skip
    weak = [text for text in experiment_sentences(made) if "arms cannot be told apart by it" in text]
    assert len(weak) == 1 and "names 36.0 % of 997 images right" in weak[0]
    for cell in made["cells"]:  # knows something: what its seeds decide stands
        cell["competence"] = competence_of(997, 0.48, 0.1, 0.1)
    said = "\n".join(experiment_sentences(made))
    assert "cannot be told apart by it" not in said and "small differences between training sets may not show" in said
    steered = {**adherence_document(), "competence": {"judge": competence_of(60, 0.36, 0.34, 0.5)}, "cells": []}
    assert experiment_tables(steered)[-1].rows[0][0] == "judge"
    assert "whether images keep their label is not known" in experiment_sentences(steered)[-1]


def test_a_crossing_leads_and_one_that_is_not_reached_is_said() -> None:
    made = document((0.5, 1.0), crossings={"plain": CROSSING, "up": {**CROSSING, "ours": None, "comparison": None}})
    sentences = experiment_sentences(made)
    assert "ours reaches it with 40 (20 % of the images, 25 % of the generation time)" in sentences[0]
    assert "that is 60 % of the time plain takes" in sentences[1]
    assert "does not reach that at any ratio tried" in sentences[2]
    assert experiment_tables(made)[0].rows[1][3] == "never"
    assert cell_name(made, made["cells"][0]) == "50 % extra images"


def test_many_comparisons_are_summed_up_and_validation_is_no_result() -> None:
    made = document(tuple(i / 10 for i in range(1, 9)), tested_on="validation")
    sentences = experiment_sentences(made)
    assert "8 of 16 comparisons can be told apart" in sentences[-2] and "not a result" in sentences[-1]


def steered(bins: int = 4) -> dict[str, Any]:
    targets = [
        {"target": 0.2 * i, "realised_mean": 0.2 * i, "realised_std": 0.1, "label_agreement": 0.9, "n": 10}
        for i in range(bins)
    ]
    classes = [{"class": HOSTILE, "n": 4, "spearman": -0.2, "error": 0.1, "label_agreement": 0.5}]
    classes += [{"class": f"c{i}", "n": 4, "spearman": None, "error": 0.1, "label_agreement": 1.0} for i in range(30)]
    return {"n": 40, "spearman": 0.7, "mean_absolute_error": 0.0123, "targets": targets, "classes": classes}


def adherence_document() -> dict[str, Any]:
    curve = np.exp(-np.linspace(0, 5, 101)).tolist()
    densities = {"real": {"n": 5, "mean": 0.2, "curve": curve}, "dcdm": {"n": 5, "mean": 0.4, "curve": curve[::-1]}}
    densities["plain LoRA"] = {"n": 5, "mean": 0.1, "curve": None, "label_agreement": 1.0}
    both = {"uncalibrated": steered(), "calibrated": steered()}
    return {**document(), "kind": "adherence", "adherence": both, "densities": densities}


def test_adherence_says_before_and_after() -> None:
    made = adherence_document()
    tables = {table.title: table for table in experiment_tables(made)}
    assert any("before and after calibration" in title for title in tables)
    assert tables["Realised difficulty"].rows[2] == ("plain LoRA", "0.10", "100.0 %", "5")
    assert "0.012 to 0.012; the rank correlation from 0.70 to 0.70." in experiment_sentences(made)[0]
    made["adherence"]["calibrated"]["spearman"] = None
    assert "too few targets are in reach for a rank correlation" in experiment_sentences(made)[0]


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: experiment_plots.differences(path, document((0.5, 1.0)), "real"),
        lambda path: experiment_plots.difficulty_sweep(path, document()),
        lambda path: experiment_plots.ratio_sweep(path, document((0.1, 0.5, 1.0))),
        lambda path: experiment_plots.densities(path, adherence_document()),
        lambda path: experiment_plots.classes(path, steered()["classes"]),
        lambda path: experiment_plots.classes(path, []),
        lambda path: experiment_plots.cost_bars(path, COST),
    ],
    ids=["differences", "difficulty", "ratio", "densities", "classes", "no classes", "cost"],
)
def test_every_figure_is_drawn(draw: Any, tmp_path: Path) -> None:
    with Image.open(draw(tmp_path / "f.png")) as image:
        assert image.width >= 600 and np.asarray(image.convert("L")).std() > 5
