"""What an export folder holds so far: a signature that grows by one network or engine at a time, and its figures."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter

from dcdm_export.places import set_aside
from dcdm_export.signature import (
    PARITY_FILE,
    SIGNATURE_FILE,
    EngineFile,
    NetworkFile,
    Signature,
    SignatureError,
    inside,
    read_signature,
    write_signature,
)
from dcdm_export.whole_files import PART_SUFFIX, whole_files

UNFINISHED_FILE = "unfinished.json"  # a signature that still grows, in the work folder
AFRESH_FILE = "afresh"  # in a work folder that took nothing over when it was begun


class _Case(BaseModel):
    """Figures of one case; None = not finite."""

    max_abs: float | None
    mean_abs: float | None
    relative: float | None


class _Compared(BaseModel):
    status: Literal["passed", "failed", "not checked"]
    cases: list[_Case]


_PARITY = TypeAdapter(dict[str, _Compared])


@dataclass(frozen=True)
class Finished:
    """A folder, what its (unfinished) signature says, and parity.json's entries by network and engine file."""

    folder: Path
    signature: Signature
    parity: dict[str, Any]

    def with_network(self, name: str, network: NetworkFile, parity: Any) -> Finished:
        """Also on disk, so that the next run finds it if this one does not come to its end."""
        networks = self.signature.networks | {name: network}
        return Finished(self.folder, replace(self.signature, networks=networks), self.parity | {name: parity})._saved()

    def with_engine(self, engine: EngineFile, parity: Any = None) -> Finished:
        """parity: None = it was not compared."""
        engines, entry = (*self.signature.engines, engine), {engine.file: parity} if parity else {}
        return Finished(self.folder, replace(self.signature, engines=engines), self.parity | entry)._saved()

    def link(self, source: Path, names: Sequence[str]) -> None:
        """Takes files over from another folder, without a copy where the disk allows it."""
        for name in names if source != self.folder else ():
            (self.folder / name).unlink(missing_ok=True)
            try:
                # may share the content: whoever writes here replaces files, and changes none (`whole_files`)
                os.link(source / name, self.folder / name)
            except OSError:
                shutil.copyfile(source / name, self.folder / name)

    def _saved(self) -> Finished:
        # first: a network that is named without its figures counts as not made
        write_parity(self.folder, self.parity)
        write_signature(self.folder, self.signature, name=UNFINISHED_FILE)
        return self


def read_finished(folder: Path, name: str) -> Finished | None:
    """name: of the signature file. None when there is none that can be read."""
    try:
        return Finished(folder, read_signature(folder, name=name), read_parity(folder))
    except SignatureError:
        return None


def read_parity(folder: Path) -> dict[str, Any]:
    """parity.json's entries by network; empty when there is none that can be read."""
    try:
        file = inside(folder, PARITY_FILE)
        if not file.is_file():  # to open a pipe would wait for ever
            return {}
        networks = json.loads(file.read_text("utf-8"), parse_constant=_refuse)["networks"]
        _PARITY.validate_python(networks)
        return dict(networks)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no JSON number")


def write_parity(folder: Path, networks: Mapping[str, Any]) -> None:
    with whole_files(folder) as part:
        document = {"schema": 1, "networks": dict(networks)}
        (part / PARITY_FILE).write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", "utf-8")


def swap_folders(new: Path, target: Path) -> None:
    """`new` takes `target`'s place and name; then the old one is dropped. In between there is no `target`."""
    old = set_aside(target)
    # left by a call that was killed: a folder cannot be renamed to one that has files
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(new, target)
    shutil.rmtree(old, ignore_errors=True)


def sweep(work: Path) -> None:
    """Removes what a killed export was writing."""
    for part in work.glob(f".*{PART_SUFFIX}"):
        shutil.rmtree(part, ignore_errors=True)


def open_work(work: Path, *, afresh: bool) -> None:
    """Makes the work folder, or goes on with what an interrupted call of the same kind has left in it.

    afresh: nothing that was there before may stay, unless it was begun afresh itself. Otherwise it is a folder like any
    other from now on.
    """
    note = work / AFRESH_FILE
    if afresh and not note.is_file():
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    if afresh:
        note.touch()
    else:
        note.unlink(missing_ok=True)
    sweep(work)


def drop_strays(work: Path, signature: Signature) -> None:
    """Removes what an earlier export with other settings left unfinished: the folder holds what its signature names."""
    named = {file for network in signature.networks.values() for file in network.files}
    named |= {file for engine in signature.engines for file in (engine.file, engine.key_file)}
    for file in work.iterdir():
        if file.name not in named | {signature.parity, SIGNATURE_FILE, UNFINISHED_FILE, AFRESH_FILE}:
            file.unlink()
