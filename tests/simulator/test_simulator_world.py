"""The world steps day by day, the same for every number of users."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from simulated_logs import END, clean_log, files, run, world

from campaign import DataError
from simulator import Drift


def test_world_due_once_in_four_weeks(tmp_path: Path):
    seen = run(world(tmp_path), 63)
    assert not any(len(due.user_ids) for due in seen[:28])
    assert all(len(due.user_ids) > 0 for due in seen[28::7])
    assert not any(len(due.user_ids) for i, due in enumerate(seen) if i % 7)
    first = np.concatenate([due.user_ids for due in seen[28:56]])
    assert len(set(first)) == len(first) > 300


def test_world_due_context(tmp_path: Path):
    due = run(world(tmp_path), 29)[28]
    at = pd.DatetimeIndex(due.decided_at)
    assert (at.hour == due.hour).all()
    assert (at.date == END - pd.Timedelta(days=63 - 28)).all()
    assert set(due.surface) <= {"home", "search", "playlist", "radio"}
    assert due.truth.shape == (len(due.user_ids), 2, 3)
    assert list(due.user_ids) == sorted(due.user_ids)


def test_world_due_is_stable_until_advance(tmp_path: Path):
    w = world(tmp_path)
    run(w, 28)
    before = w.due()
    w.decide(np.zeros(len(before.user_ids), dtype=int))
    assert w.due() is before


def test_world_users_know_nothing_before_signup(tmp_path: Path):
    w = world(tmp_path)
    run(w, 63)
    signup = clean_log(tmp_path, "users").groupby("user_id")["signup_at"].first()
    sessions = clean_log(tmp_path, "sessions")
    assert (sessions["event_timestamp"] >= signup.reindex(sessions["user_id"]).to_numpy()).all()
    assert (signup > pd.Timestamp(w.start_date, tz="UTC")).sum() > 10


@pytest.mark.parametrize(
    ("arms", "match"),
    [
        ([0], r"arms has shape \(1,\); expected one arm for each of \d+ due users"),
        (None, "arms range from 0 to 2; expected 0 to 1"),
    ],
)
def test_world_decide_raises(tmp_path: Path, arms: list[int] | None, match: str):
    w = world(tmp_path)
    run(w, 28)
    n = len(w.due().user_ids)
    with pytest.raises(DataError, match=match):
        w.decide(arms if arms is not None else np.arange(n) % 3)


def test_world_decides_each_day_once(tmp_path: Path):
    w = world(tmp_path)
    run(w, 28)
    with pytest.raises(DataError, match=r"users are due on .*; call decide\(arms\) first"):
        w.advance()
    w.decide(np.zeros(len(w.due().user_ids), dtype=int))
    with pytest.raises(DataError, match=r"is decided already; call advance\(\)"):
        w.decide(np.zeros(len(w.due().user_ids), dtype=int))


def test_world_unknown_drift_raises(tmp_path: Path):
    with pytest.raises(DataError, match="drift kind is 'prices'; the simulator knows price, market, fatigue, tracking"):
        world(tmp_path, drifts=[Drift("prices", 30)])


def test_world_users_do_not_depend_on_their_number(tmp_path: Path):
    few, many = (world(tmp_path / str(n), users=n) for n in (200, 500))
    for a, b in zip(run(few, 35), run(many, 35), strict=True):
        np.testing.assert_array_equal(a.truth, b.truth[: len(a.truth)])
    for log in ("users", "sessions", "messages", "subscriptions"):
        small, large = (clean_log(tmp_path / str(n), log) for n in (200, 500))
        large = large[large["user_id"] < "u0000200"]
        pd.testing.assert_frame_equal(small, large.reset_index(drop=True))


def test_world_day_is_written_as_it_passes(tmp_path: Path):
    """A day's partition never changes once the day is over."""
    w = world(tmp_path)
    run(w, 40)
    before = files(tmp_path)
    run(w, 10)
    after = files(tmp_path)
    assert before.items() < after.items()
