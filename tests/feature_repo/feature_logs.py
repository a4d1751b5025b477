"""Small raw logs for tests: late arrivals, duplicates, ties, users without events, late profiles."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

START = date(2026, 3, 1)


def midnight(day: date) -> pd.Timestamp:
    return pd.Timestamp(datetime(day.year, day.month, day.day, tzinfo=UTC))


def _arrivals(rng: np.random.Generator, happened: pd.Series) -> pd.Series:
    """Mostly seconds after the event; 8% hours, 3% up to five days, 1% exactly at the next midnight."""
    kind = rng.random(len(happened))
    delay = np.where(kind < 0.88, rng.uniform(1, 60, len(kind)), rng.uniform(600, 36_000, len(kind)))
    delay = np.where(kind > 0.96, rng.uniform(86_400, 5 * 86_400, len(kind)), delay)
    arrived = happened + pd.to_timedelta(delay, unit="s").round("us")
    return arrived.where(kind < 0.99, happened.dt.ceil("D"))


def _events(rng: np.random.Generator, users: np.ndarray, days: int, per_user: float, prefix: str) -> pd.DataFrame:
    n = rng.poisson(per_user * len(users))
    seconds = rng.integers(0, days * 86_400, n)
    seconds[rng.random(n) < 0.02] = rng.integers(0, days) * 86_400  # exactly midnight: belongs to the later day
    happened = pd.Series(midnight(START) + pd.to_timedelta(seconds, unit="s"))
    return pd.DataFrame(
        {
            f"{prefix}_id": [f"{prefix}{i}" for i in range(n)],
            "user_id": rng.choice(users, n),
            "event_timestamp": happened,
            "created_timestamp": _arrivals(rng, happened),
        }
    )


def _with_copies(rng: np.random.Generator, frame: pd.DataFrame) -> pd.DataFrame:
    """Deliver 4% of the rows twice, the copy later."""
    copies = frame[rng.random(len(frame)) < 0.04].copy()
    copies["created_timestamp"] += pd.to_timedelta(rng.integers(1, 3 * 86_400, len(copies)), unit="s")
    return pd.concat([frame, copies], ignore_index=True)


def make_logs(users: int = 300, days: int = 60, seed: int = 7) -> dict[str, pd.DataFrame]:
    """Log tables by name. The last tenth of the users has a profile and no events."""
    rng = np.random.default_rng(seed)
    ids = np.array([f"u{i:05d}" for i in range(users)])
    active = ids[: users * 9 // 10]
    sessions = _events(rng, active, days, 0.5 * days, "session")
    n = len(sessions)
    sessions["minutes"] = np.round(rng.gamma(2.0, 15.0, n) + 0.01, 4)  # seconds and less: no rounding in the sums
    sessions["tracks"] = rng.poisson(6, n).astype(np.int32)  # sometimes 0: no skip rate
    sessions["skips"] = rng.binomial(sessions["tracks"], 0.3).astype(np.int32)
    sessions["ads"] = rng.poisson(2, n).astype(np.int32)
    sessions["surface"] = rng.choice(["home", "search", "playlist", "radio"], n)
    messages = _events(rng, active, days, 0.08 * days, "message")
    messages["arm"] = "premium_offer"
    messages["format"] = rng.choice(["banner", "popup"], len(messages))
    messages["action"] = rng.choice(["none", "clicked", "dismissed"], len(messages), p=[0.5, 0.2, 0.3])
    subscriptions = _events(rng, active, days, 0.03 * days, "subscription_event")
    subscriptions["event"] = rng.choice(["start", "renew", "cancel"], len(subscriptions))
    subscriptions["price"] = 9.99
    tables = {"sessions": sessions, "messages": messages, "subscriptions": subscriptions}
    return {"users": _profiles(rng, ids, days)} | {k: _with_copies(rng, v) for k, v in tables.items()}


def _profiles(rng: np.random.Generator, ids: np.ndarray, days: int) -> pd.DataFrame:
    """One first row per user, and changes for a third; some arrive late, some only after days."""
    n = len(ids)
    who = np.concatenate([ids, rng.choice(ids, n // 3)])
    start = np.where(np.arange(n) % 5 == 0, rng.integers(0, days * 86_400, n), 0)  # a fifth signs up during the logs
    change = rng.integers(3_600, days * 86_400, len(who) - n)
    happened = pd.Series(midnight(START) + pd.to_timedelta(np.concatenate([start, change]), unit="s"))
    frame = pd.DataFrame({"user_id": who, "event_timestamp": happened, "created_timestamp": _arrivals(rng, happened)})
    frame["plan"] = rng.choice(["free", "trial", "premium"], len(who))
    frame["country"] = rng.choice(["US", "GB", "DE"], len(who))
    frame["device"] = rng.choice(["ios", "android", "web"], len(who))
    frame["age_band"] = rng.choice(np.array(["18-24", "25-34", None], dtype=object), len(who))
    frame["signup_at"] = frame["event_timestamp"] - pd.to_timedelta(rng.integers(0, 400 * 86_400, len(who)), unit="s")
    return frame.drop_duplicates(["user_id", "event_timestamp"], ignore_index=True)


def write_logs(tables: dict[str, pd.DataFrame], logs_dir: Path, days: int | None = None) -> None:
    """Write tables as the platform does: one folder per day of arrival; with `days`, only the first arrivals."""
    for name, table in tables.items():
        arrival = table["created_timestamp"].dt.date
        for day, rows in table.groupby(arrival):
            if days is None or day < START + timedelta(days=days):
                folder = logs_dir / name / f"date={day}"
                folder.mkdir(parents=True, exist_ok=True)
                write_parquet(rows, folder / "part-0.parquet")


def write_parquet(frame: pd.DataFrame, path: Path) -> None:
    frame = frame.assign(**{c: frame[c].dt.as_unit("us") for c in frame.select_dtypes("datetimetz")})
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), path)
