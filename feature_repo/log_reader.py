"""One of your files -> the rows of a contract, and what is wrong with the rows that are none.

Text is read as text: an id keeps its zeros. Numbers, times and truth values are then made of it by DuckDB's TRY_CAST,
and a value that cannot be read is named with its row; none is guessed.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from campaign import DataError
from feature_repo.checks import Column, Contract, faults
from feature_repo.log_map import Decisions, LogMap, Source, Table, contract_of, log_map_path

MEMORY = "1GB"
BATCH = 500_000  # rows whose values are checked at once
# a time outside is a wrong unit or format
OLDEST, NEWEST = "1900-01-01", "2100-01-01"
NUMBERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT")
READS = {"timestamp": "a time", "integer": "a whole number", "float": "a number", "boolean": "true or false"}


@dataclass(frozen=True)
class Reading:
    """What a file gave: rows that `where` let through, those that fit the contract, a line about each problem."""

    table: str
    path: Path
    rows: int
    usable: int
    problems: tuple[str, ...]


def read_own(path: Path, name: str, log_map: LogMap, arms: tuple[str, ...], folder: Path, stem: str) -> Reading:
    """Write the usable rows of one file as `folder`/date=D/`stem`_*.parquet.

    Args:
        path: CSV or Parquet.
        name: table of logs.toml.
        log_map: a validated logs.toml.
        arms: names of the campaign's arms.
        folder: exists.
        stem: how the names of the files begin.

    A file that cannot be read at all has no rows and one problem.
    """
    table = log_map.tables[name]
    contract = contract_of(name, arms)
    try:
        with duckdb.connect(config={"threads": 1, "memory_limit": MEMORY, "temp_directory": str(folder)}) as con:
            con.execute("SET TimeZone = " + _text(table.timezone or log_map.timezone))
            sources = _sources(con, path, name, table, arms)
            rows, bad, problems = _convert(con, path, name, contract, sources, table)
            con.execute("SET TimeZone = 'UTC'")
            _write(con, table, contract, arms, folder, stem)
    except DataError as error:
        return Reading(name, path, 0, 0, tuple(str(error).splitlines()))
    except (duckdb.Error, OSError, UnicodeDecodeError) as error:
        reason = " ".join(line.strip() for line in str(error).splitlines()[:3])
        return Reading(name, path, 0, 0, (f"{path}: cannot be read: {reason}; export it again, as UTF-8",))
    return Reading(name, path, rows, rows - bad, tuple(problems))


# ------------------------------------------------------------------------------------------------- what stands there


def _sources(
    con: duckdb.DuckDBPyConnection, path: Path, name: str, table: Table, arms: tuple[str, ...]
) -> dict[str, Source]:
    """View `theirs` on the file; and where each column of ours comes from, where it comes from the file."""
    if path.suffix == ".parquet":
        con.execute(f"CREATE VIEW read AS SELECT * FROM read_parquet({_text(path)}, hive_partitioning = false)")
    else:
        columns = ", ".join(f"{_text(column)}: 'VARCHAR'" for column in _header(path, table))
        con.execute(
            f"CREATE VIEW read AS SELECT * FROM read_csv({_text(path)}, auto_detect = false, header = true, "
            f"delim = {_text(table.delimiter)}, quote = '\"', escape = '\"', nullstr = '', columns = {{{columns}}})"
        )
    con.execute('CREATE VIEW theirs AS SELECT *, row_number() OVER () AS "tactful row" FROM read')
    found = [column for column, *_ in con.execute("DESCRIBE read").fetchall()]
    given = dict(table.columns)
    if isinstance(table, Decisions):
        if set(table.propensities) != set(arms):
            names = f"{', '.join(table.propensities)}, and campaign.toml has {', '.join(arms)}"
            raise DataError(f"{log_map_path()}: [decisions] propensities of {names}; name each arm once")
        given |= {f"propensity of {arm}": share for arm, share in table.propensities.items()}
    for column in contract_of(name, arms).columns:
        if column not in given and column in found:
            given[column] = Source(column=column)
    for ours, source in given.items():
        if source.column is not None and source.column not in found:
            near = difflib.get_close_matches(source.column, found, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise DataError(
                f"{path}: no column {source.column!r}, which logs.toml names for {name}.{ours}; {hint}"
                f"found {', '.join(found)}"
            )
    return given


def _header(path: Path, table: Table) -> list[str]:
    """Column names of a CSV, as they are written."""
    with path.open("rb") as raw, gzip.open(raw) if path.suffix == ".gz" else raw as binary:
        stream = io.TextIOWrapper(binary, encoding="utf-8-sig", newline="")
        names = next(csv.reader(stream, delimiter=table.delimiter), [])
    folded = [name.casefold() for name in names]
    twice = sorted({name for name in names if folded.count(name.casefold()) > 1})
    if twice or "" in names or not names:
        what = f"column {twice[0]!r} stands twice" if twice else "a column has no name" if names else "it is empty"
        raise DataError(f"{path}: {what}; the first line must name every column once, with {table.delimiter!r} between")
    return names


# ------------------------------------------------------------------------------------------------- theirs to ours


def _convert(
    con: duckdb.DuckDBPyConnection,
    path: Path,
    name: str,
    contract: Contract,
    sources: dict[str, Source],
    table: Table,
) -> tuple[int, int, list[str]]:
    """Table `ours`: row, columns of the contract, and what could not be read; rows, bad rows and problems."""
    where = f"WHERE ({table.where})" if table.where else ""
    _try_where(con, name, where)
    types = {column: kind for column, kind, *_ in con.execute("DESCRIBE read").fetchall()}
    read = {c: _read_as(contract.columns[c], s, types.get(s.column or "", ""), table) for c, s in sources.items()}
    made, missing = _made(name, contract, set(sources))
    if missing:
        raise DataError(
            "\n".join(f"{path}: {name}.{c}: nothing says where it comes from; {_advice(c)}" for c in missing)
        )
    inner = ", ".join(f'{value} AS "{c}", {bad} AS "bad {c}"' for c, (value, bad) in read.items())
    outer = "".join(f', {value} AS "{c}"' for c, value in made.items())
    con.execute(
        f'CREATE TEMP TABLE ours AS SELECT *{outer} FROM (SELECT "tactful row" AS row, {inner} FROM theirs {where})'
    )
    problems, bad_rows = _problems(con, path, name, contract, sources, table)
    con.register("bad_rows", pa.table({"row": pa.array(bad_rows, pa.int64())}))
    (rows,) = con.execute("SELECT count(*) FROM ours").fetchone() or (0,)
    if not rows:
        problems.append(f"{path}: [{name}] no rows" + (f" where {table.where}" if table.where else ""))
    return rows, len(bad_rows), problems


def _try_where(con: duckdb.DuckDBPyConnection, name: str, where: str) -> None:
    try:
        con.execute(f"EXPLAIN SELECT 1 FROM theirs {where}")
    except duckdb.Error as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{log_map_path()}: [{name}] where: {reason}; write an SQL condition on your columns (in a CSV they are "
            "text: minutes::DOUBLE > 0)"
        ) from None


def _read_as(column: Column, source: Source, found: str, table: Table) -> tuple[str, str]:
    """SQL of a value, and of the text that could not be read (null where it could)."""
    if source.value is not None:
        raw = _text(source.value) if isinstance(source.value, str) else str(source.value)
        found = "VARCHAR" if isinstance(source.value, str) else "DOUBLE" if column.kind != "string" else "VARCHAR"
        raw = raw if found == "DOUBLE" or isinstance(source.value, str) else f"'{source.value}'"
    else:
        raw = _name(source.column or "")
    if source.values or source.default is not None:
        if column.kind == "timestamp" and found != "VARCHAR" and source.values:
            told = f"values of {source.column!r}: it holds times, not words; leave `values` out"
            raise DataError(f"{log_map_path()}: {told}")
        raw, found = _mapped(raw, found, source), "VARCHAR" if source.values else found
    value = _typed(column, source, raw, found, table)
    return value, f"CASE WHEN ({value}) IS NULL THEN ({raw})::VARCHAR END"


def _mapped(raw: str, found: str, source: Source) -> str:
    if source.values:
        cases = " ".join(f"WHEN {_text(theirs)} THEN {_text(ours)}" for theirs, ours in source.values.items())
        raw = f"CASE {_plain(raw, found)} {cases} ELSE {_plain(raw, found)} END"
    return raw if source.default is None else f"coalesce({raw}, {_text(source.default)})"


def _plain(raw: str, found: str) -> str:
    """Text of a value; a whole number that is stored as a float (an id with gaps, in pandas) loses its `.0`."""
    if found in ("DOUBLE", "FLOAT") or found.startswith("DECIMAL"):
        return f"CASE WHEN ({raw}) = floor({raw}) THEN (({raw})::HUGEINT)::VARCHAR ELSE ({raw})::VARCHAR END"
    return f"({raw})::VARCHAR"


def _typed(column: Column, source: Source, raw: str, found: str, table: Table) -> str:
    if column.kind == "string":
        return _plain(raw, found)
    if column.kind == "boolean":
        return f"TRY_CAST({raw} AS BOOLEAN)"
    if column.kind == "timestamp":
        return _time(source, raw, found)
    if found == "VARCHAR" and table.decimal == ",":
        raw = f"replace({raw}, ',', '.')"
    number = f"TRY_CAST({raw} AS DOUBLE)" + (f" / {source.divide_by!r}" if source.divide_by else "")
    return (
        number
        if column.kind == "float"
        else f"CASE WHEN {number} = floor({number}) THEN TRY_CAST({number} AS BIGINT) END"
    )


def _time(source: Source, raw: str, found: str) -> str:
    """A time that says no zone of its own lies in the connection's, which is that of logs.toml."""
    if source.unit is not None:
        factor = {"s": 1e6, "ms": 1e3, "us": 1}[source.unit]
        us = f"TRY_CAST(round(TRY_CAST({raw} AS DOUBLE) * {factor}) AS BIGINT)"
    elif found in NUMBERS or found in ("DOUBLE", "FLOAT"):
        raise DataError(f"{log_map_path()}: {source.column!r} holds numbers; say their unit since 1970: s, ms or us")
    elif source.format is not None:
        us = f"epoch_us(try_strptime(({raw})::VARCHAR, {_text(source.format)})::TIMESTAMPTZ)"
    else:
        us = f"epoch_us(TRY_CAST({raw} AS TIMESTAMPTZ))"
    plausible = f"({us}) BETWEEN epoch_us(TIMESTAMP '{OLDEST}') AND epoch_us(TIMESTAMP '{NEWEST}')"
    return f"CASE WHEN {plausible} THEN make_timestamptz({us}) END"


def _made(name: str, contract: Contract, given: set[str]) -> tuple[dict[str, str], list[str]]:
    """Columns that need no source, as SQL on the others; and those without any."""
    event = ", event" if name == "subscriptions" else ""
    at = "decided_at" if name == "decisions" else "event_timestamp"
    key = f"concat_ws('/', user_id, epoch_us({at}){event})"
    rules = {"created_timestamp": "event_timestamp"}
    if name != "users":
        rules[contract.key[0]] = key
    elif "event_timestamp" not in given:
        rules |= {"event_timestamp": "signup_at", "created_timestamp": "signup_at"}
    made: dict[str, str] = {}
    missing = []
    for column, what in contract.columns.items():
        if column in given:
            continue
        if column in rules:
            made[column] = rules[column]
        elif what.nullable:
            made[column] = f"NULL::{_SQL[what.kind]}"
        else:
            missing.append(column)
    return made, missing


_SQL = {"string": "VARCHAR", "timestamp": "TIMESTAMPTZ", "integer": "BIGINT", "float": "DOUBLE", "boolean": "BOOLEAN"}


def _advice(column: str) -> str:
    return f"name your column (columns.{column} = ...), or give one value (columns.{column} = {{value = ...}})"


# ------------------------------------------------------------------------------------------------- what is wrong


def _problems(
    con: duckdb.DuckDBPyConnection,
    path: Path,
    name: str,
    contract: Contract,
    sources: dict[str, Source],
    table: Table,
) -> tuple[list[str], list[int]]:
    """One line per kind of fault, with an example; and the rows that have any."""
    told: dict[tuple[str, str], list[Any]] = {}  # (column, rule) -> [rows, row of the example, example]
    bad_rows, rows = [np.empty(0, np.int64)], 0
    reader = con.sql("SELECT * FROM ours ORDER BY row").to_arrow_reader(BATCH)
    for batch in reader:
        part = pa.Table.from_batches([batch])
        rows += part.num_rows
        unread = {c: pc.is_valid(part[f"bad {c}"]) for c in sources}
        found = [(c, mask, "cannot be read") for c, mask in unread.items()]
        for c, mask, rule in faults(part, contract):
            mask = pc.fill_null(mask, False)
            found.append((c, pc.and_not(mask, unread[c].combine_chunks()) if c in unread else mask, rule))
        bad = np.zeros(part.num_rows, dtype=bool)
        for c, mask, rule in found:
            at = np.flatnonzero(np.asarray(mask))
            if not len(at):
                continue
            bad[at] = True
            if c not in sources:  # made of another column, which is named
                continue
            first = int(at[0])
            example = part[f"bad {c}" if rule == "cannot be read" else c][first].as_py()
            entry = told.setdefault((c, rule), [0, part["row"][first].as_py(), example])
            entry[0] += len(at)
        bad_rows.append(part["row"].to_numpy()[bad])
    lines = [
        _line(path, name, contract, sources.get(column), column, rule, rows, *entry)
        for (column, rule), entry in told.items()
    ]
    return lines, np.concatenate(bad_rows).tolist()


def _line(
    path: Path,
    name: str,
    contract: Contract,
    source: Source | None,
    column: str,
    rule: str,
    rows: int,
    count: int,
    row: int,
    example: Any,
) -> str:
    kind = contract.columns[column].kind
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
        f"{path}: {name}.{column}{origin} {rule}: {count:,} of {rows:,} rows, for example row {row}: {shown}; {advice}"
    )


def _time_advice(source: Source) -> str:
    within = f"between {OLDEST} and {NEWEST}"
    if source.unit is not None:
        return f"a number of {source.unit} since 1970, {within}, was expected"
    if source.format is not None:
        return f"format == {source.format!r}, {within}, was expected"
    return f"2026-07-01 20:15:00, {within}, was expected; say another `format`, or the `unit` of numbers"


# ------------------------------------------------------------------------------------------------- into place


def _write(
    con: duckdb.DuckDBPyConnection, table: Table, contract: Contract, arms: tuple[str, ...], folder: Path, stem: str
) -> None:
    """The rows without a fault, in order of time, so that each date is one file."""
    day = f"(DATE '1970-01-01' + (epoch_us({contract.partition_by}) // 86400000000)::INTEGER) AS date"
    columns = _decision_columns(table, arms) if isinstance(table, Decisions) else ", ".join(contract.columns)
    key = ", ".join(contract.key)
    con.execute(
        f"COPY (SELECT {columns}, {day} FROM ours ANTI JOIN bad_rows USING (row) "
        f"ORDER BY {contract.partition_by}, {key}, row) TO {_text(folder)} "
        f"(FORMAT parquet, PARTITION_BY (date), FILENAME_PATTERN '{stem}_{{i}}', OVERWRITE_OR_IGNORE)"
    )


def _decision_columns(table: Decisions, arms: tuple[str, ...]) -> str:
    """The decision log's columns: what a random phase knows; no model took part."""
    chances = ", ".join(f'"propensity of {arm}"' for arm in arms)
    index = f"(list_position([{', '.join(_text(arm) for arm in arms)}], arm) - 1)::INTEGER"
    layer = "CASE WHEN holdout THEN 'holdout' ELSE 'exploration' END"
    salts = _text(json.dumps({"holdout_share": table.holdout_share}))
    empty = ("campaign_hash", "policy_hash", "model_tag", "feature_service", "schema_hash")
    null = {"features": "VARCHAR", "feature_timestamp": "TIMESTAMPTZ", "uplift": "VARCHAR", "score": "DOUBLE"}
    null |= {"threshold": "DOUBLE", "segments": "VARCHAR", "experiment": "VARCHAR"}
    parts = [
        "decision_id, decision_id AS request_id, user_id, user_id AS cluster_id, decided_at",
        *(f"'' AS {name}" for name in empty),
        *(f"NULL::{kind} AS {name}" for name, kind in null.items()),
        f"{layer} AS layer, {layer} AS reason, {salts} AS salts, {index} AS arm",
        f"arm <> {_text(arms[0])} AS eligible",
        f"[{chances}]::DOUBLE[] AS propensities, propensities[{index} + 1] AS propensity",
        "hour::INTEGER AS hour, surface",
    ]
    return ", ".join(parts)


def _text(value: Any) -> str:
    """An SQL string."""
    return "'" + str(value).replace("'", "''") + "'"


def _name(column: str) -> str:
    """An SQL identifier."""
    return '"' + column.replace('"', '""') + '"'
