"""Confidence intervals: Wilson for a share, MOVER for sums and differences of shares, Wald for everything else.

With rare outcomes and a small holdout a Wald (or bootstrap) interval is too short: with no event at all it has width 0.
Under a policy that treats few kinds of rows differently, the value is a sum over cells (kind of row x arm) of shares
that are estimated independently; each has a Wilson interval, and MOVER adds them up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri


def normal_quantile(alpha: float) -> float:
    """Two-sided critical value: 1.96 for alpha = 0.05."""
    return float(ndtri(1 - alpha / 2))


def wilson(share: np.ndarray, n_eff: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Wilson score interval of a share.

    Args:
        share: estimated shares in [0, 1].
        n_eff: effective numbers of observations behind them, > 0.
        alpha: 1 - confidence level.

    Returns: lower and upper limits, same shape as `share`.
    Source: Wilson (1927), JASA 22, 209-212.

    >>> [round(float(x), 4) for x in wilson(np.array(0.0), np.array(100), 0.05)]
    [0.0, 0.037]
    """
    z2 = normal_quantile(alpha) ** 2
    middle = share + z2 / (2 * n_eff)
    half = np.sqrt(z2 * (share * (1 - share) / n_eff + z2 / (4 * n_eff**2)))
    scale = 1 + z2 / n_eff
    # at 0 and 1 the limit is exact; rounding must not move it past the estimate
    lower = np.where(share <= 0, 0.0, (middle - half) / scale)
    return lower, np.where(share >= 1, 1.0, (middle + half) / scale)


def mover(coefficient: np.ndarray, share: np.ndarray, n_eff: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Distances from sum(coefficient * share) down and up to its confidence limits; shares are independent.

    Args:
        coefficient: shape (..., cells); 0 leaves a cell out.
        share: shape (..., cells), in [0, 1].
        n_eff: shape (..., cells), > 0.
        alpha: 1 - confidence level.

    Returns: two arrays of shape (...), >= 0. For coefficients (1, -1) this is Newcombe's interval of a difference.
    Source: Newcombe (1998), Statistics in Medicine 17, 873-890, method 10; Zou, Donner (2008), ibid. 27, 1693-1702.
    """
    lower, upper = wilson(share, n_eff, alpha)
    down = np.where(coefficient > 0, share - lower, upper - share)
    up = np.where(coefficient > 0, upper - share, share - lower)
    return (
        np.sqrt(((coefficient * down) ** 2).sum(axis=-1)),
        np.sqrt(((coefficient * up) ** 2).sum(axis=-1)),
    )


def carry_over(distance: np.ndarray, cell_variance: np.ndarray, variance: np.ndarray, alpha: float) -> np.ndarray:
    """Carry a MOVER distance over to an estimator whose variance differs from that of the sum over cells.

    An estimator with more variance than the cells (IPS, SNIPS) keeps the excess as a normal part; one with less
    (DR with good predictions) shrinks the distance in proportion. Both agree where the variances do.

    Args:
        distance: from `mover`.
        cell_variance: variance of the sum over cells, from the same rows.
        variance: variance of the estimator.
        alpha: 1 - confidence level.
    """
    excess = np.maximum(variance - cell_variance, 0)
    shrink = np.sqrt(variance / np.where(cell_variance > 0, cell_variance, 1))
    return np.where(
        variance < cell_variance,
        distance * shrink,
        np.sqrt(distance**2 + normal_quantile(alpha) ** 2 * excess),
    )


@dataclass(frozen=True)
class Cells:
    """Sums over the rows of each cell (kind of row x logged arm); v = 1 / propensity.

    Shapes: n, v, v2 (kinds, n_arms); events, v_events, v2_events (n_outcomes, kinds, n_arms), over rows whose outcome
    is not 0.
    """

    n: np.ndarray
    v: np.ndarray
    v2: np.ndarray
    events: np.ndarray
    v_events: np.ndarray
    v2_events: np.ndarray

    def __add__(self, other: Cells) -> Cells:
        return Cells(*(mine + theirs for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def size(self) -> np.ndarray:
        """Share of all rows that are of each kind; shape (kinds,)."""
        rows = self.n.sum(axis=1)
        return np.asarray(rows / rows.sum())

    def grouped(self, group: np.ndarray, n_groups: int) -> Cells:
        """The same rows with fewer kinds; `group` is the new kind of each, shape (kinds,)."""
        member = (group == np.arange(n_groups)[:, None]).astype(int)
        return Cells(*(member @ sums for sums in vars(self).values()))

    def n_eff(self) -> np.ndarray:
        """Kish's effective number of rows of each cell, (sum v)^2 / sum v^2; shape (kinds, n_arms)."""
        return np.asarray(self.v**2 / np.where(self.v2 > 0, self.v2, 1))

    def share(self, outcome: int) -> np.ndarray:
        """Hajek mean of a 0/1 outcome in each cell; 1/2 where a cell has no rows; shape (kinds, n_arms)."""
        empty = self.n == 0
        share = np.where(empty, 0.5, self.v_events[outcome] / np.where(empty, 1, self.v))
        return np.where(self._all_have(outcome), 1.0, share)

    def _all_have(self, outcome: int) -> np.ndarray:
        """Cells in whose every row the event is: rounding would leave them a variance, and take the interval away."""
        return np.asarray((self.n > 0) & (self.events[outcome] == self.n))

    def share_variance(self, outcome: int) -> np.ndarray:
        """Variance of that mean, rows independent; shape (kinds, n_arms)."""
        m = self.share(outcome)
        others = np.where(self._all_have(outcome), 0.0, self.v2 - self.v2_events[outcome])
        square = self.v2_events[outcome] * (1 - m) ** 2 + others * m**2
        return np.asarray(square / np.where(self.v > 0, self.v, 1) ** 2)


def count_cells(cell: np.ndarray, n_kinds: int, n_arms: int, propensity: np.ndarray, event: np.ndarray) -> Cells:
    """Sums by cell.

    Args:
        cell: shape (n,), integer, kind * n_arms + logged arm.
        n_kinds: number of kinds.
        n_arms: number of arms.
        propensity: shape (n,), of the logged arm.
        event: shape (n_outcomes, n), bool: the outcome is not 0.
    """
    inverse = 1 / propensity

    def total(rows: np.ndarray | None, weight: np.ndarray | None) -> np.ndarray:
        at = cell if rows is None else cell[rows]
        return np.bincount(at, weight, n_kinds * n_arms).reshape(n_kinds, n_arms)

    rows = [np.flatnonzero(e) for e in event]
    v = [inverse[r] for r in rows]
    return Cells(
        n=total(None, None),
        v=total(None, inverse),
        v2=total(None, inverse * inverse),
        events=np.array([total(r, None) for r in rows]),
        v_events=np.array([total(r, w) for r, w in zip(rows, v, strict=True)]),
        v2_events=np.array([total(r, w * w) for r, w in zip(rows, v, strict=True)]),
    )
