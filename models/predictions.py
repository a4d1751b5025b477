"""What a model says of each decision's user: uplift per arm and outcome, score, and the arm the policy would take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from models.forward import NumpyModel


def predict_frame(model: NumpyModel, frame: pd.DataFrame) -> np.ndarray:
    """Predicted outcome of every row under every arm; shape (n, n_arms, n_outcomes), outcome units."""
    return model.predict({feature.name: frame[feature.name].to_numpy() for feature in model.spec.features})


def scores(mu_hat: np.ndarray, weights: Sequence[float], costs: Sequence[float]) -> np.ndarray:
    """Score of each message arm: weighted sum of uplifts minus the arm's cost.

    Args:
        mu_hat: shape (n, n_arms, n_outcomes), outcome units.
        weights: shape (n_outcomes,), money per unit.
        costs: shape (n_arms,), money per user.

    Returns: shape (n, n_arms - 1), money per user; column k is arm k + 1.
    """
    uplift = mu_hat[:, 1:, :] - mu_hat[:, :1, :]
    return np.asarray(uplift @ np.asarray(weights) - np.asarray(costs)[1:])


def policy_arm(score: np.ndarray, threshold: float) -> np.ndarray:
    """The best message arm where its score exceeds the threshold, else control; shape (n,), int."""
    best = score.argmax(axis=1)
    return np.where(score[np.arange(len(score)), best] > threshold, best + 1, 0)


def prediction_columns(
    mu_hat: np.ndarray,
    arms: Sequence[str],
    outcomes: Mapping[str, float],
    costs: Sequence[float],
    threshold: float,
) -> pd.DataFrame:
    """Columns `mu_<control>_<outcome>`, `uplift_<arm>_<outcome>`, `score`, `policy_arm` and `eligible_by_policy`.

    `score` is that of the best message arm, money per user.

    Args:
        mu_hat: shape (n, n_arms, n_outcomes).
        arms: names; index 0 is control.
        outcomes: name -> weight in money per unit.
        costs: money per user of each arm.
        threshold: a message is sent when the score exceeds it, money.
    """
    uplift = mu_hat[:, 1:, :] - mu_hat[:, :1, :]
    columns = {f"mu_{arms[0]}_{outcome}": mu_hat[:, 0, o] for o, outcome in enumerate(outcomes)}
    for a, arm in enumerate(arms[1:]):
        columns |= {f"uplift_{arm}_{outcome}": uplift[:, a, o] for o, outcome in enumerate(outcomes)}
    score = scores(mu_hat, list(outcomes.values()), costs)
    chosen = policy_arm(score, threshold)
    return pd.DataFrame({**columns, "score": score.max(axis=1), "policy_arm": chosen, "eligible_by_policy": chosen > 0})


def mu_hat_of(frame: pd.DataFrame, arms: Sequence[str], outcomes: Sequence[str]) -> np.ndarray:
    """The predictions that `prediction_columns` spread out; shape (n, n_arms, n_outcomes)."""
    control = frame[[f"mu_{arms[0]}_{outcome}" for outcome in outcomes]].to_numpy(dtype=float)
    uplifts = [frame[[f"uplift_{arm}_{outcome}" for outcome in outcomes]].to_numpy(dtype=float) for arm in arms[1:]]
    return np.stack([control, *(control + uplift for uplift in uplifts)], axis=1)
