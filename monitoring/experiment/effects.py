"""The table of effects: one row per candidate, metric and segment.

Every row has the one interval that its decision is read from: success metrics two-sided at alpha, guardrails the
interval whose bad end is the one-sided bound at alpha. With several looks both hold at all planned looks together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from monitoring.experiment.decide import Row, Status, with_alarms, with_success
from monitoring.experiment.look import Look
from monitoring.experiment.plan import ExperimentPlan, Metric
from monitoring.experiment.stats import Diluted, Effect, Newcombe, Welch, cuped, two_sided_p
from monitoring.experiment.table import ExperimentTable

MIN_COUNT = 10  # users per variant, or events, below which nothing is read
NAN = float("nan")


def effect_rows(table: ExperimentTable, plan: ExperimentPlan, look: Look) -> list[Row]:
    """One row per candidate, metric and segment, everybody first."""
    rows = [
        _row(table, plan, look, metric, arm, segment, mask)
        for segment, mask in table.segment_rows()
        for arm in range(1, len(plan.variants))
        for metric in plan.metric
    ]
    return with_alarms(with_success(rows, plan, look), plan, look)


@dataclass(frozen=True)
class Compared:
    """One metric of a candidate's users and of control's, and their difference.

    `treatment` and `control` hold values per user, CUPED-adjusted where `method` is cuped; `effect` is None where
    nothing can be said; `events`: of a binary metric, or non-events, whichever are fewer.
    """

    treatment: np.ndarray
    control: np.ndarray
    method: str
    variance_ratio: float
    effect: Effect | None
    events: int


def compare(table: ExperimentTable, metric: Metric, arm: int, rows: np.ndarray) -> Compared:
    """Compare a candidate with control among some users of these two variants (mask of shape (n,))."""
    treated, y = table.variant[rows] == arm, table.outcome[metric.name][rows]
    method, ratio, events = "newcombe" if metric.kind == "binary" else "welch", 1.0, _events(y)
    adjusted = y
    # with few events a normal interval is too narrow; Newcombe's holds
    rare = metric.kind == "binary" and min(_events(y[treated]), _events(y[~treated])) < MIN_COUNT
    if metric.name in table.covariate and enough(treated) and not rare:
        adjusted, method = cuped(y, table.covariate[metric.name][rows]), "cuped"
        variance = float(y.var())
        ratio = float(adjusted.var()) / variance if variance > 0 else 1.0
    treatment, control = adjusted[treated], adjusted[~treated]
    return Compared(treatment, control, method, ratio, _effect(treatment, control, method), events)


def enough(treated: np.ndarray) -> bool:
    """Whether both variants have enough users to be compared."""
    return bool(min(treated.sum(), (~treated).sum()) >= MIN_COUNT)


def informative(table: ExperimentTable, everyone: np.ndarray, arm: int) -> np.ndarray:
    """The users to read, of `everyone` in two variants: those whom the variants treat differently; mask of shape (n,).

    Where a variant has too few of them, as in a segment that the candidate hardly touches, all are read: unbiased
    whatever the trigger missed, and with the power that was planned. Variants trigger alike, so the choice moves no
    expectation.
    """
    if table.trigger is None:
        return everyone
    rows = everyone & table.trigger
    return rows if enough(table.variant[rows] == arm) else everyone


@dataclass(frozen=True)
class _Reading:
    """One metric of a candidate in one group of users: who was compared, and the effect on the whole group."""

    found: Compared
    effect: Effect | None
    dilution: float
    base: float  # control's mean that the effect is a share of


def _reading(table: ExperimentTable, metric: Metric, arm: int, everyone: np.ndarray) -> _Reading:
    rows = informative(table, everyone, arm)
    found, total = compare(table, metric, arm, rows), int(everyone.sum())
    if rows is everyone:
        return _Reading(found, found.effect, 1.0, _mean(found.control))
    share = int(rows.sum()) / total
    # a triggered effect is on all users, and so must be what it is compared with
    base = _mean(table.outcome[metric.name][everyone & (table.variant == 0)])
    return _Reading(found, Diluted(found.effect, share, total) if found.effect else None, share, base)


def _row(
    table: ExperimentTable, plan: ExperimentPlan, look: Look, metric: Metric, arm: int, segment: str, mask: np.ndarray
) -> Row:
    reading = _reading(table, metric, arm, mask & table.pair(arm))
    found, effect, margin = reading.found, reading.effect, metric.tolerance(segment)
    # shipping any of several candidates that harm is one error: each candidate's guardrails get their part of alpha
    tail = plan.alpha / 2 if metric.role == "success" else plan.alpha / len(plan.treatments)
    low, high = effect.interval(look.critical(tail)) if effect else (NAN, NAN)
    size = effect.estimate if effect else NAN
    return Row(
        variant=plan.variants[arm],
        metric=metric.name,
        kind=metric.kind,
        role=metric.role,
        direction=metric.direction,
        segment=segment,
        n_control=len(found.control),
        n_treatment=len(found.treatment),
        mean_control=_mean(found.control),
        mean_treatment=_mean(found.treatment),
        effect_size=size,
        rel_effect_size=size / reading.base if reading.base else NAN,
        ci_lower=low,
        ci_upper=high,
        ci_level=1 - 2 * tail,
        z=effect.z_against(0.0) if effect else NAN,
        pvalue=_pvalue(effect, metric, margin),
        margin=margin if metric.role == "guardrail" else NAN,
        method=found.method,
        variance_ratio=found.variance_ratio,
        dilution=reading.dilution,
        status=_status(found, metric, low, high, margin),
        alarm=False,
    )


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else NAN


def _events(y: np.ndarray) -> int:
    return int(min(y.sum(), len(y) - y.sum()))


def _effect(treatment: np.ndarray, control: np.ndarray, method: str) -> Effect | None:
    """The difference with its uncertainty; None where nothing can be said (no users, or no variance at all)."""
    if method == "newcombe":
        if min(len(treatment), len(control)) == 0:
            return None
        return Newcombe(float(treatment.sum()), len(treatment), float(control.sum()), len(control))
    if min(len(treatment), len(control)) < 2:
        return None
    welch = Welch.of(treatment, control)
    return welch if welch.se > 1e-12 * abs(control.mean()) else None


def _pvalue(effect: Effect | None, metric: Metric, margin: float) -> float:
    if effect is None:
        return NAN
    if metric.role == "success":
        return two_sided_p(effect.z_against(0.0))
    return float(ndtr(-metric.sign * effect.z_against(-metric.sign * margin)))


def _status(found: Compared, metric: Metric, low: float, high: float, margin: float) -> Status:
    # a guardrail with few events may still be shown harmless: Newcombe's interval is honest about them
    rare = metric.role == "success" and metric.kind == "binary" and found.events < MIN_COUNT
    if found.effect is None or min(len(found.treatment), len(found.control)) < MIN_COUNT or rare:
        return "insufficient"
    if metric.role == "success":
        return "not_shown"
    bad_end = low if metric.sign > 0 else -high
    return "non_inferior" if bad_end > -margin else "not_shown"
