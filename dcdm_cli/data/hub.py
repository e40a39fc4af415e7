"""Datasets on the Hugging Face hub, read through `datasets`, which is always told which file belongs to which split.

Left to itself it would take a class folder such as "test tube" for a split. Code kept on the hub is never run.
"""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from dcdm_cli.data.candidates import Listing, ScanOptions, quoted
from dcdm_cli.data.listings import dataset_table, list_tables
from dcdm_cli.data.split_names import SPLIT_WORDS, meaning_of, split_of, word_of_file
from dcdm_cli.data.trees import IMAGE_SUFFIXES
from dcdm_cli.errors import NotFoundError, UsageError
from dcdm_cli.run.network import from_hub, reason


def list_hub(name: str, root: Path, options: ScanOptions) -> Listing:
    """`owner/name[@revision]` on the Hugging Face hub. Raises NotFoundError when it cannot be had, offline too.

    Here `options.split` is the hub's name of a split; one that is not a split word counts as train.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    repository, _, revision = name.partition("@")
    try:
        with from_hub(repository):
            builder = _open_builder(repository, revision or None)
            builder.download_and_prepare()
            parts = builder.as_dataset(split=options.split)
    except ValueError as error:  # such as of a split that is not there
        raise UsageError(f"cannot read hf:{name}: {error}", "name one of its splits with --split") from error
    except (OSError, RuntimeError, DatasetsError) as error:
        raise NotFoundError(
            f"cannot load the dataset {name} from the hub: {reason(error)}",
            "check the name; the machine may be offline, or the dataset gated (hf auth login)",
        ) from error
    if not isinstance(parts, dict):  # with a split named, `datasets` gives that one part alone
        parts = {options.split: parts}
    splits = {str(part): _hub_split(str(part), options) for part in parts}
    tables = [dataset_table(data, str(part), splits[str(part)], options) for part, data in parts.items()]
    tables = [table for table in tables if table.split]
    listing = list_tables(tables, root, f"hf:{repository}@{builder.hash}", options)
    return replace(listing, split_origin=f"the dataset's own splits {quoted(list(splits))}")


def _open_builder(repository: str, revision: str | None) -> Any:
    """The builder of `datasets`, with the files of each split: as the dataset's card says, else as `hub_files` does."""
    from datasets.load import dataset_module_factory, load_dataset_builder

    configurations = dataset_module_factory(repository, revision=revision).builder_configs_parameters.metadata_configs
    if any("data_files" in configuration for configuration in (configurations or {}).values()):
        return load_dataset_builder(repository, revision=revision)
    # only to learn the files' names: by itself it would guess splits from them
    everything = load_dataset_builder(repository, revision=revision, data_files={"train": "**"})
    listed = [str(file) for files in (everything.config.data_files or {}).values() for file in files]
    base = str(everything.base_path)
    base = base if "://" in base else str(Path(base).resolve())  # `datasets` also takes a folder for a repository
    names = [file.removeprefix(base).lstrip("/") for file in listed]
    return load_dataset_builder(repository, revision=revision, data_files=hub_files(names))


def hub_files(names: Sequence[str]) -> dict[str, list[str]]:
    """Split -> patterns for the files of a repository without a card, by the rules for local sources: folders count
    where all top-level folders have a split's name, files where all have one and are tables. Else all is train."""
    tops = {name.partition("/")[0] for name in names if "/" in name}
    known = {top: SPLIT_WORDS.get(top.casefold()) for top in tops}
    if tops and all(known.values()):
        return _grouped((known[top], f"{top}/**") for top in sorted(tops))
    tables = [PurePosixPath(name) for name in names]
    words = [word_of_file(file, {}) for file in tables]
    # a picture called test-1.jpg is no test split
    if all(words) and all(file.suffix.lower() not in IMAGE_SUFFIXES for file in tables):
        pairs = zip(words, tables, strict=True)
        # A bracket in a name would make a pattern of it.
        return _grouped((SPLIT_WORDS[str(word).casefold()], glob.escape(str(file))) for word, file in pairs)
    return {"train": ["**"]}


def _grouped(pairs: Iterable[tuple[str | None, str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for split, pattern in pairs:
        # "judge" is a word of ours
        groups.setdefault("validation" if split == "judge" else str(split), []).append(pattern)
    return groups


def _hub_split(word: str, options: ScanOptions) -> str | None:
    if options.split:  # as the hub calls it; also a part of one, such as train[:10%]
        return meaning_of(word, options.split_map) or "train"
    return split_of(word, None, options.split_map, "the dataset")
