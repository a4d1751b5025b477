"""Read an experiment from a plain table: quality checks, effects, and one decision with its reasons.

Ship only if a success metric improved, every guardrail is non-inferior for everybody and in every segment, and no
quality check failed. Roll back when the deterioration alarm rings, which holds however often one looks. Else hold.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from monitoring.experiment_checks import quality_checks
from monitoring.experiment_effects import Look, Row, amount, amount_with_interval, current_look, effect_rows
from monitoring.experiment_plan import ExperimentPlan
from monitoring.experiment_table import checked_table

Decision = Literal["ship", "hold", "rollback"]


@dataclass(frozen=True)
class Readout:
    """What an experiment says.

    `reasons` are sentences; `table` is described at experiment_effects.effect_rows, `checks` at
    experiment_checks.quality_checks; `variant` is the candidate to ship, "" when none.
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
    Raises: DataError: the table breaks the plan (see experiment_table.checked_table).
    """
    table = checked_table(frame, plan)
    look = current_look(plan, table.n, previous)
    checks = quality_checks(table, plan)
    rows = effect_rows(table, plan, look)
    failed = [_failure(check) for check in checks.to_dict("records") if not check["passed"]]
    decision, variant, reasons = _decide(rows, failed, plan)
    notes = [*_next_step(decision, look), *_notes(frame, plan, look, table.trigger)]
    return Readout(decision, reasons, pd.DataFrame(rows), checks, variant, look, plan, notes)


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


@dataclass(frozen=True)
class _Verdict:
    improved: list[str]
    missing: list[str]  # what keeps it from shipping
    alarms: list[str]


def _judge(rows: list[Row]) -> _Verdict:
    """Sentences for and against one candidate."""
    success = [row for row in rows if row["role"] == "success" and row["segment"] == ""]
    improved = [f"{_said(row)}: improved" for row in success if row["status"] == "improved"]
    missing = [f"{_said(row)}: significantly worse" for row in success if row["status"] == "worse"]
    if not improved:
        missing.append("no success metric is shown to improve: " + "; ".join(map(_said_open, success)))
    missing += [_unproven(row) for row in rows if row["role"] == "guardrail" and row["status"] != "non_inferior"]
    alarms = [f"deterioration alarm: {_said(row)}" for row in rows if row["alarm"]]
    return _Verdict(improved, missing, alarms)


def _said(row: Row) -> str:
    where = f" in {row['segment']}" if row["segment"] else ""
    effect = amount_with_interval(row["kind"], row["effect_size"], row["ci_lower"], row["ci_upper"])
    return f"{row['metric']}{where} {effect} ({row['ci_level']:.0%} interval)"


def _said_open(row: Row) -> str:
    return f"{_said(row)}, insufficient data" if row["status"] == "insufficient" else _said(row)


def _unproven(row: Row) -> str:
    if row["status"] == "insufficient":
        where = f"segment {row['segment']}" if row["segment"] else "everybody"
        return (
            f"guardrail {row['metric']}: insufficient data in {where}: {row['n_control']} users in control, "
            f"{row['n_treatment']} in treatment; wait, or pool the segment with another one before the next experiment"
        )
    margin = amount(row["kind"], row["margin"], signed=False)
    return f"guardrail {_said(row)}: not shown to be non-inferior, margin {margin}"


def _decide(rows: list[Row], failed: list[str], plan: ExperimentPlan) -> tuple[Decision, str, list[str]]:
    judged = {name: _judge([row for row in rows if row["variant"] == name]) for name in plan.treatments}
    prefix = {name: f"{name}: " if len(judged) > 1 else "" for name in judged}
    ready = [name for name, v in judged.items() if v.improved and not v.missing and not v.alarms]
    alarmed = [name for name, v in judged.items() if v.alarms]
    alarms = [prefix[name] + sentence for name in alarmed for sentence in judged[name].alarms]
    if len(alarmed) == len(judged):
        return "rollback", "", alarms + failed
    alarms += [f"stop {name}" for name in alarmed]
    if ready and not failed:
        best = _best(ready, rows, plan)
        shown = [prefix[best] + sentence for sentence in judged[best].improved]
        return "ship", best, [*shown, *_harmless([row for row in rows if row["variant"] == best]), *alarms]
    reasons = [prefix[name] + sentence for name, v in judged.items() for sentence in [*v.missing, *v.improved]]
    return "hold", "", failed + alarms + reasons


def _best(ready: list[str], rows: list[Row], plan: ExperimentPlan) -> str:
    """Of several candidates that may ship: the largest improvement of the plan's first success metric."""
    first = next(m for m in plan.metric if m.role == "success")
    everybody = [row for row in rows if row["segment"] == "" and row["metric"] == first.name]
    gain = {row["variant"]: first.sign * row["effect_size"] for row in everybody}
    return max(ready, key=lambda name: gain[name])


def _harmless(rows: list[Row]) -> list[str]:
    guardrail = [row for row in rows if row["role"] == "guardrail"]
    if not guardrail:
        return []
    segments = {row["segment"] for row in guardrail} - {""}
    names = ", ".join(dict.fromkeys(row["metric"] for row in guardrail))
    where = f"for everybody and in all {len(segments)} segments" if segments else "for everybody"
    worse = [r for r in guardrail if (r["ci_upper"] < 0 if r["direction"] == "higher" else r["ci_lower"] > 0)]
    return [f"guardrails non-inferior {where}: {names}", *(f"{_said(row)}: worse, within its margin" for row in worse)]


def _next_step(decision: Decision, look: Look) -> list[str]:
    if look.planned_users is None:
        return []
    if look.fractions[-1] >= 1:
        return ["all planned users are in: keep control; running on is a new experiment"] if decision == "hold" else []
    keep = "; keep it running" if decision == "hold" else ""
    return [f"{look.users} of {look.planned_users} planned users, reading {look.number}: bounds are of this look{keep}"]


def _notes(frame: pd.DataFrame, plan: ExperimentPlan, look: Look, trigger: Any) -> list[str]:
    notes = []
    if look.planned_users is None and look.looks > 1:
        notes.append(
            f"planned_users is not in the plan: each of {look.looks} looks is read at alpha / {look.looks}, which is "
            "valid at any spacing and wider than the O'Brien-Fleming bounds"
        )
    for metric in plan.metric:
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
