"""Captioning a whole manifest: what a model has said is kept as it comes, so that a stopped run goes on.

In: a manifest and a file to keep the captions in. Out: one caption per row, in row order.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from dcdm_cli.captioning.captioner import Captioner
from dcdm_cli.captioning.templates import prefixed
from dcdm_cli.data.manifest import Manifest
from dcdm_cli.data.shown import refuse_other_pictures
from dcdm_cli.files import hash_json
from dcdm_cli.gate import Text, Word
from dcdm_cli.run.journals import append_rows, kept_rows
from dcdm_cli.run.progress import Job, silent
from dcdm_cli.run.settings import CaptionConfig


@dataclass(frozen=True)
class Said:
    """A row of the file: what the model of `revision` said of an image."""

    sample_id: Word
    caption: Text
    revision: Word | None


def model_captions(manifest: Manifest, config: CaptionConfig, folder: Path, job: Job) -> tuple[list[str], str | None]:
    """Captions with the prefix in front, and the commit of the model that wrote them.

    folder: keeps a JSON-lines file of bare captions per model and way of asking it; rows whose sample id is in there
    are not captioned again. Raises what `Captioner` raises, and InterruptedRunError between batches when asked to stop.
    """
    file = folder / f"captions-{_key(config)}.jsonl"
    known = {row.sample_id: row for row in kept_rows(file, Said, job.note)}
    ids = manifest.column("sample_id")
    missing = [row for row in range(len(manifest)) if ids[row] not in known]
    if missing:
        captioner, paths = Captioner(config, job.device), manifest.paths()
        for start in range(0, len(missing), config.batch_size):
            batch = missing[start : start + config.batch_size]
            refuse_other_pictures(manifest.select(np.array(batch)), silent)  # captions are kept under their ids
            texts = captioner.caption([paths[row] for row in batch])
            said = [Said(ids[row], text, captioner.revision) for row, text in zip(batch, texts, strict=True)]
            append_rows(file, map(asdict, said))
            known |= {row.sample_id: row for row in said}
            job.progress("captioning", start + len(batch), len(missing))
            job.stop_if_asked(f"{len(known)} of {len(manifest)} captions are kept")
    names = manifest.column("class_name")
    captions = [prefixed(config.prefix, name, known[id].caption) for name, id in zip(names, ids, strict=True)]
    # two where the model was published anew while this was stopped
    revisions = sorted({revision for id in ids if (revision := known[id].revision)})
    return captions, ", ".join(revisions) or None


def _key(config: CaptionConfig) -> str:
    """Of what the bare captions depend on."""
    return hash_json([config.model, config.revision, config.prompt, config.max_new_tokens])[:16]
