"""Rows of the value table: every value and paired difference in one segment, with its interval and status.

The rows are passed once; every value, standard error, difference and interval follows from the sums. For 0/1 outcomes
under policies that treat few kinds of rows, limits are Wilson's by cell, added up and carried over to the estimator;
elsewhere they are Wald's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.cells import MAX_CELLS, Kinds, cell_sums
from models.decision_log import WEIGHTED, Outcome
from models.estimators import Columns, Moments, Sample, estimate, moments
from models.intervals import Cells, carry_over, count_cells, mover, normal_quantile
from models.policy import Target

COLUMNS = [
    "policy",
    "baseline",
    "outcome",
    "segment",
    "estimator",
    "value",
    "se",
    "ci_lower",
    "ci_upper",
    "n_obs",
    "n_events",
    "status",
]
MIN_EVENTS = 10


@dataclass
class Part:
    """Everything known about one segment: sums once, then every value, difference and interval from them."""

    sample: Sample
    targets: list[Target]
    kinds: Kinds
    outcomes: Sequence[Outcome]
    estimators: Sequence[str]
    alpha: float
    segment: str
    rows: np.ndarray | None
    known: tuple[Moments, Cells] | None = None  # sums made elsewhere, of the same policies

    def __post_init__(self) -> None:
        self.columns = Columns.needed(self.estimators, len(self.outcomes))
        self.at: slice | np.ndarray = slice(None) if self.rows is None else self.rows
        self.sums, self.cells = self.known or self._sums()
        self.pairs: dict[tuple[int, int | None], tuple[Cells, np.ndarray]] = {}
        self.behind: dict[tuple[int, int | None], tuple[np.ndarray, np.ndarray, float]] = {}

    def _sums(self) -> tuple[Moments, Cells]:
        """Moments of every score, and sums by cell."""
        sample, n_arms = self.sample, len(self.sample.costs)
        few = len(self.kinds) * n_arms <= MAX_CELLS and all(t.has_cells for t in self.targets)
        if sample.cluster is None and few:
            return cell_sums(sample, self.targets, self.columns, self.kinds, self.rows)
        arm = sample.arm[self.at]
        event = sample.outcome[:, self.at] != -sample.shift[:, None]
        cell = self.kinds.of_rows(self.at, arm, n_arms)
        return (
            moments(sample, self.targets, self.columns, self.rows),
            count_cells(cell, len(self.kinds), n_arms, sample.propensity[self.at], event),
        )

    def table(self, baselines: Sequence[str], values: bool) -> list[list[object]]:
        """Values of every policy (if wanted), then its differences to every baseline but itself."""
        names = [t.name for t in self.targets]
        known = {
            (p, e): self._weighted(p, *estimate(self.sums, self.columns, p, e, self.sample.shift))
            for p in range(len(names))
            for e in self.estimators
        }
        rows: list[list[object]] = []
        others = [*([None] if values else []), *(names.index(name) for name in baselines)]
        for p in range(len(names)):
            for b in others:
                if b == p:
                    continue
                for e in self.estimators:
                    value, influence = known[p, e]
                    if b is not None:
                        value, influence = value - known[b, e][0], influence - known[b, e][1]
                    rows += self._rows(p, b, e, value, influence)
        return rows

    def _weighted(self, policy: int, value: np.ndarray, influence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Append the weighted reward, less the policy's expected cost, as one more outcome."""
        weights, cost = np.array([o.weight for o in self.outcomes]), self.columns.cost(policy)
        mean_cost = self.sums.total[cost] / self.sums.n_obs
        extra = weights @ influence
        extra[cost] -= 1.0
        extra[0] += mean_cost
        return np.append(value, weights @ value - mean_cost), np.vstack([influence, extra])

    def _rows(
        self, p: int, b: int | None, estimator: str, value: np.ndarray, influence: np.ndarray
    ) -> list[list[object]]:
        """One row per outcome for a value or difference, whatever can be said of it."""
        variance = self.sums.variance(influence)
        design = np.ones_like(value) if self.sample.cluster is None else self.sums.design_effect(influence)
        n_events, enough, rows_behind = self._behind(p, b)
        lower, upper = self._limits(p, b, value, variance, design)
        status = np.where(enough & (upper > lower), "ok", "insufficient")
        se, none = np.sqrt(variance), np.asarray(~(upper > lower))
        if b is not None and self._identical(p, b):
            value, se, status = np.zeros_like(value), np.zeros_like(se), np.full_like(status, "identical")
            none[:] = True
        elif estimator == "dm":
            se, status = np.full_like(se, np.nan), np.full_like(status, "diagnostic")
            none[:] = True
        lower, upper = np.where(none, np.nan, lower), np.where(none, np.nan, upper)
        names = [*(o.name for o in self.outcomes), WEIGHTED]
        head = [self.targets[p].name, "" if b is None else self.targets[b].name]
        numbers = zip(value, se, lower, upper, n_events, status, rows_behind / design, strict=True)
        return [
            [*head, name, self.segment, estimator, v, s, low, high, self.sums.n_obs, int(events), str(state), n]
            for name, (v, s, low, high, events, state, n) in zip(names, numbers, strict=True)
        ]

    def _limits(
        self, p: int, b: int | None, value: np.ndarray, variance: np.ndarray, design: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Confidence limits; those of a 0/1 outcome stay within what its values and differences can be."""
        cells, coefficient = self._cells(p, b)
        binary = np.array([o.kind == "binary" for o in self.outcomes] + [False])
        inflation = design * self.sums.correction
        by_cells = binary & self._has_cells(p, b)
        down, up = _distances(cells, coefficient, variance, design, inflation, self.alpha, by_cells)
        lower = np.where(binary, np.maximum(value - down, 0.0 if b is None else -1.0), value - down)
        return lower, np.where(binary, np.minimum(value + up, 1.0), value + up)

    def _behind(self, p: int, b: int | None) -> tuple[np.ndarray, np.ndarray, float]:
        """Events behind an estimate, whether they are enough, and its effective number of rows."""
        if (p, b) not in self.behind:
            cells, coefficient = self._cells(p, b)
            binary = np.array([o.kind == "binary" for o in self.outcomes])
            self.behind[p, b] = (*_events(cells, coefficient, binary), _n_eff(cells, coefficient))
        return self.behind[p, b]

    def _has_cells(self, p: int, b: int | None) -> bool:
        return self.targets[p].has_cells and (b is None or self.targets[b].has_cells)

    def _cells(self, p: int, b: int | None) -> tuple[Cells, np.ndarray]:
        """Cell sums for a policy or pair, and the coefficient of each cell's mean outcome in the estimate."""
        if (p, b) not in self.pairs:
            pair = [p] if b is None else [p, b]
            group, tables = self.kinds.digits[0] * 0, [self.targets[t].table for t in pair]
            for t in pair:
                if self.targets[t].code is not None:
                    group = group * len(self.targets[t].table) + self.kinds.digits[t]
            groups, at, group = np.unique(group, return_index=True, return_inverse=True)
            cells = self.cells.grouped(group, len(groups))
            prob = [
                table[self.kinds.digits[t, at]] if self.targets[t].has_cells else table.mean(axis=0, keepdims=True)
                for t, table in zip(pair, tables, strict=True)
            ]
            difference = prob[0] - (prob[1] if b is not None else 0.0)
            self.pairs[p, b] = cells, np.broadcast_to(difference, cells.n.shape) * cells.size[:, None]
        return self.pairs[p, b]

    def _identical(self, p: int, b: int) -> bool:
        first, second = self.targets[p], self.targets[b]
        if first.has_cells and second.has_cells:
            return not self._cells(p, b)[1].any()
        return np.array_equal(first.probabilities(self.at), second.probabilities(self.at))


def _distances(
    cells: Cells,
    coefficient: np.ndarray,
    variance: np.ndarray,
    design_effect: np.ndarray,
    inflation: np.ndarray,
    alpha: float,
    by_cells: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Distances from each outcome's estimate down and up to its limits; MOVER-Wilson where `by_cells`, else Wald."""
    down = normal_quantile(alpha) * np.sqrt(variance)
    up = down.copy()
    used = coefficient != 0
    for k in np.flatnonzero(by_cells & used.any()).tolist():
        share, n_eff = cells.share(k)[used], cells.n_eff()[used] / design_effect[k]
        # an empty cell knows nothing: its share is anywhere between 0 and 1
        both = mover(coefficient[used], share, np.maximum(n_eff, 1e-9), alpha)
        cell_variance = (coefficient[used] ** 2 * cells.share_variance(k)[used]).sum() * inflation[k]
        down[k], up[k] = carry_over(np.array(both), cell_variance, variance[k], alpha)
    return down, up


def _events(cells: Cells, coefficient: np.ndarray, binary: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Events an estimate rests on, and whether they (for 0/1 outcomes non-events too) are enough; by outcome.

    For a difference, of the side (policy or baseline) that has fewer; the last entry is the weighted reward's.
    """
    sides = _sides(coefficient)
    if not sides:
        return np.zeros(len(binary) + 1, dtype=int), np.zeros(len(binary) + 1, dtype=bool)
    events = np.array([cells.events[:, side].sum(axis=1) for side in sides])
    others = np.array([cells.n[side].sum() for side in sides])[:, None] - events
    enough = (events.min(axis=0) >= MIN_EVENTS) & (~binary | (others.min(axis=0) >= MIN_EVENTS))
    return np.append(events.min(axis=0), events.min()).astype(int), np.append(enough, enough.all())


def _n_eff(cells: Cells, coefficient: np.ndarray) -> float:
    """Kish's effective number of rows behind the weaker side of an estimate."""
    n_eff = np.maximum(cells.n_eff(), 1e-9)
    sides = [np.abs(coefficient) * side for side in _sides(coefficient)]
    return min((float(side.sum() ** 2 / (side**2 / n_eff).sum()) for side in sides), default=0.0)


def _sides(coefficient: np.ndarray) -> list[np.ndarray]:
    """Cells that enter with plus, and those that enter with minus."""
    return [side for side in (coefficient > 0, coefficient < 0) if side.any()]
