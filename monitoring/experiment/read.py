"""Read an experiment from a plain table: quality checks, the table of effects, and the decision with its reasons.

Every row has the one interval that its decision is read from: success metrics two-sided at alpha, guardrails the
interval whose bad end is the one-sided bound at alpha. With several looks both hold at all planned looks together.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtr

from monitoring.experiment.checks import quality_checks
from monitoring.experiment.decide import SAME_LOOK, Decision, Look, Row, current_look, decide, with_alarms, with_success
from monitoring.experiment.plan import ExperimentPlan, Metric
from monitoring.experiment.stats import Diluted, Effect, Newcombe, Welch, cuped, two_sided_p
from monitoring.experiment.table import ExperimentTable, checked_table

MIN_COUNT = 10  # users per variant, or events, below which a row is insufficient


@dataclass(frozen=True)
class Readout:
    """What an experiment says.

    `reasons` are sentences; `table` is described at effect_rows, `checks` at
    checks.quality_checks; `variant` is the candidate to ship, "" when none.
    """

    decision: Decision
    reasons: list[str]
    table: pd.DataFrame
    checks: pd.DataFrame
    variant: str
    look: Look
    plan: ExperimentPlan
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Values for JSON: NaN becomes null."""
        return {
            "schema": 1,
            "decision": self.decision,
            "variant": self.variant,
            "reasons": self.reasons,
            "notes": self.notes,
            "users": self.look.users,
            "planned_users": self.look.planned_users,
            "look": self.look.number,
            "looks": self.look.looks,
            "fraction": self.look.fractions[-1] if self.look.fractions else None,
            "checks": _records(self.checks),
            "table": _records(self.table),
            "plan": self.plan.model_dump(mode="json"),
        }


def _records(frame: pd.DataFrame) -> list[dict[Hashable, Any]]:
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def read_experiment(frame: pd.DataFrame, plan: ExperimentPlan, *, previous: Sequence[float] | None = None) -> Readout:
    """Read an experiment from a table with one row per user.

    Args:
        frame: unit, variant, metric, covariate and segment columns as the plan names them; users whose outcome
            windows have closed, chosen by time of entry.
        plan: the plan made before the experiment.
        previous: shares of planned_users at which it was read before; default: the planned looks before this one.

    Returns: the read-out; `.decision` is "ship", "hold" or "rollback".
    Raises: DataError: the table breaks the plan (see table.checked_table).
    """
    table = checked_table(frame, plan)
    look = current_look(plan, table.n, previous)
    checks = quality_checks(table, plan)
    rows = effect_rows(table, plan, look)
    failed = [_failure(check) for check in checks.to_dict("records") if not check["passed"]]
    decision, variant, reasons = decide(rows, failed, plan)
    notes = [*_next_step(decision, look), *_notes(frame, plan, look, table.trigger)]
    return Readout(decision, reasons, pd.DataFrame(rows), checks, variant, look, plan, notes)


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
    return with_alarms(with_success(rows, plan, look), plan, look)


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


def _failure(check: Mapping[Hashable, Any]) -> str:
    where = f" in {check['scope']}" if check["scope"] else ""
    words = {
        "sample_ratio": "sample ratio mismatch (SRM)",
        "delivery": "delivery check failed",
        "exposure": "exposure differs between variants",
        "trigger": "the trigger depends on the variant",
        "covariate": "variants differ before the experiment",
    }
    return f"{words[check['check']]}{where}: {check['detail']}; find the cause before believing any effect"


def _next_step(decision: Decision, look: Look) -> list[str]:
    if look.planned_users is None:
        return []
    if look.fractions[-1] >= 1:
        ended = ["all planned users are in: keep control; running on is a new experiment"] if decision == "hold" else []
        return [*ended, *_past_the_end(look, look.planned_users)]
    keep = "; keep it running" if decision == "hold" else ""
    return [f"{look.users} of {look.planned_users} planned users, reading {look.number}: bounds are of this look{keep}"]


def _past_the_end(look: Look, planned_users: int) -> list[str]:
    if look.users <= planned_users * (1 + SAME_LOOK):
        return []
    return [
        f"{look.users} users, planned were {planned_users}: bounds are of one last look; if it was read at "
        f"{planned_users} before, that decision stands, because alpha is spent"
    ]


def _notes(frame: pd.DataFrame, plan: ExperimentPlan, look: Look, trigger: Any) -> list[str]:
    notes = []
    if look.planned_users is None and look.looks > 1:
        notes.append(
            f"planned_users is not in the plan: each of {look.looks} looks is read at alpha / {look.looks}, which is "
            "valid at any spacing and wider than the O'Brien-Fleming bounds"
        )
    for metric in plan.metric:
        if metric.covariate and frame[metric.covariate].nunique() == 1:
            notes.append(f"{metric.covariate}: the same for everybody, so it narrows nothing")
        if metric.covariate and (unknown := int(frame[metric.covariate].isna().sum())):
            notes.append(
                f"{metric.covariate}: {unknown} of {len(frame)} users had none; the mean of the others is used"
            )
    if trigger is not None:
        notes.append(
            f"triggered analysis: the variants decide differently for {trigger.mean():.1%} of users; effects are on "
            f"all users, {1 / trigger.mean():.3g} times smaller than among those"
        )
    return notes
