"""Sample size, duration, detectable effects and the ladder of thresholds."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.power import NormalIndPower, tt_ind_solve_power

from campaign import CampaignError, DataError
from monitoring.experiment.plan import ExperimentPlan, Metric
from monitoring.experiment.power import plan_experiment

HOURS = Metric(name="hours", kind="continuous", role="success")
RETENTION = Metric(name="retention", kind="binary", role="guardrail", margin=0.03, segment_margin=0.08)
RHO = 0.7


def history(n=20_000, seed=1):
    rng = np.random.default_rng(seed)
    before = rng.standard_normal(n)
    return pd.DataFrame(
        {
            "user_id": np.arange(n),
            "plan": rng.choice(["free", "trial"], n, p=[0.8, 0.2]),
            "hours": RHO * before + math.sqrt(1 - RHO**2) * rng.standard_normal(n),
            "hours_before": before,
            "retention": (rng.random(n) < 0.8).astype(float),
        }
    )


def planned(metrics, effects, frame=None, **keys):
    options = {k: keys.pop(k) for k in ("power", "users_per_day", "matures_after_days", "available_users") if k in keys}
    plan = ExperimentPlan(metric=metrics, **keys)
    return plan_experiment(history() if frame is None else frame, plan, effects, **options)


def test_one_metric_equals_statsmodels():
    frame = history()
    ours = planned((HOURS,), {"hours": 0.1}, frame)
    per_group = tt_ind_solve_power(0.1 / frame["hours"].std(), alpha=0.05, power=0.8)
    assert ours.table["users_alone"].iloc[0] == pytest.approx(2 * per_group, rel=2e-3)
    # the joint figure comes from draws: the same within their error
    assert ours.users == pytest.approx(2 * per_group, rel=0.02)


def test_unequal_shares_equal_statsmodels():
    frame = history()
    ours = planned((HOURS,), {"hours": 0.1}, frame, shares=(0.8, 0.2))
    treated = NormalIndPower().solve_power(0.1 / frame["hours"].std(ddof=0), alpha=0.05, power=0.8, ratio=4.0)
    assert ours.table["users_alone"].iloc[0] == pytest.approx(5 * treated, rel=1e-3)


def test_a_plan_with_lower_is_better_mirrors_one_with_higher():
    frame = history().assign(idle=lambda f: -f["hours"], churn=lambda f: 1 - f["retention"])
    idle, churn = (
        metric.model_copy(update={"name": name, "direction": "lower"})
        for metric, name in ((HOURS, "idle"), (RETENTION, "churn"))
    )
    higher = planned((HOURS, RETENTION), {"hours": 0.1, "retention": 0.01}, frame, segments=("plan",))
    lower = planned((idle, churn), {"idle": -0.1, "churn": -0.01}, frame, segments=("plan",))
    assert lower.users == pytest.approx(higher.users, rel=0.01)
    names = ["users_alone", "mde", "pass_probability"]
    pd.testing.assert_frame_equal(lower.table[names], higher.table[names], rtol=0.01)
    assert lower.table["expected"].tolist() == pytest.approx((-higher.table["expected"]).tolist(), nan_ok=True)


def test_cuped_cuts_users_by_the_squared_correlation():
    plain = planned((HOURS,), {"hours": 0.1}).users
    cuped = planned((HOURS.model_copy(update={"covariate": "hours_before"}),), {"hours": 0.1}).users
    assert cuped / plain == pytest.approx(1 - RHO**2, rel=0.05)


def test_guardrails_and_segments_cost_users():
    alone = planned((HOURS,), {"hours": 0.1})
    guarded = planned((HOURS, RETENTION), {"hours": 0.1}, segments=("plan",))
    assert guarded.users > alone.users
    assert guarded.ship_probability == pytest.approx(0.8, abs=0.01)
    # the whole decision is planned: every single test has more power than asked for
    tested = guarded.table.iloc[:4]
    assert (tested["pass_probability"] > 0.8).all()
    assert tested["segment"].tolist() == ["", "", "plan=free", "plan=trial"]
    # what can be seen of a success metric in a segment is told, not tested
    told = guarded.table.iloc[4:]
    assert told["segment"].tolist() == ["plan=free", "plan=trial"]
    assert told["pass_probability"].isna().all()
    assert (told["mde"] > tested["mde"].iloc[0]).all()


def test_mde_of_a_segment_follows_its_share():
    table = planned((HOURS, RETENTION), {"hours": 0.1}, segments=("plan",)).table.set_index(["metric", "segment"])
    everybody, trial = table.loc[("retention", ""), "mde"], table.loc[("retention", "plan=trial"), "mde"]
    assert trial / everybody == pytest.approx(1 / math.sqrt(table.loc[("retention", "plan=trial"), "share"]), rel=0.02)
    z = stats.norm.isf(0.05) + stats.norm.isf(0.2)
    users = planned((HOURS, RETENTION), {"hours": 0.1}, segments=("plan",)).users
    assert everybody == pytest.approx(z * math.sqrt(4 * 0.8 * 0.2 / users), rel=0.02)


def test_a_segment_is_planned_with_its_own_margin():
    """By hand: users for a one-sided test at .05 with power .8 that a harmless candidate clears the margin."""
    table = planned((HOURS, RETENTION), {"hours": 0.1}, segments=("plan",)).table.set_index(["metric", "segment"])
    z = stats.norm.isf(0.05) + stats.norm.isf(0.2)
    for segment, margin in (("", 0.03), ("plan=trial", 0.08)):
        row = table.loc[("retention", segment)]
        assert (row["margin"], row["expected"]) == (margin, pytest.approx(0.0, abs=1e-12))
        assert row["users_alone"] == math.ceil(4 * (z * row["sd"] / margin) ** 2 / row["share"])
    wide = planned((HOURS, RETENTION.model_copy(update={"segment_margin": 0.5})), {"hours": 0.1}, segments=("plan",))
    narrow = planned((HOURS, RETENTION.model_copy(update={"segment_margin": None})), {"hours": 0.1}, segments=("plan",))
    assert narrow.users > 2 * wide.users


def test_looks_cost_little_and_duration_includes_maturity():
    one = planned((HOURS,), {"hours": 0.1}, users_per_day=100, matures_after_days=30)
    five = planned((HOURS,), {"hours": 0.1}, looks=5)
    assert 1.0 < five.users / one.users < 1.06
    assert one.entry_days == math.ceil(one.users / 100)
    assert one.days == one.entry_days + 30
    assert five.days is None
    assert five.plan.planned_users == five.users


def test_planning_is_deterministic():
    assert planned((HOURS, RETENTION), {"hours": 0.1}).users == planned((HOURS, RETENTION), {"hours": 0.1}).users


@pytest.mark.parametrize(
    ("effects", "keys", "message"),
    [
        ({"hour": 0.1}, {}, r"unknown metric 'hour'; the plan has \['hours', 'retention'\]"),
        ({}, {}, r"give the expected improvement of one of \['hours'\]"),
        ({"hours": -0.1}, {}, "give the expected improvement"),
        ({"hours": 0.1, "retention": -0.03}, {}, "retention is expected to lose 0.03, its margin is 0.03"),
        ({"hours": 0.1, "retention": 0.3}, {}, "retention is 0.798 and cannot move by"),
        ({"hours": 0.1}, {"power": 1.0}, "power == 1, must be between"),
        ({"hours": 1e-6}, {}, "more than 1e.09 users needed"),
        (
            {"hours": 0.1},
            {"available_users": 2000},
            "users needed for power 0.8, but there are 2000: with these it is 0.*test is retention of everybody",
        ),
    ],
)
def test_impossible_plan_is_refused(effects, keys, message):
    with pytest.raises(CampaignError, match=message):
        planned((HOURS, RETENTION), effects, **keys)


def test_history_without_a_column_or_variation_is_refused():
    with pytest.raises(DataError, match="column 'plan': the plan names it"):
        planned((HOURS,), {"hours": 0.1}, history().drop(columns="plan"), segments=("plan",))
    with pytest.raises(CampaignError, match="retention: 20000 past users, no variation"):
        planned((HOURS, RETENTION), {"hours": 0.1}, history().assign(retention=1.0))
