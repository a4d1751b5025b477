"""Features of a few users, now, from the online store.

Guards, each against a measured trap of Feast 0.67: names in the order of the schema (Feast's order depends on the hash
seed); expiry by the caller's clock (Feast serves expired values as PRESENT); unknown users by their missing timestamp
(Redis says PRESENT for them too).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from feature_repo.store import FeatureSchema, answering

if TYPE_CHECKING:
    from feast import FeatureStore

UNKNOWN_HOUR = -1
UNKNOWN_SURFACE = ""


@dataclass(frozen=True)
class OnlineRows:
    """Features of n users, in the order asked.

    `columns` has one array of shape (n,) for each name of the schema, in its order: float64 with NaN, or object with
    None. `status` is "ok", "unknown_user" or "stale_features"; `feature_timestamp` is that of the oldest view,
    datetime64[us], NaT for unknown users.
    """

    columns: dict[str, np.ndarray]
    status: np.ndarray
    feature_timestamp: np.ndarray


def online_features(
    store: FeatureStore,
    user_ids: Sequence[str],
    hour: int | None,
    surface: str | None,
    now: datetime,
    schema: FeatureSchema,
) -> OnlineRows:
    """Features of users for a decision taken `now`: what `historical_features` gives for that instant.

    Args:
        store: an applied feature store.
        user_ids: shape (n,).
        hour: hour of the request, 0-23 UTC; None where unknown.
        surface: surface of the request; None where unknown.
        now: the instant of the decision, with a time zone.
        schema: what to read, in which order, and how old it may be.

    Returns:
        One row for each user id. Features of an expired view are null, and their user is "stale_features".

    Raises:
        StoreError: the online store does not answer.
    """
    answer = _read(store, user_ids, hour, surface, schema)
    stamps = {view: np.array(answer[f"{name}__ts"], dtype="datetime64[s]") for name, view in schema.views.items()}
    missing = {view: stamp == np.datetime64(0, "s") for view, stamp in stamps.items()}
    expired = {schema.views[n]: _expired(stamps[schema.views[n]], days, now) for n, days in schema.ttl_days.items()}
    columns = {name: to_array(answer[name], schema.types[name]) for name in schema.names}
    for name, view in schema.views.items():
        columns[name][expired[view]] = np.nan if schema.types[name] == "numeric" else None
    known = ~np.all(list(missing.values()), axis=0)
    stale = np.any(list(expired.values()), axis=0)
    status = np.where(known, np.where(stale, "stale_features", "ok"), "unknown_user")
    dated = [np.where(missing[view], np.datetime64("NaT"), stamps[view]) for view in stamps]
    return OnlineRows(columns, status, np.fmin.reduce(dated).astype("datetime64[us]"))


def _expired(stamp: np.ndarray, ttl_days: float, now: datetime) -> np.ndarray:
    """A value is good up to and including event timestamp + ttl, as offline; a missing one (timestamp 0) never is."""
    oldest = np.datetime64(int((now - timedelta(days=ttl_days)).timestamp() * 1e6), "us")
    return np.asarray(stamp < oldest)


def _read(
    store: FeatureStore, user_ids: Sequence[str], hour: int | None, surface: str | None, schema: FeatureSchema
) -> dict[str, list[Any]]:
    """Values and event times (`<name>__ts`, in seconds, 0 when there is no row) by name, from Feast's public call."""
    n = len(user_ids)
    rows: dict[str, list[Any]] = {
        "user_id": list(user_ids),
        "hour": [UNKNOWN_HOUR if hour is None else hour] * n,
        "surface": [surface or UNKNOWN_SURFACE] * n,
    }
    with answering():
        response = store.get_online_features(features=store.get_feature_service(schema.service), entity_rows=rows)
    answer: dict[str, list[Any]] = response.to_dict(include_event_timestamps=True)
    return answer


def to_array(values: Iterable[Any], kind: str) -> np.ndarray:
    """Numbers as float64 with NaN, strings as objects with None."""
    if kind == "numeric":
        return np.array([np.nan if v is None else v for v in values], dtype=np.float64)
    return np.array([v if isinstance(v, str) else None for v in values], dtype=object)
