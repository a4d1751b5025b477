"""The decision: which bounds hold at this reading, what each row of the table shows, and what follows from all rows.

Ship only if a success metric improved, every guardrail is non-inferior for everybody and in every segment, and no
quality check failed. Roll back when the deterioration alarm rings, which holds however often one looks. Else hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from monitoring.experiment.plan import ExperimentPlan
from monitoring.experiment.stats import alarm_z, critical_z, holm, obrien_fleming

Decision = Literal["ship", "hold", "rollback"]
Row = dict[str, Any]  # of the table of effects, as monitoring.experiment.read.effect_rows describes it

SAME_LOOK = 0.01  # readings closer than this share of the planned users are one look
DEFAULT_USERS = 10_000  # where the alarm is tightest when the plan does not say how many users are planned


@dataclass(frozen=True)
class Look:
    """Where in the plan this reading stands.

    `fractions`: information of the readings so far, this one last; empty when the plan does not say how many users are
    planned: then each of its `looks` gets alpha / looks, which holds at any spacing. `past_end`: of more users than
    planned, and nothing tells which were first: others may have been read before, so the bound is that of the alarm.
    """

    looks: int
    users: int
    planned_users: int | None
    fractions: tuple[float, ...]
    past_end: bool = False

    @property
    def number(self) -> int:
        """Number of this reading, from 1; 0 when the table cannot tell."""
        return len(self.fractions)

    def critical(self, tail: float) -> float:
        """Bound of z at this look for an error of `tail` (one-sided) over all looks."""
        if self.past_end:
            return self.alarm(tail)
        return obrien_fleming(tail, self.fractions)[-1] if self.fractions else critical_z(tail / self.looks)

    def alarm(self, tail: float) -> float:
        """Bound of z that holds at every reading, planned or not."""
        return alarm_z(tail, self.users, self.planned_users or DEFAULT_USERS)


def current_look(
    plan: ExperimentPlan, users: int, previous: Sequence[float] | None = None, *, ordered: bool = False
) -> Look:
    """The look that a table of this many users is.

    Args:
        plan: looks and planned users.
        users: users in the table.
        previous: information fractions at which the experiment was read before; default: the planned looks before
            the one nearest to this table's size.
        ordered: the users are the first to enter, so that any more of them are the last ones' day.
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
    past_end = not ordered and users > planned * (1 + SAME_LOOK)
    return Look(len(plan.fractions), users, planned, (*earlier, max(fraction, 1e-4)), past_end)


def decide(rows: list[Row], failed: list[str], plan: ExperimentPlan) -> tuple[Decision, str, list[str]]:
    """The decision, the candidate to ship ("" when none), and the reasons as sentences.

    Args:
        rows: of every candidate, after `with_success` and `with_alarms`.
        failed: a sentence per failed quality check.
        plan: its candidates, and the success metric that comes first.
    """
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


def _said(row: Row) -> str:
    where = f" in {row['segment']}" if row["segment"] else ""
    effect = amount_with_interval(row["kind"], row["effect_size"], row["ci_lower"], row["ci_upper"])
    return f"{row['metric']}{where} {effect} ({level(row['ci_level'])} interval)"


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


def with_success(rows: list[Row], plan: ExperimentPlan, look: Look) -> list[Row]:
    """Status by Holm over the success metrics of all candidates, everybody only; segments are told, not tested."""
    family = [row for row in rows if row["role"] == "success" and row["segment"] == ""]
    critical = {m: look.critical(plan.alpha / (2 * m)) for m in range(1, len(family) + 1)}
    z = np.array([0.0 if row["status"] == "insufficient" else row["z"] for row in family])
    for row, rejected in zip(family, holm(z, critical), strict=True):
        if rejected:
            row["status"] = "improved" if _improvement(row) > 0 else "worse"
    return rows


def with_alarms(rows: list[Row], plan: ExperimentPlan, look: Look) -> list[Row]:
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


def level(value: float) -> str:
    """A confidence level for people: "95%", "96.7%", "99.9%", never "100%"."""
    return f"{100 - float(f'{100 * (1 - value):.2g}'):.10g}%"


def amount_with_interval(kind: str, value: float, low: float, high: float) -> str:
    """An effect and its interval for people, in the metric's unit: "+0.63 [-0.11, +1.37] pp"."""
    if math.isnan(low):
        return amount(kind, value)
    unit = " pp" if kind == "binary" else ""
    told = [amount(kind, v).removesuffix(" pp") for v in (value, low, high)]
    return f"{told[0]} [{told[1]}, {told[2]}]{unit}"
