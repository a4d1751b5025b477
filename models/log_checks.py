"""Tests of what holds by design if assignment, propensities and features are what the decision log says they are."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import numpy as np
import pandas as pd
from scipy.special import chdtrc, ndtr

from campaign import DataError
from models.decision_log import check_log_columns, read_clusters
from models.inputs import (
    check_columns,
    check_names,
    check_number,
    is_number,
    read_arms,
    read_features,
    read_levels,
    read_numbers,
    read_probabilities,
    read_times,
)
from models.nuisance import design_matrix

# Of one check, all its segments together. A growing log is checked again before every retraining: in a year of weekly
# looks, the first at 8 weeks, a sound mean passes 3 standard errors with probability .021, and these 3.9 with .0011
# (200,000 random walks).
FALSE_ALARM = 1e-4
MIN_PROPENSITY = 0.01  # below it single rows carry more than 100 times their weight


def check_log(
    log: pd.DataFrame,
    *,
    arm: str = "arm",
    propensity: str = "propensity",
    propensities: str = "propensities",
    cluster: str | None = "user_id",
    covariates: pd.DataFrame | None = None,
    segments: Sequence[str] = (),
    as_of: datetime | None = None,
    matured_after_days: int | None = None,
) -> pd.DataFrame:
    """Test what holds if arms were drawn with the logged probabilities, before anything could depend on them.

    Args:
        log: one row per decision. Columns decision_id, decided_at and feature_timestamp are checked where they exist.
        arm: column of the logged arm, integer, 0 = control.
        propensity: column of that arm's logged probability.
        propensities: column of lists, the probability of every arm; needed for shares with several message arms.
        cluster: column of the user; tests are clustered by it (a persistent holdout draws once per user).
        covariates: features known at the decision, rows as in `log`; the draw must not depend on them.
        segments: columns in whose every value the shares of the arms are checked.
        as_of: now; with `matured_after_days`, decisions younger than that are reported.
        matured_after_days: days from a decision until its outcomes are final.

    Returns: columns check, status ("ok", "warn", "fail"), observed, expected, p_value, detail; one row per check.
    """
    check_names(segments=segments)
    check_log_columns(log, [arm, propensity, *segments], cluster)
    covariates = read_features(covariates, log)
    arms, p = read_arms(log[arm], arm), read_numbers(log[propensity], propensity)
    rows = [_propensity_check(p), *_row_checks(log, as_of, matured_after_days)]
    if rows[0][1] == "fail":
        return pd.DataFrame(rows, columns=CHECK_COLUMNS)
    codes = read_clusters(log, cluster)
    prob = _all_probabilities(log, propensities, arms, p)
    n_arms = max(int(arms.max()) + 1, 2) if prob is None else prob.shape[1]
    for a in range(n_arms):
        if prob is not None:
            taken = (arms == a).astype(float)
            rows.append(_mean_check(f"share of arm {a}", taken, prob[:, a], codes))
        possible = np.ones(len(p)) if prob is None else (prob[:, a] > 0).astype(float)
        rows.append(_mean_check(f"mean weight of arm {a}", (arms == a) / p, possible, codes))
    if prob is not None:
        surplus = (arms[:, None] == np.arange(1, n_arms)) - prob[:, 1:]
        rows += _ratio_checks(log, surplus, segments, codes)
    if covariates is not None:
        rows += [_balance_check(covariates, arms, p, a, codes) for a in range(1, n_arms)]
    return pd.DataFrame(rows, columns=CHECK_COLUMNS)


def require_valid(checks: pd.DataFrame) -> None:
    """Raise DataError with every failed check of `check_log`, its figures and what it means."""
    if not isinstance(checks, pd.DataFrame) or "status" not in checks:
        raise DataError(f"checks is a {type(checks).__name__}; expected the table of models.log_checks.check_log")
    failed = checks[checks["status"] == "fail"]
    if len(failed):
        lines = [f"{row['check']}: {row['detail']}" for row in failed.to_dict("records")]
        raise DataError("the decision log fails " + "; ".join(lines))


CHECK_COLUMNS = ["check", "status", "observed", "expected", "p_value", "detail"]
Check = list[object]


def _propensity_check(p: np.ndarray) -> Check:
    outside = ~((p > 0) & (p < 1))
    low, high = (float(np.nanmin(p)), float(np.nanmax(p))) if np.isfinite(p).any() else (np.nan, np.nan)
    if outside.any():
        detail = f"{int(outside.sum())} rows have no propensity in (0, 1): their arm was certain or is not logged"
        return ["propensity", "fail", low if low <= 0 else high, 0.5, np.nan, detail]
    status = "ok" if low >= MIN_PROPENSITY else "warn"
    detail = f"between {low:g} and {high:g}: a row carries up to {1 / low:.0f} times its weight"
    return ["propensity", status, low, MIN_PROPENSITY, np.nan, detail]


def _row_checks(log: pd.DataFrame, as_of: datetime | None, matured_after_days: int | None) -> list[Check]:
    """Checks of single rows: how many break a rule."""
    rows: list[Check] = []

    def add(check: str, bad: pd.Series, detail: str) -> None:
        count = int(bad.sum())
        rows.append([check, "fail" if count else "ok", count, 0, np.nan, f"{count} of {len(log)} {detail}"])

    if "decision_id" in log:
        read_levels(log["decision_id"], "decision_id", sort=False)
        add("unique decisions", log["decision_id"].duplicated(), "rows repeat a decision_id")
    if {"feature_timestamp", "decided_at"} <= set(log):
        decided = read_times(log["decided_at"], "decided_at")
        late = (read_times(log["feature_timestamp"], "feature_timestamp") > decided) | decided.isna()
        add("features before decisions", late, "decisions used a feature from after the decision, or have no time")
    if as_of is not None and matured_after_days is not None:
        check_columns(log, ["decided_at"])
        fits = is_number(matured_after_days) and matured_after_days >= 0
        check_number("matured_after_days", matured_after_days, fits, "a number >= 0")
        now, window = read_times(pd.Series([as_of]), "as_of").iloc[0], pd.Timedelta(days=matured_after_days)
        matured = read_times(log["decided_at"], "decided_at") + window <= now  # False where the time is missing
        detail = f"decisions are younger than {matured_after_days} days or have no time: their outcomes are not final"
        add("matured", ~matured, detail)
    return rows


def _all_probabilities(log: pd.DataFrame, propensities: str, arms: np.ndarray, p: np.ndarray) -> np.ndarray | None:
    n_arms = max(int(arms.max()) + 1, 2)
    if propensities in log:
        check_columns(log, [propensities])
        return read_probabilities(log[propensities], propensities, n_arms)
    if n_arms > 2:
        return None
    message = np.where(arms == 1, p, 1 - p)
    return np.column_stack([1 - message, message])


def _mean_check(check: str, observed: np.ndarray, expected: np.ndarray, codes: np.ndarray | None) -> Check:
    """Mean of observed - expected is 0, by its clustered standard error."""
    total, product = cluster_sums((observed - expected)[:, None], codes)
    se = float(np.sqrt(product[0, 0]))
    z = float(total[0]) / se if se > 0 else 0.0
    detail = f"{observed.mean():.5g}, expected {expected.mean():.5g} ({z:+.1f} standard errors)"
    p_value = 2 * float(ndtr(-abs(z)))
    status = "fail" if p_value < FALSE_ALARM else "ok"
    return [check, status, observed.mean(), expected.mean(), p_value, detail]


def _ratio_checks(
    log: pd.DataFrame, surplus: np.ndarray, segments: Sequence[str], codes: np.ndarray | None
) -> list[Check]:
    """Sample ratio overall and in each segment; the false alarm rate is shared out between them."""
    parts = [("", np.ones(len(log), dtype=bool))]
    for column in segments:
        code, levels = read_levels(log[column], f"segment column {column!r}")
        parts += [(f" {column}={level}", code == k) for k, level in enumerate(levels) if (code == k).any()]
    rows: list[Check] = []
    for name, inside in parts:
        own = None if codes is None else codes[inside]
        statistic, p_value = _wald(*cluster_sums(surplus[inside], own))
        status = "fail" if p_value < FALSE_ALARM / len(parts) else "ok"
        off = surplus[inside].mean(axis=0)
        detail = f"share of message arms is off by {', '.join(f'{x:+.4f}' for x in off)} (p = {p_value:.2g})"
        rows.append([f"sample ratio{name}", status, statistic, float(surplus.shape[1]), p_value, detail])
    return rows


def _balance_check(
    covariates: pd.DataFrame, arms: np.ndarray, p: np.ndarray, a: int, codes: np.ndarray | None
) -> Check:
    """No covariate may predict the arm: weighted means of arm `a` and control agree, all columns at once."""
    x, names = design_matrix(covariates)
    x, names = x[:, 1:], names[1:]
    sd = x.std(axis=0)
    x, names = (x - x.mean(axis=0))[:, sd > 0] / sd[sd > 0], [n for n, s in zip(names, sd, strict=True) if s > 0]
    if not names:
        return [f"covariate balance of arm {a}", "ok", 0.0, 0.0, 1.0, "no covariate varies"]
    contrast = ((arms == a) / p - (arms == 0) / p)[:, None] * x
    statistic, p_value = _wald(*cluster_sums(contrast, codes))
    smd = contrast.mean(axis=0)
    worst = int(np.abs(smd).argmax())
    detail = (
        f"largest standardised difference {smd[worst]:+.3f} ({names[worst]}), {len(names)} columns jointly "
        f"chi2 = {statistic:.1f} (p = {p_value:.2g})"
    )
    status = "fail" if p_value < FALSE_ALARM else "ok"
    return [f"covariate balance of arm {a}", status, statistic, float(len(names)), p_value, detail]


def cluster_sums(scores: np.ndarray, codes: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the scores and its covariance, rows of a cluster summed first."""
    total = scores.sum(axis=0)
    if codes is not None:
        present, own = np.unique(codes, return_inverse=True)
        scores = np.column_stack([np.bincount(own, column, len(present)) for column in scores.T])
    return total, scores.T @ scores


def _wald(total: np.ndarray, covariance: np.ndarray) -> tuple[float, float]:
    """Chi-square statistic that all sums are 0, and its p value; collinear columns count once."""
    statistic = float(total @ np.linalg.pinv(covariance, hermitian=True) @ total)
    rank = int(np.linalg.matrix_rank(covariance, hermitian=True))
    return statistic, float(chdtrc(rank, statistic)) if rank else 1.0
