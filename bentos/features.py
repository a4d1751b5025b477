"""Online reads: one at a time, for everybody who waits; in time or not at all.

`Coalescer` is the batching: what queued while the last batch ran is the next batch. No timer, so a lone request never
waits; no tuning. (BentoML's adaptive batching learns a wait under load and keeps it: 6.5 ms became 68 ms.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np

from bentos.bundle import CODE, OK, Rows
from feature_repo.retrieval import FeatureSchema, online_features

if TYPE_CHECKING:
    from feast import FeatureStore

T = TypeVar("T")
R = TypeVar("R")


class Busy(Exception):
    """More is waiting than may wait; try again later."""


class Coalescer(Generic[T, R]):
    """Runs `process` on lists of what was submitted, one list at a time.

    Args:
        process: items -> results, in order.
        size: size of an item.
        batch: a list stops growing at this size (one item may exceed it).
        limit: sizes that may wait in total; `submit` raises Busy beyond.
    """

    def __init__(
        self, process: Callable[[list[T]], Awaitable[list[R]]], size: Callable[[T], int], batch: int, limit: int
    ) -> None:
        self.process, self.size, self.batch, self.limit = process, size, batch, limit
        self.waiting: list[tuple[T, asyncio.Future[R]]] = []
        self.queued = 0
        self.running = False
        self._drainer: asyncio.Task[None] | None = None

    async def submit(self, item: T) -> R:
        """The result of one item."""
        if not self.running:
            self.running = True
            try:
                return (await self.process([item]))[0]
            finally:
                self._hand_over()
        if self.queued + self.size(item) > self.limit:
            raise Busy
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self.waiting.append((item, future))
        self.queued += self.size(item)
        return await future

    def _hand_over(self) -> None:
        """Whoever ran a batch leaves with its result; a task goes on with what queued meanwhile."""
        if self.waiting:
            self._drainer = asyncio.get_running_loop().create_task(self._drain())
        else:
            self.running = False

    async def _drain(self) -> None:
        while self.waiting:
            batch = self._next()
            try:
                results = await self.process([item for item, _ in batch])
            except Exception as error:  # noqa: BLE001 - handed to everybody who waits for it
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)
        self.running = False

    def _next(self) -> list[tuple[T, asyncio.Future[R]]]:
        taken, total = 1, self.size(self.waiting[0][0])
        while taken < len(self.waiting) and total + self.size(self.waiting[taken][0]) <= self.batch:
            total += self.size(self.waiting[taken][0])
            taken += 1
        batch, self.waiting = self.waiting[:taken], self.waiting[taken:]
        self.queued -= total
        return batch


@dataclass(frozen=True)
class Ask:
    """Users of one request, in one context."""

    request_id: str
    user_ids: list[str]
    hour: int | None = None
    surface: str | None = None


class Reader(Protocol):
    """Reads the features of a model for a batch of requests."""

    async def read(self, asks: Sequence[Ask], now: datetime) -> Rows:
        """Features of all users of the batch, in order.

        Raises: StoreError, OSError: the store does not answer. TimeoutError (an OSError): not within the time limit.
        """

    def close(self) -> None:
        """Let go of connections and threads."""


class FeastReader:
    """Reads through Feast's public call, in a thread; works with every online store Feast has."""

    def __init__(
        self,
        store: FeatureStore,
        schema: FeatureSchema,
        numeric: Sequence[str],
        strings: Sequence[str],
        seconds: float = 1.0,
    ) -> None:
        self.store, self.schema, self.numeric, self.strings, self.seconds = store, schema, numeric, strings, seconds
        # one thread: Feast's stores and their connections are not made for two at once
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="features")

    async def read(self, asks: Sequence[Ask], now: datetime) -> Rows:
        """One Feast call for each distinct context of the batch."""
        async with asyncio.timeout(self.seconds):
            return await asyncio.get_running_loop().run_in_executor(self.thread, self.read_now, asks, now)

    def read_now(self, asks: Sequence[Ask], now: datetime) -> Rows:
        """As `read`, in the calling thread."""
        return _concat([self._read_one(ask, now) for ask in asks])

    def _read_one(self, ask: Ask, now: datetime) -> Rows:
        found = online_features(self.store, ask.user_ids, ask.hour, ask.surface, now, self.schema)
        status = np.array([OK if s == "ok" else CODE[str(s)] for s in found.status], dtype=np.int64)
        at = found.feature_timestamp.astype("datetime64[us]").astype(np.int64)
        return Rows(
            _stack([found.columns[name] for name in self.numeric], len(status), np.float64),
            _stack([found.columns[name] for name in self.strings], len(status), object),
            status,
            np.where(np.isnat(found.feature_timestamp), 0, at),
        )

    def close(self) -> None:
        """Stop the thread once its read ends."""
        self.thread.shutdown(wait=False)


def no_rows(n: int, n_numeric: int, n_strings: int, reason: str) -> Rows:
    """Rows of n users whose features could not be read, all for one reason."""
    return Rows(
        np.full((n, n_numeric), np.nan),
        np.full((n, n_strings), None, dtype=object),
        np.full(n, CODE[reason]),
        np.zeros(n, dtype=np.int64),
    )


def _stack(columns: list[np.ndarray], n: int, dtype: Any) -> np.ndarray:
    return np.stack(columns, axis=1).astype(dtype) if columns else np.empty((n, 0), dtype=dtype)


def _concat(parts: list[Rows]) -> Rows:
    if len(parts) == 1:
        return parts[0]
    return Rows(*(np.concatenate([getattr(p, f) for p in parts]) for f in Rows.__dataclass_fields__))
