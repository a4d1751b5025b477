"""The raw decision log: appended before an answer leaves, one write per batch, one file per worker.

A line is the CRC-32 of its JSON in hex, a space, the JSON. Two kinds of line:

    context    what a run of decisions shares: model, hashes, salts, names of arms, outcomes and features
    batch      n decisions as columns (float arrays as base64 of little-endian float64), naming its context

A process that dies while writing leaves at most one torn line, the last; nothing in it was answered. A living writer
holds a lock on its file, so that `bentos.decision_log` knows which files are finished.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import zlib
from binascii import a2b_base64, b2a_base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydantic_core import to_json

from bentos.assignment import salts_of
from bentos.bundle import Bundle, Rows
from bentos.engine import Decisions
from campaign import Campaign, DataError, TactfulError

SUFFIX = ".log"
FORMAT = 1
_FLOAT = np.dtype("<f8")


class LogError(TactfulError):
    """The decision log cannot be written; nothing may be answered."""


@dataclass(frozen=True)
class Context:
    """A context line: its id and its encoded line, ready to write."""

    id: str
    line: bytes


def context_of(campaign: Campaign, bundle: Bundle | None, experiments: Mapping[str, Any] | None = None) -> Context:
    """What decisions of this campaign, model and set of experiments share; without a model its fields are empty."""
    values = {
        "campaign_hash": campaign.hash,
        "policy_hash": bundle.policy_hash if bundle else "",
        "model_tag": bundle.tag if bundle else "",
        "feature_service": bundle.feature_service if bundle else "",
        "schema_hash": bundle.schema_hash if bundle else "",
        "threshold": bundle.threshold if bundle else None,
        "arms": campaign.arm_names,
        "outcomes": campaign.outcome_names,
        "salts": salts_of(campaign.assignment) | ({"experiments": experiments} if experiments else {}),
        "segments": campaign.segments.columns,
        "numeric": bundle.numeric if bundle else (),
        "strings": bundle.strings if bundle else (),
    }
    key = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
    return Context(key, _line({"kind": "context", "format": FORMAT, "id": key, **values}))


def batch_line(
    context: Context,
    at: datetime,
    asks: Sequence[tuple[str, int, int | None, str | None]],
    user_ids: Sequence[str],
    decisions: Decisions,
    rows: Rows | None,
) -> bytes:
    """One encoded line of n decisions.

    Args:
        context: what they share.
        at: when they were decided, UTC.
        asks: (request id, number of users, hour, surface) of each request, in order.
        user_ids: n ids.
        decisions: n decisions.
        rows: their features; None when none were read.
    """
    line: dict[str, Any] = {
        "kind": "batch",
        "context": context.id,
        "at": at.isoformat(),
        "asks": asks,
        "users": user_ids,
        "layer": decisions.layer.tolist(),
        "arm": decisions.arm.tolist(),
        "reason": decisions.reason.tolist(),
        "uplift": packed(decisions.uplift),
        "score": packed(decisions.score),
        "propensities": packed(decisions.propensities),
    }
    if decisions.enrolled is not None:
        line["enrolled"] = decisions.enrolled
    if rows is not None:
        line["numeric"] = packed(rows.numeric)
        line["strings"] = rows.strings.tolist()
        line["timestamp"] = rows.timestamp.tolist()
    return _line(line)


def packed(array: np.ndarray) -> str:
    """Base64 of an array's little-endian float64 bytes, in C order."""
    return b2a_base64(np.asarray(array, dtype=_FLOAT).tobytes(), newline=False).decode()


def unpacked(text: str, *shape: int) -> np.ndarray:
    """The array of `packed`, in its shape."""
    return np.frombuffer(a2b_base64(text), dtype=_FLOAT).reshape(shape)


def _line(value: dict[str, Any]) -> bytes:
    body = to_json(value)
    return b"%08x %b\n" % (zlib.crc32(body), body)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a log file; a torn last line ends it silently, for nothing in it was answered.

    Raises: DataError: a line before the last is damaged (file and line number named), after the good ones before it.
    """
    with path.open("rb") as file:
        size, position = os.fstat(file.fileno()).st_size, 0
        for number, line in enumerate(file, start=1):
            position += len(line)
            body = line[9:-1]
            if line.endswith(b"\n") and line[:8] == b"%08x" % zlib.crc32(body):
                yield json.loads(body)
            elif position < size:
                raise DataError(
                    f"{path}: line {number} is damaged (its checksum differs); restore the file from a copy"
                )


class DecisionLog:
    """One worker's raw log: `append` returns once the system holds the line, or raises LogError.

    After a failed write the file is cut back to its last whole line; the next append tries again.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self.error: str | None = None
        self._handle: int | None = None
        self._size = 0
        self._refused = 0
        self._day = ""
        self._known: set[str] = set()

    def append(self, context: Context, line: bytes, day: str) -> None:
        """Write one line, its context before it where this file has not had it.

        Args:
            context: the context the line names.
            line: from `batch_line`.
            day: date of the decisions; a new day begins a new file.

        Raises: LogError: the folder or the file cannot be written (disk full, permissions).
        """
        try:
            handle = self._open(day)
            data = line if context.id in self._known else context.line + line
            self._refused = len(data)
            self._write(handle, data)
        except OSError as error:
            self.error = f"{self.folder}: cannot write the decision log: {error.strerror}"
            raise LogError(self.error) from None
        self._known.add(context.id)
        self.error = None

    def sync(self) -> None:
        """Wait until the disk holds what was appended (LogError: it does not)."""
        try:
            if self._handle is not None:
                os.fsync(self._handle)
        except OSError as error:
            self.error = f"{self.folder}: fsync of the decision log failed: {error.strerror}"
            raise LogError(self.error) from None

    def check(self, context: Context, day: str) -> bool:
        """Whether a line can be written now; after a failure, whether one as long as that which failed can."""
        if self.error is None and self._handle is not None:
            return True
        with contextlib.suppress(LogError, OSError):
            if self.error is not None:
                self._reserve(self._refused, day)
            self.append(context, context.line, day)
        return self.error is None

    def close(self) -> None:
        """Finish the file; compaction may then remove it."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _open(self, day: str) -> int:
        if self._handle is not None and (self._size >= self.max_bytes or day != self._day or _removed(self._handle)):
            self.close()
        while self._handle is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"{day}-{os.getpid()}-{os.urandom(4).hex()}{SUFFIX}"
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o640)
            fcntl.flock(handle, fcntl.LOCK_EX)
            # compaction may have removed the empty file between its creation and the lock
            if _removed(handle):
                os.close(handle)
            else:
                self._handle, self._size, self._day, self._known = handle, 0, day, set()
        return self._handle

    def _reserve(self, size: int, day: str) -> None:
        """Take that many bytes of the disk and give them back: a short line may fit where a batch does not."""
        handle = self._open(day)
        try:
            os.posix_fallocate(handle, self._size, max(size, 1))
        finally:
            os.ftruncate(handle, self._size)

    def _write(self, handle: int, data: bytes) -> None:
        written = 0
        try:
            while written < len(data):
                written += os.write(handle, data[written:])
        except OSError:
            # a torn line must stay the last one; if it cannot be cut off, the file is left for good
            try:
                os.ftruncate(handle, self._size)
            except OSError:
                self.close()
            raise
        self._size += written


def _removed(handle: int) -> bool:
    """Whether somebody removed the file: what is written to it would be lost."""
    return os.fstat(handle).st_nlink == 0
