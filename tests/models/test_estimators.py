"""Known answers: what every estimator must give exactly, whatever the data.

The thirteen, and where each is tested (E this file, V test_evaluation, I test_intervals, C test_curves, H test_choice,
N test_nuisance, L test_log_checks):

     1  SNIPS of a constant policy is the arm's mean     E test_snips_of_constant_policies_...
     2  DR without predictions is IPS; saturated ones    E test_dr_with_zero_..., test_dr_with_saturated_...
     3  a shift of the outcome shifts SNIPS and DR       E test_shift_of_the_outcome_...
     4  the logging policy is worth the mean             E test_logging_policy_...
     5  unbiased over every possible assignment          E test_ips_and_dr_are_unbiased_over_every_...
     6  differences, weighted rewards, segments add up   E test_weighted_...
     7  singleton clusters, copied rows                  E test_cluster_errors_of_singletons_...
     8  plain replay under 90/10 is refused              E test_plain_replay_is_refused_...
     9  z test, Wilson, Newcombe, chi-square             I test_wilson_..., test_mover_..., test_..._z_test; L
    10  AUTOC and Qini: ties, row order, closed form     C test_rate_...
    11  coverage of intervals                            V test_intervals_cover_the_truth
    12  guardrails at the boundary                       H test_guardrail_at_the_boundary_...
    13  obp and scikit-uplift                            E test_values_equal_obp (needs $TACTFUL_OBP_PYTHON)

Deliberately wrong variants that are found out: plain replay (E test_plain_replay_would_be_wrong_there), DM with an
interval (N test_dm_with_an_interval_...), predictions in sample (N test_in_sample_nuisances_...), errors by row (V
test_errors_by_row_..., L), a threshold's value on the data that chose it (H test_value_of_a_threshold_...).
"""

import itertools
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from known_truth import World

from models import LoggingPolicy, Outcome, Threshold, evaluate
from models.decision_log import read_sample
from models.estimators import Columns, dr_scores, effect_scores, estimate, moments
from models.policy import resolve

Y = [Outcome("y", "binary")]


def row(table: pd.DataFrame, policy: str, estimator: str, baseline: str = "", outcome: str = "y", segment: str = ""):
    found = table[
        (table["policy"] == policy)
        & (table["baseline"] == baseline)
        & (table["estimator"] == estimator)
        & (table["outcome"] == outcome)
        & (table["segment"] == segment)
    ]
    assert len(found) == 1
    return found.iloc[0]


def test_snips_of_constant_policies_is_the_arm_mean_under_constant_propensity(log):
    table = evaluate(log, {}, Y, estimators=["snips", "replay", "plain_replay", "dr"])
    for estimator in ("snips", "replay", "plain_replay", "dr"):
        assert row(table, "send_all", estimator)["value"] == pytest.approx(log["y"][log["arm"] == 1].mean(), abs=1e-13)
        assert row(table, "send_none", estimator)["value"] == pytest.approx(log["y"][log["arm"] == 0].mean(), abs=1e-13)


def test_dr_with_zero_predictions_is_ips(log):
    policy = {"p": Threshold("x", 0.5)}
    table = evaluate(log, policy, Y, estimators=["ips", "dr"], mu_hat=np.zeros((len(log), 2, 1)))
    for name in ("p", "send_all"):
        ips, dr = row(table, name, "ips"), row(table, name, "dr")
        assert dr["value"] == pytest.approx(ips["value"], abs=1e-13)
        assert dr["se"] == pytest.approx(ips["se"], abs=1e-13)


def test_dr_with_saturated_predictions_is_the_post_stratified_mean(log):
    cell = (log["x"] * 4).astype(int)
    means = log.groupby([cell, "arm"])["y"].mean().unstack()
    mu_hat = means.loc[cell].to_numpy()[:, :, None]
    table = evaluate(log, {}, Y, estimators=["dr"], mu_hat=mu_hat)
    expected = (means[1] * cell.value_counts(normalize=True)).sum()
    assert row(table, "send_all", "dr")["value"] == pytest.approx(expected, abs=1e-13)


def test_shift_of_the_outcome_shifts_snips_and_dr_exactly_and_ips_not(log):
    policy = {"p": Threshold("x", 0.5)}
    shifted = log.assign(z=log["hours"] + 1000)
    outcomes = [Outcome("hours", "continuous"), Outcome("z", "continuous")]
    table = evaluate(shifted, policy, outcomes, estimators=["ips", "snips", "dr", "sndr"], features=["x"])
    for estimator in ("snips", "dr", "sndr"):
        before, after = row(table, "p", estimator, outcome="hours"), row(table, "p", estimator, outcome="z")
        assert after["value"] - before["value"] == pytest.approx(1000, abs=1e-9)
        assert after["se"] == pytest.approx(before["se"], rel=1e-6)
    ips = row(table, "p", "ips", outcome="z")["value"] - row(table, "p", "ips", outcome="hours")["value"]
    assert abs(ips - 1000) > 1


def test_logging_policy_is_worth_the_mean_with_its_textbook_error():
    log, _ = World(4_000, 0.3, varying=True, n_arms=2).draw()
    table = evaluate(log, {"logging": LoggingPolicy()}, Y, estimators=["ips", "snips"])
    for estimator in ("ips", "snips"):
        found = row(table, "logging", estimator)
        assert found["value"] == pytest.approx(log["y"].mean(), abs=1e-13)
        assert found["se"] == pytest.approx(log["y"].std() / np.sqrt(len(log)), rel=1e-10)


def test_ips_and_dr_are_unbiased_over_every_possible_assignment():
    rng = np.random.default_rng(1)
    n, e = 8, np.array([0.2, 0.5, 0.7, 0.9] * 2)
    potential, policy, mu_hat = rng.random((n, 2)), rng.random(n), rng.random((n, 2, 1))
    target = np.column_stack([1 - policy, policy])
    truth = (target * potential).sum(axis=1).mean()
    expected_ips = expected_dr = 0.0
    for arms in itertools.product([0, 1], repeat=n):
        arm = np.array(arms)
        p = np.where(arm == 1, e, 1 - e)
        y = potential[np.arange(n), arm][:, None]
        expected_ips += p.prod() * dr_scores(y, arm, target, p, np.zeros_like(mu_hat)).mean()
        expected_dr += p.prod() * dr_scores(y, arm, target, p, mu_hat).mean()
    assert expected_ips == pytest.approx(truth, abs=1e-12)
    assert expected_dr == pytest.approx(truth, abs=1e-12)


@pytest.mark.parametrize("cluster", ["user_id", None])
def test_evaluate_equals_scores_row_by_row(cluster):
    """Oracle: the fused sums give what plain per-row scores give, for three arms and a stochastic policy."""
    log, mean = World(3_000, 0.3, decisions=3, n_arms=3).draw()
    policy = np.random.default_rng(2).dirichlet([1, 1, 1], len(log))
    table = evaluate(log, {"p": policy}, Y, estimators=["ips", "snips", "dr"], mu_hat=mean[:, :, None], cluster=cluster)
    arm, p, y = log["arm"].to_numpy(), log["propensity"].to_numpy(), log[["y"]].to_numpy()
    weight = policy[np.arange(len(log)), arm] / p
    ips, dr = weight * y[:, 0], dr_scores(y, arm, policy, p, mean[:, :, None])[:, 0]
    snips = ips.sum() / weight.sum()
    none = dr_scores(y, arm, np.eye(3)[:1], p, mean[:, :, None])[:, 0]

    def se(influence):
        sums = influence if cluster is None else np.bincount(log["user_id"], influence)
        return np.sqrt((sums**2).sum() * len(sums) / (len(sums) - 1)) / len(influence)

    for estimator, value, error in (
        ("ips", ips.mean(), se(ips - ips.mean())),
        ("snips", snips, se(weight * (y[:, 0] - snips) / weight.mean())),
        ("dr", dr.mean(), se(dr - dr.mean())),
    ):
        found = row(table, "p", estimator)
        assert found["value"] == pytest.approx(value, abs=1e-12)
        assert found["se"] == pytest.approx(error, rel=1e-9)
    found = row(table, "p", "dr", baseline="send_none")
    assert found["value"] == pytest.approx((dr - none).mean(), abs=1e-12)
    assert found["se"] == pytest.approx(se(dr - none - (dr - none).mean()), rel=1e-9)


def test_weighted_reward_and_segments_add_up(log):
    outcomes = [Outcome("y", "binary", 12.0), Outcome("hours", "continuous", 0.5)]
    policy = {"p": Threshold("x", 0.5)}
    table = evaluate(log, policy, outcomes, segments=["segment"], costs=[0.0, 0.05], estimators=["ips", "dr"])
    sent = (log["x"] > 0.5).mean()
    share = log["segment"].value_counts(normalize=True)
    for estimator in ("ips", "dr"):
        parts = [row(table, "p", estimator, outcome=o.name)["value"] * o.weight for o in outcomes]
        total = row(table, "p", estimator, outcome="weighted")
        assert total["value"] == pytest.approx(sum(parts) - 0.05 * sent, abs=1e-12)
        for outcome in ("y", "weighted"):
            by_segment = [
                row(table, "p", estimator, outcome=outcome, segment=f"segment={s}")["value"] for s in share.index
            ]
            if estimator == "ips":
                whole = row(table, "p", estimator, outcome=outcome)["value"]
                assert share.to_numpy() @ by_segment == pytest.approx(whole, abs=1e-12)


def test_weighted_reward_counts_costs_in_value_and_error(log):
    options = {"estimators": ["dr"], "mu_hat": np.zeros((len(log), 2, 1)), "costs": [0.0, 7.0], "cluster": None}
    table = evaluate(log, {"p": Threshold("x", 0.5)}, [Outcome("y", "binary", 10.0)], **options)
    sent = log["x"] > 0.5
    scores = 10 * (log["arm"] == sent) / log["propensity"] * log["y"] - 7 * sent
    found = row(table, "p", "dr", outcome="weighted")
    assert found["value"] == pytest.approx(scores.mean(), rel=1e-9)
    assert found["se"] == pytest.approx(scores.std() / np.sqrt(len(log)), rel=1e-9)


def test_weighted_difference_equals_that_of_a_weighted_column(log):
    outcomes = [Outcome("y", "binary", 12.0), Outcome("hours", "continuous", 0.5)]
    combined = log.assign(z=12 * log["y"] + 0.5 * log["hours"])
    policy = {"p": Threshold("x", 0.5)}
    first = row(evaluate(log, policy, outcomes), "p", "snips", "send_none", "weighted")
    second = row(evaluate(combined, policy, [Outcome("z", "continuous")]), "p", "snips", "send_none", "z")
    columns = ["value", "se", "ci_lower", "ci_upper"]
    np.testing.assert_allclose(first[columns].astype(float), second[columns].astype(float), atol=1e-12)


def test_cluster_errors_of_singletons_are_row_errors_and_copies_change_nothing(log):
    policy = {"p": Threshold("x", 0.5)}
    log = log.drop(columns="decision_id")
    alone, rows = evaluate(log, policy, Y), evaluate(log, policy, Y, cluster=None)
    pd.testing.assert_frame_equal(alone, rows)
    copies = evaluate(pd.concat([log] * 3), policy, Y)
    columns = ["value", "se", "ci_lower", "ci_upper"]
    np.testing.assert_allclose(copies[columns], alone[columns], rtol=1e-9, atol=1e-12)


def test_row_order_does_not_matter():
    log, _ = World(2_000, 0.3, decisions=4).draw()
    policy = {"p": Threshold("x", 0.5)}
    mixed = evaluate(log.sample(frac=1, random_state=0), policy, Y, segments=["segment"])
    numbers = mixed.select_dtypes("number").columns
    np.testing.assert_allclose(mixed[numbers], evaluate(log, policy, Y, segments=["segment"])[numbers], rtol=1e-9)


def test_moments_of_two_halves_add_up_to_those_of_the_whole(log):
    def sums(part):
        sample = read_sample(part, Y)
        fixed = sample.__class__(**{**vars(sample), "outcome": part[["y"]].to_numpy().T, "shift": np.zeros(1)})
        targets = [resolve("p", Threshold("x", 0.5), part, 2)]
        return moments(fixed, targets, columns)

    columns = Columns.needed(["snips"], 1)
    whole, added = sums(log), sums(log[:2000]) + sums(log[2000:])
    np.testing.assert_allclose(added.product, whole.product, rtol=1e-12)
    (value,), influence = estimate(added, columns, 0, "snips", np.zeros(1))
    table = evaluate(log, {"p": Threshold("x", 0.5)}, Y)
    assert value == pytest.approx(row(table, "p", "snips")["value"], abs=1e-13)
    assert np.sqrt(added.variance(influence))[0] == pytest.approx(row(table, "p", "snips")["se"], rel=1e-9)


def test_effect_scores_average_to_the_difference_of_policies(log):
    mu_hat = np.full((len(log), 2, 1), 0.2)
    scores = effect_scores(log[["y"]].to_numpy(), log["arm"].to_numpy(), log["propensity"].to_numpy(), mu_hat)
    table = evaluate(log, {}, Y, mu_hat=mu_hat)
    assert scores.mean() == pytest.approx(row(table, "send_all", "dr", "send_none")["value"], abs=1e-13)


def test_plain_replay_is_refused_under_a_holdout_of_ten_percent(log):
    with pytest.raises(ValueError, match=r"agrees with it with probability 0\.1 to 0\.9"):
        evaluate(log, {"p": Threshold("x", 0.5)}, Y, estimators=["plain_replay"])
    with pytest.raises(ValueError, match="plain_replay of policy 'p'"):
        evaluate(log, {"p": np.full(len(log), 0.5)}, Y, estimators=["plain_replay"])


def test_plain_replay_is_refused_where_log_and_policy_never_agree(log):
    with pytest.raises(ValueError, match="the log never did what it does"):
        evaluate(log, {"p": 1 - log["arm"].to_numpy()}, Y, estimators=["plain_replay"])


def test_plain_replay_would_be_wrong_there():
    """The deliberately wrong variant: its 95% interval misses the truth, the weighted one holds it."""
    world = World(20_000, 0.2)
    truth, (log, _) = world.truth()["test"], world.draw()
    match = (log["x"] > 0.66).astype(int) == log["arm"]
    y = log["y"][match]
    assert abs(y.mean() - truth) > 3 * y.std() / np.sqrt(len(y))
    found = row(evaluate(log, {"p": world.score(log) > 0}, Y), "p", "snips")
    assert found["ci_lower"] < truth < found["ci_upper"]


@pytest.mark.skipif("TACTFUL_OBP_PYTHON" not in os.environ, reason="names a Python with obp 0.5.7 and scikit-uplift")
def test_values_equal_obp():
    script = Path(__file__).parents[2] / "benchmarks" / "evaluation.py"
    command = [os.environ["TACTFUL_OBP_PYTHON"], "-W", "ignore", str(script), "--anchor", "20000"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    assert found["difference"] < 1e-10
    assert found["qini"] < 1e-10
