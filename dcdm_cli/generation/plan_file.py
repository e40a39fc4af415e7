"""Plans on disk: a Parquet file with one row group per shard, which names its own hash and the digest of every shard.

One shard can be read and checked without the others, and a file that was changed by hand is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.compute import call_function
from pydantic import Field

from dcdm_cli.errors import MismatchError, NotFoundError
from dcdm_cli.files import atomic_path, hash_json
from dcdm_cli.gate import (
    PLAN_ID,
    SCAN_ID,
    ClassNames,
    Column,
    Count,
    Digest,
    Word,
    check_columns,
    parse_json,
    refuse_first,
    typed,
)  # fmt: skip
from dcdm_cli.generation.plan import LATER, SCHEMA, Plan, PlanRow, plan_rows, shard_digest

_META_KEY = b"dcdm_plan"
MAX_GROUP = 2**31  # bytes of a shard's rows; 2,000 a row at the largest shard
_AGAIN = "make it again: dcdm generate --force, or dcdm generate --plan for a plan to be run by name"


# What holds for every row of every plan.
_RULES = {
    "index": Column(low=0, high=2**40),
    "sample_id": Column(pattern=PLAN_ID),
    "label": Column(low=0, high=2**20),
    "class_name": Column(),
    "caption": Column(),
    "target_difficulty": Column(low=0, high=1),
    "requested_difficulty": Column(low=0, high=1),
    "seed": Column(low=0, high=2**53 - 1),
    "shard": Column(low=0, high=2**31 - 1),
    "source_id": Column(pattern=f"{SCAN_ID}|{PLAN_ID}", nullable=True),
    "prompt_source": Column(nullable=True),
}


@dataclass(frozen=True)
class _Header:
    """`Plan.header`."""

    schema: Literal[2]
    generator: Word
    unreachable: Count
    shard_size: Annotated[int, Field(ge=1, le=2**24)]
    class_names: ClassNames
    made_for: dict[str, Any]


@dataclass(frozen=True)
class _Document:
    """What the file says of itself, in its metadata."""

    header: _Header
    hash: Digest
    digests: tuple[Digest, ...]


def check_rows(table: pa.Table, shard: int, shard_size: int, class_names: Sequence[str]) -> None:
    """One shard of a plan, whole columns at a time. Raises ValueError naming column, row, value and rule."""
    check_columns(table, _RULES)
    first = shard * shard_size
    expected = np.arange(first, first + len(table))
    refuse_first(table, "index", table["index"].to_numpy() == expected, f"rows count on from {first}")
    refuse_first(table, "shard", table["shard"].to_numpy() == shard, f"must be {shard}, as index // {shard_size} is")
    sourced = table["source_id"].is_valid().to_numpy()
    refuse_first(table, "source_id", sourced == sourced[:1], "all rows of a plan start from an image, or none does")
    label = table["label"].to_numpy()
    refuse_first(table, "label", label < len(class_names), f"the plan has {len(class_names)} classes")
    # only now: above, every label was found to have a name
    names = pa.array(class_names, pa.string()).take(pa.array(label))
    refuse_first(
        table, "class_name", call_function("equal", [table["class_name"], names]), "must be the name of the row's label"
    )


class PlanFile:
    """A plan that stays on disk. Offers what `Plan` offers except the whole table.

    Raises NotFoundError without a file, MismatchError when the file is no plan or its header was changed. Rows are
    checked when they are read; `verify` reads them all.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise NotFoundError(f"no plan at {path}", "write one: dcdm generate --plan", file=path)
        self.path = path
        try:
            self._parquet = pq.ParquetFile(path)
            document = parse_json((self._parquet.schema_arrow.metadata or {})[_META_KEY])
            said = typed(_Document, document)
        except (pa.ArrowException, KeyError, ValueError, OSError) as error:
            raise MismatchError(f"{path} is no plan of dcdm: {error}", _AGAIN, file=path) from error
        self.hash, self._digests = said.hash, said.digests
        self.generator, self.unreachable = said.header.generator, said.header.unreachable
        self.shard_size, self.class_names = said.header.shard_size, said.header.class_names
        self.made_for: Mapping[str, Any] = said.header.made_for
        # the hash covers the shards' digests, and rows are held against those when they are read
        whole = hash_json([document["header"], document["digests"]]) == self.hash
        if not whole or self._parquet.num_row_groups != len(self._digests):
            raise self._changed()

    def __len__(self) -> int:
        return self._parquet.metadata.num_rows

    @property
    def shards(self) -> int:
        return len(self._digests)

    def shard_table(self, shard: int) -> pa.Table:
        """Raises MismatchError when the rows are not those that were written, or break a rule of plans: whoever can
        change a row can change the digests as well."""
        try:
            self._refuse_size(shard)
            table = self._parquet.read_row_group(shard, columns=SCHEMA.names)
            for name in LATER:
                if name not in table.schema.names:  # from before plans had it
                    table = table.append_column(name, pa.nulls(len(table), pa.string()))
            table = table.select(SCHEMA.names).cast(SCHEMA).replace_schema_metadata(None)
            if not table.schema.equals(SCHEMA) or shard_digest(table) != self._digests[shard]:
                raise self._changed()
            check_rows(table, shard, self.shard_size, self.class_names)
        except (pa.ArrowException, KeyError, ValueError, OSError) as error:
            raise MismatchError(f"{self.path} is no plan of dcdm: {error}", _AGAIN, file=self.path) from error
        return table

    def shard_rows(self, shard: int) -> list[PlanRow]:
        return plan_rows(self.shard_table(shard))

    def verify(self) -> None:
        for shard in range(self.shards):
            self.shard_table(shard)

    def load(self) -> Plan:
        """The whole plan in memory, checked."""
        tables = [self.shard_table(shard) for shard in range(self.shards)]
        table = pa.concat_tables(tables) if tables else SCHEMA.empty_table()
        return Plan(table, self.generator, self.unreachable, self.shard_size, self.class_names, dict(self.made_for))

    def _refuse_size(self, shard: int) -> None:
        """Before anything is read: a few bytes of a compressed file may stand for any number of rows."""
        group = self._parquet.metadata.row_group(shard)
        if group.num_rows > self.shard_size or group.total_byte_size > MAX_GROUP:
            raise ValueError(f"shard {shard} has {group.num_rows} rows in {group.total_byte_size} bytes")

    def _changed(self) -> MismatchError:
        return MismatchError(f"{self.path} was changed after it was written", _AGAIN, file=self.path)


AnyPlan = Plan | PlanFile


def write_plan(plan: Plan, path: Path) -> None:
    """One row group per shard; the file appears whole."""
    document = {"header": plan.header(), "hash": plan.hash, "digests": plan.digests}
    schema = SCHEMA.with_metadata({_META_KEY: json.dumps(document).encode()})
    with atomic_path(path) as part, pq.ParquetWriter(part, schema) as writer:
        for shard in range(plan.shards):
            writer.write_table(plan.shard_table(shard).cast(schema))


def read_plan(path: Path) -> Plan:
    """Raises MismatchError when the file was changed after it was written."""
    return PlanFile(path).load()
