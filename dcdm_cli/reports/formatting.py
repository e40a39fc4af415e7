"""Numbers as words: how a figure is written, and what it means in a sentence. Used by every table, plot and page.

All functions take what `metrics.json` holds; null stands for "could not be computed" and is shown as a dash.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from dcdm_cli import pace
from dcdm_cli.difficulty.competence import DOWNSTREAM, MEANS, SEEN, competence_sentence, exchanged_sentence

NOTHING = "\N{EN DASH}"
STEERED = 0.5  # rank correlation from which the page says that difficulty can be steered
# A weak one still tells what many seeds tell; one at chance tells nothing.
WEAKLY = {DOWNSTREAM: "small differences between training sets may not show in it"}
MANY = 5  # comparisons from which the page reminds the reader of chance

Metrics = Mapping[str, Any]
Interval = Sequence[float | None] | None


def number(value: float | None, digits: int = 2) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 1) -> str:
    return NOTHING if value is None else f"{100 * value:.{digits}f} %"


def points(value: float | None, digits: int = 1) -> str:
    """A difference of two shares, in signed percentage points."""
    return NOTHING if value is None else f"{100 * value:+.{digits}f}"


def interval(bounds: Interval, unit: str = "", digits: int = 1) -> str:
    """A 95 % interval of a share or of a difference, times 100; a dash when one seed gave none."""
    known = known_bounds(bounds)
    return f"[{100 * known[0]:.{digits}f}, {100 * known[1]:.{digits}f}]{unit}" if known else NOTHING


def known_bounds(bounds: Interval) -> tuple[float, float] | None:
    """None, and a pair with a null in it, both mean that there is no interval."""
    if not bounds or bounds[0] is None or bounds[1] is None:
        return None
    return bounds[0], bounds[1]


def duration(seconds: float | None) -> str:
    """Two units at most: '48 s', '12 min 5 s', '3 h 10 min'."""
    return NOTHING if seconds is None else pace.duration(seconds)


def verdict(pair: Mapping[str, Any]) -> str:
    """What the statistics decided: better, worse, points to one of them, or cannot tell; and how many seeds would."""
    word = pair.get("verdict", NOTHING)
    missing = (pair.get("seeds_needed") or 0) - pair["seeds"]
    if word.startswith("points to "):
        seeds = "more seeds" if missing < 1 else f"{missing} more seed{'s' if missing > 1 else ''}"
        return f"{word}; {seeds} would decide"
    if word != "cannot tell":
        return word
    more = f"; about {pair['seeds_needed']} would" if missing > 0 else ""
    return f"{word} at {seeds_of(pair)}{more}"


def seeds_of(pair: Mapping[str, Any]) -> str:
    return "1 seed" if pair["seeds"] == 1 else f"{pair['seeds']} seeds"


def probability(value: float | None) -> str:
    """A p value; a small one as a bound."""
    if value is None:
        return NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def summary_sentences(metrics: Metrics) -> list[str]:
    """What the numbers say, most important first. Sections that are missing are left out."""
    return [
        *metrics.get("first_look", ()),  # how the rest is to be read
        *paired_sentences((metrics.get("downstream") or {}).get("paired", ())),
        *_adherence_sentences(metrics.get("adherence") or {}),
        *_classifier_sentences(metrics),
        *_quality_sentences(metrics.get("quality") or {}),
        *_time_sentences(metrics.get("seconds") or {}, metrics.get("device")),
        *_bill_sentences(metrics.get("cost") or {}),
    ]


def paired_sentences(pairs: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """One plain sentence per comparison, and one about their number."""
    pairs = list(pairs)
    for pair in pairs:
        bounds = f" {interval(pair['difference_ci95'])}" if known_bounds(pair["difference_ci95"]) else ""
        seeds = "1 paired seed" if pair["seeds"] == 1 else f"{pair['seeds']} paired seeds"
        test = f", p {_equals(pair['p_value'])}" if pair.get("p_value") is not None else ""
        difference = f"{points(pair['difference_mean'])} points of accuracy{bounds} over {seeds}{test}"
        yield f"{pair['arm']} vs {pair['against']}: {difference}: {verdict(pair)}."
    if len(pairs) >= MANY:
        yield f"{len(pairs)} comparisons: about one 95 % interval in 20 misses the truth by chance."


def known_sentences(known: Mapping[str, Metrics]) -> Iterator[str]:
    """What the classifiers behind the figures know. known: who (of `competence.MEANS`) -> standing."""
    for who, found in known.items():
        yield " ".join(filter(None, (competence_sentence(who, found), exchanged_sentence(who, found))))


def weak_sentences(known: Mapping[str, Metrics]) -> Iterator[str]:
    """The same of those alone that know too little, or exchange classes, with what that means."""
    for who, found in known.items():
        if said := exchanged_sentence(who, found):
            yield said
        if found["verdict"] in ("weak", "chance"):
            means = MEANS[who] if found["verdict"] == "chance" else WEAKLY.get(who, MEANS[who])
            yield f"{competence_sentence(who, found)[:-1]}: {means}."


def generated_sentence(results: Metrics, known: Metrics | None = None) -> str:
    """Of finished images: how many, how hard they came out beside their targets, and whether their label shows. known:
    the scorer's standing on real images, without which its word of generated ones says nothing."""
    text = f"{results['images']:,} images"
    if (mean := results.get("measured_mean")) is not None:
        text += f", {number(mean)} hard in the mean by the scorer, where {number(results['target_mean'])} was the "
        text += f"target; it sees the label in {percent(results['label_agreement'], 0)} of them"
        if known and known.get("accuracy") is not None:
            right, guessed, prior = (percent(known.get(share), 0) for share in ("accuracy", "chance", "prior"))
            also = f", always naming the largest class: {prior}" if prior not in (guessed, NOTHING) else ""
            learned = "may have learned from" if SEEN in known else "did not learn from"
            text += f", and in {right} of {known['asked']:,} real images that it {learned} "
            text += f"(guessing: {guessed}{also})"
    failed = f"; {results['failed']:,} failed" if results.get("failed") else ""
    return f"{text}{failed}."


def _equals(p: float) -> str:
    text = probability(p)
    return text if text.startswith("<") else f"= {text}"


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
    if "labels_hold_until" in adherence:
        held, counted = adherence["labels_hold_until"], adherence.get("frontier") or ()
        real = f"; real images {_up_to(held['real'])}" if any(row["real_n"] for row in counted) else ""
        yield f"Generated images keep their label in at least 90 % of cases {_up_to(held['generated'])}{real}."


def _up_to(difficulty: float | None) -> str:
    return "at no difficulty" if difficulty is None else f"up to difficulty {difficulty:.1f}"


def _classifier_sentences(metrics: Metrics) -> Iterator[str]:
    yield from weak_sentences(metrics.get("competence") or {})
    if metrics.get("agreement"):
        from dcdm_cli.evaluation.agreement import agreement_sentence  # with SciPy, which words need nowhere else

        yield agreement_sentence(metrics["agreement"])


def _quality_sentences(quality: Metrics) -> Iterator[str]:
    if not quality:
        return
    leakage, kept = quality["leakage"], quality["label_agreement"]
    seen = "" if kept is None else f"; the judge sees the label in {percent(kept)}"
    yield (
        f"Of {quality['images']} generated images {quality['blank']} are blank, {leakage['near_train']} repeat a "
        f"training image and {leakage['near_test']} a held-out image{seen}."
    )
    if leakage.get("from_source"):
        yield f"{leakage['near_source']} of {leakage['from_source']} images that started from a real one repeat it."
    if leakage["level"] == "error":
        yield "Leak: generated images repeat held-out images, so that accuracy on those is too high."
    if (closer := leakage["closer_than_real"]) is not None and closer > 3 * leakage["closer_expected"]:
        yield (
            f"{percent(closer)} of the generated images lie closer to a training image than 99 % of the held-out real "
            "ones do: the generator repeats what it was trained on."
        )
    if leakage["real_overlap"]:
        yield f"{leakage['real_overlap']} held-out real images all but repeat a training image."


def _time_sentences(seconds: Mapping[str, float], device: str | None) -> Iterator[str]:
    if seconds:
        place, total = f" on {device}" if device else "", duration(sum(seconds.values()))
        if set(seconds) == {"artefacts"}:  # a check alone, which has no other stages
            yield f"Looking at them took {total}{place}."
            return
        longest = max(seconds, key=lambda stage: seconds[stage])
        yield f"The whole run took {total}{place}; most of it {longest} ({duration(seconds[longest])})."


def _bill_sentences(cost: Metrics) -> Iterator[str]:
    if not cost or not cost["stages"] or not any(cost["hours"].values()):
        return
    spent = " and ".join(f"{hours:.3g} {unit}" for unit, hours in cost["hours"].items() if hours)
    money = "" if cost["money"] is None else f" ({cost['money']:.2f} at {cost['gpu_hour_price']:g} per GPU-hour)"
    yield f"Making {cost['images']} images cost {spent}{money}, scoring and fine-tuning included."
    if cost["per_point"]:
        each = " and ".join(f"{cost['per_point'][u]:.3g} {u}" for u, hours in cost["hours"].items() if hours)
        yield f"{cost['points_gained']:.2f} points of accuracy were gained: {each} per point."
