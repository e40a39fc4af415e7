"""Writes a caption for each image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dcdm_cli.errors import UsageError
from dcdm_cli.files import hash_file, hash_json
from dcdm_cli.run.roles import FILES, RESULT, fingerprint, others
from dcdm_cli.run.session import Context
from dcdm_cli.run.store import Outcome, Stage, StageRecord
from dcdm_cli.stages.jobs import open_job

if TYPE_CHECKING:
    from dcdm_cli.data.manifest import Manifest


def run_caption(context: Context) -> StageRecord:
    run = context.run
    run.create(after="score")
    with run.lock("dcdm caption"):
        _refuse_replacing(context)
        record, done = run.run(caption_stage(context), lambda: _work(context), force=context.force)
        if any(fingerprint(context.config.caption, FILES).values()):
            _, written = run.run(caption_files_stage(context), lambda: _write_extras(context), force=context.force)
            done = done or written
    if not done:
        context.console.note("caption: nothing changed, skipped (--force runs it again)")
    return record


def caption_stage(context: Context) -> Stage:
    config, finetune = context.config.caption, context.config.finetune
    tokenizer = {"base": finetune.base, "revision": finetune.revision}  # whose tokens are counted
    uncounted = others(config, RESULT)
    return Stage("caption", {**fingerprint(config, RESULT), "tokenizer": tokenizer}, _inputs(context), uncounted)


def caption_files_stage(context: Context) -> Stage:
    """Copies of the captions for other programs, which no later stage depends on."""
    config = context.config.caption
    return Stage("caption-files", fingerprint(config, FILES), {"caption": context.run.require("caption").id})


def _refuse_replacing(context: Context) -> None:
    """Before anything slow."""
    run, config = context.run, context.config.caption
    if not config.metadata or config.overwrite or not (config.metadata / "metadata.jsonl").exists():
        return
    if context.force or not (run.is_fresh(caption_stage(context)) and run.is_fresh(caption_files_stage(context))):
        raise UsageError(f"{config.metadata} has a metadata.jsonl already", "replace it: dcdm caption --overwrite")


def _inputs(context: Context) -> dict[str, str]:
    templates = context.config.caption.templates_file
    own = {"templates": hash_file(templates)} if templates and templates.is_file() else {}
    return {"score": context.run.require("score").id, **own}


def _work(context: Context) -> Outcome:
    from dcdm_cli.data.manifest import read_manifest, write_manifest

    run, config = context.run, context.config.caption
    manifest = read_manifest(run.samples)
    captions, revision = _captions(context, manifest)
    captions, cut = _cut(context, captions)
    manifest = manifest.with_columns({"caption": captions})
    run.forget("caption")
    write_manifest(manifest, run.samples)
    results = {"images": len(captions), "distinct": len(set(captions)), "cut": cut}
    return Outcome([run.samples], hash_json(captions), {**results, "method": config.method, "revision": revision})


def _captions(context: Context, manifest: Manifest) -> tuple[list[str], str | None]:
    """One caption per row, and the commit of the captioning model that wrote them."""
    from dcdm_cli.captioning.templates import template_captions

    config = context.config.caption
    if config.method == "template":
        return template_captions(manifest, config), None
    from dcdm_cli.captioning.bulk import model_captions

    return model_captions(manifest, config, context.run.cache, open_job(context))


def _cut(context: Context, captions: list[str]) -> tuple[list[str], int]:
    """Captions that the base's text encoder can read whole, and how many had to be cut."""
    from dcdm_cli.captioning.templates import cut_to_limit
    from dcdm_cli.model.base import load_tokenizer

    base = context.config.finetune
    tokenizer = load_tokenizer(base.base, base.revision)
    if tokenizer is None:
        context.console.warn("the base model's tokenizer is not at hand: captions are not checked for length")
        return captions, 0
    captions, cut = cut_to_limit(captions, tokenizer)
    if cut:
        limit = tokenizer.model_max_length
        context.console.warn(f"{cut} captions were cut at the text encoder's limit of {limit} tokens")
    return captions, cut


def _write_extras(context: Context) -> Outcome:
    from dcdm_cli.data.manifest import read_manifest
    from dcdm_cli.data.writers import metadata_rows, write_metadata, write_sidecars

    config = context.config.caption
    manifest = read_manifest(context.run.samples)
    if config.sidecars is not None:
        write_sidecars(manifest, config.sidecars, overwrite=config.overwrite)
    if config.metadata is not None:
        write_metadata(config.metadata, metadata_rows(manifest, config.metadata))
    return Outcome([], "")
