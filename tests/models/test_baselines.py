"""Baselines answer with the network's shape, in outcome units, and find a plain effect."""

import numpy as np
import pandas as pd
import pytest

from benchmarks.peers import fit_lightgbm_t
from models.baselines import cross_fitted, fit_lightgbm_s, fit_linear_t, fit_response
from models.decision_log import Outcome
from models.spec import FitSpec

pytestmark = pytest.mark.filterwarnings("ignore:X does not have valid feature names:UserWarning:sklearn")

SPEC = FitSpec(
    {"x": "numeric", "plan": "string"},
    ("none", "a", "b"),
    (Outcome("visit", "binary", 1.0), Outcome("hours", "continuous", 1.0)),
)


def make_frame(n=4000, seed=0):
    rng = np.random.default_rng(seed)
    x, arm = rng.normal(size=n), rng.integers(0, 3, n)
    return pd.DataFrame(
        {
            "x": np.where(rng.random(n) < 0.1, np.nan, x),
            "plan": rng.choice(["free", "paid"], n),
            "arm": arm,
            "visit": rng.random(n) < 0.3 + 0.2 * (arm == 1) * (x > 0),
            "hours": rng.gamma(1.0, 2.0, n) + 2 * (arm == 2),
        }
    )


@pytest.mark.parametrize("fit", [fit_linear_t, fit_lightgbm_s, fit_lightgbm_t])
def test_baseline_finds_the_effect(fit):
    test = make_frame(seed=1)
    mu_hat = fit(make_frame(), SPEC).predict(test)
    assert mu_hat.shape == (len(test), 3, 2)
    uplift = mu_hat[:, 1:] - mu_hat[:, :1]
    assert uplift[test["x"] > 0.5, 0, 0].mean() - uplift[test["x"] < -0.5, 0, 0].mean() > 0.08  # truth .2
    assert uplift[:, 1, 1].mean() == pytest.approx(2.0, abs=0.3)


def test_response_ranks_by_outcome_with_message():
    mu_hat = fit_response(make_frame(), SPEC).predict(make_frame(seed=1))
    assert np.ptp(mu_hat[:, 0, 0]) == 0
    assert np.ptp(mu_hat[:, 1, 0]) > 0.1


def test_constant_outcome_in_an_arm_is_its_mean():
    frame = make_frame().assign(visit=lambda f: (f["arm"] == 1).astype(float))
    assert (fit_linear_t(frame, SPEC).predict(frame)[:, :, 0] == [0.0, 1.0, 0.0]).all()


def test_cross_fitted_predicts_a_fold_without_its_outcomes():
    frame = make_frame()
    fold = np.arange(len(frame)) % 2
    changed = frame.assign(visit=np.where(fold == 0, True, frame["visit"]))
    before, after = (cross_fitted(fit_linear_t, f, SPEC, fold) for f in (frame, changed))
    assert (before[fold == 0] == after[fold == 0]).all()
    assert (before[fold == 1] != after[fold == 1]).any()
