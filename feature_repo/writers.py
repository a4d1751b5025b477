"""Writing a batch of users into Feast's Redis or SQLite online store, in the stores' own layout, and counting it there.

Both never go back in time: a row older than what is stored is left out, view by view. A row of the same event time is
written again, so a correction arrives (Feast's Redis store drops it).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
from feast import FeatureView, RepoConfig
from feast.infra.online_stores.helpers import _mmh3, compute_versioned_name
from feast.infra.online_stores.redis import RedisOnlineStore
from feast.infra.online_stores.sqlite import SqliteOnlineStore, _quote_id, _table_id
from feast.value_type import ValueType
from google.protobuf.timestamp_pb2 import Timestamp

from feature_repo.values import as_text, encode

_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  # naive, as Feast stores it


@dataclass(frozen=True)
class Batch:
    """Rows of one or more views with the same key.

    `keys` are serialized entity keys, no two the same; `event_us` and `created_us` have shape (n,), microseconds of the
    epoch (created: None where the source has no such column); `columns` holds the features by name.
    """

    keys: list[bytes]
    event_us: np.ndarray
    created_us: np.ndarray | None
    columns: dict[str, pa.Array]


Part = tuple[FeatureView, np.ndarray]
"""A view, and the positions of the rows of the batch that are in its window."""


def _kinds(view: FeatureView) -> list[tuple[str, ValueType]]:
    return [(field.name, field.dtype.to_value_type()) for field in view.features]


def write_redis(store: RedisOnlineStore, config: RepoConfig, batch: Batch, parts: list[Part]) -> list[int]:
    """One HSET per user for all views.

    Returns:
        For each part how many of its rows the store holds afterwards, at their event time or a later one.
    """
    client: Any = store._get_client(config.online_store)
    versioned = config.registry.enable_online_feature_view_versioning
    names = [compute_versioned_name(view, versioned) for view, _ in parts]
    stamp_fields = [f"_ts:{name}".encode() for name in names]
    keys = [key + config.project.encode() for key in batch.keys]
    before = _stored_us(client, keys, stamp_fields)
    arguments: list[list[bytes]] = [[] for _ in keys]
    stamps = _stamps(batch.event_us)
    for (view, rows), name, stamp_field, stored in zip(parts, names, stamp_fields, before, strict=True):
        fresh = rows[batch.event_us[rows] >= stored[rows]]
        fields = [(stamp_field, stamps)]
        fields += [(_mmh3(f"{name}:{feature}"), encode(batch.columns[feature], kind)) for feature, kind in _kinds(view)]
        for row in fresh:
            arguments[row] += [part for field, cells in fields for part in (field, cells[row])]
    with client.pipeline(transaction=False) as pipe:
        for key, words in zip(keys, arguments, strict=True):
            if words:
                pipe.execute_command("HSET", key, *words)
                if config.online_store.key_ttl_seconds:
                    pipe.expire(key, config.online_store.key_ttl_seconds)
        pipe.execute()
    after = _stored_us(client, keys, stamp_fields)
    return [int((stored[rows] >= batch.event_us[rows]).sum()) for (_, rows), stored in zip(parts, after, strict=True)]


def _stored_us(client: Any, keys: list[bytes], fields: list[bytes]) -> list[np.ndarray]:
    """Event time of each view and key in Redis, microseconds; far in the past where there is none."""
    with client.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.execute_command("HMGET", key, *fields)
        answers = pipe.execute()
    known: dict[bytes | None, int] = {None: np.iinfo(np.int64).min}
    for stamp in {stamp for answer in answers for stamp in answer} - {None}:
        parsed = Timestamp.FromString(stamp)
        known[stamp] = parsed.seconds * 1_000_000 + parsed.nanos // 1000
    return [np.array([known[answer[i]] for answer in answers], dtype=np.int64) for i in range(len(fields))]


def _stamps(event_us: np.ndarray) -> np.ndarray:
    distinct, index = np.unique(event_us, return_inverse=True)
    made = [Timestamp(seconds=int(us // 1_000_000), nanos=int(us % 1_000_000) * 1000) for us in distinct]
    return np.array([stamp.SerializeToString() for stamp in made], dtype=object)[index]


def write_sqlite(store: SqliteOnlineStore, config: RepoConfig, batch: Batch, parts: list[Part]) -> list[int]:
    """One row per user and feature, one transaction for the batch.

    Returns:
        For each part how many of its users the store holds afterwards with every feature, at their event time or later.
    """
    db = store._get_conn(config)
    event = _local_seconds(batch.event_us)
    created = np.full(len(event), None) if batch.created_us is None else _local_seconds(batch.created_us)
    db.execute("PRAGMA cache_size = -65536")  # KiB; the default of 2 MB writes every page many times
    held = []
    with db:
        for view, rows in parts:
            table = _quote_id(_table_id(config.project, view, config.registry.enable_online_feature_view_versioning))
            kinds = sorted(_kinds(view))  # as in the primary key
            db.executemany(
                _upsert(table, [name for name, _ in kinds]), _sqlite_rows(batch, kinds, rows, event, created)
            )
    for view, rows in parts:
        table = _quote_id(_table_id(config.project, view, config.registry.enable_online_feature_view_versioning))
        held.append(_count_sqlite(db, table, [batch.keys[row] for row in rows], event[rows], len(view.features)))
    return held


_VARIABLES = 5000  # of one SQLite statement; the limit is 32,766


def _upsert(table: str, features: list[str]) -> str:
    """All features of a user in one statement; parameters: key, event time, created time, then value, text, ..."""
    rows = (f"(?1, {_quote_text(name)}, ?{2 * i + 4}, ?{2 * i + 5}, ?2, ?3)" for i, name in enumerate(features))
    return f"""
        INSERT INTO {table} (entity_key, feature_name, value, value_text, event_ts, created_ts) VALUES {", ".join(rows)}
        ON CONFLICT (entity_key, feature_name) DO UPDATE SET value = excluded.value, value_text = excluded.value_text,
            event_ts = excluded.event_ts, created_ts = excluded.created_ts WHERE excluded.event_ts >= event_ts"""


def _quote_text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _sqlite_rows(
    batch: Batch, kinds: list[tuple[str, ValueType]], rows: np.ndarray, event: np.ndarray, created: np.ndarray
) -> Iterator[tuple[Any, ...]]:
    """Parameters of `_upsert` for each user, in the order of the primary key: each page of the table is met once."""
    ordered = np.array(sorted(rows.tolist(), key=batch.keys.__getitem__), dtype=np.int64)
    columns: list[Any] = [[batch.keys[row] for row in ordered], event[ordered], created[ordered]]
    for name, kind in kinds:
        columns += [encode(batch.columns[name], kind)[ordered], as_text(batch.columns[name], kind)[ordered]]
    return zip(*columns, strict=True)


def _local_seconds(microseconds: np.ndarray) -> np.ndarray:
    """Times as Feast's SQLite store writes them: the UTC clock read as if it were the machine's, in whole seconds."""
    distinct, index = np.unique(microseconds, return_inverse=True)
    local = [int((_EPOCH + timedelta(microseconds=int(us))).timestamp()) for us in distinct]
    return np.array(local, dtype=object)[index]


def _count_sqlite(db: Any, table: str, keys: list[bytes], event: np.ndarray, features: int) -> int:
    """Users of `keys` that have every feature, none of them older than `event`."""
    due = dict(zip(keys, event, strict=True))
    held = 0
    for start in range(0, len(keys), _VARIABLES):
        some = keys[start : start + _VARIABLES]
        # Plain integers: the column is declared a timestamp, which Python would parse.
        query = f"""SELECT entity_key, count(*), min(event_ts) + 0 FROM {table}
            WHERE entity_key IN ({",".join("?" * len(some))}) GROUP BY entity_key"""
        held += sum(count == features and at >= due[key] for key, count, at in db.execute(query, some))
    return held
