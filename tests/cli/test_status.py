"""`dcdm status`, `dcdm review` and corrections on a finished run, and tables that lie there as files."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from shutil import copytree

import pyarrow.parquet as pq

from .conftest import FinishedJob, document
from .runner import run


def test_a_finished_run(job: FinishedJob, tmp_path: Path) -> None:
    found = document(run("status", "--run", job.run, "--json"))
    states = {stage["stage"]: stage["state"] for stage in found["stages"]}
    assert states == {
        "score": "done", "caption": "done", "finetune": "done", "calibrate": "not yet", "distill": "not yet",
        "export": "not yet", "generate": "done", "evaluate": "done",
    }  # fmt: skip
    assert found["next"] == "" and all(s["seconds"] > 0 for s in found["stages"] if s["state"] == "done")
    shown = run("status", "--run", job.run, env={"COLUMNS": "80"}).stdout
    prose = [line for line in shown.splitlines()[:-1] if not line.startswith("  ")]
    assert max(map(len, prose)) <= 80 and "Everything is done" in shown
    report = job.run / "evaluation" / "report.html"
    assert f"\n  {report}\n  dcdm review --run {job.run}\n" in shown, "what is to be copied is in one piece"
    folder = copytree(job.run, tmp_path / ("long-" * 10 + "name"))
    (folder / "records" / "generate.json").unlink()
    shown = run("status", "--run", folder, env={"COLUMNS": "80"}).stdout
    lines = [line.rstrip() for line in shown.splitlines()]
    assert lines[lines.index("Next:") + 1] == f"  dcdm generate --run {folder}"


def test_dcdm_alone_says_where_the_run_folder_stands(job: FinishedJob, tmp_path: Path) -> None:
    here = run(code=2, cwd=tmp_path, env={"DCDM_RUN": str(job.run)}).stderr
    assert here.index("dcdm score") < here.index("dcdm caption") < here.index("dcdm evaluate")
    assert f"Run {job.run.name}, done: score, caption" in here
    assert "no run folder" in run(code=2, cwd=tmp_path).stderr and list(tmp_path.iterdir()) == []


def test_a_stage_says_what_it_took_at_the_end(scored: Path, photos: Path) -> None:
    said = run("caption", "--run", scored, "--template", "a {class}").stderr
    took, following = said.splitlines()[-2:]
    assert took.startswith("caption: ") and "GiB of memory" in took and following.startswith("next: dcdm ")


def test_review_and_its_corrections_come_back(copy: Path, photos: Path) -> None:
    found = document(run("review", "--run", copy, "--most", "5", "--json"))
    assert found["hardest"] == found["easiest"] == 5
    page = Path(found["page"]).read_text("utf-8")
    assert "<script" not in page and "http" not in page.split("</head>")[1]
    assert page.count('alt="') == page.count("<img") == found["images"]
    with Path(found["table"]).open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    hardest = [row for row in rows if row["group"] == "hardest"]
    assert all(Path(row["path"]).name in page and Path(row["path"]).is_file() for row in hardest)
    hardest[0]["drop"], hardest[1]["new_label"] = "x", "one"
    with Path(found["table"]).open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    images = pq.read_metadata(copy / "samples.parquet").num_rows
    corrections = ["--drop", found["table"], "--relabel", found["table"]]
    scored = run("score", photos, "--run", copy, "--json", "--force", *corrections)
    assert json.loads(scored.stdout)["images"] == images - 1 and "1 images left out" in scored.stderr
    table = pq.read_table(copy / "samples.parquet").to_pylist()
    assert hardest[0]["sample_id"] not in {row["sample_id"] for row in table}
    assert {row["class_name"] for row in table if row["sample_id"] == hardest[1]["sample_id"]} == {"one"}
    again = document(run("review", "--run", copy, "--most", "5", "--json"))
    kept = Path(found["table"]).with_name("review-1.csv")
    assert kept.is_file() and Path(again["table"]).is_file(), "what was filled in is kept"


def test_tables_lie_in_the_run_folder(job: FinishedJob) -> None:
    names = {file.name for file in (job.run / "tables").rglob("*.csv")}
    assert {"difficulty-by-class-hardest-first.csv", "where-the-time-went.csv"} <= names
