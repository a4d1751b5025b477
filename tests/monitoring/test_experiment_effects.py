"""The table of effects: equal to statsmodels, with and without covariate and trigger, and what must not matter."""

import numpy as np
import pandas as pd
import pytest
from experiment_tables import LISTENING, PLAN, RETENTION, SUBSCRIPTION, users
from scipy import stats
from statsmodels.stats.proportion import confint_proportions_2indep
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from monitoring.experiment.plan import ExperimentPlan
from monitoring.experiment.read import read_experiment


def test_table_equals_statsmodels_in_every_segment():
    plan = PLAN.model_copy(
        update={"metric": (SUBSCRIPTION, LISTENING.model_copy(update={"covariate": None}), RETENTION)}
    )
    frame = users(lift=0.01)
    for _, row in read_experiment(frame, plan).table.iterrows():
        part = frame if row["segment"] == "" else frame[frame["plan"] == row["segment"].removeprefix("plan=")]
        y1, y0 = (part.loc[part["variant"] == v, row["metric"]] for v in ("treatment", "control"))
        alpha = 1 - row["ci_level"]
        if row["kind"] == "binary":
            expected = confint_proportions_2indep(
                y1.sum(), len(y1), y0.sum(), len(y0), method="newcomb", compare="diff", alpha=alpha
            )
        else:
            expected = CompareMeans(DescrStatsW(y1), DescrStatsW(y0)).tconfint_diff(alpha, usevar="unequal")
        assert (row["ci_lower"], row["ci_upper"]) == pytest.approx(expected, abs=1e-8)
        assert row["ci_level"] == pytest.approx(0.9 if row["role"] == "guardrail" else 0.95)


def test_covariate_narrows_the_interval_and_is_reported():
    with_covariate = PLAN.model_copy(update={"metric": (LISTENING,), "segments": ()})
    without = PLAN.model_copy(update={"metric": (LISTENING.model_copy(update={"covariate": None}),), "segments": ()})
    frame = users()
    narrow, wide = (read_experiment(frame, plan).table.iloc[0] for plan in (with_covariate, without))
    correlation = np.corrcoef(frame["listening"], frame["listening_before"])[0, 1]
    assert narrow["variance_ratio"] == pytest.approx(1 - correlation**2, abs=1e-3)
    ratio = (narrow["ci_upper"] - narrow["ci_lower"]) / (wide["ci_upper"] - wide["ci_lower"])
    assert ratio == pytest.approx(np.sqrt(1 - correlation**2), rel=0.03)
    assert narrow["method"] == "cuped"


def test_missing_covariate_is_filled_with_the_mean_and_noted():
    plan = PLAN.model_copy(update={"metric": (LISTENING,)})
    frame = users()
    frame.loc[:499, "listening_before"] = np.nan
    readout = read_experiment(frame, plan)
    assert any("listening_before: 500 of 6000 users had none" in note for note in readout.notes)
    filled = frame.fillna({"listening_before": frame["listening_before"].mean()})
    assert read_experiment(filled, plan).table["effect_size"].tolist() == readout.table["effect_size"].tolist()


def test_rare_events_do_not_use_a_normal_interval_and_are_insufficient():
    frame = users(n=400).assign(subscription=0.0, subscription_before=0.0)
    frame.loc[:3, "subscription"] = 1.0
    metric = SUBSCRIPTION.model_copy(update={"covariate": "subscription_before"})
    readout = read_experiment(frame, PLAN.model_copy(update={"metric": (metric,), "segments": ()}))
    row = readout.table.iloc[0]
    assert (row["method"], row["status"], readout.decision) == ("newcombe", "insufficient", "hold")
    assert "insufficient data" in readout.reasons[0]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_binary_outcome_has_an_interval(value):
    row = read_experiment(users().assign(retention=value), PLAN).table.query("metric == 'retention'").iloc[0]
    assert row["effect_size"] == 0
    assert row["ci_lower"] < 0 < row["ci_upper"]
    assert row["status"] == "non_inferior"


def test_a_constant_covariate_changes_nothing_and_is_noted():
    frame = users().assign(listening_before=1.0)
    plan = PLAN.model_copy(update={"metric": (LISTENING,)})
    without = plan.model_copy(update={"metric": (LISTENING.model_copy(update={"covariate": None}),)})
    readout = read_experiment(frame, plan)
    assert readout.table["effect_size"].tolist() == read_experiment(frame, without).table["effect_size"].tolist()
    assert readout.notes == ["listening_before: the same for everybody, so it narrows nothing"]


def test_constant_continuous_outcome_is_insufficient_without_interval():
    plan = PLAN.model_copy(update={"metric": (LISTENING,)})
    row = read_experiment(users().assign(listening=3.5), plan).table.iloc[0]
    assert row["status"] == "insufficient"
    assert np.isnan(row["ci_lower"])


def test_row_order_and_index_do_not_matter():
    frame = users(lift=0.02).assign(day="x")
    shuffled = frame.sample(frac=1, random_state=1)
    ours, theirs = read_experiment(frame, PLAN), read_experiment(shuffled, PLAN)
    pd.testing.assert_frame_equal(ours.table, theirs.table, rtol=1e-9)
    assert ours.reasons == theirs.reasons


def test_swapping_variants_flips_effects():
    frame = users(lift=0.02)
    swapped = read_experiment(frame, PLAN.model_copy(update={"control": "treatment", "treatment": "control"}))
    ours = read_experiment(frame, PLAN)
    assert swapped.table["effect_size"].tolist() == pytest.approx((-ours.table["effect_size"]).tolist(), abs=1e-12)


def test_scaling_a_continuous_metric_scales_its_row():
    plan = PLAN.model_copy(update={"metric": (LISTENING,), "segments": ()})
    frame = users()
    one, hundred = (
        read_experiment(frame.assign(listening=frame["listening"] * k), plan).table.iloc[0] for k in (1, 100)
    )
    assert hundred["ci_upper"] == pytest.approx(100 * one["ci_upper"], rel=1e-9)
    assert hundred["pvalue"] == pytest.approx(one["pvalue"], rel=1e-9)


def test_triggered_analysis_agrees_and_is_narrower():
    frame = users(n=20_000).assign(differs=np.arange(20_000) % 5 == 0)
    rng = np.random.default_rng(2)
    lifted = frame["differs"] & (frame["variant"] == "treatment")
    frame["subscription"] = (rng.random(20_000) < 0.1 + 0.1 * lifted).astype(float)
    plain = read_experiment(frame, PLAN).table.iloc[0]
    triggered = read_experiment(frame, PLAN.model_copy(update={"trigger": "differs"}))
    row = triggered.table.iloc[0]
    width, plain_width = row["ci_upper"] - row["ci_lower"], plain["ci_upper"] - plain["ci_lower"]
    assert row["effect_size"] == pytest.approx(plain["effect_size"], abs=plain_width)
    assert width < 0.6 * plain_width
    everybody = frame.loc[frame["variant"] == "control", "subscription"].mean()
    assert row["rel_effect_size"] == pytest.approx(row["effect_size"] / everybody)
    assert any("20.0% of users" in note and "5 times smaller" in note for note in triggered.notes)


@pytest.mark.parametrize("touched", [0, 12])
def test_a_segment_that_the_candidate_hardly_touches_is_read_on_everybody(touched):
    """Both policies send nothing to trial users: their guardrail must not hold the experiment up for ever."""
    frame = users(n=20_000).assign(differs=lambda f: (f["plan"] != "trial") & (np.arange(20_000) % 3 == 0))
    frame.loc[frame.index[frame["plan"] == "trial"][:touched], "differs"] = True
    rng = np.random.default_rng(2)
    lifted = frame["differs"] & (frame["variant"] == "treatment")
    frame["subscription"] = (rng.random(20_000) < 0.1 + 0.08 * lifted).astype(float)
    readout = read_experiment(frame, PLAN.model_copy(update={"trigger": "differs"}))
    assert readout.decision == "ship"
    assert any(note.endswith("are decided about differently: plan=trial") for note in readout.notes)
    rows, plain = (read.table.query("segment == 'plan=trial'") for read in (readout, read_experiment(frame, PLAN)))
    pd.testing.assert_frame_equal(rows, plain)
    assert (rows["dilution"] == 1).all()
    assert readout.table.query("segment == 'plan=free'")["dilution"].between(0.3, 0.37).all()


def test_dilution_is_the_share_of_triggered_users_in_the_two_variants():
    """By hand, with three variants: share p of the n users of both; sd of its estimate sqrt(p (1 - p) / n)."""
    rng = np.random.default_rng(3)
    arm = rng.integers(0, 3, 3000)
    frame = users(n=3000).assign(variant=np.array(["none", "low", "high"])[arm], differs=rng.random(3000) < 0.3)
    frame["listening"] += 4.0 * (frame["differs"] & (arm == 2))
    metric = LISTENING.model_copy(update={"covariate": None})
    plan = ExperimentPlan(control="none", treatment=("low", "high"), metric=(metric,), trigger="differs")
    row = read_experiment(frame, plan).table.set_index("variant").loc["high"]
    pair = frame[arm != 1]
    y1, y0 = (pair.loc[pair["differs"] & (pair["variant"] == v), "listening"] for v in ("high", "none"))
    p, n, among = pair["differs"].mean(), len(pair), y1.mean() - y0.mean()
    low, high = CompareMeans(DescrStatsW(y1), DescrStatsW(y0)).tconfint_diff(0.05, usevar="unequal")
    wobble = stats.norm.isf(0.025) * among * np.sqrt(p * (1 - p) / n)
    assert (row["n_control"], row["n_treatment"], row["dilution"]) == (len(y0), len(y1), pytest.approx(p))
    assert row["effect_size"] == pytest.approx(p * among, rel=1e-12)
    expected = p * among - np.hypot(p * (among - low), wobble), p * among + np.hypot(p * (high - among), wobble)
    assert (row["ci_lower"], row["ci_upper"]) == pytest.approx(expected, rel=1e-9)
