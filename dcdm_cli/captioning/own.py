"""Captions that came with the images: `dcdm score` keeps them apart, so that captions of ours never replace them
unseen."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dcdm_cli.data.manifest import Manifest
from dcdm_cli.errors import MismatchError
from dcdm_cli.files import atomic_path

_SCHEMA = pa.schema([("sample_id", pa.string()), ("caption", pa.string())])


def write_own_captions(file: Path, manifest: Manifest) -> None:
    """The manifest's captions by sample id; no file where there are none."""
    table = manifest.table.select(_SCHEMA.names)
    table = table.filter(table["caption"].is_valid())
    if not table.num_rows:
        file.unlink(missing_ok=True)
        return
    with atomic_path(file) as part:
        pq.write_table(table.cast(_SCHEMA), part)


def read_own_captions(file: Path, manifest: Manifest) -> list[str | None]:
    """One per row of the manifest, None where there is none. Raises MismatchError for a damaged file."""
    if not file.is_file():
        return [None] * len(manifest)
    try:
        table = pq.read_table(file).cast(_SCHEMA)
    except (OSError, ValueError) as error:  # pa.ArrowInvalid is a ValueError
        raise MismatchError(f"{file} is damaged: {error}", "make it again: dcdm score --force", file=file) from error
    known = dict(zip(table["sample_id"].to_pylist(), table["caption"].to_pylist(), strict=True))
    return [known.get(sample) for sample in manifest.table["sample_id"].to_pylist()]
