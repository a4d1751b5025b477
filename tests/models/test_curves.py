import numpy as np
import pytest
from scipy.stats import linregress

from campaign import DataError
from models.curves import calibration, compare_rate, gain_curve, heterogeneity, rate

RNG = np.random.default_rng(0)
X = RNG.random(5_000)
EFFECT = X + RNG.normal(size=5_000)


def test_rate_of_a_perfect_ranking_is_the_closed_form():
    x = (np.arange(100_000) + 0.5) / 100_000  # tau = x, x uniform
    assert rate(x, x, "autoc").value == pytest.approx(1 / 4, abs=1e-4)
    assert rate(x, x, "qini").value == pytest.approx(1 / 12, abs=1e-9)


@pytest.mark.parametrize("target", ["autoc", "qini"])
def test_rate_of_a_constant_score_is_zero_also_on_sorted_rows(target):
    assert rate(np.zeros(5_000), np.sort(EFFECT), target).value == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("target", ["autoc", "qini"])
def test_rate_ignores_row_order_and_monotone_transforms(target):
    score = np.round(X * 20)  # many ties
    order = RNG.permutation(5_000)
    base = rate(score, EFFECT, target)
    for other in (rate(score[order], EFFECT[order], target), rate(np.exp(score), EFFECT, target)):
        assert other.value == pytest.approx(base.value, abs=1e-12)
        assert other.se == pytest.approx(base.se, rel=1e-9)


def test_rate_equals_a_slow_sum_by_hand():
    score, effect = np.array([3.0, 1.0, 2.0, 0.0]), np.array([4.0, -2.0, 1.0, 3.0])
    ranked = effect[[0, 2, 1, 3]]
    toc = [ranked[:k].mean() - effect.mean() for k in (1, 2, 3, 4)]
    assert rate(score, effect, "autoc").value == pytest.approx(np.mean(toc))
    # trapezoid of q TOC(q) between 0 and 1
    area = np.trapezoid([0.0] + [k / 4 * t for k, t in zip((1, 2, 3, 4), toc, strict=True)], dx=0.25)
    assert rate(score, effect, "qini").value == pytest.approx(area)


@pytest.mark.parametrize("target", ["autoc", "qini"])
def test_rate_error_matches_the_spread_over_samples(target):
    values, errors = [], []
    for r in range(300):
        rng = np.random.default_rng(r)
        x = np.round(rng.random(500), 1)
        found = rate(x, x + rng.normal(size=500), target)
        values.append(found.value)
        errors.append(found.se)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.15)


def test_compare_rate_is_paired():
    noisy = X + RNG.normal(size=5_000) * 0.3
    found = compare_rate(X, noisy, EFFECT)
    assert found.value == pytest.approx(rate(X, EFFECT).value - rate(noisy, EFFECT).value)
    assert found.se < rate(X, EFFECT).se  # both on the same rows: errors cancel
    same = compare_rate(X, np.exp(X), EFFECT)
    assert (same.value, same.se) == pytest.approx((0, 0), abs=1e-12)


def test_errors_are_clustered():
    user = np.repeat(np.arange(1_000), 5)
    score, effect = X[:1_000][user], EFFECT[:1_000][user]
    assert rate(score, effect, cluster=user).se == pytest.approx(rate(X[:1_000], EFFECT[:1_000]).se, rel=0.02)
    alone, copies = gain_curve(X[:1_000], EFFECT[:1_000]), gain_curve(score, effect, cluster=user)
    np.testing.assert_allclose(copies["gain"], alone["gain"], atol=1e-9)
    np.testing.assert_allclose(copies["se"], alone["se"], rtol=1e-6)


def test_gain_curve_points_are_means_and_its_band_is_wider():
    curve = gain_curve(X, EFFECT, shares=[0.1, 0.5, 1.0])
    top = np.argsort(-X)
    expected = [EFFECT[top[: int(q * 5_000)]].sum() / 5_000 for q in (0.1, 0.5, 1.0)]
    np.testing.assert_allclose(curve["gain"], expected, atol=1e-12)
    assert curve["se"].iloc[-1] == pytest.approx(EFFECT.std(ddof=1) / np.sqrt(5_000), rel=1e-9)
    assert (curve["band_upper"] > curve["ci_upper"]).all()
    assert curve["random"].iloc[-1] == pytest.approx(curve["gain"].iloc[-1])


def test_gain_curve_of_a_constant_score_is_the_random_line():
    curve = gain_curve(np.zeros(5_000), np.sort(EFFECT))
    np.testing.assert_allclose(curve["gain"], curve["random"], atol=1e-12)


def test_gain_band_holds_the_whole_curve_and_points_alone_do_not():
    whole, points = 0, 0
    for r in range(100):
        rng = np.random.default_rng(r)
        x = rng.random(1_000)
        curve = gain_curve(x, rng.normal(size=1_000) * 3 + 1)
        truth = curve["share"]
        whole += ((curve["band_lower"] <= truth) & (truth <= curve["band_upper"])).all()
        points += ((curve["ci_lower"] <= truth) & (truth <= curve["ci_upper"])).all()
    assert whole >= 88
    assert points < 88


def test_calibration_is_the_mean_by_bin():
    table = calibration(X, EFFECT, bins=5)
    assert table["n_obs"].tolist() == [1_000] * 5
    inside = np.quantile(X, 0.2) >= X
    assert table["realised"].iloc[0] == pytest.approx(EFFECT[inside].mean())
    assert table["se"].iloc[0] == pytest.approx(EFFECT[inside].std() / np.sqrt(1_000), rel=0.01)
    assert len(calibration(np.zeros(10), np.arange(10.0))) == 1


def test_heterogeneity_slope_is_the_regression_slope():
    found = heterogeneity(X, EFFECT)
    fit = linregress(X, EFFECT)
    assert found["slope"].value == pytest.approx(fit.slope)
    assert found["slope"].se == pytest.approx(fit.stderr, rel=0.05)  # robust against homoscedastic
    assert found["ate"].value == pytest.approx(EFFECT.mean())
    # the mean of equal numbers is off by rounding: .1 is not 0 there
    for same in (0.0, 0.1, 1e-9, -3.3):
        assert np.isnan(heterogeneity(np.full(10, same), np.arange(10.0))["slope"].value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros(3), np.zeros(4)), r"score has shape \(3,\), effect \(4,\)"),
        ((np.array([1.0, np.nan]), np.zeros(2)), "score is NaN or infinite in 1 rows"),
        ((np.zeros(2), np.zeros(2), "auuc"), "target == 'auuc', must be 'autoc' or 'qini'"),
    ],
)
def test_rate_says_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        rate(*arguments)


def test_gain_curve_refuses_impossible_shares():
    with pytest.raises(ValueError, match=r"expected shares of users in \(0, 1\]"):
        gain_curve(X, EFFECT, shares=[0.0])


def test_gain_curve_has_a_point_at_every_twentieth_of_the_users_by_default():
    rng = np.random.default_rng(0)
    curve = gain_curve(rng.random(100), rng.normal(size=100))
    np.testing.assert_allclose(curve["share"], np.arange(1, 21) / 20)


SCORE = np.linspace(0, 1, 50)
LIFT = np.sin(9 * SCORE)


@pytest.mark.parametrize("curve", [gain_curve, rate, calibration, heterogeneity])
@pytest.mark.parametrize(
    ("score", "effect", "options", "message"),
    [
        (np.full(50, "a"), LIFT, {}, "score is .*; expected numbers, one per row"),
        (SCORE + 0j, LIFT, {}, "score is .*; expected numbers, one per row"),
        (SCORE.astype("M8[D]"), LIFT, {}, "score is .*; expected numbers, one per row"),
        (SCORE[:, None], LIFT[:, None], {}, r"score has shape \(50, 1\), effect \(50, 1\); expected both"),
        (np.r_[np.inf, SCORE[1:]], LIFT, {}, r"score is NaN or infinite in 1 rows \(first: row 0\)"),
        (SCORE, 1e200 * (LIFT + 2), {}, "effect is NaN or infinite in 50 rows"),
        (SCORE, LIFT, {"cluster": SCORE[:3]}, "cluster has 3 rows, 0 of them missing, the score 50"),
        (SCORE, LIFT, {"cluster": [None] * 50}, "cluster has 50 rows, 50 of them missing"),
        (SCORE, LIFT, {"cluster": ["u"] * 50}, "cluster has one value in all rows; .* at least 2 users"),
        (SCORE, LIFT, {"cluster": [[1]] * 50}, r"cluster holds \[1\]; expected single values"),
        (SCORE, LIFT, {"alpha": "0.05"}, r"alpha == '0.05', must be in \(0, 1\)"),
    ],
)
def test_curves_say_what_is_wrong(curve, score, effect, options, message):
    with pytest.raises(DataError, match=message):
        curve(score, effect, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gain_curve(SCORE, LIFT, shares="a"), "shares is 'a'; expected shares of users"),
        (lambda: gain_curve(SCORE, LIFT, shares=[]), r"shares == \[\]; expected shares of users"),
        (lambda: gain_curve(SCORE, LIFT, seed=-1), "seed == -1, must be an integer >= 0"),
        (lambda: calibration(SCORE, LIFT, bins=0), "bins == 0, must be an integer >= 1"),
        (lambda: compare_rate(SCORE, SCORE[:3], LIFT), r"score has shape \(3,\), effect \(50,\)"),
    ],
)
def test_curves_say_which_option_is_wrong(call, message):
    with pytest.raises(DataError, match=message):
        call()
