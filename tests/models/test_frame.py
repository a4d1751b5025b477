import json
from datetime import UTC, date, datetime

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from campaign import DataError, load_campaign
from models import streamed
from models.frame import BROKEN, CERTAIN, countable, first_per_window, remedy, sieve
from models.verdicts import KEYS, broken_weeks, in_weeks, told
from monitoring import inputs


def one_by_one(decisions, window_days):
    """The rule by a plain loop: a user's decision counts when the last that counted is a window ago."""
    last, marks = {}, {}
    for row in decisions.sort_values(["decided_at", "decision_id"]).itertuples():
        day = row.decided_at.normalize()
        marks[row.Index] = row.user_id not in last or (day - last[row.user_id]).days >= window_days
        if marks[row.Index]:
            last[row.user_id] = day
    return np.array([marks[index] for index in decisions.index], dtype=bool)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 24 * 100)), min_size=0, max_size=60),
    st.integers(1, 30),
    st.randoms(use_true_random=False),
)
def test_first_per_window_equals_a_plain_loop(rows, window_days, random):
    random.shuffle(rows)
    decisions = pd.DataFrame(
        {
            "decision_id": [f"d{k}" for k in range(len(rows))],
            "user_id": [f"u{user}" for user, _ in rows],
            "decided_at": pd.to_datetime("2026-01-05", utc=True)
            + pd.to_timedelta([hour for _, hour in rows], unit="h"),
        }
    )
    np.testing.assert_array_equal(first_per_window(decisions, window_days), one_by_one(decisions, window_days))


def test_first_per_window_counts_by_calendar_day():
    # decided late on day 0 and early on day 28: 27.2 days apart, yet a new window
    times = pd.to_datetime(["2026-01-05T20:00Z", "2026-02-02T01:00Z", "2026-02-03T01:00Z"])
    decisions = pd.DataFrame({"decision_id": list("abc"), "user_id": "u1", "decided_at": times})
    assert first_per_window(decisions, 28).tolist() == [True, True, False]


def log(mondays, users=40):
    """A random phase: each user decides once, 40 a week."""
    rows = [
        (f"u{w}-{k}", pd.Timestamp(m, tz="UTC") + pd.Timedelta(hours=4.15 * k))
        for w, m in enumerate(mondays)
        for k in range(users)
    ]
    frame = pd.DataFrame(rows, columns=["user_id", "decided_at"])
    arms = {"arm": np.arange(len(rows)) % 2, "propensity": 0.5, "propensities": [np.array([0.5, 0.5])] * len(rows)}
    return frame.assign(decision_id=frame["user_id"], layer="exploration", salts="{}", experiment=None, **arms)


def test_remedy_names_broken_weeks_also_where_something_else_cost_more():
    mend = "mend their data, then run `tactful monitor --week DATE` for each"
    assert remedy({CERTAIN: 3, BROKEN: 40}).startswith(mend)
    told = remedy({CERTAIN: 90, BROKEN: 40})
    assert told.startswith("arms that were certain")
    assert f"for the 40 of weeks whose data was found broken: {mend}" in told
    assert "broken" not in remedy({CERTAIN: 90, BROKEN: 0})


def test_countable_leaves_out_broken_weeks(tmp_path):
    """From the first to the last instant of the week; once it is judged anew, it counts again."""
    mondays = ["2026-01-05", "2026-01-12", "2026-01-19"]
    decisions, campaign, as_of = log(mondays), load_campaign(), datetime(2026, 6, 1, tzinfo=UTC)
    for week, action in (("2026-W02", "none"), ("2026-W03", "stop"), ("2026-W04", "retrain")):
        write(tmp_path, week, action)
    broken = broken_weeks(tmp_path)
    assert broken == {date(2026, 1, 12): "2026-W03, 40 decisions"}
    kept, dropped = sieve(decisions, campaign, as_of, broken)
    assert kept["user_id"].str[:2].value_counts().to_dict() == {"u0": 40, "u2": 40}
    assert dropped[BROKEN] == 40
    assert len(sieve(decisions, campaign, as_of)[0]) == 120
    edges = pd.Series(
        pd.to_datetime(["2026-01-11T23:59:59.999999Z", "2026-01-12T00:00Z", "2026-01-18T23:59:59Z"], format="ISO8601")
    )
    assert in_weeks(edges, broken).tolist() == [False, True, True]
    with pytest.raises(
        DataError, match="40 of weeks whose data was found broken; mend their data, then run `tactful mon"
    ):
        countable(decisions[decisions["user_id"].str.startswith("u1")], campaign, as_of, broken)
    assert told(broken) == [
        "left out, as its data was found broken: 2026-W03, 40 decisions; to take a week back, mend its data and "
        "judge it again, as by `tactful monitor --week 2026-01-12`"
    ]
    write(tmp_path, "2026-W03", "warn")
    assert (broken_weeks(tmp_path), told({})) == ({}, [])


def test_training_and_monitor_read_the_verdicts(tmp_path, monkeypatch):
    """The frame that is trained on, and the decisions that realised uplift rests on."""
    campaign, as_of = load_campaign(), datetime(2026, 2, 25, tzinfo=UTC)
    write(tmp_path / "monitoring", "2026-W03", "stop")
    decisions = log(["2026-01-05", "2026-01-12", "2026-01-19"])
    monkeypatch.setattr(streamed, "read_decisions", lambda folder: decisions)
    monkeypatch.setattr(streamed, "training_frame", lambda store, counted, *asked: counted)
    trained = streamed.frame_in_memory(None, campaign, tmp_path, datetime(2026, 6, 1, tzinfo=UTC))
    assert sorted(trained["user_id"].str[:2].unique()) == ["u0", "u2"]

    class Model:
        spec = type("Spec", (), {"extra": {"data_window": {"to": "2025-12-01 00:00:00+00:00"}}})

    monkeypatch.setattr(inputs, "open_store", lambda: None)
    monkeypatch.setattr(inputs, "read_decisions", lambda folder: decisions)
    monkeypatch.setattr(inputs, "measure_outcomes", lambda rows, *_: pd.DataFrame(index=rows.index))
    monkeypatch.setattr(inputs, "_with_predictions", lambda store, rows, *_: rows)
    monkeypatch.setattr(inputs, "feature_schema", lambda store: None)
    monkeypatch.setattr(inputs, "known_users", lambda rows, _: rows)
    for judged, weeks in ((None, ["u0", "u2"]), (date(2026, 1, 12), ["u0", "u1", "u2"])):
        matured = inputs.matured_frame(campaign, tmp_path, Model(), as_of, judged)
        assert sorted(matured["user_id"].str[:2].unique()) == weeks


def write(folder, week, action):
    (folder / week).mkdir(parents=True, exist_ok=True)
    monday = date.fromisoformat(f"{week}-1").isoformat()
    found = dict.fromkeys(KEYS) | {"schema": 1, "week": week, "monday": monday, "action": action, "data": {"n": 40}}
    (folder / week / "decision.json").write_text(json.dumps(found))
