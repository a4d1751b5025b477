"""Can these logs be used? What is missing, what is wrong, and how many rows and decisions would count.

Nothing is written where others read: tables that logs.toml maps are converted into a folder that goes away.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from campaign import Campaign, DataError
from feature_repo.contracts import DECISIONS, LOGS, Contract, check_file
from feature_repo.duck import connect
from feature_repo.freshness import too_old
from feature_repo.log_files import arrival, log_files
from feature_repo.log_map import LogMap, log_map_path
from feature_repo.log_reader import Reading
from feature_repo.own_logs import PREFIX, convert, folder_of, own_files, refuse_others
from models.challenger import MIN_ROWS
from models.frame import STRANGERS, read_decisions, remedy, sieve
from models.log_checks import check_log
from models.outcomes import MEASURES, measure_outcomes
from models.splits import split_of
from monitoring.doctor import Finding
from monitoring.log_users import strangers, twins

Progress = Callable[[int, int], None]
SILENCE = 5  # times the usual number of days between two with rows
SHOWN = 5  # problems of one table; the rest is counted


@dataclass(frozen=True)
class Logs:
    """Whole files of every table that can be read, and what the reading found."""

    folder: Path
    readings: tuple[Reading, ...]

    def files(self, table: str) -> list[str]:
        """Parquet files of a table that fit their contract."""
        return [str(path) for path in log_files(folder_of(self.folder, table))]

    def end(self) -> date | None:
        """The day after the last on which a row arrived: that of the newest snapshot; None without rows."""
        days = [arrival(path.parent) for table in LOGS for path in log_files(folder_of(self.folder, table))]
        return max(days) + timedelta(days=1) if days else None


def check_logs(
    data: Path, campaign: Campaign, log_map: LogMap, now: datetime, progress: Progress | None = None
) -> list[Finding]:
    """One finding for logs.toml, each table, the users of all, the decisions and their outcomes.

    Args:
        data: data folder; nothing in it is changed.
        campaign: arms and outcomes.
        log_map: a validated logs.toml.
        now: of the clock; later events are a wrong time zone.
        progress: called with (files done, files to do).
    """
    try:
        refuse_others(data, log_map)
        files = own_files(log_map, campaign.arm_names)
    except DataError as error:
        said, _, advice = str(error).rpartition("; ")
        return [Finding("logs.toml", "mend", said, advice)]
    data.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=data, prefix=".check-") as scratch:
        readings = convert(files, log_map, campaign.arm_names, Path(scratch), progress)
        readings += _link(data, Path(scratch), log_map)
        return list(_findings(Logs(Path(scratch), tuple(readings)), data, campaign, log_map, now))


def _link(data: Path, scratch: Path, log_map: LogMap) -> Iterator[Reading]:
    """Files that lie under data/ in our own form already, each checked; whole ones are linked into `scratch`."""
    for table in (*LOGS, "decisions"):
        for path in log_files(folder_of(data, table)):
            if path.name.startswith(PREFIX) or (table in log_map.tables and table != "decisions"):
                continue
            rows, problems = _rows(path), []
            try:
                check_file(path, LOGS.get(table) or _decision_contract(path))
                target = folder_of(scratch, table) / path.parent.name / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(path)
            except DataError as error:
                problems = str(error).splitlines()
            yield Reading(table, path, rows, 0 if problems else rows, tuple(problems))


def _decision_contract(path: Path) -> Contract:
    """The decision log's; files from before experiments have no such column, and are read all the same."""
    try:
        old = "experiment" not in pq.read_schema(path).names
    except (pa.ArrowException, OSError):  # no Parquet file: `check_file` says so
        old = False
    columns = {name: column for name, column in DECISIONS.columns.items() if not (old and name == "experiment")}
    return replace(DECISIONS, columns=columns)


def _rows(path: Path) -> int:
    try:
        with connect() as connection:
            found = connection.execute("SELECT count(*) FROM read_parquet($path)", {"path": str(path)}).fetchone()
    except duckdb.Error:  # no Parquet file: `check_file` says so
        return 0
    return int(found[0]) if found else 0


def _findings(logs: Logs, data: Path, campaign: Campaign, log_map: LogMap, now: datetime) -> Iterator[Finding]:
    mapped = ", ".join(log_map.tables) or "nothing: logs are what lies under data/logs"
    yield Finding("logs.toml", "ok", f"{log_map_path()} maps {mapped}")
    if not logs.readings:
        fix = "map yours in logs.toml (docs/logs.md); or tactful simulate, which writes those of a stand-in platform"
        yield Finding("logs", "mend", f"none under {data}, and logs.toml maps none", fix)
        return
    for table in (*LOGS, "decisions"):
        yield _table(logs, table, campaign, now)
    end = logs.end()
    if end is not None and (old := too_old(end, now)):
        yield Finding("age", "look", f"the logs end on {end - timedelta(days=1)}: {old.found}", old.fix)
    if end is not None:
        yield from _silences(logs, campaign, end)
    if end is not None and logs.files("users"):
        yield strangers({table: files for table in (*LOGS, "decisions") if (files := logs.files(table))})
        if twin := twins(logs.files("users")):
            yield twin
        if logs.files("decisions"):
            yield from _decisions(logs, campaign, end)


def _silences(logs: Logs, campaign: Campaign, end: date) -> Iterator[Finding]:
    """Tables with far longer without a row than they usually have: to features and outcomes nothing happened then."""
    for table in LOGS:
        days = sorted({arrival(path.parent) for path in log_files(folder_of(logs.folder, table))})
        if table == "users" or not days:
            continue
        usual = (days[-1] - days[0]).days / max(len(days) - 1, 1)
        silent, day = max((later - day, day) for day, later in pairwise([*days, end]))
        if silent.days - 1 > SILENCE * max(usual, 1):
            outcomes = [o.name for o in campaign.outcome if MEASURES[o.measure].table == table]
            read = f"outcome {', '.join(outcomes)} and features made of it" if outcomes else "features made of it"
            first, last = day + timedelta(days=1), day + silent - timedelta(days=1)
            yield Finding(
                f"days of {table}",
                "look",
                f"no row arrives from {first} to {last}: {read} take that for nothing happening",
                "bring these days; if nothing did happen, all is well",
            )


# --------------------------------------------------------------------------------------------- tables


def _table(logs: Logs, table: str, campaign: Campaign, now: datetime) -> Finding:
    """Rows, days and problems of one table."""
    readings = [reading for reading in logs.readings if reading.table == table]
    if not readings:
        return _absent(table, campaign)
    rows, usable = sum(r.rows for r in readings), sum(r.usable for r in readings)
    problems = [problem for reading in readings for problem in reading.problems]
    said = f"{usable:,} of {rows:,} rows usable, {len(readings):,} file{'s' if len(readings) > 1 else ''}"
    if problems:
        said = said if rows else "cannot be read as it is mapped"
        more = [f"and {len(problems) - SHOWN} more problems"] if len(problems) > SHOWN else []
        return Finding(table, "mend", said, "\n".join(problems[:SHOWN] + more))
    column = "decided_at" if table == "decisions" else "event_timestamp"
    first, last = _span(logs.files(table), column)
    said += f", {first:%Y-%m-%d} to {last:%Y-%m-%d}"
    if last > now + timedelta(minutes=1):
        ahead = f"the newest {column} is {last:%Y-%m-%d %H:%M} UTC, after now ({now:%Y-%m-%d %H:%M})"
        return Finding(table, "mend", said, f"{ahead}: is the time zone right?")
    notes = [note for reading in readings for note in reading.notes]
    if notes:
        return Finding(table, "look", said, "\n".join(notes[:SHOWN]))
    return Finding(table, "ok", said)


def _absent(table: str, campaign: Campaign) -> Finding:
    """A table that is not there: what cannot be without it."""
    where = f"map [{table}] in logs.toml, or put it under data/ (docs/logs.md)"
    if table == "users":
        return Finding(table, "mend", "none: nobody would have features", where)
    if table == "decisions":
        return Finding(table, "mend", "none: without random messages no effect can be learned", where)
    needed = [o.name for o in campaign.outcome if MEASURES[o.measure].table == table]
    if needed:
        fix = f"take {', '.join(needed)} out of campaign.toml, or {where}"
        return Finding(table, "mend", f"none, and outcome {', '.join(needed)} needs it", fix)
    return Finding(table, "look", "none: features made of it are 0 or not known", where)


def _span(files: list[str], column: str) -> tuple[datetime, datetime]:
    query = f"SELECT epoch_us(min({column})), epoch_us(max({column})) FROM read_parquet($files)"
    with connect() as connection:
        first, last = connection.execute(query, {"files": files}).fetchone() or (0, 0)
    return datetime.fromtimestamp(first / 1e6, UTC), datetime.fromtimestamp(last / 1e6, UTC)


# --------------------------------------------------------------------------------------------- decisions


def _decisions(logs: Logs, campaign: Campaign, end: date) -> Iterator[Finding]:
    """How many decisions would train and judge a model, by arm; and what followed them."""
    log = read_decisions(folder_of(logs.folder, "decisions"))
    as_of = datetime(end.year, end.month, end.day, tzinfo=UTC)
    try:
        kept, dropped = sieve(log, campaign, as_of)
    except DataError as error:
        yield Finding("decisions used", "mend", f"none of {len(log):,}", str(error))
        return
    known = _had_profile(logs, kept)
    dropped[STRANGERS] = int((~known).sum())
    kept = kept[known].reset_index(drop=True)
    yield _repeated(logs)
    yield _usable(log, kept, dropped, campaign, as_of)
    if len(kept):
        yield _draw(kept)
        yield _outcomes(logs, kept, campaign, as_of)


def _repeated(logs: Logs) -> Finding:
    """Rows with the key of another count once; two arms at the same time are two decisions that the log mixes up."""
    with connect() as connection:
        rows, keys, torn = connection.execute(
            "SELECT sum(n), count(*), count_if(arms > 1) FROM (SELECT count(*) AS n, count(DISTINCT arm) AS arms "
            "FROM read_parquet($f, union_by_name = true) GROUP BY decision_id)",
            {"f": logs.files("decisions")},
        ).fetchone() or (0, 0, 0)
    if rows == keys:
        return Finding("decision keys", "ok", f"{keys:,} decisions, each once")
    said = f"{rows - keys:,} of {rows:,} rows have the key of another (user and time, where none is mapped)"
    if torn:
        fix = f"{torn:,} decisions have two arms, and which one counts is chance: map decision_id, or a finer time"
        return Finding("decision keys", "look", said, fix)
    return Finding("decision keys", "ok", f"{said} and count once")


def _draw(kept: pd.DataFrame) -> Finding:
    """Whether arms were drawn with the probabilities given: what training asks before anything else."""
    checks = check_log(kept.drop(columns="feature_timestamp"))
    failed = checks[checks["status"] == "fail"]
    if failed.empty:
        return Finding("draw", "ok", f"arms were drawn with the probabilities given ({len(checks)} checks)")
    said = "; ".join(f"{row['check']}: {row['detail']}" for row in failed.to_dict("records"))
    fix = "give the probability with which each arm was drawn; leave out with `where` what was not drawn at random"
    return Finding("draw", "mend", said, fix)


def _had_profile(logs: Logs, decisions: pd.DataFrame) -> pd.Series:
    """Whether the snapshot of the decision's day has its user: a profile that was true, and here, on an earlier day."""
    with connect() as connection:
        seen = connection.execute(
            "SELECT user_id, min(greatest(epoch_us(event_timestamp), epoch_us(created_timestamp)) // 86400000000) "
            "AS day FROM read_parquet($f) GROUP BY user_id",
            {"f": logs.files("users")},
        ).df()
    first = decisions["user_id"].map(seen.set_index("user_id")["day"])
    return first < decisions["decided_at"].to_numpy(dtype="datetime64[D]").astype("int64")


def _usable(
    log: pd.DataFrame, kept: pd.DataFrame, dropped: dict[str, int], campaign: Campaign, as_of: datetime
) -> Finding:
    counts = kept["arm"].value_counts()
    arms = ", ".join(f"{name} {counts.get(k, 0):,}" for k, name in enumerate(campaign.arm_names))
    said = f"{len(kept):,} of {len(log):,} by {as_of:%Y-%m-%d} ({arms})"
    left = "; ".join(f"{count:,} {reason}" for reason, count in dropped.items() if count)
    short = defaultdict(int, pd.Series(split_of(kept["user_id"], campaign.splits)).value_counts().to_dict())
    few = {split: short[split] for split in ("train", "select", "evaluate") if short[split] < MIN_ROWS}
    if few:
        told = ", ".join(f"{split} {count:,}" for split, count in few.items())
        fix = f"each split needs {MIN_ROWS:,}: {told}; {remedy(dropped)}"
        return Finding("decisions used", "mend", said + (f"; {left}" if left else ""), fix)
    if counts.get(0, 0) == 0:
        fix = "without users who were drawn to get no message nothing can be compared; bring those decisions too"
        return Finding("decisions used", "mend", said, fix)
    if any(counts.get(k, 0) == 0 for k in range(1, len(campaign.arm))):
        fix = "an arm without decisions cannot be learned; take it out of campaign.toml"
        return Finding("decisions used", "mend", said, fix)
    return Finding("decisions used", "ok", said + (f"; {left}" if left else ""))


def _outcomes(logs: Logs, kept: pd.DataFrame, campaign: Campaign, as_of: datetime) -> Finding:
    """Mean of each outcome; one that never varies is measured from the wrong rows."""
    measured = [o for o in campaign.outcome if logs.files(MEASURES[o.measure].table)]
    if not measured:
        return Finding("outcomes", "mend", "none can be measured", "bring the tables they are measured from")
    values = measure_outcomes(kept, logs.folder / "logs", measured, as_of)
    means = ", ".join(f"{o.name} {values[f'y_{o.name}'].mean():.4g}" for o in measured)
    constant = [o.name for o in measured if values[f"y_{o.name}"].nunique() == 1]
    if constant:
        fix = f"always the same: {', '.join(constant)}; do user ids and times of their tables fit the decisions'?"
        return Finding("outcomes", "mend", f"means {means}", fix)
    return Finding("outcomes", "ok", f"means {means}")
