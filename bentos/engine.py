"""Decisions from features, numpy only: rows in, arms and reasons out. No server, no store, no torch.

Shape:
    n users, A arms (0 = control), O outcomes. uplift (n, A - 1, O) in outcome units; score (n, A - 1) in money.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np

from bentos import assignment as assign
from bentos.bundle import CODE, OK, Bundle, Rows
from campaign import Assignment, Campaign


@dataclass(frozen=True)
class Decisions:
    """What was decided for n users; uplift and score are NaN where nothing was predicted.

    Args:
        layer: (n,) index into assignment.LAYERS.
        arm: (n,) index of the arm.
        reason: (n,) index into REASONS.
        uplift: (n, A - 1, O).
        score: (n,) of the best message arm, money.
        propensities: (n, A).
        enrolled: while an experiment runs, per user and whatever the layer: [the champion's arm], and where an
            experiment owns the user's slot also its number, the number of the variant, the arm of every variant.
    """

    layer: np.ndarray
    arm: np.ndarray
    reason: np.ndarray
    uplift: np.ndarray
    score: np.ndarray
    propensities: np.ndarray
    enrolled: list[list[Any]] | None = None


def decide(user_ids: Sequence[str], rows: Rows, bundle: Bundle, assignment: Assignment, day: date) -> Decisions:
    """Decide, on a day (UTC), about users whose features were read.

    A user whose features cannot be used gets control for certain (propensity 1), whatever the layer: such rows say
    nothing about arms and are left out of training by their reason.
    """
    spec, usable = bundle.model.spec, rows.status == OK
    if np.count_nonzero(usable) == len(usable):
        mu_hat = bundle.mu_hat(rows)
    else:
        mu_hat = np.full((len(user_ids), len(spec.arms), len(spec.outcomes)), np.nan)
        if usable.any():
            mu_hat[usable] = bundle.mu_hat(_take(rows, usable))
    uplift = mu_hat[:, 1:] - mu_hat[:, :1]
    scores = uplift @ bundle.weights - bundle.message_costs
    if np.count_nonzero(np.isfinite(uplift)) == uplift.size:
        if len(user_ids) == 1:
            return _assign_one(user_ids[0], uplift, scores, bundle.threshold, assignment, day)
        return _assign(user_ids, rows.status, uplift, scores, bundle.threshold, assignment, day)
    finite = np.isfinite(uplift).all(axis=(1, 2))
    status = np.where(finite | ~usable, rows.status, CODE["model_unavailable"])
    return _assign(user_ids, status, uplift, scores, bundle.threshold, assignment, day)


def decide_without_model(user_ids: Sequence[str], campaign: Campaign, day: date) -> Decisions:
    """Control for everybody: there is no model to ask."""
    n, n_arms = len(user_ids), len(campaign.arm)
    nothing = np.full((n, n_arms - 1, len(campaign.outcome)), np.nan)
    status = np.full(n, CODE["model_unavailable"])
    return _assign(user_ids, status, nothing, nothing[:, :, 0], 0.0, campaign.assignment, day)


def _assign(
    user_ids: Sequence[str],
    status: np.ndarray,
    uplift: np.ndarray,
    scores: np.ndarray,
    threshold: float,
    assignment: Assignment,
    day: date,
) -> Decisions:
    n_arms, usable = scores.shape[1] + 1, status == OK
    if not usable.all():
        uplift, scores = np.where(usable[:, None, None], uplift, np.nan), np.where(usable[:, None], scores, -np.inf)
    score = scores.max(axis=1)
    above = score > threshold
    policy_arm = (scores.argmax(axis=1) + 1) * above
    layer = assign.layers(user_ids, assignment, day)
    arm = policy_arm * (layer != assign.HOLDOUT)
    explored = layer == assign.EXPLORATION
    if explored.any():
        who = np.flatnonzero(explored)
        arm[who] = assign.exploration_arms([user_ids[i] for i in who.tolist()], assignment, n_arms, day)
    reason = _REASON[layer, above.view(np.int8)]
    chance = assign.propensities(policy_arm, assignment, n_arms)
    if usable.all():
        return Decisions(layer, arm, reason, uplift, score, chance)
    certain = np.where(usable[:, None], chance, np.eye(1, n_arms))
    score, reason = np.where(usable, score, np.nan), np.where(usable, reason, status)
    return Decisions(layer, arm * usable, reason, uplift, score, certain)


def _assign_one(
    user_id: str, uplift: np.ndarray, scores: np.ndarray, threshold: float, assignment: Assignment, day: date
) -> Decisions:
    """`_assign` of one usable user: arrays of one cost three times the arithmetic (a test compares the two)."""
    values: list[float] = scores[0].tolist()
    score = max(values)
    above = score > threshold
    policy_arm = arm = (values.index(score) + 1) * above
    layer = assign.layer(user_id, assignment, day)
    if layer == assign.HOLDOUT:
        arm = 0
    elif layer == assign.EXPLORATION:
        arm = assign.exploration_arms([user_id], assignment, len(values) + 1, day)[0]
    chance = assign.propensities(np.array([policy_arm]), assignment, len(values) + 1)
    return Decisions(
        np.array([layer]), np.array([arm]), _REASON[layer, int(above)][None], uplift, np.array([score]), chance
    )


# by layer, and whether the score is above the threshold; an experiment is applied to the policy's answer afterwards
_REASON = np.array(
    [
        [CODE["holdout"]] * 2,
        [CODE["exploration"]] * 2,
        [CODE["below_threshold"], CODE["eligible"]],
        [CODE["below_threshold"], CODE["eligible"]],
    ]
)


def _take(rows: Rows, which: np.ndarray) -> Rows:
    return Rows(rows.numeric[which], rows.strings[which], rows.status[which], rows.timestamp[which])
