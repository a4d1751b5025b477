"""One of your files -> the rows of a contract, and what is wrong with the rows that are none.

Text is read as text: an id keeps its zeros. Numbers, times and truth values are then made of it by DuckDB's TRY_CAST,
and a value that cannot be read is named with its row; none is guessed.
"""

from __future__ import annotations

import csv
import difflib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from campaign import DataError
from feature_repo.checks import Contract
from feature_repo.csv_lines import first_fault, open_csv
from feature_repo.duck import connect
from feature_repo.log_faults import problems_of, skipped_times
from feature_repo.log_map import Decisions, LogMap, Source, Table, contract_of, log_map_path
from feature_repo.log_sql import OwnFile, made_of_others, skipped, text, value_and_unread

MEMORY = "1GB"


@dataclass(frozen=True)
class Reading:
    """What a file gave: rows that `where` let through, those that fit the contract, a line about each problem.

    `notes`: what is odd about rows that fit.
    """

    table: str
    path: Path
    rows: int
    usable: int
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()


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
        with connect(threads=1, memory_limit=MEMORY, temp_directory=str(folder)) as con:
            con.execute("SET TimeZone = " + text(table.timezone or log_map.timezone))
            own = OwnFile(path, name, table, contract, _sources(con, path, name, table, arms))
            rows, bad, problems = _convert(con, own)
            notes = skipped_times(con, own)
            con.execute("SET TimeZone = 'UTC'")
            _write(con, table, contract, arms, folder, stem)
    except DataError as error:
        return Reading(name, path, 0, 0, tuple(str(error).splitlines()))
    except UnicodeDecodeError as error:
        return Reading(name, path, 0, 0, (f"{path}: {error}; export it again, as UTF-8",))
    except (duckdb.Error, OSError) as error:
        return Reading(name, path, 0, 0, (f"{path}: cannot be read: {_why(error, path, table)}",))
    return Reading(name, path, rows, rows - bad, tuple(problems), tuple(notes))


def _why(error: Exception, path: Path, table: Table) -> str:
    """What a person can mend, where the fault lies in a line of a CSV; else what DuckDB says first."""
    try:
        fault = None if path.suffix == ".parquet" else first_fault(path, table.delimiter)
    except (OSError, UnicodeDecodeError) as other:
        return f"{other}; export it again, as UTF-8"
    return fault or " ".join(line.strip() for line in str(error).splitlines()[:3]) + "; export it again"


def _sources(
    con: duckdb.DuckDBPyConnection, path: Path, name: str, table: Table, arms: tuple[str, ...]
) -> dict[str, Source]:
    """View `theirs` on the file; and where each column of ours comes from, where it comes from the file."""
    if path.suffix == ".parquet":
        con.execute(f"CREATE VIEW read AS SELECT * FROM read_parquet({text(path)}, hive_partitioning = false)")
    else:
        columns = ", ".join(f"{text(column)}: 'VARCHAR'" for column in _header(path, table))
        con.execute(
            f"CREATE VIEW read AS SELECT * FROM read_csv({text(path)}, auto_detect = false, header = true, "
            f"delim = {text(table.delimiter)}, quote = '\"', escape = '\"', nullstr = '', columns = {{{columns}}})"
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
            if len(found) == 1 and (other := re.search(r"[;\t|]", found[0])):
                hint = f"say delimiter = {json.dumps(other[0])} of the table? "
            raise DataError(
                f"{path}: no column {source.column!r}, which logs.toml names for {name}.{ours}; {hint}"
                f"found {', '.join(found)}"
            )
    return given


def _header(path: Path, table: Table) -> list[str]:
    """Column names of a CSV, as they are written."""
    with open_csv(path) as stream:
        names = next(csv.reader(stream, delimiter=table.delimiter), [])
    folded = [name.casefold() for name in names]
    twice = sorted({name for name in names if folded.count(name.casefold()) > 1})
    if twice or "" in names or not names:
        what = f"column {twice[0]!r} stands twice" if twice else "a column has no name" if names else "it is empty"
        raise DataError(f"{path}: {what}; the first line must name every column once, with {table.delimiter!r} between")
    return names


# ------------------------------------------------------------------------------------------------- theirs to ours


def _convert(con: duckdb.DuckDBPyConnection, own: OwnFile) -> tuple[int, int, list[str]]:
    """Table `ours`: row, columns of the contract, and what could not be read; rows, bad rows and problems."""
    where = f"WHERE ({own.table.where})" if own.table.where else ""
    _try_where(con, own.name, where)
    types = {column: kind for column, kind, *_ in con.execute("DESCRIBE read").fetchall()}
    made, missing = made_of_others(own.name, own.contract, set(own.sources))
    if missing:
        raise DataError(
            "\n".join(f"{own.path}: {own.name}.{c}: nothing says where it comes from; {_advice(c)}" for c in missing)
        )
    read = {
        c: value_and_unread(own.contract.columns[c], source, types.get(source.column or "", ""), own.table)
        for c, source in own.sources.items()
    }
    jumped = {
        c: sql
        for c, source in own.sources.items()
        if (sql := skipped(own.contract.columns[c], source, types.get(source.column or "", "")))
    }
    inner = ", ".join(f'{value} AS "{c}", {bad} AS "bad {c}"' for c, (value, bad) in read.items())
    inner += "".join(f', {sql} AS "skipped {c}"' for c, sql in jumped.items())
    outer = "".join(f', {value} AS "{c}"' for c, value in made.items())
    con.execute(
        f'CREATE TEMP TABLE ours AS SELECT *{outer} FROM (SELECT "tactful row" AS row, {inner} FROM theirs {where})'
    )
    problems, bad_rows = problems_of(con, own)
    con.register("bad_rows", pa.table({"row": pa.array(bad_rows, pa.int64())}))
    (rows,) = con.execute("SELECT count(*) FROM ours").fetchone() or (0,)
    if not rows:
        problems.append(f"{own.path}: [{own.name}] no rows" + (f" where {own.table.where}" if own.table.where else ""))
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


def _advice(column: str) -> str:
    return f"name your column (columns.{column} = ...), or give one value (columns.{column} = {{value = ...}})"


def _write(
    con: duckdb.DuckDBPyConnection, table: Table, contract: Contract, arms: tuple[str, ...], folder: Path, stem: str
) -> None:
    """The rows without a fault, in order of time, so that each date is one file."""
    day = f"(DATE '1970-01-01' + (epoch_us({contract.partition_by}) // 86400000000)::INTEGER) AS date"
    columns = _decision_columns(table, arms) if isinstance(table, Decisions) else ", ".join(contract.columns)
    key = ", ".join(contract.key)
    con.execute(
        f"COPY (SELECT {columns}, {day} FROM ours ANTI JOIN bad_rows USING (row) "
        f"ORDER BY {contract.partition_by}, {key}, row) TO {text(folder)} "
        f"(FORMAT parquet, PARTITION_BY (date), FILENAME_PATTERN '{stem}_{{i}}', OVERWRITE_OR_IGNORE)"
    )


def _decision_columns(table: Decisions, arms: tuple[str, ...]) -> str:
    """The decision log's columns: what a random phase knows; no model took part."""
    chances = ", ".join(f'"propensity of {arm}"' for arm in arms)
    index = f"(list_position([{', '.join(text(arm) for arm in arms)}], arm) - 1)::INTEGER"
    layer = "CASE WHEN holdout THEN 'holdout' ELSE 'exploration' END"
    salts = text(json.dumps({"holdout_share": table.holdout_share}))
    empty = ("campaign_hash", "policy_hash", "model_tag", "feature_service", "schema_hash")
    null = {"features": "VARCHAR", "feature_timestamp": "TIMESTAMPTZ", "uplift": "VARCHAR", "score": "DOUBLE"}
    null |= {"threshold": "DOUBLE", "segments": "VARCHAR", "experiment": "VARCHAR"}
    parts = [
        "decision_id, decision_id AS request_id, user_id, user_id AS cluster_id, decided_at",
        *(f"'' AS {name}" for name in empty),
        *(f"NULL::{kind} AS {name}" for name, kind in null.items()),
        f"{layer} AS layer, {layer} AS reason, {salts} AS salts, {index} AS arm",
        f"arm <> {text(arms[0])} AS eligible",
        f"[{chances}]::DOUBLE[] AS propensities, propensities[{index} + 1] AS propensity",
        "hour::INTEGER AS hour, surface",
    ]
    return ", ".join(parts)
