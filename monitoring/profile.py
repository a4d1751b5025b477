"""What the model's inputs and outputs looked like when it was trained, kept small enough to stand beside its weights.

    build_profile(frame)    quantile edges and counts of every column, once, at training
    count_rows(profile, frame)   the same counts of any other rows, in one pass
    a + b                   counts of two sets of rows; whole numbers, so parts add up to the whole exactly

A number's bins are (edges[i-1], edges[i]]; the first reaches down to -inf, the last up to +inf. The edges are reference
quantiles between 0.1% and 99.9%, so a single outlier cannot stretch them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from campaign import Campaign, DataError
from monitoring.uplift_line import reference_lines

SCHEMA = 1
QUANTILES = np.linspace(0.001, 0.999, 101)

Profile = Mapping[str, Any]


@dataclass(frozen=True)
class ColumnCounts:
    """Rows of one column by bin (numbers) or by category (strings).

    Attributes:
        bins: bin number, or category, -> rows.
        missing: rows without a value.
        zeros: rows that are exactly 0.
        far: rows further outside the reference range than that range is wide, infinities included; of a number that was
            constant in the reference, which has no range, infinities alone.
    """

    bins: np.ndarray | Mapping[str, int]
    missing: int
    zeros: int = 0
    far: int = 0

    def __add__(self, other: ColumnCounts) -> ColumnCounts:
        sums = (self.missing + other.missing, self.zeros + other.zeros, self.far + other.far)
        if isinstance(self.bins, Mapping) and isinstance(other.bins, Mapping):
            names = [*self.bins, *(name for name in other.bins if name not in self.bins)]
            return ColumnCounts({name: self.bins.get(name, 0) + other.bins.get(name, 0) for name in names}, *sums)
        return ColumnCounts(np.asarray(self.bins) + np.asarray(other.bins), *sums)

    @property
    def present(self) -> int:
        """Rows with a value."""
        return int(sum(self.bins.values()) if isinstance(self.bins, Mapping) else self.bins.sum())


@dataclass(frozen=True)
class Counts:
    """Counts of every profiled column over the same n rows; `eligible` rows exceed the policy's threshold."""

    n: int
    eligible: int
    columns: Mapping[str, ColumnCounts]

    def __add__(self, other: Counts) -> Counts:
        columns = {name: counts + other.columns[name] for name, counts in self.columns.items()}
        return Counts(self.n + other.n, self.eligible + other.eligible, columns)

    @property
    def share_eligible(self) -> float:
        """Share of the rows that the policy would message."""
        return self.eligible / self.n if self.n else 0.0


def prediction_names(campaign: Campaign) -> list[str]:
    """Columns of predicted uplift per message arm and outcome, and the score of the best message arm."""
    return [f"uplift_{arm}_{outcome}" for arm in campaign.arm_names[1:] for outcome in campaign.outcome_names] + [
        "score"
    ]


def build_profile(
    frame: pd.DataFrame,
    features: Mapping[str, str],
    campaign: Campaign,
    *,
    weeks: float,
    ignore: Collection[str] = (),
) -> dict[str, Any]:
    """Profile of the reference rows, ready for JSON.

    Args:
        frame: matured training decisions: features, the columns of `models.predictions.prediction_columns`,
            arm, propensity, `y_<outcome>`, and `split`: rows outside "train" tell how well the promise holds
            (`monitoring.uplift_line.reference_lines`).
        features: name -> "numeric" | "string".
        campaign: names of arms and outcomes.
        weeks: length of the time these decisions were taken in; gives the rows to expect in a week.
        ignore: features that move by themselves (an account's age, our own messages): shown, never counted as drift.

    Raises: DataError: a column is missing, there is no row, or a number has no value at all.
    """
    kinds = dict(features) | dict.fromkeys(prediction_names(campaign), "numeric")
    absent = [name for name in (*kinds, "eligible_by_policy", "split") if name not in frame]
    if absent or frame.empty or weeks <= 0:
        raise DataError(
            f"reference profile: {len(frame)} rows over {weeks:g} weeks, columns missing: {absent or 'none'}; expected "
            "the training rows with every feature and the columns of models.predictions.prediction_columns"
        )
    columns: dict[str, Any] = {}
    for name, kind in kinds.items():
        values = frame[name].to_numpy()
        role = "prediction" if name not in features else "ignored" if name in ignore else "feature"
        columns[name] = {"kind": kind, "role": role} | (_edges(name, values) if kind == "numeric" else {})
        counts = count_column(columns[name], values)
        bins = counts.bins if isinstance(counts.bins, Mapping) else counts.bins.tolist()
        columns[name] |= {"bins": bins, "missing": counts.missing, "zeros": counts.zeros}
    return {
        "schema": SCHEMA,
        "n": len(frame),
        "rows_per_week": len(frame) / weeks,
        "eligible": int(frame["eligible_by_policy"].sum()),
        "columns": columns,
        "lines": reference_lines(frame[frame["split"] != "train"], campaign),
    }


def _edges(name: str, values: np.ndarray) -> dict[str, Any]:
    """Edges of a number's bins: distinct quantiles; mean and sd of the values clipped to them."""
    seen = values[np.isfinite(values)]
    if not len(seen):
        return {"edges": [-1.0, 1.0], "mean": 0.0, "sd": 0.0}  # never a value in the reference: any value is news
    edges = np.unique(np.quantile(seen, QUANTILES, method="inverted_cdf"))
    if len(edges) == 1:  # a constant: its own bin, so that what lies below or above shows
        edges = np.r_[np.nextafter(edges, -np.inf), edges]
        return {"edges": edges.tolist(), "mean": float(edges[-1]), "sd": 0.0}
    clipped = np.clip(seen, edges[0], edges[-1])
    return {"edges": edges.tolist(), "mean": float(clipped.mean()), "sd": float(clipped.std())}


def count_rows(profile: Profile, frame: pd.DataFrame) -> Counts:
    """Count the rows of a frame in the profile's bins: one pass, no copy of the frame.

    Raises: DataError: a profiled column is missing.
    """
    absent = [name for name in (*profile["columns"], "eligible_by_policy") if name not in frame]
    if absent:
        raise DataError(f"columns {absent} are in the reference profile but not in this frame of {len(frame)} rows")
    columns = {name: count_column(c, frame[name].to_numpy()) for name, c in profile["columns"].items()}
    return Counts(len(frame), int(frame["eligible_by_policy"].sum()), columns)


def reference_counts(profile: Profile) -> Counts:
    """The profile's own counts."""
    columns = {
        name: ColumnCounts(
            c["bins"] if c["kind"] == "string" else np.asarray(c["bins"], dtype=np.int64), c["missing"], c["zeros"]
        )
        for name, c in profile["columns"].items()
    }
    return Counts(profile["n"], profile["eligible"], columns)


def count_column(column: Mapping[str, Any], values: np.ndarray) -> ColumnCounts:
    """Count one column's values in its bins."""
    if column["kind"] == "string":
        codes, names = pd.factorize(values)  # missing values get code -1
        rows = np.bincount(codes[codes >= 0], minlength=len(names))
        bins = {name: int(n) for name, n in sorted(zip(map(str, names), rows, strict=True))}
        return ColumnCounts(bins, len(values) - int(rows.sum()))
    # one sort gives every count, four times faster than placing each value among the edges; NaN sorts last
    ordered, edges = np.sort(values), np.asarray(column["edges"])
    width = edges[-1] - edges[0] if column["sd"] else np.finfo(float).max
    up_to = np.searchsorted(ordered, [*edges, np.inf, edges[-1] + width, 0.0], side="right")
    below_far, below_zero = np.searchsorted(ordered, [edges[0] - width, 0.0], side="left")
    *cumulative, present, not_far, zero = up_to
    counts = np.diff([0, *cumulative, present])
    far = int(present - not_far + below_far)
    return ColumnCounts(counts, len(values) - int(present), int(zero - below_zero), far)
