import numpy as np
import pytest
from scipy.stats import norm
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from models import Outcome, evaluate
from models.intervals import carry_over, count_cells, mover, normal_quantile, wilson


@pytest.mark.parametrize(("count", "n"), [(0, 50), (1, 50), (13, 200), (50, 50)])
@pytest.mark.parametrize("alpha", [0.05, 0.1])
def test_wilson_equals_statsmodels(count, n, alpha):
    ours = wilson(np.array(count / n), np.array(n), alpha)
    np.testing.assert_allclose(ours, proportion_confint(count, n, alpha, method="wilson"), atol=1e-12)


@pytest.mark.parametrize(("one", "two"), [((0, 40), (3, 400)), ((5, 100), (9, 900)), ((0, 10), (0, 90))])
def test_mover_of_a_difference_equals_newcombe(one, two):
    share, n = np.array([one[0] / one[1], two[0] / two[1]]), np.array([one[1], two[1]])
    down, up = mover(np.array([1.0, -1.0]), share, n, 0.05)
    expected = confint_proportions_2indep(*one, *two, method="newcomb")
    np.testing.assert_allclose([share[0] - share[1] - down, share[0] - share[1] + up], expected, atol=1e-12)


def test_evaluate_gives_wilson_and_newcombe_for_plain_shares(log):
    table = evaluate(log, {}, [Outcome("y", "binary")], estimators=["snips"], cluster=None).set_index(
        ["policy", "baseline", "outcome"]
    )
    counts = log.groupby("arm")["y"].agg(["sum", "count"])
    limits = ["ci_lower", "ci_upper"]
    for name, a in (("send_none", 0), ("send_all", 1)):
        expected = proportion_confint(*counts.loc[a], method="wilson")
        np.testing.assert_allclose(table.loc[(name, "", "y"), limits].astype(float), expected, atol=1e-9)
    expected = confint_proportions_2indep(*counts.loc[1], *counts.loc[0], method="newcomb")
    np.testing.assert_allclose(table.loc[("send_all", "send_none", "y"), limits].astype(float), expected, atol=1e-9)


def test_evaluate_wald_of_a_continuous_outcome_is_the_z_test(log):
    table = evaluate(log, {}, [Outcome("hours", "continuous")], estimators=["snips"], cluster=None)
    found = table[(table["policy"] == "send_all") & (table["baseline"] == "send_none")].iloc[0]
    arms = [log["hours"][log["arm"] == a] for a in (0, 1)]
    se = np.sqrt(sum(y.var(ddof=0) / len(y) for y in arms))
    assert found["se"] == pytest.approx(se, rel=2 / len(log))
    assert found["ci_upper"] - found["value"] == pytest.approx(normal_quantile(0.05) * found["se"])
    # statsmodels divides by n - 1 in each arm, ours by G / (G - 1) over all: equal up to 1 / n_holdout
    theirs = CompareMeans(DescrStatsW(arms[1]), DescrStatsW(arms[0]))
    holdout = len(arms[0])
    limits = theirs.zconfint_diff(alpha=0.05, usevar="unequal")
    assert found["value"] == pytest.approx(np.mean(limits), abs=1e-12)
    np.testing.assert_allclose(
        found[["ci_lower", "ci_upper"]].astype(float) - found["value"],
        np.array(limits) - np.mean(limits),
        rtol=1 / holdout,
    )
    p = 2 * norm.sf(abs(found["value"] / found["se"]))
    assert p == pytest.approx(theirs.ztest_ind(usevar="unequal")[1], rel=0.05)


def test_carry_over_is_continuous_and_keeps_excess_variance():
    distance, v, alpha = np.array(0.03), np.array(1e-4), 0.05
    assert carry_over(distance, v, v, alpha) == pytest.approx(0.03)
    assert carry_over(distance, v, v * (1 - 1e-9), alpha) == pytest.approx(0.03)
    assert carry_over(distance, v, v * 4, alpha) == pytest.approx(np.sqrt(0.03**2 + 3 * 1.96**2 * 1e-4), rel=1e-4)
    assert carry_over(distance, v, v / 4, alpha) == pytest.approx(0.015)
    assert carry_over(distance, v * 0, v * 0, alpha) == pytest.approx(0.03)


@pytest.mark.parametrize("n_eff", [0.5, 1, 7, 33.3, 1e6])
def test_wilson_limits_at_0_and_1_are_exact(n_eff):
    lower, upper = wilson(np.array([0.0, 1.0]), np.array([n_eff, n_eff]), 0.05)
    assert lower[0] == 0.0
    assert upper[1] == 1.0
    assert upper[0] == pytest.approx(1 - lower[1], rel=1e-12)


def test_an_empty_cell_knows_nothing():
    """No row of kind 1 got arm 1: its share is in the middle, so that its limits can reach 0 and 1."""
    cells = count_cells(np.array([0, 1, 1, 2]), 2, 2, np.full(4, 0.5), np.array([[True, True, False, False]]))
    assert cells.share(0).tolist() == [[1.0, 0.5], [0.0, 0.5]]
    assert cells.n_eff()[1, 1] == 0
    lower, upper = wilson(cells.share(0)[1, 1], np.array(1e-9), 0.05)
    assert (lower, upper) == pytest.approx((0, 1), abs=1e-6)


def test_evaluate_keeps_limits_of_shares_and_their_differences_possible(log):
    """Twelve rows: Wald and carried-over distances would reach beyond what a share or a difference can be."""
    few = log.groupby("arm").head(6)
    for y in (few["arm"], 1 - few["arm"]):
        table = evaluate(few.assign(y=y.astype(float)), {}, [Outcome("y", "binary")], estimators=["ips", "snips", "dr"])
        own = table[(table["outcome"] == "y") & table["ci_lower"].notna()]
        values = own["baseline"] == ""
        assert own["ci_lower"][values].min() == 0.0
        assert own["ci_lower"][~values].min() == -1.0
        assert own["ci_upper"].max() == 1.0
