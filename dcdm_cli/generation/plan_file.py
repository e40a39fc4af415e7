"""Plans on disk: a Parquet file with one row group per shard, which names its own hash and the digest of every shard.

One shard can be read and checked without the others, and a file that was changed by hand is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dcdm_cli.errors import MismatchError, NotFoundError
from dcdm_cli.files import atomic_path, hash_json
from dcdm_cli.generation.plan import SCHEMA, Plan, PlanRow, plan_rows, shard_digest

_META_KEY = b"dcdm_plan"
_AGAIN = "make it again: dcdm generate --force, or dcdm generate --plan for a plan to be run by name"


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
            document = json.loads((self._parquet.schema_arrow.metadata or {})[_META_KEY])
            header, self.hash, self._digests = document["header"], document["hash"], document["digests"]
            self.generator, self.unreachable = str(header["generator"]), int(header["unreachable"])
            self.shard_size, self.class_names = int(header["shard_size"]), tuple(header["class_names"])
            self.made_for: Mapping[str, Any] = header["made_for"]
        except (pa.ArrowInvalid, KeyError, ValueError, TypeError, OSError) as error:
            raise MismatchError(f"{path} is no plan of dcdm: {error}", _AGAIN, file=path) from error
        whole = hash_json([header, self._digests]) == self.hash
        if not whole or self._parquet.num_row_groups != len(self._digests):
            raise self._changed()

    def __len__(self) -> int:
        return self._parquet.metadata.num_rows

    @property
    def shards(self) -> int:
        return len(self._digests)

    def shard_table(self, shard: int) -> pa.Table:
        """Raises MismatchError when the rows are not those that were written."""
        try:
            table = self._parquet.read_row_group(shard, columns=SCHEMA.names).cast(SCHEMA)
            if (
                table.replace_schema_metadata(None).schema.equals(SCHEMA)
                and shard_digest(table) == self._digests[shard]
            ):
                return table.replace_schema_metadata(None)
        except (pa.ArrowInvalid, KeyError, ValueError, OSError) as error:
            raise self._changed() from error
        raise self._changed()

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
