"""Where asking for difficulty and choosing by it pays: what it adds to plain LoRA at the same number of images.

    python benchmarks/where_control_pays.py [--results benchmarks/results]

Reads the cases that claims.toml names, and writes results/where_control_pays.json, its picture in docs/images, and
dcdm_cli/reports/cases.json, from which a report tells its reader which case is most like theirs. A result that is not
there is left out. Nothing is decided here: verdicts are those of the results.
"""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from claims import CLAIMS
from common import RESULTS, ROOT, write_result

from dcdm_cli.files import write_json
from dcdm_cli.reports import figure_style
from dcdm_cli.reports.cases import MeasuredCase
from dcdm_cli.reports.formatting import interval, points

PACKAGED = ROOT / "dcdm_cli" / "reports" / "cases.json"
PICTURE = ROOT / "docs" / "images" / "where_control_pays.png"
COLUMNS = ("data", "real images", "generated per real", "fine-tuned", "points, 95 % interval", "seeds", "verdict")
COLOURS = (figure_style.ORANGE, figure_style.BLUE, figure_style.GREEN, figure_style.PURPLE, figure_style.GREY)
MARKS = ("o", "s", "^")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    cases = cases_of(tomllib.loads(CLAIMS.read_text("utf-8"))["cases"], options.results)
    write_json(PACKAGED, [asdict(case) for case in cases])
    draw(cases, PICTURE)
    table = {"title": "dcdm minus plain LoRA", "columns": [*COLUMNS], "rows": [_row(case) for case in cases]}
    better = sum(case.verdict == "better" for case in cases)
    body = {"title": "Where control pays, and where not", "tables": [table]}
    write_result("where_control_pays", body, {"cases": len(cases), "better": better})


def cases_of(named: Sequence[Mapping[str, Any]], results: Path) -> list[MeasuredCase]:
    """One per ratio of the named results; of what several measured alike, the one with most seeds."""
    found: dict[tuple[str, int, str, float], MeasuredCase] = {}
    for one in named:
        file = results / f"{one['result']}.json"
        if not file.is_file():
            continue
        for case in _cases(one, json.loads(file.read_text("utf-8"))["document"]):
            alike = (case.data, case.real, case.strength, case.ratio)
            found[alike] = max(case, found.get(alike, case), key=lambda known: known.seeds)
    return sorted(found.values(), key=lambda case: (case.data != "digits", case.real, case.strength, case.ratio))


def _cases(one: Mapping[str, Any], document: Mapping[str, Any]) -> Iterator[MeasuredCase]:
    for cell in document["cells"]:
        for pair in cell["paired"]:
            if (pair["arm"], pair["against"]) == (one["arm"], one["against"]):
                low, high = pair["difference_ci95"]
                yield MeasuredCase(
                    one["data"], cell["real_images"], cell["ratio"], one["strength"], pair["seeds"],
                    pair["difference_mean"], low, high, pair["verdict"],
                )  # fmt: skip


def draw(cases: Sequence[MeasuredCase], path: Path) -> None:
    """Points over generated images per real one, a colour and mark per data, real images and strength; filled where the
    comparison says better."""
    figure = figure_style.figure(8.4, 4.6)
    axes = figure.add_subplot()
    groups = list(dict.fromkeys((case.data, case.real, case.strength) for case in cases))
    for number, (data, real, strength) in enumerate(groups):
        mine = [case for case in cases if (case.data, case.real, case.strength) == (data, real, strength)]
        _points(axes, mine, f"{data}, {real:,} real, {strength}", _look(number), 0.03 * number)
    axes.axhline(0, color=figure_style.GREY, linewidth=1)
    axes.set_xscale("log", base=2)
    ratios = sorted({case.ratio for case in cases})
    axes.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])
    axes.minorticks_off()
    axes.set_xlim(ratios[0] / 1.5, ratios[-1] * 1.5)
    xlabel = "generated images per real one"
    figure_style.style(axes, "Accuracy of dcdm minus plain LoRA's, points (filled: better)", xlabel, "")
    figure.legend(fontsize=8, frameon=False, loc="outside lower left", ncols=2)
    figure_style.save(figure, path)


def _look(number: int) -> tuple[str, str]:
    """Colour and mark of a group: another mark where the colours begin again."""
    return COLOURS[number % len(COLOURS)], MARKS[number // len(COLOURS) % len(MARKS)]


def _points(axes: Any, cases: Sequence[MeasuredCase], label: str, look: tuple[str, str], shift: float) -> None:
    colour, mark = look
    x = [case.ratio * (1 + shift) for case in cases]
    for place, case in zip(x, cases, strict=True):
        axes.plot([place, place], [100 * case.low, 100 * case.high], color=colour, linewidth=1.4)
        filled = colour if case.verdict == "better" else "white"
        axes.plot([place], [100 * case.difference], mark, color=colour, markerfacecolor=filled, markersize=6)
    axes.plot([], [], mark, color=colour, label=label)


def _row(case: MeasuredCase) -> list[str]:
    difference = f"{points(case.difference)} {interval((case.low, case.high))}"
    found = (f"{case.real:,}", f"{case.ratio:g}", case.strength, difference, str(case.seeds), case.verdict)
    return [case.data, *found]


if __name__ == "__main__":
    main()
