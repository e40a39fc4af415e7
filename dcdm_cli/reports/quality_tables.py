"""Tables of what was found in images and what they cost: fidelity, classes, the filter, the bill, the next plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dcdm_cli.difficulty.competence import SEEN
from dcdm_cli.reports.formatting import NOTHING, Metrics, duration, known_sentences, number, percent
from dcdm_cli.reports.summing_up import (
    classes_words,
    competence_words,
    copying_words,
    cost_words,
    filter_words,
    leading,
    likeness_words,
)
from dcdm_cli.reports.table import ResultTable

MAX_CLASSES = 20
UNKNOWN = "unknown"
REASONS = {
    "blank": "blank or constant",
    "near_test": "repeats a held-out image",
    "near_train": "repeats a training image",
    "label_lost": "label lost, and harder than labels hold",
}


def without_unknown(table: ResultTable, column: str) -> ResultTable:
    """Without this column where no row knows anything of it."""
    place = table.columns.index(column)
    if any(row[place] != NOTHING for row in table.rows):
        return table
    columns, *rows = ((*row[:place], *row[place + 1 :]) for row in (table.columns, *table.rows))
    return replace(table, columns=columns, rows=tuple(rows))


def class_table(classes: Sequence[Mapping[str, Any]]) -> ResultTable:
    """The classes that are hardest to steer; the others are counted in the title."""
    shown = classes[:MAX_CLASSES]
    rows = tuple(
        (row["class"], number(row["spearman"]), number(row["error"]), percent(row["label_agreement"]), str(row["n"]))
        for row in shown
    )
    more = f", the {len(shown)} hardest to steer of {len(classes)}" if len(shown) < len(classes) else ""
    columns = ("class", "rank correlation", "realised minus target", "label agreement", "images")
    table = ResultTable(f"Adherence by class{more}", columns, rows, classes_words(classes))
    return without_unknown(table, "label agreement")


def prompt_table(sources: Sequence[Mapping[str, Any]]) -> ResultTable:
    """What prompts of each source cost: difficulty that is missed, labels that are lost. sources: of `per_source`."""
    rows = tuple(
        (
            row["source"],
            str(row["n"]),
            number(row["target"]),
            number(row["realised"]),
            number(row["spearman"]),
            percent(row["agreement"]),
        )
        for row in sources
    )
    sentence = ""
    if len(rows) > 1 and all(row["agreement"] is not None for row in sources):
        worst, best = sources[0], max(sources, key=lambda row: row["agreement"])
        sentence = (
            f"Prompts of {worst['source']} keep their label in {percent(worst['agreement'])} of images, those of "
            f"{best['source']} in {percent(best['agreement'])}."
        )
    columns = ("prompts of", "images", "target", "realised", "rank", "label")
    return without_unknown(ResultTable("By source of prompts", columns, rows, sentence), "label")


def sets_table(sets: Mapping[str, Metrics]) -> ResultTable:
    """One row per generated set: what artefacts.json says of it."""
    rows = tuple(_set_row(name, metrics) for name, metrics in sets.items())
    columns = ("set", "images", "target", "realised", "rank corr.", "label kept", "blank", "copies")
    known = {
        name: value
        for name, m in sets.items()
        if (value := (m.get("quality") or {}).get("label_agreement")) is not None
    }
    sentence = ""
    if known:
        first = percent(max(known.values()))
        sentence = f"The label is kept most often in {leading(known, percent)} ({first}, by the judge)."
    sentence = f"{sentence} Copies are counted by thumbnails.".lstrip()
    return without_unknown(ResultTable("Generated sets", columns, rows, sentence), "label kept")


def _set_row(name: str, metrics: Metrics) -> tuple[str, ...]:
    adherence, quality = metrics["adherence"], metrics.get("quality") or {}
    targets, leaks = adherence.get("targets") or (), quality.get("leakage") or {}
    counts = sum(row["n"] for row in targets)
    means = [
        sum(row[key] * row["n"] for row in targets) / counts if counts else None for key in ("target", "realised_mean")
    ]
    return (
        name,
        str(quality.get("images", counts)),
        *(number(mean) for mean in means),
        number(adherence.get("spearman")),
        percent(quality.get("label_agreement")),
        str(quality.get("blank", NOTHING)),
        str(leaks.get("near_train", NOTHING)),
    )


def fidelity_table(metrics: Metrics) -> ResultTable:
    rows = (metrics.get("quality") or {}).get("fidelity", ())
    cells = tuple(
        (
            f"{row['images']}, {short_features(row['features'])}",
            number(row["frechet"]),
            number(row["kid"], 1),
            *(number(row[name]) for name in ("precision", "recall", "density", "coverage")),
            str(row["generated"]),
        )
        for row in rows
    )
    columns = ("images, features", "Fréchet", "KID", "precision", "recall", "density", "covers", "n")
    title = "Likeness to held-out images, and how much of them is covered (KID x 1000)"
    return ResultTable(title, columns, cells, likeness_words(rows))


def short_features(name: str) -> str:
    """The packaged network without its own name and size, which `dcdm score` says: a narrow column would break them."""
    return "packaged" if name.startswith("packaged (") else name


def copying_table(metrics: Metrics) -> ResultTable:
    """Near-duplicates by thumbnails, which decide, and in each feature space."""
    quality = metrics.get("quality") or {}
    compared = quality.get("copying", ())
    cells = tuple(
        (
            short_features(row.get("features", "thumbnails")),
            *(str(row[name]) for name in ("near_train", "near_test", "real_overlap")),
            percent(row["closer_than_real"]),
            str(row["images"]),
        )
        for row in ((quality["leakage"], *compared) if compared else ())
    )
    columns = ("compared in", "repeat training", "repeat held-out", "held-out repeat training", "closer than real", "n")
    title = "Near-duplicates among generated images (closer than real: 1.0 % is expected)"
    return ResultTable(title, columns, cells, copying_words(quality["leakage"]) if cells else "")


def competence_table(metrics: Metrics) -> ResultTable:
    """What the classifiers behind the figures know, on images that they did not learn from as far as that is known."""
    known = metrics.get("competence") or {}
    rows = tuple(
        (
            name,
            *(percent(found[share]) for share in ("accuracy", "chance", "prior")),
            str(found["asked"]),
            found["verdict"],
        )
        for name, found in known.items()
    )
    columns = ("classifier", "accuracy", "guessing", "largest class", "images", "verdict")
    unlearned = "images that they did not learn from"
    title = f"What the classifiers know of {'real images' if any(SEEN in one for one in known.values()) else unlearned}"
    return ResultTable(title, columns, rows, competence_words(known))


def agreement_table(metrics: Metrics) -> ResultTable:
    """Whether scorer and judge err on the same real images."""
    from dcdm_cli.evaluation.agreement import agreement_sentence  # with SciPy, which other tables do without

    found = metrics.get("agreement")
    if not found or not found["n"]:
        return ResultTable("", (), ())
    shares = ("scorer_error", "judge_error", "both_wrong", "expected", "same_class")
    row = ("real images", *(percent(found[share]) for share in shares), number(found["phi"]), str(found["n"]))
    columns = ("of", "scorer errs", "judge errs", "both", "both by chance", "same class", "phi", "n")
    return ResultTable("Errors of scorer and judge", columns, (row,), agreement_sentence(found))


def image_set_tables(document: Metrics) -> list[ResultTable]:
    """Of `dcdm evaluate images`."""
    likeness = tuple(
        (
            row["images"],
            *(number(row[name]) for name in ("density", "coverage", "precision", "recall", "frechet", "kid")),
            f"{row['generated']} / {row['reference']}",
        )
        for row in document["likeness"]
    )
    copies = tuple(
        (
            row["features"],
            *(str(row[name]) for name in ("near", "twins", "reference_twins")),
            percent(row["closer"]),
            str(row["images"]),
        )
        for row in document["copies"]
    )
    images, against = document["images"], document["against"]
    like = ("images", "density", "coverage", "precision", "recall", "Fréchet", "KID", "n / of")
    near = ("compared in", "repeat reference", "repeat another", "within reference", "closer", "n")
    exact = (
        f"{document['exact']} of {images['images']} images are reference images to the pixel; {images['blank']} are "
        f"blank. Reference: {against['images']} images, {against['blank']} blank."
    )
    title = f"Likeness to the reference, in {document['features']} (KID x 1000)"
    closer = "Near-duplicates (closer than reference images are to each other: 1.0 % is expected)"
    return [ResultTable(title, like, likeness, _likeness_in_words(document)), ResultTable(closer, near, copies, exact)]


def _likeness_in_words(document: Metrics) -> str:
    row, halves = document["likeness"][:2]  # the second row: one half of the reference by the other
    if row["coverage"] is None:
        return "Too few images to compare sets: at least 7 on either side."
    beside = f", {percent(halves['coverage'])} of one half of it by the other" if halves["coverage"] is not None else ""
    return (
        f"{percent(row['coverage'])} of the reference images have one of the images nearby{beside}. Figures of other "
        "features, or of other numbers of images, are not to be compared with these."
    )


def filter_table(results: Mapping[str, Any]) -> ResultTable:
    """What a filter would take away and what it leaves."""
    edge, removed = results["frontier"], dict(results["removed"])
    if edge is None:  # nobody looked at labels
        removed.pop("label_lost", None)
    rows = [(REASONS[reason], str(count)) for reason, count in removed.items()]
    rows += [
        (f"kept, {part['difficulty']} images", f"{part['kept']} of {part['images']}")
        for part in results["by_difficulty"]
    ]
    rows.append(("kept", f"{results['kept']} of {results['images']}"))
    title = f"Filter: lost labels count only beyond difficulty {number(edge)}"
    title = "Filter, without a judge: nothing is said of labels" if edge is None else title
    return ResultTable(title, ("finding", "images"), tuple(rows), filter_words(results))


def demand_table(results: Mapping[str, Any]) -> ResultTable:
    """The classes that are asked for most."""
    shown = results["demand"][:MAX_CLASSES]
    rows = tuple(
        (row["class"], *(number(row[part], 1) for part in ("easy", "medium", "hard")), _sum(row)) for row in shown
    )
    more = (
        f", the {len(shown)} most wanted of {len(results['demand'])} classes"
        if len(shown) < len(results["demand"])
        else ""
    )
    hard = results.get("newest_difficulty")
    now = "" if hard is None else f"Real images are {number(hard)} hard in the mean for the newest classifier."
    said = " ".join(filter(None, (now, *known_sentences(results.get("competence") or {}))))
    title = f"{results['images']} images by what is hard now{more}"
    return ResultTable(title, ("class", "easy", "medium", "hard", "all"), rows, said)


def cost_table(metrics: Metrics) -> ResultTable:
    cost = metrics.get("cost") or {}
    rows = tuple(_stage(stage) for stage in cost.get("stages", ()))
    return ResultTable(
        "What it cost",
        ("stage", "time", "loading", "devices", "device hours", "memory", "energy"),
        (*rows, *_totals(cost)) if rows else (),
        cost_words(cost),
    )


def _stage(stage: Mapping[str, Any]) -> tuple[str, ...]:
    apart = [stage[name] for name in ("load_seconds", "warmup_seconds", "build_seconds") if stage.get(name) is not None]
    return (
        stage["stage"],
        duration(stage["seconds"]),
        duration(sum(apart)) if apart else UNKNOWN,
        f"{stage['devices']} x {stage['device']}",
        _hours(stage["hours"], stage["unit"]),
        f"{stage['peak_memory_mib']} MiB",
        _energy(stage["energy_wh"]),
    )


def _totals(cost: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for unit, hours in cost["hours"].items():
        if hours:
            yield "all", NOTHING, NOTHING, NOTHING, _hours(hours, unit), NOTHING, _energy(cost["energy_wh"])
    for name, part in (("per image", cost["per_image"]), ("per point gained", cost["per_point"])):
        if part:
            hours = " + ".join(_hours(part[unit], unit) for unit, spent in cost["hours"].items() if spent)
            money = f" ({part['money']:.4g})" if part["money"] is not None else ""
            yield name, NOTHING, NOTHING, NOTHING, hours + money, NOTHING, NOTHING


def _hours(hours: float, unit: str) -> str:
    return f"{hours:.3g} {unit.replace('hours', 'h')}"


def _energy(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.1f} Wh"


def _sum(row: Mapping[str, Any]) -> str:
    return number(row["easy"] + row["medium"] + row["hard"], 1)
