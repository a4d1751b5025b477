"""All that the data checks need to know of a week, as sums: parts of the rows, counted apart, add up to the whole.

Only whole numbers, minima and sums of probabilities are kept, so it does not matter how the rows were cut. One thing is
asked of the parts: rows with the same decision_id lie in one of them, or its repetition is not seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from campaign import Campaign
from models.propensities import drawn_shares, given_variant, outside_holdout, variant_arm
from monitoring.profile import Counts, Profile, count_rows, prediction_names

NEWCOMER, NEWCOMER_DAYS = "account_age_days", 28  # a younger account has few values, and zeros
SERVICE, RANDOM_PHASE = "service", "random phase"
LAYERS = {SERVICE: ("holdout", "exploration"), RANDOM_PHASE: ("holdout",)}  # drawn with a share each; the rest: others
OVER, BELOW = "over the threshold", "below the threshold"
DAY = 86_400  # seconds
Shares = tuple[float, ...]
Drawn = tuple[str, str, Shares, str]
"""Phase, group, shares, layer."""


@dataclass(frozen=True)
class Fault:
    """Rows of a column that break a rule of the schema; a rule about the column itself counts as one row."""

    rows: int
    example: Any

    def __add__(self, other: Fault) -> Fault:
        return Fault(self.rows + other.rows, self.example)


@dataclass(frozen=True)
class Ages:
    """Age of the features of some rows, in days: how many have one, how many an older one than allowed, the least."""

    n: int = 0
    old: int = 0
    youngest: float = np.inf

    def __add__(self, other: Ages) -> Ages:
        return Ages(self.n + other.n, self.old + other.old, min(self.youngest, other.youngest))


@dataclass(frozen=True)
class WeekSums:
    """Sums over the rows of a week.

    Attributes:
        n: rows.
        faults: (column, rule) -> rows that break the schema; where there are any, nothing else is counted.
        counts: of every profiled column; settled: the same of users whose account fills its windows.
        reasons: reason -> rows.
        ages: of the features.
        layers: (phase, group, shares, layer) -> rows; a group is "all" or "column=value" of a segment, shares are those
            the rows were drawn with, one for each of the phase's LAYERS.
        wrong_arm: holdout decisions with a message; off: rows whose propensities cannot be.
        arms: (over or below the threshold) -> per arm (n_arms, 3): sum of its probability p, of p (1 - p), and rows.
    """

    n: int
    faults: Mapping[tuple[str, str], Fault] = field(default_factory=dict)
    counts: Counts | None = None
    settled: Counts | None = None
    reasons: Counter[str] = field(default_factory=Counter)
    ages: Ages = Ages()
    layers: Counter[Drawn] = field(default_factory=Counter)
    wrong_arm: int = 0
    off: int = 0
    arms: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __add__(self, other: WeekSums) -> WeekSums:
        return WeekSums(
            self.n + other.n,
            _merged(self.faults, other.faults),
            self.counts + other.counts if self.counts and other.counts else None,
            self.settled + other.settled if self.settled and other.settled else None,
            self.reasons + other.reasons,
            self.ages + other.ages,
            self.layers + other.layers,
            self.wrong_arm + other.wrong_arm,
            self.off + other.off,
            _merged(self.arms, other.arms),
        )


def _merged(first: Mapping[Any, Any], second: Mapping[Any, Any]) -> dict[Any, Any]:
    """Values of both, added where a key is in both; what is wrong with a column as such is counted once."""
    whole = {key for key in {*first} & {*second} if isinstance(first[key], Fault) and _of_the_column(key[1])}
    sums = {key: first[key] if key in whole else first[key] + second[key] for key in first if key in second}
    return {**first, **second, **sums}


def _of_the_column(rule: str) -> bool:
    return rule == "column_in_dataframe" or rule.startswith("dtype")


def sum_week(frame: pd.DataFrame, features: Mapping[str, str], profile: Profile, campaign: Campaign) -> WeekSums:
    """The sums of some rows.

    Args:
        frame: decisions of the week with features and predictions.
        features: name -> "numeric" | "string".
        profile: the champion's reference profile.
        campaign: arms, outcomes, segments, the age that features may have, shares where `salts` name none.
    """
    faults = _faults(frame, features, campaign)
    if faults:
        return WeekSums(len(frame), faults)
    counts = count_rows(profile, frame)
    if frame.empty:
        return WeekSums(0, counts=counts, settled=counts)
    shares = drawn_shares(frame, campaign.assignment)
    young = (frame[NEWCOMER] < NEWCOMER_DAYS).to_numpy() if NEWCOMER in frame else np.zeros(len(frame), dtype=bool)
    return WeekSums(
        len(frame),
        counts=counts,
        settled=count_rows(profile, frame[~young]) if young.any() else counts,
        reasons=Counter(frame["reason"].tolist()),
        ages=_ages(frame, campaign),
        layers=_layers(frame, shares, campaign),
        **_arms(frame, shares),
    )


def _faults(frame: pd.DataFrame, features: Mapping[str, str], campaign: Campaign) -> dict[tuple[str, str], Fault]:
    """Columns, types and values that are never right, by pandera."""
    import pandera.errors
    import pandera.pandas as pa

    number, text = pa.Column(float, nullable=True), pa.Column(object, pa.Check(_is_text), nullable=True)
    arms = len(campaign.arm)

    def one_of_every_arm(values: pd.Series) -> pd.Series:
        return values.map(lambda chances: _is_numbers(chances, arms))

    finite = pa.Column(float, pa.Check(np.isfinite, element_wise=False), nullable=False)
    schema = pa.DataFrameSchema(
        {
            "decision_id": pa.Column(object, unique=True, report_duplicates="exclude_first"),
            "user_id": pa.Column(object),
            "decided_at": pa.Column(pd.DatetimeTZDtype("us", "UTC")),
            "layer": pa.Column(object, pa.Check.isin(["holdout", "exploration", "experiment", "policy"])),
            "arm": pa.Column(int, pa.Check.in_range(0, len(campaign.arm) - 1), coerce=True),
            "propensity": pa.Column(float, pa.Check.in_range(0, 1, include_min=False)),
            "propensities": pa.Column(object, pa.Check(one_of_every_arm)),
            "reason": pa.Column(object),
            "salts": pa.Column(object, nullable=True),
            "eligible_by_policy": pa.Column(bool),
        }
        | {name: number if kind == "numeric" else text for name, kind in features.items()}
        | dict.fromkeys(prediction_names(campaign), finite)
    )
    try:
        schema.validate(frame, lazy=True)
    except pandera.errors.SchemaErrors as error:
        cases = error.failure_cases
        missing = cases["check"] == "column_in_dataframe"
        column = cases["column"].fillna("").where(~missing, cases["failure_case"])
        groups = cases.groupby([column, "check"], sort=True)
        return {key: Fault(len(rows), rows["failure_case"].iloc[0]) for key, rows in groups}
    return {}


def _is_numbers(value: Any, n: int) -> bool:
    """A list of n numbers; NaN is one."""
    return np.ndim(value) == 1 and len(value) == n and np.asarray(value).dtype.kind in "fiu"


def _is_text(values: pd.Series) -> pd.Series:
    if pd.api.types.infer_dtype(values, skipna=True) == "string":
        return pd.Series(True, index=values.index)
    return values.map(lambda value: isinstance(value, str))


def _ages(frame: pd.DataFrame, campaign: Campaign) -> Ages:
    if "feature_timestamp" not in frame or not frame["feature_timestamp"].notna().any():
        return Ages()
    age = (frame["decided_at"] - frame["feature_timestamp"]).dt.total_seconds().dropna() / DAY
    return Ages(len(age), int((age > campaign.monitoring.max_feature_age_days).sum()), float(age.min()))


def _layers(frame: pd.DataFrame, shares: pd.DataFrame, campaign: Campaign) -> Counter[Drawn]:
    """Rows of each layer by the shares they were drawn with, of the service and of the random phase before it."""
    service = frame["model_tag"].fillna("") != "" if "model_tag" in frame else np.ones(len(frame), dtype=bool)
    phase = np.where(service, SERVICE, RANDOM_PHASE)
    keys = [phase, shares["holdout"].to_numpy(), shares["exploration"].to_numpy(), frame["layer"].to_numpy()]
    found: Counter[Drawn] = Counter()
    for prefix, values in (("all", None), *((f"{name}=", frame[name]) for name in campaign.segments.columns)):
        group = np.full(len(frame), "") if values is None else values.to_numpy()
        counts = frame.groupby([group, *keys], observed=True).size()
        for (value, where, holdout, exploration, layer), n in zip(counts.index, counts, strict=True):
            drawn = (holdout, exploration)[: len(LAYERS[where])]
            found[where, f"{prefix}{value}", drawn, layer] += int(n)
    return found


def _arms(frame: pd.DataFrame, shares: pd.DataFrame) -> dict[str, Any]:
    """Arms against propensities: the holdout gets control, probabilities sum to 1, each arm against its probability."""
    layer, arm, holdout = frame["layer"].to_numpy(), frame["arm"].to_numpy(dtype=np.int64), shares["holdout"].to_numpy()
    table = np.array(frame["propensities"].tolist(), dtype=float)
    own = table[np.arange(len(frame)), arm]
    random = (own > 0) & (own < 1)
    small = random & (table[:, 0] < holdout - 1e-9)  # the holdout alone makes control likelier
    unequal = ~(np.abs(own - frame["propensity"].to_numpy()) <= 1e-9)
    off = small | ~(np.abs(table.sum(axis=1) - 1) <= 1e-6) | unequal  # NaN is off too
    outside = random & ~small & (layer != "holdout") & np.isfinite(table).all(axis=1)
    table = given_variant(table, variant_arm(frame, outside), shares)
    table[outside] = outside_holdout(table[outside], holdout[outside])
    eligible = frame["eligible_by_policy"].to_numpy()
    sums = {}
    for words, group in ((OVER, outside & eligible), (BELOW, outside & ~eligible)):
        chance, taken = table[group], np.bincount(arm[group], minlength=table.shape[1])
        sums[words] = np.column_stack([chance.sum(axis=0), (chance * (1 - chance)).sum(axis=0), taken])
    return {"wrong_arm": int(((layer == "holdout") & (arm != 0)).sum()), "off": int(off.sum()), "arms": sums}
