"""`dcdm generate` on a prepared run: plans that are priced, executed, refused; several processes; formats."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from dcdm_cli.commands.flags import parse_settings
from dcdm_cli.commands.generate import show_part, show_price
from dcdm_cli.data.manifest import read_manifest, write_manifest
from dcdm_cli.errors import (
    CapabilityError,
    InterruptedRunError,
    MismatchError,
    NotFoundError,
    StorageError,
    UsageError,
)
from dcdm_cli.generation import pricing
from dcdm_cli.generation.plan_file import PlanFile
from dcdm_cli.run.store import Outcome, RunFolder, Stage
from dcdm_cli.stages import finetune, generate, plan
from dcdm_cli.stages.check import run_check
from dcdm_cli.stages.devices import settle_placement
from dcdm_cli.stages.generate import run_generate
from dcdm_cli.stages.jobs import open_job
from dcdm_cli.stages.parts import Part, run_part
from dcdm_cli.stages.plan import Wishes
from dcdm_export.places import set_aside

from ..fake_cuda import pretend_gpus
from ..generation.fakes import NAMES, contents
from .conftest import REAL, Open


@pytest.fixture(autouse=True)
def quick_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pricing, "PROBE_S", 0.2)


def priced(session: Open, wishes: Wishes = Wishes(), **flags: object) -> dict:  # noqa: B008
    opened = session(**flags)
    show_price(opened, wishes)
    return json.loads(opened.console.out.getvalue())  # type: ignore[attr-defined]


def test_a_part_writes_nothing_where_a_link_leads(session: Open, run: RunFolder, tmp_path: Path) -> None:
    file, outside = Path(priced(session, generate__count=4)["plan"]), tmp_path / "outside"
    outside.mkdir()
    run.generated.mkdir()
    (run.generated / "shards").symlink_to(outside)
    with pytest.raises(MismatchError, match="leads out of"):
        run_part(session(), file, Part(1, 1))
    assert not [*outside.iterdir()]


def test_a_link_in_the_place_of_old_images_goes_and_what_it_leads_to_stays(run: RunFolder) -> None:
    old = set_aside(run.generated)
    old.symlink_to(run.adapter.name)
    generate._drop_old(run.generated)
    assert not old.is_symlink() and [*run.adapter.iterdir()]


def test_images_that_do_not_fit_are_refused_before_the_first(
    session: Open, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(run.path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(StorageError, match="4 images of 32 pixels need about"):
        run_generate(session(generate__count=4))
    assert not [*run.path.rglob("*.png")] and run.record("generate") is None


def test_images_that_could_not_be_scored_say_nothing_of_their_labels() -> None:
    nan = float("nan")
    columns = {
        "target_difficulty": np.array([0.2, 0.4, 0.6, 0.8]), "measured_difficulty": np.array([0.1, nan, 0.5, nan]),
        "predicted": np.array([0, -1, 2, -1]), "label": np.array([0, 1, 1, 2]),
    }  # fmt: skip
    made: Any = SimpleNamespace(
        columns=lambda *names: [columns[name] for name in names], texts=lambda _: [None] * 4, label_checked=None
    )
    found = generate._difficulty_summary(made)
    assert (found["label_agreement"], found["not_scored"], found["measured_mean"]) == (0.5, 2, pytest.approx(0.3))
    columns["measured_difficulty"] = np.full(4, nan)
    found = generate._difficulty_summary(made)
    assert (found["label_agreement"], found["not_scored"], found["measured_mean"]) == (None, 4, None)


def test_another_order_of_the_classes_makes_images_stale(session: Open, run: RunFolder) -> None:
    def scored(names: Sequence[str]) -> None:
        write_manifest(replace(read_manifest(run.samples), class_names=tuple(names)), run.samples)
        run.run(Stage("score", {}, {"classes": ",".join(names)}), lambda: Outcome([run.samples], ",".join(names)))

    scored(NAMES)
    record, opened = run_generate(session(generate__count=4)), session(generate__count=4)
    assert run_generate(opened).started == record.started
    scored(NAMES[::-1])
    assert [*run.outdated(record)] == ["score was made again since"]
    with pytest.raises(MismatchError, match="other classes"):
        run_generate(session(generate__count=4))


def test_a_priced_plan_is_what_generate_executes(session: Open, run: RunFolder) -> None:
    price = priced(session, Wishes(hour_price=2.0))
    file = Path(price["plan"])
    assert price["images"] == 20 and price["shards"] == 3 and price["gpu_hours"] is None and price["device"] == "cpu"
    assert price["seconds"] == pytest.approx(price["device_hours"] * 3600, abs=0.5)
    assert price["money"] == pytest.approx(price["device_hours"] * 2, abs=0.01) and price["disk_bytes"] > 20 * 500
    assert json.loads(file.with_suffix(".json").read_text())["seconds"] == price["seconds"]
    assert not run.generated.exists() and not list(run.path.glob(".probe*"))
    record = run_generate(session(), file)
    assert record.results["plan"] == price["plan_hash"] and record.results["images"] == 20
    assert record.results["predicted_seconds"] == price["seconds"]
    assert run_generate(session(), file).started == record.started  # nothing changed: skipped
    assert run_generate(session()).results["made_now"] == 0  # the settings give the same plan


def test_the_command_for_a_plan_is_for_the_same_set_with_what_the_plan_leaves_open(
    session: Open, run: RunFolder, tmp_path: Path
) -> None:
    opened = session(generate__count=3, generate__format="webdataset", seed=4, scale__devices=["0", "1"])
    opened = replace(opened, run=run.with_images("parted"), config_file=tmp_path / "my own.toml")
    words = shlex.split(plan.plan_command(opened, run.plans / "1.parquet"))
    assert words[:5] == ["dcdm", "generate", str(run.plans / "1.parquet"), "--name", "parted"]
    assert words[5:7] == ["--config", str(tmp_path / "my own.toml")]
    assert words[7:10] == ["--set=generate.format=webdataset", "--set=seed=4", '--set=scale.devices=["0", "1"]']
    assert words[10:] == ["--run", str(run.path)]
    assert parse_settings([word.removeprefix("--set=") for word in words[7:10]]) == {
        "generate.format": "webdataset", "seed": 4, "scale.devices": ["0", "1"],
    }  # fmt: skip


def test_a_switch_that_a_plan_has_used_up_is_named_as_it_was_typed(session: Open, run: RunFolder) -> None:
    with pytest.raises(UsageError, match=r"^--no-calibrated cannot change a finished plan"):
        plan.refuse_planning_flags(session(generate__calibrated=False))
    with pytest.raises(UsageError, match=r"^--calibrated cannot change"):
        plan.refuse_planning_flags(session(generate__calibrated=True))


def test_a_plan_is_made_in_parts_and_joined(session: Open, run: RunFolder) -> None:
    file = Path(priced(session)["plan"])

    def part(text: str) -> dict:
        opened = session()
        with run.lock("somebody else"):  # parts do not take it
            show_part(opened, file, text)
        return json.loads(opened.console.out.getvalue())  # type: ignore[attr-defined]

    assert part("1/2")["images"] == 12 and run.record("generate") is None
    with pytest.raises(NotFoundError, match="1 of 3 shards are not made: 1") as caught:
        run_generate(session(), file, join=True)
    assert "--part K/N" in caught.value.hint
    assert part("2/2")["made_now"] == 8
    record = run_generate(session(), file, join=True)
    assert record.results["images"] == 20 and record.results["parts"]["jobs"] == 2
    assert (run.generated / "samples.parquet").is_file() and record.results["backend"] == "torch"
    assert run_generate(session(), file).started == record.started  # nothing is missing
    for wrong, says in ((lambda: show_part(session(), None, "1/2"), "--part needs the plan"),
                        (lambda: show_part(session(force=True), file, "1/2"), "by one process"),
                        (lambda: run_generate(session(), join=True), "joining needs the plan")):  # fmt: skip
        with pytest.raises(UsageError, match=says):
            wrong()


def test_a_probe_can_be_stopped(session: Open, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "asked_to_stop", lambda: "SIGINT")
    with pytest.raises(InterruptedRunError, match="nothing was measured or written"):
        priced(session)
    assert not run.plans.exists() and not list(run.path.glob(".probe*"))


def test_hours_become_images(session: Open) -> None:
    hours = 0.01
    price = priced(session, Wishes(hours=hours), generate__balance=True)
    assert price["device_hours"] == pytest.approx(hours, rel=0.02)
    plan = PlanFile(Path(price["plan"])).load()
    whole = np.bincount(plan.table["label"].to_numpy()) + np.array(REAL)
    assert whole.max() - whole.min() <= 1 and len(plan) == price["images"]
    with pytest.raises(UsageError, match="are over before the first image"):
        priced(session, Wishes(hours=1e-6))
    with pytest.raises(UsageError, match="--budget-hours and --per-class both say"):
        priced(session, Wishes(hours=1.0), generate__per_class=3)


def made_again(run: RunFolder) -> None:
    """The adapter that lies there counts as what fine-tuning made."""
    run.run(Stage("finetune", {}, {}), lambda: Outcome([run.adapter], "x"), force=True)


def test_a_plan_for_other_settings_classes_or_adapters_is_refused(session: Open, run: RunFolder) -> None:
    file = Path(priced(session)["plan"])
    with pytest.raises(MismatchError, match="sampler settings: steps 2, here 3"):
        run_generate(session(generate__steps=3), file)
    with pytest.raises(UsageError, match="--count cannot change a finished plan"):
        run_generate(session(generate__count=3), file)
    with pytest.raises(NotFoundError, match="no plan at"):
        run_generate(session(), file.with_name("gone.parquet"))
    weights = run.adapter / "difficulty_encoder.safetensors"
    original = weights.read_bytes()
    weights.write_bytes(original[:-4] + b"\0\0\0\0")
    with pytest.raises(MismatchError, match="is damaged: it has other content than it had when the stage finetune"):
        run_generate(session(), file)
    made_again(run)
    with pytest.raises(MismatchError, match=r"another model .*: adapter '\w+', here '\w+'"):
        run_generate(session(), file)
    weights.write_bytes(original)
    config = json.loads((run.adapter / "config.json").read_text())
    config["class_names"] = ["zero", "one", "two"]
    (run.adapter / "config.json").write_text(json.dumps(config))
    made_again(run)
    with pytest.raises(MismatchError, match="other classes: label 1 is 'test tube' there and 'one' here"):
        run_generate(session(), file)
    assert not run.generated.exists()


def test_a_plan_edited_by_hand_is_refused_before_a_model_is_loaded(
    session: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Path(priced(session)["plan"])
    table = pq.read_table(file)
    pq.write_table(table.slice(0, 16), file, row_group_size=8)
    monkeypatch.setattr(generate, "open_run_engine", lambda *_: pytest.fail("too late"))
    with pytest.raises(MismatchError, match="was changed after it was written"):
        run_generate(session(), file)


def test_images_of_another_plan_are_noticed_before_a_model_is_loaded(
    session: Open, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_generate(session(generate__count=5))
    file = Path(priced(session)["plan"])
    monkeypatch.setattr(generate, "open_run_engine", lambda *_: pytest.fail("too late"))
    with pytest.raises(MismatchError, match="holds images of another plan"):
        run_generate(session(), file)


def test_tables_of_counts_and_difficulties(session: Open, run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "counts.csv").write_text("class,count\ntwo,5\nzero,1\n")
    (tmp_path / "difficulty.json").write_text('{"zero": "fixed:0.7"}')
    flags = {"generate__counts": tmp_path / "counts.csv", "generate__difficulty_file": tmp_path / "difficulty.json"}
    run_generate(session(**flags))
    table = PlanFile(run.generated / "plan.parquet").load().table
    assert sorted(table["class_name"].to_pylist()) == ["two"] * 5 + ["zero"]
    target = dict(zip(table["class_name"].to_pylist(), table["target_difficulty"].to_pylist(), strict=True))
    assert target["zero"] == np.float32(0.7)


def with_half(file: Path) -> None:
    save_file({name: tensor / 2 for name, tensor in load_file(file).items()}, file)


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("counts", "class,count\ntwo,2\n", lambda file: file.write_text("class,count\nzero,3\n")),
        ("difficulty_file", '{"zero": "fixed:0.7"}', lambda file: file.write_text('{"zero": "fixed:0.2"}')),
        ("extra_lora", None, with_half),
    ],
)
def test_another_file_behind_the_same_setting_makes_images_stale(
    name: str, before: str | None, after: Callable[[Path], None], session: Open, run: RunFolder, tmp_path: Path
) -> None:
    file = tmp_path / "given.safetensors"
    if before is None:
        shutil.copy(run.adapter / "pytorch_lora_weights.safetensors", file)
    else:
        file.write_text(before)
    few = {"scheduler": "lcm", "text_guidance": 1.0, "difficulty_guidance": 1.0} if name == "extra_lora" else {}
    flags = {f"generate__{key}": value for key, value in {"count": 2, name: str(file), **few}.items()}
    if name == "counts":
        del flags["generate__count"]
    first = run_generate(session(**flags))
    assert run_generate(session(**flags)).started == first.started, "nothing changed"
    after(file)
    (stale,) = [found.text for found in run_check(session(**flags)) if "given.safetensors" in found.text]
    assert "has changed since" in stale
    made = contents(run.generated)
    with pytest.raises(MismatchError, match="holds images of another plan"):
        run_generate(session(**flags))
    again = run_generate(session(**flags, force=True))
    assert again.started != first.started and contents(run.generated) != made
    file.unlink()
    with pytest.raises(NotFoundError, match=r"given\.safetensors"):
        run_generate(session(**flags))


@pytest.mark.slow
def test_a_worker_process_makes_the_same_bytes(session: Open, run: RunFolder, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a CPU, sums of other lengths are other sums
    run_generate(session())
    torch.set_num_threads(threads)
    run.generated.rename(tmp_path / "one")
    record = run_generate(session(scale__devices=("1",), threads=1), verify=True)
    assert record.device == "cpu" and record.results["made_now"] == 20
    assert contents(run.generated) == contents(tmp_path / "one")
    assert run_generate(session()).started == record.started  # how it was made makes nothing stale


@pytest.mark.parametrize("format", ["parquet", "webdataset"])
def test_formats(session: Open, run: RunFolder, format: str) -> None:
    record = run_generate(session(generate__format=format))
    assert (record.results["format"], record.results["images"]) == (format, 20)
    assert len(list((run.generated / "data").iterdir())) == 3 and not (run.generated / "train").exists()
    with pytest.raises(MismatchError, match="holds images in another format"):
        run_generate(session())
    run_generate(session(force=True))
    assert (run.generated / "train" / "metadata.jsonl").is_file() and not (run.generated / "data").exists()


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:30])


def count_less(file: Path) -> None:
    file.write_text(file.read_text().replace('"count": 8', '"count": 7'))


@pytest.mark.parametrize("format", ["folder", "webdataset"])
@pytest.mark.parametrize("gone", ["shards/00001.json", "the images", "plan.parquet"])
def test_what_is_gone_from_finished_images_is_made_again_and_nothing_else(
    session: Open, run: RunFolder, format: str, gone: str
) -> None:
    run_generate(session(generate__format=format))
    before = contents(run.generated)
    images = sorted(run.generated.glob("train/*/*.png" if format == "folder" else "data/*.tar"))
    (images[-1] if gone == "the images" else run.generated / gone).unlink()
    record = run_generate(session(generate__format=format))
    assert contents(run.generated) == before
    assert record.results["made_now"] in ({0} if gone == "plan.parquet" else range(1, 9))
    assert run_generate(session(generate__format=format)).started == record.started


@pytest.mark.parametrize(
    ("damage", "name", "says"),
    [
        (cut, "shards/00001.json", "00001.json is damaged"),
        (count_less, "shards/00001.json", "it counts 7 images and 0 failures, and has 8 rows"),
        (cut, "shards/00001.parquet", "00001.parquet is missing or was changed"),
        (cut, "data/train-00001.tar", "train-00001.tar has 30 bytes instead of"),
        (cut, "plan.parquet", "plan.parquet is no plan of dcdm"),
    ],
)
def test_damage_to_finished_images_is_noticed(
    session: Open, run: RunFolder, damage: Callable[[Path], None], name: str, says: str
) -> None:
    run_generate(session(generate__format="webdataset"))
    before = {path: path.read_bytes() for path in run.generated.rglob("*") if path.is_file()}
    damage(run.generated / name)
    with pytest.raises(MismatchError, match=says) as caught:
        run_generate(session(generate__format="webdataset"))
    assert "--force" in caught.value.hint or "that shard alone is made again" in caught.value.hint
    assert all(path.read_bytes() == old for path, old in before.items() if path != run.generated / name)


def test_images_of_a_folder_that_changed_are_told_by_check_and_by_generate(session: Open, run: RunFolder) -> None:
    record = run_generate(session())
    before, image = contents(run.generated), min(run.generated.glob("train/*/*.png"))

    def damaged() -> list[str]:
        return [f"{found.text}; {found.fix}" for found in run_check(session()) if found.state == "damaged"]

    os.truncate(image, 0)
    assert [text for text in damaged() if text.endswith(f"{image.name} is empty; dcdm generate")]
    again = run_generate(session())
    assert again.started != record.started and again.results["made_now"] in range(1, 9)
    assert contents(run.generated) == before
    later = image.stat().st_mtime_ns + 60 * 10**9
    image.write_bytes(bytes([*before[image.relative_to(run.generated).as_posix()][:-1], 0]))
    os.utime(image, ns=(later, later))
    assert [text for text in damaged() if f"{image.name} has other content; remove {image}" in text]
    with pytest.raises(MismatchError, match=f"{image.name} has other content"):
        run_generate(session())


@pytest.mark.parametrize(
    ("devices", "found"), [((), []), (("2",), ["cpu", "cpu"]), (("all",), ["cpu"]), (("cpu", "cpu"), ["cpu", "cpu"])]
)
def test_devices(session: Open, devices: tuple[str, ...], found: list[str]) -> None:
    assert settle_placement(session(scale__devices=devices)).devices == found


@pytest.mark.parametrize(
    ("devices", "error", "says"),
    [
        (("0",), UsageError, "--devices 0"),
        (("tpu:0", "cpu"), UsageError, "is no device"),
        (("cuda:x",), UsageError, "is no device"),
        (("cuda:0", "cuda:1"), CapabilityError, "cuda"),
    ],
)
def test_devices_that_are_not_there(session: Open, devices: tuple[str, ...], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        settle_placement(session(scale__devices=devices))


def test_ray_that_is_not_there(session: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="--address names a Ray cluster"):
        settle_placement(session(scale__address="127.0.0.1:1"))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(CapabilityError, match="which is not installed") as caught:
        run_generate(session(scale__engine="ray"))
    assert "pip install 'dcdm-cli[ray]'" in caught.value.hint and caught.value.code == 22


def test_a_ray_cluster_that_does_not_answer(session: Open, run: RunFolder) -> None:
    pytest.importorskip("ray")
    with pytest.raises(NotFoundError, match=r"no Ray cluster answers at 127\.0\.0\.1:1") as caught:
        run_generate(session(scale__engine="ray", scale__address="127.0.0.1:1"))
    assert "ray start --head" in caught.value.hint and not run.generated.exists()


def test_names_of_classes_reach_the_plan(session: Open, run: RunFolder) -> None:
    run_generate(session(generate__per_class=1))
    assert PlanFile(run.generated / "plan.parquet").class_names == NAMES


def test_the_device_of_a_command_and_of_each_rank_is_the_current_one(
    session: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = pretend_gpus(monkeypatch, 2)
    assert open_job(session(device="cuda:1")).device == "cuda:1" and two.current == 1
    two.current = 0
    assert open_job(session(device="cuda:1"), "cuda:1", here=False).device == "cuda:1" and two.current == 0
    for name, value in {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert finetune._job(session(device="cuda")).device == "cuda:1" and two.current == 1
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(CapabilityError, match="'cuda:2' is not there"):
        finetune._job(session(device="cuda"))


def test_all_gpus_or_some_by_number(session: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, 2)
    assert settle_placement(session(device="cuda", scale__devices=("all",))).devices == ["cuda:0", "cuda:1"]
    assert settle_placement(session(scale__devices=("cuda:1", "cuda:0"))).devices == ["cuda:1", "cuda:0"]
    with pytest.raises(CapabilityError, match="'cuda:2' is not there"):
        settle_placement(session(scale__devices=("cuda:0", "cuda:2")))
