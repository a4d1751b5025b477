"""Features for training (as known at a past instant) and for scoring everybody (the newest snapshot).

Guards, each against a measured trap of Feast 0.67: a row id and a row count (engines drop or reorder rows);
filter_by_created_timestamp (else a later correction leaks into the past); only key, time and request columns are given
to Feast (a column named like a feature would be returned in its place).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from campaign import DataError, StoreError
from feature_repo.online import UNKNOWN_HOUR, UNKNOWN_SURFACE, OnlineRows, online_features
from feature_repo.store import (
    FeatureSchema,
    feature_schema,
    materialize,
    open_store,
    reading,
    snapshot_file,
    source_path,
)

if TYPE_CHECKING:
    from feast import FeatureStore

PART_ROWS = 250_000  # joined at once; a million took twice as long, since DuckDB then sorts on disk

__all__ = [
    "FeatureSchema",
    "OnlineRows",
    "feature_schema",
    "historical_features",
    "latest_features",
    "materialize",
    "online_features",
    "open_store",
]


def historical_features(store: FeatureStore, entity_frame: pd.DataFrame, service: str = "uplift_v1") -> pd.DataFrame:
    """Features as they were known at each row's `event_timestamp`.

    Args:
        store: an applied feature store.
        entity_frame: user_id (string), event_timestamp (UTC); optionally hour (0-23) and surface of the request, null
            where unknown; any other columns are kept.
        service: name of the feature service.

    Returns:
        The same rows in the same order: the columns given, then one column for each feature of the service.

    Raises:
        DataError: a column is missing, naive, null, or named like a feature.
        StoreError: a snapshot cannot be read or lacks a column, or Feast returned other rows than were asked for.
    """
    schema = feature_schema(store, service)
    rows = _entity_rows(entity_frame, schema)
    types = {"numeric": np.float64, "string": object}
    features = {name: np.empty(len(rows), types[kind]) for name, kind in schema.types.items()}
    asked_for = store.get_feature_service(service)
    stored = ["user_id", "event_timestamp", "created_timestamp", *schema.views]
    for asked in _by_user(rows):
        with reading(source_path(store), stored, "offline_store"):
            job = store.get_historical_features(entity_df=asked, features=asked_for, filter_by_created_timestamp=True)
            found = job.to_arrow()
        row_id = found["row_id"].to_numpy()
        if not np.array_equal(np.sort(row_id), asked["row_id"].to_numpy()):
            raise StoreError(
                f"Feast returned {len(found)} rows for {len(asked)} asked; check offline_store in feature_store.yaml"
            )
        for name, kind in schema.types.items():
            features[name][row_id] = _values(found, name, kind)
    return pd.concat([entity_frame, pd.DataFrame(features, index=entity_frame.index)], axis=1)


def _by_user(rows: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The rows in parts of about PART_ROWS, each of a range of users: what a join sorts at once does not grow."""
    users = rows["user_id"].to_numpy()
    some = np.sort(users[:: max(1, len(rows) // 10_000)])
    parts = -(-len(rows) // PART_ROWS)
    part = np.searchsorted([some[len(some) * n // parts] for n in range(1, parts)], users, side="right")
    return (rows[part == n] for n in range(parts) if (part == n).any())


def _entity_rows(frame: pd.DataFrame, schema: FeatureSchema) -> pd.DataFrame:
    """Row id, user, time and request: nothing else is Feast's business."""
    if frame.empty:
        raise DataError("entity_frame has 0 rows; nothing to look up")
    clash = [c for c in frame.columns if c in schema.types]
    if clash:
        raise DataError(f"entity_frame has columns named like features: {', '.join(clash)}; rename them")
    for name in ("user_id", "event_timestamp"):
        if name not in frame.columns:
            raise DataError(f"entity_frame has no column {name!r}; found {', '.join(map(str, frame.columns))}")
        if frame[name].isna().any():
            first = int(np.flatnonzero(frame[name].isna())[0])
            raise DataError(
                f"entity_frame column {name!r} must not be null: {frame[name].isna().sum()} rows are, first {first}"
            )
    if not isinstance(frame["event_timestamp"].dtype, pd.DatetimeTZDtype):
        raise DataError(
            f"entity_frame column 'event_timestamp' is {frame['event_timestamp'].dtype}, must be a time in UTC"
        )
    if not pd.api.types.is_string_dtype(frame["user_id"]):
        raise DataError(f"entity_frame column 'user_id' is {frame['user_id'].dtype}, must be strings")
    hour = frame.get("hour", pd.Series(np.nan, frame.index)).astype("float64").fillna(UNKNOWN_HOUR)
    surface = frame.get("surface", pd.Series(None, frame.index, dtype=object))
    return pd.DataFrame(
        {
            "row_id": np.arange(len(frame)),
            "user_id": frame["user_id"].to_numpy(dtype=object),
            "event_timestamp": frame["event_timestamp"].dt.tz_convert("UTC").dt.as_unit("us").array,
            "hour": hour.to_numpy(dtype=np.int64),
            "surface": surface.fillna(UNKNOWN_SURFACE).to_numpy(dtype=object),
        }
    )


def _values(table: pa.Table, name: str, kind: str) -> np.ndarray:
    """A column as `to_array` makes it of values."""
    wanted = pa.float64() if kind == "numeric" else pa.string()
    return table[name].cast(wanted, safe=False).to_numpy()  # type: ignore[no-any-return]


def latest_features(
    store: FeatureStore, day: date, service: str = "uplift_v1", batch_rows: int = 65_536
) -> Iterator[pa.RecordBatch]:
    """Features of every user in the snapshot of a day, in bounded memory.

    Yields:
        Batches of user_id, event_timestamp and the features of the service, ordered by user; those of the request are
        null.

    Raises:
        StoreError: there is no whole snapshot of that day with these features.
    """
    schema = feature_schema(store, service)
    wanted = pa.schema(
        [("user_id", pa.string()), ("event_timestamp", pa.timestamp("us", tz="UTC"))]
        + [(name, pa.float64() if schema.types[name] == "numeric" else pa.string()) for name in schema.names]
    )
    with pq.ParquetFile(snapshot_file(store, day, schema.views)) as file:
        stored = [f.name for f in wanted if f.name in file.schema_arrow.names]
        for batch in file.iter_batches(batch_rows, columns=stored):
            absent = pa.nulls(batch.num_rows)
            columns = [batch[f.name] if f.name in stored else absent for f in wanted]
            yield pa.RecordBatch.from_arrays(
                [c.cast(f.type) for c, f in zip(columns, wanted, strict=True)], schema=wanted
            )
