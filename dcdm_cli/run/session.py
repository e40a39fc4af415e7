"""Session: run folder, settings and console that every stage works with."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from dcdm_cli.console import Console
from dcdm_cli.errors import UsageError
from dcdm_cli.files import write_text
from dcdm_cli.pace import duration
from dcdm_cli.run import store
from dcdm_cli.run.origins import FOREIGN, Layer, toml_document
from dcdm_cli.run.resolution import Override, Resolved, flat_items
from dcdm_cli.run.roles import EXECUTION, role_of
from dcdm_cli.run.settings import Config, changed
from dcdm_cli.run.standing import next_command
from dcdm_cli.run.store import DEFAULT_RUN as DEFAULT_RUN
from dcdm_cli.run.store import SET_NAME, RunFolder, StageRecord

PIPELINE = tuple(stage for stage in store.PIPELINE if stage not in store.COMMAND_OF)  # those that are commands


@dataclass(frozen=True)
class Session:
    """What every command works with, made from the shared options. run: looked at with the adapter that
    `generate.guidance` asks for."""

    run: RunFolder
    resolved: Resolved
    console: Console
    force: bool
    dry_run: bool
    given: Mapping[str, Any]  # settings given as flags, dotted
    config_file: Path | None = None

    def __post_init__(self) -> None:
        run = self.run.with_distilled(self.config.generate.guidance == "distilled")
        object.__setattr__(self, "run", run)

    @property
    def config(self) -> Config:
        return self.resolved.config

    def starter_settings(self) -> dict[str, Any]:
        """What the first command of a run was told, as plain values for dcdm.toml."""
        values = flat_items(self.config)
        # of those dcdm.toml may say nothing: the next command would refuse it
        told = [key for key in ("preset", *self.given) if key not in FOREIGN]
        return {key: values[key] for key in told if values.get(key) is not None or key in self.given}

    def with_settings(self, **sections: Mapping[str, Any]) -> Session:
        """The same session with other settings: section name -> {key: value}. Raises UsageError for what breaks a
        rule."""
        config = self.config
        updates = {name: changed(getattr(config, name), values, f"[{name}]") for name, values in sections.items()}
        return replace(self, resolved=replace(self.resolved, config=config.model_copy(update=updates)))

    def with_flag(self, section: str, key: str, value: Any) -> Session:
        """The same session as if this setting had been a flag. Raises UsageError for a value that breaks a rule."""
        return replace(self.with_settings(**{section: {key: value}}), given={**self.given, f"{section}.{key}": value})


def write_starter_config(run: RunFolder, settings: Mapping[str, Any]) -> None:
    """Writes dcdm.toml once, with what the first command was told, for the user to edit. Never overwrites it.

    settings: dotted key -> plain value, as in `resolution.flat_items`.
    """
    if not run.config_file.exists():
        head = "Settings of this run. All of them, with their origin: dcdm config show --origin"
        write_text(run.config_file, toml_document(settings, head=head))


def with_settings(session: Session, **sections: Mapping[str, Any]) -> Session:
    """For work inside of a stage: other settings, and nothing that is finished is made again."""
    return replace(session.with_settings(**sections), force=False)


def checked_name(name: str | None) -> str:
    """The name of a generated set, "" for the one without. Raises UsageError for what cannot be a folder everywhere."""
    if name and not SET_NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot name a generated set", "use up to 40 small letters, digits, - and _, as in --name hard-2"
        )
    return name or ""


@contextmanager
def peaks_told(session: Session) -> Iterator[None]:
    """When it ends well: of every stage that was recorded inside, what it took and the most memory it held, and which
    command comes next."""
    before = session.run.record_times()
    yield
    after = session.run.record_times()
    for stage, when in after.items():
        record = session.run.record(stage) if before.get(stage) != when else None
        if record is not None:
            memory = "GPU memory" if record.device.startswith("cuda") else "memory"
            took = f"{stage}: {duration(record.seconds)} on {record.device or 'cpu'}"
            session.console.note(f"{took}, at most {record.peak_memory_mib / 1024:.2f} GiB of {memory}")
    # without a set's name: what comes next is the run's
    if after != before and (command := next_command(RunFolder(session.run.path))):
        session.console.note(f"next: {command}")


def recorded_layers(run: RunFolder, command: str) -> list[Layer]:
    """The settings that the stages before `command` were done with, from their records: what is made from their
    outputs must not see other ones, because a flag was given only once. How the work was done decides nothing later."""
    before = PIPELINE[: PIPELINE.index(command)] if command in PIPELINE else ()
    records = {stage: record for stage in before if (record := run.record(stage))}
    return [Layer(f"record of {stage}", _recorded_sections(record, records)) for stage, record in records.items()]


def _recorded_sections(record: StageRecord, all_records: Mapping[str, StageRecord]) -> dict[str, Any]:
    if record.stage == "score":
        return {name: _outcome(name, record.section(name)) for name in ("data", "score")}
    if record.stage != "export":
        chosen = chosen_strength(record)
        return {record.stage: _outcome(record.stage, record.config), **({"generate": chosen} if chosen else {})}
    finetune = all_records.get("finetune")
    # an export of an earlier adapter decides nothing
    current = finetune is not None and record.inputs.get("finetune") == finetune.id
    return {"generate": {"precision": record.config["precision"]}} if current and "precision" in record.config else {}


def _outcome(section: str, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Without the settings that change how, not what: older records have them."""
    model = Config.model_fields[section].annotation
    assert isinstance(model, type) and issubclass(model, BaseModel)
    known = model.model_fields
    # unknown ones are for `known_only` to drop
    return {k: v for k, v in recorded.items() if k not in known or role_of(model, k) != EXECUTION}


def overridden_text(overridden: tuple[Override, ...], run: RunFolder, config_file: Path | None) -> str:
    """One warning for all settings that a record decides, with the commands that would make them effective: for a scale
    that the choice of strength decided, fine-tuning with a flag, which fixes it."""
    if not overridden:
        return ""
    said = [f"{o.key} = {o.said!r} in {o.said_in}, but the {o.record} has {o.used!r}" for o in overridden]
    finetune = run.record("finetune")
    chosen = {f"generate.{name}" for name in (chosen_strength(finetune) if finetune else ())}
    fixed = [f"--set={o.key}={o.said}" for o in overridden if o.key in chosen]
    stages = {"finetune": fixed} if fixed else {}
    stages |= {name: stages.get(name, []) for o in overridden if (name := _stage_of(o)) and o.key not in chosen}
    where = [] if run.path == Path(DEFAULT_RUN).absolute() else ["--run", str(run.path)]
    where += ["--config", str(config_file)] if config_file else []
    commands = [shlex.join(["dcdm", stage, *where, *flags]) for stage, flags in stages.items()]
    return f"{'; '.join(said)}: what was made decides. To make it effective: {', then '.join(commands)}"


def _stage_of(override: Override) -> str:
    return override.record.removeprefix("record of ")


def by_calls(session: Session) -> Session:
    """The session for what is done with the fine-tuned adapter, whichever images are generated with."""
    return session.with_settings(generate={"guidance": "calls"})


def chosen_strength(record: StageRecord) -> dict[str, Any]:
    """The settings of generation that fine-tuning with `strength = auto` chose; empty where it chose none. Only scales:
    the record's gate (`results.Scales`) lets nothing else through."""
    chosen = (record.results.get("strength") or {}) if record.stage == "finetune" else {}
    return {key: value for key, value in (chosen.get("settings") or {}).items() if value is not None}


def with_chosen_strength(session: Session) -> Session:
    """The session with the scales that fine-tuning chose, where no flag says otherwise."""
    record = session.run.record("finetune")
    chosen = chosen_strength(record) if record else {}
    chosen = {key: value for key, value in chosen.items() if f"generate.{key}" not in session.given}
    # force: with_settings takes it away, for work inside of a stage
    return replace(with_settings(session, generate=chosen), force=session.force) if chosen else session
