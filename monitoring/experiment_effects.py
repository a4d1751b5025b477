"""The table of effects: every candidate, metric and segment with the one interval that its decision is read from.

Success metrics have a two-sided interval at alpha, guardrails the interval whose bad end is the one-sided bound at
alpha. With several looks both are repeated intervals: they hold at all planned looks together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr

from monitoring.experiment_plan import ExperimentPlan, Metric
from monitoring.experiment_stats import (
    Diluted,
    Effect,
    Newcombe,
    Welch,
    alarm_z,
    critical_z,
    cuped,
    holm,
    obrien_fleming,
    two_sided_p,
)
from monitoring.experiment_table import ExperimentTable

MIN_COUNT = 10  # users per variant, or events, below which a row is insufficient
SAME_LOOK = 0.01  # readings closer than this share of the planned users are one look
DEFAULT_USERS = 10_000  # where the alarm is tightest when the plan does not say how many users are planned


@dataclass(frozen=True)
class Look:
    """Where in the plan this reading stands.

    `fractions`: information of the readings so far, this one last; empty when the plan has one look, or does not say
    how many users are planned: then each of its `looks` gets alpha / looks, which holds at any spacing.
    """

    looks: int
    users: int
    planned_users: int | None
    fractions: tuple[float, ...]

    @property
    def number(self) -> int:
        """Number of this reading, from 1; 0 when the table cannot tell."""
        return len(self.fractions)

    def critical(self, tail: float) -> float:
        """Bound of z at this look for an error of `tail` (one-sided) over all looks."""
        return obrien_fleming(tail, self.fractions)[-1] if self.fractions else critical_z(tail / self.looks)

    def alarm(self, tail: float) -> float:
        """Bound of z that holds at every reading, planned or not."""
        return alarm_z(tail, self.users, self.planned_users or DEFAULT_USERS)


def current_look(plan: ExperimentPlan, users: int, previous: Sequence[float] | None = None) -> Look:
    """The look that a table of this many users is.

    Args:
        plan: looks and planned users.
        users: users in the table.
        previous: information fractions at which the experiment was read before; default: the planned looks before
            the one nearest to this table's size.
    """
    planned = plan.last_users
    if planned is None:
        return Look(len(plan.fractions), users, None, ())
    fraction = round(min(1.0, users / planned), 4)
    if previous is None:
        nearest = int(np.argmin([abs(f - fraction) for f in plan.fractions]))
        previous = plan.fractions[:nearest]
    earlier: list[float] = []
    for f in sorted(round(f, 4) for f in previous):
        if f <= fraction - SAME_LOOK and f - (earlier[-1] if earlier else 0.0) >= SAME_LOOK:
            earlier.append(f)
    return Look(len(plan.fractions), users, planned, (*earlier, max(fraction, 1e-4)))


Row = dict[str, Any]


def effect_rows(table: ExperimentTable, plan: ExperimentPlan, look: Look) -> list[Row]:
    """One row per candidate, metric and segment ("" = everybody), as the columns of a table.

    Columns: variant, metric, kind, role, direction, segment, n_control, n_treatment, mean_control, mean_treatment,
    effect_size, rel_effect_size, ci_lower, ci_upper, ci_level, z, pvalue, margin, method, variance_ratio, status and
    alarm. Means and effects are CUPED-adjusted where a covariate is used; `variance_ratio` is the share of variance
    left by it. `pvalue`: two-sided against no effect (success), one-sided against the margin (guardrail); of one look.
    `status`: improved, worse, non_inferior, not_shown, insufficient.
    """
    rows = [
        _row(table, plan, look, metric, arm, segment, mask)
        for segment, mask in table.segment_rows()
        for arm in range(1, len(plan.variants))
        for metric in plan.metric
    ]
    return _with_alarms(_with_success(rows, plan, look), plan, look)


def _row(
    table: ExperimentTable, plan: ExperimentPlan, look: Look, metric: Metric, arm: int, segment: str, mask: np.ndarray
) -> Row:
    everyone = mask & ((table.variant == 0) | (table.variant == arm))
    rows = everyone if table.trigger is None else everyone & table.trigger
    treated = table.variant[rows] == arm
    n1, n0 = int(treated.sum()), int((~treated).sum())
    y, method, ratio = _adjusted(table, metric, rows, treated)
    effect = _effect(y[treated], y[~treated], method)
    if effect is not None and table.trigger is not None:
        effect = Diluted(effect, len(y) / int(everyone.sum()), int(everyone.sum()))
    # shipping any of several candidates that harm is one error: each candidate's guardrails get their part of alpha
    tail = plan.alpha / 2 if metric.role == "success" else plan.alpha / len(plan.treatments)
    nan = float("nan")
    low, high = effect.interval(look.critical(tail)) if effect else (nan, nan)
    margin = metric.tolerance(segment)
    base = _mean(y[~treated])
    # a triggered effect is on all users, and so must be what it is compared with
    whole = base if table.trigger is None else _mean(table.outcome[metric.name][everyone & (table.variant == 0)])
    size = effect.estimate if effect else nan
    return {
        "variant": plan.variants[arm],
        "metric": metric.name,
        "kind": metric.kind,
        "role": metric.role,
        "direction": metric.direction,
        "segment": segment,
        "n_control": n0,
        "n_treatment": n1,
        "mean_control": base,
        "mean_treatment": _mean(y[treated]),
        "effect_size": size,
        "rel_effect_size": size / whole if whole else nan,
        "ci_lower": low,
        "ci_upper": high,
        "ci_level": 1 - 2 * tail,
        "z": effect.z_against(0.0) if effect else nan,
        "pvalue": _pvalue(effect, metric, margin),
        "margin": margin if metric.role == "guardrail" else nan,
        "method": method,
        "variance_ratio": ratio,
        "status": _status(table.outcome[metric.name][rows], n0, n1, effect, metric, low, high, margin),
    }


def _adjusted(
    table: ExperimentTable, metric: Metric, rows: np.ndarray, treated: np.ndarray
) -> tuple[np.ndarray, str, float]:
    """Outcome of the rows, how its difference is judged, and the share of variance that CUPED left."""
    y = table.outcome[metric.name][rows]
    plain = "newcombe" if metric.kind == "binary" else "welch"
    if metric.name not in table.covariate or min(treated.sum(), (~treated).sum()) < MIN_COUNT:
        return y, plain, 1.0
    # with few events a normal interval is too narrow; Newcombe's holds
    if metric.kind == "binary" and min(_events(y[treated]), _events(y[~treated])) < MIN_COUNT:
        return y, plain, 1.0
    adjusted = cuped(y, table.covariate[metric.name][rows])
    variance = float(y.var())
    return adjusted, "cuped", float(adjusted.var()) / variance if variance > 0 else 1.0


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _events(y: np.ndarray) -> int:
    """Events or non-events, whichever are fewer."""
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
        return float("nan")
    if metric.role == "success":
        return two_sided_p(effect.z_against(0.0))
    return float(ndtr(-metric.sign * effect.z_against(-metric.sign * margin)))


def _status(
    y: np.ndarray, n0: int, n1: int, effect: Effect | None, metric: Metric, low: float, high: float, margin: float
) -> str:
    # a guardrail with few events may still be shown harmless: Newcombe's interval is honest about them
    few_events = metric.role == "success" and metric.kind == "binary" and _events(y) < MIN_COUNT
    if effect is None or min(n0, n1) < MIN_COUNT or few_events:
        return "insufficient"
    if metric.role == "success":
        return "not_shown"
    bad_end = low if metric.sign > 0 else -high
    return "non_inferior" if bad_end > -margin else "not_shown"


def _with_success(rows: list[Row], plan: ExperimentPlan, look: Look) -> list[Row]:
    """Status by Holm over the success metrics of all candidates, everybody only; segments are told, not tested."""
    family = [row for row in rows if row["role"] == "success" and row["segment"] == ""]
    critical = {m: look.critical(plan.alpha / (2 * m)) for m in range(1, len(family) + 1)}
    z = np.array([0.0 if row["status"] == "insufficient" else row["z"] for row in family])
    for row, rejected in zip(family, holm(z, critical), strict=True):
        if rejected:
            row["status"] = "improved" if _improvement(row) > 0 else "worse"
    return rows


def _with_alarms(rows: list[Row], plan: ExperimentPlan, look: Look) -> list[Row]:
    """Deterioration at any reading: half of alpha for everybody's metrics, half for the guardrails in segments.

    A guardrail already shown to be within its margin raises no alarm: that much loss is tolerated.
    """
    overall = [row for row in rows if row["segment"] == ""]
    in_segments = [row for row in rows if row["segment"] != "" and row["role"] == "guardrail"]
    groups = [group for group in (overall, in_segments) if group]
    bound = {id(row): look.alarm(plan.alpha / len(groups) / len(group)) for group in groups for row in group}
    for row in rows:
        settled = row["status"] in ("insufficient", "non_inferior")
        row["alarm"] = not settled and id(row) in bound and _improvement(row) < -bound[id(row)]
    return rows


def _improvement(row: Row) -> float:
    """Z statistic towards the good side."""
    return float(row["z"] if row["direction"] == "higher" else -row["z"])


def amount(kind: str, value: float, *, signed: bool = True) -> str:
    """A value in the metric's unit for people: percentage points for a binary metric."""
    sign = "+" if signed else ""
    if math.isnan(value):
        return "unknown"
    if kind == "binary":
        return f"{100 * value:{sign}.2f} pp"
    return f"{value:{sign}.3g}" if abs(value) < 1000 else f"{value:{sign},.0f}"


def amount_with_interval(kind: str, value: float, low: float, high: float) -> str:
    """An effect and its interval for people, in the metric's unit: "+0.63 [-0.11, +1.37] pp"."""
    if math.isnan(low):
        return amount(kind, value)
    unit = " pp" if kind == "binary" else ""
    told = [amount(kind, v).removesuffix(" pp") for v in (value, low, high)]
    return f"{told[0]} [{told[1]}, {told[2]}]{unit}"
