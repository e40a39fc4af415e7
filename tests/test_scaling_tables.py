"""What bench_scaling.py writes is what documents can show, and its estimate is arithmetic on measured numbers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from document_blocks import END, render_document

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
PLAN = {
    "rows": 1_000_000, "plan_and_write_s": 4.0, "us_per_row": 4.0, "verify_s": 1.0, "read_one_shard_s": 0.01,
    "file_bytes": 50_000_000, "peak_mib": 600, "before_mib": 100,
}  # fmt: skip
RUN = {
    "images": 100_000, "format": "webdataset", "startup_s": 0.1, "ms_per_image": 0.5, "resume_finished_s": 1.0,
    "peak_mib": 300, "memory_after_a_tenth_mib": 290, "memory_at_the_end_mib": 295, "shards": 100,
    "record_bytes": 50_000, "row_bytes": 20_000_000,
}  # fmt: skip
POOL = {"workers": 1, "images": 2000, "images_per_s": 190.0}
KILLED = {**POOL, "kills": 20, "seconds_per_kill": 0.2, "same_rows_and_bytes": True}
PRICE = {
    "images": 800, "predicted_s": 30.0, "real_s": 32.0, "error": -0.0625, "predicted_disk_bytes": 2e6,
    "disk_bytes": 1.9e6,
}  # fmt: skip
RESULTS: dict[str, Any] = {
    "planning": [PLAN], "images": [RUN], "formats": [RUN], "sources": [RUN],
    "pools": [POOL, {**POOL, "workers": 2}], "kills": KILLED, "price": [PRICE],
    "tiny_base": {"images": 321, "overhead_share": 0.012, "writing_share": 0.021},
    "memory": {"images": 10_000, "memory_after_a_tenth_mib": 900, "memory_at_the_end_mib": 905},
}  # fmt: skip


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    import scaling_tables  # pyright: ignore[reportMissingImports]

    return scaling_tables


def test_a_hundred_million_images_are_in_proportion(scaling: Any) -> None:
    told = scaling.estimate(RESULTS, 100_000_000, 1024, 1000)
    assert told["shards"] == 97_657 and told["plan_file_bytes"] == 5_000_000_000
    assert told["planning_s"] == 400 and told["planning_memory_mib"] == 50_100
    assert told["row_bytes"] == 20_000_000_000 and told["record_bytes"] == 97_657 * 500
    assert told["calls"]["archives"] == {"put": 292_971, "list": 293}
    assert told["calls"]["image_files"]["put"] == 100_195_314


def test_documents_show_the_result(scaling: Any) -> None:
    results = {**RESULTS, "estimate": scaling.estimate(RESULTS, 100_000_000, 1024, 1000)}
    content = {"title": "Scale", "sentences": scaling.sentences(results), "tables": scaling.tables(results)}
    found = {"bench_scaling": content}
    text = render_document("<!-- figures:bench_scaling -->\n", Path("docs/scale.md"), found, lambda *_: [])
    assert "the same rows and bytes as an undisturbed run; 0.20 s more per kill" in text
    assert "| 1,000,000 | 4.00 s | 4.0 µs |" in text and "292,971 PUT, 293 LIST" in text and END in text
    content["sentences"] = scaling.sentences({**results, "kills": {**KILLED, "same_rows_and_bytes": False}})
    assert "NOT the rows and bytes" in render_document("<!-- figures -->", Path("x.md"), found, lambda *_: [])
