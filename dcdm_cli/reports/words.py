"""Numbers as words: how a figure is written, and what it means in a sentence. Used by every table, plot and page.

All functions take what `metrics.json` holds; null stands for "could not be computed" and is shown as a dash.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

NOTHING = "\N{EN DASH}"
STEERED = 0.5  # rank correlation from which the page says that difficulty can be steered
LABELS_HOLD = 0.9  # agreement from which a bin counts as keeping its labels

Metrics = Mapping[str, Any]
Interval = Sequence[float | None] | None


def number(value: float | None, digits: int = 2) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 1) -> str:
    return NOTHING if value is None else f"{100 * value:.{digits}f} %"


def points(value: float | None) -> str:
    """A difference of two shares, in signed percentage points."""
    return NOTHING if value is None else f"{100 * value:+.1f}"


def interval(bounds: Interval, unit: str = "") -> str:
    """A 95 % interval of a share or of a difference, times 100; a dash when one seed gave none."""
    known = known_bounds(bounds)
    return f"[{100 * known[0]:.1f}, {100 * known[1]:.1f}]{unit}" if known else NOTHING


def known_bounds(bounds: Interval) -> tuple[float, float] | None:
    """None, and a pair with a null in it, both mean that there is no interval."""
    if not bounds or bounds[0] is None or bounds[1] is None:
        return None
    return bounds[0], bounds[1]


def duration(seconds: float | None) -> str:
    """Two units at most: '48 s', '12 min 5 s', '3 h 10 min'."""
    if seconds is None:
        return NOTHING
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{count} {unit}" for count, unit in ((hours, "h"), (minutes, "min"), (rest, "s")) if count]
    return " ".join(parts[:2])


def verdict(pair: Mapping[str, Any]) -> str:
    """'better', 'worse', or 'cannot tell' when the interval holds zero or there is no interval."""
    known = known_bounds(pair["difference_ci95"])
    if known is None or known[0] <= 0 <= known[1]:
        return "cannot tell"
    return "better" if known[0] > 0 else "worse"


def labels_hold_until(frontier: Sequence[Mapping[str, Any]], kind: str) -> float | None:
    """Upper edge of the last bin before `kind` ("real", "generated") first falls below LABELS_HOLD; None = never held.

    Bins without images are passed over: they say nothing either way.
    """
    edge = None
    for row in frontier:
        agreement = row[f"{kind}_agreement"]
        if agreement is None:
            continue
        if agreement < LABELS_HOLD:
            break
        edge = row["bin"][1]
    return edge


def summary_sentences(metrics: Metrics) -> list[str]:
    """What the numbers say, most important first. Sections that are missing are left out."""
    return [
        *_downstream_sentences(metrics.get("downstream") or {}),
        *_adherence_sentences(metrics.get("adherence") or {}),
        *_cost_sentences(metrics.get("seconds") or {}, metrics.get("device")),
    ]


def _downstream_sentences(downstream: Metrics) -> Iterator[str]:
    for pair in downstream.get("paired", ()):
        bounds = f" {interval(pair['difference_ci95'])}" if known_bounds(pair["difference_ci95"]) else ""
        seeds = "1 paired seed" if pair["seeds"] == 1 else f"{pair['seeds']} paired seeds"
        difference = f"{points(pair['difference_mean'])} points of accuracy{bounds} over {seeds}"
        yield f"{pair['arm']} vs {pair['against']}: {difference}: {verdict(pair)}."


def _adherence_sentences(adherence: Metrics) -> Iterator[str]:
    if not adherence:
        return
    steered = "can be steered" if (adherence["spearman"] or 0) >= STEERED else "is hard to steer here"
    yield (
        f"Difficulty {steered}: rank correlation {number(adherence['spearman'])} between target and result over "
        f"{adherence['n']} images, {number(adherence['mean_absolute_error'])} off on average."
    )
    if known := known_bounds(adherence.get("reachable")):
        yield f"Mean difficulties from {number(known[0])} to {number(known[1])} can be reached."
    yield from _frontier_sentences(adherence.get("frontier") or ())


def _frontier_sentences(frontier: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not frontier:
        return
    made, real = labels_hold_until(frontier, "generated"), labels_hold_until(frontier, "real")
    share = f"keep their label in at least {percent(LABELS_HOLD, 0)} of cases"
    yield f"Generated images {share} {_up_to(made)}; real images {_up_to(real)}."


def _up_to(difficulty: float | None) -> str:
    return "at no difficulty" if difficulty is None else f"up to difficulty {difficulty:.1f}"


def _cost_sentences(seconds: Mapping[str, float], device: str | None) -> Iterator[str]:
    if seconds:
        longest = max(seconds, key=lambda stage: seconds[stage])
        place = f" on {device}" if device else ""
        total = duration(sum(seconds.values()))
        yield f"The whole run took {total}{place}; most of it {longest} ({duration(seconds[longest])})."
