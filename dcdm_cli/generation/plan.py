"""The plan: one row per image to be made, written before the first is made, never changed, hashed.

Everything about an image follows from its row, so any worker can make it at any time. Rows are dealt to shards by their
index alone: who makes a shard, and how many workers there are, changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from dcdm_cli.errors import UsageError
from dcdm_cli.files import hash_bytes, hash_json
from dcdm_cli.generation.seeds import image_seeds, mix64
from dcdm_cli.generation.targets import Target, Targets

if TYPE_CHECKING:
    from dcdm_cli.difficulty.calibration import Calibration

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
        ("shard", pa.int32()),
        ("source_id", pa.string()),  # the real image that it starts from; null = noise alone. Absent in older files
        ("prompt_source", pa.string()),  # of the caption; null = all captions are of one. Absent in older files
    ]
)
LATER = ("source_id", "prompt_source")  # a shard that has none of these has the digest of before there were any
SHARD_SIZE = 1024  # a multiple of every usual batch size, so that shards end with whole batches


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
    shard: int = 0
    source_id: str | None = None
    prompt_source: str | None = None


@dataclass(frozen=True)
class Plan:
    """A plan in memory (about 110 bytes a row; `plan_file.PlanFile` reads one shard by shard).

    table: rows of `SCHEMA`, in index order. generator: hash of the model and sampler settings the rows are meant for;
    made_for: the same in words, so that a difference can be named. unreachable: rows whose target lies outside what
    their class can reach. shard_size: row i is in shard i // shard_size.
    """

    table: pa.Table
    generator: str
    unreachable: int = 0
    shard_size: int = SHARD_SIZE
    class_names: tuple[str, ...] = ()
    made_for: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def shards(self) -> int:
        return -(-len(self) // self.shard_size)

    @cached_property
    def digests(self) -> tuple[str, ...]:
        return tuple(shard_digest(self.shard_table(shard)) for shard in range(self.shards))

    @cached_property
    def hash(self) -> str:
        return hash_json([self.header(), self.digests])

    def header(self) -> dict[str, Any]:
        """What a plan says besides its rows."""
        return {
            "schema": 2,
            "generator": self.generator,
            "unreachable": self.unreachable,
            "shard_size": self.shard_size,
            "class_names": list(self.class_names),
            "made_for": dict(self.made_for),
        }

    def rows(self) -> list[PlanRow]:
        return plan_rows(self.table)

    def sampled_rows(self, count: int) -> list[PlanRow]:
        """At most `count` rows from all over the plan, in random order, the same each time: so is every first part."""
        chosen = np.random.default_rng(0).choice(len(self), min(count, len(self)), replace=False)
        return plan_rows(self.table.take(pa.array(chosen)))

    def shard_table(self, shard: int) -> pa.Table:
        return self.table.slice(shard * self.shard_size, self.shard_size)

    def shard_rows(self, shard: int) -> list[PlanRow]:
        return plan_rows(self.shard_table(shard))


@dataclass(frozen=True)
class OwnPrompts:
    """texts[label], origins[label]: prompts of a class and where each is from. share in [0, 1]: of the images that get
    one of them. captions: what the others' source is called."""

    texts: Sequence[Sequence[str]]
    origins: Sequence[Sequence[str]]
    share: float = 1.0
    captions: str = "captions"


@dataclass(frozen=True)
class PlanInputs:
    """What the rows are drawn from. captions[label]: the captions that class may use. real: real difficulties.
    sources[label]: sample ids of the real images that images of that class may start from; None = all start from noise.
    prompts: captions of another source, which a share of the images gets; None = none does.
    """

    class_names: Sequence[str]
    captions: Sequence[Sequence[str]]
    real: np.ndarray
    cap: float
    calibration: Calibration | None
    sources: Sequence[Sequence[str]] | None = None
    prompts: OwnPrompts | None = None

    def source_of(self, label: int, number: int) -> str | None:
        """One of the class's sources, for rows that are made by hand; None without sources."""
        if self.sources is None:
            return None
        _refuse_sourceless(self, self.sources, np.array([label]))
        return self.sources[label][number % len(self.sources[label])]


def make_plan(
    inputs: PlanInputs,
    counts: np.ndarray,
    target: Target | Targets,
    seed: int,
    generator: str,
    *,
    shard_size: int = SHARD_SIZE,
    made_for: Mapping[str, Any] | None = None,
) -> Plan:
    """Draws difficulty and caption per image, classes in turn. The same arguments give the same plan.

    counts: int64 [classes]. Raises UsageError for a class that is to get images and has no caption.
    """
    # streams of their own: plan, grid and chosen rows of one seed share no draws
    rng = np.random.default_rng((seed, 7))
    labels = _interleave(counts)
    targets = target if isinstance(target, Targets) else Targets(target)
    wanted = targets.draw(labels, rng, inputs.cap, inputs.real)
    header = Plan(SCHEMA.empty_table(), generator, 0, shard_size, tuple(inputs.class_names), made_for or {})
    return _filled(header, inputs, labels, wanted, rng, seed)


def grid_plan(
    inputs: PlanInputs,
    targets: Sequence[float],
    per_target: int,
    seed: int,
    generator: str,
    *,
    all_classes: bool = False,
) -> Plan:
    """`per_target` images at each difficulty, classes in turn: probes for calibration, adherence and strength.

    Where that is fewer than there are classes, the seed says which: the same ones at each difficulty, so that
    difficulties can be compared, or with `all_classes` as many as possible, each next difficulty with the next ones.
    """
    rng = np.random.default_rng((seed, 11))
    labels = _grid_labels(len(inputs.class_names), len(targets), per_target, seed, all_classes)
    wanted = np.repeat(np.asarray(targets, np.float32), per_target)
    header = Plan(SCHEMA.empty_table(), generator, class_names=tuple(inputs.class_names))
    return _filled(header, inputs, labels, wanted, rng, seed)


def _grid_labels(classes: int, targets: int, per_target: int, seed: int, all_classes: bool) -> np.ndarray:
    """int64 [targets * per_target]"""
    if per_target >= classes:
        return np.tile(np.arange(per_target) % classes, targets)
    order = np.random.default_rng((seed, 29)).permutation(classes)  # the first by name are no sample
    if all_classes:
        return order[np.arange(targets * per_target) % classes]
    return np.tile(order[:per_target], targets)


def plan_rows(table: pa.Table) -> list[PlanRow]:
    """A stretch of a plan as rows."""
    return [PlanRow(**row) for row in table.to_pylist()]


def chosen_plan(inputs: PlanInputs, labels: np.ndarray, targets: np.ndarray, seed: int, generator: str) -> Plan:
    """One image per entry of labels int [N] and targets float [N] in [0, 1], in that order."""
    rng = np.random.default_rng((seed, 13))
    header = Plan(SCHEMA.empty_table(), generator, class_names=tuple(inputs.class_names))
    return _filled(header, inputs, np.asarray(labels), np.asarray(targets, np.float32), rng, seed)


def shard_digest(table: pa.Table) -> str:
    """SHA-256 over the values of a shard, whatever their chunks and encodings are. A shard without any value of a
    column that came later has the digest that it had before."""
    digest = hashlib.sha256()
    for column in SCHEMA.names:
        if column in LATER and table[column].null_count == len(table):
            continue
        array = table[column].combine_chunks()
        if isinstance(array, pa.ChunkedArray):  # of an empty table, or more than fits one array
            array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
        for part in _canonical(array):
            digest.update(part)
    return digest.hexdigest()[:32]


def _canonical(array: pa.Array) -> list[Any]:
    if not pa.types.is_string(array.type):
        return [np.ascontiguousarray(array.to_numpy(zero_copy_only=False))]
    _, offsets, data = array.buffers()
    # Arrow may leave out both buffers of an array without rows
    ends = np.frombuffer(offsets, np.int32)[array.offset :][: len(array) + 1] if len(array) else np.zeros(1, np.int32)
    # lengths: the offsets of a slice count from where its whole table begins
    return [np.diff(ends), memoryview(data or b"")[int(ends[0]) : int(ends[-1])]]


def _filled(
    header: Plan, inputs: PlanInputs, labels: np.ndarray, targets: np.ndarray, rng: np.random.Generator, seed: int
) -> Plan:
    """`header` with its rows: captions, requests, seeds and ids, a column at a time."""
    requested, outside = targets, np.zeros(len(labels), bool)
    if inputs.calibration is not None:
        requested, outside = inputs.calibration.request_for(targets, labels)
    pool, chosen = _pick_captions(inputs, labels, rng)
    sources = _pick_sources(inputs, labels, rng)  # late: without them, all else is drawn as it was
    origins = pa.nulls(len(labels), pa.string())
    # the last draws of all: a plan without prompts is what it was before there were any
    if inputs.prompts is not None:
        pool, chosen, origins = _pick_prompts(inputs, inputs.prompts, labels, (pool, chosen), rng)
    index = np.arange(len(labels))
    seeds = image_seeds(seed, index)
    # another source is another image; without sources nothing is hashed, so that older plans keep their ids
    begun = [] if sources is None else [_text_hashes(*sources)]
    ids = _sample_ids(header.generator, index, labels, _text_hashes(pool, chosen), requested, seeds, *begun)
    names = pa.array(inputs.class_names, pa.string()).take(pa.array(labels))
    columns = [index, ids, labels, names, pool.take(pa.array(chosen)), targets, requested, seeds]
    columns.append(index // header.shard_size)
    columns.append(pa.nulls(len(index), pa.string()) if sources is None else sources[0].take(pa.array(sources[1])))
    columns.append(origins)
    arrays = [c if isinstance(c, pa.Array) else pa.array(c).cast(t) for c, t in zip(columns, SCHEMA.types, strict=True)]
    table = pa.Table.from_arrays(arrays, schema=SCHEMA)
    return Plan(
        table, header.generator, int(outside.sum()), header.shard_size, header.class_names, dict(header.made_for)
    )


def _interleave(counts: np.ndarray) -> np.ndarray:
    """Labels int64 in rounds, one of each class while it has budget: every prefix of the plan is balanced."""
    labels = np.repeat(np.arange(len(counts)), counts)
    rounds = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    # lexsort goes by its last key first
    return labels[np.lexsort((labels, rounds))]


def _pick_captions(inputs: PlanInputs, labels: np.ndarray, rng: np.random.Generator) -> tuple[pa.Array, np.ndarray]:
    """All captions, and which of them each image gets: int64 [N]. None of them where all get prompts."""
    if inputs.prompts is not None and inputs.prompts.share == 1:
        return pa.array([], pa.string()), np.zeros(len(labels), np.int64)
    sizes = np.array([len(captions) for captions in inputs.captions])
    silent = np.unique(labels)[sizes[np.unique(labels)] == 0]
    if len(silent):
        raise UsageError(f"class {inputs.class_names[silent[0]]!r} has no caption", "run: dcdm caption")
    return _pick(inputs.captions, labels, rng)


def _pick_prompts(
    inputs: PlanInputs,
    prompts: OwnPrompts,
    labels: np.ndarray,
    captions: tuple[pa.Array, np.ndarray],
    rng: np.random.Generator,
) -> tuple[pa.Array, np.ndarray, pa.Array]:
    """All texts, which of them each image gets: int64 [N], and where that one is from: strings [N]."""
    own = rng.random(len(labels)) < prompts.share
    silent = next((label for label in np.unique(labels).tolist() if not prompts.texts[label]), None)
    if silent is not None:
        raise UsageError(
            f"class {inputs.class_names[silent]!r} has none of the prompts",
            "add a row or a file for it, or leave the class out (--counts)",
        )
    pool, chosen = captions
    listed, picked = _pick(prompts.texts, labels, rng)
    origins = pa.array([prompts.captions] * len(pool) + [o for of in prompts.origins for o in of], pa.string())
    places = np.where(own, len(pool) + picked, chosen)
    return pa.concat_arrays([pool, listed]), places, origins.take(pa.array(places))


def _pick_sources(
    inputs: PlanInputs, labels: np.ndarray, rng: np.random.Generator
) -> tuple[pa.Array, np.ndarray] | None:
    """All source images, and which of them each image starts from: int64 [N]. None where they start from noise."""
    if inputs.sources is None:
        return None
    _refuse_sourceless(inputs, inputs.sources, labels)
    return _pick(inputs.sources, labels, rng)


def _refuse_sourceless(inputs: PlanInputs, sources: Sequence[Sequence[str]], labels: np.ndarray) -> None:
    """Raises UsageError for a class of int [N] labels without a real image to start from."""
    lacking = next((label for label in np.unique(labels).tolist() if not sources[label]), None)
    if lacking is not None:
        raise UsageError(
            f"class {inputs.class_names[lacking]!r} has no usable training image to start from",
            "add images of it and run dcdm score again, leave it out (--counts), or start from noise: --strength 1",
        )


def _pick(pools: Sequence[Sequence[str]], labels: np.ndarray, rng: np.random.Generator) -> tuple[pa.Array, np.ndarray]:
    """All texts of pools[label], and for each label one of its own: int64 [N]."""
    sizes = np.array([len(texts) for texts in pools])
    # one number per row whatever the sizes, which integers() does not promise
    within = (rng.random(len(labels)) * sizes[labels]).astype(np.int64)
    pool = pa.array([text for texts in pools for text in texts], pa.string())
    return pool, (np.cumsum(sizes) - sizes)[labels] + within


def _text_hashes(pool: pa.Array, chosen: np.ndarray) -> np.ndarray:
    """uint64 [N]; each text is hashed once."""
    used, where = np.unique(chosen, return_inverse=True)
    texts = pool.take(pa.array(used)).to_pylist()
    return np.array([int(hash_bytes(text.encode())[:16], 16) for text in texts], np.uint64)[where]


def _sample_ids(generator: str, *columns: np.ndarray) -> pa.Array:
    """16 hex digits per row from the generator and every column; the first column must tell all rows apart."""
    state = np.full(len(columns[0]), int(hash_bytes(generator.encode())[:16], 16), np.uint64)
    for column in columns:
        bits = column.view(np.uint32) if column.dtype == np.float32 else column  # a difficulty as an integer would be 0
        state = mix64(state ^ bits.astype(np.uint64))
    # big-endian, so that the digits are the same on every machine
    digits = state.astype(">u8").tobytes().hex().encode()
    offsets = np.arange(len(state) + 1, dtype=np.int32) * 16
    return pa.StringArray.from_buffers(len(state), pa.py_buffer(offsets), pa.py_buffer(digits))
