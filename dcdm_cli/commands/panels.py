"""In which panel of the help an option stands, and which come first there."""

from __future__ import annotations

WHAT, DATA, SPEED, OUTPUT = "What it does", "Data", "Speed and memory", "Output"
PANELS = (WHAT, DATA, SPEED, OUTPUT)
SPEED_NAMES = (
    "batch_size", "decode_batch", "gradient_accumulation", "gradient_checkpointing", "precision", "workers",
    "devices", "device", "threads", "engine", "address", "results", "backend", "compile", "cuda_graphs",
    "trust_engine", "spinning", "shard_size", "optimization_level", "tf32", "fixed_batch", "shared_calls",
    "checkpoint_every", "keep_checkpoints", "budget_hours", "gpu_hour_price",
)  # fmt: skip
DATA_NAMES = (
    "drop", "relabel", "column", "class_map", "templates_file", "counts", "difficulty_file", "keep_suspects",
    "views", "hflip", "prompts",
)  # fmt: skip
OUTPUT_NAMES = (
    "run", "name", "format", "image_format", "sidecars", "metadata", "overwrite", "score", "sample_every",
    "log_with", "force", "dry_run", "as_json", "quiet", "verify", "plan", "origin",
)  # fmt: skip
# In this order at the head of their panels; the others follow in the order of the settings.
COMMON = (
    "preset", "model", "pretrained", "image_size", "steps", "base", "difficulty", "ratio", "count", "per_class",
    "arms", "seeds", "method", "template", "strength", "resolution", "target", "split", "drop",
    "relabel", "device", "devices", "batch_size", "precision", "backend", "run", "name", "format", "force", "as_json",
    "quiet",
)  # fmt: skip


def panel_of(name: str, key: str) -> str:
    """name: of the parameter. key: its setting, dotted, or \"\"."""
    if name in SPEED_NAMES or key.startswith("scale."):
        return SPEED
    if name in OUTPUT_NAMES:
        return OUTPUT
    return DATA if name in DATA_NAMES or key.startswith("data.") else WHAT


def rank_of(name: str) -> int:
    return COMMON.index(name) if name in COMMON else len(COMMON)
