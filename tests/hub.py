"""A hub that lives in this process: it takes what is pushed, and serves the files it has."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

COMMIT = "1" * 40
PLACE = "/{repo_id}/resolve/{revision}/{filename}"


@dataclass
class Hub:
    """private: of repositories that are there. files: repository -> path -> content. silent: asked for a file, it says
    nothing until the test is over."""

    private: dict[str, bool] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refuse: bool = False
    silent: bool = False
    over: threading.Event = field(default_factory=threading.Event)
    asked: list[str] = field(default_factory=list)
    place: str = ""


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub that huggingface_hub asks meanwhile."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.place = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.place)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.place + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr("dcdm_cli.run.network._failures", [])
    yield hub
    hub.over.set()
    server.shutdown()
    server.server_close()


def _said(hub: Hub, place: str, body: bytes) -> tuple[object, int]:
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
    return {"commitUrl": f"{hub.place}/{name}/commit/1", "commitOid": COMMIT, "success": True}, 200


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    return type("Answers", (_Answers,), {"hub": hub})


class _Answers(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: object) -> None: ...

    def answer(self, body: bytes, code: int = 200, *, kind: str = "application/json", send: bool = True) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", kind)
        if kind != "application/json":
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if send:
            self.wfile.write(body)

    def file(self, *, send: bool) -> None:
        """/OWNER/NAME/resolve/REVISION/PATH"""
        owner, name, _, _, path = self.path.split("?")[0].strip("/").split("/", 4)
        self.hub.asked.append(f"{self.command} {owner}/{name}/{path}")
        if self.hub.silent:
            self.hub.over.wait(60)
        content = self.hub.files.get(f"{owner}/{name}", {}).get(path)
        if content is None:
            self.answer(b"{}", 404, send=send)
        else:
            self.answer(content, kind="application/octet-stream", send=send)

    def do_GET(self) -> None:
        if "/resolve/" in self.path:
            return self.file(send=True)
        name = "/".join(self.path.split("?")[0].split("/")[3:5])
        found = {"id": name, "private": self.hub.private.get(name), "sha": "0" * 40, "siblings": []}
        self.answer(json.dumps(found).encode(), 200 if name in self.hub.private else 404)

    def do_HEAD(self) -> None:
        if "/resolve/" in self.path:
            return self.file(send=False)
        self.answer(b"", send=False)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        document, code = _said(self.hub, self.path.split("?")[0], body)
        self.answer(json.dumps(document).encode(), code)
