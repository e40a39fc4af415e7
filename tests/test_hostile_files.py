"""Files that come from elsewhere, with anything in them: only our errors come out, soon and in little memory.

JSON that goes through a type is fed in test_gate.py; here is what is read in other ways.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save

from dcdm_cli.captioning.prompt_files import read_prompts
from dcdm_cli.commands.flags import parse_settings
from dcdm_cli.data.candidates import ScanOptions
from dcdm_cli.data.classes import read_class_map
from dcdm_cli.data.corrections import read_rows
from dcdm_cli.data.manifest import manifest_classes, manifest_rows
from dcdm_cli.data.sources import scan
from dcdm_cli.difficulty.feature_cache import _named as read_features
from dcdm_cli.difficulty.own_files import timm_description
from dcdm_cli.errors import DcdmError
from dcdm_cli.evaluation.experiments import find_experiment
from dcdm_cli.files import write_bytes
from dcdm_cli.generation.budget import read_counts
from dcdm_cli.model.adapter import adapter_hash
from dcdm_cli.model.conditioning import EncoderConfig
from dcdm_cli.model.encoder import ENCODER_FILE, load_encoder
from dcdm_cli.run.finite import not_finite_in
from dcdm_cli.run.holder import read_holder
from dcdm_cli.run.resolution import resolve
from dcdm_cli.run.standing import next_command, standing_of
from dcdm_cli.run.store import RunFolder

from .test_gate import ADAPTER

quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
CLASSES = ("one", "two")
OPTIONS = ScanOptions(score_column="difficulty", max_bad=1.0)
# What stands where a value is expected, as JSON and TOML write it.
VALUES = (
    "0.5", "1", "-1", "null", "true", "nan", "inf", "1e999", "9" * 400, "9" * 5000, "0x" + "f" * 5000, '"x"', '"../x"',
    '"img/a.png"', '"a\\u0000"', '"\\ud800"', '"' + "x" * 70_000 + '"', "[]", "{}", "[[1]]", '{"a": {}}', "[" * 20_000,
    "", ",,,,", '"', "9999-99-99", '"' + "9" * 5000 + '"', '["one"]', '[{"name": 1}]',
)  # fmt: skip
LIST = (
    '{"path": %s, "label": "one", "difficulty": 0.1, "caption": %s}\n{"path": "img/a.png", "label": %s, "split": %s}\n'
)


def scanned(file: Path) -> Any:
    picture = io.BytesIO()
    Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3)).save(picture, "PNG")
    write_bytes(file.parent / "img" / "a.png", picture.getvalue())
    return scan(str(file), OPTIONS, file.parent / "materialised")


def scanned_tar(file: Path) -> Any:
    """The text is what the .json beside an image says, or the .cls."""
    picture = io.BytesIO()
    Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3)).save(picture, "PNG")
    with tarfile.open(file.parent / "train.tar", "w") as tar:
        for name, content in (("a.png", picture.getvalue()), (f"a{file.suffix or '.cls'}", file.read_bytes())):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return scan(str(file.parent / "train.tar"), OPTIONS, file.parent / "materialised")


def resolved(file: Path) -> Any:
    return resolve(run_file=file)


def with_flag(file: Path) -> Any:
    return resolve(flags=parse_settings([f"seed={file.read_bytes().decode('utf-8', 'replace')}"]))


def stands(file: Path) -> Any:
    """Both are read by whoever looks where a run stands."""
    run = RunFolder(file.parent)
    write_bytes(run.stopped_file("score"), file.read_bytes())
    return read_holder(run.holder_file), standing_of(run), next_command(run)


def described(file: Path) -> Any:
    return timm_description(file.with_name("model.safetensors"))


# file -> (its text, with places for values, how it is read)
TEXTS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "dcdm.toml": ("seed = %s\n[score]\nfolds = %s\n[judge]\nmodel_args = {x = %s}\n", resolved),
    "flag": ("%s", with_flag),
    "own.toml": (
        'seeds = %s\nratios = [%s]\n[[arms]]\nname = %s\nsource = "none"\ndifficulty = %s\n',
        lambda file: find_experiment(str(file)),
    ),
    "prompts.jsonl": ('{"class": %s, "prompt": %s, "source": %s}\n', lambda file: read_prompts(file, CLASSES)),
    "prompts.csv": ("class,prompt\none,%s\n%s,a\n", lambda file: read_prompts(file, CLASSES)),
    "counts.json": ('{"one": %s, "two": %s}', lambda file: read_counts(file, CLASSES)),
    "counts.csv": ("class,count\none,%s\n%s,1\n", lambda file: read_counts(file, CLASSES)),
    "corrections.csv": ("sample_id,path,drop,new_label\n%s,%s,%s,%s\n", read_rows),
    "map.json": ('{"one": %s, "two": %s}', read_class_map),
    "config.json": (
        '{"architecture": %s, "label_names": %s, "pretrained_cfg": {"input_size": %s, "mean": %s}}', described,
    ),
    "list.jsonl": (LIST, scanned),
    "scores.jsonl": ('{"path": "img/a.png", "label": "one", "difficulty": %s}\n', scanned),
    "list.csv": ("path,label,difficulty,split\nimg/a.png,%s,%s,%s\n", scanned),
    "facts.json": ('{"label": %s, "class_name": %s, "difficulty": %s, "caption": %s}', scanned_tar),
    "difficulty.json": ('{"label": "one", "difficulty": %s}', scanned_tar),
    "label": ("%s", scanned_tar),
    ".lock.json": ('{"host": %s, "pid": %s, "command": "dcdm score", "since": %s}', stands),
    "stopped.json": ('{"of": "x", "seconds": %s, "energy_wh": %s, "one_off": {"a": %s}}', stands),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
@quick
@given(data=st.data())
def test_a_text_with_anything_in_it_raises_only_our_errors(tmp_path: Path, name: str, data: st.DataObject) -> None:
    shape, read = TEXTS[name]
    told = tuple(data.draw(st.sampled_from(VALUES)) for _ in range(shape.count("%s")))
    text = (shape % told).encode("utf-8", "surrogatepass")
    write_bytes(tmp_path / name, data.draw(st.just(text) | st.binary(max_size=40) | st.just(text[: len(text) // 2])))
    only_our_errors(read, tmp_path / name)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("name", ["scores.jsonl", "difficulty.json", "label", "flag", "dcdm.toml", "own.toml"])
def test_every_value_has_stood_everywhere(tmp_path: Path, name: str, value: str) -> None:
    shape, read = TEXTS[name]
    write_bytes(tmp_path / name, (shape % ((value,) * shape.count("%s"))).encode("utf-8", "surrogatepass"))
    only_our_errors(read, tmp_path / name)


def only_our_errors(read: Callable[[Path], Any], file: Path) -> None:
    try:
        read(file)
    except DcdmError as error:
        assert len(error.message) < 2000


# Headers of safetensors files

TENSORS = {
    "images": np.arange(3, dtype=np.uint64), "flat": np.zeros(3, np.uint8), "features": np.zeros((3, 4), np.float16),
}  # fmt: skip


def weights(file: Path) -> Any:
    for name in ("pytorch_lora_weights.safetensors", ENCODER_FILE):
        write_bytes(file.parent / name, file.read_bytes())
    only_our_errors(adapter_hash, file.parent)
    only_our_errors(lambda folder: load_encoder(folder, ADAPTER), file.parent)
    return not_finite_in(file), read_features(file, 4)


@quick
@given(data=st.data())
def test_a_header_with_anything_in_it_raises_only_our_errors(tmp_path: Path, data: st.DataObject) -> None:
    assert ADAPTER.encoder == EncoderConfig(2, 16)
    stored = save(TENSORS)
    size = int.from_bytes(stored[:8], "little")
    header = json.loads(stored[8 : 8 + size])
    name = data.draw(st.sampled_from([*header, "__metadata__"]))
    odd: list[Any] = [
        [],
        [3],
        [0, 1],
        [3, 3, 3],
        [10**18, 10**18],
        -1,
        "F4",
        "I64",
        "F32",
        None,
        {"hash": 3},
        {"hash": ""},
    ]
    key = data.draw(st.sampled_from(["shape", "dtype", "data_offsets", "", "gone"]))
    value = data.draw(st.sampled_from(odd))
    if key == "gone":
        header.pop(name, None)
    elif key and name in header:
        header[name][key] = value
    else:
        header[name] = value
    text = json.dumps(header).encode()
    length = data.draw(st.sampled_from([len(text), 0, 1, len(text) + 9, 2**40, 2**64 - 1]))
    content = length.to_bytes(8, "little") + text + stored[8 + size :]
    write_bytes(
        tmp_path / "a.safetensors", data.draw(st.just(content) | st.just(content[:-3]) | st.binary(max_size=40))
    )
    weights(tmp_path / "a.safetensors")


@pytest.mark.parametrize("shape", [(), (3, 1), (0,)])
def test_a_table_of_features_of_another_shape_is_damaged(tmp_path: Path, shape: tuple[int, ...]) -> None:
    write_bytes(tmp_path / "a.safetensors", save(TENSORS | {"images": np.zeros(shape, np.uint64)}))
    assert read_features(tmp_path / "a.safetensors", 4) is None


# Size

LARGE = 2**24  # bytes
HUGE: dict[str, tuple[bytes, Callable[[Path], Any]]] = {
    "dcdm.toml": (b"a = " + b"[" * LARGE, resolved),
    "own.toml": (b"seeds = " + b"9" * LARGE, lambda file: find_experiment(str(file))),
    "list.jsonl": (b'{"path": "' + b"x" * LARGE, scanned),
    "list.csv": (b"path,label,difficulty\n" + b"a" * LARGE, scanned),
    "counts.json": (b"{" * LARGE, lambda file: read_counts(file, CLASSES)),
    "map.json": (b"[" * LARGE, read_class_map),
    ".lock.json": (b"[" * LARGE, stands),
    "a.safetensors": ((2**40).to_bytes(8, "little") + b"{" * LARGE, weights),
}  # fmt: skip


@pytest.mark.parametrize("name", HUGE)
def test_a_large_file_is_refused_soon_and_in_little_memory(tmp_path: Path, name: str) -> None:
    content, read = HUGE[name]
    write_bytes(tmp_path / name, content)
    tracemalloc.start()
    clock = time.process_time()
    try:
        only_our_errors(read, tmp_path / name)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * LARGE and time.process_time() - clock < 20


def test_nobody_waits_for_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "samples.parquet")
    assert manifest_classes(tmp_path / "samples.parquet") is None
    assert manifest_rows(tmp_path / "samples.parquet") is None
    assert not_finite_in(tmp_path / "samples.parquet") == "is no file"
