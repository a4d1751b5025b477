"""A contract for one Parquet table, and the check of a file against it.

A contract says what may never be wrong: columns, types, nulls, ranges, and categories where the list is closed. New
values in open columns (a new country, a new surface) pass: they are drift, and the monitor's business. Columns that the
contract does not name pass too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from campaign import DataError

Kind = Literal["string", "timestamp", "integer", "float", "boolean", "list<float>"]

EXPECTED = {
    "string": "a string",
    "timestamp": "a timestamp in UTC of at most microsecond precision: timestamp[us, tz=UTC]",
    "integer": "an integer",
    "float": "a floating-point number of 32 or 64 bits",
    "boolean": "a boolean",
    "list<float>": "a list of floating-point numbers",
}


@dataclass(frozen=True)
class Column:
    """What one column holds; `above` and `minimum`, `maximum` bound its values, `categories` closes its list."""

    kind: Kind
    nullable: bool = False
    above: float | None = None
    minimum: float | None = None
    maximum: float | None = None
    categories: tuple[str, ...] | None = None


Rule = Callable[[pa.Table], tuple[str, Any, str]]
"""A check across columns: table -> (column to show, mask of bad rows, the rule they break)."""


@dataclass(frozen=True)
class Contract:
    """One table: its columns, the key that names a row, and the column whose UTC date is the partition's `date`."""

    name: str
    columns: dict[str, Column]
    key: tuple[str, ...]
    partition_by: str = "created_timestamp"
    rules: tuple[Rule, ...] = ()


def check_file(path: Path, contract: Contract) -> None:
    """Check one Parquet file against its contract.

    Raises:
        DataError: the file cannot be read or breaks the contract; one line per problem, each with file, column, row
            count, an example and what to do.
    """
    try:
        with pq.ParquetFile(path) as file:
            problems = list(_file_problems(file, contract))
            table = None if problems else file.read(columns=list(contract.columns))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({_first_line(error)}); export it again") from None
    if table is not None:
        problems = list(_value_problems(table, contract, _partition_date(path)))
    if problems:
        raise DataError("\n".join(f"{path}: {problem}" for problem in problems))


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__


def _partition_date(path: Path) -> date | None:
    name = path.parent.name
    return date.fromisoformat(name.removeprefix("date=")) if name.startswith("date=") else None


def _file_problems(file: pq.ParquetFile, contract: Contract) -> Iterator[str]:
    """What the footer alone tells."""
    if file.metadata.num_rows == 0:
        yield "0 rows, must be at least 1; export it again, or leave the file out when nothing happened"
        return
    schema = file.schema_arrow
    for name, column in contract.columns.items():
        if name not in schema.names:
            yield f"column {name!r} is missing; found {', '.join(schema.names)}; add it to the export"
            continue
        found = schema.field(name).type
        only_nulls = pa.types.is_null(found) and column.nullable
        if not only_nulls and not _is_kind(found, column.kind):
            yield f"column {name!r} is {found}, must be {EXPECTED[column.kind]}{_advice(found)}"
        twins = [other for other in schema.names if other.lower() == name.lower()]
        if len(twins) > 1:  # DuckDB would read the first of them, Spark none
            yield f"columns {', '.join(twins)} differ in upper and lower case alone; keep {name!r}, rename the other"


def _is_kind(found: Any, kind: Kind) -> bool:
    types = pa.types
    if types.is_dictionary(found):
        found = found.value_type
    if kind == "timestamp":
        fits = types.is_timestamp(found) and found.tz is not None and found.unit != "ns"
    elif kind == "list<float>":
        fits = (types.is_list(found) or types.is_large_list(found)) and types.is_floating(found.value_type)
    elif kind == "string":
        fits = types.is_string(found) or types.is_large_string(found) or types.is_string_view(found)
    else:
        fits = {"integer": types.is_integer, "float": _is_float, "boolean": types.is_boolean}[kind](found)
    return bool(fits)


def _is_float(found: Any) -> bool:
    """Spark reads no half floats."""
    return bool(pa.types.is_float32(found) or pa.types.is_float64(found))


def _advice(found: pa.DataType) -> str:
    """What to do about a timestamp of the wrong type; nothing is cast, so that no clock is ever guessed."""
    if not pa.types.is_timestamp(found):
        return "; export it with that type"
    if found.tz is None:
        return "; a naive time has no place on the clock: localize it to UTC"
    return "; write it with to_parquet(..., coerce_timestamps='us')"


def _value_problems(table: pa.Table, contract: Contract, partition: date | None) -> Iterator[str]:
    for name, bad, rule in faults(table, contract):
        yield from _describe(table, name, bad, rule)
    if partition is not None:
        yield from _partition_problems(table, contract.partition_by, partition)


def faults(table: pa.Table, contract: Contract) -> Iterator[tuple[str, Any, str]]:
    """(column, mask of the rows that break a rule, the rule) of a table that has the contract's columns and types."""
    for name, column in contract.columns.items():
        for bad, rule in _broken_rules(table[name].combine_chunks(), column):
            yield name, bad, rule
    for check in contract.rules:
        yield check(table)


def _broken_rules(values: Any, column: Column) -> Iterator[tuple[Any, str]]:
    """(mask of bad rows, the rule they break) for each rule of a column; a null breaks only the rule about nulls."""
    if not column.nullable:
        yield pc.is_null(values), "must not be null"
    if column.kind == "float":
        yield pc.invert(pc.is_finite(values)), "must be finite"
    if pa.types.is_uint64(values.type):  # engines count in signed integers
        too_large = pc.greater(values, pa.scalar(2**63 - 1, pa.uint64()))
        yield too_large, "must be < 2^63"
        values = pc.if_else(too_large, None, values).cast(pa.int64())
    if column.above is not None:
        yield pc.less_equal(values, column.above), f"must be > {column.above:g}"
    if column.minimum is not None:
        yield pc.less(values, column.minimum), f"must be >= {column.minimum:g}"
    if column.maximum is not None:
        yield pc.greater(values, column.maximum), f"must be <= {column.maximum:g}"
    if column.categories is not None:
        known = pc.is_in(values, value_set=pa.array(column.categories))
        yield pc.and_(pc.is_valid(values), pc.invert(known)), f"must be one of {', '.join(column.categories)}"


def _partition_problems(table: pa.Table, column: str, day: date) -> Iterator[str]:
    """Rows outside the file's folder would be missed by every reader that opens only the days it needs."""
    start = pa.scalar(datetime(day.year, day.month, day.day, tzinfo=UTC))
    end = pa.scalar(datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1))
    bad = pc.or_(pc.less(table[column], start), pc.greater_equal(table[column], end))
    yield from _describe(table, column, bad, f"must be on {day} UTC, the date of its folder")


def _describe(table: pa.Table, name: str, bad: Any, rule: str) -> Iterator[str]:
    """One line about the rows where `bad` is true: how many, and the first as an example."""
    rows = pc.indices_nonzero(pc.fill_null(bad, False))
    if len(rows):
        first = rows[0].as_py()
        example = table[name][first].as_py()
        shown = example.isoformat() if isinstance(example, datetime) else repr(example)
        count = f"{len(rows)} of {table.num_rows} rows are not"
        yield f"column {name!r} {rule}: {count}, for example row {first}: {shown}; export it again"
