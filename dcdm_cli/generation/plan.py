"""The plan: one row per image to be made, written before the first is made, never changed, hashed.

Everything about an image follows from its row, so any worker can make it at any time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dcdm_cli.difficulty.calibration import Calibration
from dcdm_cli.errors import MismatchError, UsageError
from dcdm_cli.files import atomic_path, hash_bytes
from dcdm_cli.generation.seeds import image_seed
from dcdm_cli.generation.targets import Target

SCHEMA = pa.schema(
    [
        ("index", pa.int64()),
        ("sample_id", pa.string()),
        ("label", pa.int32()),
        ("class_name", pa.string()),
        ("caption", pa.string()),
        ("target_difficulty", pa.float32()),
        ("requested_difficulty", pa.float32()),
        ("seed", pa.int64()),
    ]
)


@dataclass(frozen=True)
class PlanRow:
    """One image to be made."""

    index: int
    sample_id: str
    label: int
    class_name: str
    caption: str
    target_difficulty: float
    requested_difficulty: float
    seed: int


@dataclass(frozen=True)
class Plan:
    """rows as a table of `SCHEMA`; generator: hash of the model and sampler settings the rows are meant for;
    unreachable: rows whose target lies outside what their class can reach."""

    table: pa.Table
    generator: str
    unreachable: int = 0

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def hash(self) -> str:
        columns = [repr(self.table[name].to_pylist()).encode() for name in SCHEMA.names]
        return hash_bytes(self.generator.encode(), *columns)

    def rows(self) -> list[PlanRow]:
        return [PlanRow(**row) for row in self.table.to_pylist()]


@dataclass(frozen=True)
class Budget:
    """How many images; exactly one of the three is used, in this order of preference."""

    per_class: int | None = None
    count: int | None = None
    ratio: float | None = None

    def per_label(self, real_counts: np.ndarray) -> np.ndarray:
        """Images per class, int64 [classes]. count and ratio are spread like the real classes (largest remainder)."""
        if self.per_class is not None:
            return np.full(len(real_counts), self.per_class)
        total = self.count if self.count is not None else round((self.ratio or 0) * real_counts.sum())
        if total < 1:
            raise UsageError("the budget comes to no images", "give --count, --per-class or a larger --ratio")
        share = real_counts / real_counts.sum() * total
        counts = np.floor(share).astype(np.int64)
        counts[np.argsort(counts - share, kind="stable")[: total - counts.sum()]] += 1
        return counts


@dataclass(frozen=True)
class PlanInputs:
    """What the rows are drawn from. captions[label]: the captions that class may use. real: real difficulties."""

    class_names: Sequence[str]
    captions: Sequence[Sequence[str]]
    real: np.ndarray
    cap: float
    calibration: Calibration | None


def make_plan(inputs: PlanInputs, counts: np.ndarray, target: Target, seed: int, generator: str) -> Plan:
    """Draws difficulty and caption per image, classes in turn. The same arguments give the same plan."""
    rng = np.random.default_rng((seed, 7))
    labels = _interleave(counts)
    targets = target.draw(len(labels), rng, inputs.cap, inputs.real)
    requested, outside = targets, np.zeros(len(labels), bool)
    if inputs.calibration is not None:
        requested, outside = inputs.calibration.request_for(targets, np.asarray(labels))
    captions = [_pick(inputs.captions[label], inputs.class_names[label], rng) for label in labels]
    return _plan(inputs.class_names, labels, captions, targets, requested, seed, generator, int(outside.sum()))


def grid_plan(inputs: PlanInputs, targets: Sequence[float], per_target: int, seed: int, generator: str) -> Plan:
    """`per_target` images at each difficulty, classes in turn: probes for calibration and adherence."""
    rng = np.random.default_rng((seed, 11))
    labels = [i % len(inputs.class_names) for _ in targets for i in range(per_target)]
    wanted = np.repeat(np.asarray(targets, np.float32), per_target)
    requested, outside = wanted, np.zeros(len(wanted), bool)
    if inputs.calibration is not None:
        requested, outside = inputs.calibration.request_for(wanted, np.asarray(labels))
    captions = [_pick(inputs.captions[label], inputs.class_names[label], rng) for label in labels]
    return _plan(inputs.class_names, labels, captions, wanted, requested, seed, generator, int(outside.sum()))


def chosen_plan(inputs: PlanInputs, labels: np.ndarray, targets: np.ndarray, seed: int, generator: str) -> Plan:
    """One image per entry of labels int [N] and targets float [N] in [0, 1], in that order."""
    rng = np.random.default_rng((seed, 13))
    wanted = np.asarray(targets, np.float32)
    requested, outside = wanted, np.zeros(len(wanted), bool)
    if inputs.calibration is not None:
        requested, outside = inputs.calibration.request_for(wanted, np.asarray(labels))
    listed: list[int] = np.asarray(labels).tolist()
    captions = [_pick(inputs.captions[label], inputs.class_names[label], rng) for label in listed]
    return _plan(inputs.class_names, listed, captions, wanted, requested, seed, generator, int(outside.sum()))


def write_plan(plan: Plan, path: Path) -> None:
    meta = {b"generator": plan.generator.encode(), b"hash": plan.hash.encode()}
    with atomic_path(path) as part:
        pq.write_table(plan.table.replace_schema_metadata(meta), part)


def read_plan(path: Path) -> Plan:
    """Raises MismatchError when the file was changed after it was written."""
    try:
        table = pq.read_table(path)
        meta = table.schema.metadata or {}
        plan = Plan(table.select(SCHEMA.names).cast(SCHEMA), meta[b"generator"].decode())
        recorded = meta[b"hash"].decode()
    except (pa.ArrowInvalid, KeyError) as error:
        raise MismatchError(
            f"{path} is not a dcdm plan: {error}", "make it again: dcdm generate --force", file=path
        ) from error
    if plan.hash != recorded:
        raise MismatchError(
            f"{path} was changed after it was written", "make it again: dcdm generate --force", file=path
        )
    return plan


def _plan(
    class_names: Sequence[str],
    labels: Sequence[int],
    captions: Sequence[str],
    targets: np.ndarray,
    requested: np.ndarray,
    seed: int,
    generator: str,
    unreachable: int,
) -> Plan:
    seeds = [image_seed(seed, i) for i in range(len(labels))]
    ids = [
        hash_bytes(generator.encode(), repr((i, int(y), c, float(r), s)).encode())[:16]
        for i, (y, c, r, s) in enumerate(zip(labels, captions, requested, seeds, strict=True))
    ]
    names = [class_names[label] for label in labels]
    columns = [range(len(labels)), ids, labels, names, captions, targets, requested, seeds]
    return Plan(
        pa.table([pa.array(c, t) for c, t in zip(columns, SCHEMA.types, strict=True)], SCHEMA), generator, unreachable
    )


def _interleave(counts: np.ndarray) -> list[int]:
    """Labels in rounds, one of each class while it has budget: every prefix of the plan is balanced."""
    rounds = np.concatenate([np.arange(count) for count in counts])
    labels = np.repeat(np.arange(len(counts)), counts)
    return labels[np.lexsort((labels, rounds))].tolist()


def _pick(captions: Sequence[str], class_name: str, rng: np.random.Generator) -> str:
    if not captions:
        raise UsageError(f"class {class_name!r} has no caption", "run: dcdm caption")
    return captions[int(rng.integers(len(captions)))]
