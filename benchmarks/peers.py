"""What benchmarks compare with and the product does not need: scikit-uplift's Qini, a T-learner on boosted trees."""

from __future__ import annotations

import numpy as np
import pandas as pd

from models.baselines import S_PARAMS, BoostedModel, boosted, tree_inputs
from models.encode import fit_features
from models.spec import FitSpec, columns_of, labels_of

T_TREES = 150


def fit_lightgbm_t(frame: pd.DataFrame, spec: FitSpec) -> BoostedModel:
    """T-learner on boosted trees: every arm its own small ones (raises as `models.train.fit`)."""
    labels, columns = labels_of(frame, spec), columns_of(frame, spec.features)
    features = fit_features(columns)
    inputs = tree_inputs(columns, features, labels.arm)
    params, by_arm = S_PARAMS | {"num_leaves": 4, "learning_rate": 0.05, "seed": spec.seed}, []
    for arm in range(len(spec.arms)):
        rows = labels.arm == arm
        by_arm.append(boosted(inputs[rows], labels.outcome[rows], features, params, T_TREES, spec))
    return BoostedModel(features, dict(spec.features), tuple(by_arm))


def sklift_qini(outcome: np.ndarray, score: np.ndarray, message: np.ndarray) -> float:
    """The normalised Qini coefficient exactly as scikit-uplift 0.5.1 computes it, to compare with published figures.

    It ignores propensities and moves with the base rate (at one effect surface .088 at 5% and .027 at 20%): never
    compare it across data sets or retrainings; use `models.curves.rate`.

    Args:
        outcome: shape (n,), 0 or 1.
        score: shape (n,).
        message: shape (n,), 1 = message, 0 = control.
    """
    actual, perfect = (_sklift_area(outcome, ranking, message) for ranking in (score, outcome * (2 * message - 1)))
    return float(actual / perfect)


def _sklift_area(outcome: np.ndarray, ranking: np.ndarray, message: np.ndarray) -> float:
    """Area between scikit-uplift's Qini curve of a ranking and the straight line to its end."""
    order = np.argsort(ranking, kind="stable")[::-1]
    last = np.r_[np.flatnonzero(np.diff(ranking[order])), len(order) - 1]
    y, t = outcome[order], message[order]
    n, n_message = last + 1.0, np.cumsum(t)[last]
    n_control = n - n_message
    ratio = np.divide(n_message, n_control, out=np.zeros_like(n), where=n_control > 0)
    curve = np.cumsum(y * t)[last] - np.cumsum(y * (1 - t))[last] * ratio
    return float(np.trapezoid(np.r_[0, curve], np.r_[0, n]) - n[-1] * curve[-1] / 2)
