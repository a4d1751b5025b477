"""Fast reads of the Redis and SQLite online stores that Feast filled: what `online_features` gives, with fewer objects.

Feast answers with one protobuf message per value. Here the stored bytes of a batch are joined and read as one array: a
Float64 value is the byte 0x29 and eight bytes. Keys and layout are Feast's own, and private to it: the version is
pinned, a test compares every value with `get_online_features`, and whatever looks unusual goes through `FeastReader`.
"""

from __future__ import annotations

import asyncio
import calendar
import os
import sqlite3
import struct
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bentos.engine import CODE, OK, Rows
from bentos.features import Ask, FeastReader, Reader
from bentos.redis_wire import RedisWire
from campaign import StoreError
from feature_repo.online import UNKNOWN_HOUR, UNKNOWN_SURFACE
from feature_repo.retrieval import FeatureSchema

if TYPE_CHECKING:
    from feast import FeatureStore

_DOUBLE = np.dtype([("tag", "u1"), ("value", "<f8")])
_DOUBLE_TAG = 0x29
_NULL = bytes([_DOUBLE_TAG]) + struct.pack("<d", float("nan"))
_CACHED = 4096  # distinct strings, timestamps and contexts remembered; forgotten all at once beyond
INLINE_USERS = 32
LOCKED_SECONDS = 0.2  # how long a read waits for a writer of the SQLite store
_MICROSECONDS_PER_DAY = 86_400_000_000

Request = Callable[[int, str], dict[str, Any]]


@dataclass(frozen=True)
class Layout:
    """Which stored values make a model's rows.

    Args:
        numeric, strings: the model's features, in its order.
        stored: (view, feature) of each stored value to read, numeric ones first.
        n_numbers: how many of `stored` are numeric.
        number_at, string_at: where those go in the model's order.
        views: every view of the service, whose age decides about staleness.
        ttl: of each view, microseconds.
        request: features of the request by name, from hour and surface.
    """

    numeric: tuple[str, ...]
    strings: tuple[str, ...]
    stored: tuple[tuple[str, str], ...]
    n_numbers: int
    number_at: np.ndarray
    string_at: np.ndarray
    views: tuple[str, ...]
    ttl: np.ndarray
    request: Request

    @classmethod
    def of(cls, schema: FeatureSchema, numeric: Sequence[str], strings: Sequence[str], request: Request) -> Layout:
        """The layout of a model's features."""
        numbers = [name for name in numeric if name in schema.views]
        texts = [name for name in strings if name in schema.views]
        views = tuple(dict.fromkeys(schema.views.values()))
        days = {schema.views[name]: ttl for name, ttl in schema.ttl_days.items()}
        return cls(
            tuple(numeric),
            tuple(strings),
            tuple((schema.views[name], name) for name in (*numbers, *texts)),
            len(numbers),
            np.array([list(numeric).index(name) for name in numbers], dtype=np.int64),
            np.array([list(strings).index(name) for name in texts], dtype=np.int64),
            views,
            np.array([days[view] * _MICROSECONDS_PER_DAY for view in views]),
            request,
        )

    def columns_of(self, view: str) -> tuple[np.ndarray, np.ndarray]:
        """Numeric and string columns, in the model's order, that a view fills."""
        mine = np.array([v == view for v, _ in self.stored], dtype=bool)
        return self.number_at[mine[: self.n_numbers]], self.string_at[mine[self.n_numbers :]]


class Decoder:
    """Turns stored bytes into rows; remembers strings and contexts it has seen."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._texts: dict[bytes, str | None] = {}
        self._contexts: dict[tuple[int, str], tuple[list[Any], list[Any]]] = {}
        stored = {name for _, name in layout.stored}
        self._request_numeric = np.array([j for j, name in enumerate(layout.numeric) if name not in stored], dtype=int)
        self._request_strings = np.array([j for j, name in enumerate(layout.strings) if name not in stored], dtype=int)

    def rows(
        self,
        asks: Sequence[Ask],
        numbers: list[bytes | None],
        texts: list[bytes | None],
        stamps: np.ndarray,
        now: datetime,
    ) -> Rows:
        """Rows of a batch.

        Args:
            asks: the requests, n users in all.
            numbers: n * n_numbers stored values, user by user.
            texts: n * n_texts stored values, user by user.
            stamps: int64 (n, n_views), event time in microseconds, whole seconds; 0 where there is no row.
            now: the instant of the decision.
        """
        layout, n = self.layout, len(stamps)
        # every column is filled: from the store, or from the request
        numeric = np.empty((n, len(layout.numeric)))
        numeric[:, layout.number_at] = _numbers(numbers).reshape(n, layout.n_numbers)
        strings = np.empty((n, len(layout.strings)), dtype=object)
        if texts:
            strings[:, layout.string_at] = np.array([self._text(t) for t in texts], dtype=object).reshape(n, -1)
        self._fill_request(asks, numeric, strings)
        expired = stamps < now.timestamp() * 1e6 - layout.ttl
        if not expired.any():
            return Rows(numeric, strings, np.full(n, OK), stamps.min(axis=1))
        known = stamps.any(axis=1)
        status = np.where(known, np.where(expired.any(axis=1), CODE["stale_features"], OK), CODE["unknown_user"])
        for k, view in enumerate(layout.views):
            of_numbers, of_texts = layout.columns_of(view)
            rows = np.flatnonzero(expired[:, k])[:, None]
            numeric[rows, of_numbers] = np.nan
            strings[rows, of_texts] = None
        oldest = np.where(stamps > 0, stamps, np.iinfo(np.int64).max).min(axis=1)
        return Rows(numeric, strings, status, np.where(known, oldest, 0))

    def _fill_request(self, asks: Sequence[Ask], numeric: np.ndarray, strings: np.ndarray) -> None:
        start = 0
        for ask in asks:
            stop = start + len(ask.user_ids)
            key = (UNKNOWN_HOUR if ask.hour is None else ask.hour, ask.surface or UNKNOWN_SURFACE)
            if key not in self._contexts:
                _make_room(self._contexts)
                found = self.layout.request(*key)
                values = [found[self.layout.numeric[j]] for j in self._request_numeric]
                texts = [found[self.layout.strings[j]] for j in self._request_strings]
                self._contexts[key] = [np.nan if v is None else v for v in values], texts
            values, texts = self._contexts[key]
            if len(values):
                numeric[start:stop, self._request_numeric] = values
            if len(texts):
                strings[start:stop, self._request_strings] = texts
            start = stop

    def _text(self, stored: bytes | None) -> str | None:
        if not stored:
            return None
        if stored not in self._texts:
            _make_room(self._texts)
            value = _parsed(stored)
            self._texts[stored] = value if isinstance(value, str) else None
        return self._texts[stored]


def _numbers(stored: list[bytes | None]) -> np.ndarray:
    """Stored numbers as float64, NaN where there is none."""
    joined = b"".join([s or _NULL for s in stored])
    if len(joined) == len(stored) * _DOUBLE.itemsize:
        found = np.frombuffer(joined, dtype=_DOUBLE)
        if (found["tag"] == _DOUBLE_TAG).all():
            return np.asarray(found["value"])
    # something is not a Float64: value by value, as Feast reads it
    values = [_parsed(s) if s else None for s in stored]
    return np.array([np.nan if v is None else float(v) for v in values])


def _parsed(stored: bytes) -> Any:
    """One stored value through its protobuf message."""
    from feast.protos.feast.types.Value_pb2 import Value

    value = Value()
    value.ParseFromString(stored)
    kind = value.WhichOneof("val")
    return getattr(value, kind) if kind else None


def _make_room(cache: dict[Any, Any]) -> None:
    if len(cache) >= _CACHED:
        cache.clear()


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
        a, b = self.layout.n_numbers, len(self.layout.stored)
        numbers = [value for reply in replies for value in reply[:a]]
        texts = [value for reply in replies for value in reply[a:b]]
        stamps = np.array([self._times(tuple(reply[b:])) for reply in replies], dtype=np.int64)
        return self.decoder.rows(asks, numbers, texts, stamps, now)

    def close(self) -> None:
        """Close the connection."""
        self.wire.close()

    def _times(self, stored: tuple[bytes | None, ...]) -> list[int]:
        """Microseconds of a user's stored times: nearly all users were written at one time, which is remembered."""
        if stored not in self._stamps:
            _make_room(self._stamps)
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
        n = layout.n_numbers
        self._column = {(layout.views.index(view), name): j for j, (view, name) in enumerate(layout.stored[:n])}
        self._text_column = {(layout.views.index(view), name): j for j, (view, name) in enumerate(layout.stored[n:])}

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
        n_numbers, n_texts = self.layout.n_numbers, len(self.layout.stored) - self.layout.n_numbers
        cells: dict[bytes, tuple[list[bytes | None], list[bytes | None], list[int]]] = {
            key: ([None] * n_numbers, [None] * n_texts, [0] * len(self.layout.views)) for key in keys
        }
        for view, key, name, value, at in found:
            numbers, texts, stamps = cells[key]
            stamps[view] = at
            if (view, name) in self._column:
                numbers[self._column[view, name]] = value
            elif (view, name) in self._text_column:
                texts[self._text_column[view, name]] = value
        parts = [cells[key] for key in keys]
        seconds = np.array([part[2] for part in parts], dtype=np.int64)
        return self.decoder.rows(
            asks,
            [value for part in parts for value in part[0]],
            [value for part in parts for value in part[1]],
            np.where(seconds > 0, seconds + _local_offset(int(seconds.max())), 0) * 1_000_000,
            now,
        )

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
            address = f"file:{self.path}?mode=ro"
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
