"""The decision: what each row of the table of effects shows, and what follows from all of them.

Ship only if a success metric improved, every guardrail is non-inferior for everybody and in every segment, and no
quality check failed. Roll back when the deterioration alarm rings, which holds however often one looks. Else hold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypedDict

import numpy as np

from models.words import number
from monitoring.experiment.look import Look
from monitoring.experiment.plan import ExperimentPlan
from monitoring.experiment.stats import holm

Decision = Literal["ship", "hold", "rollback"]
Status = Literal["improved", "worse", "non_inferior", "not_shown", "insufficient"]


class Row(TypedDict):
    """A row of the table of effects.

    Means and effects are CUPED-adjusted where `method` is cuped. Numbers of users and means are of those who are read;
    `dilution` is their share of all users in the segment, and effect and interval are on all of these.
    """

    variant: str
    metric: str
    kind: Literal["binary", "continuous"]
    role: Literal["success", "guardrail"]
    direction: Literal["higher", "lower"]  # is better
    segment: str  # "column=value", "" for everybody
    n_control: int
    n_treatment: int
    mean_control: float
    mean_treatment: float
    effect_size: float  # in the metric's unit
    rel_effect_size: float
    ci_lower: float
    ci_upper: float
    ci_level: float
    z: float
    pvalue: float  # of one look: two-sided against no effect (success), one-sided against the margin (guardrail)
    margin: float  # NaN for a success metric
    method: str  # newcombe, welch or cuped
    variance_ratio: float  # share of the variance that the covariate left
    dilution: float
    status: Status
    alarm: bool


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
        if min(row["n_control"], row["n_treatment"]) > 1 and math.isnan(row["effect_size"]):
            return (
                f"guardrail {row['metric']}: the same for every user in {where} (or its covariate is a copy of it), so "
                "no harm can be ruled out; leave that segment, metric or covariate out of the next plan"
            )
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
    if math.isnan(value):
        return "unknown"
    return f"{100 * value:{'+' if signed else ''}.2f} pp" if kind == "binary" else number(value, signed=signed)


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
