"""`dcdm check`: whether everything in a run folder is what some stage left there, and whether it still fits together.

Reads what the records say was read and written, and then what no single record knows: class names, weights, the
source, generated sets against their shards, leftovers. Nothing is changed unless it is to be repaired.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcdm_cli.errors import DcdmError, ExitCode, NotFoundError
from dcdm_cli.files import leftovers
from dcdm_cli.gate import read_document
from dcdm_cli.run.seals import SEAL_SUFFIX, change_beside
from dcdm_cli.run.session import Session, recorded_layers
from dcdm_cli.run.standing import OPTIONAL
from dcdm_cli.run.store import COMMAND_OF, PIPELINE, RunFolder, StageRecord
from dcdm_cli.stages.doctor import Finding

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
        parts = (_stages(run), _source(session), _class_names(run), _weights(run), _sets(run, verify), _caches(run))
        return [finding for part in parts for finding in part] + repaired


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


# What the records say


def _stages(run: RunFolder) -> Iterator[Finding]:
    known = run.records()
    for stage in PIPELINE:
        if stage not in known and stage not in OPTIONAL:
            yield from _unrecorded(run, stage)
    changed = {name: [*run.changes(record)] for name, record in known.items()}
    damaged = {file for name, record in known.items() for file, _ in changed[name] if _is_output(record, file)}
    for name, record in known.items():
        own = [(file, said) for file, said in changed[name] if file not in damaged or _is_output(record, file)]
        yield from _stage(name, record, [*run.outdated(record)], own)


def _is_output(record: StageRecord, file: str) -> bool:
    return file in record.wrote or file in record.outputs


def _unrecorded(run: RunFolder, stage: str) -> Iterator[Finding]:
    try:
        run.record(stage)
    except DcdmError as error:
        yield Finding(stage, DAMAGED, error.message, error.hint)
        return
    yield Finding(stage, MISSING, "it was not run, or was stopped", f"dcdm {stage}")


def _stage(name: str, record: StageRecord, outdated: list[str], changed: list[tuple[str, str]]) -> Iterator[Finding]:
    """changed: of what it wrote, and of what it had read where that is no damage of another stage."""
    again = _again(record.stage, name)
    found = [Finding(name, STALE, why, again) for why in outdated]
    if record.outputs and not (record.wrote or record.read):
        found.append(
            Finding(name, STALE, "it is from before files were recorded: damage is not seen", f"{again} --force")
        )
    for file, said in changed:
        ours = _is_output(record, file)
        text = f"{file} {said}" + ("" if ours else ", which it was made from")
        found.append(Finding(name, DAMAGED if ours else STALE, text, again))
    yield from found or [Finding(name, FRESH, "")]


def _again(stage: str, name: str) -> str:
    images = name.removeprefix("generate-")
    called = f" --name {images}" if stage == "generate" and images != name else ""
    return f"dcdm {COMMAND_OF.get(stage, stage.partition('-')[0])}{called}"


def _source(session: Session) -> Iterator[Finding]:
    """Whether the images are still those that were scored. A source on the hub is not asked for."""
    from dcdm_cli.stages.score import scan_options, score_stage

    run = session.run
    record = run.records().get("score")
    source = str(record.config.get("source", "-")) if record else "-"
    if record is None or source == "-" or source.startswith("hf:"):
        return
    try:
        (layer,) = recorded_layers(run, "caption")
        session = session.with_settings(**layer.values)
        now = score_stage(session, source, scan_options(session, source)).inputs
    except DcdmError as error:
        yield Finding("score", STALE, f"its source: {error.message}", error.hint)
        return
    for name in sorted(record.inputs.keys() | now.keys()):
        if record.inputs.get(name) != now.get(name):
            what = source if name == "source" else name
            yield Finding("score", STALE, f"{what} has changed since", "dcdm score")


# What no single record knows


def _class_names(run: RunFolder) -> Iterator[Finding]:
    """One list, in one order, wherever it is written."""
    from dcdm_cli.data.manifest import manifest_classes

    files = {"score": run.scorer / "scorer.json", "finetune": run.adapter / "config.json"}
    files["judge"] = run.evaluation / "judge" / "classifier.json"
    try:
        ours = manifest_classes(run.samples)
        found: dict[str, tuple[Path, tuple[str, ...] | None]] = {}
        found |= {stage: (file, _names_in(file)) for stage, file in files.items() if file.is_file()}
        for one in (run, *(run.with_images(name) for name in run.set_names())):
            made = one.generated / "samples.parquet"
            if made.is_file():
                found[f"generate {one.images_name}".strip()] = made, manifest_classes(made)
    except DcdmError as error:
        yield Finding("classes", DAMAGED, error.message, error.hint)
        return
    for stage, (file, names) in found.items():
        if ours is not None and names != ours:
            text = f"{file.relative_to(run.path)} has other classes than {run.samples.name}"
            yield Finding(stage, DAMAGED, text, f"dcdm {COMMAND_OF.get(stage, stage.split()[0])} --force")


def _names_in(file: Path) -> tuple[str, ...]:
    return tuple(read_document(file, dict[str, Any], "make it again").get("class_names", ()))


def _weights(run: RunFolder) -> Iterator[Finding]:
    from dcdm_cli.run.finite import not_finite_in

    makers = {run.scorer: "score", run.adapter: "finetune", run.checker: "generate", run.evaluation / "judge": "judge"}
    for folder, stage in makers.items():
        for file in sorted(folder.rglob("*.safetensors")):
            if said := not_finite_in(file):
                text = f"{file.relative_to(run.path)}: {said}"
                yield Finding(stage, DAMAGED, text, f"dcdm {COMMAND_OF.get(stage, stage)} --force")


def _sets(run: RunFolder, verify: bool) -> Iterator[Finding]:
    for one in (run, *(run.with_images(name) for name in run.set_names())):
        topic = f"generate {one.images_name}".strip()
        try:
            ledger = _ledger(one)
            again = _again("generate", f"generate-{one.images_name}".rstrip("-"))
            for text, fix in ledger.differences(verify=verify) if ledger else ():
                yield Finding(topic, DAMAGED, text, fix or again)
        except DcdmError as error:
            yield Finding(topic, DAMAGED, error.message, error.hint)


def _ledger(run: RunFolder) -> Ledger | None:
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
    for one in (run, *(run.with_images(name) for name in run.set_names())):
        yield from _projected(one)


def _projected(run: RunFolder) -> Iterator[Finding]:
    from dcdm_cli.model.adapter import read_adapter
    from dcdm_cli.stages.generate import drop_damaged

    topic, record = f"generate {run.images_name}".strip(), None
    try:
        record, ledger = run.record("generate"), _ledger(run)
        if record is None or ledger is None or ledger.missing():
            return  # images are missing: `dcdm generate` makes them
        dropped = drop_damaged(run)
        if dropped:
            ledger.write_again(read_adapter(run.adapter).base, str(record.results.get("backend", "")))
    except DcdmError as error:
        yield Finding(topic, DAMAGED, f"not repaired: {error.message}", error.hint)
        return
    yield from (Finding(topic, REPAIRED, f"{name} is written again from the shards") for name in dropped)
