"""Data checks on the simulated platform's features: its real changes turn no column to one value, slips of ours do."""

from datetime import date, timedelta

import numpy as np
import pandas as pd
import pytest

from campaign import load_campaign
from feature_repo.snapshots import build_snapshots
from monitoring.checks import _columns
from monitoring.inputs import MOVING
from monitoring.profile import Counts, _edges, count_column
from simulator import Drift, World

END, DAYS, CHANGE = date(2026, 11, 2), 154, 119
OPENS = END - timedelta(days=DAYS - CHANGE)
BEFORE = [OPENS - timedelta(weeks=k) for k in range(3)]
AFTER = [OPENS + timedelta(weeks=k) for k in range(1, 6)]
KINDS = ["market", "pause", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("price", "fatigue"))]


@pytest.fixture(scope="module")
def lived(tmp_path_factory):
    """Features of all users, by day, of a platform with some change; a pause: no messages from that day on."""
    kept = {}

    def features(kind):
        if kind not in kept:
            root, rng = tmp_path_factory.mktemp(kind), np.random.default_rng(3)
            drifts, messages = [] if kind == "pause" else [Drift(kind, CHANGE)], load_campaign().arm_names[1:]
            world = World(root, 900, DAYS, 5, end=END, messages=messages, phase_step=7, drifts=drifts)
            while world.day < DAYS:
                arms = rng.integers(0, 2, len(world.due().user_ids))
                world.decide(arms * (kind != "pause" or world.day < CHANGE))
                world.advance()
            build_snapshots(root / "logs", root / "features", max(AFTER), only=[*BEFORE, *AFTER])
            file = "date={}/snapshot.parquet"
            kept[kind] = {d: pd.read_parquet(root / "features" / file.format(d)) for d in (*BEFORE, *AFTER)}
        return kept[kind]

    return features


def checked(before, week):
    """The checks of a week's features against a profile of those before: name -> check."""
    columns = {}
    for name in before.columns.drop(["user_id", "event_timestamp", "created_timestamp"]):
        kind = "numeric" if pd.api.types.is_numeric_dtype(before[name]) else "string"
        values, role = before[name].to_numpy(), "ignored" if name in MOVING else "feature"
        columns[name] = {"kind": kind, "role": role} | (_edges(name, values) if kind == "numeric" else {})
        counts = count_column(columns[name], values)
        columns[name] |= {"bins": counts.bins, "missing": counts.missing, "zeros": counts.zeros}
    profile = {"n": len(before), "eligible": 0, "columns": columns}
    settled, everybody = (
        Counts(len(rows), 0, {name: count_column(columns[name], rows[name].to_numpy()) for name in columns})
        for rows in (week[week["account_age_days"] >= 28], week)
    )
    return {check.name: check for check in _columns(profile, settled, everybody, load_campaign())}


@pytest.mark.parametrize("kind", KINDS)
def test_changes_of_the_platform_turn_no_column_to_one_value(lived, kind):
    days = lived(kind)
    before = pd.concat([days[d] for d in BEFORE], ignore_index=True)
    found = [checked(before, days[d]) for d in AFTER]
    assert [check.detail for week in found for check in week.values() if not check.ok] == []
    # what was found lies far from what is allowed
    assert max(week["stuck"].value for week in found) == 0
    assert max(week["one_category"].value for week in found) < 0.3


@pytest.mark.parametrize("column", ["minutes_7d", "minutes_28d", "minutes_90d"])
def test_minutes_written_as_hours_and_a_stuck_column_stop(lived, column):
    days = lived("pause")
    before, week = pd.concat([days[d] for d in BEFORE], ignore_index=True), days[AFTER[0]]
    slips = {"hours": week[column] / 60, "stuck": week[column] * 0 + week[column].median()}
    slips["-1"] = week[column].mask(np.arange(len(week)) % 5 > 0, -1.0)
    for values in slips.values():
        assert f"{column}: " in checked(before, week.assign(**{column: values}))["stuck"].detail
        assert not checked(before, week.assign(**{column: values}))["stuck"].ok
    assert checked(before, week.assign(**{column: week[column] * 2}))["stuck"].ok  # not told from drift
