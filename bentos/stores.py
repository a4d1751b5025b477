"""Fast reads of the Redis and SQLite online stores that Feast filled.

Keys and layout are Feast's own, and private to it: the version is pinned, a test compares every value with
`get_online_features`, and whatever looks unusual goes through `FeastReader`.
"""

from __future__ import annotations

import asyncio
import calendar
import os
import sqlite3
import struct
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from bentos.bundle import Rows
from bentos.decoding import Decoder, Layout, Request, make_room
from bentos.features import Ask, FeastReader, Reader
from bentos.redis_wire import RedisWire
from campaign import StoreError
from feature_repo.retrieval import FeatureSchema

if TYPE_CHECKING:
    from feast import FeatureStore

INLINE_USERS = 32
LOCKED_SECONDS = 0.2  # how long a read waits for a writer of the SQLite store


class RedisReader:
    """One HMGET per user, all in one write, on an own connection in the event loop: no thread, no client objects."""

    def __init__(self, layout: Layout, wire: RedisWire, project: str) -> None:
        from feast.infra.online_stores.helpers import _mmh3

        self.layout, self.wire, self.decoder = layout, wire, Decoder(layout)
        fields = [_mmh3(f"{view}:{name}") for view, name in layout.stored]
        fields += [f"_ts:{view}".encode() for view in layout.views]
        self._head = b"*%d\r\n$5\r\nHMGET\r\n" % (2 + len(fields))
        self._tail = b"".join(b"$%d\r\n%b\r\n" % (len(field), field) for field in fields)
        self._project = project.encode()
        self._stamps: dict[tuple[bytes | None, ...], list[int]] = {}

    async def read(self, asks: Sequence[Ask], now: datetime) -> Rows:
        """Features of all users of the batch, in order."""
        commands = []
        for ask in asks:
            for user in ask.user_ids:
                key = entity_key(user) + self._project
                commands.append(b"%b$%d\r\n%b\r\n%b" % (self._head, len(key), key, self._tail))
        replies = await self.wire.ask(b"".join(commands), len(commands))
        stored = len(self.layout.stored)
        stamps = np.array([self._times(tuple(reply[stored:])) for reply in replies], dtype=np.int64)
        return self.decoder.rows(asks, replies, stamps, now)

    def close(self) -> None:
        """Close the connection."""
        self.wire.close()

    def _times(self, stored: tuple[bytes | None, ...]) -> list[int]:
        """Microseconds of a user's stored times: nearly all users were written at one time, which is remembered."""
        if stored not in self._stamps:
            make_room(self._stamps)
            self._stamps[stored] = [_stamp(time) if time else 0 for time in stored]
        return self._stamps[stored]


def _stamp(stored: bytes) -> int:
    """Microseconds of a stored Timestamp, whole seconds as Feast answers them."""
    from google.protobuf.timestamp_pb2 import Timestamp

    value = Timestamp()
    value.ParseFromString(stored)
    return int(value.seconds * 1_000_000)


class SqliteReader:
    """One statement for all views and users of a batch, on read-only connections.

    A few users are read at once, in the event loop: a thread costs several times the read. Many users, or a store that
    is being written, are read in a thread.
    """

    def __init__(self, layout: Layout, path: str, project: str, seconds: float) -> None:
        self.layout, self.path, self.project, self.decoder = layout, path, project, Decoder(layout)
        self.seconds = seconds
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="features")
        self._connections: dict[float, tuple[sqlite3.Connection, int]] = {}
        self._place = {(layout.views.index(view), name): j for j, (view, name) in enumerate(layout.stored)}

    async def read(self, asks: Sequence[Ask], now: datetime) -> Rows:
        """Features of all users of the batch, in order."""
        keys = [entity_key(user) for ask in asks for user in ask.user_ids]
        distinct = list(dict.fromkeys(keys))
        await asyncio.sleep(0)  # let requests that have arrived meanwhile queue for the next batch
        try:
            found = self._query(distinct, 0.0) if len(distinct) <= INLINE_USERS else None
        except sqlite3.Error:  # locked by a writer, most likely: wait for it, elsewhere
            found = None
        if found is None:
            loop = asyncio.get_running_loop()
            try:
                async with asyncio.timeout(self.seconds):
                    found = await loop.run_in_executor(self.thread, self._query, distinct, LOCKED_SECONDS)
            except sqlite3.Error as error:
                raise StoreError(f"online store {self.path} does not answer: {error}") from error
        return self._rows(asks, keys, found, now)

    def _rows(
        self, asks: Sequence[Ask], keys: list[bytes], found: list[tuple[int, bytes, str, bytes, int]], now: datetime
    ) -> Rows:
        cells: dict[bytes, tuple[list[bytes | None], list[int]]] = {
            key: ([None] * len(self.layout.stored), [0] * len(self.layout.views)) for key in keys
        }
        for view, key, name, value, at in found:
            values, stamps = cells[key]
            stamps[view] = at
            place = self._place.get((view, name))
            if place is not None:
                values[place] = value
        parts = [cells[key] for key in keys]
        seconds = np.array([stamps for _, stamps in parts], dtype=np.int64)
        at_utc = np.where(seconds > 0, seconds + _local_offset(int(seconds.max())), 0) * 1_000_000
        return self.decoder.rows(asks, [values for values, _ in parts], at_utc, now)

    def _query(self, keys: list[bytes], patience: float) -> list[tuple[int, bytes, str, bytes, int]]:
        places = ",".join("?" * len(keys))
        parts = [
            f'SELECT {k}, entity_key, feature_name, value, event_ts FROM "{self.project}_{view}" '
            f"WHERE entity_key IN ({places})"
            for k, view in enumerate(self.layout.views)
        ]
        try:
            return self._connection(patience).execute(" UNION ALL ".join(parts), keys * len(parts)).fetchall()
        except sqlite3.Error:
            self._connections.pop(patience, None)
            raise

    def _connection(self, patience: float) -> sqlite3.Connection:
        """A connection that waits so long for a lock, in seconds; a store that was built anew is another file."""
        file = os.stat(self.path).st_ino
        connection, opened = self._connections.get(patience, (None, 0))
        if connection is None or opened != file:
            address = f"file:{quote(self.path)}?mode=ro"
            connection = sqlite3.connect(address, uri=True, timeout=patience, check_same_thread=False)
            self._connections[patience] = connection, file
        return connection

    def close(self) -> None:
        """Stop the thread once its read ends."""
        self.thread.shutdown(wait=False)


def entity_key(user_id: str) -> bytes:
    """Feast's key of a user, serialization version 3: one string join key `user_id`, one string value."""
    encoded = user_id.encode()
    return _KEY_HEAD + struct.pack("<I", len(encoded)) + encoded


# one key; type STRING (2), its length, its name; the value's type STRING
_KEY_HEAD = struct.pack("<III", 1, 2, len(b"user_id")) + b"user_id" + struct.pack("<I", 2)


def _local_offset(seconds: int) -> int:
    """Feast stores a UTC time in SQLite as if it were local time: the zone's offset, 0 where the system runs on UTC."""
    return calendar.timegm(time.localtime(seconds)) - seconds


def open_reader(
    store: FeatureStore, schema: FeatureSchema, numeric: Sequence[str], strings: Sequence[str], seconds: float = 1.0
) -> Reader:
    """The fastest reader that the store's settings allow; Feast's own call for everything unusual.

    Args:
        store: an applied feature store.
        schema: of the model's feature service.
        numeric: the model's numeric features, in its order.
        strings: its string features, likewise.
        seconds: time limit of a read.
    """
    config, online = store.config, store.config.online_store
    plain = (
        config.entity_key_serialization_version == 3
        and not config.registry.enable_online_feature_view_versioning
        and all(
            view.join_keys == ["user_id"] for view in store.list_feature_views() if view.name in schema.views.values()
        )
    )
    if plain and online.type == "sqlite":
        path = str((config.repo_path or Path()) / online.path)
        return SqliteReader(
            Layout.of(schema, numeric, strings, request_features(store, schema)), path, config.project, seconds
        )
    if plain and online.type == "redis" and online.redis_type == "redis" and online.client == "redis":
        wire = RedisWire.of(online.connection_string, seconds)
        if wire is not None:
            layout = Layout.of(schema, numeric, strings, request_features(store, schema))
            return RedisReader(layout, wire, config.project)
    return FeastReader(store, schema, numeric, strings, seconds)


def request_features(store: FeatureStore, schema: FeatureSchema) -> Request:
    """The service's on-demand views, called as Feast calls them: python mode, lists of one."""
    names = {projection.name for projection in store.get_feature_service(schema.service).feature_view_projections}
    views: list[Any] = [view for view in store.list_on_demand_feature_views() if view.name in names]

    def request(hour: int, surface: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for view in views:
            answer = view.feature_transformation.udf({"hour": [hour], "surface": [surface]})
            found |= {name: values[0] for name, values in answer.items()}
        return found

    return request
