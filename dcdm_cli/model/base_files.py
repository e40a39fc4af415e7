"""Which files of a base model decide what it makes: those of one that the user keeps on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dcdm_cli.model.packaged import PACKAGED

PARTS = (
    "unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler",
)  # fmt: skip  # folders of a pipeline that are loaded
KINDS = (".safetensors", ".json", ".txt", ".model")  # weights, configs, vocabularies; a pickle is never opened


def base_files(base: str, config: Path | None = None) -> tuple[Path, ...]:
    """What `load_base` may open of a folder, or of one file with the configs in `config`; nothing of a packaged model,
    or of one on the hub."""
    place = Path(base).absolute()
    if base in PACKAGED:
        return ()
    if place.is_file():
        return (place, *(_of_folder(config.absolute()) if config else ()))
    return tuple(_of_folder(place))


def _of_folder(folder: Path) -> Iterator[Path]:
    for part in (folder, *(folder / name for name in PARTS)):
        yield from sorted(file for file in part.glob("[!.]*") if file.suffix in KINDS and file.is_file())
