"""A live experiment in a rehearsal: planned in its week, assigned by the service, read at maturity against the truth.

The champion against sending nothing, as `tactful experiment plan` designs it by default, for nine tenths of the users
outside holdout and exploration. What is known of it lies in `experiment.json` beside the weeks.
"""

from __future__ import annotations

import json
import math
import shutil
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd

from campaign import Campaign, CampaignError, DataError
from feature_repo.atomic import write_json
from rehearsal.script import Script

NAME = "rehearsed"
SHARE = 0.9
POWERS = (0.8, 0.5, 0.2)  # a small platform runs it all the same, with less hope of an answer


def check(script: Script, campaign: Campaign) -> None:
    """Refuse a week whose users' outcomes the rehearsal does not live to see (DataError)."""
    last = script.weeks + 1 - math.ceil((campaign.matures_after_days + 1) / 7)
    if script.experiment is not None and not 1 <= script.experiment <= last:
        where = f"a week from 1 to {last}" if last > 0 else f"at least {script.weeks + 1 - last} weeks"
        raise DataError(
            f"experiment == {script.experiment} with weeks == {script.weeks}; expected {where}: outcomes are known "
            f"{campaign.matures_after_days} days after a decision"
        )


def on_monday(folder: Path, script: Script, campaign: Campaign, week: int) -> None:
    """Before the week's decisions: plan it in its week, end it in the week after its reading."""
    from monitoring.experiment.file import change_state

    told, now = found(folder), _midnight(script.monday(week))
    if week == script.experiment:
        write_json(folder / "experiment.json", {"week": week, "read_week": None} | _planned(folder, campaign, now))
    elif told and told["read_week"] == week - 1:
        change_state(folder / "data" / "experiments", NAME, now, state="ended")


def _planned(folder: Path, campaign: Campaign, now: datetime) -> dict[str, Any]:
    """The plan in numbers, at the first of POWERS that the users there are can give; or why it is not run."""
    from models.registry import champion_tag
    from monitoring.experiment.design import plan_for_champion
    from monitoring.experiment.file import Variant

    control, refused = Variant(name="send_none", policy="send_none", share=0.5), ""
    data, tag = folder / "data", str(champion_tag())
    for power in POWERS:
        try:
            experiment, planned = plan_for_champion(
                campaign, data, tag, NAME, control, as_of=now, starts_at=now, share=SHARE, power=power
            )
        except CampaignError as error:
            refused = refused or str(error)
            continue
        return {
            "variants": list(experiment.plan.variants),
            "planned_users": planned.users,
            "planned_days": planned.days,
            "ship_probability": planned.ship_probability,
        }
    return {"refused": refused}


def on_sunday(folder: Path, script: Script, campaign: Campaign, week: int) -> None:
    """After the week: read it once the planned users' outcomes are known, or where the rehearsal ends."""
    from monitoring.experiment.live import read_live

    told, today = found(folder), script.monday(week) + timedelta(days=7)
    if told is None or "refused" in told or told["read_week"] is not None:
        return
    if today < script.monday(told["week"]) + timedelta(days=told["planned_days"]) and week < script.weeks:
        return
    data, now = folder / "data", _midnight(today)
    readout = read_live(campaign, data, NAME, now)
    written = json.loads((data / "reports" / "experiments" / NAME / "readout.json").read_text(encoding="utf-8"))
    truth = true_effects(data, campaign, now, readout.look.users)
    told |= {
        "read_week": week,
        "users": readout.look.users,
        "decision": readout.decision,
        "reasons": readout.reasons,
        "notes": readout.notes,
        "effects": [
            {**row, "truth": true, "live_covers_truth": row["live_lower"] <= true <= row["live_upper"]}
            for row, true in ((row, truth[row["metric"]]) for row in written["forecast"])
        ],
    }
    write_json(folder / "experiment.json", told)


def true_effects(data: Path, campaign: Campaign, as_of: datetime, users: int) -> dict[str, float]:
    """Metric -> true mean effect on the users who were read: expected outcomes of what each variant decides.

    Args:
        data: of the rehearsal: decisions and truth.
        campaign: outcomes.
        as_of: of the reading.
        users: that were read: the first to enter.
    """
    from models.outcomes import matured
    from monitoring.experiment.live import read_experiment_log

    log = read_experiment_log(data / "decisions").drop_duplicates("user_id")
    log = log[matured(log["decided_at"], campaign.outcome, as_of)].head(users)
    arms = pd.DataFrame([list(json.loads(text)["arms"].values()) for text in log["experiment"]], columns=["c", "t"])
    keys = pd.DataFrame({"user_id": log["user_id"].to_numpy(), "day": log["decided_at"].dt.date.to_numpy()}).join(arms)
    measures = [outcome.measure for outcome in campaign.outcome]
    truth = pd.concat(map(pd.read_parquet, sorted((data / "truth").glob("*.parquet"))), ignore_index=True)
    truth = truth.assign(day=truth["decided_at"].dt.date).set_index(["user_id", "day", "arm"])[measures]
    control, treated = (truth.loc[list(keys[["user_id", "day", v]].itertuples(index=False, name=None))] for v in "ct")
    effect = treated.to_numpy().mean(axis=0) - control.to_numpy().mean(axis=0)
    return dict(zip(campaign.outcome_names, effect.tolist(), strict=True))


def found(folder: Path) -> dict[str, Any] | None:
    """What is known of the experiment so far; None where none was begun."""
    file = folder / "experiment.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else None


def forget_since(folder: Path, week: int) -> None:
    """Undo what a killed run did of it in a week that it did not finish."""
    told = found(folder)
    if told and told["week"] >= week:
        (folder / "experiment.json").unlink()
        for left in ("experiments", "reports/experiments"):
            shutil.rmtree(folder / "data" / left, ignore_errors=True)


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
