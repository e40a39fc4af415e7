"""Tables of scores and metrics, as `ResultTable`s."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dcdm_cli.data.manifest import Manifest
from dcdm_cli.data.splits import SPLITS
from dcdm_cli.data.understood import class_splits
from dcdm_cli.reports.formatting import (
    NOTHING,
    Metrics,
    duration,
    interval,
    known_bounds,
    number,
    percent,
    points,
    probability,
)
from dcdm_cli.reports.quality_tables import (
    agreement_table,
    class_table,
    competence_table,
    copying_table,
    cost_table,
    fidelity_table,
    prompt_table,
    without_unknown,
)
from dcdm_cli.reports.summing_up import (
    accuracy_words,
    export_words,
    frontier_words,
    methods_words,
    pairs_words,
    targets_words,
    time_words,
)
from dcdm_cli.reports.table import ResultTable, save_tables

MAX_CLASSES = 20
HARD = 0.5  # more likely wrong than right, for the scorer


def saved_tables(tables: Sequence[ResultTable], folder: Path) -> Sequence[ResultTable]:
    """The tables themselves, each written to `folder` as CSV too."""
    save_tables(tables, folder)
    return tables


def methods_table(results: Mapping[str, Any]) -> ResultTable:
    """Of `--method auto`: what was tried and what came of it. Without rows where one method was asked for."""
    rows = tuple(
        (
            row["method"] + (" (kept)" if row["method"] == results["kept"] else ""),
            percent(row["accuracy"]),
            number(row["calibration_error"], 3),
            duration(row["seconds"]) if row["seconds"] is not None else f"not tried, about {duration(row['estimate'])}",
        )
        for row in results.get("methods", ())
    )
    said = methods_words(results) if rows else ""
    return ResultTable("Ways of scoring, out of fold", ("method", "accuracy", "calibration error", "time"), rows, said)


def summary_tables(metrics: Metrics) -> list[ResultTable]:
    """The tables that have something to say, in reading order."""
    tables = (
        downstream_table(metrics),
        paired_table(metrics),
        *sensitive_tables(_section(metrics, "downstream")),
        adherence_table(metrics),
        prompt_table((metrics.get("adherence") or {}).get("prompt_sources", ())),
        class_table((metrics.get("adherence") or {}).get("classes", ())),
        frontier_table(metrics),
        competence_table(metrics),
        agreement_table(metrics),
        fidelity_table(metrics),
        copying_table(metrics),
        cost_table(metrics),
        stages_table(metrics),
    )
    return [table for table in tables if table.rows]


def export_tables(results: Mapping[str, Any]) -> list[ResultTable]:
    return [table for table in (export_table(results), engines_table(results)) if table.rows]


def score_table(manifest: Manifest) -> ResultTable:
    """Per class, hardest first; beyond MAX_CLASSES classes the rest is one row. The last row is all images."""
    sums = _class_sums(manifest)
    with np.errstate(invalid="ignore"):
        # classes without a score last
        hardest = np.argsort(-np.nan_to_num(sums[:, 2] / sums[:, 1], nan=-1.0), kind="stable")
    shown = hardest if len(hardest) <= MAX_CLASSES else hardest[: MAX_CLASSES - 1]  # one row for all the others
    rows = [_score_row(manifest.class_names[i], sums[i]) for i in shown]
    if rest := len(hardest) - len(shown):
        rows.append(_score_row(f"other ({rest} classes)", sums[hardest[len(shown) :]].sum(0)))
    rows.append(_score_row("all", sums.sum(0)))
    columns = ("class", "images", "mean difficulty", f"share > {HARD}", "suspect labels")
    return ResultTable(
        "Difficulty by class, hardest first", columns, tuple(rows), _scores_in_words(manifest, sums, hardest)
    )


def split_table(manifest: Manifest, most: int | None = MAX_CLASSES) -> ResultTable:
    """Images by class and split, as the source was understood; beyond `most` classes the rest is one row."""
    counts = class_splits(manifest)
    shown = len(counts) if most is None or len(counts) <= most else most - 1
    rows = [(name, *map(str, row)) for name, row in zip(manifest.class_names[:shown], counts[:shown], strict=True)]
    if rest := len(counts) - shown:
        rows.append((f"other ({rest} classes)", *map(str, counts[shown:].sum(0))))
    rows.append(("all", *map(str, counts.sum(0))))
    meaning = (
        "train is scored and fine-tuned on; judge teaches the classifier that says whether labels are kept; test is "
        "what results are tested on."
    )
    return ResultTable("Images by class and split", ("class", *SPLITS), tuple(rows), meaning)


def adherence_table(metrics: Metrics) -> ResultTable:
    targets = _section(metrics, "adherence").get("targets", ())
    rows = tuple(
        (
            number(row["target"]),
            number(row["realised_mean"]),
            percent(row["label_agreement"]),
            str(row["n"]),
        )
        for row in targets
    )
    columns = ("target", "realised", "label agreement", "images")
    table = ResultTable("Target and realised difficulty", columns, rows, targets_words(targets))
    return without_unknown(table, "label agreement")


def frontier_table(metrics: Metrics) -> ResultTable:
    counted = _section(metrics, "adherence").get("frontier", ())
    rows = tuple(
        (
            "{:.1f} to {:.1f}".format(*row["bin"]),
            percent(row["real_agreement"]),
            str(row["real_n"]),
            percent(row["generated_agreement"]),
            str(row["generated_n"]),
        )
        for row in counted
    )
    columns = ("realised difficulty", "real agree", "real images", "generated agree", "generated images")
    title = "Label frontier: does the judge still see the label?"
    return ResultTable(title, columns, rows, frontier_words(counted))


def downstream_table(metrics: Metrics) -> ResultTable:
    downstream = _section(metrics, "downstream")
    arms = downstream.get("arms", ())
    more = measure_columns(arms)
    rows = (
        (
            arm["name"],
            str(arm["synthetic_images"]),
            percent(arm["accuracy_mean"], 2),
            interval(arm["accuracy_ci95"], " %"),
            *(show(arm) for show in more.values()),
            str(len(arm["accuracy"])),
        )
        for arm in arms
    )
    columns = ("training set", "extra images", "accuracy", "95 % interval", *more, "seeds")
    title = f"Accuracy on {downstream.get('test_images', '?')} test images"
    return ResultTable(title, columns, tuple(rows), accuracy_words(arms))


def measure_columns(arms: Iterable[Mapping[str, Any]]) -> dict[str, Callable[[Mapping[str, Any]], str]]:
    """Heading -> what an arm's row shows under it, of the measures beside accuracy that every arm has."""
    arms = list(arms)
    columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "log-loss": lambda arm: number(arm["log_loss_mean"], 4),
        "harder half": lambda arm: percent(arm["hard_accuracy_mean"], 2),
    }
    needed = ("log_loss_mean", "hard_accuracy_mean")
    there = [all(arm.get(key) is not None for arm in arms) for key in needed]
    return {name: show for (name, show), known in zip(columns.items(), there, strict=True) if known and arms}


def paired_table(metrics: Metrics) -> ResultTable:
    return pairs_table(_section(metrics, "downstream").get("paired", ()))


def sensitive_tables(section: Mapping[str, Any], where: str = "") -> list[ResultTable]:
    """The paired differences of a trial (or a cell of an experiment) in log-loss and on the harder half."""
    half = f"Differences in accuracy on the {section.get('hard_images')} harder test images, seed by seed{where}"
    made = (
        pairs_table(
            section.get("paired_log_loss", ()),
            f"Differences in log-loss (less is better), seed by seed{where}",
            _nats,
            "nats",
        ),
        pairs_table(section.get("paired_hard_accuracy", ()), half),
    )
    return [table for table in made if table.rows]


def pairs_table(
    pairs: Iterable[Mapping[str, Any]],
    title: str = "Differences in accuracy, seed by seed",
    shown: Callable[[Mapping[str, Any]], tuple[str, str]] | None = None,
    unit: str = "points",
) -> ResultTable:
    """shown: difference and interval as text, in `unit`."""
    pairs = list(pairs)
    rows = (
        (
            f"{pair['arm']} vs {pair['against']}",
            *(shown or _in_points)(pair),
            probability(pair.get("p_value")),
            str(pair["seeds"]),
            pair.get("verdict", NOTHING),
            str(pair.get("seeds_needed") or NOTHING),
        )
        for pair in pairs
    )
    columns = ("comparison", unit, "95 % interval", "p", "seeds", "verdict", "seeds to tell")
    return ResultTable(title, columns, tuple(rows), pairs_words(pairs))


def _in_points(pair: Mapping[str, Any]) -> tuple[str, str]:
    return points(pair["difference_mean"], 2), interval(pair["difference_ci95"], digits=2)


def _nats(pair: Mapping[str, Any]) -> tuple[str, str]:
    known = known_bounds(pair["difference_ci95"])
    return f"{pair['difference_mean']:+.4f}", f"[{known[0]:.4f}, {known[1]:.4f}]" if known else NOTHING


def export_table(results: Mapping[str, Any]) -> ResultTable:
    """The graphs, and how far each is from PyTorch in float32."""
    rows = (
        (
            network["name"],
            f"{network['mib']:,.1f}",
            network["precision"],
            network["parity"],
            _small(network["max_abs"]),
            _small(network["relative"]),
        )
        for network in results["networks"]
    )
    columns = ("graph", "MiB", "precision", "check", "max error", "relative")
    said = export_words(results["networks"], "graphs")
    return ResultTable("Exported graphs, compared with PyTorch in fp32", columns, tuple(rows), said)


def engines_table(results: Mapping[str, Any]) -> ResultTable:
    rows = (
        (
            engine["file"],
            f"{engine['mib']:,.1f}",
            str(engine["batch"]),
            engine.get("parity", "not checked"),
            "-" if engine.get("fused_attention") is None else str(engine["fused_attention"]),
        )
        for engine in results["engines"]
    )
    columns = ("engine", "MiB", "images per call", "check", "fused attention")
    said = export_words(results["engines"], "engines")
    return ResultTable("TensorRT engines, compared with PyTorch in fp32", columns, tuple(rows), said)


def stages_table(metrics: Metrics) -> ResultTable:
    seconds = _section(metrics, "seconds")
    columns = ("stage", "time", "share")
    return ResultTable("Where the time went", columns, tuple(_stage_rows(seconds)), time_words(seconds))


def _stage_rows(seconds: Mapping[str, float]) -> Iterator[tuple[str, str, str]]:
    total = sum(seconds.values())
    for stage, spent in seconds.items():
        yield stage, duration(spent), percent(spent / total if total else None, 0)
    if seconds:
        yield "all", duration(total), percent(1.0 if total else None, 0)


def _small(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _section(metrics: Metrics, name: str) -> Mapping[str, Any]:
    """A part of the metrics; empty when that evaluation was not run."""
    return metrics.get(name) or {}


def _class_sums(manifest: Manifest) -> np.ndarray:
    """float64 [classes, 5]: images, scored images, sum of difficulty, hard images, suspects. Rows can be added up."""
    labels = manifest.column("label")
    difficulty = manifest.column("difficulty")
    columns = (
        np.ones(len(labels)),
        np.isfinite(difficulty),
        np.nan_to_num(difficulty),
        difficulty > HARD,
        manifest.column("suspect_label"),
    )
    classes = len(manifest.class_names)
    known = labels >= 0
    sums = [np.bincount(labels[known], weights=column[known], minlength=classes) for column in columns]
    return np.stack(sums, axis=1)


def _scores_in_words(manifest: Manifest, sums: np.ndarray, hardest: np.ndarray) -> str:
    images, scored, total, hard, suspects = sums.sum(0).tolist()
    if not scored:
        return "No image has a score."
    first = manifest.class_names[hardest[0]]
    return (
        f"{scored:,.0f} of {images:,.0f} training images have a score, {total / scored:.2f} in the mean; "
        f"{percent(hard / scored, 0)} are harder than {HARD}, {suspects:,.0f} have a suspect label (dcdm review). "
        f"Hardest class: {first}."
    )


def _score_row(name: str, sums: np.ndarray) -> tuple[str, ...]:
    images, scored, total, hard, suspects = sums.tolist()
    mean, share = (total / scored, hard / scored) if scored else (None, None)
    return name, f"{images:.0f}", number(mean), percent(share), f"{suspects:.0f}"
