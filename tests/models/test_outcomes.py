from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from campaign import DataError, OutcomeSpec
from models.outcomes import measure_outcomes

START = datetime(2026, 1, 5, tzinfo=UTC)
MICROS = "datetime64[us, UTC]"
AS_OF = START + timedelta(days=60)


def outcome(name, measure, kind, window_days, first_day=0):
    rest = {"grace_days": 2, "weight": 1.0, "role": "success"}
    return OutcomeSpec(name=name, measure=measure, kind=kind, window_days=window_days, first_day=first_day, **rest)


OUTCOMES = [
    outcome("subscription", "subscribed", "binary", 14),
    outcome("retention", "retained", "binary", 28, first_day=14),
    outcome("listening", "listening_hours", "continuous", 14),
]


def write_logs(folder, rng, users=40, events=3000):
    """Random events on a coarse grid of hours (so that ties with window edges happen), some late, some doubled."""
    hours = rng.integers(0, 60 * 24, events)
    frame = pd.DataFrame(
        {
            "user_id": [f"u{k}" for k in rng.integers(0, users, events)],
            "event_timestamp": pd.to_datetime(START) + pd.to_timedelta(hours, unit="h"),
            "session_id": [f"s{k}" for k in range(events)],
            "minutes": rng.gamma(2.0, 20.0, events),
        }
    )
    late = np.where(rng.random(events) < 0.2, rng.integers(1, 90, events), 0)
    frame["created_timestamp"] = frame["event_timestamp"] + pd.to_timedelta(late, unit="h")
    again = frame.sample(frac=0.1, random_state=1)
    again["created_timestamp"] += pd.Timedelta(hours=5)
    sessions = pd.concat([frame, again])
    subscriptions = sessions.rename(columns={"session_id": "subscription_event_id"}).drop(columns="minutes")
    subscriptions["event"] = rng.choice(["start", "renew", "cancel"], len(subscriptions))
    for table, rows in (("sessions", sessions), ("subscriptions", subscriptions.sample(300, random_state=2))):
        path = folder / table / "date=2026-01-05"
        path.mkdir(parents=True)
        rows.astype({"event_timestamp": MICROS, "created_timestamp": MICROS}).to_parquet(path / "part-0.parquet")
    return sessions, subscriptions.sample(300, random_state=2)


def brute_force(decision, sessions, subscriptions):
    """The three outcomes of one decision by plain loops over the raw rows."""

    def events(rows, key, first_day, window_days):
        seen = {}
        for row in rows.sort_values("created_timestamp").itertuples():
            if row.user_id != decision.user_id or row.created_timestamp >= pd.Timestamp(AS_OF):
                continue
            offset = row.event_timestamp - decision.decided_at
            if pd.Timedelta(days=first_day) <= offset < pd.Timedelta(days=window_days):
                seen.setdefault(getattr(row, key), row)
        return list(seen.values())

    starts = events(subscriptions[subscriptions["event"] == "start"], "subscription_event_id", 0, 14)
    minutes = sum(row.minutes for row in events(sessions, "session_id", 0, 14))
    return [float(bool(starts)), float(bool(events(sessions, "session_id", 14, 28))), minutes / 60]


def test_measure_outcomes_equals_brute_force(tmp_path):
    rng = np.random.default_rng(3)
    sessions, subscriptions = write_logs(tmp_path, rng)
    decisions = pd.DataFrame(
        {
            "user_id": [f"u{k}" for k in rng.integers(0, 45, 60)],  # u40..u44 have no events
            "decided_at": pd.to_datetime(START) + pd.to_timedelta(rng.integers(0, 29 * 24, 60), unit="h"),
        },
        index=rng.permutation(60),
    )
    measured = measure_outcomes(decisions, tmp_path, OUTCOMES, AS_OF)
    expected = [brute_force(row, sessions, subscriptions) for row in decisions.itertuples()]
    assert measured.index.equals(decisions.index)
    np.testing.assert_array_equal(measured[["y_subscription", "y_retention"]], np.array(expected)[:, :2])
    # minutes are counted in whole 1e-6
    np.testing.assert_allclose(measured["y_listening"], np.array(expected)[:, 2], atol=1e-6, rtol=0)
    assert (measured.nunique() > 1).all()


def test_measure_outcomes_refuses_open_windows(tmp_path):
    decisions = pd.DataFrame({"user_id": ["u1"], "decided_at": [pd.Timestamp(AS_OF) - pd.Timedelta(days=29)]})
    with pytest.raises(DataError, match="1 of 1 decisions are not matured"):
        measure_outcomes(decisions, tmp_path, OUTCOMES, AS_OF)


def test_measure_outcomes_names_the_missing_log(tmp_path):
    decisions = pd.DataFrame({"user_id": ["u1"], "decided_at": [pd.Timestamp(START)]})
    with pytest.raises(DataError, match="subscriptions: no Parquet files, and outcome 'subscription'"):
        measure_outcomes(decisions, tmp_path, OUTCOMES, AS_OF)
