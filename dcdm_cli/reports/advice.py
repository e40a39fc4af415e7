"""What to do now, from what was measured: go on or stop, which difficulty, how many images, whether control pays. Not
from the paper.

Every answer names the numbers that it rests on, and says so where nothing was measured that could answer.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from dcdm_cli.evaluation.statistics import FEWEST_SEEDS
from dcdm_cli.reports.cases import measured_cases, nearest_case
from dcdm_cli.reports.formatting import Metrics, interval, known_bounds, number, percent, points, seeds_of
from dcdm_cli.reports.table import sentence
from dcdm_cli.safe_text import show

OURS, REAL, PLAIN = "dcdm", "real", "plain"
HELPS = ("better", "points to better")
HARMS = ("worse", "points to worse")
FEW_LABELS = (
    0.8  # of the labels that the judge sees in real images: with fewer, images teach wrong labels more than right
)
MOST_SEEDS = 64  # that anybody trains to tell a difference
SPREAD = 0.1  # standard deviation of the difficulty that is proposed, as the default has it
MEAN_SWEEP = "dcdm evaluate experiment mean-sweep"
GENERATE = "dcdm generate"


@dataclass(frozen=True)
class Advice:
    """question, its answer in a few words, the numbers behind it, and the command that does it ("" = none)."""

    question: str
    answer: str
    why: str
    command: str = ""


def advice(
    metrics: Metrics, experiments: Mapping[str, Metrics] | None = None, *, strength_chosen: bool = False
) -> list[Advice]:
    """experiments: documents of finished ones by name; `mean-sweep` and `ratio-sweep` are looked at. strength_chosen:
    whether fine-tuning measured how far to go, so that it need not be told to. Empty without numbers to go by."""
    found = experiments or {}
    if not metrics.get("adherence"):
        return []
    return [
        _go_on(metrics, strength_chosen),
        _which_difficulty(metrics["adherence"], found.get("mean-sweep"), strength_chosen),
        _how_many(metrics, found.get("ratio-sweep")),
        *_does_control_pay(metrics.get("downstream")),
    ]


def about_run(found: Sequence[Advice], words: str, taken: Collection[str] = ()) -> list[Advice]:
    """The same with commands that can be copied as they stand. words: what names the run folder: ` --run DIR`. taken:
    names of generated sets that hold images, "" among them for the set without a name: each proposed set gets a name of
    its own."""
    names, made = _free_names(taken), []
    for one in found:
        # the first set of a run needs no name
        named = f" --name {next(names)}" if taken and one.command.startswith(GENERATE) else ""
        command = one.command + named + words if one.command else ""
        made.append(replace(one, why=one.why.replace(MEAN_SWEEP, MEAN_SWEEP + words), command=command))
    return made


def _free_names(taken: Collection[str]) -> Iterator[str]:
    return (name for number in count(1) if (name := f"next-{number}") not in taken)


def advice_lines(found: Sequence[Advice]) -> list[RenderableType]:
    """For a terminal: question and answer, the numbers behind them, and the command on a line of its own."""
    lines: list[RenderableType] = []
    for one in found:
        lines.append(sentence(f"{one.question} {one.answer}. {one.why}"))
        lines += [Text(f"  {show(one.command)}")] if one.command else []
    return lines


def _go_on(metrics: Metrics, strength_chosen: bool) -> Advice:
    question, quality = "Go on or stop?", metrics.get("quality") or {}
    kept = quality.get("label_agreement")
    # First: with a leak, the accuracies that are asked for further down say nothing.
    if (quality.get("leakage") or {}).get("level") == "error":
        why = f"{quality['leakage']['near_test']} generated images repeat held-out ones: accuracies cannot be trusted."
        return Advice(question, "Stop: held-out images leaked", why, "dcdm evaluate filter")
    known = ((metrics.get("competence") or {}).get("judge") or {}).get("accuracy")
    # a judge that sees few labels in real images proves nothing by generated ones
    if kept is not None and kept < FEW_LABELS * (1 if known is None else known):
        real = "" if known is None else f", and in {percent(known)} of real ones that it did not learn from"
        why = f"The judge sees the label in {percent(kept)} of the images{real}."
        return _broken(Advice(question, "Stop: labels are lost", why), strength_chosen)
    pair = _pair(metrics.get("downstream"), OURS, REAL)
    if pair is None:
        why = "No classifier was trained with and without the images yet."
        return Advice(question, "Measure first", why, "dcdm evaluate")
    return _by_verdict(question, pair)


def _by_verdict(question: str, pair: Metrics) -> Advice:
    why = _difference(pair)
    if pair["verdict"] in HARMS:
        return Advice(question, "Stop: the images make it worse", why, MEAN_SWEEP)
    if pair["verdict"] == "better":
        return Advice(question, "Go on: the images help", why, "dcdm evaluate experiment ratio-sweep")
    needed = pair.get("seeds_needed") or 0
    if not needed and pair["seeds"] < FEWEST_SEEDS:  # of one seed no spread is known
        why += f" {FEWEST_SEEDS} seeds are the fewest that can tell."
        return Advice(question, "Cannot be told yet", why, f"dcdm evaluate --seeds {FEWEST_SEEDS}")
    command = f"dcdm evaluate --seeds {needed}" if pair["seeds"] < needed <= MOST_SEEDS else ""
    if pair["verdict"] in HELPS:
        return Advice(question, "Go on, with more seeds: it points to a gain", why, command)
    if needed > MOST_SEEDS:
        why += f" About {needed} seeds would decide: a difference so small is hardly worth them."
        return Advice(question, "Stop, or change something: no gain in sight", why)
    more = f" About {needed} seeds would decide." if command else " More seeds are not expected to decide it."
    return Advice(question, "Cannot be told yet", why + more, command)


def _broken(said: Advice, strength_chosen: bool) -> Advice:
    """With what may mend labels that do not show."""
    if not strength_chosen:
        why = f"{said.why} This replaces the adapter; a run folder of its own (--run) keeps it."
        return replace(said, why=why, command="dcdm finetune --strength auto --force")
    more = (
        "How far to fine-tune was measured already: more real images, or a base model that knows these classes, help."
    )
    return replace(said, why=f"{said.why} {more}")


def _which_difficulty(adherence: Metrics, sweep: Metrics | None, strength_chosen: bool) -> Advice:
    question = "Which difficulty?"
    measured = _swept(sweep)
    if measured:
        best, pair = max(measured, key=lambda both: both[1]["difference_mean"])
        if pair["verdict"] in HELPS:
            command = f"{GENERATE} --difficulty {shlex.quote(best['difficulty'])}"
            return Advice(question, f"{best['name']}", f"Of {len(measured)} tried: {_difference(pair)}", command)
        why = f"None of {len(measured)} tried was shown to help; the best was {best['name']}: {_difference(pair)}"
        return Advice(question, "It is not the difficulty", why)
    holds, reach = adherence.get("labels_hold_until") or {}, known_bounds(adherence.get("reachable"))
    if not holds:
        why = "Without a judge it is not known up to which difficulty labels hold."
        return Advice(question, "Cannot be told", why, "dcdm evaluate experiment mean-sweep")
    held = holds.get("generated")
    if held is None and "real" in holds and holds["real"] is None:
        why = (
            "The judge sees the label in 90 % of cases at no difficulty, of real images neither. More held-out images "
            "teach it more (--test-fraction and --judge-fraction of dcdm score)."
        )
        return Advice(question, "Cannot be told: the judge sees too little", why)
    if held is None:
        why = "Generated images keep their label in 90 % of cases at no difficulty."
        return _broken(Advice(question, "None yet: labels break everywhere", why), strength_chosen)
    cap = max(min(held, reach[1]) if reach else held, 0.01)  # a cap of 0 is refused: nothing lies below it
    # two deviations lower: the cap cuts little off the distribution
    mean = max(cap - 2 * SPREAD, reach[0] if reach else 0.0)
    where = f"; means from {number(reach[0])} to {number(reach[1])} can be reached" if reach else ""
    open_question = f"Which difficulty helps most was not measured: {MEAN_SWEEP} does that."
    why = f"Labels hold up to {number(held, 1)}{where}. {open_question}"
    command = f"{GENERATE} --difficulty normal:{mean:.2f},{SPREAD:g} --difficulty-cap {cap:.2f}"
    return Advice(question, f"Up to {number(cap)}", why, command)


def _how_many(metrics: Metrics, sweep: Metrics | None) -> Advice:
    question = "How many images?"
    cells = [(cell, pair) for cell in (sweep or {}).get("cells", ()) if (pair := _pair(cell, OURS, REAL))]
    if not cells:
        made = (metrics.get("quality") or {}).get("images")
        why = f"{made} were made; whether more help was not measured." if made else "None were made yet."
        return Advice(question, "Not measured", why, "dcdm evaluate experiment ratio-sweep")
    helping = [both for both in cells if both[1]["verdict"] in HELPS]
    if not helping:
        tried = ", ".join(f"{cell['ratio']:g}" for cell, _ in cells)
        best, pair = max(cells, key=lambda both: both[1]["difference_mean"])
        why = f"None of the ratios {tried} was shown to help; the best was {best['ratio']:g}: {_difference(pair)}"
        return Advice(question, "No number was shown to help", why)
    best, pair = max(helping, key=lambda both: both[1]["difference_mean"])
    enough, its_pair = _smallest_as_good(helping, pair)
    why = f"{enough['ratio']:g} per real image: {_difference(its_pair)}"
    if enough is not best:
        why += f" {best['ratio']:g} per real image gain {points(pair['difference_mean'])}, no more than chance allows."
    return Advice(question, f"{enough['ratio']:g} per real image", why, f"{GENERATE} --ratio {enough['ratio']:g}")


def _does_control_pay(downstream: Metrics | None) -> Iterator[Advice]:
    """Against plain LoRA's images, where such were made; else what the most alike case that was measured says."""
    real, made = (downstream or {}).get("real_images"), _made_for(downstream, OURS)
    if not downstream or not real or not made:
        return
    question, pair = "Does control pay here?", _pair(downstream, OURS, PLAIN)
    alike = f"The most alike case measured with this tool: {nearest_case(real, made / real, measured_cases()).told()}."
    if pair is None:
        yield Advice(question, "Not measured", alike, "dcdm evaluate --arms real,plain,dcdm --seeds 6")
        return
    answers = {"better": "Yes", "points to better": "It points to it"} | dict.fromkeys(HARMS, "Not here")
    more = " Plain LoRA costs less: dcdm finetune --conditioning none." if pair["verdict"] in HARMS else ""
    yield Advice(question, answers.get(pair["verdict"], "Cannot be told"), f"{_difference(pair)}{more} {alike}")


def _made_for(downstream: Metrics | None, name: str) -> int:
    arms = (downstream or {}).get("arms", ())
    return next((arm["synthetic_images"] for arm in arms if arm["name"] == name), 0)


def _smallest_as_good(helping: Sequence[tuple[Metrics, Metrics]], best: Metrics) -> tuple[Metrics, Metrics]:
    """The fewest images whose gain lies within the interval of the largest."""
    bounds = known_bounds(best["difference_ci95"])
    least = bounds[0] if bounds else best["difference_mean"]
    good = [both for both in helping if both[1]["difference_mean"] >= least]
    return min(good, key=lambda both: both[0]["ratio"])


def _swept(sweep: Metrics | None) -> list[tuple[Metrics, Metrics]]:
    """Arms of one difficulty each with their comparison against real images alone; of the first cell."""
    cell: Metrics = next(iter((sweep or {}).get("cells", ())), {})
    arms = [arm for arm in cell.get("arms", ()) if arm.get("difficulty")]
    return [(arm, pair) for arm in arms if (pair := _pair(cell, arm["name"], REAL))]


def _pair(section: Metrics | None, arm: str, against: str) -> dict[str, Any] | None:
    pairs = (section or {}).get("paired", ())
    return next((pair for pair in pairs if (pair["arm"], pair["against"]) == (arm, against)), None)


def _difference(pair: Metrics) -> str:
    bounds = f" {interval(pair['difference_ci95'])}" if known_bounds(pair["difference_ci95"]) else ""
    return f"{points(pair['difference_mean'])} points of accuracy against {pair['against']}{bounds}, {seeds_of(pair)}."
