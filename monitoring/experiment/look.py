"""Where in the plan a reading stands: the bounds that hold at it, and the users who are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from monitoring.experiment.plan import ExperimentPlan
from monitoring.experiment.stats import alarm_z, critical_z, obrien_fleming

SAME_LOOK = 0.01  # readings closer than this share of the planned users are one look
LAST_DAY = 0.25  # a last day with more of the users read than this may still be filling up, and moves the end with it
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


def planned_part(frame: pd.DataFrame, plan: ExperimentPlan) -> tuple[pd.DataFrame, bool]:
    """The planned users of a table that has more, and whether they are the same ones at every later reading.

    They are the first by day of entry, whole days at a time. Without (readable) days nobody is left out. Nor are the
    users the same ones later when the day that completes them is the table's last and a large part of the experiment
    (one date for everybody, a month): more may enter on it.
    """
    days = _entry(frame[plan.day]) if plan.day in frame.columns else None
    if days is None or plan.last_users is None or len(frame) <= plan.last_users:
        return frame, days is not None
    end = days.sort_values().iloc[plan.last_users - 1]
    part = frame[days <= end]
    filling = bool(end == days.max()) and (days == end).sum() > LAST_DAY * len(part)
    return part, not filling


def _entry(values: pd.Series) -> pd.Series | None:
    """Days or instants of entry in a type that sorts by time, shape (n,); None where one cannot be read."""
    if not pd.api.types.is_numeric_dtype(values):
        values = pd.to_datetime(values, errors="coerce", format="ISO8601", utc=True)
    return None if values.isna().any() else values
