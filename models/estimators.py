"""Off-policy estimators as per-row scores, and the sums from which values, errors and differences follow.

Every estimator is a mean of per-row scores, or a smooth function of such means. So one table of sums and products of
the scores (`Moments`) holds all there is to know: policy values, standard errors, paired differences between
policies, weighted rewards. Moments of two parts of the data add up to those of the whole.

Notation: p(a|x) target policy, e propensity of the logged arm, w = p(arm|x) / e, mu_hat[a] predicted outcome of arm a.

    ips      mean(w y)                                  Horvitz, Thompson (1952), JASA 47, 663-685
    snips    sum(w y) / sum(w)                          Swaminathan, Joachims (2015), NeurIPS 28
    dm       mean(sum_a p(a|x) mu_hat[a])               diagnostic only: its error has no honest interval
    dr       dm + mean(w (y - mu_hat[arm]))             Dudik, Langford, Li (2011), ICML 28, eq. 3
    sndr     dm + sum(w (y - mu_hat[arm])) / sum(w)     Thomas, Brunskill (2016), ICML 33
    replay   propensity-weighted replay = snips
    plain_replay   mean of y where the logged arm is the policy's; valid only where that match is equally likely for
                   every row (Li et al. 2011, WSDM); evaluate() refuses it elsewhere
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from models.policy import Target

ESTIMATORS = ("ips", "snips", "dm", "dr", "sndr", "replay", "plain_replay")
BLOCK_VALUES = 1 << 17  # scores computed at a time: they stay in the processor's cache


def dr_scores(
    outcome: np.ndarray, arm: np.ndarray, target_prob: np.ndarray, propensity: np.ndarray, mu_hat: np.ndarray
) -> np.ndarray:
    """Doubly robust score of each row for a target policy.

    Args:
        outcome: shape (n, n_outcomes), units of each outcome per user.
        arm: shape (n,), logged arm.
        target_prob: shape (n, n_arms) or (1, n_arms), probability that the target policy takes each arm.
        propensity: shape (n,), logged probability of the arm taken, in (0, 1).
        mu_hat: shape (n, n_arms, n_outcomes), predictions of a model that did not see the row.

    Returns: shape (n, n_outcomes); its mean is the policy value, its sd / sqrt(n) the standard error.
    Source: Dudik, Langford, Li (2011), eq. 3.
    """
    rows = np.arange(len(arm))
    weight = np.broadcast_to(target_prob, mu_hat.shape[:2])[rows, arm] / propensity
    expected = (target_prob[:, :, None] * mu_hat).sum(axis=1)
    return np.asarray(expected + weight[:, None] * (outcome - mu_hat[rows, arm]))


def effect_scores(outcome: np.ndarray, arm: np.ndarray, propensity: np.ndarray, mu_hat: np.ndarray) -> np.ndarray:
    """Doubly robust score of each row for the effect of each message arm against control.

    Args:
        outcome: shape (n, n_outcomes).
        arm: shape (n,), logged arm.
        propensity: shape (n,), logged probability of the arm taken.
        mu_hat: shape (n, n_arms, n_outcomes), predictions of a model that did not see the row.

    Returns: shape (n, n_arms - 1, n_outcomes); means over any users are unbiased for their mean uplift.
    Source: Robins, Rotnitzky (1995), JASA 90, 122-129 (augmented inverse probability weighting).
    """
    rows = np.arange(len(arm))
    residual = (outcome - mu_hat[rows, arm]) / propensity[:, None]
    scores = mu_hat[:, 1:] - mu_hat[:, :1]
    treated = arm > 0
    scores[rows[treated], arm[treated] - 1] += residual[treated]
    scores[~treated] -= residual[~treated, None]
    return np.asarray(scores)


@dataclass(frozen=True)
class Sample:
    """Checked arrays of one log, as evaluation needs them.

    Shapes: arm (n,), integer; propensity (n,) of that arm; outcome (n_outcomes, n), each shifted down by `shift` (its
    mean, so that sums of squares lose no digits); mu_hat (n, n_arms, n_outcomes), not shifted, or None; cluster (n,)
    integer codes, or None when every row is a cluster of its own; costs (n_arms,) per row of that arm.
    """

    arm: np.ndarray
    propensity: np.ndarray
    outcome: np.ndarray
    shift: np.ndarray
    mu_hat: np.ndarray | None
    cluster: np.ndarray | None
    costs: np.ndarray

    def __len__(self) -> int:
        return len(self.arm)


@dataclass(frozen=True)
class Columns:
    """Where each score stands in `Moments`. Column 0 is 1; then per policy w, its cost, and `kinds` by outcome."""

    kinds: tuple[str, ...]
    n_outcomes: int

    @classmethod
    def needed(cls, estimators: Sequence[str], n_outcomes: int) -> Columns:
        """The scores the estimators are made of."""
        kinds = []
        if {"ips", "snips", "replay", "plain_replay"} & set(estimators):
            kinds.append("wy")
        if "dr" in estimators:
            kinds.append("dr")
        if {"dm", "sndr"} & set(estimators):
            kinds += ["dm", "correction"]
        return cls(tuple(kinds), n_outcomes)

    @property
    def width(self) -> int:
        """Columns of one policy."""
        return 2 + len(self.kinds) * self.n_outcomes

    def weight(self, policy: int) -> int:
        """Column of w."""
        return 1 + policy * self.width

    def cost(self, policy: int) -> int:
        """Column of the policy's expected cost."""
        return 2 + policy * self.width

    def of(self, policy: int, kind: str) -> slice:
        """Columns of a score, one per outcome."""
        start = 3 + policy * self.width + self.kinds.index(kind) * self.n_outcomes
        return slice(start, start + self.n_outcomes)


@dataclass(frozen=True)
class Moments:
    """Sums over rows of every score, and sums of products: over clusters (of cluster sums) and over rows.

    Shapes: total (m,), product (m, m), row_product (m, m). Moments of two sets of clusters add up.
    """

    n_obs: int
    n_clusters: int
    total: np.ndarray
    product: np.ndarray
    row_product: np.ndarray

    def __add__(self, other: Moments) -> Moments:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Moments(*(mine + theirs for mine, theirs in pairs))

    def variance(self, influence: np.ndarray) -> np.ndarray:
        """Cluster-robust variance of estimators, with the factor G / (G - 1) for G clusters.

        Args:
            influence: shape (..., m); a row's influence is the sum over columns of coefficient times score.

        Returns: shape (...).
        """
        return _quadratic(influence, self.product) * self.correction / self.n_obs**2

    @property
    def correction(self) -> float:
        """G / (G - 1)."""
        return self.n_clusters / max(self.n_clusters - 1, 1)

    def design_effect(self, influence: np.ndarray) -> np.ndarray:
        """How many times the variance of independent rows the clusters have; at least 1; shape (...)."""
        rows = _quadratic(influence, self.row_product)
        return np.maximum(_quadratic(influence, self.product) / np.where(rows > 0, rows, np.inf), 1.0)


def _quadratic(influence: np.ndarray, product: np.ndarray) -> np.ndarray:
    square = ((influence @ product) * influence).sum(axis=-1)
    # terms that cancel to less than this leave rounding only: no event at all must give 0, not 1e-10
    rounding = 1e-12 * ((np.abs(influence) @ np.abs(product)) * np.abs(influence)).sum(axis=-1)
    return np.where(square < rounding, 0.0, square)


def moments(sample: Sample, targets: Sequence[Target], columns: Columns, rows: np.ndarray | None = None) -> Moments:
    """One pass over the rows of a log, in blocks that fit the processor's cache.

    Args:
        sample: the log; with clusters, `rows` must be sorted by them.
        targets: policies, resolved on the same log.
        columns: which scores.
        rows: indices of the rows to use; None for all (only without clusters).
    """
    m = 1 + len(targets) * columns.width
    n = len(sample) if rows is None else len(rows)
    total, product, row_product, n_clusters = np.zeros(m), np.zeros((m, m)), np.zeros((m, m)), 0
    for block, starts in cluster_blocks(n, sample.cluster, rows, max(BLOCK_VALUES // m, 1024)):
        scores = _scores(sample, targets, columns, block)
        row_product += scores @ scores.T
        if starts is not None:
            scores = np.add.reduceat(scores, starts, axis=1)
            total += scores.sum(axis=1)
            product += scores @ scores.T
            n_clusters += scores.shape[1]
    if sample.cluster is None:
        return Moments(n, n, row_product[0], row_product, row_product)
    return Moments(n, n_clusters, total, product, row_product)


def cluster_blocks(
    n: int, cluster: np.ndarray | None, rows: np.ndarray | None, size: int
) -> Iterator[tuple[slice | np.ndarray, np.ndarray | None]]:
    """Rows in pieces of about `size` that cut no cluster in two, each with the positions where its clusters start.

    `rows` are indices sorted by cluster, None for all n rows as they stand; starts are None without clusters.
    """
    if cluster is None:
        for start in range(0, n, size):
            yield (slice(start, min(start + size, n)) if rows is None else rows[start : start + size]), None
        return
    rows = np.arange(n) if rows is None else rows
    code = cluster[rows]
    starts = np.flatnonzero(np.r_[True, code[1:] != code[:-1]])
    first = np.unique(np.searchsorted(starts, np.arange(0, n, size)))
    for begin, end in zip(first, np.r_[first[1:], len(starts)], strict=True):
        if begin < end:
            stop = starts[end] if end < len(starts) else n
            yield rows[starts[begin] : stop], starts[begin:end] - starts[begin]


def _scores(sample: Sample, targets: Sequence[Target], columns: Columns, block: slice | np.ndarray) -> np.ndarray:
    """Every score of a block of rows; shape (m, rows)."""
    arm, inverse, y = sample.arm[block], 1 / sample.propensity[block], sample.outcome[:, block]
    out = np.empty((1 + len(targets) * columns.width, len(arm)))
    out[0] = 1.0
    weighted = y * inverse
    if sample.mu_hat is not None:
        # shape (n_arms, n_outcomes, rows): rows last, as everything here
        mu = np.ascontiguousarray(sample.mu_hat[block].transpose(1, 2, 0)) - sample.shift[:, None]
        residual = weighted - mu[arm, :, np.arange(len(arm))].T * inverse
    for j, target in enumerate(targets):
        match, prob = target.of_arm(arm, block), target.columns(block)
        np.multiply(match, inverse, out=out[columns.weight(j)])
        out[columns.cost(j)] = 0.0
        for a in np.flatnonzero(sample.costs):
            out[columns.cost(j)] += prob[a] * sample.costs[a]
        if "wy" in columns.kinds:
            np.multiply(match, weighted, out=out[columns.of(j, "wy")])
        if sample.mu_hat is None:
            continue
        expected = sum(p * mu_a for p, mu_a in zip(prob, mu, strict=True))
        if "dr" in columns.kinds:
            np.multiply(match, residual, out=out[columns.of(j, "dr")])
            out[columns.of(j, "dr")] += expected
        if "dm" in columns.kinds:
            out[columns.of(j, "dm")] = expected
            np.multiply(match, residual, out=out[columns.of(j, "correction")])
    return out


def estimate(
    sums: Moments, columns: Columns, policy: int, estimator: str, shift: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Value of one policy by one estimator, from the sums.

    Args:
        sums: moments of the rows in question.
        columns: their meaning.
        policy: index of the policy in them.
        estimator: one of ESTIMATORS.
        shift: what was taken off each outcome.

    Returns: values, shape (n_outcomes,), and coefficients of their influence functions, shape (n_outcomes, m);
        NaN where no row carries weight.
    """
    mean, k = sums.total / sums.n_obs, columns.n_outcomes
    influence = np.zeros((k, len(mean)))
    weight, each = columns.weight(policy), np.arange(k)
    if mean[weight] <= 0:
        return np.full(k, np.nan), np.full_like(influence, np.nan)
    if estimator == "ips":
        wy = columns.of(policy, "wy")
        value = mean[wy] + shift * mean[weight]
        influence[each, each + wy.start] = 1.0
        influence[:, weight] = shift
        influence[:, 0] = -value
        return value, influence
    if estimator == "dr":
        dr = columns.of(policy, "dr")
        influence[each, each + dr.start] = 1.0
        influence[:, 0] = -mean[dr]
        return shift + mean[dr], influence
    value = shift.copy()
    if estimator in ("dm", "sndr"):
        dm = columns.of(policy, "dm")
        value += mean[dm]
        influence[each, each + dm.start] = 1.0
        influence[:, 0] = -mean[dm]
    if estimator != "dm":
        top = columns.of(policy, "correction" if estimator == "sndr" else "wy")
        ratio = mean[top] / mean[weight]
        value += ratio
        influence[each, each + top.start] = 1 / mean[weight]
        influence[:, weight] = -ratio / mean[weight]
    return value, influence
