"""The files of a user's own classifier: weights, an ONNX graph's external data, and what describes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dcdm_cli.data.onnx_weights import external_data
from dcdm_cli.errors import NotFoundError, UsageError
from dcdm_cli.gate import parse_json, typed

TIMM_WEIGHTS, TIMM_CONFIG = "model.safetensors", "config.json"


def classifier_file(given: Path) -> Path:
    """The weights or graph that a path means; of a folder, what timm writes for the hub. Raises NotFoundError."""
    file = given / TIMM_WEIGHTS if given.is_dir() else given
    if not file.is_file():
        raise NotFoundError(
            f"no classifier at {file}",
            f"check the path of your classifier; a folder holds {TIMM_WEIGHTS} and {TIMM_CONFIG}, as timm writes them",
            file=file,
        )
    return file


def classifier_files(given: Path) -> list[Path]:
    """All files that what the classifier says depends on, as far as they are there."""
    file = given / TIMM_WEIGHTS if given.is_dir() else given
    weights = [file.parent / name for name in external_data(file)] if file.is_file() else []
    beside = [file, file.with_suffix(".json"), file.with_name(TIMM_CONFIG), *weights]
    return [one for one in dict.fromkeys(beside) if one.is_file()]


def timm_description(file: Path) -> dict[str, Any]:
    """What timm's `config.json` beside the weights says, in the words of a sidecar; empty without one.

    Raises UsageError for one that is no JSON object.
    """
    config = file.with_name(TIMM_CONFIG)
    if not config.is_file():
        return {}
    try:
        stated = typed(dict[str, Any], parse_json(config.read_text("utf-8")))
        # config.json is a common name: this one is of some other library
        if "architecture" not in stated:
            return {}
        cfg = stated.get("pretrained_cfg") or {}
        names = stated.get("label_names") or cfg.get("label_names")
        size = cfg.get("input_size")
        said = {
            "class_names": names,
            "model": stated["architecture"],
            "model_args": stated.get("model_args"),
            "image_size": size[-1] if size else None,
            **{key: cfg.get(key) for key in ("mean", "std", "crop_pct", "interpolation")},
        }
    except (OSError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        raise UsageError(
            f"{config} is no description of a timm model: {error}",
            "write it again: timm.models.save_for_hf",
            file=config,
        ) from error
    return {key: value for key, value in said.items() if value is not None}
