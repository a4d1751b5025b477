"""What the network must beat, always shown beside it: response model, linear T-learner, LightGBM S-learner.

Each is fitted on the same frame and spec as the network and answers with the same array.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
from scipy.special import expit

from models.encode import Tensors, category_codes, dense_inputs, fit_encoding, fit_features
from models.linear import fit_linear, separate
from models.spec import Feature, FitSpec, columns_of, labels_of

S_PARAMS = {
    "num_leaves": 7,
    "learning_rate": 0.1,
    "min_data_in_leaf": 100,
    "verbose": -1,
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
}
S_TREES = 400


class Baseline(Protocol):
    """A fitted baseline."""

    def predict(self, frame: pd.DataFrame) -> np.ndarray:
        """mu_hat of each row; float64 (n, n_arms, n_outcomes), outcome units."""


Fit = Callable[[pd.DataFrame, FitSpec], Baseline]


@dataclass(frozen=True)
class LinearModel:
    """One logistic or ridge regression per arm and outcome, or a constant; on the network's dense inputs."""

    features: tuple[Feature, ...]
    declared: Mapping[str, str]
    state: Tensors
    weights: tuple[tuple[np.ndarray, ...], ...]  # [arm][outcome]
    binary: tuple[bool, ...]

    def predict(self, frame: pd.DataFrame) -> np.ndarray:
        """mu_hat of each row; float64 (n, n_arms, n_outcomes), outcome units."""
        inputs = dense_inputs(columns_of(frame, self.declared), self.features, self.state).astype(np.float64)
        by_arm = [[_answer(w, inputs, b) for w, b in zip(arm, self.binary, strict=True)] for arm in self.weights]
        return np.stack([np.column_stack(arm) for arm in by_arm], axis=1)


def fit_linear_t(frame: pd.DataFrame, spec: FitSpec) -> LinearModel:
    """T-learner: every arm its own linear model (raises as `models.train.fit`)."""
    return _fit_linear(frame, spec, constant_control=False)


def fit_response(frame: pd.DataFrame, spec: FitSpec) -> LinearModel:
    """Response model: messaged users' outcome; control is a constant, so users rank by P(outcome | message)."""
    return _fit_linear(frame, spec, constant_control=True)


def _fit_linear(frame: pd.DataFrame, spec: FitSpec, constant_control: bool) -> LinearModel:
    labels, columns = labels_of(frame, spec), columns_of(frame, spec.features)
    features = fit_features(columns)
    state = fit_encoding(columns, features)
    inputs = dense_inputs(columns, features, state)
    models = []
    for arm in range(len(spec.arms)):
        rows = labels.arm == arm
        x = inputs[rows, :0] if constant_control and arm == 0 else inputs[rows]
        targets = zip(spec.outcomes, labels.outcome[rows].T, strict=True)
        models.append(tuple(_fit_one(x, y, outcome.kind == "binary") for outcome, y in targets))
    binary = tuple(outcome.kind == "binary" for outcome in spec.outcomes)
    return LinearModel(features, dict(spec.features), state, tuple(models), binary)


def _fit_one(x: np.ndarray, y: np.ndarray, binary: bool) -> np.ndarray:
    """Weights with the intercept last, or the mean alone where there is nothing to learn from."""
    if x.shape[1] == 0 or y.min() == y.max():
        return np.array([y.mean()])
    return np.asarray(fit_linear(x, np.zeros(len(y), dtype=np.int64), y, binary, separate(1))[0])


def _answer(weight: np.ndarray, inputs: np.ndarray, binary: bool) -> np.ndarray:
    if len(weight) == 1:
        return np.full(len(inputs), float(weight[0]))
    out: np.ndarray = inputs @ weight[:-1] + weight[-1]
    return np.asarray(expit(out) if binary else out)


@dataclass(frozen=True)
class BoostedModel:
    """LightGBM models by arm and outcome (the same ones for every arm in an S-learner: the arm is an input)."""

    features: tuple[Feature, ...]
    declared: Mapping[str, str]
    boosters: tuple[tuple[Any, ...], ...]  # [arm][outcome]

    def predict(self, frame: pd.DataFrame) -> np.ndarray:
        """mu_hat of each row; float64 (n, n_arms, n_outcomes), outcome units."""
        columns = columns_of(frame, self.declared)
        by_arm = []
        for arm, boosters in enumerate(self.boosters):
            inputs = tree_inputs(columns, self.features, np.full(len(frame), arm))
            by_arm.append(np.column_stack([b.predict(inputs, num_threads=1) for b in boosters]))
        return np.stack(by_arm, axis=1)


def fit_lightgbm_s(frame: pd.DataFrame, spec: FitSpec) -> BoostedModel:
    """S-learner on boosted trees, native categories and missing values (raises as `models.train.fit`)."""
    labels, columns = labels_of(frame, spec), columns_of(frame, spec.features)
    features = fit_features(columns)
    inputs = tree_inputs(columns, features, labels.arm)
    boosters = boosted(inputs, labels.outcome, features, S_PARAMS | {"seed": spec.seed}, S_TREES, spec)
    return BoostedModel(features, dict(spec.features), (boosters,) * len(spec.arms))


def boosted(
    inputs: np.ndarray,
    outcome: np.ndarray,
    features: tuple[Feature, ...],
    params: dict[str, Any],
    trees: int,
    spec: FitSpec,
) -> tuple[Any, ...]:
    """One booster per outcome; inputs end with the arm."""
    import lightgbm

    strings = [i for i, f in enumerate(features) if f.kind == "string"]
    boosters = []
    for target, y in zip(spec.outcomes, outcome.T, strict=True):
        objective = "binary" if target.kind == "binary" else "regression"
        data = lightgbm.Dataset(inputs, y, categorical_feature=[*strings, len(features)], params={"verbose": -1})
        boosters.append(lightgbm.train(params | {"objective": objective}, data, num_boost_round=trees))
    return tuple(boosters)


def tree_inputs(columns: Mapping[str, np.ndarray], features: tuple[Feature, ...], arm: np.ndarray) -> np.ndarray:
    """Codes of categories, numbers as they are, the arm last; float64 (n, n_features + 1)."""
    parts = [category_codes(columns[f.name], f.categories) if f.kind == "string" else columns[f.name] for f in features]
    return np.column_stack([*parts, arm])


def cross_fitted(fit: Fit, frame: pd.DataFrame, spec: FitSpec, fold: np.ndarray) -> np.ndarray:
    """Out-of-fold mu_hat of a baseline; (n, n_arms, n_outcomes).

    Args:
        fit: one of the fits above.
        frame: every row gets a prediction by a model that never saw its fold.
        spec: as for the network.
        fold: (n,), as `models.train.folds` gives it.
    """
    mu_hat = np.empty((len(frame), len(spec.arms), len(spec.outcomes)))
    for k in np.unique(fold):
        mu_hat[fold == k] = fit(frame[fold != k], spec).predict(frame[fold == k])
    return mu_hat
