"""Predicted outcomes for the doubly robust estimator: cross-fitted, so that no row is predicted from its own user.

A prediction that has seen its own row biases the estimate and makes its interval too short; a simple regularised
model is enough, since errors of the prediction cost variance only, never bias.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from models.estimators import Sample
from models.inputs import MOST, read_levels, read_numbers

MAX_LEVELS = 20  # categories of a column that get their own indicator; the rest share "other"


def arm_means(sample: Sample) -> np.ndarray:
    """Each arm's mean outcome, weighted by 1 / propensity, for every row; shape (n, n_arms, n_outcomes), a view."""
    n_arms, inverse = len(sample.costs), 1 / sample.propensity
    total = np.bincount(sample.arm, inverse, n_arms)
    sums = np.array([np.bincount(sample.arm, inverse * y, n_arms) for y in sample.outcome])
    means = (sums / np.where(total > 0, total, 1)).T + sample.shift
    return np.broadcast_to(means, (len(sample), *means.shape))


def cross_fit(features: pd.DataFrame, sample: Sample, kinds: Sequence[str], n_folds: int = 5) -> np.ndarray:
    """Ridge predictions of every outcome under every arm, each row's from the folds its cluster is not in.

    Args:
        features: numeric, bool or string columns, the rows of the sample.
        sample: the log.
        kinds: "binary" or "continuous" per outcome; predictions of a binary one stay within [0, 1].
        n_folds: clusters are dealt to the folds in turn.

    Returns: shape (n, n_arms, n_outcomes).
    Source: Chernozhukov et al. (2018), Econometrics Journal 21, C1-C68 (cross-fitting).
    """
    x, _ = design_matrix(features)
    fold = (np.arange(len(sample)) if sample.cluster is None else sample.cluster) % n_folds
    y = sample.outcome.T
    mu = np.empty((len(sample), len(sample.costs), y.shape[1]))
    for a in range(len(sample.costs)):
        gram = np.empty((n_folds, x.shape[1], x.shape[1]))
        cross = np.empty((n_folds, x.shape[1], y.shape[1]))
        for f in range(n_folds):
            rows = (sample.arm == a) & (fold == f)
            gram[f], cross[f] = x[rows].T @ x[rows], x[rows].T @ y[rows]
        for f in range(n_folds):
            mu[fold == f, a] = x[fold == f] @ _ridge(gram.sum(axis=0) - gram[f], cross.sum(axis=0) - cross[f])
    mu += sample.shift
    for k, kind in enumerate(kinds):
        if kind == "binary":
            np.clip(mu[:, :, k], 0, 1, out=mu[:, :, k])
    return mu


def _ridge(gram: np.ndarray, cross: np.ndarray) -> np.ndarray:
    """Coefficients; column 0 is the intercept. The penalty is one observation's worth per column."""
    n_columns = len(gram)
    penalty = np.full(n_columns, float(n_columns))
    penalty[0] = 1e-9  # no penalty on the intercept, but an arm without rows must not divide by zero
    return np.asarray(np.linalg.solve(gram + np.diag(penalty), cross))


def design_matrix(features: pd.DataFrame) -> tuple[np.ndarray, list[str]]:
    """Intercept, standardised numbers (missing: mean, with an indicator), one-hot categories; and the columns' names.

    Shape (n, columns). Uses no outcome, so all rows may be used to standardise.
    """
    columns, names = [np.ones(len(features))], ["intercept"]
    for j, name in enumerate(features.columns):
        column = features.iloc[:, j]
        if pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
            x = read_numbers(column, f"feature {name!r}")
            known = np.abs(x) < MOST
            mean, sd = (x[known].mean(), x[known].std()) if known.any() else (0.0, 0.0)
            # heavy tails would let single rows steer the regression
            columns.append(np.where(known, np.clip((x - mean) / (sd if sd > 0 else 1.0), -4, 4), 0.0))
            names.append(str(name))
            if not known.all():
                columns.append((~known).astype(float))
                names.append(f"{name} missing")
        else:
            code, levels = read_levels(column, f"feature {name!r}")
            common = np.argsort(-np.bincount(code[code >= 0], minlength=len(levels)), kind="stable")[:MAX_LEVELS]
            columns += [(code == level).astype(float) for level in common]
            names += [f"{name}={levels[level]}" for level in common]
    return np.column_stack(columns), names
