"""How many users and days an experiment needs, from the user's own outcomes.

Planned is the whole decision: a success metric improves AND every guardrail is shown non-inferior for everybody and in
each segment, at some look. The tests' correlations are those of the user's own data, so that the power is neither
multiplied down as if tests were independent nor bounded loosely.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtr

from campaign import CampaignError
from monitoring.experiment.plan import ExperimentPlan, Metric
from monitoring.experiment.stats import critical_z, cuped, obrien_fleming
from monitoring.experiment.table import covariate_values, need_column, outcome_values, segment_groups, segment_rows

DRAWS = 20_000  # of the tests' joint distribution: the planned probability has a Monte-Carlo SE <= .004
MAX_USERS = 10**9


@dataclass(frozen=True)
class PlannedExperiment:
    """What to expect.

    `users` in all variants together, `entry_days` to collect them and `days` until the last outcome is known (None
    when users per day are not given), `ship_probability` of the expected candidate at `users`.
    `table`: one row per test with columns metric, role, segment, share (of users), sd (after CUPED), variance_ratio,
    users_alone (for this test alone at the asked power), mde (at `users`: smallest effect shown with that power; for
    a guardrail the smallest margin that a harmless candidate passes), margin, expected (effect), pass_probability
    (of this test alone at the last look). Success metrics in segments are told, not tested: only their mde.
    """

    users: int
    entry_days: int | None
    days: int | None
    power: float
    ship_probability: float
    table: pd.DataFrame
    plan: ExperimentPlan

    def to_dict(self) -> dict[str, Any]:
        """Values for JSON: NaN becomes null."""
        table = self.table.astype(object).where(self.table.notna(), None).to_dict("records")
        keys = ("users", "entry_days", "days", "power", "ship_probability")
        return {"schema": 1, **{key: getattr(self, key) for key in keys}, "table": table}


@dataclass(frozen=True)
class _Test:
    """One test of the decision: `scores` (n,) have mean 0 and the variance that one user adds to the effect."""

    metric: Metric
    segment: str
    share: float
    scores: np.ndarray
    variance: float  # of sqrt(users) * effect, in squared units of the metric
    sd: float
    variance_ratio: float
    distance: float  # from the null that must be excluded to the expected effect, towards the good side
    critical: tuple[float, ...]  # bound of z at each look

    @property
    def decides(self) -> bool:
        """Whether the decision hangs on it: what a success metric does in a segment is told only."""
        return self.metric.role == "guardrail" or self.segment == ""


def plan_experiment(
    frame: pd.DataFrame,
    plan: ExperimentPlan,
    effects: Mapping[str, float],
    *,
    power: float = 0.8,
    users_per_day: float | None = None,
    matures_after_days: int = 0,
    available_users: int | None = None,
    seed: int = 0,
) -> PlannedExperiment:
    """Sample size and duration of an experiment.

    Args:
        frame: past outcomes, one row per user: metric, covariate and segment columns of the plan (no variant needed).
        plan: the plan; its planned_users is what is being asked for and is ignored.
        effects: metric -> expected absolute effect of the candidate, the same in every segment; 0 when not named.
        power: wanted probability that a candidate with these effects ships.
        users_per_day: users that enter the experiment a day.
        matures_after_days: days from entry until the outcome is known.
        available_users: all users there are to enrol.
        seed: of the draws from the tests' joint distribution.

    Raises: CampaignError: an effect of an unknown metric, none that improves, a guardrail that can never pass, or fewer
        users than needed (the message says what can be reached with them).
    """
    _check_effects(plan, effects, power)
    for column in [*plan.segments, *(c for m in plan.metric for c in (m.name, m.covariate) if c)]:
        need_column(frame, column)
    every = _tests(frame, plan, effects)
    tests = [test for test in every if test.decides]
    paths = _paths(tests, plan.fractions, seed)
    users = _smallest(lambda n: _ship_probability(tests, paths, plan.fractions, n), power)
    if available_users is not None and users > available_users:
        reached = math.floor(100 * _ship_probability(tests, paths, plan.fractions, available_users)) / 100
        raise CampaignError(
            f"{users} users needed for power {power:g}, but there are {available_users}: with these it is "
            f"{reached:.2f}, and the hardest test is {_hardest(tests, available_users, power)}. Enrol a larger share "
            "(--share), expect a larger effect (--effect), widen that margin or pool small segments in campaign.toml, "
            f"or ask for less power (--power {max(reached, 0.05):g})"
        )
    entry = None if users_per_day is None else math.ceil(users / users_per_day)
    return PlannedExperiment(
        users=users,
        entry_days=entry,
        days=None if entry is None else entry + matures_after_days,
        power=power,
        ship_probability=_ship_probability(tests, paths, plan.fractions, users),
        table=pd.DataFrame([_told(test, users, power) for test in every]),
        plan=plan.model_copy(update={"planned_users": users}),
    )


def _check_effects(plan: ExperimentPlan, effects: Mapping[str, float], power: float) -> None:
    known = [m.name for m in plan.metric]
    if unknown := [name for name in effects if name not in known]:
        raise CampaignError(f"effects: unknown metric {unknown[0]!r}; the plan has {known}")
    if not 0.05 <= power <= 0.99:
        raise CampaignError(f"power == {power:g}, must be between 0.05 and 0.99")
    for metric in plan.metric:
        loss = -metric.sign * effects.get(metric.name, 0.0)
        tolerated = min(metric.tolerance(""), metric.tolerance("segment"))
        if metric.role == "guardrail" and loss >= tolerated:
            raise CampaignError(
                f"effects: {metric.name} is expected to lose {loss:g}, its margin is {tolerated:g}: such a candidate "
                "can never be shown harmless; widen the margin or improve the candidate"
            )
    if not any(m.sign * effects.get(m.name, 0.0) > 0 for m in plan.metric if m.role == "success"):
        successes = [m.name for m in plan.metric if m.role == "success"]
        raise CampaignError(f"effects == {dict(effects)}: give the expected improvement of one of {successes}")


def _tests(frame: pd.DataFrame, plan: ExperimentPlan, effects: Mapping[str, float]) -> list[_Test]:
    """The tests of the decision first, then success metrics in segments, which are told only."""
    family = len(plan.treatments) * sum(m.role == "success" for m in plan.metric)
    tails = {"success": plan.alpha / 2 / family, "guardrail": plan.alpha / len(plan.treatments), "told": plan.alpha / 2}
    critical = {part: obrien_fleming(tail, plan.fractions) for part, tail in tails.items()}
    groups = list(segment_rows({column: segment_groups(frame[column]) for column in plan.segments}, len(frame)))
    tests = []
    for metric in plan.metric:
        y = outcome_values(frame, metric, plan.unit)
        x = covariate_values(frame[metric.covariate]) if metric.covariate else None
        for segment, rows in groups:
            part = "told" if metric.role == "success" and segment else metric.role
            effect = effects.get(metric.name, 0.0) if part != "told" else 0.0
            if part != "told" or len(np.unique(y[rows])) > 1:
                tests.append(_test(y, x, rows, metric, segment, effect, plan, critical[part]))
    return sorted(tests, key=lambda test: not test.decides)


def _test(
    y: np.ndarray,
    x: np.ndarray | None,
    rows: np.ndarray,
    metric: Metric,
    segment: str,
    effect: float,
    plan: ExperimentPlan,
    critical: tuple[float, ...],
) -> _Test:
    share = float(rows.mean())
    part = y[rows]
    raw = float(part.var()) if rows.any() else 0.0
    if raw == 0:
        where = f" in segment {segment}" if segment else ""
        raise CampaignError(f"{metric.name}{where}: {int(rows.sum())} past users, no variation; nothing can be planned")
    residual = (cuped(part, x[rows]) if x is not None else part) - part.mean()
    control = float(residual.var())
    treated = control * _treated_spread(metric, float(part.mean()), effect, segment)
    shares = np.array(plan.variant_shares[:2]) / sum(plan.variant_shares)
    scores = np.zeros(len(y))
    scores[rows] = residual / share
    distance = metric.sign * effect + metric.tolerance(segment)
    variance = (control / shares[0] + treated / shares[1]) / share
    return _Test(metric, segment, share, scores, variance, math.sqrt(control), control / raw, distance, critical)


def _treated_spread(metric: Metric, base: float, effect: float, segment: str) -> float:
    """Variance under treatment over that under control: a rate that moves changes its own variance."""
    if metric.kind == "continuous":
        return 1.0
    moved = base + effect
    if not 0 < moved < 1:
        where = f" in segment {segment}" if segment else ""
        raise CampaignError(f"effects: {metric.name} is {base:.4g}{where} and cannot move by {effect:+g}")
    return moved * (1 - moved) / (base * (1 - base))


def _paths(tests: list[_Test], fractions: tuple[float, ...], seed: int) -> np.ndarray:
    """Draws of every test's z at every look under its null; shape (DRAWS, n_looks, n_tests)."""
    correlation = np.corrcoef(np.stack([t.metric.sign * t.scores for t in tests])).reshape(len(tests), len(tests))
    values, vectors = np.linalg.eigh(correlation)
    root = vectors * np.sqrt(np.clip(values, 0, None))  # segments add up to everybody: singular, so no Cholesky
    steps = np.diff(np.r_[0.0, fractions])
    normal = np.random.default_rng(seed).standard_normal((DRAWS, len(fractions), len(tests)))
    walk = np.cumsum(normal * np.sqrt(steps)[None, :, None], axis=1) @ root.T
    return np.asarray(walk / np.sqrt(fractions)[None, :, None])


def _ship_probability(tests: list[_Test], paths: np.ndarray, fractions: tuple[float, ...], users: float) -> float:
    drift = np.array([t.distance / math.sqrt(t.variance) for t in tests])
    z = paths + drift * np.sqrt(users * np.array(fractions))[:, None]
    passed = z > np.array([t.critical for t in tests]).T
    success = np.array([t.metric.role == "success" for t in tests])
    return float((passed[:, :, success].any(axis=2) & passed[:, :, ~success].all(axis=2)).any(axis=1).mean())


def _smallest(probability: Callable[[float], float], power: float) -> int:
    """Smallest number of users, to about 0.2%, with the wanted probability."""
    low, high = 1.0, 128.0
    while probability(high) < power:
        low, high = high, 2 * high
        if high > MAX_USERS:
            raise CampaignError(f"more than {MAX_USERS:.0e} users needed: expect a larger effect, or widen the margins")
    while high > 1.002 * low and high - low > 1:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if probability(middle) >= power else (middle, high)
    return math.ceil(high)


def _told(test: _Test, users: int, power: float) -> dict[str, str | float | None]:
    """A row of the table; of a test that is told only, what could be seen and nothing about passing."""
    metric, z = test.metric, test.critical[-1]
    reach = (z + critical_z(1 - power)) * math.sqrt(test.variance)
    passing = float(ndtr(test.distance / math.sqrt(test.variance / users) - z))
    return {
        "metric": metric.name,
        "role": metric.role,
        "segment": test.segment,
        "share": test.share,
        "sd": test.sd,
        "variance_ratio": test.variance_ratio,
        "users_alone": math.ceil((reach / test.distance) ** 2) if test.decides and test.distance > 0 else None,
        "mde": reach / math.sqrt(users),
        "margin": metric.tolerance(test.segment) if metric.role == "guardrail" else math.nan,
        "expected": metric.sign * (test.distance - metric.tolerance(test.segment)) if test.decides else math.nan,
        "pass_probability": passing if test.decides else math.nan,
    }


def _hardest(tests: list[_Test], users: int, power: float) -> str:
    """The required test that is least likely to pass: any guardrail's, or the best success metric's."""
    rows = pd.DataFrame([_told(test, users, power) for test in tests]).sort_values("pass_probability")
    best = rows[rows["role"] == "success"].tail(1)
    hardest = pd.concat([best, rows[rows["role"] == "guardrail"]]).sort_values("pass_probability").iloc[0]
    return f"{hardest['metric']} of {hardest['segment'] or 'everybody'}"
