"""`dcdm check`: whether everything in a run folder is what some stage left there, and whether it still fits together.

Reads what the records say was read and written, and then what no single record knows: class names, weights, the
source, generated sets against their shards, leftovers. Nothing is changed unless it is to be repaired.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ConfigDict

from dcdm_cli.errors import DcdmError, ExitCode, NotFoundError
from dcdm_cli.files import leftovers
from dcdm_cli.gate import ClassNames, read_document
from dcdm_cli.run.journals import changed_rows, drop_changed
from dcdm_cli.run.resolution import known_only
from dcdm_cli.run.seals import SEAL_SUFFIX, change_beside
from dcdm_cli.run.session import Session, recorded_layers
from dcdm_cli.run.standing import OPTIONAL
from dcdm_cli.run.store import DISTILLED, PIPELINE, RunFolder, StageRecord, command_of
from dcdm_cli.stages.doctor import Finding
from dcdm_cli.stages.label_check import check_input
from dcdm_cli.stages.prompts import prompt_input
from dcdm_cli.stages.source import source_changes

if TYPE_CHECKING:
    from dcdm_cli.generation.ledger import Ledger

FRESH, STALE, DAMAGED, MISSING, LEFT_OVER, REPAIRED = "fresh", "stale", "damaged", "missing", "left over", "repaired"
_CODES = {DAMAGED: ExitCode.MISMATCH, STALE: ExitCode.PARTIAL}


def run_check(session: Session, *, repair: bool = False, verify: bool = False) -> list[Finding]:
    """Every finding, stage by stage. repair: write again what is cheap to make, and remove leftovers; nothing that took
    long is touched. verify: read every generated image too. Raises NotFoundError without a run folder."""
    run = session.run
    if not run.path.is_dir():
        raise NotFoundError(f"there is no run folder {run.path}", "name one: dcdm check --run DIR", file=run.path)
    left = [*_leftovers(run)]  # taking the lock sweeps them away
    with run.lock("dcdm check --repair") if repair else nullcontext():
        repaired = [*_repaired(run), *(_swept(left) if repair else [])] if repair else left
        source = map(_changed_source, source_changes(session))
        parts = (_stages(run), source, _asked(session), _class_names(run), _weights(run), _sets(run, verify),
                 _caches(run), _journals(run))  # fmt: skip
        return [finding for part in parts for finding in _to_the_end(part)] + repaired


def document(findings: list[Finding]) -> dict[str, Any]:
    rows = [{"stage": f.topic, "state": f.state, "text": f.text, "fix": f.fix} for f in findings]
    return {"schema": 1, "stage": "check", "code": int(check_code(findings)), "findings": rows}


def check_code(findings: list[Finding]) -> ExitCode:
    """OK, PARTIAL where something is stale, MISMATCH where something is damaged."""
    found = {finding.state for finding in findings}
    return next((code for state, code in _CODES.items() if state in found), ExitCode.OK)


def sentence(finding: Finding) -> str:
    """One line."""
    text = f"{finding.state:9} {finding.topic}" + (f": {finding.text}" if finding.text else "")
    return text + (f"; try: {finding.fix}" if finding.fix else "")


def _to_the_end(part: Iterator[Finding]) -> Iterator[Finding]:
    """A file that stops one part of the check is a finding, and stops no other part."""
    try:
        yield from part
    except DcdmError as error:
        yield Finding("run", DAMAGED, error.message, error.hint)


# What the records say


def _stages(run: RunFolder) -> Iterator[Finding]:
    found = run.records_or_faults()
    unread = {name: error for name, error in found.items() if isinstance(error, DcdmError)}
    known = {name: record for name, record in found.items() if isinstance(record, StageRecord)}
    yield from (Finding(name, DAMAGED, error.message, error.hint) for name, error in unread.items())
    yield from _unrecorded(run, found)
    changed = {name: [*run.changes(record)] for name, record in known.items()}
    damaged = {file for name, record in known.items() for file, _ in changed[name] if _is_output(record, file)}
    for name, record in known.items():
        own = [(file, said) for file, said in changed[name] if file not in damaged or _is_output(record, file)]
        yield from _stage(run, record, name, _outdated(run, record, unread), own)


def _is_output(record: StageRecord, file: str) -> bool:
    return file in record.wrote or file in record.outputs


def _outdated(run: RunFolder, record: StageRecord, unread: Collection[str]) -> list[str]:
    """As `RunFolder.outdated`, of the earlier stages whose records can be read."""
    which = f"-{DISTILLED}"
    inputs = {name: id for name, id in record.inputs.items() if not {name, name + which} & {*unread}}
    return [*run.as_made(record).outdated(replace(record, inputs=inputs))]


def _unrecorded(run: RunFolder, recorded: Collection[str]) -> Iterator[Finding]:
    """Stages of the pipeline that have no record, and what lies there of any without one. A set is its ledger's."""
    other = run.with_distilled(not run.distilled)
    made = {name: folder for one in (run, other) for name, folder in _made_by(one).items()}
    for stage in dict.fromkeys((*PIPELINE, *made)):
        if stage in recorded:
            continue
        file = made.get(stage)
        if file is not None and file.exists():
            said = f"{file.relative_to(run.path)} is there, and no record says what it was made from"
            yield Finding(stage, STALE, said, f"dcdm {command_of(stage)}")
        elif stage in PIPELINE and stage not in OPTIONAL:
            yield Finding(stage, MISSING, "it was not run, or was stopped", f"dcdm {stage}")


def _made_by(run: RunFolder) -> dict[str, Path]:
    """Name of a record -> the file that its stage writes last, or the folder that it puts in its place as a whole."""
    if run.distilled:
        own = {"distill": run.adapter}
    else:
        own = {"finetune": run.adapter, "judge": run.evaluation / "judge", "evaluate": run.evaluation / "metrics.json"}
    which = f"-{DISTILLED}" if run.distilled else ""
    return own | {f"calibrate{which}": run.calibration, f"export{which}": run.export / "signature.json"}


def _stage(
    run: RunFolder, record: StageRecord, name: str, outdated: list[str], changed: list[tuple[str, str]]
) -> Iterator[Finding]:
    """name: of the record. changed: of what it wrote, and of what it had read where that is no other stage's damage."""
    again = f"dcdm {command_of(name)}"
    found = [Finding(name, STALE, why, again) for why in outdated]
    if record.outputs and not (record.wrote or record.read):
        found.append(
            Finding(name, STALE, "it is from before files were recorded: damage is not seen", f"{again} --force")
        )
    for file, said in changed:
        ours = _is_output(record, file)
        text = f"{file} {said}" + ("" if ours else ", which it was made from")
        # what was made with the adapter stops until that is trained on the base as it is
        fix = run.train_again() if Path(file).is_absolute() else again
        found.append(Finding(name, DAMAGED if ours else STALE, text, fix))
    yield from found or [Finding(name, FRESH, "")]


def _changed_source(found: tuple[str, str]) -> Finding:
    return Finding("score", STALE, *found)


def _asked(session: Session) -> Iterator[Finding]:
    """Whether prompts and label checks of the user's own are still what images were made with."""
    for layer in recorded_layers(session.run, "generate"):
        session = session.with_settings(**known_only(layer.values))
    for name, record in session.run.records().items():
        made = record.config if record.stage == "generate" else record.config.get("generate")
        known = {"prompts": prompt_input, "check": check_input}.items()
        asked = {key: read for key, read in known if key in record.inputs}
        if not asked or not isinstance(made, Mapping):
            continue
        try:
            seen = session.with_settings(**known_only({"generate": made}))
            changed = [key for key, read in asked.items() if read(seen).get(key) != record.inputs[key]]
        except DcdmError as error:
            yield Finding(name, STALE, error.message, error.hint)
            continue
        for key in changed:
            what = {"prompts": "the file of prompts", "check": "the label check"}[key]
            yield Finding(name, STALE, f"{what} {made.get(key)} has changed since", f"dcdm {command_of(name)}")


# What no single record knows


def _class_names(run: RunFolder) -> Iterator[Finding]:
    """One list, in one order, wherever it is written. A file that cannot be read has a finding of its own."""
    from dcdm_cli.data.manifest import manifest_classes

    ours = manifest_classes(run.samples)
    for stage, (file, read) in _named_classes(run).items():
        if ours is None or not file.is_file():
            continue
        name, again = file.relative_to(run.path), f"dcdm {command_of(stage.replace(' ', '-'))} --force"
        try:
            if (names := read(file)) is None:
                yield Finding(stage, DAMAGED, f"{name} cannot be read", again)
            elif names != ours:
                yield Finding(stage, DAMAGED, f"{name} has other classes than {run.samples.name}", again)
        except DcdmError as error:
            yield Finding(stage, DAMAGED, error.message, again)


def _named_classes(run: RunFolder) -> dict[str, tuple[Path, Callable[[Path], tuple[str, ...] | None]]]:
    """Topic -> (file, its class names in label order)."""
    from dcdm_cli.data.manifest import manifest_classes

    calls, distilled = run.with_distilled(False), run.with_distilled(True)
    files = {"score": run.scorer / "scorer.json", "judge": run.evaluation / "judge" / "classifier.json"}
    files |= {"finetune": calls.adapter / "config.json", "distill": distilled.adapter / "config.json"}
    found: dict[str, tuple[Path, Callable[[Path], tuple[str, ...] | None]]] = {}
    found |= {stage: (file, _names_in) for stage, file in files.items()}
    found |= {"export": (calls.export / "signature.json", _names_of_model)}
    found |= {f"export-{DISTILLED}": (distilled.export / "signature.json", _names_of_model)}
    for one in (run, *(run.with_images(name) for name in run.set_names())):
        found[f"generate {one.images_name}".strip()] = one.generated / "samples.parquet", manifest_classes
    return found


@dataclass(frozen=True)
class _Named:
    """Of a document, the class names; whoever works with it reads the rest through a type of its own."""

    __pydantic_config__: ClassVar = ConfigDict(extra="ignore")

    class_names: ClassNames


@dataclass(frozen=True)
class _OfModel:
    """Of an export's signature, what it says of the model."""

    __pydantic_config__: ClassVar = ConfigDict(extra="ignore")

    model: _Named


def _names_in(file: Path) -> tuple[str, ...]:
    return read_document(file, _Named, "make it again").class_names


def _names_of_model(file: Path) -> tuple[str, ...]:
    return read_document(file, _OfModel, "make it again").model.class_names


def _weights(run: RunFolder) -> Iterator[Finding]:
    from dcdm_cli.run.finite import not_finite_in

    adapters = {run.with_distilled(True).adapter: "distill", run.with_distilled(False).adapter: "finetune"}
    others = {run.scorer: "score", run.checker: "generate", run.evaluation / "judge": "judge"}
    for folder, stage in (adapters | others).items():
        for file in sorted(folder.rglob("*.safetensors")):
            if said := not_finite_in(file):
                text = f"{file.relative_to(run.path)}: {said}"
                yield Finding(stage, DAMAGED, text, f"dcdm {command_of(stage)} --force")


def _sets(run: RunFolder, verify: bool) -> Iterator[Finding]:
    for one in (run, *(run.with_images(name) for name in run.set_names())):
        topic = f"generate {one.images_name}".strip()
        try:
            ledger = ledger_of(one)
            again = f"dcdm {command_of(topic.replace(' ', '-'))}"
            for text, fix in ledger.differences(verify=verify) if ledger else ():
                yield Finding(topic, DAMAGED, text, fix or again)
        except DcdmError as error:
            yield Finding(topic, DAMAGED, error.message, error.hint)


def ledger_of(run: RunFolder) -> Ledger | None:
    """Of a finished set; None where there is none."""
    from dcdm_cli.generation.layout import Layout
    from dcdm_cli.generation.ledger import Ledger, read_output
    from dcdm_cli.generation.plan_file import PlanFile

    if not (run.generated / "plan.parquet").is_file() or run.record("generate") is None:
        return None
    plan, kept = PlanFile(run.generated / "plan.parquet"), read_output(run.generated)
    layout = Layout(run.generated, kept.format, kept.image_format, plan.class_names, plan.shards)
    return Ledger(plan, layout)


def _caches(run: RunFolder) -> Iterator[Finding]:
    for note in sorted(run.cache.glob(f"*{SEAL_SUFFIX}")):
        file = note.with_suffix(".npy")
        if file.is_file() and (said := change_beside(file)):
            text = f"{file.relative_to(run.path)} {said}"
            yield Finding("cache", DAMAGED, text, "dcdm check --repair removes it: it is made again when needed")


def _journals(run: RunFolder) -> Iterator[Finding]:
    for file in _journal_files(run):
        if said := changed_rows(file):
            again = "dcdm check --repair removes them: what they stood for is made again when needed"
            yield Finding("cache", DAMAGED, said, again)


def _journal_files(run: RunFolder) -> list[Path]:
    places = {run.evaluation: "downstream.jsonl", run.cache: "*.jsonl", run.checkpoints: "*/snapshots/probes.jsonl"}
    return [file for folder, pattern in places.items() for file in sorted(folder.glob(pattern))]


def _leftovers(run: RunFolder) -> list[Finding]:
    found = sorted(path.relative_to(run.path).as_posix() for path in leftovers(run.path))
    return [Finding("run", LEFT_OVER, name, "the next command removes it, or: dcdm check --repair") for name in found]


# Repairing


def _swept(left: list[Finding]) -> list[Finding]:
    return [Finding(finding.topic, REPAIRED, f"{finding.text} was left over and is removed") for finding in left]


def _repaired(run: RunFolder) -> Iterator[Finding]:
    """What costs seconds: caches that would be refused anyway, and files that are made of the shards' rows."""
    for finding in [*_caches(run)]:
        name = finding.text.split(" ")[0]
        for suffix in (".npy", SEAL_SUFFIX):
            (run.path / name).with_suffix(suffix).unlink(missing_ok=True)
        yield Finding("cache", REPAIRED, f"{name} is removed: it is made again when needed")
    for said in filter(None, map(drop_changed, _journal_files(run))):
        yield Finding("cache", REPAIRED, f"{said}; they are removed")
    for one in (run, *(run.with_images(name) for name in run.set_names())):
        yield from _projected(one)


def _projected(run: RunFolder) -> Iterator[Finding]:
    from dcdm_cli.model.adapter import read_adapter
    from dcdm_cli.stages.generate import drop_damaged

    topic, record = f"generate {run.images_name}".strip(), None
    try:
        record, ledger = run.record("generate"), ledger_of(run)
        if record is None or ledger is None or ledger.missing():
            return  # images are missing: `dcdm generate` makes them
        dropped = drop_damaged(run)
        if dropped:
            ledger.write_again(read_adapter(run.adapter).base, str(record.results.get("backend", "")))
    except DcdmError as error:
        yield Finding(topic, DAMAGED, f"not repaired: {error.message}", error.hint)
        return
    yield from (Finding(topic, REPAIRED, f"{name} is written again from the shards") for name in dropped)
