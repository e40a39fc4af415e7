"""Prompts besides the images' captions: read for a plan, or written by a language model."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from dcdm_cli.errors import UsageError
from dcdm_cli.files import hash_json
from dcdm_cli.run.roles import PROMPTS, fingerprint
from dcdm_cli.run.session import Session
from dcdm_cli.run.store import Outcome, Stage, StageRecord
from dcdm_cli.stages.jobs import open_job
from dcdm_cli.stages.reading import readable, tokenizer_of

if TYPE_CHECKING:
    from dcdm_cli.captioning.rewriter import Request
    from dcdm_cli.data.manifest import Manifest
    from dcdm_cli.generation.plan import OwnPrompts

STAGE = "prompts"


def prompt_input(session: Session) -> dict[str, str]:
    """What a stage that draws from `--prompts` depends on besides the settings; empty without. Reads the file."""
    config = session.config.generate
    if config.prompts is None:
        return {}
    from dcdm_cli.captioning.prompt_files import prompts_key
    from dcdm_cli.data.manifest import manifest_classes

    return {"prompts": prompts_key(config.prompts, manifest_classes(session.run.samples) or ())}


def without_prompts(session: Session) -> Session:
    """For what fine-tuning itself looks at: which prompts are drawn later decides nothing about the adapter."""
    return session.with_settings(generate={"prompts": None, "prompt_share": None})


def own_prompts(session: Session, train: Manifest) -> OwnPrompts | None:
    """The prompts of `--prompts`, cut to what the text encoder reads; None without."""
    config = session.config.generate
    if config.prompts is None:
        if config.prompt_share is not None:
            raise UsageError(
                f"--prompt-share {config.prompt_share:g} is a share of --prompts, which is not given",
                "name the file: --prompts FILE",
            )
        return None
    from dcdm_cli.captioning.prompt_files import read_prompts
    from dcdm_cli.generation.plan import OwnPrompts

    found = read_prompts(config.prompts, train.class_names)
    # all classes at once: what is too long is said in one line
    flat, _ = readable(session, [prompt.prompt for prompts in found for prompt in prompts], str(config.prompts))
    texts, place = [], 0
    for prompts in found:
        texts.append(flat[place : place + len(prompts)])
        place += len(prompts)
    share = 1.0 if config.prompt_share is None else config.prompt_share
    return OwnPrompts(texts, [[p.source for p in prompts] for prompts in found], share, _captions_source(session))


def _captions_source(session: Session) -> str:
    """What the captions of the real images are called, beside prompts of other sources."""
    if session.config.generate.captions == "class":
        return "class template"
    record = session.run.record("caption")
    origins = record.results.get("origins", {}) if record else {}
    return " and ".join(f"{name} captions" for name, count in sorted(origins.items()) if count) or "own captions"


def run_prompts(session: Session) -> tuple[StageRecord, bool]:
    """`prompts.jsonl` by a language model, from the captions that the images have. The caption stage comes before.
    Returns its record and whether there was something to do."""
    record, done = session.run.run(prompts_stage(session), lambda: _write(session), force=session.force)
    results = record.results
    if done:
        dropped = ", ".join(f"{results[name]} {name.replace('_', ' ')}" for name in ("duplicate", "too_long", "empty"))
        session.console.note(f"prompts: {results['prompts']} of {results['asked']} kept; dropped: {dropped}")
        session.console.note(f"use them: dcdm generate --run {session.run.path} --prompts {session.run.prompts}")
    return record, done


def prompts_stage(session: Session) -> Stage:
    run, config = session.run, session.config
    base = {"base": config.finetune.base, "revision": config.finetune.revision}  # whose tokens are counted
    settings = {
        **fingerprint(config.caption, PROMPTS),
        "prefix": config.caption.prefix,
        "tokenizer": base,
        "seed": config.seed,
    }
    # the captions, not their record: images that came with captions have none
    inputs = {"score": run.require("score").id, "caption": _captions_key(session)}
    return Stage(STAGE, settings, inputs, reads=(run.samples,))


def _captions_key(session: Session) -> str:
    from dcdm_cli.data.manifest import read_manifest

    return hash_json(_class_captions(read_manifest(session.run.samples).split("train")))


def _class_captions(train: Manifest) -> list[list[str]]:
    """Per class the captions of its training images, each once, in their order."""
    found: list[dict[str, None]] = [{} for _ in train.class_names]
    for label, caption in zip(train.column("label").tolist(), train.table["caption"].to_pylist(), strict=True):
        if label >= 0 and caption:
            found[label][caption] = None
    return [list(captions) for captions in found]


def _write(session: Session) -> Outcome:
    from dcdm_cli.captioning.prompt_files import ClassPrompt, write_prompts
    from dcdm_cli.captioning.rewriter import answers, requests, sifted
    from dcdm_cli.data.manifest import read_manifest

    run, config, job = session.run, session.config.caption, open_job(session)
    train = read_manifest(run.samples).split("train")
    captions = _class_captions(train)
    wanted: list[list[Request]] = [
        requests(name, captions[label], config.llm_prompts, session.config.seed) if captions[label] else []
        for label, name in enumerate(train.class_names)
    ]
    said = answers([request for requested in wanted for request in requested], config, run.cache, job)
    fits, kept = _fits(session), list[ClassPrompt]()
    counts: Counter[str] = Counter({"empty": 0, "duplicate": 0, "too_long": 0, "unnamed": 0})
    for requested, known in zip(wanted, captions, strict=True):
        prompts, fate = sifted(requested, said, known, config.prefix, fits)
        kept += prompts
        counts.update(fate)
        if requested and not prompts:
            session.console.warn(
                f"class {requested[0].class_name!r} has no prompt left: write some by hand, or choose a larger --llm"
            )
    write_prompts(run.prompts, kept)
    facts: dict[str, Any] = {"prompts": len(kept), "asked": sum(map(len, wanted)), **counts, "llm": config.llm}
    return Outcome([run.prompts], hash_json([vars(prompt) for prompt in kept]), facts, job.device)


def _fits(session: Session) -> Any:
    """Whether the text encoder reads a prompt whole; everything is taken to, with a warning, where nobody can tell."""
    from dcdm_cli.captioning.templates import cut_to_limit

    tokenizer = tokenizer_of(session, "prompts")
    return lambda text: tokenizer is None or cut_to_limit([text], tokenizer)[1] == 0
