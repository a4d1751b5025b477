"""Plan and read live experiments on disk: what `tactful experiment plan` and `tactful experiment read` do.

experiments/NAME.json                       the design and its state (experiment_file)
reports/experiments/NAME/readout.*          the last read-out: .json, .md, .html
reports/experiments/NAME/readings.json      every reading: when, users, share of the planned users, decision
reports/experiments/forecasts.json          forecast against outcome of every experiment that was read to its end
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from campaign import Campaign
from feature_repo.atomic import write_json, write_text
from monitoring.experiment_file import (
    Experiment,
    Forecast,
    Variant,
    new_experiment,
    read_experiment_file,
    write_experiment,
)
from monitoring.experiment_forecast import calibration_notes, forecast_against_outcome, keep_forecasts, read_forecasts
from monitoring.experiment_live import live_frame, model_change_notes, outcome_frame, read_experiment_log
from monitoring.experiment_plan import plan_of_campaign
from monitoring.experiment_power import PlannedExperiment, plan_experiment
from monitoring.experiment_read import Readout, read_experiment
from monitoring.experiment_report import html_page, markdown


def planning_frame(trained: pd.DataFrame, campaign: Campaign, logs_dir: Path, as_of: datetime) -> pd.DataFrame:
    """The users' own past, to plan from: each user's last matured decision with outcomes and pre-period values.

    Args:
        trained: from models.frame.training_frame: user_id, decided_at and the segment columns are used.
        campaign: outcomes and segments.
        logs_dir: raw logs.
        as_of: as for `training_frame`.
    """
    last = trained.sort_values("decided_at").drop_duplicates("user_id", keep="last").reset_index(drop=True)
    known = last[["user_id", *campaign.segments.columns]]
    return pd.concat([known, outcome_frame(last, campaign, logs_dir, as_of)], axis=1)


def plan_live(
    campaign: Campaign,
    folder: Path,
    name: str,
    variants: Sequence[Variant],
    history: pd.DataFrame,
    effects: Mapping[str, float],
    *,
    share: float,
    starts_at: datetime,
    looks: int = 1,
    power: float = 0.8,
    ramp: float = 1.0,
    forecast: Sequence[Forecast] = (),
) -> tuple[Experiment, PlannedExperiment]:
    """Plan an experiment from the users' own past and write its file, which the service picks up.

    Args:
        campaign: metrics, margins, segments, alpha and windows.
        folder: `experiments` under the data folder.
        name: of the experiment.
        variants: control (the baseline policy) first.
        history: from `planning_frame`, one row per user of the platform.
        effects: metric -> expected absolute effect of a candidate.
        share: of users outside holdout and exploration, all variants together.
        starts_at: first day.
        looks: planned readings.
        power: wanted probability that such a candidate ships.
        ramp: part of the share that is enrolled at the start.
        forecast: what offline evaluation predicts, to be compared with the outcome.

    Raises: CampaignError: no sample size reaches the power, there are not enough users, or no slots are free.
    """
    names = [v.name for v in variants]
    shares = [v.share for v in variants]
    plan = plan_of_campaign(campaign, names[0], names[1:], shares=shares, looks=looks, exposure="received")
    free = 1 - campaign.assignment.holdout_share - campaign.assignment.exploration_share
    available = int(len(history) * free * share)
    planned = plan_experiment(
        history,
        plan,
        effects,
        power=power,
        users_per_day=available / campaign.assignment.window_days,  # a user decides once per window
        matures_after_days=campaign.matures_after_days,
        available_users=available,
    )
    experiment = new_experiment(
        folder, campaign, name, variants, planned.plan, share=share, starts_at=starts_at, ramp=ramp, forecast=forecast
    )
    write_experiment(folder, experiment)
    return experiment, planned


def read_live(campaign: Campaign, data: Path, name: str, as_of: datetime, *, triggered: bool = False) -> Readout:
    """Read a live experiment from the decision log and the raw logs, and write the read-out and its record.

    Args:
        campaign: outcomes, arms and segments.
        data: the data folder.
        name: of the experiment.
        as_of: events that arrived at this instant or later are not known yet.
        triggered: use only users for whom the variants decide differently, instead of intention to treat.
    """
    experiment = read_experiment_file(data / "experiments" / f"{name}.json")
    log = read_experiment_log(data / "decisions")
    frame = live_frame(log, experiment, campaign, data / "logs", as_of)
    plan = experiment.plan.model_copy(update={"trigger": "differs"}) if triggered else experiment.plan
    reports = data / "reports" / "experiments"
    readings = _readings(reports / name / "readings.json")
    readout = read_experiment(frame, plan, previous=[r["fraction"] for r in readings])
    compared = forecast_against_outcome(experiment.forecast, frame, plan) if experiment.forecast else None
    if compared is not None and readout.look.users >= (plan.last_users or 0):
        keep_forecasts(reports / "forecasts.json", name, compared)
    calibration = calibration_notes(read_forecasts(reports / "forecasts.json"), plan)
    readout = replace(readout, notes=[*readout.notes, *model_change_notes(frame), *calibration])
    write_readout(reports / name, readout, name, compared)
    _add_reading(reports / name / "readings.json", readings, readout, as_of)
    return readout


def write_readout(folder: Path, readout: Readout, name: str, compared: pd.DataFrame | None = None) -> None:
    """Write a read-out as readout.json, readout.md and readout.html."""
    values = readout.to_dict()
    if compared is not None:
        values["forecast"] = compared.to_dict("records")
    write_json(folder / "readout.json", values)
    write_text(folder / "readout.md", markdown(readout, name, compared))
    write_text(folder / "readout.html", html_page(readout, name, compared))


def _readings(file: Path) -> list[dict[str, Any]]:
    return list(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else []


def _add_reading(file: Path, readings: list[dict[str, Any]], readout: Readout, as_of: datetime) -> None:
    """Remember a reading of more users than the last one: every such look is paid for by the later ones."""
    users = readout.look.users
    if readout.look.fractions and (not readings or users > readings[-1]["users"]):
        fraction = readout.look.fractions[-1]
        reading = {"at": as_of.isoformat(), "users": users, "fraction": fraction, "decision": readout.decision}
        write_json(file, [*readings, reading])
