"""The page templates: every value is escaped, and shown without characters that do not print."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from dcdm_cli.safe_text import show


def template(name: str) -> Template:
    """`finalize` sees each value before it is escaped: no control or bidi character reaches the page."""
    # undefined: a slip in a template must not be an empty place on the page
    environment = Environment(
        loader=PackageLoader("dcdm_cli.reports", ""), autoescape=True, undefined=StrictUndefined, finalize=_shown
    )
    return environment.get_template(name)


def _shown(value: object) -> object:
    """What a template's own macros have made is safe already."""
    return value if isinstance(value, Markup) else show(value)
