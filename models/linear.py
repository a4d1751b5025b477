"""Linear models of every arm by Newton's method: the linear T-learner, and the linear part of the network.

A linear model of each arm is hard to beat where effects are nearly linear, the network where they are not. Both have
the same last layer, so their mixture is again a network: its skip holds the linear part, and serving knows no other.

Shape:
    Weights: (n_arms, d + 1), intercept last.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import expit

from models.encode import Tensors
from models.spec import FitSpec

RIDGE = 33.0  # L2: added to the loss summed over rows is RIDGE / 2 * |weight|^2
# of the mean over arms, and of each message's difference to control; times the outcome's variance, so that a rare
# outcome, whose logits move further, is held no tighter than a common one
RIDGE_SHARED, RIDGE_DIFFERENCE = 500.0, 1500.0
SHARE_SD = 0.25  # how far the share that suits uplifts may be from the one that suits outcomes
STEPS, TOLERANCE = 25, 1e-5  # Newton steps at most; largest change of a weight in the last one
CHUNK_ROWS = 16_384
PRIOR_ROWS = 20  # of the average user, in every arm


def separate(n_arms: int) -> np.ndarray:
    """Penalty of a T-learner: every arm by itself. Shape (n_arms, n_arms)."""
    return np.diag(np.full(n_arms, RIDGE))


def tied(n_arms: int) -> np.ndarray:
    """Penalty that pulls the arms together: what they share is cheap, a difference to control is not."""
    to_control = np.eye(n_arms)[1:] - np.eye(n_arms)[0]
    return np.asarray(RIDGE_SHARED / n_arms**2 + RIDGE_DIFFERENCE * to_control.T @ to_control)


def base(outcome: np.ndarray, arm: np.ndarray, n_arms: int, binary: Sequence[bool]) -> np.ndarray:
    """Average of each arm and outcome on the last layer's scale (logit of a binary one); (n_arms, n_outcomes).

    Every arm gets PRIOR_ROWS rows of the average over all arms: three rows say little.
    """
    counts = np.bincount(arm, minlength=n_arms)[:, None]
    sums = np.stack([np.bincount(arm, y, n_arms) for y in outcome.T], axis=1)
    mean = (sums + PRIOR_ROWS * outcome.mean(axis=0, dtype=np.float64)) / (counts + PRIOR_ROWS)
    share = np.clip(mean, 0.5 / len(arm), 1 - 0.5 / len(arm))
    return np.asarray(np.where(binary, np.log(share / (1 - share)), mean))


def fit_linear(
    x: np.ndarray,
    arm: np.ndarray,
    y: np.ndarray,
    binary: bool,
    penalty: np.ndarray,
    start: np.ndarray | None = None,
) -> np.ndarray:
    """Logistic (binary) or least squares regression of every arm, L2-penalised across arms; intercepts are free.

    Args:
        x: (n, d), centred or nearly so.
        arm: (n,) index.
        y: (n,), 0/1 or any number.
        binary: logistic or least squares.
        penalty: (n_arms, n_arms), `separate` or `tied`: half of w' penalty w of each column's weights w is added to
            the loss.
        start: (n_arms, d + 1), begin here.

    Returns: (n_arms, d + 1) float64. An arm of fewer than PRIOR_ROWS rows, or whose outcome is constant, has its
        `base` only.
    """
    n_arms, d = len(penalty), x.shape[1]
    by_arm = [(x[arm == a], y[arm == a]) for a in range(n_arms)]
    learns = np.array([len(part) >= PRIOR_ROWS and part.min() < part.max() for _, part in by_arm])
    average = np.column_stack([np.zeros((n_arms, d)), base(y[:, None], arm, n_arms, [binary])])
    # an arm that does not learn must not keep `start`, which may know rows that these are without
    weight = average if start is None else np.where(learns[:, None], start, average)
    # a hair of penalty on intercepts, so that an arm without rows has a solution
    brakes = np.kron(penalty, np.diag(np.r_[np.ones(d), 0])) + 1e-9 * np.eye(n_arms * (d + 1))
    for _ in range(STEPS if binary else 1):
        step = _newton_step(by_arm, weight, binary, brakes) * learns[:, None]
        weight = weight + step
        if np.abs(step).max(initial=0) < TOLERANCE:
            break
    return weight


def _newton_step(
    by_arm: list[tuple[np.ndarray, np.ndarray]], weight: np.ndarray, binary: bool, brakes: np.ndarray
) -> np.ndarray:
    width = weight.shape[1]
    gradient, hessian = -(brakes @ weight.ravel()), brakes.copy()
    for a, (x, y) in enumerate(by_arm):
        own = slice(a * width, (a + 1) * width)
        for i in range(0, len(x), CHUNK_ROWS):
            rows = np.column_stack([x[i : i + CHUNK_ROWS], np.ones(len(x[i : i + CHUNK_ROWS]))]).astype(np.float64)
            mean = expit(rows @ weight[a]) if binary else rows @ weight[a]
            gradient[own] += rows.T @ (y[i : i + CHUNK_ROWS] - mean)
            hessian[own, own] += rows.T @ (rows * (mean * (1 - mean))[:, None] if binary else rows)
    return np.asarray(np.linalg.solve(hessian, gradient)).reshape(weight.shape)


def linear_members(
    dense: np.ndarray, arm: np.ndarray, outcome: np.ndarray, fold: np.ndarray, spec: FitSpec
) -> np.ndarray:
    """Linear models of every member, without its fold; (members, d + 1, n_arms * n_outcomes) as in a network's skip."""
    found = []
    for target, y in zip(spec.outcomes, outcome.T, strict=True):
        binary = target.kind == "binary"
        penalty = tied(len(spec.arms)) * max(float(y.var()), 1 / len(y))
        start = fit_linear(dense, arm, y, binary, penalty)
        others = (fold != k for k in range(spec.members))
        found.append([fit_linear(dense[o], arm[o], y[o], binary, penalty, start) for o in others])
    weights = np.array(found).transpose(1, 3, 2, 0)  # outcome, member, arm, input -> member, input, arm, outcome
    return weights.reshape(*weights.shape[:2], -1)


def mixed(tensors: Tensors, linear: np.ndarray, share: float) -> Tensors:
    """The network whose last layer is (1 - share) * network + share * linear."""
    kept = {name: (1 - share) * tensors[name] for name in ("head.weight", "head.bias", "skip.weight", "rules.weight")}
    kept["skip.weight"] = kept["skip.weight"] + share * linear[:, :-1]
    kept["head.bias"] = kept["head.bias"] + share * linear[:, -1:]
    return tensors | {name: value.astype(np.float32) for name, value in kept.items()}


def linear_share(
    outcome: np.ndarray, arm: np.ndarray, propensity: np.ndarray, network: np.ndarray, linear: np.ndarray
) -> float:
    """How much of the linear part to mix in, from predictions out of fold of the weighted outcome.

    Who predicts outcomes better is measured well, who predicts uplift better is what counts but is measured badly
    under a sparse holdout: the first is the prior, as good as SHARE_SD, of the second (least squares on doubly robust
    scores).

    Args:
        outcome: (n,), weighted sum of the outcomes.
        arm: (n,) index.
        propensity: (n,), of the arm taken.
        network: (n, n_arms), what the network predicts.
        linear: the same by the linear part.

    Returns: share in [0, 1].
    """
    taken = arm[:, None]
    apart = linear - network
    own = np.take_along_axis(apart, taken, 1)
    missed = outcome[:, None] - np.take_along_axis(network, taken, 1)
    prior, _ = _slope(own, missed)
    toward = (taken == np.arange(1, network.shape[1])) * 1.0 - (taken == 0)
    middle = (missed - own / 2) / propensity[:, None] * toward
    contrast = apart[:, 1:] - apart[:, :1]
    share, variance = _slope(contrast, contrast / 2 + middle)
    precision, trust = 1 / variance, 1 / SHARE_SD**2
    return float(np.clip((precision * share + trust * prior) / (precision + trust), 0, 1))


def _slope(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope of y on x, columns centred and pooled, and its variance; (n, k) each. No spread in x: infinite variance."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    spread = float((x**2).sum())
    if spread == 0:
        return 0.5, np.inf
    slope = float((x * y).sum() / spread)
    return slope, float(((x * (y - slope * x)).sum(axis=1) ** 2).sum() / spread**2)
