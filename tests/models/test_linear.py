"""The linear part against scikit-learn, and the mixture against its two ends."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression, Ridge

from models.decision_log import Outcome
from models.linear import RIDGE, base, fit_linear, linear_members, linear_share, mixed, separate, tied
from models.spec import FitSpec

N, D = 4000, 6
SPEC = FitSpec({"x": "numeric"}, ("none", "a", "b"), (Outcome("visit", "binary", 1.0),), members=3)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, D))
ARM = RNG.integers(0, 3, N)
LOGIT = X @ RNG.normal(size=D) * 0.5 - 1 + 0.4 * (ARM == 1) * X[:, 0]
VISIT = (RNG.random(N) < expit(LOGIT)).astype(float)
HOURS = LOGIT + RNG.normal(size=N)


def test_fit_linear_separate_arms_equal_scikit_learn():
    logistic = fit_linear(X, ARM, VISIT, True, separate(3))
    ridge = fit_linear(X, ARM, HOURS, False, separate(3))
    for a in range(3):
        rows = a == ARM
        theirs = LogisticRegression(C=1 / RIDGE, tol=1e-10, max_iter=1000).fit(X[rows], VISIT[rows])
        assert logistic[a] == pytest.approx(np.r_[theirs.coef_[0], theirs.intercept_], abs=1e-5)
        line = Ridge(alpha=RIDGE).fit(X[rows], HOURS[rows])
        assert ridge[a] == pytest.approx(np.r_[line.coef_, line.intercept_], abs=1e-8)


def test_fit_linear_tied_arms_equal_ridge_on_main_effects_and_differences():
    """With three arms coded as shared weights and two differences, the penalty is a diagonal one: brute force."""
    columns = [np.column_stack([X, np.ones(N)]) * ((a == ARM)[:, None] if a else 1) for a in range(3)]
    design = np.hstack(columns)
    coding = np.kron(np.array([[1, 0, 0], [1, 1, 0], [1, 0, 1.0]]), np.diag(np.r_[np.ones(D), 0]))
    penalty = coding.T @ np.kron(tied(3), np.eye(D + 1)) @ coding
    coded = np.linalg.solve(design.T @ design + penalty, design.T @ HOURS).reshape(3, D + 1)
    expected = np.stack([coded[0], coded[0] + coded[1], coded[0] + coded[2]])
    assert fit_linear(X, ARM, HOURS, False, tied(3)) == pytest.approx(expected, abs=1e-6)


def test_fit_linear_tied_shrinks_differences_only():
    apart = [np.ptp(fit_linear(X, ARM, HOURS, False, p)[:, :-1], axis=0).sum() for p in (separate(3), tied(3))]
    assert apart[1] < 0.5 * apart[0]
    assert np.abs(fit_linear(X, ARM, HOURS, False, 100 * tied(3))[:, :-1]).max() > 0.01


@pytest.mark.parametrize("rows", [0, 3])
def test_fit_linear_arm_with_next_to_no_rows_is_the_average(rows):
    arm = np.where(ARM == 2, 1, ARM)
    arm[:rows] = 2
    weight = fit_linear(X, arm, np.where(arm == 2, 1.0, VISIT), True, tied(3))
    assert np.isfinite(weight).all()
    assert (weight[2, :-1] == 0).all()
    # 20 average rows and 3 of ones
    share = (rows + 20 * np.where(arm == 2, 1.0, VISIT).mean()) / (rows + 20)
    assert expit(weight[2, -1]) == pytest.approx(share, abs=1e-6)


def test_base_is_each_arms_average():
    found = base(np.column_stack([VISIT, HOURS]), ARM, 3, [True, False])
    for a in range(3):
        assert expit(found[a, 0]) == pytest.approx(VISIT[a == ARM].mean(), abs=2e-3)
        assert found[a, 1] == pytest.approx(HOURS[a == ARM].mean(), abs=0.02)


def test_linear_members_do_not_see_their_fold():
    fold = np.arange(N) % 3
    changed = np.where(fold == 1, RNG.permutation(VISIT), VISIT)
    one, two = (linear_members(X, ARM, np.column_stack([y]), fold, SPEC) for y in (VISIT, changed))
    assert one.shape == (3, D + 1, 3)
    assert one[1] == pytest.approx(two[1], abs=5e-3)  # the penalty's scale is the variance of all rows
    assert np.abs(one[0] - two[0]).max() > 0.05


def test_mixed_logits_are_a_weighted_mean():
    tensors = {
        "head.weight": RNG.normal(size=(2, 4, 3)),
        "head.bias": RNG.normal(size=(2, 1, 3)),
        "skip.weight": RNG.normal(size=(2, D, 3)),
        "rules.weight": RNG.normal(size=(2, 5, 3)),
    }
    linear, hidden, rules = RNG.normal(size=(2, D + 1, 3)), RNG.normal(size=(7, 4)), RNG.normal(size=(7, 5))

    def logits(t):
        return hidden @ t["head.weight"] + t["head.bias"] + X[:7] @ t["skip.weight"] + rules @ t["rules.weight"]

    expected = 0.7 * logits(tensors) + 0.3 * (X[:7] @ linear[:, :-1] + linear[:, -1:])
    assert logits(mixed(tensors, linear, 0.3)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("truth", [0.0, 0.5, 1.0])
def test_linear_share_finds_the_better_part(truth):
    rng = np.random.default_rng(1)
    n = 40_000
    arm, x = rng.integers(0, 2, n), rng.normal(size=(n, 2))
    network, linear = np.column_stack([0 * x[:, 0], x[:, 0]]), np.column_stack([0 * x[:, 1], x[:, 1]])
    mean = (1 - truth) * network + truth * linear
    y = mean[np.arange(n), arm] + rng.normal(size=n)
    assert linear_share(y, arm, np.full(n, 0.5), network, linear) == pytest.approx(truth, abs=0.05)


def test_linear_share_of_equal_parts_is_half():
    flat = np.zeros((N, 2))
    assert linear_share(HOURS, ARM % 2, np.full(N, 0.5), flat, flat) == 0.5


def test_linear_members_do_not_see_their_fold_in_an_arm_too_small_to_learn():
    arm = np.where(ARM == 2, 1, ARM)
    arm[:22] = 2  # enough rows to learn from, but not without a fold
    fold = np.arange(N) % 3
    changed = np.where((fold == 0) & (arm == 2), HOURS + 50, HOURS)
    hours = FitSpec({"x": "numeric"}, SPEC.arms, (Outcome("hours", "continuous", 1.0),), members=3)
    one, two = (linear_members(X, arm, np.column_stack([y]), fold, hours) for y in (HOURS, changed))
    assert one[0][:, 2] == pytest.approx(two[0][:, 2], abs=1e-12)
    assert np.abs(one[1] - two[1]).max() > 1
