"""A column of yours -> SQL that gives the value of ours, or null where it cannot be read. Nothing is guessed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from campaign import DataError
from feature_repo.checks import Column, Contract
from feature_repo.log_map import Source, Table, log_map_path

# a time outside is a wrong unit or format
OLDEST, NEWEST = "1900-01-01", "2100-01-01"
NUMBERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT")
SQL_TYPES = {
    "string": "VARCHAR",
    "timestamp": "TIMESTAMPTZ",
    "integer": "BIGINT",
    "float": "DOUBLE",
    "boolean": "BOOLEAN",
}


@dataclass(frozen=True)
class OwnFile:
    """One of your files, the contract that its rows should fit, and where each column of ours comes from."""

    path: Path
    name: str  # table of logs.toml
    table: Table
    contract: Contract
    sources: Mapping[str, Source]


def value_and_unread(column: Column, source: Source, found: str, table: Table) -> tuple[str, str]:
    """SQL of a value, and of the text that could not be read (null where it could)."""
    if source.value is not None:
        raw = text(source.value) if isinstance(source.value, str) else str(source.value)
        found = "VARCHAR" if isinstance(source.value, str) else "DOUBLE" if column.kind != "string" else "VARCHAR"
        raw = raw if found == "DOUBLE" or isinstance(source.value, str) else f"'{source.value}'"
    else:
        raw = identifier(source.column or "")
    if source.values or source.default is not None:
        if column.kind == "timestamp" and found != "VARCHAR" and source.values:
            told = f"values of {source.column!r}: it holds times, not words; leave `values` out"
            raise DataError(f"{log_map_path()}: {told}")
        raw, found = _mapped(raw, found, source), "VARCHAR" if source.values else found
    value = _typed(column, source, raw, found, table)
    return value, f"CASE WHEN ({value}) IS NULL THEN ({raw})::VARCHAR END"


def _mapped(raw: str, found: str, source: Source) -> str:
    if source.values:
        cases = " ".join(f"WHEN {text(theirs)} THEN {text(ours)}" for theirs, ours in source.values.items())
        raw = f"CASE {_plain(raw, found)} {cases} ELSE {_plain(raw, found)} END"
    return raw if source.default is None else f"coalesce({raw}, {text(source.default)})"


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
        us = f"epoch_us(try_strptime(({raw})::VARCHAR, {text(source.format)})::TIMESTAMPTZ)"
    else:
        us = f"epoch_us(TRY_CAST({raw} AS TIMESTAMPTZ))"
    plausible = f"({us}) BETWEEN epoch_us(TIMESTAMP '{OLDEST}') AND epoch_us(TIMESTAMP '{NEWEST}')"
    return f"CASE WHEN {plausible} THEN make_timestamptz({us}) END"


def skipped(column: Column, source: Source, found: str) -> str | None:
    """SQL of whether a time without a zone of its own is one that the clocks of the connection's zone jump over.

    None where no such time can be: numbers, and times that say their zone.
    """
    if column.kind != "timestamp" or source.column is None or source.unit is not None or "TIME ZONE" in found:
        return None
    raw = identifier(source.column)
    if source.format is not None:
        local = f"try_strptime(({raw})::VARCHAR, {text(source.format)})"
        if "%z" in source.format.lower():
            return None
    elif found == "VARCHAR":  # a letter or a sign behind the minutes is a zone
        local = f"CASE WHEN NOT regexp_matches({raw}, ':\\d\\d.*[A-Za-z+-]') THEN TRY_CAST({raw} AS TIMESTAMP) END"
    else:
        local = f"TRY_CAST({raw} AS TIMESTAMP)"
    return f"coalesce(({local})::TIMESTAMPTZ::TIMESTAMP <> {local}, false)"


def made_of_others(name: str, contract: Contract, given: set[str]) -> tuple[dict[str, str], list[str]]:
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
            made[column] = f"NULL::{SQL_TYPES[what.kind]}"
        else:
            missing.append(column)
    return made, missing


def text(value: Any) -> str:
    """An SQL string."""
    return "'" + str(value).replace("'", "''") + "'"


def identifier(column: str) -> str:
    """An SQL identifier."""
    return '"' + column.replace('"', '""') + '"'
