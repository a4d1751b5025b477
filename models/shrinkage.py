"""How far predicted uplifts are to be trusted: a slope towards their mean, and the error of a user's uplift."""

from __future__ import annotations

import numpy as np

from models.encode import Tensors

LEAST_MISSING, MISSING_ROWS = 0.1, 15_000  # effects that no member finds, see `error_covariance`
SLOPE_SD = 0.25  # how far from 1 the shrinkage slope may be


def shrinkage(
    members: np.ndarray,
    left_out: np.ndarray,
    outcome: np.ndarray,
    arm: np.ndarray,
    propensity: np.ndarray,
    weights: np.ndarray,
) -> Tensors:
    """How far each arm's uplifts are pulled to their mean: the slope of the true score on the predicted one.

    The slope is measured, as the covariance of doubly robust scores with out-of-fold predictions (which did not see
    the outcome) over the variance of the ensemble's. With few rows that is noisy, so it is averaged, by precision,
    with 1 +- SLOPE_SD: penalties and linear part are meant to leave nothing to shrink.

    Args:
        members: mu_hat of each member, (members, n, n_arms, n_outcomes).
        left_out: mu_hat by the member that left the row out, (n, n_arms, n_outcomes).
        outcome: (n, n_outcomes), outcome units.
        arm: (n,) index.
        propensity: (n,), of the arm taken.
        weights: (n_outcomes,), of the score.

    Returns: `shrink.mean` (n_messages, n_outcomes) and `shrink.factor` (n_messages,) in [0, 1].

    Source: best linear predictor slope, Chernozhukov et al. (2018), eq. 2.3.
    """
    uplift = members[:, :, 1:] - members[:, :, :1]
    spread = (uplift.mean(axis=0) @ weights).var(axis=0)
    value = left_out @ weights
    residual = (outcome @ weights - value[np.arange(len(arm)), arm]) / propensity
    factor = np.ones(uplift.shape[2])
    for a in np.flatnonzero(spread > 0):
        predicted = value[:, a + 1] - value[:, 0]
        score = predicted + residual * ((arm == a + 1) * 1.0 - (arm == 0))
        moment = (predicted - predicted.mean()) * (score - score.mean()) / spread[a]
        factor[a] = _posterior(moment.mean(), moment.var() / len(moment))
    return {"shrink.mean": uplift.mean(axis=(0, 1)), "shrink.factor": factor}


def _posterior(slope: float, variance: float) -> float:
    """Precision-weighted mean of a measured slope and 1 +- SLOPE_SD, in [0, 1]."""
    trust = 1 / SLOPE_SD**2
    return float(np.clip((slope / variance + trust) / (1 / variance + trust), 0, 1))


def error_covariance(members: np.ndarray, share: float, n_eff: float) -> np.ndarray:
    """Covariance over outcomes of a user's error of uplift, on average: what the members differ by and what all miss.

    What all miss can only be guessed at, as a share of the variance found. Where a linear model explains the effects
    there is little left (LEAST_MISSING); where the network had to find them (1 - share of the linear part), as much
    again is missing at MISSING_ROWS effective rows, and less in proportion as there are more.

    Args:
        members: mu_hat of each member, (members, n, n_arms, n_outcomes).
        share: of the linear part in the mixture.
        n_eff: `models.losses.effective_rows` of the training rows.

    Returns: (n_messages, n_outcomes, n_outcomes), outcome units; with weights w the score's variance is w' C w.

    Source: the first part is the delete-a-group jackknife; the constants of the second were chosen on simulated worlds
        of 5,000 to 1,000,000 users, its coverage on others is in docs/benchmarks.md.
    """
    uplift = members[:, :, 1:] - members[:, :, :1]
    mean = uplift.mean(axis=0)
    apart, spread = uplift - mean, mean - mean.mean(axis=0)
    differ = np.einsum("knao,knap->aop", apart, apart) * (len(members) - 1) / len(members)
    missing = max(1 - share, LEAST_MISSING) * MISSING_ROWS / n_eff
    return np.asarray((differ + missing * np.einsum("nao,nap->aop", spread, spread)) / len(mean))
