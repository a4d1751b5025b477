"""Raw decision log to Parquet: every answered decision exactly once, whenever it is interrupted.

Each raw file becomes one Parquet file per date of decision, named after it and replaced as a whole on every run:
running again cannot double a row. A raw file is removed only when its writer is gone and its Parquet is on disk.
"""

from __future__ import annotations

import fcntl
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bentos.assignment import LAYERS
from bentos.raw_log import SUFFIX, read_lines, unpacked
from campaign import DataError
from feature_repo.atomic import replacing
from feature_repo.contracts import DECISIONS, REASONS

_TIME = pa.timestamp("us", tz="UTC")
_TYPES = {
    "timestamp": _TIME,
    "float": pa.float64(),
    "integer": pa.int32(),
    "boolean": pa.bool_(),
    "list<float>": pa.list_(pa.float64()),
}
SCHEMA = pa.schema([(name, _TYPES.get(column.kind, pa.string())) for name, column in DECISIONS.columns.items()])
ROWS_PER_WRITE = 10_000


@dataclass(frozen=True)
class Compaction:
    """What one run did.

    Args:
        files: raw files read.
        decisions: rows written, those of unfinished files (written again next time) included.
        finished: raw files removed.
        damaged: raw files with a damaged line, moved to `damaged/` beside the log; their other lines were kept.
    """

    files: int
    decisions: int
    finished: int
    damaged: tuple[Path, ...]


def compact(raw_dir: Path, decisions_dir: Path) -> Compaction:
    """Write the raw decision log as `decisions_dir/date=YYYY-MM-DD/service-*.parquet`. Idempotent, safe to kill.

    Files that a worker is still writing are compacted as far as they go, and again next time.

    Raises: DataError: another compaction is running.
    """
    if not raw_dir.exists():
        return Compaction(0, 0, 0, ())
    count, finished, damaged = 0, 0, []
    with _only_one(raw_dir):
        files = sorted(raw_dir.glob(f"*{SUFFIX}"))
        for path in files:
            with path.open("rb") as handle:
                # asked before reading: what is appended later by a living writer is read next time
                done = _try_lock(handle.fileno())
                rows, error = _compact_file(path, decisions_dir)
                count += rows
                if done and error:
                    damaged.append(_set_aside(path))
                elif done:
                    path.unlink()
                    finished += 1
    return Compaction(len(files), count, finished, tuple(damaged))


def read_decisions(path: Path, user_id: str | None = None) -> Iterator[dict[str, Any]]:
    """Decisions of one raw file (about one user) as rows of the decision log's columns, in the order they were made.

    Raises: DataError: a damaged line, after the rows before it.
    """
    contexts: dict[str, dict[str, Any]] = {}
    for line in read_lines(path):
        if line["kind"] == "context":
            contexts[line["id"]] = line
        elif user_id is None or user_id in line["users"]:
            rows = _rows(line, contexts[line["context"]])
            yield from (row for row in rows if user_id in (None, row["user_id"]))


def count_reasons(path: Path) -> Counter[str]:
    """Decisions per reason in one raw file (DataError: a damaged line)."""
    counts: Counter[str] = Counter()
    for line in read_lines(path):
        counts.update(REASONS[code] for code in line.get("reason", ()))
    return counts


def decided_on(day: date, raw_dir: Path, decisions_dir: Path) -> Counter[str]:
    """The service's decisions of a day by reason, compacted or not; damaged files, or gone by now, are left out."""
    counts: Counter[str] = Counter()
    raw = {path.stem for path in raw_dir.glob(f"{day}-*{SUFFIX}")}
    for stem in raw:
        with suppress(DataError, FileNotFoundError):
            counts += count_reasons(raw_dir / f"{stem}{SUFFIX}")
    for path in (decisions_dir / f"date={day}").glob("service-*.parquet"):
        if path.stem.removeprefix("service-") not in raw:  # else counted above, where there may be more by now
            counts.update(pq.read_table(path, columns=["reason"], partitioning=None).column(0).to_pylist())
    return counts


def _rows(line: dict[str, Any], context: dict[str, Any]) -> Iterator[dict[str, Any]]:
    n, arms, common = len(line["users"]), context["arms"], _common(line, context)
    uplift = unpacked(line["uplift"], n, len(arms) - 1, len(context["outcomes"]))
    score, chance = unpacked(line["score"], n), unpacked(line["propensities"], n, len(arms))
    features, enrolled = _features(line, context, n), line.get("enrolled") or [None] * n
    experiments = list(context["salts"].get("experiments", {}).items())
    asks = [(ask, k) for ask in line["asks"] for k in range(ask[1])]
    for i, ((request_id, _, hour, surface), k) in enumerate(asks):
        user, arm, known = line["users"][i], line["arm"][i], np.isfinite(score[i])
        values = features[i]
        yield common | {
            "decision_id": f"{request_id}-{k}",
            "request_id": request_id,
            "user_id": user,
            "features": _text(values) if values else None,
            "feature_timestamp": _time(line["timestamp"][i]) if values else None,
            "uplift": _text(_by_arm(uplift[i], context)) if known else None,
            "score": float(score[i]) if known else None,
            "layer": LAYERS[line["layer"][i]],
            "arm": arm,
            "propensity": float(chance[i, arm]),
            "propensities": chance[i].tolist(),
            "reason": REASONS[line["reason"][i]],
            "eligible": arm > 0,
            "hour": hour,
            "surface": surface,
            "experiment": _text(_enrolment(enrolled[i], experiments)) if enrolled[i] else None,
            "segments": _text({name: values.get(name) for name in context["segments"]}) if values else None,
            "cluster_id": user,
        }


def _common(line: dict[str, Any], context: dict[str, Any]) -> dict[str, Any]:
    """What all rows of a line share."""
    shared = ("campaign_hash", "policy_hash", "model_tag", "feature_service", "schema_hash", "threshold")
    return {key: context[key] for key in shared} | {
        "salts": _text(context["salts"]),
        "decided_at": datetime.fromisoformat(line["at"]),
    }


def _features(line: dict[str, Any], context: dict[str, Any], n: int) -> list[dict[str, Any]]:
    """Feature values by name of each row; empty where nothing was read."""
    if "numeric" not in line:
        return [{}] * n
    names = [*context["numeric"], *context["strings"]]
    numeric = unpacked(line["numeric"], n, len(context["numeric"]))
    known = [[None if v != v else v for v in row] for row in numeric.tolist()]
    return [
        dict(zip(names, [*values, *texts], strict=True)) if at else {}
        for values, texts, at in zip(known, line["strings"], line["timestamp"], strict=True)
    ]


def _enrolment(entry: list[Any], experiments: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """The champion's arm; for an enrolled user also whose variant it is, and the arm of every variant, by name."""
    if len(entry) == 1:
        return {"champion": entry[0]}
    champion, number, variant, arms = entry
    name, experiment = experiments[number]
    variants = list(experiment["variants"])
    return {
        "champion": champion,
        "name": name,
        "hash": experiment["hash"],
        "variant": variants[variant],
        "arms": dict(zip(variants, arms, strict=True)),
    }


def _by_arm(uplift: np.ndarray, context: dict[str, Any]) -> dict[str, dict[str, float]]:
    messages, outcomes = context["arms"][1:], context["outcomes"]
    return {arm: dict(zip(outcomes, row, strict=True)) for arm, row in zip(messages, uplift.tolist(), strict=True)}


def _text(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _time(microseconds: int) -> datetime | None:
    return datetime.fromtimestamp(microseconds / 1e6, UTC) if microseconds else None


def _compact_file(path: Path, decisions_dir: Path) -> tuple[int, DataError | None]:
    """Write one raw file's decisions; returns their number, and the error of a damaged line."""
    count, problem = 0, None
    with ExitStack() as stack:
        writers: dict[str, pq.ParquetWriter] = {}
        try:
            for rows in _chunks(read_decisions(path)):
                for day in sorted({row["decided_at"].date().isoformat() for row in rows}):
                    if day not in writers:
                        target = decisions_dir / f"date={day}" / f"service-{path.stem}.parquet"
                        aside = stack.enter_context(replacing(target))
                        writers[day] = stack.enter_context(pq.ParquetWriter(aside, SCHEMA))
                    mine = [row for row in rows if row["decided_at"].date().isoformat() == day]
                    writers[day].write_table(pa.Table.from_pylist(mine, SCHEMA))
                count += len(rows)
        except DataError as error:
            problem = error
    return count, problem


def _chunks(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Lists of at most ROWS_PER_WRITE rows; what came before an error is handed over first."""
    chunk: list[dict[str, Any]] = []
    iterator = iter(rows)
    while True:
        try:
            row = next(iterator, None)
        except DataError:
            if chunk:
                yield chunk
            raise
        if row is None:
            break
        chunk.append(row)
        if len(chunk) == ROWS_PER_WRITE:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _try_lock(handle: int) -> bool:
    """Whether the file's writer is gone."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _set_aside(path: Path) -> Path:
    target = path.parent / "damaged" / path.name
    target.parent.mkdir(exist_ok=True)
    path.rename(target)
    return target


@contextmanager
def _only_one(raw_dir: Path) -> Iterator[None]:
    with (raw_dir / ".compaction").open("w") as handle:
        if not _try_lock(handle.fileno()):
            raise DataError(f"{raw_dir}: another compaction is running; wait for it to end")
        yield
