"""Stepping through small worlds, reading their logs back, and outcomes measured from its logs by brute force."""

from datetime import date
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from simulator import Due, World
from simulator.draws import uniform

END = date(2026, 3, 2)
IDS = {
    "users": ["user_id", "event_timestamp"],
    "sessions": ["session_id"],
    "messages": ["message_id"],
    "subscriptions": ["subscription_event_id"],
}
OUTCOMES = ["subscribed", "retained", "listening_hours"]
HALF = pd.Timedelta(days=14)


def table(folder: Path) -> pd.DataFrame:
    """Every file of a log, without its partition column; strings stay in Arrow, which is fast."""
    rows = pq.read_table(folder, partitioning=None)
    return rows.to_pandas(types_mapper={pa.string(): pd.StringDtype("pyarrow")}.get)


@lru_cache(maxsize=4)
def raw_log(root: Path, log: str) -> pd.DataFrame:
    """Every row of a log, duplicates included. Read it only: the answer is kept."""
    return table(root / "logs" / log)


@lru_cache(maxsize=4)
def clean_log(root: Path, log: str) -> pd.DataFrame:
    """A log without duplicates: the earliest arrival of each row. Read it only: the answer is kept."""
    rows = raw_log(root, log)
    return rows.sort_values("created_timestamp", kind="stable").drop_duplicates(IDS[log], ignore_index=True)


def decisions(root: Path) -> pd.DataFrame:
    return table(root / "decisions").sort_values(["user_id", "decided_at"], ignore_index=True)


def truth(root: Path) -> np.ndarray:
    """Shape (n decisions, n_arms, 3), in the order of `decisions`."""
    rows = table(root / "truth").sort_values(["user_id", "decided_at", "arm"])
    n_arms = rows["arm"].nunique()
    return rows[OUTCOMES].to_numpy().reshape(-1, n_arms, 3)


@lru_cache(maxsize=1)
def outcomes(root: Path) -> np.ndarray:
    """Shape (n decisions, 3): what the logs say happened after each decision."""
    decided = decisions(root)
    keys = decided.index
    sessions = _after(decided, clean_log(root, "sessions"))
    early = sessions["since"] < HALF
    hours = sessions[early].groupby("row")["minutes"].sum().reindex(keys, fill_value=0.0) / 60
    late = sessions.loc[~early & (sessions["since"] < 2 * HALF), "row"].unique()
    starts = _after(decided, clean_log(root, "subscriptions").query("event == 'start'"))
    subscribed = starts.loc[starts["since"] < HALF, "row"].unique()
    return np.stack([keys.isin(subscribed), keys.isin(late), hours], axis=1).astype(float)


def _after(decided: pd.DataFrame, events: pd.DataFrame) -> pd.DataFrame:
    """Events with the decision they follow: its row and the time since."""
    left = events.sort_values("event_timestamp")
    right = decided[["user_id", "decided_at"]].assign(row=decided.index).sort_values("decided_at")
    joined = pd.merge_asof(left, right, left_on="event_timestamp", right_on="decided_at", by="user_id").dropna()
    return joined.assign(since=joined["event_timestamp"] - joined["decided_at"], row=joined["row"].astype(int))


def files(root: Path) -> dict[str, bytes]:
    """Content of every file of a world by relative path."""
    return {str(f.relative_to(root)): f.read_bytes() for f in sorted(root.rglob("*")) if f.is_file()}


def world(root: Path, users: int = 400, days: int = 63, seed: int = 3, **options: object) -> World:
    return World(root, users, days, seed, end=END, messages=["offer"], phase_step=7, **options)  # type: ignore[arg-type]


def run(w: World, days: int) -> list[Due]:
    """Live `days` days with arms that depend on each user's own key only."""
    seen = []
    for _ in range(days):
        due = w.due()
        w.decide((uniform(due.key, "arm of the test") < 0.5).astype(np.int64))
        w.advance()
        seen.append(due)
    return seen
