"""Ship, hold or roll back: the decision rule and its reasons."""

import json

import numpy as np
import pandas as pd
import pytest
from experiment_tables import PLAN, SUBSCRIPTION, users
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from monitoring.experiment.decide import with_alarms
from monitoring.experiment.look import current_look
from monitoring.experiment.plan import ExperimentPlan, Metric
from monitoring.experiment.read import read_experiment
from monitoring.experiment.report import markdown


def test_good_candidate_ships():
    readout = read_experiment(users(lift=0.04), PLAN)
    assert (readout.decision, readout.variant) == ("ship", "treatment")
    assert "subscription" in readout.reasons[0]
    assert "improved" in readout.reasons[0]


def test_no_effect_holds_and_says_what_is_missing():
    readout = read_experiment(users(), PLAN)
    assert readout.decision == "hold"
    assert "no success metric is shown to improve" in readout.reasons[0]


def test_harm_in_one_segment_rolls_back_although_everybody_looks_better():
    readout = read_experiment(users(n=12_000, lift=0.04, harm=-0.25, harmed="trial"), PLAN)
    assert readout.decision == "rollback"
    assert any("deterioration alarm: retention in plan=trial" in reason for reason in readout.reasons)


def test_a_loss_shown_to_lie_within_the_margin_ships_and_is_told():
    readout = read_experiment(users(n=60_000, lift=0.04, harm=-0.03, harmed="free"), PLAN)
    assert readout.decision == "ship"
    assert any("worse, within its margin" in reason for reason in readout.reasons)


def test_direction_lower_is_better_mirrors_higher():
    frame = users(lift=0.04, harm=-0.02)
    mirrored = frame.assign(subscription=1 - frame["subscription"], retention=1 - frame["retention"])
    lower = tuple(m.model_copy(update={"direction": "lower"}) for m in PLAN.metric)
    ours, theirs = read_experiment(frame, PLAN), read_experiment(mirrored, PLAN.model_copy(update={"metric": lower}))
    assert ours.decision == theirs.decision
    assert ours.table["effect_size"].to_numpy() == pytest.approx(-theirs.table["effect_size"].to_numpy(), abs=1e-12)
    assert ours.table["ci_lower"].to_numpy() == pytest.approx(-theirs.table["ci_upper"].to_numpy(), abs=1e-12)
    assert ours.table["pvalue"].to_numpy() == pytest.approx(theirs.table["pvalue"].to_numpy(), abs=1e-9)


def test_several_candidates_share_the_error_and_the_best_ships():
    rng = np.random.default_rng(4)
    arm = rng.integers(0, 3, 15_000)
    frame = users(n=15_000).assign(variant=np.array(["none", "low", "high"])[arm])
    frame["subscription"] = (rng.random(15_000) < np.array([0.10, 0.13, 0.16])[arm]).astype(float)
    plan = PLAN.model_copy(update={"control": "none", "treatment": ("low", "high")})
    readout = read_experiment(frame, plan)
    assert (readout.decision, readout.variant) == ("ship", "high")
    assert readout.table.query("role == 'guardrail'")["ci_level"].iloc[0] == pytest.approx(0.95)


def test_of_several_candidates_the_best_is_the_one_that_lowers_what_should_be_low():
    frame = users(n=12_000)
    frame["variant"] = np.array(["control", "some", "most"])[np.arange(12_000) % 3]
    churned = 0.3 - 0.06 * (frame["variant"] == "some") - 0.12 * (frame["variant"] == "most")
    frame["churn"] = (np.random.default_rng(2).random(12_000) < churned).astype(int)
    churn = Metric(name="churn", kind="binary", role="success", direction="lower")
    readout = read_experiment(frame, ExperimentPlan(treatment=("most", "some"), metric=(churn,)))
    assert (readout.decision, readout.variant) == ("ship", "most")
    assert readout.table["status"].tolist() == ["improved", "improved"]


@pytest.mark.parametrize(("beyond", "rings"), [(-0.001, False), (0.001, True)])
def test_the_alarm_shares_alpha_between_everybody_and_the_segments(beyond, rings):
    look = current_look(PLAN, 10_000)

    def row(segment, z):
        return {"segment": segment, "role": "guardrail", "direction": "higher", "status": "not_shown", "z": z}

    everybody, segment = look.alarm(0.05 / 2) + beyond, look.alarm(0.05 / 2 / 2) + beyond
    rows = [row("", -everybody), row("plan=a", -segment), row("plan=b", 0.0)]
    assert [row["alarm"] for row in with_alarms(rows, PLAN, look)] == [rings, rings, False]
    alone = [row("", -(look.alarm(0.05) + beyond))]  # without segments, nothing is kept for them
    assert with_alarms(alone, PLAN, look)[0]["alarm"] == rings


def test_a_candidate_that_harms_is_stopped_while_the_other_ships():
    rng = np.random.default_rng(4)
    arm = rng.integers(0, 3, 15_000)
    frame = users(n=15_000).assign(variant=np.array(["none", "low", "high"])[arm])
    frame["subscription"] = (rng.random(15_000) < np.array([0.10, 0.14, 0.20])[arm]).astype(float)
    frame["retention"] = (rng.random(15_000) < np.array([0.80, 0.80, 0.60])[arm]).astype(float)
    readout = read_experiment(frame, PLAN.model_copy(update={"control": "none", "treatment": ("low", "high")}))
    assert (readout.decision, readout.variant) == ("ship", "low")
    assert "stop high" in readout.reasons


@pytest.mark.parametrize(("direction", "end"), [("higher", 0), ("lower", 1)])
@pytest.mark.parametrize("kind", ["binary", "continuous"])
def test_a_guardrail_passes_exactly_where_its_bad_bound_clears_the_margin(direction, end, kind):
    frame = users(n=4000, seed=5)
    treated = frame["variant"] == "treatment"
    if kind == "binary":
        frame["kept"] = frame["retention"]
        counts = [f(frame["kept"][rows]) for rows in (treated, ~treated) for f in (np.sum, len)]
        bounds = confint_proportions_2indep(*counts, method="newcomb", alpha=0.1)
    else:
        frame["kept"] = frame["listening"]
        groups = (DescrStatsW(frame["kept"][rows]) for rows in (treated, ~treated))
        bounds = CompareMeans(*groups).tconfint_diff(alpha=0.1, usevar="unequal")
    loss = -bounds[0] if end == 0 else bounds[1]  # the largest loss that the one-sided 95% bound leaves open
    assert loss > 0
    for margin, status in ((1.001 * loss, "non_inferior"), (0.999 * loss, "not_shown")):
        guardrail = Metric(name="kept", kind=kind, role="guardrail", direction=direction, margin=margin)
        row = read_experiment(frame, ExperimentPlan(metric=(SUBSCRIPTION, guardrail))).table.iloc[1]
        assert row["status"] == status


def test_success_metrics_are_judged_by_holm():
    rng = np.random.default_rng(8)
    n = 4000
    treated = np.arange(n) % 2 == 1
    plan = ExperimentPlan(metric=tuple(Metric(name=m, kind="continuous", role="success") for m in "abc"))
    noise = rng.standard_normal((3, n))
    for rows in (treated, ~treated):
        noise[:, rows] -= noise[:, rows].mean(axis=1, keepdims=True)
    for shifts in ((0.120, 0.072, 0.065), (0.120, 0.065, 0.040), (0.070, 0.070, 0.070)):
        frame = pd.DataFrame({"user_id": np.arange(n), "variant": np.where(treated, "treatment", "control")})
        for name, row, shift in zip("abc", noise, shifts, strict=True):
            frame[name] = row + shift * treated
        table = read_experiment(frame, plan).table
        expected = multipletests(table["pvalue"], 0.05, "holm")[0]
        assert (table["status"] == "improved").tolist() == expected.tolist()


def test_the_package_offers_it():
    import monitoring

    assert monitoring.read_experiment is read_experiment
    assert monitoring.ExperimentPlan is ExperimentPlan
    assert isinstance(read_experiment(users(n=300), PLAN), monitoring.Readout)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = monitoring.nothing


def test_readout_is_json():
    frame = users(n=300)
    text = json.dumps(read_experiment(frame, PLAN).to_dict(), allow_nan=False)
    assert json.loads(text)["decision"] == "hold"


@pytest.mark.parametrize(("alpha", "told"), [(0.05, "95%"), (0.001, "99.9%"), (0.005, "99.5%"), (1e-5, "99.999%")])
def test_the_level_of_an_interval_is_told_exactly(alpha, told):
    readout = read_experiment(users(), PLAN.model_copy(update={"alpha": alpha}))
    assert f"({told} interval)" in readout.reasons[0]
    assert f"| {told} |" in markdown(readout, "one")
