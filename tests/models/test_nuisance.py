import numpy as np
import pandas as pd
import pytest
from known_truth import World

from models import Outcome, Threshold, evaluate
from models.decision_log import read_sample
from models.nuisance import arm_means, cross_fit, design_matrix

Y = [Outcome("y", "binary")]


def test_arm_means_are_the_weighted_means(log):
    means = arm_means(read_sample(log, Y))
    assert means.shape == (5000, 2, 1)
    np.testing.assert_allclose(means[0, :, 0], log.groupby("arm")["y"].mean(), atol=1e-13)


def test_cross_fit_never_predicts_a_user_from_itself():
    log, _ = World(2_000, 0.3, decisions=4).draw()
    features = log[["x"]].assign(noise=np.random.default_rng(0).normal(size=len(log)))
    base = cross_fit(features, read_sample(log, Y), ["binary"])
    user = log["user_id"] == 7
    changed = log.assign(y=np.where(user, 1 - log["y"], log["y"]))
    again = cross_fit(features, read_sample(changed, Y), ["binary"])
    # flipping a user's outcomes moves others' predictions, and not its own
    np.testing.assert_allclose(again[user], base[user], atol=1e-12)
    assert np.abs(again[~user] - base[~user]).max() > 1e-6


def test_cross_fit_learns_and_stays_a_probability():
    log, mean = World(20_000, 0.3).draw()
    mu_hat = cross_fit(log[["x"]], read_sample(log, Y), ["binary"])
    assert mu_hat.min() >= 0
    assert mu_hat.max() <= 1
    assert np.corrcoef(mu_hat[:, 1, 0], log["x"])[0, 1] > 0.99
    assert abs(mu_hat[:, 1, 0].mean() - mean[:, 1].mean()) < 0.01


def test_design_matrix_takes_missing_values_and_strings():
    frame = pd.DataFrame({"a": [1.0, np.nan, 3.0], "b": ["x", "y", None], "c": [True, False, True]})
    x, names = design_matrix(frame)
    assert names == ["intercept", "a", "a missing", "b=x", "b=y", "c"]
    assert np.isfinite(x).all()
    assert x[:, 2].tolist() == [0, 1, 0]


def test_cross_fit_refuses_other_rows(log):
    with pytest.raises(ValueError, match="features has 10 rows, the log has 5000"):
        evaluate(log, {}, Y, features=log[["x"]].head(10))


def _coverage(fit, repetitions):
    """Share of 95% intervals of send_all, by DR, that hold the truth; predictions from `fit`."""
    hits = 0
    for r in range(repetitions):
        rng = np.random.default_rng(r)
        x = rng.random((400, 4))
        arm = (rng.random(400) < 0.3).astype(int)
        y = (rng.random(400) < 0.2).astype(float)
        log = pd.DataFrame({"arm": arm, "propensity": np.where(arm, 0.3, 0.7), "y": y})
        table = evaluate(log, {}, Y, estimators=["dr"], mu_hat=fit(x, arm, y), cluster=None)
        found = table[(table["policy"] == "send_all") & (table["baseline"] == "") & (table["outcome"] == "y")].iloc[0]
        hits += found["ci_lower"] <= 0.2 <= found["ci_upper"]
    return hits / repetitions


def test_in_sample_nuisances_undercover_and_cross_fitted_ones_do_not():
    """The deliberately wrong variant: a deep tree that has seen the rows it predicts."""
    tree = pytest.importorskip("sklearn.tree").DecisionTreeRegressor

    def fitted(x, arm, y, rows, at):
        mu = np.empty((len(at), 2, 1))
        for a in (0, 1):
            own = rows[arm[rows] == a]
            mu[:, a, 0] = tree(min_samples_leaf=5, random_state=0).fit(x[own], y[own]).predict(x[at])
        return mu

    def in_sample(x, arm, y):
        everybody = np.arange(len(y))
        return fitted(x, arm, y, everybody, everybody)

    def crossed(x, arm, y):
        mu, fold = np.empty((len(y), 2, 1)), np.arange(len(y)) % 5
        for f in range(5):
            mu[fold == f] = fitted(x, arm, y, np.flatnonzero(fold != f), np.flatnonzero(fold == f))
        return mu

    assert _coverage(in_sample, 80) < 0.90
    assert _coverage(crossed, 80) > 0.90


def test_dm_with_an_interval_would_miss_the_truth_and_dr_does_not():
    """The deliberately wrong variant: the spread of DM's scores taken for its error; it knows nothing of the noise."""
    world, hits = World(2_000, 0.2, seed=31), {"dm": 0, "dr": 0}
    truth = world.truth()["send_none"]
    for r in range(60):
        log, _ = world.draw(r)
        sample = read_sample(log, Y)
        mu_hat = cross_fit(log[["x"]], sample, ["binary"])
        dm = mu_hat[:, 0, 0]
        hits["dm"] += abs(dm.mean() - truth) <= 1.96 * dm.std() / np.sqrt(len(dm))
        table = evaluate(log, {}, Y, estimators=["dr"], mu_hat=mu_hat)
        dr = table[(table["policy"] == "send_none") & (table["baseline"] == "") & (table["outcome"] == "y")].iloc[0]
        hits["dr"] += dr["ci_lower"] <= truth <= dr["ci_upper"]
    assert hits["dm"] <= 30, "95% intervals that hold the truth in at most half of the samples"
    assert hits["dr"] >= 52, "three Monte Carlo standard errors below 95%"


def test_diagnostic_dm_has_no_interval(log):
    table = evaluate(log, {"p": Threshold("x", 0.5)}, Y, estimators=["dm"], features=["x"])
    assert (table["status"][table["status"] != "identical"] == "diagnostic").all()
    assert table[["se", "ci_lower", "ci_upper"]].isna().all(axis=None)
