"""The training frame: matured decisions, their features as they were known then, and what happened after.

One row per user and window (the first decision), so that no two rows of a user share an outcome window.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds

from campaign import Campaign, DataError
from feature_repo.retrieval import FeatureSchema, feature_schema, historical_features
from models.outcomes import matured, measure_outcomes
from models.propensities import given_history
from models.verdicts import in_weeks

# reasons of `sieve` and of `tactful check` why a decision does not count
CERTAIN, STRANGERS = "with a certain arm", "about users without a profile the day before"
BROKEN = "of weeks whose data was found broken"
COLUMNS = [
    "decision_id",
    "user_id",
    "decided_at",
    "layer",
    "arm",
    "propensity",
    "propensities",
    "salts",
    "experiment",
    "reason",
    "model_tag",
    "feature_timestamp",
    "hour",
    "surface",
]

ORDER = ["decided_at", "decision_id", "arm"]  # of copies of a decision that differ, the first in this order counts


def read_decisions(decisions_dir: Path) -> pd.DataFrame:
    """Every compacted decision, ordered by time and id; `arm` is an integer, 0 = control.

    Raises: DataError: there is no decision log.
    """
    data = ds.dataset(decision_files(decisions_dir), format="parquet")
    if "experiment" not in data.schema.names:  # the first file's schema; one from before experiments has no such column
        data = data.replace_schema(data.schema.append(pa.field("experiment", pa.string())))
    frame: pd.DataFrame = data.to_table(columns=COLUMNS).to_pandas().sort_values(ORDER, ignore_index=True)
    return frame.drop_duplicates("decision_id", ignore_index=True)


def decision_files(decisions_dir: Path) -> list[str]:
    """The files of the compacted decisions, by day.

    Raises: DataError: there are none.
    """
    files = sorted(decisions_dir.glob("date=*/*.parquet"))
    if not files:
        raise DataError(
            f"{decisions_dir}: no decisions; bring those of your random phase by [decisions] of logs.toml, or as "
            "date=YYYY-MM-DD/*.parquet (docs/logs.md); `tactful simulate` writes some"
        )
    return [str(file) for file in files]


def countable(
    decisions: pd.DataFrame, campaign: Campaign, as_of: datetime, broken: Collection[date] = ()
) -> pd.DataFrame:
    """Decisions that count: a fresh draw took part in them, matured, first of their user and window, of no broken week.

    A decision made without features (its arm was certain: propensity 1) teaches nothing about arms and is left out, and
    so is one whose arm the user's history tells (see `models.propensities`, whose propensities these rows have).

    Raises: DataError: none is left; the message counts what was dropped and why.
    """
    kept, dropped = sieve(decisions, campaign, as_of, broken)
    if kept.empty:
        counted = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count)
        raise DataError(
            f"no usable decision of {len(decisions)} by {as_of}: {counted}; {remedy(dropped)} (`tactful check` "
            "looks at the logs)"
        )
    return kept


def sieve(
    decisions: pd.DataFrame, campaign: Campaign, as_of: datetime, broken: Collection[date] = ()
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Decisions that count (see `countable`), and how many do not, by the reason.

    Args:
        decisions: from `read_decisions`.
        campaign: arms, outcomes and windows.
        as_of: what matured later does not count.
        broken: Mondays of weeks that are left out (`models.verdicts.broken_weeks`). A user's next decision does not
            take the place of one that is: its window is the same.
    """
    usable = (decisions["propensity"] > 0) & (decisions["propensity"] < 1)
    given = given_history(decisions[usable], campaign.assignment)
    fresh = given[(given["propensity"] > 0) & (given["propensity"] < 1)]
    closed = matured(fresh["decided_at"], campaign.outcome, as_of)
    kept = fresh[closed]
    first = kept[first_per_window(kept, campaign.assignment.window_days)]
    whole = first[~in_weeks(first["decided_at"], broken)].reset_index(drop=True)
    dropped = {
        CERTAIN: int((~usable).sum()),
        "with an arm that the user's history tells": int(usable.sum()) - len(fresh),
        f"not matured ({campaign.matures_after_days} days after the decision)": int((~closed).sum()),
        f"not the first of their user in {campaign.assignment.window_days} days": int(closed.sum()) - len(first),
        BROKEN: len(first) - len(whole),
    }
    return whole, dropped


def remedy(dropped: Mapping[str, int]) -> str:
    """What would make more decisions count: what cost most is said, and broken weeks, which come back, always."""
    most = max(dropped, key=lambda reason: dropped[reason], default="")
    broken = dropped.get(BROKEN, 0)
    if broken and most != BROKEN:
        return f"{_remedy(most, dropped)}; for the {broken} {BROKEN}: {_remedy(BROKEN, dropped)}"
    return _remedy(most, dropped)


def _remedy(most: str, dropped: Mapping[str, int]) -> str:
    if not dropped.get(most) or most.startswith("not matured"):
        return "wait until more have matured, or bring more decisions"
    if most == CERTAIN:
        return (
            "arms that were certain (propensity 0 or 1) teach nothing, however many there are: give the probability "
            "with which each was drawn; where nothing was drawn, begin a random phase (docs/explanation/holdout.md)"
        )
    if most == BROKEN:
        return "mend their data, then run `tactful monitor --week DATE` for each; a week that is in order counts again"
    if most == STRANGERS:
        return "bring the profiles of these users into the table users, with an event_timestamp before the decision"
    return "bring more decisions, of more users"


def first_per_window(decisions: pd.DataFrame, window_days: int) -> np.ndarray:
    """Mark the decisions that start a new window of their user; shape (n,), bool, in row order.

    A decision counts when at least `window_days` calendar days passed since the user's last one that counted.
    """
    order = decisions.sort_values(["user_id", "decided_at", "decision_id"], kind="stable").index
    users = pd.factorize(decisions.loc[order, "user_id"])[0]
    days = decisions.loc[order, "decided_at"].to_numpy(dtype="datetime64[D]").astype(np.int64)
    counts = np.zeros(len(order), dtype=bool)
    waiting = np.arange(len(order))
    while len(waiting):
        # the first waiting row of each user counts; what lies in its window is done, the rest waits on
        head = np.r_[True, users[waiting][1:] != users[waiting][:-1]]
        counts[waiting[head]] = True
        window_end = days[waiting[head]][np.cumsum(head) - 1] + window_days
        waiting = waiting[days[waiting] >= window_end]
    return pd.Series(counts, index=order).reindex(decisions.index).to_numpy()


def decision_features(store: Any, decisions: pd.DataFrame) -> pd.DataFrame:
    """The features each decision's user had at that moment (point in time), beside the decision's own columns."""
    entity = decisions.drop(columns=["propensities", "salts", "experiment"], errors="ignore").assign(
        event_timestamp=decisions["decided_at"]
    )
    if decisions.empty:
        types = feature_schema(store).types
        empty = {name: pd.Series(dtype=float if kind == "numeric" else object) for name, kind in types.items()}
        return decisions.assign(**empty)
    frame = historical_features(store, entity)
    if "propensities" in decisions:
        frame["propensities"] = decisions["propensities"].to_numpy()
    return frame


def training_frame(
    store: Any, counted: pd.DataFrame, campaign: Campaign, logs_dir: Path, as_of: datetime
) -> pd.DataFrame:
    """Decisions that count, with features, outcomes (`y_<name>`) and row order by time.

    Args:
        store: the Feast feature store.
        counted: from `countable`, of what `read_decisions` finds; the caller keeps no hold of all the others.
        campaign: arms, outcomes and windows.
        logs_dir: raw logs.
        as_of: nothing that arrived at this instant or later is used.
    """
    unknown = ~counted["arm"].between(0, len(campaign.arm) - 1)
    if unknown.any():
        raise DataError(
            f"decisions: arm {sorted(counted['arm'][unknown].unique().tolist())} in {int(unknown.sum())} rows "
            f"(first: {counted['decision_id'][unknown].iloc[0]}); campaign.toml has arms "
            f"0..{len(campaign.arm) - 1}: {list(campaign.arm_names)}"
        )
    frame = decision_features(store, counted)
    frame = pd.concat([frame, measure_outcomes(counted, logs_dir, campaign.outcome, as_of)], axis=1)
    return known_users(frame, feature_schema(store)).reset_index(drop=True)


def known_users(frame: pd.DataFrame, schema: FeatureSchema) -> pd.DataFrame:
    """Rows whose user had a snapshot at the decision; to the service the others are `unknown_user` in any arm."""
    return frame[frame[list(schema.views)].notna().any(axis=1)]
