"""Formulas of an A/B test: effects with intervals, CUPED, bounds that hold at every look.

An effect is mean(treatment) - mean(control). Every effect answers two questions: its interval at a critical value z
(z = 1.96 is the usual 95%), and the z at which the interval just touches a given null; so a p value and the interval
beside it can never disagree.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri, stdtr, stdtrit

MAX_Z = 37.0  # beyond this a normal tail is 0 in double precision


class Effect(Protocol):
    """A difference of means with its uncertainty."""

    @property
    def estimate(self) -> float:
        """Mean of treatment minus mean of control."""

    def interval(self, z: float) -> tuple[float, float]:
        """Two-sided interval whose ends are each exceeded with the normal tail probability beyond `z`."""

    def z_against(self, null: float) -> float:
        """Signed z at which the interval just touches `null`; positive when the estimate lies above it."""


@dataclass(frozen=True)
class Welch:
    """Difference of two means with unequal variances, Student's t with Satterthwaite's degrees of freedom."""

    estimate: float
    se: float
    df: float

    @classmethod
    def of(cls, treatment: np.ndarray, control: np.ndarray) -> Welch:
        """From the values of each group; shapes (n1,) and (n0,), at least 2 each."""
        v1, v0 = treatment.var(ddof=1) / len(treatment), control.var(ddof=1) / len(control)
        # as shares of the variance: squares of it overflow from values of 1e77 on
        part = v1 / (v1 + v0) if v1 + v0 > 0 else 0.5
        df = 1 / (part**2 / (len(treatment) - 1) + (1 - part) ** 2 / (len(control) - 1))
        return cls(float(treatment.mean() - control.mean()), math.sqrt(v1 + v0), float(df))

    def interval(self, z: float) -> tuple[float, float]:
        """See Effect."""
        half = -float(stdtrit(self.df, ndtr(-z))) * self.se
        return self.estimate - half, self.estimate + half

    def z_against(self, null: float) -> float:
        """See Effect; the t statistic's tail probability as a normal quantile."""
        t = (self.estimate - null) / self.se
        tail = max(float(stdtr(self.df, -abs(t))), 1e-300)
        return math.copysign(-float(ndtri(tail)), t)


@dataclass(frozen=True)
class Newcombe:
    """Difference of two proportions by MOVER of Wilson intervals: holds with few events, never of zero width.

    Source: Newcombe (1998), Statistics in Medicine 17, method 10.
    """

    events1: float
    n1: int
    events0: float
    n0: int

    @property
    def estimate(self) -> float:
        """See Effect."""
        return self.events1 / self.n1 - self.events0 / self.n0

    def interval(self, z: float) -> tuple[float, float]:
        """See Effect."""
        p1, p0 = self.events1 / self.n1, self.events0 / self.n0
        (l1, u1), (l0, u0) = wilson(self.events1, self.n1, z), wilson(self.events0, self.n0, z)
        return p1 - p0 - math.hypot(p1 - l1, u0 - p0), p1 - p0 + math.hypot(u1 - p1, p0 - l0)

    def z_against(self, null: float) -> float:
        """See Effect."""
        return touching_z(self, null)


@dataclass(frozen=True)
class Diluted:
    """Effect on all users of a change that reaches only a share of them: share * effect among the reached.

    The share is itself counted from `n` users, which adds effect**2 * share * (1 - share) / n to the variance.
    """

    reached: Effect
    share: float
    n: int

    @property
    def estimate(self) -> float:
        """See Effect."""
        return self.share * self.reached.estimate

    def interval(self, z: float) -> tuple[float, float]:
        """See Effect."""
        low, high = self.reached.interval(z)
        wobble = z * self.reached.estimate * math.sqrt(self.share * (1 - self.share) / self.n)
        below = math.hypot(self.share * (self.reached.estimate - low), wobble)
        above = math.hypot(self.share * (high - self.reached.estimate), wobble)
        return self.estimate - below, self.estimate + above

    def z_against(self, null: float) -> float:
        """See Effect."""
        return touching_z(self, null)


def touching_z(effect: Effect, null: float) -> float:
    """Signed z at which an interval touches `null`, found by bisection; +-MAX_Z when even that one excludes it."""
    side = 0 if effect.estimate > null else 1
    sign = 1 if side == 0 else -1

    def distance(z: float) -> float:
        return sign * (effect.interval(z)[side] - null)

    if effect.estimate == null:
        return 0.0
    return sign * (MAX_Z if distance(MAX_Z) > 0 else float(brentq(distance, 0.0, MAX_Z, xtol=1e-12)))


def wilson(events: float, n: float, z: float) -> tuple[float, float]:
    """Wilson score interval of a proportion."""
    p, z2 = events / n, z * z
    centre, half = p + z2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, (centre - half) / (1 + z2 / n)), min(1.0, (centre + half) / (1 + z2 / n))


def cuped(outcome: np.ndarray, covariate: np.ndarray) -> np.ndarray:
    """Outcome less what a pre-period covariate explains: y - theta * (x - mean x), theta = cov(y, x) / var(x).

    Args:
        outcome: shape (n,), all variants together: one theta, so that the expected effect is unchanged.
        covariate: shape (n,), measured before assignment.

    Source: Deng, Xu, Kohavi, Walker (2013), Improving the sensitivity of online controlled experiments.
    """
    centred = covariate - covariate.mean()
    variance = float(centred @ centred)
    theta = float(centred @ outcome) / variance if variance > 0 else 0.0
    return np.asarray(outcome - theta * centred)


def two_sided_p(z: float) -> float:
    """Two-sided p value of a normal z."""
    return float(2 * ndtr(-abs(z)))


def critical_z(tail: float) -> float:
    """Normal z with the given upper tail probability."""
    return min(MAX_Z, -float(ndtri(tail))) if tail > 0 else MAX_Z


def holm(z: np.ndarray, critical: dict[int, float]) -> np.ndarray:
    """Holm's step-down: the largest |z| against the bound for m tests, the next for m - 1, until one fails.

    Args:
        z: shape (m,), one per test.
        critical: number of tests still open -> their bound.

    Returns: shape (m,), bool: rejected. Source: Holm (1979); with group-sequential bounds Ye et al. (2013).
    """
    rejected = np.zeros(len(z), dtype=bool)
    for step, index in enumerate(np.argsort(-np.abs(z), kind="stable")):
        if abs(z[index]) <= critical[len(z) - step]:
            break
        rejected[index] = True
    return rejected


@functools.lru_cache(maxsize=4096)
def obrien_fleming(alpha: float, fractions: tuple[float, ...]) -> tuple[float, ...]:
    """One-sided group-sequential bounds: P(z passes its bound at any look) = alpha when there is no effect.

    Args:
        alpha: one-sided error over all looks.
        fractions: share of the planned information at each look, increasing, the last one <= 1.

    Returns: the bound of each look's z. Spent by look at fraction t: 2 - 2 Phi(z_{alpha/2} / sqrt t).
    Source: Lan, DeMets (1983), Biometrika 70; recursion of Armitage, McPherson, Rowe (1969).
    """
    grid, density = np.zeros(1), np.ones(1)  # sub-density of the score process at the last look, times grid weights
    bounds, spent, last = [], 0.0, 0.0
    for t in fractions:
        budget = 2 * float(ndtr(-critical_z(alpha / 2) / math.sqrt(t)))
        step = math.sqrt(t - last)
        bound = _spending_bound(grid, density, step, budget - spent)
        bounds.append(min(MAX_Z, bound / math.sqrt(t)))
        new = np.linspace(-9 * math.sqrt(t), min(bound, 9 * math.sqrt(t)), 801)
        kernel = np.exp(-0.5 * ((new[:, None] - grid[None, :]) / step) ** 2) / (step * math.sqrt(2 * math.pi))
        weights = np.full(801, 2.0)
        weights[1::2] = 4.0
        weights[[0, -1]] = 1.0  # Simpson's rule
        grid, density = new, kernel @ density * weights * (new[1] - new[0]) / 3
        spent, last = budget, t
    return tuple(bounds)


def _spending_bound(grid: np.ndarray, density: np.ndarray, step: float, budget: float) -> float:
    """Bound of the score process such that `budget` of the probability passes it in this step."""

    def excess(bound: float) -> float:
        return float(density @ ndtr((grid - bound) / step)) - budget

    top = MAX_Z * 1.5
    return top if budget <= 0 or excess(top) > 0 else float(brentq(excess, -10.0, top, xtol=1e-10))


def alarm_z(alpha: float, users: float, tuned_users: float) -> float:
    """Bound that a z statistic passes at ANY time with probability <= alpha when there is no harm; one-sided.

    Args:
        alpha: one-sided error over all times.
        users: users measured so far.
        tuned_users: where the bound is tightest; any positive value is valid, fixed before the start.

    Source: Howard, Ramdas, McAuliffe, Sekhon (2021), Annals of Statistics 49, one-sided normal mixture.
    """
    tuning = 2 * math.log(1 / (2 * alpha)) + math.log(1 + 2 * math.log(1 / (2 * alpha)))
    ratio = tuned_users / (tuning * users)
    return math.sqrt(2 * (1 + ratio) * math.log(math.sqrt((1 + ratio) / ratio) / (2 * alpha) + 1))
