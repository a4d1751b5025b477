"""From the bytes that Feast stored to rows of features: what `online_features` gives, with fewer objects.

Feast answers with one protobuf message per value. Here the stored bytes of a batch are joined and read as one array: a
Float64 value is the byte 0x29 and eight bytes. What looks otherwise is read through its message, as Feast does it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from bentos.bundle import CODE, OK, Rows
from bentos.features import Ask
from feature_repo.online import UNKNOWN_HOUR, UNKNOWN_SURFACE
from feature_repo.retrieval import FeatureSchema

_DOUBLE = np.dtype([("tag", "u1"), ("value", "<f8")])
_TAG = b"\x29"
_CACHED = 4096  # distinct strings, timestamps and contexts remembered; forgotten all at once beyond
_MICROSECONDS_PER_DAY = 86_400_000_000

Request = Callable[[int, str], dict[str, Any]]
Stored = Sequence[bytes | None]


@dataclass(frozen=True)
class Layout:
    """Which stored values make a model's rows.

    Args:
        numeric, strings: the model's features, in its order.
        stored: (view, feature) of each stored value to read, numeric ones first.
        n_numbers: how many of `stored` are numeric.
        views: every view of the service, whose age decides about staleness.
        ttl: of each view, microseconds.
        request: features of the request by name, from hour and surface.
    """

    numeric: tuple[str, ...]
    strings: tuple[str, ...]
    stored: tuple[tuple[str, str], ...]
    n_numbers: int
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
            views,
            np.array([days[view] * _MICROSECONDS_PER_DAY for view in views]),
            request,
        )

    def columns_of(self, view: str) -> tuple[list[int], list[int]]:
        """Numeric and string columns, in the model's order, that a view fills."""
        mine = {name for of, name in self.stored if of == view}
        return [j for j, n in enumerate(self.numeric) if n in mine], [
            j for j, n in enumerate(self.strings) if n in mine
        ]


class Decoder:
    """Turns stored bytes into rows; remembers strings and contexts it has seen."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._texts: dict[bytes | None, str | None] = {None: None, b"": None}
        self._contexts: dict[tuple[int | None, str | None], tuple[tuple[bytes, ...], list[Any]]] = {}
        stored, n = [name for _, name in layout.stored], layout.n_numbers
        self._asked_numbers = [name for name in layout.numeric if name not in stored]
        self._asked_texts = [name for name in layout.strings if name not in stored]
        # where the model's features are among the stored ones and, behind them, those of the request
        numbers, texts = [*stored[:n], *self._asked_numbers], [*stored[n:], *self._asked_texts]
        self._number_at = np.array([numbers.index(name) for name in layout.numeric], dtype=np.int64)
        self._text_at = [texts.index(name) for name in layout.strings]

    def rows(self, asks: Sequence[Ask], stored: Sequence[Stored], stamps: np.ndarray, now: datetime) -> Rows:
        """Rows of a batch.

        Args:
            asks: the requests, n users in all.
            stored: n users' values in the order of `layout.stored`; what follows these is not looked at.
            stamps: int64 (n, n_views), event time in microseconds, whole seconds; 0 where there is no row.
            now: the instant of the decision.
        """
        layout, n = self.layout, len(stored)
        a, b = layout.n_numbers, len(layout.stored)
        contexts = [self._context(ask) for ask in asks for _ in ask.user_ids]
        numbers = [v or _NULL for row, (asked, _) in zip(stored, contexts, strict=True) for v in (*row[:a], *asked)]
        numeric = _numbers(numbers, n * len(layout.numeric)).reshape(n, -1).take(self._number_at, axis=1)
        texts = [[*map(self._text, row[a:b]), *asked] for row, (_, asked) in zip(stored, contexts, strict=True)]
        strings = np.array([[row[j] for j in self._text_at] for row in texts], dtype=object)
        expired = stamps < now.timestamp() * 1e6 - layout.ttl
        if np.count_nonzero(expired):
            return self._expire(numeric, strings, stamps, expired)
        return Rows(numeric, strings, np.full(n, OK), np.minimum.reduce(stamps, axis=1))

    def _expire(self, numeric: np.ndarray, strings: np.ndarray, stamps: np.ndarray, expired: np.ndarray) -> Rows:
        """Forget the values of expired views, as Feast does offline, and say of whom."""
        known = stamps.any(axis=1)
        status = np.where(known, np.where(expired.any(axis=1), CODE["stale_features"], OK), CODE["unknown_user"])
        for k, view in enumerate(self.layout.views):
            of_numbers, of_texts = self.layout.columns_of(view)
            rows = np.flatnonzero(expired[:, k])[:, None]
            numeric[rows, of_numbers] = np.nan
            strings[rows, of_texts] = None
        oldest = np.where(stamps > 0, stamps, np.iinfo(np.int64).max).min(axis=1)
        return Rows(numeric, strings, status, np.where(known, oldest, 0))

    def _context(self, ask: Ask) -> tuple[tuple[bytes, ...], list[Any]]:
        """Features of the request: numbers as if they were stored, side by side (none without any), and strings."""
        key = (ask.hour, ask.surface)
        if key not in self._contexts:
            make_room(self._contexts)
            found = self.layout.request(UNKNOWN_HOUR if ask.hour is None else ask.hour, ask.surface or UNKNOWN_SURFACE)
            numbers = b"".join([_double(found[name]) for name in self._asked_numbers])
            self._contexts[key] = (numbers,) if numbers else (), [found[name] for name in self._asked_texts]
        return self._contexts[key]

    def _text(self, stored: bytes | None) -> str | None:
        if stored not in self._texts:
            make_room(self._texts)
            value = _parsed(stored) if stored else None
            self._texts[stored] = value if isinstance(value, str) else None
        return self._texts[stored]


def make_room(cache: dict[Any, Any]) -> None:
    """Empty a cache that is full."""
    if len(cache) >= _CACHED:
        cache.clear()


def _numbers(stored: list[bytes], count: int) -> np.ndarray:
    """So many stored numbers as float64, NaN where there is none."""
    joined = b"".join(stored)
    if len(joined) != count * _DOUBLE.itemsize or joined[:: _DOUBLE.itemsize] != _TAG * count:
        # something is not a Float64: value by value, as Feast reads it
        joined = b"".join([v if v[:: _DOUBLE.itemsize].strip(_TAG) == b"" else _double(_parsed(v)) for v in stored])
    return np.frombuffer(joined, dtype=_DOUBLE)["value"]


def _double(value: Any) -> bytes:
    """A number as Feast stores it."""
    return _TAG + struct.pack("<d", np.nan if value is None else float(value))


_NULL = _double(None)


def _parsed(stored: bytes) -> Any:
    """One stored value through its protobuf message."""
    from feast.protos.feast.types.Value_pb2 import Value

    value = Value()
    value.ParseFromString(stored)
    kind = value.WhichOneof("val")
    return getattr(value, kind) if kind else None
