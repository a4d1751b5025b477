"""Quality checks: what each one sees, and that nothing ships past one."""

import numpy as np
import pandas as pd
import pytest
from experiment_tables import LISTENING, PLAN, RETENTION, SUBSCRIPTION, users

from monitoring.experiment.plan import ExperimentPlan
from monitoring.experiment.read import read_experiment


def test_sample_ratio_mismatch_never_ships():
    readout = read_experiment(users(lift=0.04, share=0.54), PLAN)
    assert readout.decision == "hold"
    assert "sample ratio mismatch (SRM)" in readout.reasons[0]


@pytest.mark.parametrize("column", ["plan", "day"])
def test_sample_ratio_is_checked_by_segment_and_day(column):
    frame = users(lift=0.04, n=20_000).assign(day="2026-01-01")
    # a broken day or segment, made up for elsewhere so that the overall ratio is right
    frame.loc[:3000, column] = "broken"
    drop = frame.index[(frame[column] == "broken") & (frame["variant"] == "control")][:300]
    other = frame.index[(frame[column] != "broken") & (frame["variant"] == "treatment")][:300]
    readout = read_experiment(frame.drop(index=[*drop, *other]), PLAN)
    assert readout.checks.query("scope == ''")["passed"].all()
    assert readout.decision == "hold"
    assert f"{column}=broken" in readout.reasons[0]


@pytest.mark.parametrize(("treated", "passed"), [(5164, True), (5166, False)])  # chi-square 10.76 and 11.02; 10.83
def test_the_sample_ratio_is_judged_at_one_in_a_thousand(treated, passed):
    frame = pd.DataFrame({"user_id": np.arange(10_000), "subscription": np.arange(10_000) % 2})
    frame["variant"] = np.where(np.arange(10_000) < treated, "treatment", "control")
    check = read_experiment(frame, ExperimentPlan(metric=(SUBSCRIPTION,))).checks.iloc[0]
    assert (check["check"], check["passed"]) == ("sample_ratio", passed)


def test_a_covariate_measured_after_the_start_never_ships():
    frame = users(lift=0.04)
    frame["listening_before"] += 0.4 * (frame["variant"] == "treatment")
    readout = read_experiment(frame, PLAN.model_copy(update={"metric": (SUBSCRIPTION, LISTENING)}))
    assert readout.decision != "ship"
    assert any("variants differ before the experiment in listening" in reason for reason in readout.reasons)


def test_a_trigger_that_depends_on_the_variant_never_ships():
    frame = users(lift=0.04)
    frame["differs"] = (frame["variant"] == "treatment") | (np.arange(len(frame)) % 3 == 0)
    readout = read_experiment(frame, PLAN.model_copy(update={"trigger": "differs"}))
    assert readout.decision == "hold"
    assert "the trigger depends on the variant" in readout.reasons[0]


def test_crossed_delivery_and_unequal_reach_never_ship():
    frame = users(lift=0.04)
    plan = PLAN.model_copy(update={"exposure": "received"})
    other = frame["variant"].map({"control": "treatment", "treatment": "control"})
    tolerated = frame["variant"].where(np.arange(len(frame)) % 100 > 0, other)  # one in a hundred, exactly
    assert read_experiment(frame.assign(received=tolerated), plan).decision == "ship"
    crossed = frame["variant"].where(np.arange(len(frame)) % 20 > 0, "control")
    readout = read_experiment(frame.assign(received=crossed), plan)
    assert readout.decision == "hold"
    assert "delivery check failed" in readout.reasons[0]
    reached = frame["variant"].where((frame["variant"] == "control") | (np.arange(len(frame)) % 4 > 0), None)
    assert "exposure differs" in read_experiment(frame.assign(received=reached), plan).reasons[0]
    assert read_experiment(frame.assign(received=frame["variant"]), plan).decision == "ship"
    nobody = read_experiment(frame.assign(received=None), plan)
    assert nobody.decision == "hold"
    assert "delivery check failed: received is null for all" in nobody.reasons[0]


@pytest.mark.parametrize("shift", [-1.0, 1.0])
@pytest.mark.parametrize("where", ["free|trial|premium", "trial"])
def test_a_covariate_that_differs_is_left_out_and_moves_no_decision(where, shift):
    """Through it, an effect of 0 would be one of about -0.8 * shift: a rollback, or an improvement."""
    metrics = (SUBSCRIPTION, LISTENING)
    frame = users(n=8000).assign(day=1)
    moved = (frame["variant"] == "treatment") & frame["plan"].str.fullmatch(where)
    frame["listening_before"] += 2 * shift * moved
    readout = read_experiment(frame, PLAN.model_copy(update={"metric": metrics}))
    (reason,) = [r for r in readout.reasons if "variants differ before the experiment in listening" in r]
    assert reason.endswith("this metric is read without its covariate")
    assert ("in plan=trial" in reason) == (where == "trial")
    assert readout.decision == "hold"
    plain = PLAN.model_copy(update={"metric": (SUBSCRIPTION, LISTENING.model_copy(update={"covariate": None}))})
    pd.testing.assert_frame_equal(readout.table, read_experiment(frame, plain).table)


def test_a_covariate_that_is_the_variant_itself_fails_and_a_constant_one_passes():
    plan = PLAN.model_copy(update={"metric": (LISTENING,), "segments": ()})
    frame = users(n=2000)
    for values, passed in ((frame["variant"] == "treatment").astype(float), False), (0.1, True):
        checks = read_experiment(frame.assign(listening_before=values), plan).checks.set_index("check")
        assert checks.loc["covariate", "passed"] == passed


def test_a_healthy_covariate_fails_at_its_nominal_rate():
    plan = PLAN.model_copy(update={"metric": (LISTENING,), "srm_p": 0.05})
    checks = [read_experiment(users(n=600, seed=seed), plan).checks.set_index("check") for seed in range(150)]
    failed = sum(not check.loc["covariate", "passed"] for check in checks)
    assert failed <= 150 * 0.05 + 3 * np.sqrt(150 * 0.05 * 0.95)


def test_an_effect_outside_the_trigger_is_seen_and_everybody_is_read():
    frame = users(n=12_000, lift=0.04).assign(differs=np.arange(12_000) % 3 == 0)  # the lift is on all
    readout = read_experiment(frame, PLAN.model_copy(update={"trigger": "differs"}))
    assert readout.decision == "hold"
    assert "moves users whom the trigger leaves out: 66.7% of users do not trigger" in readout.reasons[0]
    control, treated = frame[~frame["differs"]].groupby("variant")["subscription"].mean()
    assert f"subscription {100 * (treated - control):+.2f} pp under treatment" in readout.reasons[0]
    assert readout.reasons[0].endswith("effects are read on everybody, without the trigger")
    pd.testing.assert_frame_equal(readout.table, read_experiment(frame, PLAN).table)


def test_no_rollback_comes_from_a_trigger_that_failed():
    """The trigger picks treated users who stayed less: among those, retention looks 40 pp worse."""
    frame = users(n=6000)
    treated, kept = frame["variant"] == "treatment", frame["retention"] == 1
    frame["differs"] = np.arange(6000) % 2 == 0
    frame.loc[treated & kept & (np.arange(6000) % 4 == 0), "differs"] = False
    readout = read_experiment(frame, PLAN.model_copy(update={"trigger": "differs"}))
    assert readout.decision == "hold"
    assert any("the trigger depends on the variant" in reason for reason in readout.reasons)


def test_a_healthy_trigger_passes_and_is_judged_over_all_metrics():
    rng = np.random.default_rng(3)
    plan = PLAN.model_copy(update={"metric": (SUBSCRIPTION, LISTENING, RETENTION), "trigger": "differs"})
    rows = []
    for seed in range(100):
        frame = users(n=1000, seed=seed)
        frame["differs"] = rng.random(1000) < 0.3
        rows.append(read_experiment(frame, plan).checks.set_index("check").loc["untriggered"])
    assert sum(not row["passed"] for row in rows) <= 4  # 1 expected
    assert 0.2 < np.mean([row["pvalue"] > 0.5 for row in rows]) < 0.9  # Bonferroni of three: about .6
