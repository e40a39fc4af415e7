"""What evaluations made for themselves, held against what they know of it: generated sets in `evaluation/sets/`, by the
sets' ledgers, and adapters other than the run's in `evaluation/adapters/`, by their records.

Only damage is looked for. Both are named by everything that they are made from: what another fine-tuning or scoring has
made out of date lies there unused, and is no finding.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dcdm_cli.errors import DcdmError
from dcdm_cli.run.store import RunFolder, command_of

_NAMED = 3  # commands in a remedy


def experiment_faults(run: RunFolder, *, verify: bool) -> Iterator[tuple[str, str, str]]:
    """(folder below the run folder, what, remedy) of everything damaged. verify: read every image too."""
    made_by = _made_by(run)
    found = [(folder, _set_faults(folder, verify)) for folder in _sets(run)]
    found += [(folder, _adapter_faults(folder)) for folder in _adapters(run)]
    for folder, faults in found:
        name, again = folder.relative_to(run.path).as_posix(), f"remove {folder}: {made_by} makes it again when needed"
        try:
            yield from ((name, said, again) for said in faults)
        except DcdmError as error:
            yield name, error.message, again


def _sets(run: RunFolder) -> list[Path]:
    """Those that are finished, whose table is written last; where a set is made in rounds, each of them."""
    return sorted(
        file.parent for one in ("*", "*/*") for file in (run.evaluation / "sets").glob(f"{one}/samples.parquet")
    )


def _adapters(run: RunFolder) -> list[Path]:
    return sorted(folder for folder in (run.evaluation / "adapters").glob("[!.]*") if folder.is_dir())


def _set_faults(folder: Path, verify: bool) -> Iterator[str]:
    from dcdm_cli.generation.ledger import ledger_in

    for said, _ in ledger_in(folder).differences(verify=verify):
        yield said


def _adapter_faults(folder: Path) -> Iterator[str]:
    """Files by their names below the adapter's folder, which is a small run folder."""
    from dcdm_cli.run.finite import not_finite_in

    run = RunFolder(folder)
    for record in run.records_or_faults().values():
        if isinstance(record, DcdmError):
            yield record.message
            continue
        for file, said in run.changes(record):
            if file in record.wrote or file in record.outputs:
                yield f"{file} {said}"
    for file in sorted(run.adapter.glob("*.safetensors")):
        if said := not_finite_in(file):
            yield f"{file.relative_to(folder)}: {said}"


def _made_by(run: RunFolder) -> str:
    """The commands that may have asked for any of it: no folder says which of them did."""
    commands = dict.fromkeys(f"dcdm {command_of(name)}" for name in run.records())
    asked = [one for one in commands if one == "dcdm evaluate" or one.startswith("dcdm evaluate experiment ")]
    return " or ".join(asked[:_NAMED]) or "dcdm evaluate"
