"""Feast's batch engine for one machine: `feast materialize-incremental` as a stream, in bounded memory.

Feast's own engine loads a view whole and makes a message object of every cell, view by view. Here the views of one
source are read once, by DuckDB under a memory limit, and written in batches as the bytes that Feast would have stored;
every batch is then counted in the store, and some of it is read back through Feast. Views that are not plain
selections from Parquet files, and other online stores, are left to Feast's own engine.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import duckdb
import numpy as np
import pyarrow as pa
from feast import FeatureView, RepoConfig
from feast.infra.common.materialization_job import MaterializationJob, MaterializationJobStatus, MaterializationTask
from feast.infra.compute_engines.base import ComputeEngine
from feast.infra.compute_engines.local.compute import LocalComputeEngine, LocalComputeEngineConfig
from feast.infra.compute_engines.local.job import LocalMaterializationJob
from feast.infra.key_encoding_utils import deserialize_entity_key
from feast.infra.online_stores.redis import RedisOnlineStore
from feast.infra.online_stores.sqlite import SqliteOnlineStore
from feast.infra.registry.base_registry import BaseRegistry

from campaign import StoreError
from feature_repo.duck import connect
from feature_repo.offline import is_parquet
from feature_repo.store import reading
from feature_repo.values import encode, entity_keys
from feature_repo.writers import Batch, Part, write_redis, write_sqlite

Wanted = tuple[FeatureView, int]
"""A view, and the start of its window in microseconds of the epoch."""

BATCH_ROWS = 5_000
READ_BACK = 3  # users of each batch read back whole, through Feast


class StreamingEngineConfig(LocalComputeEngineConfig):
    """`batch_engine` of feature_store.yaml."""

    type: Literal["feature_repo.engine.StreamingEngine"] = "feature_repo.engine.StreamingEngine"  # type: ignore[assignment]
    memory_limit: str = "1GB"
    """Of DuckDB; what does not fit is spilled to the temporary folder."""
    threads: int = 1


class StreamingEngine(LocalComputeEngine):
    """Materializes all views of a source together."""

    def __init__(self, memory_limit: str = "1GB", threads: int = 1, **settings: Any) -> None:
        super().__init__(**settings)
        self.duckdb_config: dict[str, Any] = {"memory_limit": memory_limit, "threads": threads}

    @property
    def supports_batch(self) -> bool:
        """All views come in one call."""
        return True

    def materialize(
        self, registry: BaseRegistry, tasks: MaterializationTask | list[MaterializationTask], **settings: Any
    ) -> list[MaterializationJob]:
        """Write the newest row of each key in each view's window; one job per task, in order."""
        tasks = tasks if isinstance(tasks, list) else [tasks]
        jobs: dict[int, MaterializationJob] = {}
        for group in _groups(tasks, self._streams):
            if self._streams(group[0]):
                error = self._stream(group)
                jobs |= {id(task): _job(task, error) for task in group}
            else:
                jobs |= {id(task): ComputeEngine.materialize(self, registry, task, **settings)[0] for task in group}
        return [jobs[id(task)] for task in tasks]

    def _streams(self, task: MaterializationTask) -> bool:
        view, online = task.feature_view, self.repo_config.online_store
        plain = type(view) is FeatureView and is_parquet(view.batch_source) and view.online and not view.offline
        search = getattr(online, "vector_enabled", False) or getattr(online, "enable_openai_compatible_store", False)
        known_store = type(self.online_store) in (RedisOnlineStore, SqliteOnlineStore)
        return plain and known_store and not search

    def _stream(self, tasks: list[MaterializationTask]) -> Exception | None:
        source: Any = tasks[0].feature_view.batch_source
        times = [source.timestamp_field, source.created_timestamp_column]
        wanted = [*source_columns(tasks).values(), *filter(None, times)]
        try:
            with (
                reading(source.path, wanted, "batch_engine"),
                tempfile.TemporaryDirectory(prefix="tactful-") as spill,
                connect(**self.duckdb_config, temp_directory=spill) as con,
            ):
                con.execute("SET TimeZone = 'UTC'")
                for rows in _newest(con, tasks, by_key=isinstance(self.online_store, SqliteOnlineStore)):
                    write(self.online_store, self.repo_config, rows, wanted_of(tasks))
        # The contract of a Feast engine: an error is part of the job, and Feast raises it.
        except Exception as error:  # noqa: BLE001
            return error
        return None


def write(online_store: Any, config: RepoConfig, rows: pa.RecordBatch, wanted: list[Wanted]) -> None:
    """Write a batch of rows into Redis or SQLite, count them there, and read some of them back through Feast.

    Raises: StoreError: the store does not hold what was written.
    """
    view = wanted[0][0]
    source: Any = view.batch_source
    names = [column.name for column in view.entity_columns]
    kinds = [column.dtype.to_value_type() for column in view.entity_columns]
    batch = Batch(
        keys=entity_keys([rows[name] for name in names], names, kinds, config.entity_key_serialization_version),
        event_us=_microseconds(rows["__at"]),
        created_us=_microseconds(rows["__created"]) if source.created_timestamp_column else None,
        columns=dict(zip(rows.schema.names, rows.columns, strict=True)),
    )
    parts: list[Part] = [(view, np.flatnonzero(batch.event_us >= start)) for view, start in wanted]
    writer: Any = write_redis if isinstance(online_store, RedisOnlineStore) else write_sqlite
    held = writer(online_store, config, batch, parts)
    for (written, positions), count in zip(parts, held, strict=True):
        if count != len(positions):
            raise StoreError(
                f"{written.name}: the online store holds {count} of the {len(positions)} users just written; "
                "look at its own log (memory limit, eviction), then materialize again"
            )
        _read_back(online_store, config, batch, written, positions[:READ_BACK])


def _read_back(online_store: Any, config: RepoConfig, batch: Batch, view: FeatureView, positions: np.ndarray) -> None:
    """What Feast itself reads must be what was written, where nothing newer was there before."""
    keys = [deserialize_entity_key(batch.keys[row]) for row in positions]
    if not keys:
        return
    answers = online_store.online_read(config, view, keys, [field.name for field in view.features])
    for row, (stamp, values) in zip(positions, answers, strict=True):
        if stamp is None or values is None:
            raise StoreError(f"{view.name}: {batch.keys[row]!r} was written and cannot be read; materialize again")
        if _epoch_us(stamp) // 1_000_000 > batch.event_us[row] // 1_000_000:
            continue
        for field in view.features:
            written = encode(batch.columns[field.name].slice(row, 1), field.dtype.to_value_type())[0]
            if values[field.name].SerializeToString() != written:
                raise StoreError(
                    f"{view.name}:{field.name} of {batch.keys[row]!r} reads {values[field.name]!r}, not what was "
                    "written; is another process writing to the same online store? Materialize again"
                )


def _groups(tasks: list[MaterializationTask], streams: Any) -> list[list[MaterializationTask]]:
    """Tasks that read the same rows: one source, key and end."""
    groups: list[list[MaterializationTask]] = []
    for task in tasks:
        view = task.feature_view
        group = next(
            (
                g
                for g in groups
                if streams(task)
                and streams(g[0])
                and g[0].feature_view.batch_source == view.batch_source
                and g[0].feature_view.join_keys == view.join_keys
                and g[0].end_time == task.end_time
            ),
            [],
        )
        if not group:
            groups.append(group)
        group.append(task)
    return groups


def _job(task: MaterializationTask, error: Exception | None) -> LocalMaterializationJob:
    status = MaterializationJobStatus.ERROR if error else MaterializationJobStatus.SUCCEEDED
    return LocalMaterializationJob(f"{task.feature_view.name}-{task.start_time}-{task.end_time}", status, error=error)


def _window(task: MaterializationTask) -> tuple[datetime, datetime]:
    """Event times to read, both ends included.

    Feast begins a first incremental run at the real clock minus the ttl, which for an end long past is after the end,
    and writes nothing without a word. What is good at the end is what happened up to one ttl before it.
    """
    start, end = task.start_time.astimezone(UTC), task.end_time.astimezone(UTC)
    ttl = task.feature_view.ttl or timedelta(weeks=52)
    if start > end and not task.feature_view.materialization_intervals:
        start = end - ttl
    return start, end


def _newest(con: duckdb.DuckDBPyConnection, tasks: list[MaterializationTask], by_key: bool) -> Iterator[pa.RecordBatch]:
    """The newest row of each key up to the end, in batches."""
    source: Any = tasks[0].feature_view.batch_source
    path = source.path.replace("'", "''")
    query = window_sql(tasks, f"read_parquet('{path}')")
    con.execute(f"CREATE TEMP VIEW in_window AS {query}")
    ((last,),) = con.execute(LAST_SQL).fetchall()
    if last is None:
        warn_of_nothing(tasks)
        return
    # SQLite keeps rows by key: in that order each page of its file is written once
    order = f"ORDER BY {', '.join(map(_name, tasks[0].feature_view.join_keys))}" if by_key else ""
    warn_of_expired(tasks, _epoch_us(last))
    for rows in newest_sql(tasks):
        reader: Any = con.sql(f"{rows} {order}", params={"last": last}).to_arrow_reader(BATCH_ROWS)
        yield from reader


LAST_SQL = "SELECT max(__at) FROM in_window"


def window_sql(tasks: list[MaterializationTask], table: str) -> str:
    """The query of the rows of a table that any of the views wants: keys, features, times; DuckDB's SQL."""
    view = tasks[0].feature_view
    source: Any = view.batch_source
    start, end = min(_window(task)[0] for task in tasks), tasks[0].end_time.astimezone(UTC)
    selected = ", ".join(f"{_name(stored)} AS {_name(column)}" for column, stored in source_columns(tasks).items())
    created = (
        f"{_name(source.created_timestamp_column)}::TIMESTAMPTZ"
        if source.created_timestamp_column
        else "NULL::TIMESTAMPTZ"
    )
    at = f"{_name(source.timestamp_field)}::TIMESTAMPTZ"
    between = f"BETWEEN '{start.isoformat()}'::TIMESTAMPTZ AND '{end.isoformat()}'::TIMESTAMPTZ"
    return f"SELECT {selected}, {at} AS __at, {created}::TIMESTAMPTZ AS __created FROM {table} WHERE {at} {between}"


def source_columns(tasks: list[MaterializationTask]) -> dict[str, str]:
    """Keys and features of the views, and what their source calls them."""
    view = tasks[0].feature_view
    source: Any = view.batch_source
    columns = dict.fromkeys([*view.join_keys, *(f.name for task in tasks for f in task.feature_view.features)])
    mapping = {new: old for old, new in source.field_mapping.items()}
    return {column: mapping.get(column, column) for column in columns}


def newest_sql(tasks: list[MaterializationTask]) -> tuple[str, str]:
    """Queries of the newest row of each key in `in_window`, given the last event time as `$last`; DuckDB's SQL.

    The rows of the last event time are the newest of their keys; with daily snapshots that is everybody, and the other
    days are read for their keys alone.
    """
    join_keys = tasks[0].feature_view.join_keys
    keys = ", ".join(_name(key) for key in join_keys)
    same = " AND ".join(f"latest.{_name(key)} IS NOT DISTINCT FROM in_window.{_name(key)}" for key in join_keys)
    newest = f"QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY __at DESC, __created DESC NULLS LAST) = 1"
    return (
        f"SELECT * FROM in_window WHERE __at = $last {newest}",
        f"""SELECT * FROM in_window WHERE __at < $last
            AND NOT EXISTS (SELECT 1 FROM in_window AS latest WHERE latest.__at = $last AND {same}) {newest}""",
    )


def warn_of_nothing(tasks: list[MaterializationTask]) -> None:
    """Say that a window holds no row, since nothing else will."""
    source: Any = tasks[0].feature_view.batch_source
    start, end = min(_window(task)[0] for task in tasks), tasks[0].end_time.astimezone(UTC)
    sys.stderr.write(
        f"warning: {source.path} has no row from {start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC, so nothing is "
        "written; for earlier days: feast materialize START END\n"
    )


def warn_of_expired(tasks: list[MaterializationTask], last: int) -> None:
    """Say which views get nothing, since the last row (microseconds of the epoch) was before their window began."""
    empty = [view.name for view, start in wanted_of(tasks) if start > last]
    if empty:
        day = datetime.fromtimestamp(last / 1e6, UTC)
        sys.stderr.write(
            f"warning: nothing is written for {', '.join(empty)}: the newest row, of {day:%Y-%m-%d}, is older than "
            "they may be; `tactful doctor` says what to do\n"
        )


def wanted_of(tasks: list[MaterializationTask]) -> list[Wanted]:
    """The views of the tasks, each with the start of its window."""
    return [(task.feature_view, _epoch_us(_window(task)[0])) for task in tasks]


def _name(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _epoch_us(moment: datetime) -> int:
    return (moment.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _microseconds(column: pa.Array) -> np.ndarray:
    return np.asarray(column.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy(zero_copy_only=False))
