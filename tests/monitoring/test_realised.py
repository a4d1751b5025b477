from dataclasses import replace
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from monitored import MONDAY, Truth, campaign, make_frame, make_profile
from scipy.stats import chi2, norm

from campaign import DataError
from monitoring.realised import LOOKS_PER_YEAR, REALISED_SHARE, measure_realised, spend
from monitoring.uplift_line import fit_line, lines, mean_and_se, reference_lines, uplifts

SETUP = campaign()


QUIET = Truth()


def pooled(rng, rows, truth=QUIET, weeks=4, **options):
    frames = [make_frame(rng, rows, truth, monday=MONDAY - timedelta(weeks=5 + k), **options) for k in range(weeks)]
    return pd.concat(frames, ignore_index=True)


def test_measure_realised_quiet(profile, matured):
    realised = measure_realised(matured, SETUP, profile["lines"])
    assert realised.alarms == []
    assert [test.outcome for test in realised.tests] == ["weighted", *SETUP.outcome_names]
    assert realised.n == 20_000
    assert len(realised.weeks) == 4
    weighted = realised.tests[0]
    assert abs(weighted.realised - weighted.predicted) < 4 * weighted.se
    assert weighted.slope == pytest.approx(1, abs=4 * weighted.slope_se)


def test_level_is_unbiased_under_policy_traffic():
    """The truth is known: the mean predicted uplift, though arms follow the score."""
    rng = np.random.default_rng(11)
    frame = pooled(rng, 10_000)
    found = {test.outcome: test for test in measure_realised(frame, SETUP).tests}
    for outcome in SETUP.outcome_names:
        test, truth = found[outcome], frame[f"uplift_premium_offer_{outcome}"].mean()
        assert abs(test.realised - truth) < 3.5 * test.se


@pytest.mark.parametrize(
    ("truth", "found"),
    [
        (Truth(sub_effect=0.4), {"premium_offer/weighted", "premium_offer/subscription"}),
        (Truth(effect=0.4), {"premium_offer/weighted", "premium_offer/subscription", "premium_offer/retention"}),
    ],
)
def test_smaller_uplift_is_found_where_it_is(profile, truth, found):
    realised = measure_realised(pooled(np.random.default_rng(12), 10_000, truth), SETUP, profile["lines"])
    assert set(realised.alarms) >= found
    assert realised.inverted == []
    if truth.effect == 1:
        assert "premium_offer/retention" not in realised.alarms


def test_upside_down_ranking_is_inverted(profile):
    realised = measure_realised(pooled(np.random.default_rng(13), 5_000, Truth(invert=True)), SETUP, profile["lines"])
    assert realised.inverted == ["premium_offer"]
    assert realised.gain < 0
    assert realised.harmful
    assert not replace(realised, gain=0.01).harmful
    assert not replace(realised, tests=tuple(replace(test, alarm=False) for test in realised.tests)).harmful


def test_fit_line_equals_statsmodels_with_clusters():
    rng = np.random.default_rng(14)
    s, user = rng.normal(2, 1, 900), pd.factorize(rng.integers(0, 300, 900))[0]
    error = 0.3 * s + rng.normal(size=900) + rng.normal(size=300)[user]
    theta, cov = fit_line(s, error, user)
    design = sm.add_constant(s - s.mean())
    fitted = sm.OLS(error, design).fit(cov_type="cluster", cov_kwds={"groups": user, "use_correction": False})
    groups = len(np.unique(user))
    assert theta == pytest.approx(fitted.params, rel=1e-10)
    assert cov == pytest.approx(fitted.cov_params() * groups / (groups - 1), rel=1e-8)


def test_fit_line_of_a_constant_prediction_has_no_slope():
    theta, cov = fit_line(np.full(50, 0.2), np.arange(50.0), np.arange(50))
    assert theta[1] == 0
    assert cov[1, 1] == pytest.approx(0)
    assert theta[0] == pytest.approx(24.5)


def test_mean_and_se_equals_plain_standard_error_without_repeats():
    values = np.random.default_rng(15).normal(size=400)
    mean, se = mean_and_se(values, np.arange(400))
    assert (mean, se) == (pytest.approx(values.mean()), pytest.approx(values.std(ddof=1) / 20))


def test_rows_of_one_user_count_as_one():
    values = np.random.default_rng(15).normal(size=400)
    once, twice = mean_and_se(values, np.arange(400)), mean_and_se(np.repeat(values, 2), np.repeat(np.arange(400), 2))
    assert twice == pytest.approx(once)


def test_reference_line_takes_constant_miscalibration_out():
    """A model that promises 50% too much, at training as now, is no news."""
    rng = np.random.default_rng(16)
    boast = {f"uplift_premium_offer_{o}": 1.5 for o in SETUP.outcome_names}

    def boasting(frame):
        return frame.assign(**{name: frame[name] * factor for name, factor in boast.items()})

    reference = reference_lines(boasting(make_frame(rng, 20_000, service=False)), SETUP)
    frame = boasting(pooled(rng, 10_000))
    assert measure_realised(frame, SETUP).alarms
    assert measure_realised(frame, SETUP, reference).alarms == []


def test_line_at_another_center_is_the_same_line(profile, matured):
    line = lines(uplifts(matured, SETUP), SETUP)[0]
    theta, cov = line.at(line.center + 0.7)
    assert theta[0] == pytest.approx(line.level + 0.7 * line.slope)
    assert theta[1] == line.slope
    assert cov[0, 0] == pytest.approx(line.cov[0] + 1.4 * line.cov[1] + 0.49 * line.cov[2])


def test_spend_adds_up_to_the_yearly_budget():
    levels = spend(SETUP)
    per_look = levels[True] + len(SETUP.outcome) * levels[False]
    assert per_look * LOOKS_PER_YEAR * (len(SETUP.arm) - 1) == pytest.approx(
        REALISED_SHARE * SETUP.monitoring.yearly_false_alarm
    )


def test_power_half_is_what_simulation_finds():
    """Power of one test at halved uplift, against the share of simulated pools in which it rejects."""
    rng = np.random.default_rng(17)
    reference = make_profile(rng, 30_000)["lines"]
    found, promised = [], []
    for _ in range(12):
        test = measure_realised(pooled(rng, 1_500, Truth(effect=0.5)), SETUP, reference).tests[0]
        found.append(test.p < test.alpha)
        promised.append(test.power_half)
    assert 0.1 < np.mean(promised) < 0.9
    assert np.mean(found) == pytest.approx(np.mean(promised), abs=3 * np.sqrt(0.25 / 12))


@pytest.mark.slow
def test_size_of_the_weekly_tests():
    """P values are uniform under the null: rejections at .01 and .05 over 400 independent pools."""
    rng = np.random.default_rng(18)
    p = []
    for _ in range(400):
        reference = reference_lines(make_frame(rng, 6_000, service=False), SETUP)
        p.append([t.p for t in measure_realised(pooled(rng, 1_500), SETUP, reference).tests])
    for level in (0.01, 0.05):
        rate = (np.array(p) < level).mean(axis=0)
        assert np.all(rate < level + 3.5 * np.sqrt(level / 400))


def test_too_few_decisions_say_nothing(matured):
    assert measure_realised(matured.head(300), SETUP) is None
    assert measure_realised(matured[matured["arm"] == 1], SETUP) is None


def test_segments_and_deciles_cover_every_row(profile, matured):
    realised = measure_realised(matured, SETUP, profile["lines"])
    assert sum(row["n"] for row in realised.deciles) == len(matured)
    for column in SETUP.segments.columns:
        assert sum(row["n"] for row in realised.segments if row["segment"].startswith(f"{column}=")) == len(matured)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="y_retention"), r"columns \['y_retention'\] are missing"),
        (lambda f: f.drop(columns="mu_none_listening"), r"columns \['mu_none_listening'\] are missing"),
        (lambda f: f.assign(y_listening=np.nan), r"rows without a value, by column: \{'y_listening': 20000\}"),
        (lambda f: f.assign(propensity=1.0), r"propensity 1 \(and 20000 rows in all\) is not within \(0, 1\)"),
    ],
)
def test_measure_realised_bad_input(matured, change, message):
    with pytest.raises(DataError, match=message):
        measure_realised(change(matured), SETUP)


def test_p_value_by_hand(matured):
    test = measure_realised(matured, SETUP).tests[0]
    line = lines(uplifts(matured, SETUP), SETUP)[0]
    v = np.array([[line.cov[0], line.cov[1]], [line.cov[1], line.cov[2]]])
    theta = np.array([line.level, line.slope])
    assert test.p == pytest.approx(chi2.sf(theta @ np.linalg.solve(v, theta), 2))
    assert test.inverted == (test.alarm and norm.cdf(test.slope / test.slope_se) < test.alpha)
