"""Writes a caption for each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dcdm_cli.errors import UsageError
from dcdm_cli.files import hash_file, hash_json
from dcdm_cli.run.keeping import refuse_replacing
from dcdm_cli.run.roles import FILES, RESULT, fingerprint, others
from dcdm_cli.run.session import Session
from dcdm_cli.run.store import Outcome, RunFolder, Stage, StageRecord
from dcdm_cli.stages.jobs import open_job
from dcdm_cli.stages.prompts import run_prompts
from dcdm_cli.stages.reading import readable, shortened

if TYPE_CHECKING:
    from dcdm_cli.data.manifest import Manifest


def run_caption(session: Session) -> StageRecord:
    run = session.run
    run.create(after="score")
    with run.lock("dcdm caption"):
        _refuse_replacing(session)
        stage = caption_stage(session)
        if not session.force:
            refuse_replacing(run, stage, "captioning otherwise")
        record, done = run.run(stage, lambda: _write_captions(session), force=session.force)
        # a stage of its own: a finished run is asked for copies without captioning again
        if any(fingerprint(session.config.caption, FILES).values()):
            _, written = run.run(caption_files_stage(session), lambda: _write_extras(session), force=session.force)
            done = done or written
        if session.config.caption.method == "llm":
            record, written = run_prompts(session)
            done = done or written
    if not done:
        session.console.note("caption: nothing changed, skipped (--force runs it again)")
    return record


def caption_by_template(session: Session) -> None:
    """Before the first fine-tuning: where captions are missing, nobody has made any, and the settings name the
    template, which takes a second. Captions that another scoring dropped may have been a model's: whoever had some says
    how they are made again."""
    from dcdm_cli.data.manifest import read_manifest

    run, asked = session.run, session.config.caption.method
    # scoring forgets the record of captions; the cache of a model's stays
    had = any(run.record(stage) for stage in ("caption", "finetune")) or any(run.cache.glob("captions-*"))
    if had or asked != "template" or run.record("score") is None:
        return
    if read_manifest(run.samples).split("train").table["caption"].null_count:
        session.console.note("captions: there are none yet (dcdm caption), so these are the template's")
        run_caption(replace(session, force=False))  # --force was said of fine-tuning


def caption_stage(session: Session) -> Stage:
    config, finetune = session.config.caption, session.config.finetune
    tokenizer = {"base": finetune.base, "revision": finetune.revision}  # whose tokens are counted
    # copies for other programs and a language model's prompts change no caption, and make no adapter stale
    uncounted = others(config, RESULT)
    reads = (session.run.samples, session.run.own_captions)
    settings = {**fingerprint(config, RESULT), "method": _method(session), "tokenizer": tokenizer}
    return Stage("caption", settings, _inputs(session), uncounted, reads)


def _method(session: Session) -> str:
    """How images are captioned. Prompts of a language model say nothing of an image: the captions stay, and are made by
    template where there are none."""
    method = session.config.caption.method
    if method != "llm":
        return method
    record = session.run.record("caption")
    return record.config["method"] if record else "template"


def caption_files_stage(session: Session) -> Stage:
    """Copies of the captions for other programs, which no later stage depends on."""
    config = session.config.caption
    inputs = {"caption": session.run.require("caption").id}
    return Stage("caption-files", fingerprint(config, FILES), inputs, reads=(session.run.samples,))


def _refuse_replacing(session: Session) -> None:
    """Before anything slow."""
    run, config = session.run, session.config.caption
    if not config.metadata or config.overwrite or not (config.metadata / "metadata.jsonl").exists():
        return
    if session.force or not (run.is_fresh(caption_stage(session)) and run.is_fresh(caption_files_stage(session))):
        raise UsageError(f"{config.metadata} has a metadata.jsonl already", "replace it: dcdm caption --overwrite")


def _inputs(session: Session) -> dict[str, str]:
    templates = session.config.caption.templates_file
    own = {"templates": hash_file(templates)} if templates and templates.is_file() else {}
    return {"score": session.run.require("score").id, **own}


def _write_captions(session: Session) -> Outcome:
    from dcdm_cli.captioning.own import read_own_captions
    from dcdm_cli.data.manifest import read_manifest, write_manifest

    run, config = session.run, session.config.caption
    manifest = read_manifest(run.samples)
    # from a file of their own: in the manifest they cannot be told from those written here
    kept = read_own_captions(run.own_captions, manifest) if config.own == "keep" else [None] * len(manifest)
    captions, revision = _filled(session, manifest, kept)
    captions, cut = readable(session, captions, "captions")
    manifest = manifest.with_columns({"caption": captions})
    # the table is score's too: until the record is written, a kill must not make it count as damaged
    run.forget("caption", replaces=run.samples)
    write_manifest(manifest, run.samples)
    own = sum(caption is not None for caption in kept)
    method = _method(session)
    origins = {"own": own, method: len(captions) - own}
    counts = [f"{n:,} {'' if origin == 'own' else 'by '}{origin}" for origin, n in origins.items() if n]
    session.console.note(f"captions: {', '.join(counts)}, such as: {shortened(captions[0])}")
    results = {"images": len(captions), "distinct": len(set(captions)), "cut": cut, "origins": origins}
    return Outcome([run.samples], hash_json(captions), {**results, "method": method, "revision": revision})


def caption_input(run: RunFolder) -> dict[str, str]:
    """What fine-tuning depends on besides the scores: the caption stage, which is not needed where every training image
    came with a caption of its own. Raises NotFoundError where it is."""
    record = run.record("caption")
    if record is None:
        from dcdm_cli.data.manifest import read_manifest

        if read_manifest(run.samples).split("train").table["caption"].null_count:
            run.require("caption")
        return {}
    return {"caption": record.id}


def _filled(session: Session, manifest: Manifest, kept: Sequence[str | None]) -> tuple[list[str], str | None]:
    """One caption per row, those that are kept and others in the gaps, and the commit of the model that wrote these."""
    import numpy as np

    gaps = np.array([caption is None for caption in kept], bool)
    if not gaps.any():
        return [caption or "" for caption in kept], None
    written, revision = _captions(session, manifest.select(gaps))
    new = iter(written)
    return [next(new) if caption is None else caption for caption in kept], revision


def _captions(session: Session, manifest: Manifest) -> tuple[list[str], str | None]:
    """One caption per row, and the commit of the captioning model that wrote them."""
    from dcdm_cli.captioning.templates import template_captions

    config = session.config.caption
    if _method(session) == "template":
        return template_captions(manifest, config), None
    from dcdm_cli.captioning.bulk import model_captions

    return model_captions(manifest, config, session.run.cache, open_job(session))


def _write_extras(session: Session) -> Outcome:
    from dcdm_cli.data.manifest import read_manifest
    from dcdm_cli.data.writers import metadata_rows, write_metadata, write_sidecars

    config = session.config.caption
    manifest = read_manifest(session.run.samples)
    if _is_in_source(manifest, config.sidecars) or _is_in_source(manifest, config.metadata):
        session.console.warn(
            "the captions are written beside the source's images: the next dcdm score takes them for the images' own, "
            "and scores again because the source is another (--no-caption-files ignores text files)"
        )
    if config.sidecars is not None:
        write_sidecars(manifest, config.sidecars, overwrite=config.overwrite)
    if config.metadata is not None:
        write_metadata(config.metadata, metadata_rows(manifest, config.metadata))
    return Outcome([], "")


def _is_in_source(manifest: Manifest, folder: Path | None) -> bool:
    root = manifest.root
    return folder is not None and root is not None and folder.resolve().is_relative_to(root.resolve())
