"""The gate: what a file says is believed once its kind, its range and its length are known, and not before.

Files lie on disk between stages, are edited by hand and are handed on with a run folder. So a JSON document goes
through a type (`read_document`, `read_lines`), a table's columns through their rules (`check_columns`, whole columns
at a time), and a path that is made from either goes through `inside`. What is refused is a DcdmError that names file,
key, value and rule, and the command that makes the file again.
"""

from __future__ import annotations

import functools
import json
import math
import stat
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from dcdm_cli.errors import MismatchError, NotFoundError
from dcdm_export import places

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")
MAX_DOCUMENT = 2**28  # bytes; 20,000 classes with their calibration take about a tenth of it
MAX_LINE = 2**20  # bytes of one row of a JSON-lines file
MAX_TEXT = 2**16  # characters of a caption, a prompt, a class name
_SHOWN = 80  # characters of a value in a message

EXACT = ConfigDict(extra="forbid")  # as `__pydantic_config__` of a dataclass: no other keys
# Kinds that several files share. Bounds are those of the columns and generators that the values end up in.
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Word = Annotated[str, Field(max_length=1024)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{32}([0-9a-f]{32})?$")]
ClassNames = Annotated[tuple[Text, ...], Field(max_length=2**20)]
NO_LINKS = "replace the link by what it points at, or put the whole run folder elsewhere with --run"
PLAN_ID = "[0-9a-z]{16}"  # a sample id of a plan's row: a file name of ours
SCAN_ID = "[0-9a-f]{32}(-[0-9a-f]{8})?"  # of a scanned image


def inside(root: Path, name: str, *, said_in: Path, again: str) -> Path:
    """The file that a name found in `said_in` means below `root`, links resolved. Every path that is made from a
    value of a file is made here. Raises MismatchError with `again`, the command that makes the file anew."""
    try:
        return places.inside(root, name)
    except places.OutsideError as error:
        raise MismatchError(f"{said_in}: the path {error}", again, file=said_in) from error


class Table(dict[str, Any]):
    """A table of a file whose keys later code relies on: one that is missing is the file's fault."""

    said_in: tuple[Path, str, str] | None = None  # file, what the table is called in it, how it is made again

    def __missing__(self, key: str) -> Any:
        raise self.fault(key, "is missing") or KeyError(key)

    def fault(self, key: str, said: str) -> MismatchError | None:
        """What is wrong with a value; None for a table of no file."""
        if self.said_in is None:
            return None
        file, name, again = self.said_in
        return MismatchError(f"{file} is damaged: {name}.{key} {said}", again, file=file)

    @classmethod
    def of(cls, values: Mapping[str, Any], file: Path, name: str, again: str) -> Table:
        table = cls(values)
        table.said_in = file, name, again
        return table


def table_in(table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A table in another. Raises MismatchError, of a table of a file, where it is none."""
    found = table[key]
    if isinstance(found, Mapping):
        return found
    fault = table.fault(key, f"= {shorten(found)} is no table") if isinstance(table, Table) else None
    raise fault or TypeError(f"{key} is no table")


# JSON


def parse_json(text: str | bytes) -> Any:
    """JSON without NaN, Infinity, numbers that overflow, and whole numbers beyond 128 bits. Raises ValueError."""
    try:
        return json.loads(text, parse_constant=_not_finite, parse_float=_float, parse_int=_int)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def parse_toml(text: str) -> dict[str, Any]:
    """TOML with whole numbers of 64 bits, as it has them. Raises ValueError in one line."""
    try:
        document = tomllib.loads(text)
        _refuse_large(document)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except ValueError as error:
        # not of TOML's own: more digits than Python reads
        said = str(error) if isinstance(error, tomllib.TOMLDecodeError) else "a number in it is too large"
        raise ValueError(said) from error
    return document


def typed(kind: type[T], value: Any) -> T:
    """`value` as a `kind`: a class, a dataclass, a model, or a generic of these. Raises ValueError in one line."""
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as error:
        raise ValueError(first_fault(error)) from error


def first_fault(error: ValidationError) -> str:
    """Key, value and rule of the first thing that is wrong."""
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    # pydantic's input is the whole table then
    shown = "" if first["type"] == "missing" else f" = {shorten(first.get('input'))}"
    return f"{key}{shown}: {first['msg']}" if key else f"{shorten(first.get('input'))}: {first['msg']}"


def read_document(file: Path, kind: type[T], again: str) -> T:
    """A JSON file as a `kind`. Raises NotFoundError without a file, MismatchError with `again` for any other fault."""
    try:
        found = file.stat()
        if not stat.S_ISREG(found.st_mode):  # to open a pipe would wait for ever
            raise ValueError("it is no file")
        if found.st_size > MAX_DOCUMENT:  # before it is read, and so before it fills the memory
            raise ValueError(f"it is larger than {MAX_DOCUMENT >> 20} MiB")
        return typed(kind, parse_json(file.read_bytes()))
    except FileNotFoundError as error:
        raise NotFoundError(f"no {file}", again, file=file) from error
    except (NotADirectoryError, ValueError) as error:
        raise MismatchError(f"{file} is damaged: {error}", again, file=file) from error


def read_lines(file: Path, kind: type[T]) -> list[T]:
    """The whole and well-formed rows of a JSON-lines file; none without a file. A row that a crash has torn, or that
    somebody has changed into something else, is no row: what it stood for is made again."""
    return [row for line in json_lines(file) if (row := parse_line(line, kind)) is not None]


def json_lines(file: Path) -> Iterator[bytes]:
    """The lines of a file, of which no one is longer than `MAX_LINE`; none without a file."""
    if file.is_file():
        with file.open("rb") as stream:
            while line := stream.readline(MAX_LINE):  # a longer one comes in pieces, none of which is a row
                yield line


def parse_line(line: str | bytes, kind: type[T]) -> T | None:
    """None for a line that is no `kind`."""
    try:
        return typed(kind, parse_json(line))
    except ValueError:
        return None


# Columns


@dataclass(frozen=True)
class Column:
    """What holds for every value of a column. pattern: a regular expression (RE2) that a text matches as a whole.
    low, high: inclusive bounds; NaN is outside. longest: characters of a text. nullable: whether a value may lack."""

    pattern: str | None = None
    low: float | None = None
    high: float | None = None
    longest: int = MAX_TEXT
    nullable: bool = False

    @property
    def rule(self) -> str:
        if self.pattern is not None:
            return f"must look like {self.pattern}"
        if self.low is None:
            return f"must be a text of at most {self.longest} characters"
        bounds = f"from {self.low:g} to {self.high:g}"
        return f"must be a number {bounds}" + (" or missing" if self.nullable else "")

    def good(self, values: pa.ChunkedArray) -> pa.ChunkedArray:
        """bool, null where the value is."""
        from pyarrow.compute import MatchSubstringOptions, call_function

        if self.low is not None and self.high is not None:
            bounds = [("greater_equal", self.low), ("less_equal", self.high)]
            return call_function("and", [call_function(name, [values, bound]) for name, bound in bounds])
        short = call_function("less_equal", [call_function("utf8_length", [values]), self.longest])
        if self.pattern is None:
            return short
        # Arrow searches; the group keeps an alternative inside the anchors
        like = MatchSubstringOptions(f"^(?:{self.pattern})$")
        return call_function("and", [short, call_function("match_substring_regex", [values], like)])


def check_columns(table: pa.Table, rules: Mapping[str, Column]) -> None:
    """Whole columns at a time: a bit per row and rule. Raises ValueError naming column, row, value and rule."""
    import pyarrow as pa

    try:
        table.validate(full=True)  # texts that are no UTF-8, offsets that point elsewhere
        for name, rule in rules.items():
            refuse_first(table, name, rule.good(table[name]).fill_null(rule.nullable), rule.rule)
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error


def refuse_first(table: pa.Table, column: str, good: Any, rule: str) -> None:
    """good: bool, Arrow or NumPy, of every row. Raises ValueError for the first row that is not."""
    import pyarrow as pa

    row = (good if isinstance(good, (pa.Array, pa.ChunkedArray)) else pa.array(good)).index(False).as_py()
    if row >= 0:
        raise ValueError(f"{column} = {shorten(table[column][row].as_py())} in row {row}: {rule}")


def shorten(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # more digits than Python writes
        text = "a number of very many digits"
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _refuse_large(value: Any) -> None:
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _refuse_large(inner)
    # TOML has 64 bits, and Python's own reader takes any number of digits.
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError


def _not_finite(word: str) -> float:
    raise ValueError(f"{word} is no JSON number")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:_SHOWN]} is too large")
    return value


def _int(text: str) -> int:
    if len(text) > 40:  # random states have 128 bits
        raise ValueError(f"the number {text[:_SHOWN]}… is too large")
    return int(text)
