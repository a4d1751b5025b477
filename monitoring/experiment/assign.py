"""Who is in an experiment, in which variant, and what every variant's policy would do: pure functions for the service.

Nothing is stored per user: the same ids and the same file give the same answer on every worker and after a restart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from campaign import CampaignError
from models.splits import hash_unit
from monitoring.experiment.file import Experiment, Variant

OUTSIDE = -1


def experiment_variant(experiment: Experiment, user_ids: Sequence[str]) -> np.ndarray:
    """Variant of each user, as an index into `experiment.variants`, -1 outside; shape (n,), int64.

    Holdout and exploration users must be taken out by the caller: those layers come first.
    """
    slot = hash_unit(experiment.slot_salt, user_ids)
    low, high = experiment.open_slots
    edges = np.cumsum([v.share for v in experiment.variants])[:-1]
    variant = np.searchsorted(edges, hash_unit(experiment.salt, user_ids), side="right")
    return np.where((slot >= low) & (slot < high), variant, OUTSIDE)


@dataclass(frozen=True)
class Scored:
    """What the champion says of n users, and what is known of them: all that a variant's policy decides by.

    `champion_arm`, shape (n,): the running policy's arm. `uplift`, shape (n, n_arms - 1, n_outcomes), outcome units;
    NaN where nothing was predicted. `weights`, shape (n_outcomes,): money per unit. `costs`, shape (n_arms - 1,): money
    per message. `segments`: column -> values, shape (n,), for rules.
    """

    champion_arm: np.ndarray
    uplift: np.ndarray
    weights: np.ndarray
    costs: np.ndarray
    segments: Mapping[str, np.ndarray]


def arms_of(variants: Sequence[Variant], users: Scored) -> np.ndarray:
    """The arm that every variant's policy gives every user, whatever variant the user is in.

    Returns: shape (n, n_variants), int64; control in every variant where nothing was predicted, as for any user whose
        features cannot be used. Where two columns differ, the user carries information (trigger).
    """
    known = np.isfinite(users.uplift).all(axis=(1, 2))
    columns = np.stack([_arm_of(variant, users) for variant in variants], axis=1)
    return np.where(known[:, None], columns, 0).astype(np.int64)


def _arm_of(variant: Variant, users: Scored) -> np.ndarray:
    n = len(users.champion_arm)
    if variant.policy == "send_none":
        return np.zeros(n, dtype=np.int64)
    if variant.policy == "send_all":
        return np.full(n, variant.arm)
    if variant.policy == "rule":
        return np.where(_matches(variant, users.segments, n), variant.arm, 0)
    if variant.policy == "champion":
        return users.champion_arm
    weights = users.weights if variant.weights is None else np.array(variant.weights)
    if weights.shape != users.weights.shape:
        raise CampaignError(
            f"variant {variant.name}: weights == {weights.tolist()}, must be {len(users.weights)}: one per outcome"
        )
    score = users.uplift @ weights - users.costs
    return np.where(score.max(axis=1) > variant.threshold, score.argmax(axis=1) + 1, 0)


def _matches(variant: Variant, segments: Mapping[str, np.ndarray], n: int) -> np.ndarray:
    matched = np.ones(n, dtype=bool)
    for column, values in (variant.rule or {}).items():
        if column not in segments:
            raise CampaignError(f"variant {variant.name}: rule on {column!r}, known segments: {sorted(segments)}")
        matched &= np.isin(segments[column].astype(object), values)
    return matched


def experiment_propensities(
    experiment: Experiment, arms: np.ndarray, champion_arm: np.ndarray, n_arms: int
) -> np.ndarray:
    """Probability of every arm for a user outside holdout and exploration; shape (n, n_arms).

    The random parts are the slot and the variant: with probability `ramp * (slots)` the user is enrolled and gets the
    arm of a variant drawn by its share, else the champion's. The caller mixes in holdout and exploration as before.

    Args:
        experiment: shares and open slots.
        arms: from `arms_of`, shape (n, n_variants).
        champion_arm: shape (n,).
        n_arms: control included.
    """
    low, high = experiment.open_slots
    chance = np.zeros((len(arms), n_arms))
    rows = np.arange(len(arms))
    for column, variant in enumerate(experiment.variants):
        np.add.at(chance, (rows, arms[:, column]), (high - low) * variant.share)
    np.add.at(chance, (rows, champion_arm), 1 - (high - low))
    return chance
