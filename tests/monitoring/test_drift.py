import numpy as np
import pandas as pd
import pytest
from monitored import NUMBERS, Truth, campaign, make_frame
from scipy.stats import chi2_contingency, false_discovery_control, wasserstein_distance

from monitoring.drift import benjamini_hochberg, integrate_gap, measure_drift, psi_and_p
from monitoring.profile import QUANTILES, count_rows

LIMITS = campaign().monitoring


def drift_of(profile, frame):
    return measure_drift(profile, count_rows(profile, frame), LIMITS)


def test_measure_drift_quiet(profile, quiet_week):
    drift = drift_of(profile, quiet_week)
    assert drift.share_warn == 0
    assert drift.red == []
    assert not drift.predictions_moved
    assert max(c.effect for c in drift.columns) < 0.09


@pytest.mark.parametrize("draw", ["normal", "lognormal", "poisson", "zero_inflated"])
def test_effect_is_wasserstein_of_clipped_values(draw):
    rng = np.random.default_rng(4)
    make = {
        "normal": lambda m: rng.normal(m, 1, 30_000),
        "lognormal": lambda m: np.exp(rng.normal(m, 1, 30_000)),
        "poisson": lambda m: rng.poisson(3 + m, 30_000).astype(float),
        "zero_inflated": lambda m: np.where(rng.random(30_000) < 0.4 - m / 4, 0.0, rng.gamma(2, 1, 30_000)),
    }[draw]
    ref, now = make(0.0), make(0.3)
    edges = np.unique(np.quantile(ref, QUANTILES, method="inverted_cdf"))
    gap = np.array([(ref <= e).mean() - (now <= e).mean() for e in edges])
    distance, shift = integrate_gap(edges, gap)
    clipped = [np.clip(x, edges[0], edges[-1]) for x in (ref, now)]
    # 100 bins instead of 30,000 values; the last bins of a heavy tail are wide
    assert distance == pytest.approx(wasserstein_distance(*clipped), rel=0.05)
    assert shift == pytest.approx(clipped[1].mean() - clipped[0].mean(), rel=0.05)


def test_an_outlier_in_the_reference_changes_nothing(profile, quiet_week):
    moved = make_frame(np.random.default_rng(5), 6_000, Truth(shift={"l00": 0.3}))
    found = {c.name: c for c in drift_of(profile, moved).columns}
    assert found["l00"].warn
    assert found["l00"].shift > 0.1


def test_direction_is_signed(profile):
    moved = make_frame(np.random.default_rng(5), 6_000, Truth(shift={"n07": -0.4, "c02": 0.4}))
    found = {c.name: c for c in drift_of(profile, moved).columns}
    assert found["n07"].shift == pytest.approx(-0.4, abs=0.06)
    assert found["c02"].shift > 0.2


def test_half_a_sd_in_five_of_thirty_is_found(profile):
    """Evidently's default share rule misses this one."""
    drift = drift_of(
        profile, make_frame(np.random.default_rng(6), 6_000, Truth(shift=dict.fromkeys(NUMBERS[5:10], 0.5)))
    )
    assert {c.name for c in drift.of("feature") if c.warn} >= set(NUMBERS[5:10])
    assert drift.share_warn >= LIMITS.drift_share


def test_new_category_is_named_and_past_the_red_line(profile):
    drift = drift_of(profile, make_frame(np.random.default_rng(7), 6_000, Truth(new_market=0.2)))
    country = next(c for c in drift.columns if c.name == "country")
    assert drift.red == ["country"]
    assert country.new["IN"] == pytest.approx(0.2, abs=0.02)


def test_too_few_rows_are_not_judged(profile):
    drift = drift_of(profile, make_frame(np.random.default_rng(7), 300, Truth(new_market=0.5)))
    assert drift.share_warn == 0


def test_ignored_features_are_shown_and_not_counted(profile):
    columns = profile["columns"] | {"n07": profile["columns"]["n07"] | {"role": "ignored"}}
    moved = make_frame(np.random.default_rng(5), 6_000, Truth(shift={"n07": 2.0}))
    drift = drift_of(profile | {"columns": columns}, moved)
    assert drift.red == []
    assert drift.share_warn == 0
    assert [c.name for c in drift.of("ignored")] == ["n07"]


def test_share_eligible_alone_moves_the_predictions(profile, quiet_week):
    drift = drift_of(
        profile, quiet_week.assign(eligible_by_policy=quiet_week["eligible_by_policy"] & (quiet_week.index % 3 > 0))
    )
    assert drift.predictions_moved


def test_psi_and_p_against_scipy_and_by_hand():
    ref, now = np.array([500, 300, 200]), np.array([400, 350, 250])
    psi, p = psi_and_p(ref, now)
    r, n = (ref + 0.5) / 1001.5, (now + 0.5) / 1001.5
    assert psi == pytest.approx(float(np.sum((n - r) * np.log(n / r))))
    assert p == pytest.approx(chi2_contingency([ref, now], correction=False).pvalue)
    assert psi_and_p(np.array([5]), np.array([7])) == (0.0, 1.0)


def test_benjamini_hochberg_against_scipy():
    p = np.random.default_rng(8).beta(0.3, 1, 60)
    assert np.array_equal(benjamini_hochberg(p, 0.05), false_discovery_control(p) <= 0.05)
    assert not benjamini_hochberg([], 0.05).any()


def test_effect_of_missing_rows_is_not_drift(profile, quiet_week):
    """Missing values are a data check, not a distance."""
    frame = quiet_week.assign(n09=quiet_week["n09"].where(pd.Series(np.arange(6000) % 2 == 0)))
    column = next(c for c in drift_of(profile, frame).columns if c.name == "n09")
    assert not column.warn
    assert column.missing == 0.5
