"""May the challenger replace the champion? Both are judged on the same held-out decisions, row by row.

The doubly robust scores of the two policies differ only where the policies do, and share the noise of everything else;
the difference of their means has a standard error far below either value's. A challenger is promoted when the one-sided
95% lower bound of that difference is above 0: one that is truly worse passes in at most 5% of the cases. How likely a
better one that differs on as many decisions would have passed is recorded (`power`): the champion's traffic says little
about the arms it never sends. Where the two policies hardly differ there is nothing to tell apart, and no power.

    promote         better than the champion and than sending nothing, not measurably worse than a simpler model (linear
                    T-learner, LightGBM, response model), guardrails in order, and the score ranks users
    keep            not measurably better
    needs_a_person  better, but something else is not in order: a guardrail, the ranking, a simpler model, too few
                    decisions

A wrong level (uplift predicted as too high or too low on average) is told and does not block: values are measured, not
predicted, and the weekly monitor compares with the level that was measured at training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from campaign import Campaign, DataError
from models.estimators import dr_scores
from monitoring.realised import MIN_CHANGE
from monitoring.uplift_line import MIN_ARM_ROWS, fit_line, mean_and_se, uplifts

ALPHA = 0.05  # one-sided
LEVEL_ALPHA = 0.01  # two-sided, all arms together: a level that is right is told to be wrong no more often
WORTH = 0.10  # of the champion's gain over sending nothing: the improvement for which the power is stated
ALIKE = 0.05  # share of decisions below which two policies are too alike to be told apart


@dataclass(frozen=True)
class Comparison:
    """Challenger minus a baseline policy, per user: the weighted value in money, or an outcome in its unit.

    `lower` is the one-sided 95% bound; `limit` is what `lower` (or `difference`, for baselines) must exceed. Against
    the champion alone (else NaN): `differ`, the share of the rows on which the two policies take different arms, and
    `power`, the probability of `lower` being above 0 for a challenger that differs on as many rows, with the same
    standard error, and is better by a tenth of the champion's gain over sending nothing. It is NaN where they differ on
    less than ALIKE of the rows, for this standard error says nothing of better ones, or the champion gains nothing.
    """

    name: str
    outcome: str
    segment: str
    n: int
    difference: float
    se: float
    lower: float
    limit: float
    status: str
    differ: float = float("nan")
    power: float = float("nan")


@dataclass(frozen=True)
class Calibration:
    """Promised and measured uplift of an arm, weighted, money per user (`monitoring.uplift_line`).

    Attributes:
        arm: name; n: decisions.
        predicted, realised: mean over users; se: standard error of realised minus predicted.
        slope, slope_se: realised uplift per predicted; 1: as heterogeneous as promised.
        ranks: the slope is significantly above 0.
        level_off: realised differs from predicted, at LEVEL_ALPHA and by MIN_CHANGE of the promised uplift.
    """

    arm: str
    n: int
    predicted: float
    realised: float
    se: float
    slope: float
    slope_se: float
    ranks: bool
    level_off: bool


@dataclass(frozen=True)
class GateVerdict:
    """promote, keep or needs_a_person; why; every comparison made; and how well each arm's uplift was predicted."""

    verdict: str
    reasons: tuple[str, ...]
    table: tuple[Comparison, ...]
    calibration: tuple[Calibration, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON-serialisable: what does not apply (NaN) is null."""
        raw = asdict(self)
        for comparison in raw["table"]:
            comparison |= {k: None if np.isnan(comparison[k]) else comparison[k] for k in ("differ", "power")}
        return raw


def judge(
    frame: pd.DataFrame,
    policies: Mapping[str, np.ndarray],
    mu_hat: np.ndarray,
    campaign: Campaign,
    *,
    held_out: np.ndarray | None = None,
) -> GateVerdict:
    """Compare the challenger with the champion and the baselines on held-out matured decisions.

    Args:
        frame: decisions that neither model was trained on: user_id, arm, propensity, `y_<outcome>`, segment columns,
            and the challenger's predictions (see `monitoring.uplift_line.uplifts`).
        policies: arm of each row, shape (n,), integer: "challenger", "champion" (left out when there is none), and
            any simpler models (`models.worth.rival_policies`). Send-none is added.
        mu_hat: shape (n, n_arms, n_outcomes), predictions that did not see the row, for the doubly robust scores.
        campaign: arms, weights, costs, guardrails and segments.
        held_out: rows that the simpler models were not trained on, shape (n,), bool; default all.

    Raises: DataError: the challenger is missing, a policy's or mu_hat's shape does not fit the frame, or mu_hat is NaN.
    """
    n, n_arms = len(frame), len(campaign.arm)
    _check(policies, mu_hat, (n, n_arms, len(campaign.outcome)))
    counts = np.bincount(frame["arm"], minlength=n_arms)
    if counts.min() < MIN_ARM_ROWS:
        few = campaign.arm_names[int(counts.argmin())]
        reason = f"few_decisions: {counts.min()} of arm {few}, {MIN_ARM_ROWS} needed"
        return GateVerdict("needs_a_person", (reason,), ())
    if frame["user_id"].nunique() < MIN_ARM_ROWS:  # standard errors are between users: of one user they are 0
        reason = f"few_users: {frame['user_id'].nunique()} among the decisions, {MIN_ARM_ROWS} needed"
        return GateVerdict("needs_a_person", (reason,), ())
    scores = {name: _scores(frame, arm, mu_hat, campaign) for name, arm in policies.items()}
    scores["send_none"] = _scores(frame, np.zeros(n, dtype=np.int64), mu_hat, campaign)
    user = pd.factorize(frame["user_id"])[0]
    against = {}
    for name in (name for name in scores if name != "challenger"):
        everywhere = held_out is None or name in ("champion", "send_none")
        rows = np.ones(n, dtype=bool) if everywhere else np.asarray(held_out)
        against[name] = _compare(name, (scores["challenger"] - scores[name])[rows], user[rows])
    if "champion" in against:
        gain = float((scores["champion"] - scores["send_none"])[:, -1].mean())
        differ = float((policies["challenger"] != policies["champion"]).mean())
        against["champion"] = _with_power(replace(against["champion"], differ=differ), gain)
    guards = _guardrails(frame, scores, user, campaign)
    calibration = _calibration(frame, campaign)
    verdict = _verdict(against, guards, calibration, campaign.currency)
    if verdict.verdict == "keep" and not policies["challenger"].any():
        why = "it sends no messages: training certified no threshold; its report says why"
        return replace(verdict, reasons=(why, *verdict.reasons))
    return verdict


def _check(policies: Mapping[str, np.ndarray], mu_hat: np.ndarray, shape: tuple[int, int, int]) -> None:
    if "challenger" not in policies:
        raise DataError(f"gate: no policy 'challenger' among {sorted(policies)}")
    if mu_hat.shape != shape:
        raise DataError(f"gate: mu_hat has shape {mu_hat.shape}, expected {shape}: rows, arms, outcomes")
    wrong = np.flatnonzero(~np.isfinite(mu_hat).all(axis=(1, 2)))
    if len(wrong):
        raise DataError(
            f"gate: mu_hat is no number in {len(wrong)} of {shape[0]} rows, first in row {wrong[0]}; "
            "run `tactful train` again"
        )
    for name, arm in policies.items():
        if arm.shape != shape[:1] or not np.issubdtype(arm.dtype, np.integer):
            raise DataError(
                f"gate: policy {name!r} has shape {arm.shape} of {arm.dtype}, expected ({shape[0]},) integers"
            )
        if arm.min(initial=0) < 0 or arm.max(initial=0) >= shape[1]:
            raise DataError(f"gate: policy {name!r} has arms {arm.min()}..{arm.max()}, expected 0..{shape[1] - 1}")


def _scores(frame: pd.DataFrame, arm: np.ndarray, mu_hat: np.ndarray, campaign: Campaign) -> np.ndarray:
    """Doubly robust scores of a deterministic policy; shape (n, n_outcomes + 1), weighted and net of costs last."""
    outcome = frame[[f"y_{name}" for name in campaign.outcome_names]].to_numpy(dtype=float)
    target = np.eye(mu_hat.shape[1])[arm]
    logged = frame["arm"].to_numpy(dtype=np.int64)
    score = dr_scores(outcome, logged, target, frame["propensity"].to_numpy(dtype=float), mu_hat)
    return np.column_stack([score, score @ np.asarray(campaign.weights) - np.asarray(campaign.costs)[arm]])


def _compare(
    name: str,
    difference: np.ndarray,
    user: np.ndarray,
    *,
    outcome: str = "weighted",
    segment: str = "",
    column: int = -1,
    limit: float = 0.0,
) -> Comparison:
    mean, se = mean_and_se(difference[:, column], user)
    lower = mean - float(norm.ppf(1 - ALPHA)) * se
    upper = mean + float(norm.ppf(1 - ALPHA)) * se
    status = "better" if lower > limit else "worse" if upper < limit else "unclear"
    return Comparison(name, outcome, segment, len(difference), mean, se, lower, limit, status)


def _with_power(champion: Comparison, gain: float) -> Comparison:
    """The comparison with the champion, with the power against one that is better by a share of the champion's gain."""
    if champion.differ < ALIKE or gain <= 0:
        return champion
    return replace(champion, power=float(norm.cdf(WORTH * gain / champion.se - norm.ppf(1 - ALPHA))))


def _guardrails(
    frame: pd.DataFrame, scores: Mapping[str, np.ndarray], user: np.ndarray, campaign: Campaign
) -> list[Comparison]:
    """Each guardrail outcome of the challenger against sending nothing: overall, and in every segment."""
    difference = scores["challenger"] - scores["send_none"]
    found = []
    for column, outcome in enumerate(campaign.outcome):
        if outcome.role != "guardrail" or outcome.margin is None:
            continue
        groups: list[tuple[str, np.ndarray, float]] = [("", np.ones(len(frame), dtype=bool), outcome.margin)]
        if outcome.segment_margin is not None:
            for name in campaign.segments.columns:
                values = frame[name].to_numpy()
                groups += [
                    (f"{name}={value}", values == value, outcome.segment_margin)
                    for value in frame[name].dropna().unique()
                ]
        for segment, chosen, margin in groups:
            found.append(
                _compare(
                    "send_none",
                    difference[chosen],
                    user[chosen],
                    outcome=outcome.name,
                    segment=segment,
                    column=column,
                    limit=-margin,
                )
            )
    return found


def _calibration(frame: pd.DataFrame, campaign: Campaign) -> tuple[Calibration, ...]:
    """Level and slope of every arm's line of errors."""
    rows = uplifts(frame, campaign)
    found = []
    for a, arm in enumerate(campaign.arm_names[1:]):
        s = rows.predicted[:, a, -1]
        theta, cov = fit_line(s, rows.score[:, a, -1] - s, rows.user)
        slope, (se, slope_se) = float(1 + theta[1]), np.sqrt(np.diag(cov)).tolist()
        limit = max(norm.isf(LEVEL_ALPHA / 2 / (len(campaign.arm) - 1)) * se, MIN_CHANGE * np.sqrt((s**2).mean()))
        found.append(
            Calibration(
                arm=arm,
                n=len(s),
                predicted=float(s.mean()),
                realised=float(s.mean() + theta[0]),
                se=se,
                slope=slope,
                slope_se=slope_se,
                ranks=bool(slope >= norm.ppf(1 - ALPHA) * slope_se),
                level_off=bool(abs(theta[0]) > limit),
            )
        )
    return tuple(found)


def _verdict(
    against: Mapping[str, Comparison], guards: Sequence[Comparison], calibration: tuple[Calibration, ...], currency: str
) -> GateVerdict:
    table = (*against.values(), *guards)
    rival = against.get("champion", against["send_none"])
    if rival.status != "better":
        reasons = [f"not better than {rival.name}: {_words(rival, currency)}"]
        if rival.differ < ALIKE:  # NaN without a champion
            reasons.append(f"the two policies differ on {rival.differ:.1%} of the decisions: too alike to tell apart")
        elif not np.isnan(rival.power):
            reasons.append(
                f"a challenger better by {WORTH:.0%} that differs on as many decisions ({rival.differ:.0%}) would be "
                f"found with probability {rival.power:.2f}"
            )
        return GateVerdict("keep", tuple(reasons), table, calibration)
    reasons = []
    if against["send_none"].status != "better":
        reasons.append(f"not better than sending nothing: {_words(against['send_none'], currency)}")
    for name, comparison in against.items():
        if name not in ("champion", "send_none") and comparison.status == "worse":
            reasons.append(f"worse than {name}: {_words(comparison, currency)}")
    # overall a guardrail must be certified; a segment is small, so there it must only not look violated
    for guard in guards:
        if guard.status != "better" if not guard.segment else guard.difference < guard.limit:
            where = guard.segment or "everybody"
            reasons.append(f"guardrail {guard.outcome}, {where}: {_words(guard, currency)}, limit {guard.limit:g}")
    reasons += [
        f"calibration: the score does not rank users, for arm {c.arm} (slope {c.slope:.2f}, standard error "
        f"{c.slope_se:.2f})"
        for c in calibration
        if not c.ranks
    ]
    verdict = "needs_a_person" if reasons else "promote"
    reasons = reasons or [f"better than {rival.name}: {_words(rival, currency)}"]
    reasons += [
        f"told only: uplift of arm {c.arm} is predicted as {c.predicted:+.3f} {currency} per user on average, "
        f"measured as {c.realised:+.3f}, standard error {c.se:.3f}"
        for c in calibration
        if c.level_off
    ]
    return GateVerdict(verdict, tuple(reasons), table, calibration)


def _words(c: Comparison, currency: str) -> str:
    unit = f"{currency} " if c.outcome == "weighted" else ""
    return f"{c.difference:+.4f} {unit}per user, standard error {c.se:.4f}, lower bound {c.lower:+.4f}"
