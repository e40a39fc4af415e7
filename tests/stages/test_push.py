"""Pushing against a hub that lives in this process: what is asked of it, in which order, and what never leaves."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
from huggingface_hub import constants

from dcdm_cli.errors import CapabilityError, DcdmError, MismatchError, NotFoundError, UsageError
from dcdm_cli.run.store import Outcome, RunFolder, Stage
from dcdm_cli.stages.generate import run_generate
from dcdm_cli.stages.push import run_push

from ..commands.conftest import Open, adapter, run, session

__all__ = ["adapter", "run", "session"]


@dataclass
class Hub:
    """private: of repositories that are there. files: repository -> path -> content."""

    private: dict[str, bool] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refuse: bool = False
    place: str = ""


def said(hub: Hub, place: str, body: bytes) -> tuple[object, int]:
    """Document and code for what was posted."""
    if hub.refuse:
        return {"error": "you may not write here"}, 403
    if place.endswith("/repos/create"):
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        hub.private.setdefault(name, asked.get("private", asked.get("visibility") == "private"))
        return {"url": f"{hub.place}/{name}", "name": name, "id": name}, 200
    if "/preupload/" in place:
        return {
            "files": [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
        }, 200
    if "/commit/" not in place:
        return {"errors": [], "warnings": []}, 200  # of the card's metadata
    name = "/".join(place.split("/")[3:5])
    for row in map(json.loads, body.splitlines()):
        if row["key"] == "file":
            hub.files.setdefault(name, {})[row["value"]["path"]] = base64.b64decode(row["value"]["content"])
    return {"commitUrl": f"{hub.place}/{name}/commit/1", "commitOid": "1" * 40, "success": True}, 200


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Answers(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def answer(self, document: object, code: int = 200) -> None:
            body = json.dumps(document).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            name = "/".join(self.path.split("?")[0].split("/")[3:5])
            found = {"id": name, "private": hub.private.get(name), "sha": "0" * 40, "siblings": []}
            self.answer(found, 200 if name in hub.private else 404)

        def do_HEAD(self) -> None:
            self.send_response(200)
            self.end_headers()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            self.answer(*said(hub, self.path.split("?")[0], body))

    return Answers


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    state = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(state))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.place = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", state.place)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr("dcdm_cli.run.network._failures", [])
    yield state
    server.shutdown()
    server.server_close()


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
    with pytest.raises(MismatchError, match="has other content"):
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
