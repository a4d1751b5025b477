"""Raw logs: when a row arrives, in which partition it lies, and how it is written.

About 3% of the rows arrive hours to three days late and about 0.5% arrive twice, as with real clients. A row is
written to the partition of the day on which it arrives, so a partition is closed when its day is over.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from simulator.draws import Ints, Key, uniform
from simulator.traits import AGE_BANDS, COUNTRIES, DAY, DEVICES, HOUR, PLANS, SECOND, SURFACES

TIMESTAMP = pa.timestamp("us", tz="UTC")
_STAMPS = [("event_timestamp", TIMESTAMP), ("created_timestamp", TIMESTAMP)]
SCHEMAS: dict[str, pa.Schema] = {
    "users": pa.schema(
        [("user_id", pa.string()), *_STAMPS, ("plan", pa.string()), ("country", pa.string()), ("device", pa.string()),
         ("age_band", pa.string()), ("signup_at", TIMESTAMP)]
    ),
    "sessions": pa.schema(
        [("session_id", pa.string()), ("user_id", pa.string()), *_STAMPS, ("minutes", pa.float64()),
         ("tracks", pa.int32()), ("skips", pa.int32()), ("ads", pa.int32()), ("surface", pa.string())]
    ),
    "messages": pa.schema(
        [("message_id", pa.string()), ("user_id", pa.string()), *_STAMPS, ("arm", pa.string()),
         ("format", pa.string()), ("action", pa.string())]
    ),
    "subscriptions": pa.schema(
        [("subscription_event_id", pa.string()), ("user_id", pa.string()), *_STAMPS, ("event", pa.string()),
         ("price", pa.float64())]
    ),
}  # fmt: skip

_IDS = {"session_id": "s", "message_id": "m", "subscription_event_id": "e"}
_CATEGORIES: dict[str, tuple[str, ...]] = {
    "plan": PLANS,
    "country": COUNTRIES,
    "device": DEVICES,
    "age_band": AGE_BANDS,
    "surface": SURFACES,
    "format": ("banner", "popup"),
    "action": ("none", "clicked", "dismissed"),
    "event": ("start", "renew", "cancel"),
}

LATE_SHARE = 0.03
DUPLICATE_SHARE = 0.005
_LATEST_DAYS = 3.0

Columns = dict[str, NDArray[Any]]


class Outbox:
    """Rows on their way to the logs, kept by log and day of arrival until that day is written."""

    def __init__(self, start: int, end: int) -> None:
        self.logs = tuple(SCHEMAS)
        self._start, self._end = start, end
        self._pending: dict[str, defaultdict[int, list[Columns]]] = {name: defaultdict(list) for name in SCHEMAS}

    def add(self, log: str, key: Key, ready: Ints, columns: Columns) -> None:
        """Send rows; those before the world's start or arriving at or after its end are dropped.

        Args:
            log: name of the log.
            key: one per row, decides delay and duplication.
            ready: instant at which each row could leave the client, shape (n,).
            columns: values by column, `event_timestamp` among them, in microseconds; integers code categories.
        """
        rows = np.flatnonzero(columns["event_timestamp"] >= self._start)
        created = arrival(key[rows], ready[rows])
        again = uniform(key[rows], "duplicate") < DUPLICATE_SHARE
        later = created[again] + (HOUR * 24 ** uniform(key[rows[again]], "duplicate/when")).astype(np.int64)
        rows, created = np.concatenate([rows, rows[again]]), np.concatenate([created, later])
        order = np.argsort(created, kind="stable")
        rows, created = rows[order], created[order]
        day = (created - self._start) // DAY
        days = range(int(day[0]), int(day[-1]) + 1) if len(day) else range(0)
        edges = np.searchsorted(day, [*days, days.stop])
        for d, lower, upper in zip(days, edges[:-1], edges[1:], strict=True):
            if lower < upper and self._start + d * DAY < self._end:
                part = {name: values[rows[lower:upper]] for name, values in columns.items()}
                self._pending[log][d].append(part | {"created_timestamp": created[lower:upper]})

    def take(self, log: str, day: int) -> Columns | None:
        """Remove and return the rows that arrive on a world day, by arrival; None when there are none."""
        parts = self._pending[log].pop(day, [])
        if not parts:
            return None
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        order = np.argsort(columns["created_timestamp"], kind="stable")
        return {name: values[order] for name, values in columns.items()}


def arrival(key: Key, ready: Ints) -> Ints:
    """Arrival instants: seconds after `ready`, for a few rows 2 hours to 3 days."""
    soon = (SECOND * (1 + 60 * uniform(key, "latency") ** 2)).astype(np.int64)
    late = (2 * HOUR * (_LATEST_DAYS * 12) ** uniform(key, "late/when")).astype(np.int64)
    return ready + np.where(uniform(key, "late") < LATE_SHARE, late, soon)


def write_log(
    root: Path, log: str, day: date, part: str, rows: Columns, ids: pa.Array, messages: tuple[str, ...]
) -> None:
    """Write one day's rows of a log under root/LOG/date=DAY/.

    Args:
        root: folder of the logs.
        log: name of the log.
        day: of arrival.
        part: name of the file, without suffix.
        rows: from `Outbox.take`.
        ids: user id of each row number in column `row`.
        messages: names of the message arms.
    """
    columns: dict[str, Any] = {name: values for name, values in rows.items() if name != "row"}
    columns["user_id"] = ids.take(pa.array(rows["row"]))
    for name, names in (_CATEGORIES | {"arm": messages}).items():
        if name in columns:
            columns[name] = labels(columns[name], names)
    for name, prefix in _IDS.items():
        if name in columns:
            columns[name] = numbered(prefix, columns[name])
    write_part(root / log, day, part, SCHEMAS[log], columns)


def write_part(folder: Path, day: date, part: str, schema: pa.Schema, columns: Mapping[str, Any]) -> None:
    """Write one Parquet file into folder/date=DAY/, whole or not at all."""
    write_table(folder / f"date={day}" / f"{part}.parquet", schema, columns)


def write_table(file: Path, schema: pa.Schema, columns: Mapping[str, Any]) -> None:
    """Write columns as one Parquet file, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.aside")
    arrays = [_array(columns[field.name], field.type) for field in schema]
    table = pa.Table.from_arrays(arrays, schema=schema)
    categories = [name for name in schema.names if name in _CATEGORIES]
    pq.write_table(table, aside, compression="zstd", use_dictionary=categories)  # ids would only fill dictionaries
    os.replace(aside, file)


def labels(codes: NDArray[Any], names: tuple[str, ...]) -> pa.Array:
    """String column from category codes; -1 is null."""
    return pa.array(names, pa.string()).take(pa.array(codes, pa.int64(), mask=codes < 0))


def numbered(prefix: str, numbers: NDArray[Any]) -> pa.Array:
    """String column `prefix` + number."""
    return pc.binary_join_element_wise(pa.scalar(prefix), pc.cast(pa.array(numbers), pa.string()), "")


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    return values if isinstance(values, pa.Array) else pa.array(values).cast(kind)
