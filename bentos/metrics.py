"""What Prometheus sees. Every label has a fixed set of values, so that no caller can make it grow.

Counting one batch takes about as long as deciding about one user, counting many in a row a fifth of that each: batches
wait until there are KEPT of them, half a second has passed (`bentos.worker`), or somebody asks this process.
"""

from __future__ import annotations

import os
from collections import Counter as Tally
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from bentos.engine import Decisions
from feature_repo.contracts import REASONS

KEPT = 32
SCORES_PER_BATCH = 8  # a sample

DECISIONS = Counter("tactful_decisions", "Users decided about.", ["reason", "arm"])
REQUESTS = Counter("tactful_requests", "Requests to /decide by status code.", ["status"])
FEATURE_ERRORS = Counter("tactful_feature_read_errors", "Reads of features that failed or came too late.")
SWAPS = Counter("tactful_model_loads", "Loads of a champion.", ["outcome"])
SCORE = Histogram(
    "tactful_score",
    "Score of the best message, money per user and window; a sample.",
    buckets=[-2.0, -1.0, -0.5, -0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0],
)
BATCH = Histogram(
    "tactful_batch_users", "Users in a coalesced batch.", buckets=[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
)
READ = Histogram(
    "tactful_feature_read_seconds",
    "Time to read the features of a batch.",
    buckets=[0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0],
)
LOG_WRITE = Histogram(
    "tactful_log_write_seconds",
    "Time to write the decisions of a batch to the log; answers wait for it.",
    buckets=[0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.005, 0.02, 0.1, 1.0],
)
FEATURE_AGE = Gauge(
    "tactful_feature_age_seconds", "Age of the oldest feature in the last batch.", multiprocess_mode="mostrecent"
)
DATA_UNTIL = Gauge(
    "tactful_model_data_until_seconds",
    "End of the data that the serving model learned from, seconds since 1970; time() minus it is the model's age.",
    multiprocess_mode="mostrecent",
)
LOADED = Gauge("tactful_model_loaded", "1 while this worker has a model.", multiprocess_mode="livemin")
PENDING = Gauge("tactful_model_pending", "1 while the champion could not be loaded.", multiprocess_mode="livemax")


class Batch(NamedTuple):
    """What is counted of a batch.

    Args:
        decisions: n decisions.
        arms: names of the arms.
        at: when they were decided, seconds since 1970.
        timestamp: event time of each user's oldest feature, microseconds, 0 = none; None when none were read.
        read_seconds: how long the read of features took; None when it failed.
        write_seconds: how long the log took.
    """

    decisions: Decisions
    arms: Sequence[str]
    at: float
    timestamp: np.ndarray | None
    read_seconds: float | None
    write_seconds: float


_batches: list[Batch] = []
_statuses: Tally[int] = Tally()


def answered(status: int) -> None:
    """Note the status of an answer to /decide."""
    _statuses[status] += 1


def observe(batch: Batch) -> None:
    """Note a batch; from the event loop only, as `flush`."""
    _batches.append(batch)
    if len(_batches) >= KEPT:
        flush()


def flush() -> None:
    """Count what was noted."""
    tally: Tally[tuple[int, str]] = Tally()
    for batch in _batches:
        _observe(batch)
        arms = [batch.arms[arm] for arm in batch.decisions.arm.tolist()]
        tally.update(zip(batch.decisions.reason.tolist(), arms, strict=True))
    if _batches and (last := _batches[-1]).timestamp is not None and last.timestamp.any():
        FEATURE_AGE.set(last.at - last.timestamp[last.timestamp > 0].min() / 1e6)
    for (reason, arm), count in tally.items():
        DECISIONS.labels(REASONS[reason], arm).inc(count)
    for status, count in _statuses.items():
        REQUESTS.labels(status).inc(count)
    _batches.clear()
    _statuses.clear()


def _observe(batch: Batch) -> None:
    BATCH.observe(len(batch.decisions.arm))
    LOG_WRITE.observe(batch.write_seconds)
    if batch.read_seconds is not None:
        READ.observe(batch.read_seconds)
    for score in batch.decisions.score[:SCORES_PER_BATCH].tolist():
        if score == score:
            SCORE.observe(score)


def exposition() -> bytes:
    """All workers' metrics in Prometheus' text format."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return bytes(generate_latest())
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return bytes(generate_latest(registry))
