"""Which random layer a user is in, and how likely each arm was: pure functions of user id and salts.

Every user is in one layer, on every worker and after every restart:

    holdout       persistent control, `holdout_share` of all users
    exploration   a random arm (control included) whatever the score says, `exploration_share` of all users; drawn anew
                  in each window of a user: a persistent draw could be read off the user's messages
    policy        everybody else: the arm of the policy
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from functools import lru_cache
from typing import Any

import numpy as np

from campaign import Assignment
from models.splits import draw_window, hash_unit, unit, window_of

LAYERS = ("holdout", "exploration", "experiment", "policy")
HOLDOUT, EXPLORATION, EXPERIMENT, POLICY = range(len(LAYERS))


def salts_of(assignment: Assignment) -> dict[str, Any]:
    """The salts, shares and window that decide layers, as logged with every decision."""
    return assignment.model_dump(mode="json")


def layers(user_ids: Sequence[str], assignment: Assignment, day: date) -> np.ndarray:
    """Layer of each user on a day, as an index into LAYERS; shape (n,), int64.

    Exploration is drawn among users outside the holdout, so that its share is a share of all users.
    """
    holdout = hash_unit(assignment.holdout_salt, user_ids) < assignment.holdout_share
    share = assignment.exploration_share / (1 - assignment.holdout_share)
    explored = hash_unit(assignment.exploration_salt, _in_window(user_ids, assignment, day)) < share
    return np.where(holdout, HOLDOUT, np.where(explored, EXPLORATION, POLICY))


def layer(user_id: str, assignment: Assignment, day: date) -> int:
    """`layers` of one user; the same draws without arrays."""
    if unit(assignment.holdout_salt, user_id) < assignment.holdout_share:
        return HOLDOUT
    share = assignment.exploration_share / (1 - assignment.holdout_share)
    window = window_of(user_id, day, assignment.window_days)
    return EXPLORATION if unit(assignment.exploration_salt, f"{window}:{user_id}") < share else POLICY


def exploration_arms(user_ids: Sequence[str], assignment: Assignment, n_arms: int, day: date) -> np.ndarray:
    """The arm each user would get in exploration on a day, uniform over all arms; shape (n,), int64."""
    unit = hash_unit(assignment.exploration_arm_salt, _in_window(user_ids, assignment, day))
    return (unit * n_arms).astype(np.int64)


def _in_window(user_ids: Sequence[str], assignment: Assignment, day: date) -> list[str]:
    """What is hashed for a draw that is made anew in each window: "window:user"."""
    windows = draw_window(user_ids, day, assignment.window_days).tolist()
    return [f"{window}:{user}" for window, user in zip(windows, user_ids, strict=True)]


def propensities(policy_arm: np.ndarray, assignment: Assignment, n_arms: int) -> np.ndarray:
    """Probability of every arm, marginal over the layers (what a decision's arm is random over); shape (n, n_arms).

        P(a) = h [a = 0] + e / n_arms + (1 - h - e) [a = policy's arm]

    Args:
        policy_arm: the arm of the policy for each user, shape (n,); 0 where it does not message.
        assignment: shares h (holdout) and e (exploration) of all users.
        n_arms: number of arms, control included.
    """
    shares: np.ndarray = _shares(assignment.holdout_share, assignment.exploration_share, n_arms)[policy_arm]
    return shares


@lru_cache
def _shares(h: float, e: float, n_arms: int) -> np.ndarray:
    """Row: the policy's arm; column: the arm taken."""
    shares = np.full((n_arms, n_arms), e / n_arms)
    shares[:, 0] += h
    shares[np.arange(n_arms), np.arange(n_arms)] += 1 - h - e
    return shares
