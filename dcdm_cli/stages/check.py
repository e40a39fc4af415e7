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
from dcdm_cli.files import hash_file, leftovers
from dcdm_cli.gate import ClassNames, read_document
from dcdm_cli.run.journals import changed_rows, drop_changed
from dcdm_cli.run.resolution import known_only
from dcdm_cli.run.seals import SEAL_SUFFIX, change_beside
from dcdm_cli.run.session import Session, recorded_layers
from dcdm_cli.run.standing import OPTIONAL
from dcdm_cli.run.store import DISTILLED, PIPELINE, RunFolder, StageRecord, command_of
from dcdm_cli.stages.check_experiments import experiment_faults
from dcdm_cli.stages.doctor import Finding
from dcdm_cli.stages.given import image_input, table_input
from dcdm_cli.stages.source import source_changes
from dcdm_export.places import set_aside

if TYPE_CHECKING:
    from dcdm_cli.generation.ledger import Ledger

FRESH, STALE, DAMAGED, MISSING, LEFT_OVER, REPAIRED = "fresh", "stale", "damaged", "missing", "left over", "repaired"
REPAIR = "dcdm check --repair"
_GIVEN = {
    "prompts": "the file of prompts", "check": "the label check", "extra_lora": "the few-step LoRA",
    "counts": "the table of counts", "difficulty_file": "the table of difficulties",
}  # fmt: skip  # settings of generation that name a file, as people call it
_CODES = {DAMAGED: ExitCode.MISMATCH, STALE: ExitCode.PARTIAL}


def run_check(session: Session, *, repair: bool = False, verify: bool = False) -> list[Finding]:
    """Every finding, stage by stage. repair: write again what is cheap to make, and remove leftovers; nothing that took
    long is touched. verify: read every generated image and exported network too. Raises NotFoundError
    without a run folder."""
    run = session.run
    if not run.path.is_dir():
        raise NotFoundError(f"there is no run folder {run.path}", "name one: dcdm check --run DIR", file=run.path)
    left = [*_leftovers(run)]  # taking the lock sweeps most of them away
    with run.lock(REPAIR) if repair else nullcontext():
        # before the parts look: what is repaired is no finding of theirs
        repaired = [*_repaired(run), *_swept(run, left)] if repair else left
        source = map(_changed_source, source_changes(session))
        parts = (_stages(run), source, _asked(session), _templates(run), _class_names(run), _weights(run),
                 _sets(run, verify), _of_experiments(run, verify), _exports(run, verify), _caches(run),
                 _journals(run))  # fmt: skip
        found = [finding for part in parts for finding in _to_the_end(part)]
        return [*_without_fresh_damage(found), *repaired]


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


def _without_fresh_damage(found: list[Finding]) -> list[Finding]:
    """What a record calls fresh is not where another part of the check has found damage: records do not name the files
    that a set's ledger or an export's signature lists."""
    damaged = {finding.topic.replace(" ", "-") for finding in found if finding.state == DAMAGED}
    return [finding for finding in found if finding.state != FRESH or finding.topic not in damaged]


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
        for file in run.gone(record, for_people=True):
            yield Finding(name, MISSING, f"{file} is gone: it is only to be looked at, and nothing is made from it")


def _is_output(record: StageRecord, file: str) -> bool:
    return file in record.wrote or file in record.outputs


def _outdated(run: RunFolder, record: StageRecord, unread: Collection[str]) -> list[str]:
    """As `RunFolder.outdated`, of the earlier stages whose records can be read."""
    # asking for a record that cannot be read would end this part; it has a finding of its own
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
    """Whether what images were made with is as it was, of the user's own files."""
    for layer in recorded_layers(session.run, "generate"):
        session = session.with_settings(**known_only(layer.values))
    for name, record in session.run.records().items():
        # evaluations keep how their own images are made as a section of their record
        made = record.config if record.stage == "generate" else record.config.get("generate")
        asked = [key for key in _GIVEN if key in record.inputs]
        if not asked or not isinstance(made, Mapping):
            continue
        try:
            seen = session.with_settings(**known_only({"generate": made}))
            now = image_input(seen) | table_input(seen)
            changed = [key for key in asked if now.get(key) != record.inputs[key]]
        except DcdmError as error:
            yield Finding(name, STALE, error.message, error.hint)
            continue
        for key in changed:
            yield Finding(name, STALE, f"{_GIVEN[key]} {made.get(key)} has changed since", f"dcdm {command_of(name)}")


def _templates(run: RunFolder) -> Iterator[Finding]:
    """Whether the user's file of caption templates is still what captions were made with."""
    record = run.records().get("caption")
    if record is None or "templates" not in record.inputs:
        return
    file = Path(str(record.config.get("templates_file")))
    if not file.is_file() or hash_file(file) != record.inputs["templates"]:
        yield Finding("caption", STALE, f"the file of templates {file} has changed since", "dcdm caption")


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
    for one in _all_sets(run):
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
    for one in _all_sets(run):
        topic = _topic(one)
        try:
            ledger = ledger_of(one)
            again = f"dcdm {command_of(topic.replace(' ', '-'))}"
            for text, fix in ledger.differences(verify=verify) if ledger else ():
                yield Finding(topic, DAMAGED, text, fix or again)
        except DcdmError as error:
            yield Finding(topic, DAMAGED, error.message, error.hint)


def _all_sets(run: RunFolder) -> list[RunFolder]:
    return [run, *(run.with_images(name) for name in run.set_names())]


def _topic(run: RunFolder) -> str:
    return f"generate {run.images_name}".strip()


def ledger_of(run: RunFolder) -> Ledger | None:
    """Of a finished set; None where there is none."""
    from dcdm_cli.generation.ledger import ledger_in

    if not (run.generated / "plan.parquet").is_file() or run.record("generate") is None:
        return None
    return ledger_in(run.generated)


def _of_experiments(run: RunFolder, verify: bool) -> Iterator[Finding]:
    for folder, said, again in experiment_faults(run, verify=verify):
        yield Finding(folder, DAMAGED, said, again)


def _exports(run: RunFolder, verify: bool) -> Iterator[Finding]:
    """Networks and engines against the signature that lists them; whether they are there, or their contents too."""
    from dcdm_export.signature import SIGNATURE_FILE, SignatureError, read_signature, verify_files

    for one in (run.with_distilled(False), run.with_distilled(True)):
        if not (one.export / SIGNATURE_FILE).is_file():
            continue  # what the record says is missed as any other file
        topic = f"export-{DISTILLED}" if one.distilled else "export"
        try:
            signature = read_signature(one.export)
            listed = [network.sha256 for network in signature.networks.values()]
            listed.append({engine.file: engine.sha256 for engine in signature.engines})
        except SignatureError as error:
            yield Finding(topic, DAMAGED, str(error), f"dcdm {command_of(topic)}")
            continue
        for name, expected in {name: sha256 for files in listed for name, sha256 in files.items()}.items():
            try:
                if verify or not (one.export / name).is_file():
                    verify_files(one.export, {name: expected})
            except SignatureError as error:
                yield Finding(topic, DAMAGED, str(error), f"dcdm {command_of(topic)}")


def _caches(run: RunFolder) -> Iterator[Finding]:
    for note in sorted(run.cache.glob(f"*{SEAL_SUFFIX}")):
        file = note.with_suffix(".npy")
        if file.is_file() and (said := change_beside(file)):
            text = f"{file.relative_to(run.path)} {said}"
            yield Finding("cache", DAMAGED, text, f"{REPAIR} removes it: it is made again when needed")


def _leftovers(run: RunFolder) -> Iterator[Finding]:
    sets = {one.generated: f"dcdm {command_of(_topic(one).replace(' ', '-'))}" for one in _all_sets(run)}
    for path in sorted(leftovers(run.path)):
        command = next((sets[folder] for folder in sets if path.is_relative_to(folder)), "the next command")
        yield _left_over(run, path, f"{command} removes it, or: {REPAIR}")
    for export in (run.with_distilled(False).export, run.with_distilled(True).export):
        if (old := set_aside(export)).exists():
            there = f"the next command removes it, or: {REPAIR}"
            # without a new one the old is all there is, and no command sweeps it away
            yield _left_over(run, old, there if export.exists() else "dcdm export puts the new one in its place")
    for folder, command in sets.items():
        if (old := set_aside(folder)).exists():
            yield _left_over(run, old, f"{command} --force goes on, and removes it when the new images are there")


def _left_over(run: RunFolder, path: Path, fix: str) -> Finding:
    return Finding("run", LEFT_OVER, path.relative_to(run.path).as_posix(), fix)


def _journals(run: RunFolder) -> Iterator[Finding]:
    for file in _journal_files(run):
        if said := changed_rows(file):
            again = "dcdm check --repair removes them: what they stood for is made again when needed"
            yield Finding("cache", DAMAGED, said, again)


def _journal_files(run: RunFolder) -> list[Path]:
    places = {run.evaluation: "downstream.jsonl", run.cache: "*.jsonl", run.checkpoints: "*/snapshots/probes.jsonl"}
    return [file for folder, pattern in places.items() for file in sorted(folder.glob(pattern))]


# Repairing


def _swept(run: RunFolder, left: list[Finding]) -> Iterator[Finding]:
    """What is gone of what was left over, and what is not."""
    from dcdm_cli.generation.ledger import sweep_folder

    # taking the lock leaves sets alone, since parts work without it; this sweeps where none is at work
    for one in _all_sets(run):
        sweep_folder(one.generated)
    for finding in left:
        gone = not (run.path / finding.text).exists()
        yield Finding(finding.topic, REPAIRED, f"{finding.text} was left over and is removed") if gone else finding


def _repaired(run: RunFolder) -> Iterator[Finding]:
    """What costs seconds: caches that would be refused anyway, and files that are made of the shards' rows."""
    for finding in [*_caches(run)]:
        name = finding.text.split(" ")[0]
        for suffix in (".npy", SEAL_SUFFIX):
            (run.path / name).with_suffix(suffix).unlink(missing_ok=True)
        yield Finding("cache", REPAIRED, f"{name} is removed: it is made again when needed")
    for said in filter(None, map(drop_changed, _journal_files(run))):
        yield Finding("cache", REPAIRED, f"{said}; they are removed")
    for one in _all_sets(run):
        yield from _projected(one)


def _projected(run: RunFolder) -> Iterator[Finding]:
    from dcdm_cli.model.adapter import read_adapter
    from dcdm_cli.stages.generate import drop_damaged

    topic, record = _topic(run), None
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
