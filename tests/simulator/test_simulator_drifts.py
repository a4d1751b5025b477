"""Drifts change what they should, from their day on, and nothing else."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from simulated_logs import END, clean_log, files, run, world

from simulator import DRIFTS, Drift, Due

DRIFT_DAY = 42


Lived = dict[str, tuple[Path, list[Due]]]


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Lived:
    """Worlds of 1,200 users without a drift and with each one from day 42 on, same arms."""
    answer = {}
    for kind in ("none", *DRIFTS):
        root = tmp_path_factory.mktemp(kind)
        drifts = [] if kind == "none" else [Drift(kind, DRIFT_DAY)]
        answer[kind] = (root, run(world(root, 1200, drifts=drifts), 63))
    return answer


@pytest.mark.parametrize("kind", DRIFTS)
def test_drift_changes_nothing_before_its_day(lived: Lived, kind: str):
    (plain, a), (changed, b) = lived["none"], lived[kind]
    assert all(np.array_equal(x.truth, y.truth) for x, y in zip(a[:DRIFT_DAY], b[:DRIFT_DAY], strict=True))
    opens = str(END - pd.Timedelta(days=63 - DRIFT_DAY))
    old = {name: content for name, content in files(plain).items() if name.split("date=")[1] < opens}
    assert old.items() <= files(changed).items()


def test_drift_price_lowers_subscription_only(lived: Lived):
    (plain, a), (changed, b) = lived["none"], lived["price"]
    before, after = a[DRIFT_DAY].truth, b[DRIFT_DAY].truth
    free = before[:, 0, 0] > 0.02
    np.testing.assert_allclose((after[:, 1] - after[:, 0])[free, 0], 0.5 * (before[:, 1] - before[:, 0])[free, 0])
    np.testing.assert_array_equal(after[:, :, 1:], before[:, :, 1:])
    assert clean_log(plain, "subscriptions")["price"].nunique() == 1
    assert clean_log(changed, "subscriptions")["price"].max() > clean_log(plain, "subscriptions")["price"].max()


def test_drift_fatigue_harms_the_active(lived: Lived):
    (_, a), (_, b) = lived["none"], lived["fatigue"]
    before, after = a[DRIFT_DAY].truth, b[DRIFT_DAY].truth
    np.testing.assert_array_equal(after[:, 0], before[:, 0])
    changed = (after[:, 1] != before[:, 1]).any(axis=1)
    assert 0.3 < changed.mean() < 0.7
    assert before[changed, 0, 2].mean() > 2 * before[~changed, 0, 2].mean()
    assert (after[changed, 1, 1] < after[changed, 0, 1]).all()


def test_drift_market_adds_users_and_leaves_the_others(lived: Lived):
    (plain, a), (changed, b) = lived["none"], lived["market"]
    users = clean_log(changed, "users")
    wave = users[users["country"] == "IN"]
    assert wave["user_id"].nunique() == pytest.approx(0.35 * 1200, abs=1)
    assert wave["signup_at"].min() >= pd.Timestamp(END, tz="UTC") - pd.Timedelta(days=63 - DRIFT_DAY)
    assert len(b[49].user_ids) > 1.1 * len(a[49].user_ids)
    for log in ("users", "sessions", "messages", "subscriptions"):
        rows = clean_log(changed, log)
        rows = rows[~rows["user_id"].isin(wave["user_id"])].reset_index(drop=True)
        pd.testing.assert_frame_equal(rows, clean_log(plain, log))


def test_drift_tracking_breaks_minutes_only(lived: Lived):
    (plain, a), (changed, b) = lived["none"], lived["tracking"]
    assert all(np.array_equal(x.truth, y.truth) for x, y in zip(a, b, strict=True))
    before, after = (clean_log(root, "sessions") for root in (plain, changed))
    pd.testing.assert_frame_equal(before.drop(columns="minutes"), after.drop(columns="minutes"))
    late = after["event_timestamp"] >= pd.Timestamp(END, tz="UTC") - pd.Timedelta(days=63 - DRIFT_DAY)
    assert (before["minutes"] == after["minutes"])[~late].all()
    assert (after.loc[late, "minutes"] == 0).mean() == pytest.approx(0.8, abs=0.02)
    for log in ("users", "messages", "subscriptions"):
        pd.testing.assert_frame_equal(clean_log(plain, log), clean_log(changed, log))
