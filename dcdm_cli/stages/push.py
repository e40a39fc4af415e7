"""Puts the adapter, or a generated set, into a repository on the hub: private unless told otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcdm_cli.errors import CapabilityError, DcdmError, MismatchError, NotFoundError, UsageError
from dcdm_cli.run.network import budget, reach_hub, reason
from dcdm_cli.run.session import Session
from dcdm_cli.run.store import RunFolder

if TYPE_CHECKING:
    from huggingface_hub import HfApi

ADAPTER, IMAGES = "adapter", "images"
WHATS = (ADAPTER, IMAGES)
TYPES = {ADAPTER: "model", IMAGES: "dataset"}
LEFT_OUT = ("shards/*", "*.part", ".*")  # the ledger serves whoever generates; others read what the card names
MOST_FILES = 10_000  # the hub's own advice for one folder


def run_push(session: Session, what: str, repository: str, *, public: bool = False) -> dict[str, Any]:
    """What was put where: `url`, `files`, `private`. Raises UsageError for another word than `WHATS` and for a public
    repository without `public`; NotFoundError before there is anything to push; DcdmError for what the hub refuses."""
    if what not in WHATS:
        raise UsageError(f"{what!r} cannot be pushed", f"say {' or '.join(WHATS)}: dcdm push {ADAPTER} {repository}")
    folder = _checked(session, what)
    files = sorted(file for file in _files(folder) if file.is_file())
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HFValidationError

    if get_token() is None:
        raise CapabilityError("the hub asks who you are, and there is no token", "hf auth login, or set HF_TOKEN")
    reach_hub("")
    api = HfApi()
    try:
        private = _repository(api, what, repository, public)
        session.console.note(f"pushing {len(files)} files to {repository} ({'private' if private else 'public'})")
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            repo_type=TYPES[what],
            commit_message=f"dcdm push {what}",
            ignore_patterns=list(LEFT_OUT),
        )
    except HFValidationError as error:
        raise UsageError(f"{repository!r} names no repository: {error}", "write owner/name") from error
    except DcdmError:
        raise  # ours has its remedy already; what follows is for the hub's
    except Exception as error:  # of huggingface_hub, and of whichever client it uses
        raise DcdmError(
            f"the hub did not take {what} into {repository}: {reason(error)}",
            f"check that the token may write there (hf auth whoami), and the network (waited {budget():g} s at most)",
        ) from error
    url = str(commit.commit_url)
    return {"stage": "push", "what": what, "repository": repository, "url": url, "files": len(files),
            "private": private}  # fmt: skip


def _repository(api: HfApi, what: str, repository: str, public: bool) -> bool:
    """Makes it unless it is there; whether it is private. Nothing reaches a public one by mistake."""
    api.create_repo(repository, repo_type=TYPES[what], private=not public, exist_ok=True)
    # asked of the hub: `private` counts for a repository that is made now, not for one that was there
    private = bool(api.repo_info(repository, repo_type=TYPES[what]).private)
    if not private and not public:
        raise UsageError(f"{repository} is there already and public", "say that you mean it: --public")
    return private


def _files(folder: Path) -> list[Path]:
    inside = (file for file in folder.rglob("*") if not any(part.startswith(".") for part in file.parts[-2:]))
    return [file for file in inside if "shards" not in file.relative_to(folder).parts and file.suffix != ".part"]


def _checked(session: Session, what: str) -> Path:
    """The folder. Raises NotFoundError, MismatchError for damage, or UsageError for what no repository takes; warns of
    what is private."""
    run = session.run
    if what == IMAGES:
        record = run.require("generate")
        card = run.generated / "README.md"
        if not card.is_file():
            raise NotFoundError(f"no finished images in {run.generated}", "dcdm generate", file=run.generated)
        if record.results.get("format") == "folder" and (record.results.get("images") or 0) > MOST_FILES:
            raise UsageError(
                f"{record.results['images']} image files are more than the hub takes well ({MOST_FILES})",
                "make them as Parquet: dcdm generate --format parquet --force",
                file=run.generated,
            )
        _refuse_damage(run.generated, run, "generate")
        for text, fix in _differences(run):
            raise MismatchError(f"{run.generated}: {text}", fix or "dcdm generate makes it again", file=run.generated)
        return run.generated
    from dcdm_cli.model.adapter import read_adapter

    run.require("finetune")
    _refuse_damage(run.adapter, run, "finetune", "distill", "calibrate")
    base = read_adapter(run.adapter).base
    if Path(base).is_absolute():
        session.console.warn(f"config.json names the base by a folder of this machine, {base}: others cannot load it")
    return run.adapter


def _refuse_damage(folder: Path, run: RunFolder, *stages: str) -> None:
    """Raises MismatchError for a file of the folder that is not as its stage left it: others would work with it."""
    for record in filter(None, map(run.record, stages)):
        for name, said in run.changes(record):
            file = run.path / name
            if name in record.wrote and file.is_relative_to(folder):
                raise MismatchError(
                    f"{file} {said} when the stage {record.stage} wrote it, and is not pushed",
                    "dcdm check says what is damaged, and by which command it is made again",
                    file=file,
                )


def _differences(run: RunFolder) -> Iterator[tuple[str, str]]:
    """(what, remedy) of shards and images that are not what was generated; every image is read for it, as for pushing
    it."""
    from dcdm_cli.stages.check import ledger_of

    ledger = ledger_of(run)
    yield from ledger.differences(verify=True) if ledger else ()
