"""Does a score rank users by uplift, and is it calibrated? Curves and coefficients with errors.

All work on `effect`, the doubly robust effect score of each row (`models.estimators.effect_scores`), so they are
unbiased under any logged propensity and do not depend on base rates; units are those of the outcome, per decision.
The score must come from a model that saw none of the rows. Ties in the score are averaged: row order never matters.

    gain(q)   mean of effect over all rows if the top share q by score is messaged (0 for the others)
    TOC(q)    mean effect of the top share q, less that of everybody
    AUTOC     integral of TOC(q); QINI  integral of q TOC(q)    (both 0 for a score that knows nothing)

Source: Yadlowsky et al. (2025), JASA 120, "Evaluating treatment prioritization rules via rank-weighted average
treatment effects".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy.special import ndtr

from campaign import DataError
from models.estimators import cluster_blocks
from models.inputs import MOST, check_alpha, check_number, read_array, read_levels
from models.intervals import normal_quantile

SHARES = tuple(np.round(np.arange(0.05, 1.0001, 0.05), 2))
BLOCK_ROWS = 1 << 14
BAND_DRAWS = 10_000


@dataclass(frozen=True)
class Estimate:
    """A number, its standard error, its interval, and the two-sided p value of 0."""

    value: float
    se: float
    ci_lower: float
    ci_upper: float
    p_value: float


def gain_curve(
    score: np.ndarray,
    effect: np.ndarray,
    *,
    cluster: np.ndarray | None = None,
    shares: Sequence[float] = SHARES,
    alpha: float = 0.05,
    seed: int = 0,
) -> pd.DataFrame:
    """Gain over sending nothing, per share of users messaged by score.

    Args:
        score: shape (n,), from a model that saw none of these rows.
        effect: shape (n,), effect score of each row.
        cluster: shape (n,), user of each row; None: rows are independent.
        shares: of users messaged, in (0, 1].
        alpha: 1 - confidence level, of each point and of the band as a whole.
        seed: of the draws that find the band's width.

    Returns: per share: share, gain, se, ci_lower, ci_upper (this point), band_lower, band_upper (all points at once,
        sup-t), random (gain of messaging a random share of that size).
    Source: Montiel Olea, Plagborg-Moller (2019), Journal of Applied Econometrics 34, 1-17 (sup-t band).
    """
    score, effect, cluster = _checked(score, effect, cluster, alpha)
    n, q = len(score), read_array(shares, "shares", "shares of users in (0, 1]")
    if q.ndim != 1 or not len(q) or not np.all((q > 0) & (q <= 1)):
        raise DataError(f"shares == {q.tolist()}; expected shares of users in (0, 1]")
    check_number("seed", seed, isinstance(seed, int) and seed >= 0, "an integer >= 0")
    above, tied = _ranks(score)
    # column 0 counts rows: centring cluster sums needs the size of each cluster
    total, product, n_clusters = np.zeros(1 + len(q)), np.zeros((1 + len(q), 1 + len(q))), 0
    order = np.arange(n) if cluster is None else np.argsort(cluster, kind="stable")
    for rows, starts in cluster_blocks(n, cluster, order, BLOCK_ROWS):
        member = np.clip((q * n - above[rows, None]) / tied[rows, None], 0, 1)
        scores = np.column_stack([np.ones(len(member)), member * effect[rows, None]])
        total += scores.sum(axis=0)
        scores = scores if starts is None else np.add.reduceat(scores, starts, axis=0)
        n_clusters += len(scores)
        product += scores.T @ scores
    gain = total[1:] / n
    centre = np.vstack([-gain, np.eye(len(q))])
    covariance = centre.T @ product @ centre * n_clusters / max(n_clusters - 1, 1) / n**2
    se = np.sqrt(np.maximum(np.diag(covariance), 0))
    z, width = normal_quantile(alpha), _sup_t(covariance, alpha, seed)
    return pd.DataFrame(
        {
            "share": q,
            "gain": gain,
            "se": se,
            "ci_lower": gain - z * se,
            "ci_upper": gain + z * se,
            "band_lower": gain - width * se,
            "band_upper": gain + width * se,
            "random": q * effect.mean(),
        }
    )


def rate(
    score: np.ndarray,
    effect: np.ndarray,
    target: Literal["autoc", "qini"] = "autoc",
    *,
    cluster: np.ndarray | None = None,
    alpha: float = 0.05,
) -> Estimate:
    """Rank-weighted average effect of a score: AUTOC stresses the top of the ranking, QINI all of it.

    Args:
        score: shape (n,), from a model that saw none of these rows.
        effect: shape (n,), effect score of each row.
        target: "autoc" or "qini".
        cluster: shape (n,), user of each row; None: rows are independent.
        alpha: 1 - confidence level.
    """
    score, effect, cluster = _checked(score, effect, cluster, alpha)
    value, influence = _rate_influence(score, effect, target)
    return _estimate(value, influence, cluster, alpha)


def compare_rate(
    score: np.ndarray,
    other: np.ndarray,
    effect: np.ndarray,
    target: Literal["autoc", "qini"] = "autoc",
    *,
    cluster: np.ndarray | None = None,
    alpha: float = 0.05,
) -> Estimate:
    """Paired difference of two scores' `rate` on the same rows: score - other."""
    score, effect, codes = _checked(score, effect, cluster, alpha)
    other, *_ = _checked(other, effect, cluster, alpha)
    first, second = _rate_influence(score, effect, target), _rate_influence(other, effect, target)
    return _estimate(first[0] - second[0], first[1] - second[1], codes, alpha)


def calibration(
    predicted: np.ndarray,
    effect: np.ndarray,
    *,
    cluster: np.ndarray | None = None,
    bins: int = 10,
    alpha: float = 0.05,
) -> pd.DataFrame:
    """Predicted against realised uplift by quantile of the prediction; equal predictions share a bin.

    Returns: per bin, from the lowest: bin (1..bins), n_obs, predicted (mean), realised (mean effect), se, ci_lower,
        ci_upper.
    """
    predicted, effect, cluster = _checked(predicted, effect, cluster, alpha)
    check_number("bins", bins, isinstance(bins, int) and bins >= 1, "an integer >= 1")
    code = pd.qcut(predicted, bins, labels=False, duplicates="drop") if np.ptp(predicted) > 0 else np.zeros(len(effect))
    rows = []
    for b in np.unique(code).astype(int):
        inside = code == b
        estimate = mean_effect(effect, inside, cluster, alpha)
        rows.append(
            [
                b + 1,
                int(inside.sum()),
                predicted[inside].mean(),
                estimate.value,
                estimate.se,
                estimate.ci_lower,
                estimate.ci_upper,
            ]
        )
    return pd.DataFrame(rows, columns=["bin", "n_obs", "predicted", "realised", "se", "ci_lower", "ci_upper"])


def mean_effect(effect: np.ndarray, inside: np.ndarray, cluster: np.ndarray | None, alpha: float = 0.05) -> Estimate:
    """Mean effect of some of the rows.

    Args:
        effect: shape (n,), effect score of each row.
        inside: shape (n,), bool: the rows in question, chosen without their outcomes.
        cluster: shape (n,), integer code of each row's user; None: rows are independent.
        alpha: 1 - confidence level.
    """
    mean = effect[inside].mean()
    # zero outside: the variance of a mean over a part of each cluster
    return _estimate(mean, np.where(inside, effect - mean, 0) / inside.mean(), cluster, alpha)


def heterogeneity(
    predicted: np.ndarray, effect: np.ndarray, *, cluster: np.ndarray | None = None, alpha: float = 0.05
) -> dict[str, Estimate]:
    """Best linear predictor of the effect by the prediction: effect = ate + slope (predicted - mean) + error.

    A slope above 0 says that the prediction knows who is helped more; 1 says that differences have the right size.
    It is a test: do not rescale predictions by it.

    Returns: "ate" and "slope".
    Source: Chernozhukov, Demirer, Duflo, Fernandez-Val (2018), NBER 24678, section 3.
    """
    predicted, effect, cluster = _checked(predicted, effect, cluster, alpha)
    centred = predicted - predicted.mean()
    spread = (centred**2).mean()
    ate = effect.mean()
    # predictions that differ by rounding are the same: dividing by that spread would give slopes of 1e15
    if np.ptp(predicted) <= 1e-12 * np.abs(predicted).max():
        nan = Estimate(np.nan, np.nan, np.nan, np.nan, np.nan)
        return {"ate": _estimate(ate, effect - ate, cluster, alpha), "slope": nan}
    slope = (centred * effect).mean() / spread
    error = effect - ate - slope * centred
    return {
        "ate": _estimate(ate, effect - ate, cluster, alpha),
        "slope": _estimate(slope, centred * error / spread, cluster, alpha),
    }


def _checked(
    score: np.ndarray, effect: np.ndarray, cluster: np.ndarray | None, alpha: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Score and effect as floats, and integer codes of the clusters."""
    check_alpha(alpha)
    score, effect = read_array(score, "score", "numbers, one per row"), read_array(effect, "effect", "numbers")
    if score.ndim != 1 or score.shape != effect.shape or len(score) < 2:
        raise DataError(f"score has shape {score.shape}, effect {effect.shape}; expected both (n,), n >= 2")
    for name, values in (("score", score), ("effect", effect)):
        bad = ~(np.abs(values) < MOST)
        if bad.any():
            raise DataError(
                f"{name} is NaN or infinite in {int(bad.sum())} rows (first: row {int(bad.argmax())}); give every row "
                "one"
            )
    if cluster is None:
        return score, effect, None
    column = pd.Series(cluster)
    if len(column) != len(score) or column.isna().any():
        raise DataError(
            f"cluster has {len(column)} rows, {int(column.isna().sum())} of them missing, the score {len(score)}; "
            "expected the user of every row"
        )
    codes = read_levels(column, "cluster", sort=False)[0]
    if codes.max() == 0:
        raise DataError("cluster has one value in all rows; expected the user of every row, at least 2 users")
    return score, effect, codes


def _ranks(score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per row: how many rows have a higher score, and how many the same (itself included); float."""
    order = np.argsort(-score, kind="stable")
    ordered = score[order]
    first = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    size = np.diff(np.r_[first, len(score)])
    above, tied = np.empty(len(score)), np.empty(len(score))
    above[order], tied[order] = np.repeat(first, size), np.repeat(size, size)
    return above, tied


def _rate_influence(score: np.ndarray, effect: np.ndarray, target: str) -> tuple[float, np.ndarray]:
    """Value, and each row's influence on it: through its own effect, and through the ranks of the rows below it."""
    if target not in ("autoc", "qini"):
        raise DataError(f"target == {target!r}, must be 'autoc' or 'qini'")
    n = len(score)
    above, tied = _ranks(score)
    share = (above + tied / 2) / n  # mid-rank: share of rows above, ties count half
    if target == "autoc":
        # position j of n counts in TOC(i / n) for all i >= j: sum of 1 / i; its mean over a tie group
        tail = np.cumsum((1 / np.arange(1, n + 1))[::-1])[::-1]
        cumulated = np.r_[0, np.cumsum(tail)]
        first, last = above.astype(int), (above + tied).astype(int)
        weight, slope = (cumulated[last] - cumulated[first]) / tied - 1, -1 / share
    else:
        weight, slope = 0.5 - share, np.full(n, -1.0)
    value = float((weight * effect).mean())
    # a row with score s lifts the rank share of all rows below s by 1 / n
    order = np.argsort(score, kind="stable")
    below = np.r_[0, np.cumsum((slope * effect)[order])] / n
    lower = np.round(n - above - tied).astype(int)
    shift = (below[lower] + below[lower + np.round(tied).astype(int)]) / 2
    influence = weight * effect - value + shift - shift.mean()
    return value, influence


def _estimate(value: float, influence: np.ndarray, cluster: np.ndarray | None, alpha: float) -> Estimate:
    sums = influence if cluster is None else np.bincount(cluster, influence)
    se = float(np.sqrt((sums**2).sum() * len(sums) / max(len(sums) - 1, 1)) / len(influence))
    if se == 0:  # nothing varies, so nothing is known of the error
        return Estimate(float(value), se, np.nan, np.nan, 1.0)
    z = normal_quantile(alpha)
    return Estimate(float(value), se, float(value - z * se), float(value + z * se), float(2 * ndtr(-abs(value) / se)))


def _sup_t(covariance: np.ndarray, alpha: float, seed: int) -> float:
    """Width, in standard errors, of a band that holds for all points of a normal vector at once."""
    se = np.sqrt(np.maximum(np.diag(covariance), 0))
    known = se > 0
    if not known.any():
        return normal_quantile(alpha)
    correlation = covariance[np.ix_(known, known)] / np.outer(se[known], se[known])
    values, vectors = np.linalg.eigh(correlation)
    root = vectors * np.sqrt(np.maximum(values, 0))
    draws = np.random.default_rng(seed).standard_normal((BAND_DRAWS, int(known.sum()))) @ root.T
    return float(max(np.quantile(np.abs(draws).max(axis=1), 1 - alpha), normal_quantile(alpha)))
