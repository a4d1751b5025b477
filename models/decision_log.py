"""The decision log on its way into evaluation: what must hold is checked, and named where it does not.

`read_sample` refuses what no estimator can use (NaN outcomes, propensities of 0 or 1, duplicates). `check_log` tests
what must hold by design if assignment, propensities and features are what the log says they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from campaign import DataError
from models.estimators import Sample
from models.splits import check_disjoint

FALSE_ALARM = 0.001  # p value below which a check of the randomisation fails
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
    _check_columns(log, [arm, propensity, *(o.name for o in outcomes), *([cluster] if cluster else [])])
    if not outcomes or len({o.name for o in outcomes}) < len(outcomes):
        raise DataError(f"outcomes {[o.name for o in outcomes]}: expected at least one, each name once")
    _check_duplicates(log, cluster)
    arms = _read_arms(log[arm], arm)
    n_arms = max(n_arms, int(arms.max()) + 1, 0 if mu_hat is None else mu_hat.shape[1])
    y = np.empty((len(outcomes), len(log)))
    for k, outcome in enumerate(outcomes):
        y[k] = _read_outcome(log[outcome.name], outcome)
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
        mu_hat=None if mu_hat is None else _read_predictions(mu_hat, (len(log), n_arms, len(outcomes))),
        cluster=codes,
        costs=_read_costs(costs, n_arms),
    )


def read_propensity(column: pd.Series, name: str) -> np.ndarray:
    """The logged propensities, in (0, 1); shape (n,) (DataError: one is not, with its rows)."""
    p = column.to_numpy(dtype=float)
    if not (p.min() > 0 and p.max() < 1):  # NaN fails it too
        rows = np.flatnonzero(~((p > 0) & (p < 1)))
        raise DataError(
            f"{name} has {p[rows[0]]:g} in {len(rows)} rows (first rows {rows[:3].tolist()}); need 0 < {name} < 1. "
            "A certain arm cannot be compared with another: leave such rows out, and log the probability over all "
            "random layers, not within one"
        )
    return p


def _check_columns(log: pd.DataFrame, names: Sequence[str]) -> None:
    if log.empty:
        raise DataError("the log has no rows; expected one row per matured decision")
    missing = [name for name in names if name not in log]
    if missing:
        raise DataError(f"the log has no column {missing[0]!r}; it has {list(log.columns)}")


def _check_duplicates(log: pd.DataFrame, cluster: str | None) -> None:
    key = ["decision_id"] if "decision_id" in log else [cluster, "decided_at"]
    if any(name not in log for name in key):
        return
    twice = log[key[0]].duplicated() if len(key) == 1 else log.duplicated(key)
    if twice.any():
        row = int(np.argmax(twice.to_numpy()))
        raise DataError(
            f"{int(twice.sum())} duplicated decisions (first: row {row}, {key[0]} {log[key[0]].iloc[row]!r}); "
            "expected one row per decision; drop the copies"
        )


def _read_arms(column: pd.Series, name: str) -> np.ndarray:
    values = column.to_numpy()
    if values.dtype.kind not in "iub":
        raise DataError(f"{name} has dtype {column.dtype}; expected integers, 0 = control (map the names to 0, 1, ...)")
    arms = values.astype(np.intp)
    if arms.min() < 0:
        row = int(np.argmax(arms < 0))
        raise DataError(f"{name} has {arms[row]} in row {row}; expected 0 (control), 1, 2, ...")
    return arms


def _read_outcome(column: pd.Series, outcome: Outcome) -> np.ndarray:
    y = column.to_numpy(dtype=float)
    bad = ~np.isfinite(y)
    if bad.any():
        raise DataError(
            f"outcome {outcome.name!r} is NaN or infinite in {int(bad.sum())} rows (first: row {int(bad.argmax())}); "
            "evaluate matured decisions only"
        )
    if outcome.kind not in ("binary", "continuous"):
        raise DataError(f"outcome {outcome.name!r}: kind == {outcome.kind!r}, must be 'binary' or 'continuous'")
    if outcome.kind == "binary" and not np.all((y == 0) | (y == 1)):
        row = int(np.argmax((y != 0) & (y != 1)))
        raise DataError(f"outcome {outcome.name!r} is binary but has {y[row]:g} in row {row}; expected 0 or 1")
    return y


def _read_clusters(log: pd.DataFrame, cluster: str | None) -> np.ndarray | None:
    if cluster is None or log[cluster].is_unique:
        return None
    if log[cluster].isna().any():
        raise DataError(f"{cluster} is missing in {int(log[cluster].isna().sum())} rows; every row needs its unit")
    return pd.factorize(log[cluster])[0]


def _read_predictions(mu_hat: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    values = np.asarray(mu_hat, dtype=float)
    if values.shape != shape:
        raise DataError(f"mu_hat has shape {values.shape}; expected {shape}: log rows x arms x outcomes")
    if not np.isfinite(values.sum()):
        row = int(np.argmax(~np.isfinite(values).all(axis=(1, 2))))
        raise DataError(f"mu_hat is NaN or infinite (first: row {row}); give every row, arm and outcome a prediction")
    return values


def _read_costs(costs: Sequence[float] | None, n_arms: int) -> np.ndarray:
    values = np.zeros(n_arms) if costs is None else np.asarray(costs, dtype=float)
    if values.shape != (n_arms,) or not np.isfinite(values).all():
        raise DataError(f"costs == {values.tolist()}; expected {n_arms} finite numbers, one per arm, control's first")
    return values
