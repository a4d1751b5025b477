"""The raw logs look like a real platform's: contract, arrivals, duplicates, habits."""

from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from simulated_logs import END, IDS, clean_log, decisions, raw_log, table

from simulator.logs import SCHEMAS

START = pd.Timestamp(END, tz="UTC") - pd.Timedelta(days=90)
LOGS = sorted(SCHEMAS)


@pytest.mark.parametrize("log", LOGS)
def test_log_schema_and_values(platform: Path, log: str):
    one = next((platform / "logs" / log).rglob("*.parquet"))
    assert pq.read_schema(one) == SCHEMAS[log]
    rows = raw_log(platform, log)
    assert not rows.drop(columns=["age_band"], errors="ignore").isna().any().any()


@pytest.mark.parametrize("log", LOGS)
def test_log_partition_is_day_of_arrival_within_world(platform: Path, log: str):
    rows = raw_log(platform, log)
    assert (rows["created_timestamp"] > rows["event_timestamp"]).all()
    assert rows["event_timestamp"].min() >= START
    assert rows["created_timestamp"].max() < pd.Timestamp(END, tz="UTC")
    partitions = sorted((platform / "logs" / log).iterdir())
    assert [p.name for p in partitions] == [f"date={END - timedelta(days=90 - i)}" for i in range(90)]
    for partition in partitions[::10]:
        days = table(partition)["created_timestamp"].dt.strftime("%Y-%m-%d").unique()
        assert list(days) == [partition.name.removeprefix("date=")]


def test_log_late_and_duplicate_shares(platform: Path):
    sessions = raw_log(platform, "sessions")
    assert sessions["session_id"].duplicated().mean() == pytest.approx(0.005, abs=0.001)
    clean = clean_log(platform, "sessions")
    clean = clean[clean["event_timestamp"] < pd.Timestamp(END, tz="UTC") - pd.Timedelta(days=4)]
    ended = clean["event_timestamp"] + pd.to_timedelta(clean["minutes"], unit="min")
    delay = clean["created_timestamp"] - ended
    late = delay > pd.Timedelta(hours=1.9)
    assert late.mean() == pytest.approx(0.03, abs=0.002)
    assert delay.max() <= pd.Timedelta(days=3, minutes=1)


@pytest.mark.parametrize("log", LOGS)
def test_log_duplicates_differ_in_arrival_only(platform: Path, log: str):
    rows = raw_log(platform, log)
    twice = rows[rows.duplicated(IDS[log], keep=False)]
    assert len(twice)
    assert len(twice.drop(columns="created_timestamp").drop_duplicates()) == len(twice) / 2


def test_users_without_events_have_a_profile(platform: Path):
    users = set(raw_log(platform, "users")["user_id"])
    assert len(users) == 12_000
    seen = set(raw_log(platform, "sessions")["user_id"]) | set(raw_log(platform, "subscriptions")["user_id"])
    assert seen < users
    assert 0.015 < 1 - len(seen) / len(users) < 0.045  # 2% never, some more by chance or after a late sign-up


def test_users_categories(platform: Path):
    users = clean_log(platform, "users")
    assert set(users["plan"]) == {"free", "trial", "premium"}
    assert set(users["country"]) == {"US", "GB", "DE", "FR", "BR", "SE", "MX", "JP"}
    assert set(users["device"]) == {"ios", "android", "web"}
    assert users["age_band"].isna().mean() == pytest.approx(0.05, abs=0.01)
    assert (users["event_timestamp"] >= users["signup_at"]).all()


def test_users_plan_follows_subscriptions(platform: Path):
    changes = clean_log(platform, "users").groupby("user_id")["event_timestamp"].agg(set)
    events = clean_log(platform, "subscriptions")
    events = events[events["event"].isin(["start", "cancel"])]
    # a profile row that arrives after the world's end is missing from its logs
    events = events[events["event_timestamp"] < pd.Timestamp(END, tz="UTC") - pd.Timedelta(days=4)]
    assert len(events) > 1000
    assert all(at in changes[user] for user, at in zip(events["user_id"], events["event_timestamp"], strict=True))


def test_sessions_volume_and_values(platform: Path):
    sessions = clean_log(platform, "sessions")
    assert 0.5 < len(sessions) / (12_000 * 90) < 0.8
    assert sessions["minutes"].min() > 0
    assert (sessions["skips"] <= sessions["tracks"]).all()
    plans = clean_log(platform, "users").groupby("user_id")["plan"].agg(set)
    always_premium = plans.index[plans.apply(lambda p: p == {"premium"})]
    assert sessions.loc[sessions["user_id"].isin(always_premium), "ads"].sum() == 0


def test_sessions_follow_hours_and_weekdays(platform: Path):
    at = clean_log(platform, "sessions")["event_timestamp"].dt
    hour = np.bincount(at.hour, minlength=24)
    assert hour[20] > 5 * hour[3]
    weekday = np.bincount(at.dayofweek, minlength=7)
    assert weekday.max() / weekday.min() > 1.15


def test_messages_only_for_eligible_users(platform: Path):
    decided = decisions(platform)
    messages = clean_log(platform, "messages").sort_values("event_timestamp")
    messages = messages[messages["event_timestamp"] >= decided["decided_at"].min()]
    joined = pd.merge_asof(
        messages, decided[["user_id", "decided_at", "arm"]].sort_values("decided_at"),
        left_on="event_timestamp", right_on="decided_at", by="user_id", suffixes=("", "_decided"),
    ).dropna(subset="decided_at")  # fmt: skip
    names = np.array(["none", "offer", "playlist"])
    assert (names[joined["arm_decided"].astype(int)] == joined["arm"]).all()
    assert set(messages["format"]) == {"banner", "popup"}
    assert set(messages["action"]) == {"none", "clicked", "dismissed"}


def test_subscriptions_start_sooner_under_a_message(platform: Path):
    decided = decisions(platform).sort_values("decided_at")
    starts = clean_log(platform, "subscriptions").query("event == 'start'").sort_values("event_timestamp")
    joined = pd.merge_asof(starts, decided, left_on="event_timestamp", right_on="decided_at", by="user_id")
    days = (joined["event_timestamp"] - joined["decided_at"]).dt.total_seconds() / 86_400
    assert days[joined["arm"] > 0].median() < days[joined["arm"] == 0].median() - 1
