"""The raw log files: where they lie, when they arrived, and which of them changed after something was built from them.

logs/<table>/date=YYYY-MM-DD/*.parquet    `date` is the UTC date of arrival
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import date, timedelta
from pathlib import Path

from campaign import DataError
from feature_repo import aggregates
from feature_repo.atomic import write_json

Stamp = list[int]
"""Size in bytes and time of modification in nanoseconds: what tells a file from its successor."""

STATE = ".built_from.json"

# How far a file that arrived on day P reaches: into snapshots of (P, P + this many days]. Profiles and subscriptions
# are remembered for ever.
_REACH = timedelta(days=aggregates.LOOKBACK_DAYS + aggregates.CORRECTION_DAYS + 2)
_REACHES = {"sessions": _REACH, "messages": _REACH}


def log_files(folder: Path) -> list[Path]:
    """The files of one table in order; hidden ones, which another program may still be writing, are left out.

    Raises: DataError: a folder `date=...` that is no date.
    """
    files = sorted(p for p in folder.glob("date=*/*.parquet") if p.name[0] not in "._")
    for parent in dict.fromkeys(path.parent for path in files):
        arrival(parent)
    return files


def arrival(partition: Path) -> date:
    """The date of a folder `date=YYYY-MM-DD` (DataError: it is none)."""
    try:
        return date.fromisoformat(partition.name.removeprefix("date="))
    except ValueError:
        raise DataError(f"{partition}: not a date; expected a folder date=YYYY-MM-DD, the day of arrival") from None


def log_days(logs_dir: Path, tables: Iterable[str]) -> tuple[date, date]:
    """First and last day on which a log file arrived (DataError: there are no logs)."""
    days = {arrival(path.parent) for table in tables for path in log_files(logs_dir / table)}
    if not days:
        raise DataError(
            f"{logs_dir}: no logs; run `tactful simulate`, or put your own there, or map them in logs.toml "
            "(docs/logs.md)"
        )
    return min(days), max(days)


def stamp_of(path: Path) -> Stamp:
    """The stamp of a file as it is now."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def stamps(logs_dir: Path, tables: Iterable[str]) -> dict[str, Stamp]:
    """Every log file by its path below `logs_dir`, with its stamp, in order."""
    paths = (path for table in tables for path in log_files(logs_dir / table))
    return {path.relative_to(logs_dir).as_posix(): stamp_of(path) for path in paths}


def stale_days(
    before: Mapping[str, Stamp] | None, now: Mapping[str, Stamp], built: Iterable[date]
) -> dict[str, set[date]]:
    """Built days that a new or changed log file belongs to, by file; files that touch no built day are left out.

    A file that is gone makes nothing stale: old logs may be deleted, and the snapshots keep what was in them.

    Args:
        before: the files that `built` was built from; None: not known, so nothing counts as changed.
        now: the files that are there.
        built: days whose snapshots exist.
    """
    days, found = sorted(built), {}
    for key, stamp in now.items():
        if before is None or before.get(key) == stamp:
            continue
        table, arrived = Path(key).parts[0], arrival(Path(key).parent)
        until = arrived + _REACHES[table] if table in _REACHES else date.max
        touched = {day for day in days if arrived < day <= until}
        if touched:
            found[key] = touched
    return found


def read_state(features_dir: Path) -> dict[str, Stamp] | None:
    """The files that the snapshots were built from; None when nobody wrote it down."""
    try:
        state: dict[str, Stamp] = json.loads((features_dir / STATE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return state


def write_state(features_dir: Path, files: Mapping[str, Stamp]) -> None:
    """Write down which files the snapshots were built from; nothing when that is what stands there."""
    if read_state(features_dir) != files:
        write_json(features_dir / STATE, dict(files))
