"""Formulas against statsmodels, scipy, published tables and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from monitoring.experiment.checks import homogeneity, sample_ratio_p
from monitoring.experiment.stats import (
    Diluted,
    Newcombe,
    Welch,
    alarm_z,
    critical_z,
    cuped,
    holm,
    obrien_fleming,
    two_sided_p,
    wilson,
)

Z95 = stats.norm.isf(0.025)


@pytest.mark.parametrize(("events", "n"), [(0, 30), (3, 40), (17, 20), (50, 50), (812, 40_000)])
def test_wilson_equals_statsmodels(events, n):
    assert wilson(events, n, Z95) == pytest.approx(proportion_confint(events, n, 0.05, "wilson"), abs=1e-12)


@pytest.mark.parametrize(
    ("x1", "n1", "x0", "n0"), [(56, 70, 48, 80), (9, 2000, 1, 200), (0, 500, 4, 500), (20, 20, 7, 9)]
)
@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1])
def test_newcombe_equals_statsmodels(x1, n1, x0, n0, alpha):
    expected = confint_proportions_2indep(x1, n1, x0, n0, method="newcomb", compare="diff", alpha=alpha)
    assert Newcombe(x1, n1, x0, n0).interval(stats.norm.isf(alpha / 2)) == pytest.approx(expected, abs=1e-8)


def test_newcombe_reproduces_the_published_example():
    # Newcombe (1998), table II, contrast (a), method 10
    assert Newcombe(56, 70, 48, 80).interval(Z95) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_welch_equals_statsmodels():
    rng = np.random.default_rng(1)
    y1, y0 = rng.lognormal(0.1, 1, 300), rng.lognormal(0, 0.6, 170)
    welch, theirs = Welch.of(y1, y0), CompareMeans(DescrStatsW(y1), DescrStatsW(y0))
    assert welch.interval(Z95) == pytest.approx(theirs.tconfint_diff(0.05, usevar="unequal"), abs=1e-8)
    assert two_sided_p(welch.z_against(0)) == pytest.approx(theirs.ttest_ind(usevar="unequal")[1], abs=1e-8)
    shifted = theirs.ttest_ind(usevar="unequal", value=-0.1, alternative="larger")[1]
    assert stats.norm.sf(welch.z_against(-0.1)) == pytest.approx(shifted, abs=1e-8)
    for unit in (1e-99, 1e99):  # squares of such variances are 0 or infinite
        assert Welch.of(y1 * unit, y0 * unit).df == pytest.approx(welch.df, rel=1e-9)


@given(st.integers(1, 400), st.integers(1, 400), st.data())
def test_newcombe_never_has_zero_width_and_agrees_with_its_z(n1, n0, data):
    x1, x0 = data.draw(st.integers(0, n1)), data.draw(st.integers(0, n0))
    effect = Newcombe(x1, n1, x0, n0)
    low, high = effect.interval(Z95)
    assert -1 - 1e-12 <= low <= effect.estimate <= high <= 1 + 1e-12
    assert high - low > 1e-3
    # the interval excludes 0 exactly when |z| > 1.96
    assert (low > 0 or high < 0) == (abs(effect.z_against(0.0)) > Z95 + 1e-9)


def test_diluted_scales_the_effect_and_keeps_its_sign():
    reached = Welch(0.5, 0.1, 1000)
    diluted = Diluted(reached, 0.2, 10_000)
    low, high = diluted.interval(Z95)
    assert diluted.estimate == pytest.approx(0.1)
    assert high - low == pytest.approx(0.2 * np.diff(reached.interval(Z95))[0], rel=0.05)
    assert diluted.interval(diluted.z_against(0.0))[0] == pytest.approx(0.0, abs=1e-9)


def test_diluted_counts_the_share_of_the_users_too():
    """Variance of a product: share**2 * se**2 + effect**2 * share * (1 - share) / n; here .01**2 + .0075**2."""
    diluted = Diluted(Welch(0.3, 0.1 / 9, 1e9), 0.9, 144)
    assert diluted.interval(1.0)[1] - diluted.estimate == pytest.approx(np.hypot(0.01, 0.0075), rel=1e-6)


def test_sample_ratio_equals_scipy():
    counts, shares = np.array([[4890, 5110, 2500], [3, 9, 1]]), np.array([0.4, 0.4, 0.2])
    large, small = sample_ratio_p(counts, shares)
    assert large == pytest.approx(stats.chisquare(counts[0], 12_500 * shares).pvalue, abs=1e-12)
    one_sided = [stats.binomtest(x, 13, s, alternative=a).pvalue for x, s in zip(counts[1], shares, strict=True)
                 for a in ("less", "greater")]  # fmt: skip
    assert small == pytest.approx(min(1.0, 6 * min(one_sided)), abs=1e-12)
    assert sample_ratio_p(np.array([[0, 9], [9, 0], [0, 0]]), np.array([0.5, 0.5])) == pytest.approx(
        [2 * 0.5**9, 2 * 0.5**9, 1.0]
    )


def test_sample_ratio_by_day_keeps_its_rate_with_a_small_share():
    """30 days of 200 users, 10% treated: the smallest p value against .001 / 30 (chi-square: .004)."""
    treated = np.random.default_rng(7).binomial(200, 0.1, (3000, 30))
    ps = sample_ratio_p(np.column_stack([200 - treated.ravel(), treated.ravel()]), np.array([0.9, 0.1]))
    assert (ps.reshape(3000, 30).min(axis=1) < 0.001 / 30).mean() <= 0.001 + 3 * math.sqrt(0.001 / 3000)


def test_homogeneity_equals_scipy():
    table = np.array([[300, 700], [450, 600]])
    assert homogeneity(table) == pytest.approx(stats.chi2_contingency(table, correction=False).pvalue, abs=1e-12)
    # two users of ten thousand, both in the small variant: chi-square says 2e-5
    rare = np.array([[9000, 0], [998, 2]])
    assert homogeneity(rare) == pytest.approx(stats.fisher_exact(rare)[1], abs=1e-12)
    assert homogeneity(rare) > 0.005
    assert homogeneity(np.array([[5, 0], [7, 0]])) == 1.0


def test_holm_equals_statsmodels():
    critical = {m: critical_z(0.05 / (2 * m)) for m in range(1, 6)}
    for z in np.random.default_rng(0).normal(1.5, 1.5, (6, 5)):
        p = 2 * stats.norm.sf(np.abs(z))
        assert holm(z, critical).tolist() == multipletests(p, 0.05, "holm")[0].tolist()


def test_cuped_removes_what_a_regression_explains():
    rng = np.random.default_rng(3)
    x = rng.normal(size=4000)
    y = 2 * x + rng.normal(size=4000)
    slope, intercept = np.polyfit(x, y, 1)
    assert cuped(y, x) - y.mean() == pytest.approx(y - slope * x - intercept, abs=1e-9)
    assert cuped(y, np.ones(4000)) == pytest.approx(y)


def test_obrien_fleming_reproduces_published_bounds():
    # ldbounds/gsDesign, Lan-DeMets O'Brien-Fleming, one-sided .025, five equal looks
    published = (4.8769, 3.3569, 2.6803, 2.2898, 2.0310)
    assert obrien_fleming(0.025, (0.2, 0.4, 0.6, 0.8, 1.0)) == pytest.approx(published, abs=2e-4)
    assert obrien_fleming(0.025, (1.0,)) == pytest.approx((Z95,), abs=1e-6)


@pytest.mark.parametrize("fractions", [(0.1, 0.5, 1.0), (0.3, 0.32, 0.9, 1.0)])
def test_obrien_fleming_spends_alpha_over_unequal_looks(fractions):
    rng = np.random.default_rng(5)
    steps = np.sqrt(np.diff(np.r_[0, fractions]))
    z = np.cumsum(rng.standard_normal((200_000, len(fractions))) * steps, axis=1) / np.sqrt(fractions)
    rate = (z > obrien_fleming(0.05, fractions)).any(axis=1).mean()
    assert rate == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / 200_000))
    # the wrong variant fails: every look as if it were the only one
    assert (z > critical_z(0.05)).any(axis=1).mean() > 0.07


def test_alarm_holds_when_one_looks_after_every_batch():
    rng = np.random.default_rng(6)
    users = np.arange(100, 20_001, 100)
    z = np.cumsum(rng.standard_normal((4000, len(users))), axis=1) / np.sqrt(np.arange(1, len(users) + 1))
    bound = np.array([alarm_z(0.05, n, 10_000) for n in users])
    assert (z > bound).any(axis=1).mean() < 0.05
    # the fixed bound that it replaces does not hold
    assert (z > critical_z(0.05)).any(axis=1).mean() > 0.2


@pytest.mark.parametrize("alpha", [0.001, 0.0125, 0.05])
def test_alarm_is_tightest_near_the_planned_users(alpha):
    at = [alarm_z(alpha, n, 10_000) for n in (100, 10_000, 10_000_000)]
    assert critical_z(alpha) < at[1] < min(at[0], at[2])
    assert at[1] < 1.6 * critical_z(alpha) + 0.4


def test_holm_judges_the_second_test_at_the_bound_for_those_still_open():
    bounds = {m: critical_z(0.05 / (2 * m)) for m in (1, 2)}  # 1.960 and 2.241
    assert holm(np.array([2.0, 3.0]), bounds).tolist() == [True, True]
    assert holm(np.array([2.0, 2.1]), bounds).tolist() == [False, False]
