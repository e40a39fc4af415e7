"""Writes a caption for each image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dcdm_cli.errors import UsageError
from dcdm_cli.files import hash_file, hash_json
from dcdm_cli.run.session import Context
from dcdm_cli.run.store import Outcome, Stage, StageRecord
from dcdm_cli.stages.jobs import open_job

if TYPE_CHECKING:
    from dcdm_cli.data.manifest import Manifest


def run_caption(context: Context) -> StageRecord:
    run, config = context.run, context.config.caption
    run.create(after="score")
    with run.lock("dcdm caption"):
        base = {
            name: getattr(context.config.finetune, name) for name in ("base", "revision")
        }  # whose tokens are counted
        stage = Stage("caption", {**config.model_dump(mode="json"), "tokenizer": base}, _inputs(context))
        record, done = run.run(stage, lambda: _work(context), force=context.force)
    if not done:
        context.console.note("caption: nothing changed, skipped (--force runs it again)")
    return record


def _inputs(context: Context) -> dict[str, str]:
    templates = context.config.caption.templates_file
    own = {"templates": hash_file(templates)} if templates and templates.is_file() else {}
    return {"score": context.run.require("score").id, **own}


def _work(context: Context) -> Outcome:
    from dcdm_cli.data.manifest import read_manifest, write_manifest

    run, config = context.run, context.config.caption
    if config.metadata and (config.metadata / "metadata.jsonl").exists() and not config.overwrite:
        raise UsageError(f"{config.metadata} has a metadata.jsonl already", "replace it: dcdm caption --overwrite")
    manifest = read_manifest(run.samples)
    captions, revision = _captions(context, manifest)
    captions, cut = _cut(context, captions)
    manifest = manifest.with_columns({"caption": captions})
    _write_extras(context, manifest)
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
    tokenizer = load_tokenizer(str(base.base_config or base.base), base.revision)
    if tokenizer is None:
        context.console.warn("the base model's tokenizer is not at hand: captions are not checked for length")
        return captions, 0
    captions, cut = cut_to_limit(captions, tokenizer)
    if cut:
        limit = tokenizer.model_max_length
        context.console.warn(f"{cut} captions were cut at the text encoder's limit of {limit} tokens")
    return captions, cut


def _write_extras(context: Context, manifest: Manifest) -> None:
    from dcdm_cli.data.writers import metadata_rows, write_metadata, write_sidecars

    config = context.config.caption
    if config.sidecars is not None:
        write_sidecars(manifest, config.sidecars, overwrite=config.overwrite)
    if config.metadata is not None:
        write_metadata(config.metadata, metadata_rows(manifest, config.metadata))
