"""From the decision log of a live experiment to the plain table that is read: one row per user, intention to treat.

A user counts from the first decision in the experiment, in the variant of the assignment, whatever was delivered. What
every variant's policy would have decided follows from the uplift logged with that decision: the trigger of the
triggered analysis is therefore computed identically in all variants.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.dataset as ds

from campaign import Campaign, DataError
from models.outcomes import matured, measure_outcomes
from monitoring.experiment_assign import OUTSIDE, experiment_variant, variant_arms
from monitoring.experiment_file import Experiment
from monitoring.experiment_plan import BEFORE

COLUMNS = ["decision_id", "user_id", "decided_at", "layer", "arm", "model_tag", "uplift", "threshold", "segments"]


def read_experiment_log(decisions_dir: Path) -> pd.DataFrame:
    """Every decision of the experiment layer, oldest first.

    Raises: DataError: there is no decision log, or no decision of an experiment in it.
    """
    files = sorted(decisions_dir.glob("date=*/*.parquet"))
    if not files:
        raise DataError(f"{decisions_dir}: no decisions; expected date=YYYY-MM-DD/*.parquet written by the service")
    data = ds.dataset([str(file) for file in files], format="parquet")
    log: pd.DataFrame = data.to_table(columns=COLUMNS, filter=ds.field("layer") == "experiment").to_pandas()
    if log.empty:
        raise DataError(f"{decisions_dir}: no decision of the experiment layer; is an experiment running?")
    log = log.sort_values(["decided_at", "decision_id"], ignore_index=True)
    return log.drop_duplicates("decision_id", ignore_index=True)


def live_frame(
    log: pd.DataFrame, experiment: Experiment, campaign: Campaign, logs_dir: Path, as_of: datetime
) -> pd.DataFrame:
    """The experiment's users whose outcomes have matured.

    Args:
        log: from `read_experiment_log`.
        experiment: the file it ran under.
        campaign: outcomes, arms and segments.
        logs_dir: raw logs, for the outcomes.
        as_of: events that arrived at this instant or later are not known yet.

    Returns: columns user_id, variant, day, the campaign's segment columns, every outcome by name and its pre-period
        value (`<name>_before`), `received` (variant whose arm was delivered; null when another arm was), `differs`
        (the variants decide differently: a trigger) and `model_tag`.
    Raises: DataError: no user's outcomes have matured.
    """
    entered = log[log["decided_at"] >= pd.Timestamp(experiment.starts_at)].drop_duplicates("user_id")
    # users stay in their variant also when the experiment is now stopped
    everybody = experiment.model_copy(update={"state": "running", "ramp": 1.0})
    variant = experiment_variant(everybody, entered["user_id"].tolist())
    entered, variant = entered[variant != OUTSIDE], variant[variant != OUTSIDE]
    closed = matured(entered["decided_at"], campaign.outcome, as_of)
    if not closed.any():
        when = (
            "no user has entered yet" if entered.empty else f"the first user entered at {entered['decided_at'].iloc[0]}"
        )
        raise DataError(
            f"experiment {experiment.name}: no outcome has matured by {as_of} ({when}; outcomes are known "
            f"{campaign.matures_after_days} days after entry); read it later"
        )
    users, variant = entered[closed].reset_index(drop=True), variant[closed]
    arms = _counterfactual_arms(users, experiment, campaign)
    names = np.array([v.name for v in experiment.variants], dtype=object)
    frame = pd.DataFrame({"user_id": users["user_id"], "variant": names[variant]})
    frame["day"] = users["decided_at"].dt.strftime("%Y-%m-%d")
    for column, values in _segments(users, campaign.segments.columns).items():
        frame[column] = values
    frame["received"] = _received(users["arm"].to_numpy(), arms, variant, names)
    frame["model_tag"] = users["model_tag"]
    frame["differs"] = (arms != arms[:, :1]).any(axis=1)
    return pd.concat([frame, outcome_frame(users, campaign, logs_dir, as_of)], axis=1)


def outcome_frame(decisions: pd.DataFrame, campaign: Campaign, logs_dir: Path, as_of: datetime) -> pd.DataFrame:
    """Outcomes by name and the same outcomes one window earlier (`<name>_before`); rows and index of `decisions`.

    Also the history that `plan_experiment` plans from: matured decisions, one per user.
    """
    outcomes = measure_outcomes(decisions, logs_dir, campaign.outcome, as_of)
    earlier = decisions["decided_at"] - pd.Timedelta(days=campaign.assignment.window_days)
    before = measure_outcomes(decisions.assign(decided_at=earlier), logs_dir, campaign.outcome, as_of)
    outcomes.columns = pd.Index(campaign.outcome_names)
    before.columns = pd.Index([name + BEFORE for name in campaign.outcome_names])
    return pd.concat([outcomes, before], axis=1)


def model_change_notes(frame: pd.DataFrame) -> list[str]:
    """A warning when users of a `live_frame` were decided about by different models: the variants changed."""
    shares = frame["model_tag"].value_counts(normalize=True)
    if len(shares) < 2:
        return []
    models = ", ".join(f"{tag or '(none)'} {share:.0%}" for tag, share in shares.items())
    return [f"the model changed during the experiment ({models}): effects are of this mixture; promote after the end"]


def _counterfactual_arms(users: pd.DataFrame, experiment: Experiment, campaign: Campaign) -> np.ndarray:
    """Arm of every variant's policy for every user, from what was logged; shape (n, n_variants)."""
    uplift = np.full((len(users), len(campaign.arm) - 1, len(campaign.outcome)), np.nan)
    for row, text in enumerate(users["uplift"]):
        if isinstance(text, str):
            logged = json.loads(text)
            uplift[row] = [[logged[arm][o] for o in campaign.outcome_names] for arm in campaign.arm_names[1:]]
    weights, costs = np.array(campaign.weights), np.array(campaign.costs[1:])
    score = uplift @ weights - costs
    score = np.where(np.isnan(score), -np.inf, score)
    threshold = users["threshold"].to_numpy(dtype=float, na_value=np.nan)
    champion = np.where(score.max(axis=1) > threshold, score.argmax(axis=1) + 1, 0)
    segments = _segments(users, campaign.segments.columns)
    return variant_arms(experiment, champion, uplift, weights, costs, segments)


def _segments(users: pd.DataFrame, columns: Sequence[str]) -> dict[str, np.ndarray]:
    parsed = [json.loads(text) if isinstance(text, str) else {} for text in users["segments"]]
    return {column: np.array([row.get(column) for row in parsed], dtype=object) for column in columns}


def _received(arm: np.ndarray, arms: np.ndarray, variant: np.ndarray, names: np.ndarray) -> np.ndarray:
    """Own variant where its arm was delivered, else another variant with that arm, else null; shape (n,)."""
    same = arms == arm[:, None]
    rows = np.arange(len(arm))
    received = np.where(same[rows, variant], variant, same.argmax(axis=1))
    received_names = names[received]
    received_names[~same.any(axis=1)] = None
    return np.asarray(received_names)
