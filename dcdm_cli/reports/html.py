"""The report: one HTML file with everything inside, readable offline, on a phone, in light and dark.

Names, captions and facts are untrusted text: jinja2 escapes them, control characters are shown as escapes, and the
page's own policy forbids every outside request, and every script but the gallery's, which it knows by its hash.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from markupsafe import Markup

from dcdm_cli.errors import NotFoundError
from dcdm_cli.files import write_text
from dcdm_cli.reports.advice import Advice
from dcdm_cli.reports.formatting import Metrics, summary_sentences
from dcdm_cli.reports.gallery import PictureGallery, script, script_hash
from dcdm_cli.reports.table import ResultTable
from dcdm_cli.reports.tables import summary_tables
from dcdm_cli.reports.templates import template
from dcdm_cli.reports.terms import Explained
from dcdm_cli.safe_text import show


@dataclass(frozen=True)
class ReportFigure:
    """A PNG file and what to read in it. The file is copied into the page."""

    title: str
    path: Path
    text: str = ""

    @property
    def alt(self) -> str:
        """For who does not see it: what it is, and what is to be read in it."""
        return f"Figure: {self.title}. {self.text}".strip()

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
    extras: Extras | None = None,
) -> Path:
    """Summary sentences, figures, tables of `metrics`, then `facts` (name -> value: settings, versions, sources)."""
    sentences = [*summary_sentences(metrics), *metrics.get("warnings", ())]
    extras = extras or Extras()
    tables = [*summary_tables(metrics), *extras.tables]
    return write_page(path, title, sentences, figures, tables, facts or {}, extras=extras)


@dataclass(frozen=True)
class Extras:
    """What a page may have besides. made: when, with what and by which command; tables: further ones."""

    made: Mapping[str, str] = field(default_factory=dict)
    advice: Sequence[Advice] = ()
    gallery: PictureGallery | None = None
    tables: Sequence[ResultTable] = ()


def write_page(
    path: Path,
    title: str,
    sentences: Sequence[str],
    figures: Sequence[ReportFigure],
    tables: Sequence[ResultTable],
    facts: Mapping[str, str],
    *,
    extras: Extras | None = None,
) -> Path:
    """Every term is explained where it first stands. The page's policy lets run the gallery's script, if there is a
    gallery, and no other."""
    extras = extras or Extras()
    page = template("report.html.j2").render(
        title=title, sentences=sentences, figures=figures, tables=tables, facts=facts, made=extras.made,
        # Markup: escaped, it would not be the script whose hash the page's policy lets run.
        advice=extras.advice, gallery=extras.gallery, explained=Explained(), script=Markup(script()),
        script_hash=script_hash(),
    )  # fmt: skip
    write_text(path, page + "\n")
    return path
