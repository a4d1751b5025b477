"""The line of errors: measured minus promised uplift of matured decisions, against the promised uplift.

Every decision's arm was random with a known propensity, so the doubly robust score of a row
(`models.estimators.effect_scores`) is an unbiased measurement of its user's uplift, also when most traffic follows the
policy. What the model promised is taken off it: the **error** of a row has mean 0 for every user if the promise holds.
A line through the errors against the predicted uplift says by how much the level is off and whether the slope is (best
linear predictor, Chernozhukov et al. 2018): slope 1 = uplift as heterogeneous as promised, 0 = the ranking tells
nothing, below 0 = it is upside down.

The control's predicted outcome (`mu_<control>_<outcome>`) is used, not only the uplift: taken off each outcome, it
makes the scores less noisy. The propensities are those given a user's history (`models.propensities`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from campaign import Campaign, DataError
from models.estimators import effect_scores

MIN_ARM_ROWS = 200  # decisions of an arm below which nothing is said about it
WEIGHTED = "weighted"


@dataclass(frozen=True)
class Line:
    """Line through the errors of one arm and outcome against the predicted uplift, with cluster-robust covariance.

    error(s) = level + slope * (s - center), so the realised slope is 1 + slope.

    Attributes:
        arm, outcome: names; the outcome "weighted" is the sum of weight times outcome, money.
        n: decisions; n_arm, n_control: of this arm, of control.
        center: mean predicted uplift; spread: its sd over users, outcome units.
        level, slope: as above; cov: their covariance, as (level-level, level-slope, slope-slope).
    """

    arm: str
    outcome: str
    n: int
    n_arm: int
    n_control: int
    center: float
    spread: float
    level: float
    slope: float
    cov: tuple[float, float, float]

    def at(self, center: float) -> tuple[np.ndarray, np.ndarray]:
        """Level and slope, and their covariance, with the line written around another center."""
        move = np.array([[1.0, center - self.center], [0.0, 1.0]])
        cov = np.array([[self.cov[0], self.cov[1]], [self.cov[1], self.cov[2]]])
        return move @ [self.level, self.slope], move @ cov @ move.T


@dataclass(frozen=True)
class Uplifts:
    """Predicted uplift and measured score of every row; shape (n, n_message_arms, n_outcomes + 1), weighted last."""

    predicted: np.ndarray
    score: np.ndarray
    arm: np.ndarray
    user: np.ndarray


def uplifts(frame: pd.DataFrame, campaign: Campaign) -> Uplifts:
    """Predicted uplift and doubly robust score of each matured decision.

    Args:
        frame: columns user_id, arm, propensity, `uplift_<arm>_<outcome>`, `mu_<control>_<outcome>`, `y_<outcome>`.
        campaign: arms, outcomes and weights.

    Raises: DataError: a column is missing or has no value in some row, or a propensity is not within (0, 1).
    """
    control, *messages = campaign.arm_names
    needed = [
        *(f"uplift_{arm}_{outcome}" for arm in messages for outcome in campaign.outcome_names),
        *(f"mu_{control}_{outcome}" for outcome in campaign.outcome_names),
        *(f"y_{outcome}" for outcome in campaign.outcome_names),
    ]
    _check_columns(frame, ["user_id", "arm", "propensity", *needed])
    values = frame[needed].to_numpy(dtype=float)
    k, n = len(campaign.outcome), len(frame)
    predicted = values[:, : len(messages) * k].reshape(n, len(messages), k)
    base, outcome = values[:, -2 * k : -k], values[:, -k:]
    mu_hat = np.concatenate([base[:, None, :], base[:, None, :] + predicted], axis=1)
    arm = frame["arm"].to_numpy(dtype=np.int64)
    score = effect_scores(outcome, arm, frame["propensity"].to_numpy(dtype=float), mu_hat)
    weights = np.asarray(campaign.weights)
    predicted, score = (np.concatenate([x, (x @ weights)[..., None]], axis=2) for x in (predicted, score))
    return Uplifts(predicted, score, arm, pd.factorize(frame["user_id"])[0])


def _check_columns(frame: pd.DataFrame, needed: Sequence[str]) -> None:
    absent = [name for name in needed if name not in frame]
    if absent:
        raise DataError(f"matured decisions: columns {absent} are missing; predictions and outcomes are needed per row")
    holes = {name: int(rows) for name, rows in frame[list(needed)].isna().sum().items() if rows}
    if holes:
        raise DataError(f"matured decisions: rows without a value, by column: {holes}; of {len(frame)} rows")
    bad = ~((frame["propensity"] > 0) & (frame["propensity"] < 1))
    if bad.any():
        first = frame["propensity"][bad].iloc[0]
        raise DataError(
            f"matured decisions: propensity {first:g} (and {int(bad.sum())} rows in all) is not within (0, 1); leave "
            "decisions out whose arm was certain, as models.frame.countable does"
        )


def lines(rows: Uplifts, campaign: Campaign) -> list[Line]:
    """The line of errors of every message arm and outcome; arms with too few decisions are left out."""
    names = [*campaign.outcome_names, WEIGHTED]
    found = []
    n_control = int((rows.arm == 0).sum())
    for a, arm in enumerate(campaign.arm_names[1:]):
        n_arm = int((rows.arm == a + 1).sum())
        if min(n_arm, n_control) < MIN_ARM_ROWS:
            continue
        for o in (len(names) - 1, *range(len(names) - 1)):
            s = rows.predicted[:, a, o]
            theta, cov = fit_line(s, rows.score[:, a, o] - s, rows.user)
            covariance = (float(cov[0, 0]), float(cov[0, 1]), float(cov[1, 1]))
            sizes = (len(s), n_arm, n_control)
            shape = (float(s.mean()), float(s.std()), float(theta[0]), float(theta[1]))
            found.append(Line(arm, names[o], *sizes, *shape, covariance))
    return found


def fit_line(s: np.ndarray, error: np.ndarray, user: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares of error on (1, s - mean s), with covariance robust to clusters of users.

    Args:
        s: predicted uplift, shape (n,).
        error: measured score minus s, shape (n,).
        user: integer code of each row's user, shape (n,).

    Returns: coefficients (2,) and covariance (2, 2). A constant s has slope 0 with variance 0.
    Source: Liang, Zeger (1986), Biometrika 73, 13-22; factor G / (G - 1) for G users.
    """
    centered = s - s.mean()
    squares = float(centered @ centered)
    if squares <= 1e-12 * max(float(s @ s), 1e-300):
        centered, squares = np.zeros_like(s), 1.0
    theta = np.array([error.mean(), centered @ error / squares])
    residual = error - theta[0] - theta[1] * centered
    by_user = np.column_stack([np.bincount(user, residual / len(s)), np.bincount(user, residual * centered / squares)])
    return theta, by_user.T @ by_user * (len(by_user) / max(len(by_user) - 1, 1))


def reference_lines(frame: pd.DataFrame, campaign: Campaign) -> list[dict[str, Any]]:
    """Lines at training, for the reference profile; JSON-serialisable.

    Args:
        frame: matured decisions with predictions of models that did not see the row (out of fold, or held-out users).
        campaign: arms, outcomes and weights.
    """
    return [asdict(line) | {"cov": list(line.cov)} for line in lines(uplifts(frame, campaign), campaign)]


def mean_and_se(values: np.ndarray, user: np.ndarray) -> tuple[float, float]:
    """Mean of the rows and its standard error, clustered by user."""
    mean = float(values.mean())
    by_user = np.bincount(user, values - mean) / len(values)
    users = max(int(np.count_nonzero(np.bincount(user))), 2)
    return mean, float(np.sqrt(by_user @ by_user * users / (users - 1)))
