"""The decision log on its way into evaluation: what must hold is checked, and named where it does not.

`read_sample` refuses what no estimator can use (NaN outcomes, propensities of 0 or 1, duplicates). `check_log` tests
what must hold by design if assignment, propensities and features are what the log says they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import numpy as np
import pandas as pd
from scipy.special import chdtrc, ndtr

from campaign import DataError
from models.columns import MOST, all_different, check_columns, is_number, read_arms, read_outcome, read_propensity
from models.estimators import Sample
from models.nuisance import design_matrix
from models.splits import check_disjoint

WEIGHTED = "weighted"
FALSE_ALARM = 0.001  # of a joint check (sample ratio, balance), all its segments together
MAX_Z = 3.0  # standard errors a share or mean weight may be off
MIN_PROPENSITY = 0.01  # below it single rows carry more than 100 times their weight


@dataclass(frozen=True)
class Outcome:
    """An outcome column of the log, what it is worth, and whether it is 0/1.

    `weight` is the worth of one unit (EUR per subscription, per hour, ...) in the weighted reward.
    """

    name: str
    kind: Literal["binary", "continuous"]
    weight: float = 1.0


def read_sample(
    log: pd.DataFrame,
    outcomes: Sequence[Outcome],
    *,
    arm: str = "arm",
    propensity: str = "propensity",
    cluster: str | None = "user_id",
    mu_hat: np.ndarray | None = None,
    costs: Sequence[float] | None = None,
    n_arms: int = 2,
) -> Sample:
    """Check a log and take from it what estimators need.

    Args:
        log: one row per decision.
        outcomes: columns of the log; at least one.
        arm: column of the logged arm, integer, 0 = control.
        propensity: column of the logged probability of that arm.
        cluster: column of the unit whose rows depend on each other; None when every row stands alone.
        mu_hat: shape (n, n_arms, n_outcomes), predictions for these rows by a model that never saw them.
        costs: per row of each arm, control's first; default 0.
        n_arms: at least this many arms, also if the log took fewer.

    Raises: DataError: anything that would make a value wrong, with column, rows and what to do.
    """
    check_outcomes(outcomes)
    check_columns(log, [arm, propensity, *(o.name for o in outcomes), *([cluster] if cluster else [])])
    _check_duplicates(log, cluster)
    arms = read_arms(log[arm], arm)
    mu_hat = None if mu_hat is None else np.asarray(mu_hat, dtype=float)
    n_arms = max(n_arms, int(arms.max()) + 1, mu_hat.shape[1] if mu_hat is not None and mu_hat.ndim == 3 else 0)
    y = np.empty((len(outcomes), len(log)))
    for k, outcome in enumerate(outcomes):
        y[k] = read_outcome(log[outcome.name], outcome.name, outcome.kind)
    shift = y.mean(axis=1)
    y -= shift[:, None]
    codes = _read_clusters(log, cluster)
    if "split" in log and cluster:
        check_disjoint(log[cluster].to_numpy(), log["split"].to_numpy())
    return Sample(
        arm=arms,
        propensity=read_propensity(log[propensity], propensity),
        outcome=y,
        shift=shift,
        mu_hat=None if mu_hat is None else _check_predictions(mu_hat, (len(log), n_arms, len(outcomes))),
        cluster=codes,
        costs=_read_costs(costs, n_arms),
    )


def check_outcomes(outcomes: Sequence[Outcome]) -> None:
    """Raise DataError when an outcome is no Outcome, or its kind, weight or name cannot be used."""
    if isinstance(outcomes, Outcome) or not all(isinstance(o, Outcome) for o in outcomes):
        raise DataError(f"outcomes == {outcomes!r}, must be a list of models.Outcome(name, kind, weight)")
    names = [o.name for o in outcomes]
    if not names or len(set(names)) < len(names):
        raise DataError(f"outcomes {names}: expected at least one, each name once")
    for o in outcomes:
        if o.name == WEIGHTED:
            raise DataError(f"outcome name {WEIGHTED!r} is taken by the weighted sum; rename the column")
        if o.kind not in ("binary", "continuous"):
            raise DataError(f"outcome {o.name!r}: kind == {o.kind!r}, must be 'binary' or 'continuous'")
        if not (is_number(o.weight) and abs(o.weight) < MOST):
            raise DataError(f"outcome {o.name!r}: weight == {o.weight!r}, must be a finite number")


def _check_duplicates(log: pd.DataFrame, cluster: str | None) -> None:
    key = ["decision_id"] if "decision_id" in log else [cluster, "decided_at"]
    if any(name not in log for name in key):
        return
    if len(key) == 1 and all_different(log[key[0]]):
        return
    twice = log[key[0]].duplicated() if len(key) == 1 else log.duplicated(key)
    if twice.any():
        row = int(np.argmax(twice.to_numpy()))
        raise DataError(
            f"{int(twice.sum())} duplicated decisions (first: row {row}, {key[0]} {log[key[0]].iloc[row]!r}); "
            "expected one row per decision; drop the copies"
        )


def _read_clusters(log: pd.DataFrame, cluster: str | None) -> np.ndarray | None:
    if cluster is None or all_different(log[cluster]):
        return None
    if log[cluster].isna().any():
        raise DataError(f"{cluster} is missing in {int(log[cluster].isna().sum())} rows; every row needs its unit")
    return pd.factorize(log[cluster])[0]


def _check_predictions(values: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    if values.shape != shape:
        raise DataError(f"mu_hat has shape {values.shape}; expected {shape}: log rows x arms x outcomes")
    if not (values.max() < MOST and values.min() > -MOST):  # NaN fails it too
        row = int(np.argmin((np.abs(values) < MOST).all(axis=(1, 2))))
        raise DataError(f"mu_hat is NaN or infinite (first: row {row}); give every row, arm and outcome a prediction")
    return values


def _read_costs(costs: Sequence[float] | None, n_arms: int) -> np.ndarray:
    values = np.zeros(n_arms) if costs is None else np.asarray(costs, dtype=float)
    if values.shape != (n_arms,) or not np.isfinite(values).all():
        raise DataError(f"costs == {values.tolist()}; expected {n_arms} finite numbers, one per arm, control's first")
    return values


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
    check_columns(log, [arm, propensity, *segments, *([cluster] if cluster else [])])
    arms, p = read_arms(log[arm], arm), log[propensity].to_numpy(dtype=float)
    rows = [_propensity_check(p), *_row_checks(log, as_of, matured_after_days)]
    if rows[0][1] == "fail":
        return pd.DataFrame(rows, columns=CHECK_COLUMNS)
    n_arms, codes = max(int(arms.max()) + 1, 2), _read_clusters(log, cluster)
    prob = _all_probabilities(log, propensities, arms, p, n_arms)
    for a in range(n_arms):
        if prob is not None:
            taken = (arms == a).astype(float)
            rows.append(_mean_check(f"share of arm {a}", taken, prob[:, a], codes))
        rows.append(_mean_check(f"mean weight of arm {a}", (arms == a) / p, np.ones(len(p)), codes))
    if prob is not None:
        surplus = (arms[:, None] == np.arange(1, n_arms)) - prob[:, 1:]
        rows += _ratio_checks(log, surplus, segments, codes)
    if covariates is not None:
        rows += [_balance_check(covariates, arms, p, a, codes) for a in range(1, n_arms)]
    return pd.DataFrame(rows, columns=CHECK_COLUMNS)


def require_valid(checks: pd.DataFrame) -> None:
    """Raise DataError with every failed check of `check_log`, its figures and what it means."""
    failed = checks[checks["status"] == "fail"]
    if len(failed):
        lines = [f"{row['check']}: {row['detail']}" for row in failed.to_dict("records")]
        raise DataError("the decision log fails " + "; ".join(lines))


def sample_ratio(counts: Sequence[int], shares: Sequence[float]) -> tuple[float, float]:
    """Chi-square test that units were split by `shares`; returns statistic and p value.

    >>> [round(x, 4) for x in sample_ratio([9100, 900], [0.9, 0.1])]
    [11.1111, 0.0009]
    """
    observed, p = np.asarray(counts, dtype=float), np.asarray(shares, dtype=float)
    expected = observed.sum() * p / p.sum()
    statistic = float(((observed - expected) ** 2 / expected).sum())
    return statistic, float(chdtrc(len(observed) - 1, statistic))


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
        add("unique decisions", log["decision_id"].duplicated(), "rows repeat a decision_id")
    if {"feature_timestamp", "decided_at"} <= set(log):
        late = log["feature_timestamp"] > log["decided_at"]
        add("features before decisions", late, "decisions used a feature from after the decision")
    if as_of is not None and matured_after_days is not None:
        young = log["decided_at"] + pd.Timedelta(days=matured_after_days) > pd.Timestamp(as_of)
        add("matured", young, f"decisions are younger than {matured_after_days} days: their outcomes are not final")
    return rows


def _all_probabilities(
    log: pd.DataFrame, propensities: str, arms: np.ndarray, p: np.ndarray, n_arms: int
) -> np.ndarray | None:
    if propensities in log:
        return np.array(log[propensities].tolist(), dtype=float)
    if n_arms > 2:
        return None
    message = np.where(arms == 1, p, 1 - p)
    return np.column_stack([1 - message, message])


def _mean_check(check: str, observed: np.ndarray, expected: np.ndarray, codes: np.ndarray | None) -> Check:
    """Mean of observed - expected is 0 within MAX_Z clustered standard errors."""
    total, product = _cluster_sums((observed - expected)[:, None], codes)
    se = float(np.sqrt(product[0, 0]))
    z = float(total[0]) / se if se > 0 else 0.0
    detail = f"{observed.mean():.5g}, expected {expected.mean():.5g} ({z:+.1f} standard errors)"
    status = "fail" if abs(z) > MAX_Z else "ok"
    return [check, status, observed.mean(), expected.mean(), 2 * float(ndtr(-abs(z))), detail]


def _ratio_checks(
    log: pd.DataFrame, surplus: np.ndarray, segments: Sequence[str], codes: np.ndarray | None
) -> list[Check]:
    """Sample ratio overall and in each segment; the false alarm rate is shared out between them."""
    parts = [("", np.ones(len(log), dtype=bool))]
    for column in segments:
        parts += [(f" {column}={v}", (log[column] == v).to_numpy()) for v in sorted(log[column].dropna().unique())]
    rows: list[Check] = []
    for name, inside in parts:
        own = None if codes is None else codes[inside]
        statistic, p_value = _wald(*_cluster_sums(surplus[inside], own))
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
    contrast = ((arms == a) / p - (arms == 0) / p)[:, None] * x
    statistic, p_value = _wald(*_cluster_sums(contrast, codes))
    smd = contrast.mean(axis=0)
    worst = int(np.abs(smd).argmax())
    detail = (
        f"largest standardised difference {smd[worst]:+.3f} ({names[worst]}), {len(names)} columns jointly "
        f"chi2 = {statistic:.1f} (p = {p_value:.2g})"
    )
    status = "fail" if p_value < FALSE_ALARM else "ok"
    return [f"covariate balance of arm {a}", status, statistic, float(len(names)), p_value, detail]


def _cluster_sums(scores: np.ndarray, codes: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
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
