"""Numbers in documents come from results, and from nowhere else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from document_blocks import END
from documents import documents, main, remake

import dcdm_cli
from dcdm_cli.errors import MismatchError, NotFoundError, UsageError

from .reports.test_experiment_reports import document

ROOT = Path(dcdm_cli.__file__).parent.parent


def test_every_number_in_a_block_is_what_its_results_say() -> None:
    """Fails when a block was edited by hand, or results changed without `python benchmarks/documents.py`"""
    changed, _ = remake(ROOT, drawn=False, write=False)
    names = [path.name for path in changed]
    assert not names, f"{', '.join(names)} differ from benchmarks/results: run python benchmarks/documents.py"


# Versions, settings, an arXiv number, the level of intervals.
NOT_MEASURED = {"95", "2411.18109", "3.11", "1.5", "2.0", "0.1", "0.5", "0.8", "0.7", "0.05"}
NOT_TEXT = re.compile(
    r"<!-- figures.*?<!-- /figures -->|<!-- value.*?<!-- /value -->|```.*?```|`[^`]*`|\]\([^)]*\)", re.DOTALL
)


def test_the_readme_types_no_measured_number_by_hand() -> None:
    text = NOT_TEXT.sub(" ", (ROOT / "README.md").read_text("utf-8"))
    typed = set(re.findall(r"\d[\d,]*\.\d+|\d[\d,]*(?= ?%)", text))
    assert typed <= NOT_MEASURED, "write them as <!-- value:RESULT:KEYS:FORMAT --><!-- /value -->"


def test_the_readmes_words_on_the_comparison_hold() -> None:
    """Generated images are worth more than none and than the same images again, and that is no chance; what control of
    difficulty adds to plain LoRA cannot be told."""
    document = json.loads((ROOT / "benchmarks" / "results" / "digits_50_confirm.json").read_text("utf-8"))["document"]
    verdicts = {(pair["arm"], pair["against"]): pair["verdict"] for pair in document["cells"][0]["paired"]}
    assert verdicts["dcdm", "real"] == verdicts["dcdm", "upsampled"] == verdicts["plain LoRA", "real"] == "better"
    assert verdicts["dcdm", "plain LoRA"] == "cannot tell" and document["tested_on"] == "test"


ORDER = ("flags", "record", "environment", "--config", "dcdm.toml", "preset", "defaults")  # of settings, first wins


@pytest.mark.parametrize(
    ("document", "begin"),
    [
        ("README.md", "Settings come from"),
        ("docs/settings.md", "decides:"),
        ("dcdm_cli/run/resolution.py", "first wins:"),
    ],
)
def test_the_order_of_settings_is_told_alike(document: str, begin: str) -> None:
    told = (ROOT / document).read_text("utf-8").partition(begin)[2]
    places = [told.index(word) for word in ORDER]
    assert places == sorted(places) and places[-1] < 700


def test_figures_that_documents_show_are_there() -> None:
    for path in documents(ROOT):
        for link in re.findall(r"!\[[^\]]*\]\(([^)]+\.png)\)", path.read_text("utf-8")):
            assert (path.parent / link).is_file() or END not in path.read_text("utf-8"), link


@pytest.fixture
def project(tmp_path: Path) -> Path:
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    about = {"command": "dcdm x", "hardware": "2 cores", "date": "2026-01-02", "versions": {"torch": "2.14"}}
    (results / "digits_controls.json").write_text(json.dumps({**about, "wall_seconds": 61, "document": document()}))
    tables = [{"title": "Speed", "columns": ["engine", "images/s"], "rows": [["torch", 12.5]]}]
    (results / "speed.json").write_text(json.dumps({"title": "Speed", "sentences": ["Fast."], "tables": tables}))
    (results / "raw.json").write_text("[1, 2]")
    (tmp_path / "README.md").write_text(
        "# Project\n\n<!-- figures:digits_controls -->\n\nold text\n<!-- /figures -->\nend\n"
    )
    (tmp_path / "benchmarks" / "README.md").write_text("<!-- figures -->\nafter\n")
    return tmp_path


def test_blocks_are_made_from_results_and_nothing_else_is_touched(project: Path) -> None:
    changed, results = remake(project)
    assert {path.name for path in changed} == {"README.md"} and set(results) == {"digits_controls", "speed"}
    text = (project / "README.md").read_text()
    assert text.startswith("# Project\n\n<!-- figures:digits_controls -->\n\n") and text.endswith(
        "<!-- /figures -->\nend\n"
    )
    assert "old text" not in text and "| plain | 200 | N(0.5, 0.1) | 0.42 |" in text
    assert "`dcdm x`, 1 min 1 s, 2 cores, 2026-01-02, torch 2.14" in text
    assert "![Differences](docs/images/digits_controls/differences.png)" in text
    assert (project / "docs" / "images" / "digits_controls" / "differences.png").is_file()
    whole = (project / "benchmarks" / "README.md").read_text()
    assert "../docs/images/digits_controls/differences.png" in whole and "| torch | 12.5 |" in whole
    assert whole.endswith(END + "\nafter\n")  # the lone marker got its end
    assert remake(project)[0] == []  # again changes nothing


def test_names_may_end_in_a_star_and_a_marker_waits_for_its_first_result(project: Path) -> None:
    readme = project / "README.md"
    head = "a `<!-- figures:gone -->`\n<!-- figures:cifar* -->\nb\n<!-- figures:digits* , speed -->\n"
    readme.write_text(f"{head}c\n")
    remake(project)
    text = readme.read_text()
    assert text.startswith(f"{head}\n**digits_controls: a**") and text.endswith(f"{END}\nc\n")
    assert text.count(END) == 1 and text.index("**digits_controls: a**") < text.index("**Speed**")
    (project / "benchmarks" / "results" / "digits_controls.json").unlink()
    remake(project)
    assert "**digits_controls" not in readme.read_text() and readme.read_text().endswith(f"{END}\nc\n")


def test_an_edited_number_is_found(project: Path) -> None:
    remake(project)
    file = project / "README.md"
    assert remake(project, drawn=False, write=False)[0] == []
    file.write_text(file.read_text().replace("96.00 %", "99.00 %").replace("97.00 %", "99.00 %"))
    assert remake(project, drawn=False, write=False)[0] == [file]


def test_a_value_in_running_text_follows_its_result(project: Path) -> None:
    readme = project / "README.md"
    readme.write_text("It does <!-- value:speed:tables/0/rows/0/1:.1f -->9<!-- /value --> a second.\n")
    assert remake(project, write=False)[0][0] == readme
    remake(project)
    assert readme.read_text() == "It does <!-- value:speed:tables/0/rows/0/1:.1f -->12.5<!-- /value --> a second.\n"
    for wrong in ("gone:tables/0:d", "speed:tables/7:d", "speed:tables/0/gone:d", "speed:title:.1f"):
        readme.write_text(f"<!-- value:{wrong} -->9<!-- /value -->")
        with pytest.raises(NotFoundError, match=r"README\.md quotes"):
            remake(project)


def test_what_commands_print_is_quoted_from_where_it_was_printed(project: Path) -> None:
    tutorial = "# T\n\n```console\n$ dcdm a\nfirst: 1\nmany words,\nand more.\n$ dcdm b\nnothing\n```\n"
    (project / "docs").mkdir()
    (project / "docs" / "t.md").write_text(tutorial)
    readme = project / "README.md"
    readme.write_text("<!-- printed:docs/t.md:^many(?:.|\\n)*?[.]$;;^first: .* -->\nold\n<!-- /printed -->\nend\n")
    assert remake(project, drawn=False)[0][0] == readme
    shown = "```console\n$ dcdm a\nfirst: 1\nmany words,\nand more.\n```\n<!-- /printed -->\nend\n"
    assert readme.read_text().partition(" -->\n")[2] == shown
    assert readme not in remake(project, drawn=False)[0]
    for wrong in ("docs/gone.md:x", "docs/t.md:gone"):
        readme.write_text(f"<!-- printed:{wrong} -->\n<!-- /printed -->\n")
        with pytest.raises(NotFoundError, match=r"gone|nothing like that"):
            remake(project, drawn=False)


def test_a_result_that_is_named_must_exist(project: Path) -> None:
    (project / "README.md").write_text("<!-- figures:gone -->")
    with pytest.raises(NotFoundError, match="'gone'"):
        remake(project)
    (project / "README.md").write_text("no marker")
    (project / "benchmarks" / "README.md").unlink()
    with pytest.raises(NotFoundError, match="no document"):
        remake(project)


def test_damaged_results_are_named(project: Path) -> None:
    (project / "benchmarks" / "results" / "speed.json").write_text("{")
    with pytest.raises(MismatchError, match=r"speed\.json"):
        remake(project)
    (project / "benchmarks" / "results" / "speed.json").write_text('{"tables": [{"title": "x"}]}')
    with pytest.raises(UsageError, match=r"speed\.json"):
        remake(project)


def test_the_script_says_what_changed_and_what_is_wrong(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(project)]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "results": ["digits_controls", "speed"],
        "changed": ["README.md", "benchmarks/README.md"],
    }
    (project / "README.md").write_text("<!-- figures:gone -->")
    assert main([str(project)]) == NotFoundError.code
    assert "'gone'" in capsys.readouterr().err
