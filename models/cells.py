"""Sums by cell (kind of row x logged arm): all that policies which treat few kinds of rows need to know of a log.

A kind is a set of rows that every policy treats alike. Within a cell each score of each policy is a fixed combination
of the same few columns (1, v = 1 / propensity, v y, v (y - mu_hat[arm]), mu_hat of every arm), so one small table of
their products per cell gives the moments of any number of policies, and the cells that Wilson limits are made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.estimators import BLOCK_VALUES, Columns, Moments, Sample
from models.intervals import Cells
from models.policy import Target

MAX_CELLS = 1 << 8  # with more, cells have too few rows in a block for the products to pay


@dataclass(frozen=True)
class Kinds:
    """Which rows all policies treat alike: `code[i]` is the kind of row i, None when there is one kind.

    `digits[j, kind]` is the row of policy j's table that applies; shape (n_policies, n_kinds). Fully stochastic
    policies tell no kinds apart.
    """

    code: np.ndarray | None
    digits: np.ndarray

    @classmethod
    def of(cls, targets: Sequence[Target]) -> Kinds:
        """The coarsest kinds of rows that tell all these policies apart."""
        code: np.ndarray | None = None
        digits = np.zeros((len(targets), 1), dtype=np.int16)
        for j, target in enumerate(targets):
            if target.code is None:
                continue
            levels = len(target.table)
            digits = np.repeat(digits, levels, axis=1)
            digits[j] = np.arange(digits.shape[1]) % levels
            code = target.code if code is None else code * np.int32(levels) + target.code
            if digits.shape[1] > MAX_CELLS:  # nested thresholds make few of all combinations
                present = np.bincount(code, minlength=digits.shape[1]) > 0
                digits, code = digits[:, present], (np.cumsum(present, dtype=np.int32) - 1)[code]
        return cls(code, digits)

    def __len__(self) -> int:
        return int(self.digits.shape[1])

    def of_rows(self, rows: slice | np.ndarray, arm: np.ndarray, n_arms: int) -> np.ndarray:
        """Cell of each row, kind * n_arms + arm; shape (rows,), in the smallest type that holds it (sorts fastest)."""
        kind = np.dtype(np.uint8 if len(self) * n_arms <= MAX_CELLS else np.int64)
        if self.code is None:
            return arm.astype(kind)
        return np.asarray(self.code[rows].astype(kind) * kind.type(n_arms) + arm.astype(kind))


def cell_sums(
    sample: Sample, targets: Sequence[Target], columns: Columns, kinds: Kinds, rows: np.ndarray | None = None
) -> tuple[Moments, Cells]:
    """Moments and cells in one pass, in blocks that fit the processor's cache.

    Args:
        sample: the log, without clusters.
        targets: policies with few kinds of rows, resolved on the same log.
        columns: which scores.
        kinds: of these policies.
        rows: indices of the rows to use; None for all.
    """
    n, n_arms, n_outcomes = len(sample) if rows is None else len(rows), len(sample.costs), len(sample.outcome)
    n_cells, width = len(kinds) * n_arms, 2 + n_outcomes * (1 if sample.mu_hat is None else 2 + n_arms)
    gram, events = np.zeros((n_cells, width, width)), np.zeros((n_cells, 3, n_outcomes))
    size = max(BLOCK_VALUES // width, 1024)
    for start in range(0, n, size):
        block = slice(start, min(start + size, n))
        own = block if rows is None else rows[block]
        cell = kinds.of_rows(own, sample.arm[own], n_arms)
        order, stops = np.argsort(cell, kind="stable") + start, np.cumsum(np.bincount(cell, minlength=n_cells))
        _add_block(sample, order if rows is None else rows[order], stops, gram, events)
    scale = _combinations(targets, columns, kinds, sample.costs, width)
    product = np.einsum("cik,ckl,cjl->ij", scale, gram, scale, optimize=True)
    shape = (len(kinds), n_arms)
    counts, v_events, v2_events = events.transpose(1, 2, 0).reshape(3, n_outcomes, *shape)
    cells = Cells(
        n=gram[:, 0, 0].astype(int).reshape(shape),
        v=gram[:, 0, 1].reshape(shape),
        v2=gram[:, 1, 1].reshape(shape),
        events=counts.astype(int),
        v_events=v_events,
        v2_events=v2_events,
    )
    return Moments(n, n, product[0], product, product), cells


def _add_block(sample: Sample, rows: np.ndarray, stops: np.ndarray, gram: np.ndarray, events: np.ndarray) -> None:
    """Add rows, sorted by cell and cell c ending at `stops[c]`, to the products and event sums of their cells."""
    n_arms, n_outcomes = len(sample.costs), len(sample.outcome)
    x, square = np.empty((gram.shape[1], len(rows))), np.empty((3, len(rows)))
    y = sample.outcome.take(rows, axis=1)
    event = (y != -sample.shift[:, None]).astype(float)
    square[0] = x[0] = 1.0
    square[1] = np.divide(1.0, sample.propensity.take(rows), out=x[1])
    np.multiply(x[1], x[1], out=square[2])
    np.multiply(y, x[1], out=x[2 : 2 + n_outcomes])
    first = 2 + 2 * n_outcomes
    if sample.mu_hat is not None:
        mu = x[first:].reshape(n_arms, n_outcomes, len(rows))
        np.subtract(_predictions(sample.mu_hat, rows).transpose(1, 2, 0), sample.shift[:, None], out=mu)
    start = 0
    for c, stop in enumerate(stops.tolist()):
        if stop == start:
            continue
        own = slice(start, stop)
        if sample.mu_hat is not None:
            residual = np.subtract(y[:, own], mu[c % n_arms, :, own], out=x[2 + n_outcomes : first, own])
            residual *= x[1, own]
        gram[c] += x[:, own] @ x[:, own].T
        events[c] += square[:, own] @ event[:, own].T
        start = stop


def _predictions(mu_hat: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Predictions of some rows; one row that stands for all where they are the same."""
    if mu_hat.strides[0] == 0:
        return mu_hat[:1]
    # take is ten times as fast, but copies the whole array first where that is not contiguous
    return mu_hat.take(rows, axis=0) if mu_hat.flags.c_contiguous else mu_hat[rows]


def _combinations(
    targets: Sequence[Target], columns: Columns, kinds: Kinds, costs: np.ndarray, width: int
) -> np.ndarray:
    """How each score is made of a cell's columns; shape (n_cells, m, width)."""
    n_arms, k = len(costs), np.arange(columns.n_outcomes)
    scale = np.zeros((len(kinds), n_arms, 1 + len(targets) * columns.width, width))
    scale[:, :, 0, 0] = 1.0
    first = 2 + 2 * columns.n_outcomes
    for j, target in enumerate(targets):
        prob = target.table[kinds.digits[j]]
        scale[:, :, columns.weight(j), 1] = prob
        scale[:, :, columns.cost(j), 0] = (prob @ costs)[:, None]
        for kind in columns.kinds:
            at = columns.of(j, kind).start + k
            if kind != "dm":
                column = 2 + k if kind == "wy" else 2 + columns.n_outcomes + k
                scale[:, :, at, column] = prob[:, :, None]
            if kind in ("dr", "dm"):
                for a in range(n_arms):
                    scale[:, :, at, first + a * columns.n_outcomes + k] = prob[:, None, a, None]
    return scale.reshape(len(kinds) * n_arms, -1, width)
