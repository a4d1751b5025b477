import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from models.frame import first_per_window


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
