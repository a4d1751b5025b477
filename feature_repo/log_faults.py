"""What is wrong with the rows of one of your files: a line per kind of fault, with an example and what to do."""

from __future__ import annotations

import re
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.checks import faults
from feature_repo.csv_lines import lines_of
from feature_repo.log_map import Source
from feature_repo.log_sql import NEWEST, OLDEST, OwnFile

BATCH = 500_000  # rows whose values are checked at once
READS = {"timestamp": "a time", "integer": "a whole number", "float": "a number", "boolean": "true or false"}


def problems_of(con: duckdb.DuckDBPyConnection, own: OwnFile) -> tuple[list[str], list[int]]:
    """One line per kind of fault, with an example; and the rows that have any."""
    told: dict[tuple[str, str], list[Any]] = {}  # (column, rule) -> [rows, row of the example, example]
    bad_rows, rows = [np.empty(0, np.int64)], 0
    reader = con.sql("SELECT * FROM ours ORDER BY row").to_arrow_reader(BATCH)
    for batch in reader:
        part = pa.Table.from_batches([batch])
        rows += part.num_rows
        unread = {c: pc.is_valid(part[f"bad {c}"]) for c in own.sources}
        found = [(c, mask, "cannot be read") for c, mask in unread.items()]
        for c, mask, rule in faults(part, own.contract):
            mask = pc.fill_null(mask, False)
            found.append((c, pc.and_not(mask, unread[c].combine_chunks()) if c in unread else mask, rule))
        bad = np.zeros(part.num_rows, dtype=bool)
        for c, mask, rule in found:
            at = np.flatnonzero(np.asarray(mask))
            if not len(at):
                continue
            bad[at] = True
            if c not in own.sources:  # made of another column, which is named
                continue
            first = int(at[0])
            example = part[f"bad {c}" if rule == "cannot be read" else c][first].as_py()
            entry = told.setdefault((c, rule), [0, part["row"][first].as_py(), example])
            entry[0] += len(at)
        bad_rows.append(part["row"].to_numpy()[bad])
    where = _where(own, {row for _, row, _ in told.values()})
    lines = [
        _line(own, column, rule, rows, count, where[row], example)
        for (column, rule), (count, row, example) in told.items()
    ]
    return lines, np.concatenate(bad_rows).tolist()


def skipped_times(con: duckdb.DuckDBPyConnection, own: OwnFile) -> list[str]:
    """A line for each column with local times that the clocks of its zone jump over in spring: read as later ones."""
    looked = {
        name.removeprefix("skipped ") for name, *_ in con.execute("DESCRIBE ours").fetchall() if "skipped" in name
    }
    lines = []
    for c in own.sources:
        if c not in looked:
            continue
        count, row, zone, read = con.execute(
            f"""SELECT count(*), min(row), current_setting('TimeZone'),
                       min_by(strftime("{c}", '%Y-%m-%d %H:%M:%S'), row)
            FROM ours WHERE "skipped {c}" """
        ).fetchone() or (0, 0, "", "")
        if count:
            lines.append(
                f"{own.path}: {own.name}.{c}: {count:,} times do not exist in {zone}, whose clocks jump over them: for "
                f"example {_where(own, {row})[row]}, read as {read}; is `timezone` the right one?"
            )
    return lines


def _where(own: OwnFile, rows: set[int]) -> dict[int, str]:
    """Where rows are found in the file: by line in a CSV."""
    if own.path.suffix == ".parquet":
        return {row: f"row {row}" for row in rows}
    lines = lines_of(own.path, own.table.delimiter, rows)
    return {row: f"line {lines[row]}" if row in lines else f"row {row}" for row in rows}


def _line(own: OwnFile, column: str, rule: str, rows: int, count: int, where: str, example: Any) -> str:
    kind, source = own.contract.columns[column].kind, own.sources.get(column)
    origin = f" (your {source.column!r})" if source and source.column not in (None, column) else ""
    advice = "mend the rows, or leave them out with `where`"
    if rule == "cannot be read":
        rule = f"cannot be read as {READS[kind]}"
        if kind == "timestamp" and source is not None:
            advice = _time_advice(source)
        elif kind == "float" and re.fullmatch(r"-?[\d.]*,\d+", str(example)):
            advice = 'say decimal = "," of the table'
    elif rule == "must not be null":
        rule, advice = "is empty", "give a `default`, or leave the rows out with `where`"
    elif rule.startswith("must be one of"):
        advice = "say which is which with `values`"
    shown = example.isoformat() if hasattr(example, "isoformat") else repr(example)
    return (
        f"{own.path}: {own.name}.{column}{origin} {rule}: {count:,} of {rows:,} rows, for example {where}: {shown}; "
        f"{advice}"
    )


def _time_advice(source: Source) -> str:
    within = f"between {OLDEST} and {NEWEST}"
    if source.unit is not None:
        return f"a number of {source.unit} since 1970, {within}, was expected"
    if source.format is not None:
        return f"format == {source.format!r}, {within}, was expected"
    return f"2026-07-01 20:15:00, {within}, was expected; say another `format`, or the `unit` of numbers"
