"""Read an experiment from a plain table: quality checks, the table of effects, and the decision with its reasons."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from monitoring.experiment.checks import believable, quality_checks
from monitoring.experiment.decide import Decision, decide
from monitoring.experiment.effects import MIN_COUNT, effect_rows, informative
from monitoring.experiment.look import Look, current_look, planned_part
from monitoring.experiment.plan import ExperimentPlan
from monitoring.experiment.table import ExperimentTable, checked_table


@dataclass(frozen=True)
class Readout:
    """What an experiment says.

    `reasons` are sentences; `table` has the columns of decide.Row, `checks` those of
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

    Of more users than planned the first are read, by day of entry, so that reading on changes no decision.

    Returns: the read-out; `.decision` is "ship", "hold" or "rollback".
    Raises: DataError: the table breaks the plan (see table.checked_table).
    """
    table = checked_table(frame, plan)
    part, ordered = planned_part(frame, plan)
    if len(part) < len(frame):
        table = checked_table(part, plan)
    look = current_look(plan, table.n, previous, ordered=ordered)
    checks = quality_checks(table, plan)
    table = believable(table, checks)
    rows = effect_rows(table, plan, look)
    failed = [_failure(check) for check in checks.to_dict("records") if not check["passed"]]
    decision, variant, reasons = decide(rows, failed, plan)
    notes = [*_next_step(decision, look, len(frame), plan.day), *_notes(part, plan, look, table)]
    return Readout(decision, reasons, pd.DataFrame(rows), checks, variant, look, plan, notes)


WORDS = {
    "sample_ratio": "sample ratio mismatch (SRM)",
    "delivery": "delivery check failed",
    "exposure": "exposure differs between variants",
    "trigger": "the trigger depends on the variant",
    "untriggered": "the candidate moves users whom the trigger leaves out",
    "covariate": "variants differ before the experiment",
}
INSTEAD = {
    "trigger": "effects are read on everybody, without the trigger",
    "untriggered": "effects are read on everybody, without the trigger",
    "covariate": "this metric is read without its covariate",
}


def _failure(check: Mapping[Hashable, Any]) -> str:
    where = f" in {check['scope']}" if check["scope"] else ""
    instead = f"; {INSTEAD[check['check']]}" if check["check"] in INSTEAD else ""
    return f"{WORDS[check['check']]}{where}: {check['detail']}; find the cause before believing any effect{instead}"


def _next_step(decision: Decision, look: Look, entered: int, day: str) -> list[str]:
    if look.planned_users is None:
        return []
    if look.fractions[-1] < 1:
        keep = "; keep it running" if decision == "hold" else ""
        return [
            f"{look.users} of {look.planned_users} planned users, reading {look.number}: bounds are of this look{keep}"
        ]
    notes = ["all planned users are in: keep control; running on is a new experiment"] if decision == "hold" else []
    if entered > look.users:
        notes.append(past_the_end(entered, look.users))
    if look.past_end:
        notes.append(
            f"{look.users} users, planned were {look.planned_users}: bounds are those that hold however often one "
            f"reads past the planned end, and wider; with every user's day of entry in column {day!r} (a date such as "
            "2026-11-25, or a number), the planned users are read alone"
        )
    return notes


def past_the_end(entered: int, read: int) -> str:
    """Why not all users are read."""
    return f"{entered} users: the first {read} are read, as planned, so that the decision is the same at every reading"


def _notes(frame: pd.DataFrame, plan: ExperimentPlan, look: Look, table: ExperimentTable) -> list[str]:
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
    return [*notes, *_trigger_notes(plan, table)]


def _trigger_notes(plan: ExperimentPlan, table: ExperimentTable) -> list[str]:
    if table.trigger is None:
        return []
    share = table.trigger.mean()
    notes = [
        f"triggered analysis: the variants decide differently for {share:.1%} of users; effects are on all users, "
        f"{1 / share:.3g} times smaller than among those"
    ]
    untouched = [
        f"{segment or 'everybody'}{f' ({name})' if len(plan.treatments) > 1 else ''}"
        for segment, mask in table.segment_rows()
        for arm, name in enumerate(plan.treatments, start=1)
        if informative(table, pair := table.pair(arm) & mask, arm) is pair
    ]
    if untouched:
        notes.append(
            f"read on all users, because fewer than {MIN_COUNT} per variant are decided about differently: "
            + ", ".join(untouched)
        )
    return notes
