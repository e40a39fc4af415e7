"""`dcdm caption`: one caption per image, in the manifest and on request beside the images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from dcdm_cli.commands.options import Context, stage_command
from dcdm_cli.demo.base import resolve_base
from dcdm_cli.files import hash_json
from dcdm_cli.store import Outcome, Stage, StageRecord

if TYPE_CHECKING:
    from dcdm_cli.data.manifest import Manifest

EXAMPLES = (
    "dcdm caption --run birds",
    "dcdm caption --run birds --method model --model Salesforce/blip2-opt-2.7b",
    'dcdm caption --run birds --template "a photo of a {class}, a kind of bird"',
)


def register(app: typer.Typer, summary: str) -> None:
    @stage_command(app, "caption", help=summary, sections=("caption",), examples=EXAMPLES)
    def caption(context: Context) -> None:
        record = run_caption(context)
        context.console.result({"stage": "caption", **record.results}, context.run.samples)


def run_caption(context: Context) -> StageRecord:
    run, config = context.run, context.config.caption
    run.create()
    with run.lock("dcdm caption"):
        stage = Stage("caption", config.model_dump(mode="json"), {"score": run.require("score").id})
        record, done = run.run(stage, lambda: _work(context), force=context.force)
    if not done:
        context.console.note("caption: nothing changed, skipped (--force runs it again)")
    return record


def _work(context: Context) -> Outcome:
    from dcdm_cli.captioning.templates import cut_to_limit
    from dcdm_cli.data.manifest import read_manifest, write_manifest
    from dcdm_cli.model.base import load_tokenizer

    run = context.run
    manifest = read_manifest(run.samples)
    captions, revision = _captions(context, manifest)
    tokenizer = load_tokenizer(resolve_base(context.config.finetune.base), context.config.finetune.revision)
    cut = 0
    if tokenizer is None:
        context.console.warn("the base model's tokenizer is not at hand: captions are not checked for length")
    else:
        captions, cut = cut_to_limit(captions, tokenizer)
    if tokenizer is not None and cut:
        context.console.warn(
            f"{cut} captions were cut at the text encoder's limit of {tokenizer.model_max_length} tokens"
        )
    manifest = manifest.with_columns({"caption": captions})
    write_manifest(manifest, run.samples)
    _write_extras(context, manifest)
    results = {
        "images": len(captions),
        "distinct": len(set(captions)),
        "cut": cut,
        "method": context.config.caption.method,
        "revision": revision,
    }
    return Outcome([run.samples], hash_json(captions), results)


def _captions(context: Context, manifest: Manifest) -> tuple[list[str], str | None]:
    """One caption per row, and the commit of the captioning model that wrote them."""
    from dcdm_cli.captioning.templates import prefixed, template_captions

    config = context.config.caption
    if config.method == "template":
        return template_captions(manifest, config), None
    from dcdm_cli.captioning.captioner import Captioner

    job = context.job()
    captioner = Captioner(config, job.device)
    names = manifest.column("class_name")
    captions = []
    for i, text in enumerate(captioner.caption(manifest.paths())):
        captions.append(prefixed(config.prefix, names[i], text))
        job.progress("captioning", i + 1, len(manifest))
    return captions, captioner.revision


def _write_extras(context: Context, manifest: Manifest) -> None:
    from dcdm_cli.data.writers import metadata_rows, write_metadata, write_sidecars

    config = context.config.caption
    if config.sidecars is not None:
        write_sidecars(manifest, config.sidecars)
    if config.metadata is not None:
        write_metadata(config.metadata, metadata_rows(manifest, config.metadata))
