"""Outcomes of decisions, measured from raw logs in the window after each decision.

Only events that had arrived by `as_of` count, and duplicates (the same event delivered twice) count once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd

from campaign import DataError, OutcomeSpec
from feature_repo.aggregates import first_copies
from feature_repo.duck import connect
from feature_repo.log_files import log_files

DAY = 86_400_000_000  # microseconds
MEMORY_LIMIT = "2GB"  # of DuckDB; what does not fit is spilled to the temporary folder


@dataclass(frozen=True)
class Measure:
    """How an outcome is read from one log table: rows to count, duplicates' key, SQL aggregate over the window."""

    table: str
    key: str
    where: str
    aggregate: str


# To add an outcome: a line here, its name in campaign.OutcomeSpec.measure, an [[outcome]] in campaign.toml.
MEASURES = {
    "subscribed": Measure("subscriptions", "subscription_event_id", "event = 'start'", "(count(*) > 0)::DOUBLE"),
    "retained": Measure("sessions", "session_id", "true", "(count(*) > 0)::DOUBLE"),
    # whole numbers (1e-6 minutes) add up to the same sum in any order; floats do not, and a model would change with it
    "listening_hours": Measure("sessions", "session_id", "true", "sum(round(minutes * 1e6)::BIGINT) / 60e6"),
}


def matured(decided_at: pd.Series, outcomes: Sequence[OutcomeSpec], as_of: datetime) -> np.ndarray:
    """Whether every outcome's window and grace have closed by `as_of`; shape (n,), bool."""
    longest = max(outcome.matures_after_days for outcome in outcomes)
    return np.asarray(decided_at + pd.Timedelta(days=longest) <= pd.Timestamp(as_of))


def measure_outcomes(
    decisions: pd.DataFrame, logs_dir: Path, outcomes: Sequence[OutcomeSpec], as_of: datetime
) -> pd.DataFrame:
    """Outcome of each decision, in its own unit.

    Args:
        decisions: columns user_id and decided_at (UTC), one row per decision.
        logs_dir: folder of the raw logs (`<table>/date=*/*.parquet`).
        outcomes: what to measure, and in which days after the decision.
        as_of: events that arrived at this instant or later are not known yet.

    Returns: one column `y_<name>` per outcome, the rows and index of `decisions`; 0 where nothing happened.
    Raises: DataError: a decision is not matured at `as_of`.
    """
    open_rows = ~matured(decisions["decided_at"], outcomes, as_of)
    if open_rows.any():
        example = decisions["decided_at"][open_rows].iloc[0]
        raise DataError(
            f"{int(open_rows.sum())} of {len(decisions)} decisions are not matured at {as_of} (first: {example})"
            "; drop them, or wait until window_days + grace_days have passed"
        )
    keys = pd.DataFrame({"row": np.arange(len(decisions)), "user_id": decisions["user_id"].to_numpy()})
    # microseconds since 1970: DuckDB needs its ICU extension for arithmetic on timestamps with a time zone
    keys["decided_at"] = decisions["decided_at"].to_numpy(dtype="datetime64[us]").astype(np.int64)
    with (
        tempfile.TemporaryDirectory(prefix="tactful-") as spill,
        connect(memory_limit=MEMORY_LIMIT, temp_directory=spill) as connection,
    ):
        connection.register("decisions", keys)
        columns = {f"y_{o.name}": _measure(connection, logs_dir, o, as_of) for o in outcomes}
    return pd.DataFrame(columns, index=decisions.index)


def _measure(
    connection: duckdb.DuckDBPyConnection, logs_dir: Path, outcome: OutcomeSpec, as_of: datetime
) -> np.ndarray:
    ((oldest,),) = connection.execute("SELECT min(decided_at) FROM decisions").fetchall()
    files = outcome_files(logs_dir, outcome, oldest)
    connection.read_parquet(files, hive_partitioning=False).create_view("raw", replace=True)
    query = outcome_sql(outcome) + " ORDER BY row"
    return np.asarray(connection.execute(query, outcome_values(outcome, as_of)).fetchnumpy()["y"], dtype=float)


def outcome_files(logs_dir: Path, outcome: OutcomeSpec, oldest_us: int | None) -> list[str]:
    """Log files that can hold what follows a decision taken at `oldest_us` (microseconds since 1970) or later."""
    table = MEASURES[outcome.measure].table
    files = log_files(logs_dir / table)
    if not files:
        raise DataError(
            f"{logs_dir / table}: no Parquet files, and outcome {outcome.name!r} is measured from "
            "them; bring that table, or take the outcome out of campaign.toml (`tactful check` says which)"
        )
    # partitions are by arrival, and a clock may run a day ahead (feature_repo.contracts): earlier ones cannot count
    first = np.datetime64(oldest_us or 0, "us").astype("datetime64[D]") - 1
    return [str(file) for file in [f for f in files if f.parent.name >= f"date={first}"] or files[-1:]]


def outcome_sql(outcome: OutcomeSpec) -> str:
    """Columns row and y of the table `decisions` (row, user_id, decided_at in microseconds), from the log `raw`."""
    measure = MEASURES[outcome.measure]
    return f"""
        WITH known AS (
            SELECT * FROM raw WHERE epoch_us(created_timestamp) < $as_of AND {measure.where}
        ), events AS (
            SELECT *, epoch_us(event_timestamp) AS happened_at FROM {first_copies("known", measure.key)}
        ), measured AS (
            SELECT decisions.row, {measure.aggregate} AS y
            FROM decisions JOIN events ON events.user_id = decisions.user_id
                AND events.happened_at >= decisions.decided_at + $first_day * {DAY}
                AND events.happened_at < decisions.decided_at + $window_days * {DAY}
            GROUP BY decisions.row
        )
        SELECT row, coalesce(y, 0) AS y FROM decisions LEFT JOIN measured USING (row)
    """


def outcome_values(outcome: OutcomeSpec, as_of: datetime) -> dict[str, int]:
    """The values of `outcome_sql`."""
    return {
        "as_of": int(pd.Timestamp(as_of).timestamp()) * 1_000_000,
        "first_day": outcome.first_day,
        "window_days": outcome.window_days,
    }
