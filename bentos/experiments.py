"""The live experiment layer: users outside holdout and exploration whose slot an experiment owns get its variant's arm.

Variants and their arms come from `monitoring.experiment.assign`, the same functions that read the experiment later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from bentos import assignment as assign
from bentos.bundle import CODE, OK, Bundle, Rows
from bentos.engine import Decisions
from campaign import Assignment

if TYPE_CHECKING:
    from monitoring.experiment.file import Experiment


@dataclass(frozen=True)
class Live:
    """The experiments that run, and the columns their rules may use."""

    experiments: tuple[Experiment, ...] = ()
    segments: tuple[str, ...] = ()

    @property
    def salts(self) -> dict[str, object]:
        """What decides variants, as logged with every decision."""
        return {
            e.name: {
                "salt": e.salt,
                "slot_salt": e.slot_salt,
                "open_slots": e.open_slots,
                "variants": {v.name: v.share for v in e.variants},
                "starts_at": e.starts_at.isoformat(),
                "hash": e.hash,
            }
            for e in self.experiments
        }


def with_experiments(
    user_ids: Sequence[str],
    rows: Rows,
    bundle: Bundle,
    assignment: Assignment,
    decisions: Decisions,
    live: Live,
    now: datetime,
) -> Decisions:
    """Decisions with the experiment layer applied; unchanged where no experiment has started.

    Propensities stay marginal over every layer: for all users whose features are usable, the share outside holdout and
    exploration is spread over the arms of the variants by their shares, and over the champion's arm outside the slots.
    Logged beside them is each enrolled user's variant, which persists, and what champion and variants decide: the
    trigger of the analysis, and what a propensity given the variant is computed from (models.propensities).
    """
    # monitoring is imported when an experiment runs, not by every server
    from monitoring.experiment.assign import OUTSIDE, Scored, arms_of, experiment_propensities, experiment_variant

    running = [(number, e) for number, e in enumerate(live.experiments) if e.is_on(now)]
    if not running:
        return decisions
    spec, n = bundle.model.spec, len(user_ids)
    usable = (rows.status == OK) & np.isfinite(decisions.score)
    champion = np.where(usable & (decisions.score > bundle.threshold), _best(decisions.uplift, bundle), 0)
    segments = segments_of(rows, bundle, live.segments)
    scored = Scored(champion, decisions.uplift, spec.weights, np.array(spec.costs)[1:], segments)
    layer, arm, reason = decisions.layer.copy(), decisions.arm.copy(), decisions.reason.copy()
    mixed = np.zeros((n, len(spec.arms)))
    mixed[np.arange(n), champion] = 1 - len(running)
    enrolled: list[list[Any]] = [[arm] for arm in champion.tolist()]
    for number, experiment in running:
        arms = arms_of(experiment.variants, scored)
        mixed += experiment_propensities(experiment, arms, champion, len(spec.arms))
        variant = experiment_variant(experiment, user_ids)
        for row in np.flatnonzero(variant != OUTSIDE).tolist():
            enrolled[row] += [number, int(variant[row]), arms[row].tolist()]
        inside = (variant != OUTSIDE) & (decisions.layer == assign.POLICY)
        layer[inside] = assign.EXPERIMENT
        taken = inside & usable
        arm[taken] = arms[taken, variant[taken]]
        answer = np.where(arm > 0, CODE["eligible"], CODE["below_threshold"])
        reason[taken] = np.where(variant == 0, CODE["baseline_arm"], answer)[taken]
    h, e = assignment.holdout_share, assignment.exploration_share
    chance = e / len(spec.arms) + (1 - h - e) * mixed
    chance[:, 0] += h
    chance = np.where(usable[:, None], chance, decisions.propensities)
    return replace(decisions, layer=layer, arm=arm, reason=reason, propensities=chance, enrolled=enrolled)


def segments_of(rows: Rows, bundle: Bundle, columns: Sequence[str]) -> Mapping[str, np.ndarray]:
    """The segment columns that are features of the model; shape (n,) each."""
    found = {name: rows.strings[:, j] for j, name in enumerate(bundle.strings) if name in columns}
    return found | {name: rows.numeric[:, j] for j, name in enumerate(bundle.numeric) if name in columns}


def _best(uplift: np.ndarray, bundle: Bundle) -> np.ndarray:
    scores = uplift @ bundle.model.spec.weights - np.array(bundle.model.spec.costs)[1:]
    best: np.ndarray = np.where(np.isnan(scores), -np.inf, scores).argmax(axis=1) + 1
    return best
