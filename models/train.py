"""Train the uplift network: raw frame -> encoding -> rules -> batched ensemble -> out-of-fold predictions.

Member k leaves out fold k (folds by hash of the unit), so every training row has a prediction by a member that never
saw its user, and the spread of the members measures how much of the uplift is noise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import safetensors.numpy

from campaign import DataError, ModelError
from feature_repo.atomic import replacing
from models import encode as enc
from models.explain import background
from models.forward import NumpyModel, member_outputs, shrink
from models.linear import linear_members, linear_share, mixed
from models.losses import effective_rows
from models.optimise import Progress, TrainingRows, optimise
from models.rules import find_rules
from models.shrinkage import error_covariance, shrinkage
from models.spec import Feature, FitSpec, Labels, ModelSpec, columns_of, labels_of
from models.splits import hash_unit

FOLD_SALT = "tactful/fold"
CAP = 0.999  # quantile of a continuous outcome


class Start(NamedTuple):
    """What training begins with: features, encoding and rule tensors (weights too, on a warm start)."""

    features: tuple[Feature, ...]
    tensors: enc.Tensors


@dataclass(frozen=True)
class Fitted:
    """A trained model with what training learned about its own rows.

    `out_of_fold` is mu_hat (n, n_arms, n_outcomes) of each training row by a member that never saw its unit.
    """

    model: NumpyModel
    features: Mapping[str, str]
    out_of_fold: np.ndarray
    fold: np.ndarray

    @property
    def spec(self) -> ModelSpec:
        """What the model is about."""
        return self.model.spec

    def predict(self, frame: pd.DataFrame) -> np.ndarray:
        """mu_hat of each row; float64 (n, n_arms, n_outcomes)."""
        return self.model.predict(columns_of(frame, self.features))

    def save(self, folder: Path | str, extra: Mapping[str, Any] | None = None) -> None:
        """Write weights.safetensors and model.json (with `extra` keys), both or none; same model -> same bytes."""
        spec = ModelSpec.from_json({**(extra or {}), **self.spec.to_json()})
        with replacing(Path(folder)) as aside:
            aside.mkdir()
            write_model(aside, spec, self.model.tensors)


def write_model(folder: Path, spec: ModelSpec, tensors: enc.Tensors) -> None:
    """Write the two files of a model into an existing folder."""
    content = safetensors.numpy.save({name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)})
    (folder / "weights.safetensors").write_bytes(content)
    text = json.dumps(spec.to_json(), indent=1, sort_keys=True, allow_nan=False) + "\n"
    (folder / "model.json").write_text(text, encoding="utf-8")


def fit(
    frame: pd.DataFrame, spec: FitSpec, *, progress: Progress | None = None, warm_start: NumpyModel | None = None
) -> Fitted:
    """Train on every row of a randomised experiment.

    Args:
        frame: one row per decision; the columns that `spec` names.
        spec: features, arms, outcomes, settings.
        progress: called as (steps done, steps in all).
        warm_start: begin from this model's encoding, rules and weights instead of from scratch.

    Returns: the fitted model; the same frame, spec and seed give the same weights, bit for bit.

    Raises: DataError: a column is missing or has the wrong type, an arm is unknown or has no rows, a propensity is
        not in (0, 1), an outcome is not finite; the message names column, rows and an example.
    """
    labels, columns, fold = labels_of(frame, spec), columns_of(frame, spec.features), folds(frame, spec)
    outcome, units = standardise(labels.outcome, [o.kind for o in spec.outcomes])
    start = fresh(columns, labels, outcome, fold, spec) if warm_start is None else _taken_over(warm_start, spec)
    inputs = enc.encode(columns, start.features, start.tensors)
    rows = TrainingRows(inputs, labels.arm, outcome, labels.propensity, fold)
    tensors = start.tensors | units | optimise(rows, start.tensors, spec, progress)
    model, out_of_fold = finish(rows, labels.outcome, tensors, start.features, spec)
    model = NumpyModel(model.spec, model.tensors | background(model, columns, spec.seed))
    return Fitted(model, dict(spec.features), out_of_fold, fold)


def folds(frame: pd.DataFrame, spec: FitSpec) -> np.ndarray:
    """Fold of each row: by hash of its unit, else dealt out evenly at random. Shape (n,), in 0..members-1.

    Raises: DataError: the unit column is missing, or puts every row in one fold.
    """
    if spec.unit is None:
        return np.random.default_rng(spec.seed).permutation(len(frame)) % spec.members
    if spec.unit not in frame:
        raise DataError(f"unit column {spec.unit!r} is missing; name the column that identifies a user, or none")
    fold = fold_of(frame[spec.unit], spec.members)
    if len(frame) and (fold == fold[0]).all():
        users = np.unique(frame[spec.unit].astype(str))
        raise DataError(
            f"unit column {spec.unit!r} has {len(users)} distinct values (first: {users[0]!r}), all in one fold of "
            f"{spec.members}: some rows must be left out and some be learned from; name a column that tells users apart"
        )
    return fold


def fold_of(unit: pd.Series, members: int) -> np.ndarray:
    """Fold of each row by hash of its unit. Shape (n,), in 0..members-1."""
    users, row = np.unique(unit.astype(str).to_numpy(dtype=object), return_inverse=True)
    return np.asarray((hash_unit(FOLD_SALT, users) * members).astype(np.int64)[row])


def standardise(outcome: np.ndarray, kinds: Sequence[str]) -> tuple[np.ndarray, enc.Tensors]:
    """Continuous outcomes to mean 0 and sd 1 (a constant one to 0), and the tensors that lead back.

    Extreme values of a continuous outcome are capped: a handful of rows would steer squared error.
    """
    continuous = np.array([kind == "continuous" for kind in kinds])
    outcome = np.column_stack([_capped(y) if c else y for y, c in zip(outcome.T, continuous, strict=True)])
    center = np.where(continuous, outcome.mean(axis=0), 0.0)
    spread = np.where(continuous, outcome.std(axis=0), 1.0)
    scale = np.where(spread > 0, spread, 1.0)
    return ((outcome - center) / scale).astype(np.float32), {"outcome.mean": center, "outcome.scale": scale}


def _capped(y: np.ndarray) -> np.ndarray:
    """Values within the CAP quantiles of those that are not the median (most users may have spent nothing)."""
    spread = y[y != np.median(y)]
    return np.clip(y, *np.quantile(spread, [1 - CAP, CAP])) if len(spread) else y


def fresh(
    columns: Mapping[str, np.ndarray], labels: Labels, outcome: np.ndarray, fold: np.ndarray, spec: FitSpec
) -> Start:
    """Encoding and rules learned from this frame."""
    features = enc.fit_features(columns)
    tensors = enc.fit_encoding(columns, features)
    steps = enc.allowed_codes(tensors)
    mask = np.ones((spec.members, steps.shape[1]), dtype=bool)
    kinds = np.zeros(steps.shape[1], dtype=np.uint8)
    if spec.rules:
        code = enc.codes(columns, features, tensors)
        binary = [o.kind == "binary" for o in spec.outcomes]
        found, owned = find_rules(
            code, labels.arm, outcome, binary, fold, spec.members, features, spec.rules, spec.seed
        )
        steps, mask = np.hstack([steps, found]), np.hstack([mask, owned])
        kinds = np.r_[kinds, np.ones(found.shape[1], dtype=np.uint8)]
    tensors |= enc.rule_tensors(steps)
    return Start(features, tensors | {"rules.mask": mask.astype(np.uint8), "rules.interaction": kinds})


def _taken_over(model: NumpyModel, spec: FitSpec) -> Start:
    """Encoding, rules and weights of a champion (ModelError: it answers another question)."""
    same = {
        "features": ({f.name: f.kind for f in model.spec.features}, dict(spec.features)),
        "arms": (list(model.spec.arms), list(spec.arms)),
        "outcomes": ([(o.name, o.kind) for o in model.spec.outcomes], [(o.name, o.kind) for o in spec.outcomes]),
        "members": (model.spec.members, spec.members),
    }
    for what, (theirs, ours) in same.items():
        if theirs != ours:
            raise ModelError(f"warm start: the model has {what} {theirs}, the frame {ours}; run `tactful train`")
    return Start(model.spec.features, model.tensors)


def finish(
    rows: TrainingRows,
    outcome: np.ndarray,
    tensors: enc.Tensors,
    features: tuple[Feature, ...],
    spec: FitSpec,
    n: int | None = None,
) -> tuple[NumpyModel, np.ndarray]:
    """The model that serves, and the out-of-fold mu_hat of its training rows; `outcome` in its own units.

    `n` is how many rows it learned from, where `rows` are a sample of them. The network is mixed with a linear model as
    far as rows that neither saw speak for it, then shrunk.
    """
    costs = tuple(spec.costs) or (0.0,) * len(spec.arms)
    model_spec = ModelSpec(features, tuple(spec.arms), spec.targets, costs, spec.members)
    linear = linear_members(rows.inputs.dense, rows.arm, rows.outcome, rows.fold, spec)
    ends = (_left_out(rows, mixed(tensors, linear, share), model_spec) for share in (0.0, 1.0))
    worth = outcome @ model_spec.weights
    share = linear_share(worth, rows.arm, rows.propensity, *(mu_hat @ model_spec.weights for mu_hat in ends))
    tensors = mixed(tensors, linear, share)
    members = member_outputs(rows.inputs, tensors, model_spec)
    fold, counts = rows.fold, np.bincount(rows.arm, minlength=len(spec.arms))
    left_out = members[fold, np.arange(len(fold))]
    tensors = tensors | shrinkage(members, left_out, outcome, rows.arm, rows.propensity, model_spec.weights)
    tensors["interval.covariance"] = error_covariance(
        members, share, effective_rows(counts * (n or len(fold)) / len(fold))
    )
    return NumpyModel(model_spec, tensors), shrink(left_out, tensors, model_spec)


def _left_out(rows: TrainingRows, tensors: enc.Tensors, spec: ModelSpec) -> np.ndarray:
    """mu_hat of each row by the member that left it out; (n, n_arms, n_outcomes)."""
    out = np.empty((len(rows.arm), len(spec.arms), len(spec.outcomes)))
    for k in np.unique(rows.fold):
        own = rows.fold == k
        inputs = enc.Encoded(rows.inputs.dense[own], rows.inputs.rules[own])
        out[own] = member_outputs(inputs, tensors, spec, member=int(k))[0]
    return out
