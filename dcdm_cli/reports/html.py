"""The report: one HTML file with everything inside, readable offline, on a phone, in light and dark.

Names, captions and facts are untrusted text: jinja2 escapes them, control characters are shown as escapes, and the
page's own policy forbids scripts and every outside request.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from dcdm_cli.errors import NotFoundError
from dcdm_cli.files import write_text
from dcdm_cli.reports.formatting import Metrics, summary_sentences
from dcdm_cli.reports.table import Sheet
from dcdm_cli.reports.tables import summary_sheets
from dcdm_cli.safe_text import show


@dataclass(frozen=True)
class ReportFigure:
    """A PNG file and what to read in it. The file is copied into the page."""

    title: str
    path: Path
    text: str = ""

    @property
    def data(self) -> str:
        """base64; raises NotFoundError when the file is missing"""
        if not self.path.is_file():
            raise NotFoundError(
                f"no figure at {show(self.path)}", "make it again: dcdm evaluate --force", file=self.path
            )
        return base64.b64encode(self.path.read_bytes()).decode("ascii")


def write_report(
    path: Path,
    metrics: Metrics,
    figures: Sequence[ReportFigure] = (),
    facts: Mapping[str, str] | None = None,
    *,
    title: str = "What the generated images were worth",
) -> Path:
    """Summary sentences, figures, tables of `metrics`, then `facts` (name -> value: settings, versions, sources)."""
    sentences = [*summary_sentences(metrics), *metrics.get("warnings", ())]
    return write_page(path, title, sentences, figures, summary_sheets(metrics), facts or {})


def write_page(
    path: Path,
    title: str,
    sentences: Sequence[str],
    figures: Sequence[ReportFigure],
    sheets: Sequence[Sheet],
    facts: Mapping[str, str],
) -> Path:
    page = template("report.html.j2").render(
        title=title, sentences=sentences, figures=figures, sheets=sheets, facts=facts
    )
    write_text(path, page + "\n")
    return path


def template(name: str) -> Template:
    """`finalize` sees each value before it is escaped: no control or bidi character reaches the page."""
    environment = Environment(
        loader=PackageLoader("dcdm_cli.reports", ""), autoescape=True, undefined=StrictUndefined, finalize=show
    )
    return environment.get_template(name)
