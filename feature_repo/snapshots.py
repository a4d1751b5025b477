"""Daily feature snapshots: raw logs -> features/date=D/{snapshot,corrections}.parquet.

The folder of day D holds everything created at D 00:00 UTC, and is written once, whole:

    snapshot.parquet       event_timestamp D: every user with a profile by then, from events that happened and arrived
    corrections.parquet    event_timestamp D-1..D-4: users with late events that arrived on D-1, computed again

So a query at any time sees what was known then, by created_timestamp. A folder appears by one rename: a killed run
leaves only `.building`, which the next run removes. When a log file is changed, or put in late (mended, delivered
again), the days it reaches are built once more.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path

import duckdb

from campaign import DataError, StoreError, now
from feature_repo import aggregates
from feature_repo.atomic import locked
from feature_repo.contracts import LOGS
from feature_repo.duck import ample_memory, connect, ran_out_of
from feature_repo.log_files import arrival, log_files, read_state, stale_days, stamps, write_state

CHUNK_ROWS = 500_000  # users x days computed at once: bounds memory, whatever the range
ROW_GROUP = 65_536
ENGINES = ("duckdb", "spark")
UNREADABLE = (duckdb.IOException, duckdb.InvalidInputException, duckdb.BinderException, duckdb.ConversionException)
_DAY = timedelta(days=1)


def build_snapshots(
    logs_dir: Path,
    features_dir: Path,
    until: date | None = None,
    *,
    only: Collection[date] | None = None,
    threads: int = 1,
    memory_limit: str | None = None,
    engine: str = "duckdb",
    progress: Callable[[int, int], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> list[date]:
    """Build the snapshots of every day that has none yet, or whose logs changed. Idempotent; safe to kill.

    Args:
        logs_dir: checked raw logs (`contracts.ingest`).
        features_dir: where the snapshots lie.
        until: last day wanted; default the day after the newest log, or today where that is earlier.
        only: build no other days than these (a rehearsal decides on Mondays only); default every day.
        threads: DuckDB threads.
        memory_limit: DuckDB's limit, as in "1GB" (default: `ample_memory`); what does not fit is spilled beside the
            snapshots.
        engine: "duckdb", or "spark": the same values, computed where Spark's workers are (spark.py).
        progress: called with (days done, days to do).
        tell: called with a sentence when days must be built again.

    Returns:
        The days built, in order; the first possible day is the second day of the logs.

    Raises:
        DataError: there are no logs, or they end before `until`, or a log file cannot be read.
        StoreError: another process is building into the same folder; there is no such engine, or it does not start.
    """
    _check_engine(engine)
    first, last = _possible_days(logs_dir)
    if until is not None and until > last:
        raise DataError(
            f"{logs_dir}: logs end on {last - _DAY}, so the last snapshot is {last}; asked until {until}: ask for an "
            "earlier day, or bring later logs"
        )
    until = until or min(last, now().date())
    features_dir.mkdir(parents=True, exist_ok=True)
    with _only_builder(features_dir) as building:
        files, before = stamps(logs_dir, LOGS), read_state(features_dir)
        built = {d for d in _days(first, last) if (features_dir / f"date={d}").exists()}
        stale = stale_days(before, files, built)
        again: set[date] = set().union(*stale.values())
        if stale and tell:
            tell(_why_again(list(stale), len(again)))
        # what makes days stale is written down only when they are built again, so that a killed run is taken up
        write_state(features_dir, {f: stamp for f, stamp in files.items() if f not in stale})
        wanted = [d for d in _days(first, until) if only is None or d in only]
        days = sorted(again | {d for d in wanted if d not in built})
        if days:

            def put(day: date) -> None:
                _put(building / f"date={day}", features_dir)
                if progress:
                    progress(days.index(day) + 1, len(days))

            logs = _sources(logs_dir, days[0], days[-1])
            if engine == "spark":
                from feature_repo import spark  # only here: most machines have no PySpark

                spark.build(logs, list(_chunks(days, spark.CHUNK_DAYS)), first, building, put)
            else:
                limit = memory_limit or ample_memory()
                with _short_of(features_dir, limit), _connect(building, threads, limit) as con:
                    _load(con, logs_dir, logs)
                    _build(con, days, first, building, put)
        write_state(features_dir, files)
    return days


def chosen_engine() -> str:
    """What $TACTFUL_ENGINE asks for: "duckdb" or "spark" (StoreError: it names no engine)."""
    engine = os.environ.get("TACTFUL_ENGINE", "duckdb")
    _check_engine(engine)
    return engine


def on_spark() -> bool:
    """Whether $TACTFUL_ENGINE asks for Spark."""
    return chosen_engine() == "spark"


def _check_engine(engine: str) -> None:
    if engine not in ENGINES:
        raise StoreError(f"engine == {engine!r}; expected {' or '.join(ENGINES)} ($TACTFUL_ENGINE)")


def _why_again(files: list[str], days: int) -> str:
    others = f" and {len(files) - 1} other files" if len(files) > 1 else ""
    return f"{files[0]}{others} came or changed after snapshots of its days were built: {days} days are built again"


def _days(first: date, last: date) -> Iterator[date]:
    while first <= last:
        yield first
        first += _DAY


def _possible_days(logs_dir: Path) -> tuple[date, date]:
    """First and last day whose snapshot the logs allow: a snapshot of D needs the arrivals up to D-1."""
    found = {log: {arrival(path.parent) for path in log_files(logs_dir / log)} for log in LOGS}
    dates = set().union(*found.values())
    if dates and not found["users"]:
        raise DataError(
            f"{logs_dir / 'users'}: no profiles, so nobody would have features; expected date=*/*.parquet "
            "(`tactful check` looks at every table)"
        )
    if not dates:
        raise DataError(
            f"{logs_dir}: no logs; expected {logs_dir}/<{'|'.join(LOGS)}>/date=YYYY-MM-DD/*.parquet; see docs/logs.md"
        )
    return min(dates) + _DAY, max(dates) + _DAY


@contextmanager
def _only_builder(features_dir: Path) -> Iterator[Path]:
    """An empty folder to build in, and the promise that nobody else does; the kernel drops the lock of a killed run."""
    busy = f"{features_dir}: another process is building snapshots here; wait until it is done"
    with locked(features_dir / ".lock", busy):
        building = features_dir / ".building"
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir()
        try:
            yield building
        finally:  # what a run that failed leaves would keep a full disk full
            shutil.rmtree(building, ignore_errors=True)


def _connect(building: Path, threads: int, memory_limit: str) -> duckdb.DuckDBPyConnection:
    """A database in a file: the daily totals are packed there, where tables in memory would be spilled eightfold."""
    settings = {"threads": threads, "memory_limit": memory_limit, "temp_directory": str(building / "spill")}
    con = connect(building / "work.duckdb", **settings)
    con.execute("SET TimeZone = 'UTC'")  # else dates are those of the machine's zone
    return con


def _sources(logs_dir: Path, first: date, last: date) -> dict[str, list[str]]:
    """Files of each log that the snapshots of first..last can see."""
    # Lookback of the oldest correction, and a day for clocks that run ahead (contracts.py).
    since = first - timedelta(days=aggregates.LOOKBACK_DAYS + aggregates.CORRECTION_DAYS + 2)
    oldest = {"users": None, "sessions": since, "messages": since, "subscriptions": None}
    return {name: _files(logs_dir / name, start, last) for name, start in oldest.items()}


def _load(con: duckdb.DuckDBPyConnection, logs_dir: Path, logs: dict[str, list[str]]) -> None:
    """Daily aggregates of all logs."""
    try:
        for name, files in logs.items():
            _view(con, name, files)
        for sql in (aggregates.USERS, aggregates.PROFILES, aggregates.DAILY_SESSIONS, aggregates.DAILY_MESSAGES):
            con.execute(sql)
        con.execute(aggregates.DAILY_SUBSCRIPTIONS)
    except UNREADABLE as error:
        if ran_out_of(error):
            raise
        reason = str(error).splitlines()[0]
        raise DataError(f"{logs_dir}: a log cannot be read: {reason}; `tactful check` names the file") from None


@contextmanager
def _short_of(features_dir: Path, memory_limit: str) -> Iterator[None]:
    """Turn what DuckDB says of a full disk, or of too little memory, into a StoreError."""
    try:
        yield
    except (duckdb.IOException, duckdb.OutOfMemoryException, duckdb.TransactionException) as error:
        advice = {
            "disk": "make room",
            "memory": f"memory_limit == {memory_limit!r} is too little (default: half of the machine's memory, at most "
            "4 GB): give more, or set TACTFUL_ENGINE=spark",
        }.get(ran_out_of(error) or "", "mend that")
        raise StoreError(
            f"{features_dir}: snapshots could not be built: {str(error).splitlines()[0]}; {advice}; then run the same "
            "command again: what is finished is kept"
        ) from None


def _files(folder: Path, since: date | None, until: date) -> list[str]:
    """Log files that arrived on [since, until), by the name of their folder."""
    start, end = f"date={since or date.min}", f"date={until}"
    return [str(p) for p in log_files(folder) if start <= p.parent.name < end]


_SQL_TYPES = {"string": "VARCHAR", "timestamp": "TIMESTAMPTZ", "integer": "BIGINT", "float": "DOUBLE"}


def _view(con: duckdb.DuckDBPyConnection, log: str, files: list[str]) -> None:
    columns = ", ".join(f"{name}::{_SQL_TYPES[c.kind]} AS {name}" for name, c in LOGS[log].columns.items())
    if files:
        listed = ", ".join("'" + f.replace("'", "''") + "'" for f in files)
        source = f"SELECT {columns} FROM read_parquet([{listed}], union_by_name=true, hive_partitioning=false)"
    else:
        nulls = ", ".join(f"NULL AS {name}" for name in LOGS[log].columns)
        source = f"SELECT {columns} FROM (SELECT {nulls}) WHERE false"
    con.execute(f"CREATE TEMP VIEW raw_{log} AS {source}")


def _build(
    con: duckdb.DuckDBPyConnection,
    days: list[date],
    first_ever: date,
    building: Path,
    put: Callable[[date], None],
) -> None:
    (users,) = con.execute("SELECT count(*) FROM codes").fetchone() or (0,)
    for chunk in _chunks(days, max(1, CHUNK_ROWS // max(1, users))):
        con.execute(aggregates.ASOF, {"first": chunk[0], "last": chunk[-1], "first_ever": first_ever})
        con.execute(aggregates.FEATURES)
        for day in chunk:
            _write(con, day, building / f"date={day}")
            put(day)


def _put(made: Path, features_dir: Path) -> None:
    """Put the folder of a day in its place, on disk."""
    for path in (*made.iterdir(), made):
        _fsync(path)
    place = features_dir / made.name
    if place.exists():  # built again: a folder cannot be renamed over another
        os.rename(place, made.parent / f"old-{made.name}")
    os.rename(made, place)
    _fsync(features_dir)


def _chunks(days: list[date], size: int) -> Iterator[list[date]]:
    """Runs of at most `size` consecutive days."""
    chunk: list[date] = []
    for day in days:
        if chunk and (len(chunk) == size or day - chunk[-1] > _DAY):
            yield chunk
            chunk = []
        chunk.append(day)
    yield chunk


def _write(con: duckdb.DuckDBPyConnection, day: date, folder: Path) -> None:
    """Both files of one day, on disk; corrections only where there are any."""
    folder.mkdir()
    for name, which in (("snapshot", "day = known"), ("corrections", "day < known")):
        rows = f"FROM features WHERE known = DATE '{day}' AND {which}"
        if name == "corrections" and con.execute(f"SELECT 1 {rows} LIMIT 1").fetchone() is None:
            continue
        path = str(folder / f"{name}.parquet").replace("'", "''")
        con.execute(
            f"COPY (SELECT * EXCLUDE (row, day, known) {rows} ORDER BY row) TO '{path}' "
            f"(FORMAT parquet, COMPRESSION snappy, ROW_GROUP_SIZE {ROW_GROUP})"
        )


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
