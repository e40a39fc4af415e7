"""What an experiment's document says: tables and sentences. The document's shape is described in docs/evaluate.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dcdm_cli.generation.targets import kind_and_numbers
from dcdm_cli.reports.formatting import (
    NOTHING,
    Metrics,
    duration,
    interval,
    number,
    paired_sentences,
    percent,
    verdict,
    weak_sentences,
)
from dcdm_cli.reports.quality_tables import class_table, competence_table, without_unknown
from dcdm_cli.reports.summing_up import accuracy_words, measures_words
from dcdm_cli.reports.table import ResultTable
from dcdm_cli.reports.tables import adherence_table, measure_columns, pairs_table, sensitive_tables


def experiment_tables(document: Metrics) -> list[ResultTable]:
    tables = list(_adherence_tables(document) if document["kind"] == "adherence" else _arm_tables(document))
    tables.append(competence_table({"competence": _known(document)}))
    return [table for table in tables if table.rows]


def experiment_sentences(document: Metrics) -> list[str]:
    if document["kind"] == "adherence":
        return [*_adherence_sentences(document), *_weak(document)]
    many = len(document["cells"]) > 1
    sentences = []
    for cell in document["cells"]:
        place = f"{cell_name(document, cell)}: " if many else ""
        sentences += [place + sentence for sentence in paired_sentences(cell["paired"])]
    if len(sentences) > 12:  # the tables say it all; here only what is decided
        decided = [s for s in sentences if s.endswith((": better.", ": worse."))]  # as `paired_sentences` ends
        sentences = [
            *decided,
            f"{len(decided)} of {len(sentences)} comparisons can be told apart; the tables have all.",
        ]
    return [
        *_best_sentences(document),
        *_crossing_sentences(document),
        *sentences,
        *_weak(document),
        *_held_out(document),
    ]


def _known(document: Metrics) -> dict[str, Metrics]:
    """What the classifiers of an experiment know, by their names; documents of before it was kept lack some."""
    cells = [cell for cell in document.get("cells", ()) if cell.get("competence")]
    named = {
        "downstream" if len(cells) == 1 else f"downstream: {cell_name(document, cell)}": cell["competence"]
        for cell in cells
    }
    return {**document.get("competence", {}), **named}


def _weak(document: Metrics) -> Iterator[str]:
    """Those that know too little, with what that means; of classifiers alike the first."""
    known = _known(document)
    # reversed: the first of a kind stays
    weakest = {name.partition(":")[0]: found for name, found in reversed(known.items())}
    yield from weak_sentences(weakest)


def _best_sentences(document: Metrics) -> Iterator[str]:
    for best in document.get("best", ()):
        low, high = best["interval"]
        found = f"most is worth a difficulty of {best['difficulty']:.2f} (95 % interval {low:.2f} to {high:.2f}"
        looked = f"measured from {best['low']:.2f} to {best['high']:.2f})"
        if not best["told"]:
            then = ": too wide to go by; more seeds would narrow it."
        elif document["tested_on"] == "validation":
            then = f": ask for {best['asked']:.2f}, as dcdm generate --difficulty best does."
        else:
            then = "."
        yield f"{found[0].upper()}{found[1:]}; {looked}{then}"


def cell_name(document: Metrics, cell: Mapping[str, Any]) -> str:
    """What tells the cell from the others: its classifier, its ratio, or both."""
    cells = document["cells"]
    parts = []
    if len({other["classifier_name"] for other in cells}) > 1:
        parts.append(cell["classifier_name"])
    if len({other["ratio"] for other in cells}) > 1 or not parts:
        parts.append(f"{100 * cell['ratio']:g} % extra images")
    return ", ".join(parts)


def arms_table(cell: Mapping[str, Any], title: str) -> ResultTable:
    """With what the scorer finds in each arm's images, without which an arm's name would be a promise."""
    rows = tuple(
        (
            arm["name"],
            str(arm["synthetic_images"]),
            _target(arm.get("difficulty")),
            number(arm.get("set_realised_mean")),
            percent(arm.get("set_label_agreement")),
            percent(arm["accuracy_mean"], 2),
            interval(arm["accuracy_ci95"], "", 2),
            duration(arm.get("set_seconds")),
        )
        for arm in cell["arms"]
    )
    columns = (
        "training set", "extra", "target", "realised", "scorer agrees", "accuracy", "95 % interval", "made in",
    )  # fmt: skip
    return ResultTable(title, columns, rows, accuracy_words(cell["arms"]))


def measures_table(cell: Mapping[str, Any], title: str) -> ResultTable:
    """What is measured beside accuracy, arm by arm; a table of its own, which the other has no room for."""
    more = measure_columns(cell["arms"])
    rows = [(arm["name"], *(show(arm) for show in more.values())) for arm in cell["arms"] if more]
    return ResultTable(title, ("training set", *more), tuple(rows), measures_words(cell["arms"]))


def _target(difficulty: str | None) -> str:
    """As people write it: N(0.5, 0.1), U(0.2, 0.6)."""
    kind, numbers = kind_and_numbers(difficulty or NOTHING)
    letter = {"normal": "N", "uniform": "U"}.get(kind)
    return f"{letter}({', '.join(numbers)})" if letter else kind


def crossing_table(document: Metrics) -> ResultTable:
    rows = tuple(
        (
            name,
            percent(found["control"]["accuracy_mean"], 2),
            str(found["control"]["images"]),
            percent(found["ours"]["accuracy_mean"], 2) if found["ours"] else "never",
            str(found["ours"]["images"]) if found["ours"] else NOTHING,
            percent(found["image_share"], 0),
            percent(found["cost_share"], 0),
            percent(found.get("whole_share"), 0),
            verdict(found["comparison"]) if found["comparison"] else NOTHING,
        )
        for name, found in (document.get("crossings") or {}).items()
    )
    columns = (
        "control", "its best", "with images", "ours there", "with images", "share of images", "share of time",
        "of all time", "verdict",
    )  # fmt: skip
    return ResultTable("Where ours reaches the control's best", columns, rows, next(_crossing_sentences(document), ""))


def _arm_tables(document: Metrics) -> Iterator[ResultTable]:
    yield crossing_table(document)
    for cell in document["cells"]:
        steps = f" {cell['steps']} steps," if cell["steps"] else ""
        about = f"{cell_name(document, cell)}; {cell['classifier']},{steps} {cell['seeds']} seeds"
        place = "test" if document["tested_on"] == "test" else "validation"
        title = f"Accuracy on {cell['test_images']} {place} images, {cell['real_images']} real training images; {about}"
        yield arms_table(cell, title)
        yield measures_table(cell, f"Beside accuracy: {cell_name(document, cell)}")
        yield pairs_table(cell["paired"], f"Differences, seed by seed: {cell_name(document, cell)}")
        yield from sensitive_tables(cell, f": {cell_name(document, cell)}")


def _adherence_tables(document: Metrics) -> Iterator[ResultTable]:
    steered = document["adherence"]
    rows = tuple(
        (
            name,
            number(part["spearman"]),
            number(part["mean_absolute_error"], 3),
            percent(_agreement(part["targets"])),
            str(part["n"]),
        )
        for name, part in steered.items()
    )
    columns = ("", "rank correlation", "mean error", "label agreement", "images")
    said = next(_adherence_sentences(document))
    table = ResultTable("Requested against realised difficulty, before and after calibration", columns, rows, said)
    yield without_unknown(table, "label agreement")
    for name, part in steered.items():
        table = adherence_table({"adherence": part})
        yield replace(table, title=f"{table.title}, {name}")
    yield class_table(steered["calibrated"]["classes"])
    means = tuple(
        (name, number(part["mean"]), percent(part.get("label_agreement")), str(part["n"]))
        for name, part in document["densities"].items()
    )
    # The last of these sentences is about means, the first about calibration.
    columns, said = ("images", "mean", "label agreement", "number"), list(_adherence_sentences(document))[-1]
    yield without_unknown(ResultTable("Realised difficulty", columns, means, said), "label agreement")


def _adherence_sentences(document: Metrics) -> Iterator[str]:
    before, after = document["adherence"]["uncalibrated"], document["adherence"]["calibrated"]
    correlation = f"the rank correlation from {number(before['spearman'])} to {number(after['spearman'])}"
    if before["spearman"] is None or after["spearman"] is None:
        correlation = "too few targets are in reach for a rank correlation"
    yield (
        f"Calibration takes the mean error from {number(before['mean_absolute_error'], 3)} to "
        f"{number(after['mean_absolute_error'], 3)}; {correlation}."
    )
    means = ", ".join(f"{name} {number(part['mean'])}" for name, part in document["densities"].items())
    yield f"Mean realised difficulty: {means}."


def _crossing_sentences(document: Metrics) -> Iterator[str]:
    for name, found in (document.get("crossings") or {}).items():
        best = (
            f"{name} is best with {found['control']['images']} images ({percent(found['control']['accuracy_mean'], 2)})"
        )
        if found["ours"] is None:
            yield f"{best}; ours does not reach that at any ratio tried."
            continue
        share = f"{percent(found['image_share'], 0)} of the images"
        share += (
            f", {percent(found['cost_share'], 0)} of the generation time" if found["cost_share"] is not None else ""
        )
        yield f"{best}; ours reaches it with {found['ours']['images']} ({share}). Both points were chosen afterwards."
        if (share := found.get("whole_share")) is not None:
            yield f"With what each needs before its first image that is {percent(share, 0)} of the time {name} takes."
    spent = document.get("preparation_seconds") or {}
    if document.get("crossings") and spent:
        yield f"Before its first image ours needs {duration(sum(spent.values()))} ({', '.join(spent)})."


def _held_out(document: Metrics) -> Iterator[str]:
    if document["tested_on"] != "test":
        yield "Tested on validation images, to choose settings by: not a result."


def _agreement(targets: Sequence[Mapping[str, Any]]) -> float | None:
    known = [(row["label_agreement"], row["n"]) for row in targets if row["label_agreement"] is not None]
    total = sum(n for _, n in known)
    return sum(kept * n for kept, n in known) / total if total else None
