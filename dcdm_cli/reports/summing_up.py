"""The sentence below each table: what its numbers say.

All take what the table shows, and give "" where there is nothing to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from dcdm_cli.difficulty.competence import SEEN
from dcdm_cli.reports.formatting import Metrics, duration, number, percent, points

Rows = Sequence[Mapping[str, Any]]
Pick = Callable[[Iterable[float]], float]
DECIDED = ("better", "worse")
MOST_NAMED = 4  # that share the first place, in a sentence


def leading(values: Mapping[str, float], shown: Callable[[float], str], pick: Pick = max) -> str:
    """Who is first, as words: all whose value is the first one's as it is `shown`, for no reader sees more of it. pick:
    max or min. values: of one name at least."""
    first = shown(pick(values.values()))
    names = [name for name, value in values.items() if shown(value) == first]
    if len(names) > MOST_NAMED:
        names = [*names[: MOST_NAMED - 1], f"{len(names) - MOST_NAMED + 1} more"]
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def accuracy_words(arms: Rows) -> str:
    """Which training set is best, and how far the worst is from it."""
    known = [arm for arm in arms if arm.get("accuracy_mean") is not None]
    if len(known) < 2:
        return ""
    best, worst = (pick(known, key=lambda arm: arm["accuracy_mean"]) for pick in (max, min))
    leaders = leading({arm["name"]: arm["accuracy_mean"] for arm in known}, lambda value: percent(value, 2))
    if percent(best["accuracy_mean"], 2) == percent(worst["accuracy_mean"], 2):
        return f"All alike: {leaders} with {percent(best['accuracy_mean'], 2)}."
    apart = points(best["accuracy_mean"] - worst["accuracy_mean"], 2).removeprefix("+")
    return (
        f"Highest: {leaders} with {percent(best['accuracy_mean'], 2)}, {apart} points above {worst['name']}; "
        "whether that is chance is said by the differences, seed by seed."
    )


def pairs_words(pairs: Rows) -> str:
    """How many comparisons are decided, and which."""
    if not pairs:
        return ""
    decided = [f"{pair['arm']} vs {pair['against']}: {pair['verdict']}" for pair in pairs if _decided(pair)]
    if not decided:
        return f"None of {len(pairs)} differences can be told from chance." if len(pairs) > 1 else _undecided(pairs[0])
    more = f" and {len(decided) - 3} more" if len(decided) > 3 else ""
    return f"{len(decided)} of {len(pairs)} can be told from chance: {'; '.join(decided[:3])}{more}."


def _decided(pair: Mapping[str, Any]) -> bool:
    return pair.get("verdict") in DECIDED


def _undecided(pair: Mapping[str, Any]) -> str:
    return f"Whether {pair['arm']} and {pair['against']} differ cannot be told from chance."


def measures_words(arms: Rows) -> str:
    """Of what is measured beside accuracy."""
    known = [arm for arm in arms if arm.get("log_loss_mean") is not None]
    if not known:
        return ""
    losses = {arm["name"]: arm["log_loss_mean"] for arm in known}
    leaders = leading(losses, lambda value: number(value, 4), min)
    has = "has" if leaders in losses else "have"
    return f"The least log-loss {has} {leaders} ({number(min(losses.values()), 4)})."


def targets_words(targets: Rows) -> str:
    """What came out for the easiest and for the hardest target."""
    known = [row for row in targets if row.get("realised_mean") is not None]
    if not known:
        return ""
    low, high = (pick(known, key=lambda row: row["target"]) for pick in (min, max))
    if low is high:
        return f"For a target of {number(low['target'])} images are {number(low['realised_mean'])} hard in the mean."
    kept = [row["label_agreement"] for row in (low, high)]
    seen = "" if None in kept else f"; their label is seen in {percent(kept[0], 0)} and {percent(kept[1], 0)}"
    return (
        f"For targets from {number(low['target'])} to {number(high['target'])} images come out from "
        f"{number(low['realised_mean'])} to {number(high['realised_mean'])} hard in the mean{seen}."
    )


def classes_words(classes: Rows) -> str:
    known = [row for row in classes if row.get("label_agreement") is not None]
    if not known:
        return ""
    worst = min(known, key=lambda row: row["label_agreement"])
    least = leading({row["class"]: row["label_agreement"] for row in known}, percent, min)
    if least == worst["class"]:
        return f"{least} keeps its label least often ({percent(worst['label_agreement'])} of {worst['n']} images)."
    return f"The label is kept least often in {least} ({percent(worst['label_agreement'])} of images)."


def frontier_words(rows: Rows) -> str:
    """The difficulty at which generated images fall furthest below real ones."""
    both = [row for row in rows if row["real_agreement"] is not None and row["generated_agreement"] is not None]
    if not both:
        return "No difficulty has real and generated images to compare."
    row = max(both, key=lambda row: row["real_agreement"] - row["generated_agreement"])
    gap, where = row["real_agreement"] - row["generated_agreement"], "{:.1f} to {:.1f}".format(*row["bin"])
    if gap <= 0:
        return "At no difficulty do generated images lose their label more often than real ones."
    return (
        f"Generated images fall furthest below real ones at {where}: {points(gap).removeprefix('+')} points fewer keep "
        f"their label ({row['generated_n']} and {row['real_n']} images)."
    )


def competence_words(known: Mapping[str, Mapping[str, Any]]) -> str:
    if not known:
        return ""
    said = "; ".join(f"{name}: {found['verdict']}" for name, found in known.items())
    text = f"How far each may be believed: {said} (good = at least half of the way from guessing to all right)."
    seen = [name for name, found in known.items() if SEEN in found]
    return f"{text} Whether the {seen[0]} learned from its images is not known." if seen else text


def likeness_words(rows: Rows) -> str:
    """Of the first row, which is the generated images."""
    known = [row for row in rows if row.get("precision") is not None]
    if not known:
        return ""
    row = known[0]
    covered = "" if row.get("coverage") is None else f", and {percent(row['coverage'], 0)} of these have one nearby"
    return (
        f"{percent(row['precision'], 0)} of the generated images lie among the held-out ones{covered}. Figures of "
        "other features, or of other numbers of images, are not to be compared with these."
    )


def copying_words(leakage: Metrics) -> str:
    """Of the thumbnails, which decide."""
    return (
        f"Thumbnails decide: {leakage['near_train']} of {leakage['images']} generated images repeat a training image, "
        f"{leakage['near_test']} a held-out one."
    )


def export_words(networks: Rows, what: str) -> str:
    """what: they are. Whether their outputs are PyTorch's."""
    checks = [network.get("parity", "not checked") for network in networks]
    if not checks:
        return ""
    counted = ", ".join(f"{checks.count(check)} {check}" for check in dict.fromkeys(checks))
    errors = [network["relative"] for network in networks if network.get("relative") is not None]
    largest = f"; the largest relative error is {max(errors):.1e}" if errors else ""
    return f"Checked against PyTorch, of {len(checks)} {what}: {counted}{largest}."


def cost_words(cost: Metrics) -> str:
    stages = [stage for stage in cost.get("stages", ()) if stage["hours"]]
    if not stages:
        return ""
    most = max(stages, key=lambda stage: stage["hours"])
    unit = most["unit"]
    total = sum(stage["hours"] for stage in stages if stage["unit"] == unit)
    return f"Most of it is {most['stage']}: {most['hours']:.3g} of {total:.3g} {unit}."


def time_words(seconds: Mapping[str, float]) -> str:
    total = sum(seconds.values())
    if not total:
        return ""
    longest = max(seconds, key=lambda stage: seconds[stage])
    return f"{longest} took the longest: {duration(seconds[longest])}, {percent(seconds[longest] / total, 0)} of all."


def filter_words(results: Mapping[str, Any]) -> str:
    gone = {reason: count for reason, count in results["removed"].items() if count}
    why = f", most for {leading(gone, str).replace('_', ' ')}" if gone else ""
    return f"{results['kept']} of {results['images']} images stay{why}; no file is touched."


def methods_words(results: Mapping[str, Any]) -> str:
    return str(results.get("choice", "")) or f"{results['kept']} is kept."
