"""Which candidates no guardrail speaks against: fixed-sequence testing, in order of volume.

Each candidate must pass every guardrail (lower bound of its effect against send-none >= -margin), overall and in every
segment. The first that fails ends the sequence, so the chance that any certified one truly violates a guardrail is at
most alpha.

Source: Angelopoulos et al. (2021), "Learn then Test", arXiv:2110.01052; Berger (1982), Technometrics 24, 295-300.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from campaign import DataError
from models.inputs import check_number, is_number
from models.intervals import normal_quantile

POWER = 0.8
CANDIDATE_COLUMNS = ["score", "threshold", "share", "gain", "se", "lower_bound", "status"]
CONSTRAINT_COLUMNS = [
    "score",
    "threshold",
    "share",
    "constraint",
    "segment",
    "estimate",
    "margin",
    "lower_bound",
    "n_eff",
    "min_detectable_margin",
    "status",
]


@dataclass(frozen=True)
class Guardrail:
    """An outcome that must not fall by more than `margin` (its own unit) overall, `segment_margin` in a segment."""

    outcome: str
    margin: float
    segment_margin: float | None = None

    def margin_in(self, segment: str) -> float:
        """The margin that counts in a segment ("" is everybody)."""
        return self.margin if segment == "" or self.segment_margin is None else self.segment_margin


def check_guardrails(guardrails: Sequence[Guardrail], outcomes: Sequence[str]) -> None:
    """Raise DataError when one is no Guardrail, names no outcome, or has an impossible margin."""
    if not isinstance(guardrails, list | tuple) or not all(isinstance(g, Guardrail) for g in guardrails):
        raise DataError(f"guardrails == {guardrails!r}, must be a list of models.Guardrail(outcome, margin)")
    for guardrail in guardrails:
        if guardrail.outcome not in list(outcomes):
            raise DataError(f"guardrail {guardrail.outcome!r} is not an outcome; outcomes are {sorted(outcomes)}")
        for margin in (guardrail.margin, guardrail.margin_in("any segment")):
            fits = is_number(margin) and 0 <= margin < np.inf
            check_number(f"guardrail {guardrail.outcome!r}: margin", margin, fits, "a number >= 0")


def candidate_thresholds(score: np.ndarray, shares: Sequence[float], max_share: float) -> list[float]:
    """Thresholds in order of volume: those that message about each share, and 0; none above the budget.

    Args:
        score: shape (n,), each user's best score.
        shares: of users to message.
        max_share: budget; a candidate that messages more is left out.
    """
    ordered = np.sort(score)[::-1]
    places = {int(np.floor(share * len(score) + 1e-9)) for share in shares}
    # `score > threshold`: the first score that is not messaged is the threshold; everybody needs one below all
    cuts = {float(ordered[k]) if k < len(score) else float(np.nextafter(ordered[-1], -np.inf)) for k in places}
    return sorted(
        (cut for cut in cuts | {0.0} if 0 < (score > cut).mean() <= max_share + 1e-12),
        key=lambda cut: -cut,
    )


def run_sequence(
    name: str,
    best_score: np.ndarray,
    thresholds: Sequence[float],
    effects: pd.DataFrame,
    guardrails: Sequence[Guardrail],
    alpha: float,
    wald: Collection[str] = (),
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Test candidates in order until one fails; returns candidates and tested constraints.

    `wald` names the outcomes whose bound is Wald's: below 10 events it is too high, and certifies nothing.
    """
    by_candidate: dict[str, list[dict[str, Any]]] = {str(i): [] for i in range(len(thresholds))}
    for effect in effects.to_dict("records"):
        if effect["policy"] in by_candidate:
            by_candidate[effect["policy"]].append({str(key): value for key, value in effect.items()})
    candidates: list[list[object]] = []
    constraints: list[list[object]] = []
    going = True
    for i, cut in enumerate(thresholds):
        own = by_candidate[str(i)]
        gain = next(e for e in own if e["outcome"] == "weighted" and e["segment"] == "")
        status, share = "not tested", float((best_score > cut).mean())
        if going:
            tested = [
                _constraint(e, g, alpha, g.outcome in wald)
                for g in guardrails
                for e in own
                if e["outcome"] == g.outcome
            ]
            constraints += [[name, cut, share, *row] for row in tested]
            going = all(row[-1] == "pass" for row in tested)
            status = "certified" if going else "failed"
        candidates.append([name, cut, share, gain["value"], gain["se"], gain["ci_lower"], status])
    return pd.DataFrame(candidates, columns=CANDIDATE_COLUMNS), pd.DataFrame(constraints, columns=CONSTRAINT_COLUMNS)


def _constraint(effect: dict[str, Any], guardrail: Guardrail, alpha: float, wald: bool) -> list[object]:
    """One guardrail in one segment: passes where the lower bound of the effect is >= -margin.

    A constraint that fails although the estimate is within the margin, in data that would pass a harmless policy less
    than 80% of the time, is "underpowered": it says nothing against the policy, but it does not certify it either. So
    is one that passes by a Wald bound on fewer than 10 events: with 2 in the holdout, a loss just past the margin
    passed in 22% to 45% of simulations instead of 5%.
    """
    margin = guardrail.margin_in(effect["segment"])
    lower = 0.0 if effect["status"] == "identical" else effect["ci_lower"]
    # the exact bound on few events is wider than their standard error says
    width = max(normal_quantile(2 * alpha) * effect["se"], effect["value"] - lower)
    detectable = width * (1 + normal_quantile(2 * (1 - POWER)) / normal_quantile(2 * alpha))
    status = "pass" if lower >= -margin else "fail"
    if status == "fail" and not effect["value"] < -margin and not detectable <= margin:
        status = "underpowered"
    if status == "pass" and wald and effect["status"] == "insufficient":
        status = "underpowered"
    names = [guardrail.outcome, effect["segment"]]
    return [*names, effect["value"], margin, lower, effect["n_eff"], detectable, status]
