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
from feast import FeatureView
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
from feature_repo.values import encode, entity_keys
from feature_repo.writers import Batch, Part, write_redis, write_sqlite

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
        try:
            with (
                tempfile.TemporaryDirectory(prefix="tactful-") as spill,
                connect(**self.duckdb_config, temp_directory=spill) as con,
            ):
                con.execute("SET TimeZone = 'UTC'")
                for rows in _newest(con, tasks):
                    self._write(rows, tasks)
        except duckdb.Error as error:
            source: Any = tasks[0].feature_view.batch_source
            reason = str(error).splitlines()[0]
            return StoreError(
                f"{source.path} cannot be read: {reason}; write its files anew with the columns of the views"
            )
        # The contract of a Feast engine: an error is part of the job, and Feast raises it.
        except Exception as error:  # noqa: BLE001
            return error
        return None

    def _write(self, rows: pa.RecordBatch, tasks: list[MaterializationTask]) -> None:
        view: FeatureView = tasks[0].feature_view
        source: Any = view.batch_source
        names = [column.name for column in view.entity_columns]
        kinds = [column.dtype.to_value_type() for column in view.entity_columns]
        version = self.repo_config.entity_key_serialization_version
        batch = Batch(
            keys=entity_keys([rows[name] for name in names], names, kinds, version),
            event_us=_microseconds(rows[source.timestamp_field]),
            created_us=_microseconds(rows["__created"]) if source.created_timestamp_column else None,
            columns=dict(zip(rows.schema.names, rows.columns, strict=True)),
        )
        parts: list[Part] = [
            (task.feature_view, np.flatnonzero(batch.event_us >= _epoch_us(_window(task)[0]))) for task in tasks
        ]
        if isinstance(self.online_store, RedisOnlineStore):
            held = write_redis(self.online_store, self.repo_config, batch, parts)
        elif isinstance(self.online_store, SqliteOnlineStore):
            held = write_sqlite(self.online_store, self.repo_config, batch, parts)
        for (written, positions), count in zip(parts, held, strict=True):
            if count != len(positions):
                raise StoreError(
                    f"{written.name}: the online store holds {count} of the {len(positions)} users just written; "
                    "look at its own log (memory limit, eviction), then materialize again"
                )
            self._read_back(batch, written, positions[:READ_BACK])

    def _read_back(self, batch: Batch, view: FeatureView, positions: np.ndarray) -> None:
        """What Feast itself reads must be what was written, where nothing newer was there before."""
        keys = [deserialize_entity_key(batch.keys[row]) for row in positions]
        if not keys:
            return
        answers = self.online_store.online_read(self.repo_config, view, keys, [field.name for field in view.features])
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


def _newest(con: duckdb.DuckDBPyConnection, tasks: list[MaterializationTask]) -> Iterator[pa.RecordBatch]:
    """The newest row of each key up to the end, in batches.

    The rows of the last event time are the newest of their keys; with daily snapshots that is everybody, and the other
    days are read for their keys alone.
    """
    view = tasks[0].feature_view
    source: Any = view.batch_source
    start, end = min(_window(task)[0] for task in tasks), tasks[0].end_time.astimezone(UTC)
    columns = dict.fromkeys([*view.join_keys, *(f.name for task in tasks for f in task.feature_view.features)])
    mapping = {new: old for old, new in source.field_mapping.items()}
    selected = ", ".join(f"{_name(mapping.get(column, column))} AS {_name(column)}" for column in columns)
    created = f"{_name(source.created_timestamp_column)}::TIMESTAMPTZ" if source.created_timestamp_column else "NULL"
    at = f"{_name(source.timestamp_field)}"
    path = source.path.replace("'", "''")
    con.execute(
        f"""CREATE TEMP VIEW rows AS SELECT {selected}, {at}::TIMESTAMPTZ AS {at}, {created} AS __created
        FROM read_parquet('{path}') WHERE {at}::TIMESTAMPTZ BETWEEN '{start.isoformat()}' AND '{end.isoformat()}'"""
    )
    keys = ", ".join(_name(key) for key in view.join_keys)
    same = " AND ".join(f"last.{_name(key)} IS NOT DISTINCT FROM rows.{_name(key)}" for key in view.join_keys)
    ((last,),) = con.execute(f"SELECT max({at}) FROM rows").fetchall()
    if last is None:
        sys.stderr.write(
            f"warning: {source.path} has no row from {start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC, so nothing is "
            "written; for earlier days: feast materialize START END\n"
        )
        return
    newest = f"QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY {at} DESC, __created DESC NULLS LAST) = 1"
    for rows in (
        f"SELECT * FROM rows WHERE {at} = $last {newest}",
        f"""SELECT * FROM rows WHERE {at} < $last
            AND NOT EXISTS (SELECT 1 FROM rows AS last WHERE last.{at} = $last AND {same}) {newest}""",
    ):
        reader: Any = con.sql(rows, params={"last": last}).to_arrow_reader(BATCH_ROWS)
        yield from reader


def _name(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _epoch_us(moment: datetime) -> int:
    return (moment.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _microseconds(column: pa.Array) -> np.ndarray:
    return np.asarray(column.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy(zero_copy_only=False))
