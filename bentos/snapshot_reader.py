"""Reads a day's snapshot instead of an online store: the same values, for a rehearsal that decides in process.

A snapshot is what `materialize` copies into the online store; a test compares both readers value by value.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from typing import TYPE_CHECKING

import numpy as np

from bentos.bulk import rows_of
from bentos.bundle import CODE, OK, Bundle, Rows
from bentos.features import Ask
from bentos.stores import request_features
from feature_repo.online import UNKNOWN_HOUR, UNKNOWN_SURFACE
from feature_repo.retrieval import FeatureSchema, latest_features

if TYPE_CHECKING:
    from feast import FeatureStore


class SnapshotReader:
    """Holds the features of every user of one day in memory.

    Args:
        store: an applied feature store.
        schema: of the model's feature service.
        bundle: whose features, in its order.
    """

    def __init__(self, store: FeatureStore, schema: FeatureSchema, bundle: Bundle) -> None:
        self.store, self.schema, self.bundle = store, schema, bundle
        self.day: date | None = None
        self._row: dict[str, int] = {}
        self._rows = Rows(np.empty((0, 0)), np.empty((0, 0), dtype=object), np.empty(0), np.empty(0))
        self._request = request_features(store, schema)

    def open(self, day: date) -> None:
        """Read the snapshot of a day (StoreError: there is none)."""
        parts, users = [], []
        for batch in latest_features(self.store, day, self.bundle.feature_service):
            parts.append(rows_of(batch, self.bundle, stale=False))
            users += batch["user_id"].to_pylist()
        self._rows = Rows(*(np.concatenate([getattr(p, f) for p in parts]) for f in Rows.__dataclass_fields__))
        self._row, self.day = {user: row for row, user in enumerate(users)}, day

    async def read(self, asks: Sequence[Ask], now: datetime) -> Rows:
        """Features of all users of the batch, in order; a user without a row is unknown."""
        return self.read_now(asks)

    def read_now(self, asks: Sequence[Ask]) -> Rows:
        """As `read`, for whoever does not wait."""
        at = np.array([self._row.get(user, -1) for ask in asks for user in ask.user_ids])
        known, rows = at >= 0, self._rows
        numeric, strings = rows.numeric[at], rows.strings[at]
        numeric[~known], strings[~known] = np.nan, None
        for name, values in self._of_request(asks).items():
            if name in self.bundle.numeric:
                numeric[:, self.bundle.numeric.index(name)] = [np.nan if v is None else v for v in values]
            else:
                strings[:, self.bundle.strings.index(name)] = values
        status = np.where(known, OK, CODE["unknown_user"])
        return Rows(numeric, strings, status, np.where(known, rows.timestamp[at], 0))

    def _of_request(self, asks: Sequence[Ask]) -> dict[str, list[object]]:
        """Features of the request by name, one value per user."""
        found: dict[str, list[object]] = {}
        for ask in asks:
            hour = UNKNOWN_HOUR if ask.hour is None else ask.hour
            for name, value in self._request(hour, ask.surface or UNKNOWN_SURFACE).items():
                if name not in self.schema.views and name in (*self.bundle.numeric, *self.bundle.strings):
                    found.setdefault(name, []).extend([value] * len(ask.user_ids))
        return found

    def close(self) -> None:
        """Nothing is held open."""
