"""Several looks: bounds, earlier readings, and reading on past the end."""

import numpy as np
import pandas as pd
import pytest
from experiment_tables import PLAN, users

from monitoring.experiment.look import current_look
from monitoring.experiment.read import read_experiment
from monitoring.experiment.stats import alarm_z

PAST = PLAN.model_copy(update={"planned_users": 3000, "looks": 3, "segments": ()})


def test_looks_widen_early_intervals_and_the_table_size_says_which_look():
    plan = PLAN.model_copy(update={"looks": 5, "planned_users": 6000, "segments": ()})
    frame = users(lift=0.04)
    first, last = read_experiment(frame.iloc[:1200], plan), read_experiment(frame, plan)
    assert (first.look.number, last.look.number) == (1, 5)
    assert first.look.critical(0.025) == pytest.approx(4.8769, abs=1e-3)
    assert last.look.critical(0.025) == pytest.approx(2.0310, abs=1e-3)
    assert last.decision == "ship"


def test_looks_without_planned_users_share_alpha_equally():
    look = current_look(PLAN.model_copy(update={"looks": 5}), 1000)
    assert look.critical(0.025) == pytest.approx(2.5758, abs=1e-4)


def test_earlier_readings_are_paid_for():
    plan = PLAN.model_copy(update={"looks": 2, "planned_users": 1000})
    planned, often = current_look(plan, 1000), current_look(plan, 1000, previous=[0.2, 0.4, 0.5, 0.6, 0.8, 0.9])
    assert often.critical(0.025) > planned.critical(0.025) > current_look(plan, 1000, previous=[]).critical(0.025)
    # reading the same data again is not another look
    assert current_look(plan, 500, previous=[0.5]) == current_look(plan, 500, previous=[])


def test_of_more_users_than_planned_nobody_knows_the_order_of_the_bound_holds_at_every_reading():
    frame = users(lift=0.04)
    readout = read_experiment(frame, PAST)
    assert readout.decision == "ship"  # on evidence this strong
    assert readout.look.critical(0.025) == pytest.approx(alarm_z(0.025, 6000, 3000))
    assert any("6000 users, planned were 3000: bounds are those that hold however often" in n for n in readout.notes)
    exact = read_experiment(frame, PAST.model_copy(update={"planned_users": 6000}))
    assert not any("planned were" in note for note in exact.notes)
    assert exact.look.critical(0.025) < 2.1


DAYS = {
    "text": lambda day: pd.Series(pd.Timestamp("2026-01-28") + pd.to_timedelta(day, unit="D")).dt.strftime("%Y-%m-%d"),
    "numbers": lambda day: day + 3,
    "dates": lambda day: pd.Series(pd.Timestamp("2026-01-28") + pd.to_timedelta(day, unit="D")).dt.date,
    "instants": lambda day: pd.Timestamp("2026-01-28", tz="UTC") + pd.to_timedelta(day * 24, unit="h"),
}


@pytest.mark.parametrize("kind", list(DAYS))
def test_with_days_of_entry_reading_on_past_the_end_changes_nothing(kind):
    frame = users(lift=0.01).assign(day=DAYS[kind](np.arange(6000) // 400))  # 15 days; 3,000 are 7.5 of them
    full = read_experiment(frame.iloc[:3200], PAST)
    later = read_experiment(frame.sample(frac=1, random_state=1), PAST)
    assert (later.look, later.decision, later.reasons) == (full.look, full.decision, full.reasons)
    assert later.look.critical(0.025) < 2.1
    pd.testing.assert_frame_equal(later.table, full.table)
    assert any("6000 users: the first 3200 are read" in note for note in later.notes)


@pytest.mark.parametrize(("per_day", "read"), [(1000, 3000), (1500, 3000), (1600, 3200), (2999, 5998)])
def test_whole_days_are_read_until_the_planned_users_are_in(per_day, read):
    readout = read_experiment(users().assign(day=np.arange(6000) // per_day), PAST)
    assert readout.look.users == read
    assert not readout.look.past_end


@pytest.mark.parametrize("days", [None, "some day"])
def test_days_that_cannot_be_read_leave_nobody_out(days):
    frame = users().assign(day="2026-01-01")
    frame.loc[5, "day"] = days
    readout = read_experiment(frame, PAST)
    assert readout.look.past_end
    assert readout.look.users == 6000


@pytest.mark.parametrize("day", ["2026-01-01", True, 1.0])
def test_one_day_for_everybody_tells_nobody_apart(day):
    """More may enter on the day that completes the planned users: read again, it would be another test at its bound."""
    readout = read_experiment(users().assign(day=day), PAST)
    assert (readout.look.past_end, readout.look.users) == (True, 6000)
    assert any("day of entry in column 'day' (a date such as 2026-11-25, or a number)" in n for n in readout.notes)


@pytest.mark.parametrize(("per_day", "past_end"), [(800, False), (801, True)])  # a quarter of the 3,200 read, or more
def test_a_last_day_that_is_a_large_part_of_the_experiment_may_still_be_filling(per_day, past_end):
    day = np.where(np.arange(3200) < 3200 - per_day, 1, 2)
    assert read_experiment(users().iloc[:3200].assign(day=day), PAST).look.past_end == past_end
    later = users().iloc[:3300].assign(day=np.r_[day, [3] * 100])  # a later day has begun: that one is complete
    assert not read_experiment(later, PAST).look.past_end
