"""What bench_scaling.py found as sentences and tables for documents, and what it comes to for a larger run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Results = Mapping[str, Any]


def estimate(results: Results, images: int, shard: int, listed: int) -> dict[str, Any]:
    """Arithmetic, not a measurement: the largest measured run and plan, scaled in proportion.

    shard: images per shard; listed: names per listing call of an object store. The calls are those of an upload of
    every file, one call each.
    """
    run, plan = results["images"][-1], results["planning"][-1]
    factor, shards = images / run["images"], math.ceil(images / shard)
    row_share = images / plan["rows"]
    return {
        "images": images,
        "shards": shards,
        "plan_file_bytes": round(plan["file_bytes"] * row_share),
        "planning_s": round(plan["plan_and_write_s"] * row_share, 1),
        "planning_memory_mib": round((plan["peak_mib"] - plan["before_mib"]) * row_share + plan["before_mib"]),
        "record_bytes": round(run["record_bytes"] / run["shards"] * shards),
        "row_bytes": round(run["row_bytes"] * factor),
        "bookkeeping_hours": round(run["ms_per_image"] * images / 3.6e6, 2),
        "resume_s": round(run["resume_finished_s"] / run["shards"] * shards, 1),
        "calls": {
            "archives": {"put": 3 * shards, "list": math.ceil(3 * shards / listed)},
            "image_files": {"put": images + 2 * shards, "list": math.ceil((images + 2 * shards) / listed)},
        },
    }


def sentences(results: Results) -> list[str]:
    plan, run, killed = results["planning"][-1], results["images"][-1], results["kills"]
    same = "the same rows and bytes as" if killed["same_rows_and_bytes"] else "NOT the rows and bytes of"
    errors = ", ".join(f"{one['error']:+.1%}" for one in results["price"])
    return [
        f"A plan of {plan['rows']:,} rows is made and written in {plan['plan_and_write_s']:.1f} s with "
        f"{plan['peak_mib']:,} MiB at the peak.",
        f"A finished run of {run['images']:,} images is resumed in {run['resume_finished_s']:.2f} s.",
        f"{killed['kills']} workers killed at random in {killed['images']:,} images: {same} an undisturbed run; "
        f"{killed['seconds_per_kill']:.2f} s more per kill.",
        f"Plan, shards and ledger cost {results['tiny_base']['overhead_share']:.1%} of the wall time of the bare loop "
        f"(tiny base, {results['tiny_base']['images']} images, median of the rounds); encoding and writing the images "
        f"{results['tiny_base']['writing_share']:.1%} of rendering and writing.",
        f"Memory of a run of {results['memory']['images']:,} images of the tiny base: "
        f"{results['memory']['memory_after_a_tenth_mib']:,} MiB after a tenth of it, "
        f"{results['memory']['memory_at_the_end_mib']:,} MiB at the end.",
        f"Predicted against real seconds of a plan (the demo's model, redraws and scores): {errors}.",
    ]


def tables(results: Results) -> list[dict[str, Any]]:
    return [
        _planning(results["planning"]),
        _runs("A run of the fake denoiser, WebDataset", "images", results["images"]),
        _runs("The formats", "format", results["formats"]),
        _runs("Reading tars as a source of dcdm score", "images", results["sources"]),
        _pools(results["pools"]),
        _price(results["price"]),
        _estimate(results["estimate"]),
    ]


def _planning(plans: Sequence[Results]) -> dict[str, Any]:
    columns = ["rows", "plan and write", "per row", "verify", "one shard", "file", "peak memory"]
    rows = [
        [
            f"{plan['rows']:,}",
            f"{plan['plan_and_write_s']:.2f} s",
            f"{plan['us_per_row']:.1f} µs",
            f"{plan['verify_s']:.2f} s",
            f"{plan['read_one_shard_s'] * 1e3:.0f} ms",
            size(plan["file_bytes"]),
            f"{plan['peak_mib']:,} MiB",
        ]
        for plan in plans
    ]
    return {"title": "Planning (1,000 classes, 1,000 captions each)", "columns": columns, "rows": rows}


def _runs(title: str, first: str, runs: Sequence[Results]) -> dict[str, Any]:
    columns = [first, "per image", "until the first image", "resume when finished", "memory: a tenth, end, peak"]
    rows = [
        [
            f"{run[first]:,}" if first == "images" else run[first],
            f"{run['ms_per_image']:.2f} ms",
            f"{run['startup_s']:.2f} s",
            f"{run['resume_finished_s']:.2f} s",
            f"{run['memory_after_a_tenth_mib']}, {run['memory_at_the_end_mib']}, {run['peak_mib']} MiB",
        ]
        for run in runs
    ]
    return {"title": title, "columns": columns, "rows": rows}


def _pools(pools: Sequence[Results]) -> dict[str, Any]:
    rows = [
        [run["workers"], f"{run['images_per_s']:.0f}", f"{run['images_per_s'] / pools[0]['images_per_s']:.2f}"]
        for run in pools
    ]
    title = "Worker processes on one machine (a fake that waits 5 ms per image, as for a GPU)"
    return {"title": title, "columns": ["workers", "images/s", "against one"], "rows": rows}


def _price(prices: Sequence[Results]) -> dict[str, Any]:
    rows = [
        [
            one["images"],
            f"{one['predicted_s']:.1f} s",
            f"{one['real_s']:.1f} s",
            f"{one['error']:+.1%}",
            f"{size(one['predicted_disk_bytes'])}, {size(one['disk_bytes'])}",
        ]
        for one in prices
    ]
    columns = ["images", "predicted", "real", "error", "disk: predicted, real"]
    return {"title": "The price of a plan (the demo's model, redraws and scores)", "columns": columns, "rows": rows}


def _estimate(told: Results) -> dict[str, Any]:
    archives, files = told["calls"]["archives"], told["calls"]["image_files"]
    rows = [
        ["shards", f"{told['shards']:,}"],
        ["plan file", size(told["plan_file_bytes"])],
        ["planning in one piece", f"{told['planning_s']:,.0f} s, {told['planning_memory_mib'] / 1024:,.0f} GiB"],
        ["records of shards (JSON)", size(told["record_bytes"])],
        ["rows of shards (Parquet)", size(told["row_bytes"])],
        ["encoding, writing and bookkeeping", f"{told['bookkeeping_hours']:,.1f} CPU-hours at 8 x 8 pixels"],
        ["resuming when finished", f"{told['resume_s']:,.0f} s"],
        ["object storage, archives", f"{archives['put']:,} PUT, {archives['list']:,} LIST"],
        ["object storage, image files", f"{files['put']:,} PUT, {files['list']:,} LIST"],
    ]
    title = f"Estimate for {told['images']:,} images (arithmetic from the largest runs above, not measured)"
    return {"title": title, "columns": ["", "estimate"], "rows": rows}


def size(count: float) -> str:
    unit = 0
    while count >= 1000 and unit < 4:
        count, unit = count / 1000, unit + 1
    return f"{count:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[unit]}"
