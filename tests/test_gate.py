"""The gate: whatever stands in a file, only our errors come out, and no path leads out of its folder."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dcdm_cli.captioning.bulk import Said
from dcdm_cli.data.candidates import ScanOptions
from dcdm_cli.data.manifest import manifest_classes
from dcdm_cli.data.sources import scan
from dcdm_cli.difficulty.calibration import SPREAD, Calibration, load_calibration
from dcdm_cli.difficulty.classifier import load_classifier
from dcdm_cli.difficulty.scorer import Scorer
from dcdm_cli.errors import DcdmError, MismatchError
from dcdm_cli.evaluation.downstream import TrialLedger
from dcdm_cli.files import write_bytes, write_json
from dcdm_cli.gate import Column, Count, check_columns, inside, parse_json, read_document, read_lines
from dcdm_cli.model.adapter import AdapterInfo, read_adapter
from dcdm_cli.model.conditioning import EncoderConfig
from dcdm_cli.model.lora import LORA_FILE
from dcdm_cli.run.checkpoint import load_checkpoint
from dcdm_cli.run.settings import ClassifierConfig
from dcdm_cli.run.store import RunFolder, StageRecord
from dcdm_cli.run.timing import Attempt

quick = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
HASH = "0123456789abcdef" * 2
RECORD = StageRecord(
    "score", {"score": {"seed": 0}}, {"a": "b"}, ["samples.parquet"], HASH, {"method": "crossfit"}, 1.5, "cpu", 7,
    "2026-01-01T00:00:00+00:00", {"python": "3.11"},
)  # fmt: skip
CALIBRATION = Calibration(
    (0.1, 0.9), (0.2, 0.5), (0.2, 0.5), (1.0, 0.5), ((0.2, 0.5), (0.1, 0.6)), ((0.0,) * len(SPREAD),) * 2, 60,
    {"steps": 9},
)  # fmt: skip
ADAPTER = AdapterInfo("tiny", HASH, None, ("a", "b"), 32, EncoderConfig(2, 16), {"steps": 3})
CLASSIFIER = {"config": ClassifierConfig().model_dump(mode="json"), "class_names": ["a", "b"], "temperature": 1.2}


def read_adapter_config(file: Path) -> Any:
    write_bytes(file.parent / LORA_FILE, b"")
    return read_adapter(file.parent)


def read_calibration(file: Path) -> Any:
    """And what is done with it."""
    found = load_calibration(file)
    assert found is not None
    requested, _ = found.request_for(np.linspace(0, 1, 5), np.zeros(5, int))
    assert np.isfinite(requested).all() and 0 <= found.reachable[0] <= found.reachable[1] <= 1


FOOTER = {"schema": 1, "class_names": ["a", "b"], "root": None, "note": ""}


def read_footer(file: Path) -> Any:
    """What a manifest says of itself, put into one as it is."""
    table = pa.table({"label": [0]}).replace_schema_metadata({b"dcdm": file.read_bytes()})
    pq.write_table(table, file.with_suffix(".parquet"))
    names = manifest_classes(file.with_suffix(".parquet"))
    assert names is None or all(isinstance(name, str) for name in names)


# file -> (what we write, how it is read)
DOCUMENTS: dict[str, tuple[Any, Callable[[Path], Any]]] = {
    "records/score.json": (asdict(RECORD), lambda file: RunFolder(file.parent.parent).record("score")),
    "score.stopped.json": (
        {"of": HASH, "seconds": 1.5, "energy_wh": None, "one_off": {"opening": 0.5}},
        lambda file: Attempt(file, HASH),
    ),
    "calibration.json": ({k: v for k, v in asdict(CALIBRATION).items() if k != "attempts"}, read_calibration),
    "config.json": (asdict(ADAPTER), read_adapter_config),
    "classifier.json": (CLASSIFIER, lambda file: load_classifier(file.parent)),
    "scorer.json": ({"class_names": ["a"], "temperature": 1.0, "folds": 2}, lambda file: Scorer.load(file.parent)),
    "step-00000001/state.json": (
        {"step": 1, "sha256": HASH, "settings": HASH},
        lambda file: load_checkpoint(file.parent.parent, HASH),
    ),
    "manifest.json": (FOOTER, read_footer),
    "captions.jsonl": ({"sample_id": "a", "caption": "b", "revision": None}, lambda file: read_lines(file, Said)),
    "downstream.jsonl": (
        {"key": HASH, "arm": "real", "seed": 1, "accuracy": 0.5, "images": 0, "seconds": 1.0},
        lambda file: TrialLedger(file, print).get(HASH),
    ),
    "classes.json": (
        ["a", "b"],
        lambda file: scan(str(file.parent / "none"), ScanOptions(class_map=file), file.parent),
    ),
}  # fmt: skip


def leaves(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a value can be put in a document: at every key, whole tables and the root included."""
    keys = document if isinstance(document, dict) else range(len(document) if isinstance(document, list) else 0)
    return [path, *(leaf for key in keys for leaf in leaves(document[key], (*path, key)))]


def replaced(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    changed = copy.deepcopy(document)
    at = changed
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return changed


@pytest.mark.parametrize("name", DOCUMENTS)
@quick
@given(data=st.data())
def test_a_document_with_anything_in_it_raises_only_our_errors(tmp_path: Path, name: str, data: st.DataObject) -> None:
    document, read = DOCUMENTS[name]
    document = json.loads(json.dumps(document))
    place = data.draw(st.sampled_from(leaves(document)))
    odd = st.sampled_from([float("nan"), float("inf"), -1, 10**400, 1e308, "../../x", "x\0", [], {}, "9" * 300])
    changed = replaced(document, place, data.draw(values | odd))
    file = tmp_path / name
    text = json.dumps(changed).replace('"9999', "9999").encode("utf-8", "surrogatepass")
    write_bytes(file, data.draw(st.just(text) | st.binary(max_size=40) | st.just(text[: len(text) // 2])))
    try:
        read(file)
    except DcdmError as error:
        assert len(error.message) < 1000


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("records/score.json", {"seconds": "long"}, "seconds = 'long'"),
        ("records/score.json", {"outputs": ["../../x"]}, "leads out of"),
        ("records/score.json", {"results": {"rejected": -3}}, "results.rejected = -3"),
        ("records/score.json", {"schema": 2}, "schema = 2"),
        ("records/score.json", {"other": 2}, "other = 2"),
        ("calibration.json", {"realised": [0.2, 1.5]}, "realised.1 = 1.5"),
        ("calibration.json", {"fitted": [0.5, 0.2]}, "fitted falls"),
        ("calibration.json", {"fitted": [0.5]}, "fitted has 1 values for 2 points"),
        ("calibration.json", {"requested": [0.9, 0.1]}, "requested must rise"),
        ("calibration.json", {"spread": [[0.0]]}, "spread must have 20"),
        ("config.json", {"class_names": ["a"]}, "encoder.classes = 2, but there are 1"),
        ("config.json", {"encoder": {"classes": 2, "dim": 10**9}}, "encoder.dim = 1000000000"),
        ("scorer.json", {"own": "../other.onnx"}, "own = '../other.onnx'"),
        ("scorer.json", {"temperature": 0}, "temperature = 0"),
        ("config.json", {"resolution": 65536}, "resolution = 65536"),
        ("scorer.json", {"folds": None}, "neither `own`, `heads` nor `folds`"),
        ("classifier.json", {"config": {"model_args": {"checkpoint_path": "x.pth"}}}, "checkpoint_path may not"),
    ],
)  # fmt: skip
def test_what_was_changed_by_hand_is_named_with_key_value_and_remedy(
    tmp_path: Path, name: str, change: dict[str, Any], says: str
) -> None:
    document, read = DOCUMENTS[name]
    write_json(tmp_path / name, {**document, **change})
    with pytest.raises(MismatchError) as caught:
        read(tmp_path / name)
    assert says in caught.value.message and str(tmp_path) in caught.value.message
    assert "again" in caught.value.hint and "dcdm" in caught.value.hint


def test_a_result_that_is_missing_is_the_records_fault(tmp_path: Path) -> None:
    write_json(tmp_path / "records/score.json", {**asdict(RECORD), "results": {}})
    record = RunFolder(tmp_path).require("score")
    assert record.results.get("method") is None
    with pytest.raises(MismatchError, match=r"score\.json is damaged: results\.method is missing"):
        record.results["method"]


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "1e999", "1" * 60, "[" * 100_000, '{"a": 1', b"\xff", ""])
def test_json_is_strict(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(text)


def test_a_document_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcdm_cli.gate.MAX_DOCUMENT", 100)
    write_bytes(tmp_path / "a.json", b" " * 101)
    with pytest.raises(MismatchError, match="larger than"):
        read_document(tmp_path / "a.json", dict[str, Count], "again")


# Paths

ESCAPES = r"(\.\./|a/|/)*(linked|a)/x"


@quick
@given(st.text(max_size=30) | st.text("./a\0", max_size=12) | st.from_regex(ESCAPES, fullmatch=True))
@example("linked/x")
def test_no_name_leads_out(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    root.mkdir(exist_ok=True)
    (tmp_path / "elsewhere").mkdir(exist_ok=True)
    if not (root / "linked").is_symlink():
        (root / "linked").symlink_to(tmp_path / "elsewhere")
    try:
        found = inside(root, name, said_in=root, again="again")
    except MismatchError:
        return
    assert found == root.resolve() or root.resolve() in found.parents
    assert found.resolve() == found


def test_a_link_that_stays_inside_is_followed(tmp_path: Path) -> None:
    write_bytes(tmp_path / "real/x", b"")
    (tmp_path / "linked").symlink_to("real")
    assert inside(tmp_path, "linked/x", said_in=tmp_path, again="") == (tmp_path / "real/x").resolve()


# Columns

COLUMN = {
    "id": Column(pattern="[0-9a-z]{4}"),
    "n": Column(low=0, high=10),
    "s": Column(low=0, high=1, nullable=True),
    "text": Column(longest=3, nullable=True),
}
GOOD = {"id": "ab12", "n": 3, "s": 0.5, "text": "abc"}
KINDS = pa.schema([("id", pa.string()), ("n", pa.int64()), ("s", pa.float32()), ("text", pa.string())])


@pytest.mark.parametrize(
    ("column", "bad"),
    [
        ("id", "ab1"), ("id", "../x"), ("id", "ab12\n"), ("id", None), ("n", -1), ("n", 2**60), ("n", None),
        ("s", float("nan")), ("s", 1.5), ("s", float("inf")), ("text", "abcd"),
    ],
)  # fmt: skip
def test_a_bad_value_is_found_among_good_ones(column: str, bad: Any) -> None:
    rows = [dict(GOOD) for _ in range(500)]
    check_columns(pa.Table.from_pylist([*rows, GOOD | {"s": None, "text": None}], KINDS), COLUMN)
    rows[321] = GOOD | {column: bad}
    with pytest.raises(ValueError, match=rf"^{column} = .* in row 321: must"):
        check_columns(pa.Table.from_pylist(rows, KINDS), COLUMN)


def test_text_that_is_no_utf8_is_found() -> None:
    broken = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers())
    table = pa.table([broken, [1], pa.array([0.5], pa.float32()), ["a"]], KINDS)
    with pytest.raises(ValueError, match="UTF8"):
        check_columns(table, COLUMN)
