"""Read what a week's verdict rests on: the champion, the week's decisions, and the matured ones with their outcomes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterable, Mapping
from datetime import date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from campaign import Campaign, DataError, ModelError
from feature_repo.snapshots import on_spark
from feature_repo.store import feature_schema, open_store
from models.forward import NumpyModel
from models.frame import countable, decision_features, known_users, read_decisions
from models.outcomes import measure_outcomes
from models.predictions import predict_frame, prediction_columns
from models.registry import model_path, required_champion
from models.splits import split_of
from models.verdicts import broken_weeks
from monitoring.profile import Profile
from monitoring.week_sums import WeekSums
from monitoring.weekly import WeekInputs

REFERENCE_ROWS = 20_000
# These move by themselves: accounts and logs grow older, our messages become history and sell plans. Shown, never
# counted as drift.
MOVING = (
    "plan",
    "account_age_days",
    "subscribed_ever",
    "days_since_subscription_event",
    "messages_7d",
    "messages_28d",
    "messages_90d",
    "clicks_28d",
    "dismissals_28d",
    "dismissal_rate_90d",
    "days_since_message",
    "days_since_dismissal",
)
LONGEST_WINDOW = timedelta(days=90)
WEEK = pd.Timedelta(days=7)


def weekly_inputs(campaign: Campaign, data: Path, day: date, as_of: datetime) -> WeekInputs:
    """Everything `run_week` needs about the week that `day` lies in.

    Args:
        campaign: thresholds and outcomes.
        data: data folder.
        day: any day of the week (Monday to Sunday, UTC).
        as_of: nothing that arrived later is used.

    Raises: ModelError: there is no champion, or its features are no longer defined. DataError: there are no decisions,
        or none could be in that week.
    """
    tag = required_champion()
    folder = model_path(tag)
    model = NumpyModel.load(folder)
    require_features(tag, model, feature_schema(open_store()).types)
    profile = json.loads((folder / "reference_profile.json").read_text(encoding="utf-8"))
    monday = pd.Timestamp(day - timedelta(days=day.weekday()), tz="UTC")
    counted, week_frame = (_spark_week if on_spark() else _week)(campaign, data, model, profile, monday, as_of)
    return WeekInputs(
        week=day,
        as_of=as_of,
        campaign=campaign,
        champion=tag,
        features={feature.name: feature.kind for feature in model.spec.features},
        week_frame=week_frame,
        matured_frame=matured_frame(campaign, data, model, as_of, judged=monday.date()),
        profile=profile,
        reference_sample=_reference_sample(data / "reports" / tag.replace(":", "-") / "frame.parquet"),
        quarantined=_quarantined(data / "quarantine", monday.date()),
        counted=counted,
    )


def _week(
    campaign: Campaign, data: Path, model: NumpyModel, profile: Profile, monday: pd.Timestamp, as_of: datetime
) -> tuple[None, pd.DataFrame]:
    """The decisions of a week with features and predictions; nothing is counted yet."""
    decisions = read_decisions(data / "decisions")
    _check_in_logs(monday, decisions["decided_at"].min(), as_of)
    in_week = (decisions["decided_at"] >= monday) & (decisions["decided_at"] < monday + WEEK)
    return None, _with_predictions(open_store(), decisions[in_week].reset_index(drop=True), campaign, model)


def _spark_week(
    campaign: Campaign, data: Path, model: NumpyModel, profile: Profile, monday: pd.Timestamp, as_of: datetime
) -> tuple[WeekSums, pd.DataFrame]:
    """Sums of a week, and a sample of what `_week` gives."""
    from models.spark_frame import spark_decisions  # only here: most machines have no PySpark
    from monitoring.spark_week import week_on_spark

    decisions = spark_decisions(data / "decisions")
    first = decisions.selectExpr("unix_micros(min(decided_at)) AS first").first().first
    _check_in_logs(monday, pd.Timestamp(first, unit="us", tz="UTC"), as_of)
    start, end = (int(moment.timestamp()) for moment in (monday, monday + WEEK))
    week = decisions.where(f"decided_at >= timestamp_seconds({start}) AND decided_at < timestamp_seconds({end})")
    return week_on_spark(open_store(), week, campaign, model, profile, data / "monitoring" / ".steps")


def _check_in_logs(monday: pd.Timestamp, first: pd.Timestamp, as_of: datetime) -> None:
    if not first - WEEK < monday < pd.Timestamp(as_of):
        raise DataError(
            f"the week of {monday:%Y-%m-%d} is not in the logs: decisions begin on {first:%Y-%m-%d}, "
            f"logs end before {as_of:%Y-%m-%d}; ask for a week between"
        )
    if monday + WEEK > pd.Timestamp(as_of):
        last = as_of.date() - timedelta(days=as_of.isoweekday() - 1 + 7)
        raise DataError(
            f"the week of {monday:%Y-%m-%d} is not over: logs end before {as_of:%Y-%m-%d}, it ends before "
            f"{monday + WEEK:%Y-%m-%d}; the last whole week is `tactful monitor --week {last}`"
        )


def matured_frame(
    campaign: Campaign, data: Path, model: NumpyModel, as_of: datetime, judged: date | None = None
) -> pd.DataFrame:
    """Recent matured decisions a model was not trained on, with features, its predictions, and outcomes.

    Decisions of weeks whose data was found broken are left out, but not those of the week that is `judged` now.
    """
    store, broken = open_store(), sorted(broken_weeks(data / "monitoring").keys() - {judged})
    if on_spark():
        from models.spark_frame import read_frame, write_training_frame  # only here, as above

        folder, wanted = data / "monitoring" / ".matured", partial(unseen, campaign=campaign, model=model, as_of=as_of)
        write_training_frame(store, data / "decisions", campaign, data / "logs", as_of, folder, wanted, broken)
        frame = read_frame(folder)
        shutil.rmtree(folder)
        return pd.concat([frame, model_predictions(frame, campaign, model)], axis=1)
    matured = unseen_matured(read_decisions(data / "decisions"), campaign, model, as_of, broken)
    outcomes = measure_outcomes(matured, data / "logs", campaign.outcome, as_of)
    frame = pd.concat([_with_predictions(store, matured, campaign, model), outcomes], axis=1)
    return known_users(frame, feature_schema(store)).reset_index(drop=True)


def moving_features(names: Iterable[str], first_decision: datetime, logs_start: date) -> list[str]:
    """Features whose change is no news, given when the reference rows begin and when the logs do.

    While the logs are younger than the longest window, sums over it and recencies grow with every day.
    """
    young = first_decision.date() - logs_start < LONGEST_WINDOW
    growing = [name for name in names if young and (name.endswith("_90d") or name.startswith("days_since_"))]
    return [*(name for name in names if name in MOVING and name not in growing), *growing]


def unseen_matured(
    decisions: pd.DataFrame, campaign: Campaign, model: NumpyModel, as_of: datetime, broken: Collection[date] = ()
) -> pd.DataFrame:
    """Matured decisions of the last `pool_weeks` matured weeks that the model was not trained on."""
    matured = countable(decisions, campaign, as_of, broken)
    kept: pd.DataFrame = matured[unseen(matured, campaign, model, as_of)].reset_index(drop=True)
    return kept


def unseen(decisions: pd.DataFrame, campaign: Campaign, model: NumpyModel, as_of: datetime) -> np.ndarray:
    """Which decisions that count are of the last `pool_weeks` matured weeks, and did not train the model."""
    end = pd.Timestamp(as_of) - pd.Timedelta(days=campaign.matures_after_days)
    recent = decisions["decided_at"] > end - campaign.monitoring.pool_weeks * WEEK
    return np.asarray(recent & not_trained_on(decisions, campaign, model), dtype=bool)


def not_trained_on(decisions: pd.DataFrame, campaign: Campaign, model: NumpyModel) -> np.ndarray:
    """Decisions that did not train a model: other users' than `train`, or later ones; shape (n,), bool."""
    later = decisions["decided_at"] > pd.Timestamp(model.spec.extra["data_window"]["to"])
    return np.asarray(later | (split_of(decisions["user_id"], campaign.splits) != "train"), dtype=bool)


def require_features(tag: str, model: NumpyModel, kinds: Mapping[str, str]) -> None:
    """That a champion can still be asked, after the feature definitions changed.

    Args:
        tag: of the champion, for the message.
        model: the champion.
        kinds: features there are now: name -> "numeric" | "string".

    Raises: ModelError: it needs others.
    """
    gone = [f"{f.name} ({f.kind})" for f in model.spec.features if kinds.get(f.name) != f.kind]
    if gone:
        raise ModelError(
            f"{tag}: the champion needs features that the definitions no longer have: {', '.join(gone)}; bring them "
            "back and run `feast -c feature_repo apply`; or, as nothing can be compared with this champion, run "
            "`tactful train`, read its report, then `tactful promote --force`"
        )


def model_predictions(frame: pd.DataFrame, campaign: Campaign, model: NumpyModel) -> pd.DataFrame:
    """A model's prediction columns for rows with features, by the policy stored with it."""
    mu_hat = predict_frame(model, frame) if len(frame) else np.zeros((0, len(campaign.arm), len(campaign.outcome)))
    weights = {outcome.name: outcome.weight for outcome in model.spec.outcomes}
    threshold = float(model.spec.extra["policy"]["threshold"])
    columns = prediction_columns(mu_hat, model.spec.arms, weights, model.spec.costs, threshold)
    return columns.set_index(frame.index)


def _with_predictions(store: Any, decisions: pd.DataFrame, campaign: Campaign, model: NumpyModel) -> pd.DataFrame:
    frame = decision_features(store, decisions)
    frame = frame.assign(**{name: decisions[name].to_numpy() for name in ("salts", "experiment")})
    return pd.concat([frame, model_predictions(frame, campaign, model)], axis=1)


def _quarantined(folder: Path, monday: date) -> tuple[str, ...]:
    """Why log files that arrived in the week were refused."""
    week = {f"date={monday + timedelta(days=k)}" for k in range(7)}
    notes = [note for note in sorted(folder.rglob("*.txt")) if week & set(note.parts)]
    return tuple(note.read_text(encoding="utf-8").strip() for note in notes)


def _reference_sample(file: Path) -> pd.DataFrame | None:
    """A seeded sample of the champion's training rows; None where its report folder is gone."""
    if not file.exists():
        return None
    frame = pd.read_parquet(file)
    return frame.sample(min(len(frame), REFERENCE_ROWS), random_state=0).reset_index(drop=True)
