"""A network that does not answer costs its budget once, is named, and what lies in the cache is used all the same."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from dcdm_cli.errors import NotFoundError
from dcdm_cli.run import network

LONG = "nobody/has-this-model"


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A hub that takes connections and never says a word."""
    server = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(network, "_failures", [])
    monkeypatch.setenv(network.SECONDS, "0.3")
    yield server
    server.close()


@pytest.mark.filterwarnings("ignore::UserWarning:huggingface_hub")  # about how other libraries call it
def test_the_budget_is_spent_once_and_named(silent: socket.socket) -> None:
    from dcdm_cli.captioning.rewriter import LanguageModel
    from dcdm_cli.model.base import load_base
    from dcdm_cli.run.settings import CaptionConfig

    clock = time.monotonic()
    network.reach_hub(LONG)
    first = time.monotonic() - clock
    assert 0.2 < first < 5 and constants.HF_HUB_OFFLINE is True
    clock = time.monotonic()
    network.reach_hub(LONG)
    assert time.monotonic() - clock < 0.1
    for load in (lambda: load_base(LONG), lambda: LanguageModel(CaptionConfig(llm=LONG))):
        with pytest.raises(NotFoundError, match=rf"{LONG}.*not on this machine, and http://127.*network_seconds"):
            load()


def test_what_is_here_asks_nobody(silent: socket.socket, tmp_path: Path) -> None:
    network.reach_hub(tmp_path)
    assert network._failures == [] and constants.HF_HUB_OFFLINE is False


def test_a_hub_that_answers_is_asked_once(silent: socket.socket) -> None:
    heard: list[bytes] = []

    def answer() -> None:
        connection, _ = silent.accept()
        heard.append(connection.recv(4096))
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        connection.close()

    threading.Thread(target=answer, daemon=True).start()
    network.reach_hub(LONG)
    network.reach_hub(LONG)
    assert network._failures == [None] and len(heard) == 1 and heard[0].startswith(b"HEAD / ")
    assert constants.HF_HUB_OFFLINE is False
    assert network.reason(OSError("no such file\nmore")) == "no such file"


def test_template_captions_need_neither_network_nor_torch() -> None:
    """With every connection refused, and without the libraries that take seconds to load."""
    code = (
        "import socket, sys\n"
        "def refuse(*words): raise AssertionError(f'asked for {words}')\n"
        "socket.getaddrinfo = socket.socket.connect = refuse\n"
        "from dcdm_cli.model.tokens import load_tokenizer\n"
        f"assert load_tokenizer({LONG!r}) is None and load_tokenizer('tiny') is not None\n"
        "print('diffusers' in sys.modules)"
    )
    environment = {"PYTHONPATH": ":".join(sys.path), "HOME": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.strip() == "False", done.stderr


@dataclass
class Asked:
    """A request, as far as it is looked at."""

    extensions: dict[str, Any]


def test_only_loading_gives_up_on_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer to an upload comes when all of it has arrived."""
    monkeypatch.setattr(network, "_failures", [None])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(network, "_unanswered", [time.monotonic() - 1000])
    network._on_request(Asked({"timeout": {"read": 60.0}}))
    with network.from_hub(LONG):
        asked = Asked({"timeout": {"read": 60.0, "connect": None}})
        network._on_request(asked)
        assert 0 < asked.extensions["timeout"]["read"] <= network.budget() >= asked.extensions["timeout"]["connect"]
    with pytest.raises(ConnectionError, match="no answer within"), network.from_hub(LONG):
        network._unanswered[:] = [time.monotonic() - 1000]
        network._on_request(Asked({}))
    assert network._loading == [] and constants.HF_HUB_OFFLINE is True
