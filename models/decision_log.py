"""The decision log on its way into evaluation: what no estimator can use is refused, and named.

NaN outcomes, propensities of 0 or 1, duplicated decisions, users in two splits. What must hold by design, if arms were
drawn as the log says, is tested in `models.log_checks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from campaign import DataError
from models.estimators import Sample
from models.inputs import (
    MOST,
    all_different,
    check_columns,
    check_names,
    check_number,
    is_number,
    read_arms,
    read_array,
    read_levels,
    read_outcome,
    read_propensity,
)
from models.splits import check_disjoint

WEIGHTED = "weighted"


@dataclass(frozen=True)
class Outcome:
    """An outcome column of the log, what it is worth, and whether it is 0/1.

    `weight` is the worth of one unit (money per subscription, per hour, ...) in the weighted reward.
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
    check_log_columns(log, [arm, propensity, *(o.name for o in outcomes)], cluster)
    _check_duplicates(log, cluster)
    arms = read_arms(log[arm], arm)
    mu_hat, own_costs = read_predictions(mu_hat), read_costs(costs)
    n_arms = max(n_arms, count_arms(arms, own_costs, mu_hat))
    y = np.empty((len(outcomes), len(log)))
    for k, outcome in enumerate(outcomes):
        y[k] = read_outcome(log[outcome.name], outcome.name, outcome.kind)
    shift = y.mean(axis=1)
    y -= shift[:, None]
    codes = read_clusters(log, cluster)
    if "split" in log and cluster is not None:
        check_disjoint(log[cluster].to_numpy(), log["split"].to_numpy())
    return Sample(
        arm=arms,
        propensity=read_propensity(log[propensity], propensity),
        outcome=y,
        shift=shift,
        mu_hat=None if mu_hat is None else _check_predictions(mu_hat, (len(log), n_arms, len(outcomes))),
        cluster=codes,
        costs=_check_costs(own_costs, n_arms),
    )


def count_arms(arms: np.ndarray, costs: np.ndarray | None, mu_hat: np.ndarray | None) -> int:
    """How many arms there are, also where the log did not take all of them."""
    widths = [0 if costs is None else costs.size, mu_hat.shape[1] if mu_hat is not None and mu_hat.ndim == 3 else 0]
    return max(2, int(arms.max()) + 1, *widths)


def check_log_columns(log: pd.DataFrame, needed: Sequence[str], cluster: str | None) -> None:
    """The columns that are named, and those that are looked at where they exist."""
    check_columns(log, [*needed, *([] if cluster is None else [cluster])])
    check_columns(log, [name for name in ("decision_id", "decided_at", "feature_timestamp", "split") if name in log])


def check_outcomes(outcomes: Sequence[Outcome]) -> None:
    """Raise DataError when an outcome is no Outcome, or its kind, weight or name cannot be used."""
    if not isinstance(outcomes, list | tuple) or not all(isinstance(o, Outcome) for o in outcomes):
        raise DataError(f"outcomes == {outcomes!r}, must be a list of models.Outcome(name, kind, weight)")
    names = [o.name for o in outcomes]
    check_names(**{"outcomes: name": names})
    if not names or len(set(names)) < len(names):
        raise DataError(f"outcomes {names}: expected at least one, each name once")
    for o in outcomes:
        if o.name == WEIGHTED:
            raise DataError(f"outcome name {WEIGHTED!r} is taken by the weighted sum; rename the column")
        if o.kind not in ("binary", "continuous"):
            raise DataError(f"outcome {o.name!r}: kind == {o.kind!r}, must be 'binary' or 'continuous'")
        fits = is_number(o.weight) and abs(o.weight) < MOST
        check_number(f"outcome {o.name!r}: weight", o.weight, fits, "a finite number")


def _check_duplicates(log: pd.DataFrame, cluster: str | None) -> None:
    key = ["decision_id"] if "decision_id" in log else [cluster, "decided_at"]
    if any(name not in log for name in key):
        return
    if len(key) == 1 and all_different(log[key[0]]):
        return
    codes = pd.DataFrame({name: read_levels(log[name], str(name), sort=False)[0] for name in key})
    twice = codes.duplicated()
    if twice.any():
        row = int(np.argmax(twice.to_numpy()))
        raise DataError(
            f"{int(twice.sum())} duplicated decisions (first: row {row}, {key[0]} {log[key[0]].iloc[row]!r}); "
            "expected one row per decision; drop the copies"
        )


def read_clusters(log: pd.DataFrame, cluster: str | None) -> np.ndarray | None:
    """Integer code of each row's cluster; None where every row is one of its own."""
    if cluster is None:
        return None
    if log[cluster].isna().any():
        raise DataError(f"{cluster} is missing in {int(log[cluster].isna().sum())} rows; every row needs its unit")
    if all_different(log[cluster]):
        return None
    return pd.factorize(log[cluster])[0]


def read_predictions(mu_hat: object) -> np.ndarray | None:
    """Predictions as an array (DataError: no numbers)."""
    expected = "an array of predictions, log rows x arms x outcomes"
    return None if mu_hat is None else read_array(mu_hat, "mu_hat", expected)


def read_costs(costs: object) -> np.ndarray | None:
    """Costs of the arms as an array (DataError: no numbers)."""
    return None if costs is None else read_array(costs, "costs", "numbers, one per arm, control's first")


def _check_predictions(values: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    if values.shape != shape:
        raise DataError(f"mu_hat has shape {values.shape}; expected {shape}: log rows x arms x outcomes")
    if not (values.max() < MOST and values.min() > -MOST):  # NaN fails it too
        row = int(np.argmin((np.abs(values) < MOST).all(axis=(1, 2))))
        raise DataError(f"mu_hat is NaN or infinite (first: row {row}); give every row, arm and outcome a prediction")
    return values


def _check_costs(costs: np.ndarray | None, n_arms: int) -> np.ndarray:
    values = np.zeros(n_arms) if costs is None else costs
    if values.shape != (n_arms,) or not np.isfinite(values).all():
        raise DataError(f"costs == {values.tolist()}; expected {n_arms} finite numbers, one per arm, control's first")
    return values
