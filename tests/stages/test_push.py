"""Pushing against a hub that lives in this process: what is asked of it, in which order, and what never leaves."""

from __future__ import annotations

from collections.abc import Iterator

import huggingface_hub
import pytest

from dcdm_cli.errors import CapabilityError, DcdmError, MismatchError, NotFoundError, UsageError
from dcdm_cli.run.store import Outcome, RunFolder, Stage
from dcdm_cli.stages.generate import run_generate
from dcdm_cli.stages.push import run_push
from tests.hub import Hub, serving

from ..commands.conftest import Open, adapter, run, session

__all__ = ["adapter", "run", "session"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(monkeypatch) as opened:
        yield opened


def test_an_adapter_goes_into_a_private_repository(session: Open, run: RunFolder, hub: Hub) -> None:
    done = run_push(session(), "adapter", "me/birds")
    assert (
        hub.private == {"me/birds": True}
        and done["private"] is True
        and done["url"] == f"{hub.place}/me/birds/commit/1"
    )
    names = {file.name for file in run.adapter.iterdir()}
    assert set(hub.files["me/birds"]) == names and done["files"] == len(names)
    assert {"pytorch_lora_weights.safetensors", "comfyui_a1111_lora.safetensors", "README.md"} <= names
    assert hub.files["me/birds"]["config.json"] == (run.adapter / "config.json").read_bytes()


def test_images_go_without_the_ledger_of_their_making(session: Open, run: RunFolder, hub: Hub) -> None:
    with pytest.raises(NotFoundError, match="no finished generate stage"):
        run_push(session(), "images", "me/birds")
    run_generate(session(generate__count=4))
    done = run_push(session(), "images", "me/birds", public=True)
    sent = hub.files["me/birds"]
    assert hub.private == {"me/birds": False} and done["files"] == len(sent)
    assert sum(name.endswith(".png") for name in sent) == 4 and "train/metadata.jsonl" in sent
    assert not any(name.startswith(("shards", ".")) for name in sent)


def test_what_is_damaged_is_not_pushed(session: Open, run: RunFolder, hub: Hub) -> None:
    run_generate(session(generate__count=4))
    first, second = sorted(run.generated.rglob("*.png"))[:2]
    contents = first.read_bytes(), second.read_bytes()
    second.write_bytes(contents[0])
    first.write_bytes(contents[1])
    with pytest.raises(MismatchError, match=r"has other content|bytes instead of"):
        run_push(session(), "images", "me/birds")
    stage = Stage("calibrate", {}, {})
    run.calibration.write_text("{}")
    run.run(stage, lambda: Outcome([run.calibration], ""))
    run.calibration.write_text("[]")
    with pytest.raises(MismatchError, match="has other content than it had when the stage calibrate wrote it"):
        run_push(session(), "adapter", "me/birds")
    assert hub.files == {}


def test_a_public_repository_gets_nothing_by_mistake(session: Open, hub: Hub) -> None:
    hub.private["me/open"] = False
    with pytest.raises(UsageError, match="me/open is there already and public"):
        run_push(session(), "adapter", "me/open")
    assert hub.files == {}
    run_push(session(), "adapter", "me/open", public=True)
    assert hub.files["me/open"]


def test_what_cannot_be_is_said(session: Open, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="'weights' cannot be pushed"):
        run_push(session(), "weights", "me/birds")
    with pytest.raises(UsageError, match="names no repository"):
        run_push(session(), "adapter", "a/b/c")
    hub.refuse = True
    with pytest.raises(DcdmError, match="the hub did not take adapter into me/birds"):
        run_push(session(), "adapter", "me/birds")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(CapabilityError, match="there is no token"):
        run_push(session(), "adapter", "me/birds")
