"""Who is in an experiment, in which variant, and what every variant's policy would do: pure functions for the service.

Nothing is stored per user: the same ids and the same file give the same answer on every worker and after a restart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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


def arms_of(
    variants: Sequence[Variant],
    champion_arm: np.ndarray,
    uplift: np.ndarray,
    weights: np.ndarray,
    costs: np.ndarray,
    segments: Mapping[str, np.ndarray],
) -> np.ndarray:
    """The arm that every variant's policy gives every user, whatever variant the user is in.

    Args:
        variants: of one experiment.
        champion_arm: shape (n,), the running policy's arm.
        uplift: shape (n, n_arms - 1, n_outcomes), outcome units; NaN where nothing was predicted: control in every
            variant, as for any user whose features cannot be used.
        weights: shape (n_outcomes,), EUR per unit.
        costs: shape (n_arms - 1,), EUR per message.
        segments: column -> values, shape (n,), for rules.

    Returns: shape (n, n_variants), int64. Where two columns differ, the user carries information (trigger).
    """
    columns = [_arm_of(v, champion_arm, uplift, weights, costs, segments) for v in variants]
    known = np.isfinite(uplift).all(axis=(1, 2))
    return np.where(known[:, None], np.stack(columns, axis=1), 0).astype(np.int64)


def _arm_of(
    variant: Variant,
    champion_arm: np.ndarray,
    uplift: np.ndarray,
    weights: np.ndarray,
    costs: np.ndarray,
    segments: Mapping[str, np.ndarray],
) -> np.ndarray:
    if variant.policy == "send_none":
        return np.zeros(len(champion_arm), dtype=np.int64)
    if variant.policy == "send_all":
        return np.full(len(champion_arm), variant.arm)
    if variant.policy == "rule":
        return np.where(_matches(variant, segments, len(champion_arm)), variant.arm, 0)
    if variant.policy == "champion":
        return champion_arm
    own = weights if variant.weights is None else np.array(variant.weights)
    if own.shape != weights.shape:
        raise CampaignError(
            f"variant {variant.name}: weights == {own.tolist()}, must be {len(weights)}: one per outcome"
        )
    score = uplift @ own - costs
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
