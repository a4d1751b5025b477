"""Read a live experiment: from the decision log and the raw logs to one row per user, its read-out and its record.

A user counts from the first decision in the experiment that could be taken, in the variant of the assignment, whatever
was delivered (intention to treat). Every decision logs what each variant's policy decides (column `experiment`): so
the trigger of the triggered analysis is computed identically in all variants.

    reports/experiments/NAME/readout.*       the last read-out: .json, .md, .html
    reports/experiments/NAME/readings.json   every reading: when, users, share of the planned users, decision
    reports/experiments/forecasts.json       forecast against outcome of every experiment that was read to its end
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TypedDict

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds

from campaign import Campaign, DataError
from feature_repo.atomic import write_json, write_text
from models.outcomes import matured, measure_outcomes
from monitoring.checks import FAILURES
from monitoring.experiment.assign import experiment_variant
from monitoring.experiment.decide import Decision
from monitoring.experiment.file import Experiment, read_experiment_file
from monitoring.experiment.forecast import calibration_notes, forecast_against_outcome, keep_forecasts, read_forecasts
from monitoring.experiment.plan import BEFORE
from monitoring.experiment.read import Readout, past_the_end, read_experiment
from monitoring.experiment.report import html_page, markdown

_TEXT = ("decision_id", "user_id", "layer", "reason", "model_tag", "segments", "experiment")
SCHEMA = pa.schema(
    [*((name, pa.string()) for name in _TEXT), ("decided_at", pa.timestamp("us", tz="UTC")), ("arm", pa.int32())]
)


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
    entered = live_frame(log, experiment, campaign, data / "logs", as_of)
    frame = entered.head(experiment.plan.last_users or len(entered))  # the planned users, at every later reading too
    plan = experiment.plan.model_copy(update={"trigger": "differs"}) if triggered else experiment.plan
    reports = data / "reports" / "experiments"
    readings = _readings(reports / name / "readings.json")
    readout = read_experiment(frame, plan, previous=[r["fraction"] for r in readings])
    compared = forecast_against_outcome(experiment.forecast, frame, plan) if experiment.forecast else None
    if compared is not None and readout.look.users >= (plan.last_users or 0):
        keep_forecasts(reports / "forecasts.json", name, compared)
    calibration = calibration_notes(read_forecasts(reports / "forecasts.json"), plan)
    more = [past_the_end(len(entered), len(frame))] if len(entered) > len(frame) else []
    readout = replace(readout, notes=[*readout.notes, *more, *model_change_notes(frame), *calibration])
    write_readout(reports / name, readout, name, compared)
    _add_reading(reports / name / "readings.json", readings, readout, as_of)
    return readout


def read_experiment_log(decisions_dir: Path) -> pd.DataFrame:
    """Every decision of the experiment layer that could be taken, oldest first.

    A user without usable features gets control in every variant, and has no segment: such a decision enters nobody.

    Raises: DataError: there is no decision log, or no decision of an experiment in it.
    """
    files = sorted(decisions_dir.glob("date=*/*.parquet"))
    if not files:
        raise DataError(f"{decisions_dir}: no decisions; expected date=YYYY-MM-DD/*.parquet written by the service")
    data = ds.dataset([str(file) for file in files], format="parquet", schema=SCHEMA)
    log: pd.DataFrame = data.to_table(
        filter=(ds.field("layer") == "experiment")
        & ds.field("experiment").is_valid()
        & ~ds.field("reason").isin(FAILURES)
    ).to_pandas()
    if log.empty:
        raise DataError(
            f"{decisions_dir}: no decision of the experiment layer in {len(files)} files; `tactful compact` brings the "
            "service's decisions here, `tactful experiment change NAME` says whether it is running"
        )
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
    logged = pd.DataFrame([json.loads(text) for text in log["experiment"]], columns=["name", "hash", "variant", "arms"])
    own = (logged["name"] == experiment.name).to_numpy()
    first = (~log["user_id"][own].duplicated()).to_numpy()
    entered, logged = log[own][first], logged[own][first]
    variant = _variants(entered, logged, experiment)
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
    names = np.array([v.name for v in experiment.variants], dtype=object)
    arms = np.array([[row[name] for name in names] for row in logged["arms"][closed]])
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


def _variants(entered: pd.DataFrame, logged: pd.DataFrame, experiment: Experiment) -> np.ndarray:
    """Variant of each user, as an index; refuses a log that was not written under this design; shape (n,)."""
    other = (logged["hash"] != experiment.hash).to_numpy()
    if other.any():
        raise DataError(
            f"experiment {experiment.name}: {int(other.sum())} of {len(logged)} users were decided about under another "
            f"design (hash {logged['hash'][other].iloc[0]}, the file's is {experiment.hash}; first: "
            f"{entered['user_id'][other].iloc[0]}): salts, shares or plan changed mid-flight, so users moved between "
            "variants. Put the old file back, or start again under a new name"
        )
    names = [v.name for v in experiment.variants]
    variant = np.array([names.index(name) for name in logged["variant"]], dtype=np.int64)
    # drawn again for everybody, also where the experiment is stopped now
    drawn = experiment_variant(
        experiment.model_copy(update={"state": "running", "ramp": 1.0}), entered["user_id"].tolist()
    )
    if (drawn != variant).any():
        wrong = drawn != variant
        raise DataError(
            f"experiment {experiment.name}: {int(wrong.sum())} of {len(variant)} users are logged in another variant "
            f"than their id is hashed to (first: {entered['user_id'][wrong].iloc[0]}); the decision log was changed"
        )
    return variant


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


def write_readout(folder: Path, readout: Readout, name: str, compared: pd.DataFrame | None = None) -> None:
    """Write a read-out as readout.json, readout.md and readout.html."""
    values = readout.to_dict()
    if compared is not None:
        values["forecast"] = compared.to_dict("records")
    write_json(folder / "readout.json", values)
    write_text(folder / "readout.md", markdown(readout, name, compared))
    write_text(folder / "readout.html", html_page(readout, name, compared))


class _Reading(TypedDict):
    """A line of readings.json."""

    at: str
    users: int
    fraction: float
    decision: Decision


def _readings(file: Path) -> list[_Reading]:
    return list(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else []


def _add_reading(file: Path, readings: list[_Reading], readout: Readout, as_of: datetime) -> None:
    """Remember a reading of more users than the last one: every such look is paid for by the later ones."""
    users = readout.look.users
    if readout.look.fractions and (not readings or users > readings[-1]["users"]):
        fraction = readout.look.fractions[-1]
        reading = _Reading(at=as_of.isoformat(), users=users, fraction=fraction, decision=readout.decision)
        write_json(file, [*readings, reading])
