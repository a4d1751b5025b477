"""What is wrong with the rows of one of your files: a line per kind of fault, with an example and what to do."""

from __future__ import annotations

import re
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.checks import faults
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
    lines = [_line(own, column, rule, rows, *entry) for (column, rule), entry in told.items()]
    return lines, np.concatenate(bad_rows).tolist()


def _line(own: OwnFile, column: str, rule: str, rows: int, count: int, row: int, example: Any) -> str:
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
        f"{own.path}: {own.name}.{column}{origin} {rule}: {count:,} of {rows:,} rows, for example row {row}: {shown}; "
        f"{advice}"
    )


def _time_advice(source: Source) -> str:
    within = f"between {OLDEST} and {NEWEST}"
    if source.unit is not None:
        return f"a number of {source.unit} since 1970, {within}, was expected"
    if source.format is not None:
        return f"format == {source.format!r}, {within}, was expected"
    return f"2026-07-01 20:15:00, {within}, was expected; say another `format`, or the `unit` of numbers"
