"""Where a challenger's training starts: from scratch on everything, or from the champion on recent weeks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
import pandas as pd

from campaign import Campaign, ModelError
from models.estimators import dr_scores
from models.forward import NumpyModel, shrink
from models.predictions import policy_arm, scores
from models.spec import FitSpec, columns_of
from models.train import Fitted, fit, folds

MIN_ROWS = 500  # recent rows below which the champion is not trained on
MIN_SINCE = 300  # decisions of each split since a change, below which older ones stay in


@dataclass(frozen=True)
class Honest:
    """Predictions of rows that did not train them: all arms and outcomes (n, n_arms, n_outcomes), and which rows."""

    mu_hat: np.ndarray
    rows: np.ndarray


def fit_starts(
    campaign: Campaign,
    frame: pd.DataFrame,
    spec: FitSpec,
    champion: NumpyModel | None,
    since: np.ndarray | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[str, Fitted, Honest]:
    """Train from scratch on everything, and on from the champion on recent rows; keep the one that is worth more.

    After a change of the world old rows mislead and recent ones are few: which counts more is measured, by the doubly
    robust value on recent `select` users. Those who are judged by the gate (`train` users by the ensemble member that
    left them out, and `evaluate` users) take no part in the choice.

    Args:
        campaign: weights, costs; `pool_weeks` are recent where `since` is not given.
        frame: columns of `training_frame`, and `split`.
        spec: of the network.
        champion: None: from scratch only, and every row is recent.
        since: rows of the world as it is now, see `of_the_change`.
        progress: of `fit`.

    Returns: "scratch" or "warm", the fitted model, and its honest predictions of recent rows.
    """
    train, late = (frame["split"] == "train").to_numpy(), np.ones(len(frame), dtype=bool)
    if champion is not None:
        late = recent(frame, campaign.monitoring.pool_weeks) if since is None else since
    starts: dict[str, tuple[np.ndarray, NumpyModel | None]] = {"scratch": (train, None)}
    if champion is not None and len(frame[train & late]) >= MIN_ROWS:
        starts["warm"] = (train & late, champion)
    fits = {name: fit(frame[rows], spec, progress=progress, warm_start=m) for name, (rows, m) in starts.items()}
    start = _worth_most(campaign, frame[(frame["split"] == "select") & late], fits)
    rows, fitted = starts[start][0], fits[start]
    mu_hat = fitted.predict(frame)
    mu_hat[rows] = fitted.out_of_fold
    return start, fitted, Honest(mu_hat, late & (rows | (frame["split"] == "evaluate").to_numpy()))


def keep_network(
    campaign: Campaign, frame: pd.DataFrame, spec: FitSpec, model: NumpyModel
) -> tuple[str, Fitted, Honest]:
    """Train nothing: the network as it is, with the campaign's weights and costs of today.

    Returns: as `fit_starts`; "kept".

    Raises: ModelError: it answers another question.
    """
    theirs = list(model.spec.arms), {f.name: f.kind for f in model.spec.features}, model.spec.members
    ours = list(spec.arms), dict(spec.features), spec.members
    if theirs != ours:
        raise ModelError(f"the model has arms, features, members {theirs}, the campaign {ours}; train a new network")
    worth = dict(zip(campaign.outcome_names, campaign.weights, strict=True))
    model = replace(model, spec=replace(model.spec, extra={})).reweighted(worth, campaign.costs)
    train, fold = (frame["split"] == "train").to_numpy(), folds(frame, spec)
    members = model.members(columns_of(frame, spec.features))
    left_out = shrink(members[fold, np.arange(len(frame))], model.tensors, model.spec)
    mu_hat = np.where(train[:, None, None], left_out, shrink(members.mean(axis=0), model.tensors, model.spec))
    fitted = Fitted(model, dict(spec.features), left_out[train], fold[train])
    return "kept", fitted, Honest(mu_hat, train | (frame["split"] == "evaluate").to_numpy())


def of_the_change(frame: pd.DataFrame, since: datetime | None) -> np.ndarray | None:
    """Rows decided since the world changed, shape (n,), bool; None while they are too few to stand alone."""
    if since is None:
        return None
    rows = (frame["decided_at"] >= pd.Timestamp(since)).to_numpy()
    counts = frame["split"][rows].value_counts()
    return rows if all(counts.get(split, 0) >= MIN_SINCE for split in ("train", "select", "evaluate")) else None


def recent(frame: pd.DataFrame, weeks: int) -> np.ndarray:
    """Rows of the last weeks of the frame; shape (n,), bool."""
    return np.asarray(frame["decided_at"] > frame["decided_at"].max() - pd.Timedelta(weeks=weeks))


def _worth_most(campaign: Campaign, frame: pd.DataFrame, fits: Mapping[str, Fitted]) -> str:
    """Name of the fit whose own cut (score above 0) is worth most on these rows, by paired doubly robust scores."""
    if len(fits) == 1 or frame.empty:
        return next(iter(fits))
    weights, names = np.asarray(campaign.weights), [f"y_{name}" for name in campaign.outcome_names]
    predicted = {name: fitted.predict(frame) for name, fitted in fits.items()}
    shared = np.mean(list(predicted.values()), axis=0)
    value = {}
    for name, mu_hat in predicted.items():
        arm = policy_arm(scores(mu_hat, campaign.weights, campaign.costs), 0.0)
        outcome, target = frame[names].to_numpy(dtype=float), np.eye(len(campaign.arm))[arm]
        logged, propensity = frame["arm"].to_numpy(dtype=np.int64), frame["propensity"].to_numpy(dtype=float)
        gained = dr_scores(outcome, logged, target, propensity, shared) @ weights
        value[name] = float((gained - np.asarray(campaign.costs)[arm]).mean())
    return max(value, key=lambda name: value[name])
