"""The checked columns of an experiment's table: one row per user, every value as the plan says, or a clear refusal."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from campaign import DataError
from monitoring.experiment.plan import ExperimentPlan, Metric

LARGEST = 1e100  # of a value: squares of larger ones overflow
SEGMENT_USERS = 4  # fewer users per value than this on average: an id or a quantity, no segment
MISSING = "(missing)"  # a user without a segment value is in a segment of its own


@dataclass(frozen=True)
class Grouping:
    """A column as codes (shape (n,), index into labels)."""

    codes: np.ndarray
    labels: tuple[str, ...]


@dataclass(frozen=True)
class ExperimentTable:
    """Checked columns, all of shape (n,).

    `variant` indexes plan.variants (0 = control). `covariate` has the metric's pre-period values, missing ones filled
    with their mean, which moves no expectation because they were missing before assignment.
    """

    variant: np.ndarray
    outcome: dict[str, np.ndarray]
    covariate: dict[str, np.ndarray]
    segments: dict[str, Grouping]
    day: Grouping | None
    exposure: Grouping | None
    trigger: np.ndarray | None

    @property
    def n(self) -> int:
        """Number of users."""
        return len(self.variant)

    def pair(self, arm: int) -> np.ndarray:
        """Users of control and of one candidate; mask of shape (n,)."""
        return np.asarray((self.variant == 0) | (self.variant == arm))

    def segment_rows(self) -> Iterator[tuple[str, np.ndarray]]:
        """("", everybody) first, then every segment as ("column=value", its users); masks of shape (n,)."""
        return segment_rows(self.segments, self.n)


def segment_rows(segments: Mapping[str, Grouping], n: int) -> Iterator[tuple[str, np.ndarray]]:
    """See ExperimentTable.segment_rows; `segments` by column, of n users."""
    yield "", np.ones(n, dtype=bool)
    for column, grouping in segments.items():
        for code, label in enumerate(grouping.labels):
            yield f"{column}={label}", grouping.codes == code


def checked_table(frame: pd.DataFrame, plan: ExperimentPlan) -> ExperimentTable:
    """Check a plain table against the plan.

    Args:
        frame: one row per user, with every column that the plan names.
        plan: what to expect.

    Raises: DataError: a column is missing, a user has several rows, an outcome is null, a value is not as planned.
    """
    if not isinstance(frame, pd.DataFrame) or not isinstance(plan, ExperimentPlan):
        raise DataError(
            f"read_experiment got {type(frame).__name__} and {type(plan).__name__}; expected a pandas DataFrame and an "
            "ExperimentPlan (ExperimentPlan.from_toml reads one from a file)"
        )
    named = [plan.unit, plan.variant, *plan.segments, *(m.name for m in plan.metric)]
    named += [m.covariate for m in plan.metric if m.covariate] + [c for c in (plan.exposure, plan.trigger) if c]
    for column in named:
        need_column(frame, column)
    if frame.empty:
        raise DataError("the table has no rows: no outcome has matured yet; wait until the first users' windows close")
    variant = _variant_codes(frame[plan.variant], plan)
    _one_row_per_unit(frame[plan.unit], variant)
    _check_groups(variant, plan)
    return ExperimentTable(
        variant=variant,
        outcome={m.name: outcome_values(frame, m, plan.unit) for m in plan.metric},
        covariate={m.name: covariate_values(frame[m.covariate]) for m in plan.metric if m.covariate},
        segments={column: segment_groups(frame[column]) for column in plan.segments},
        day=_grouping(_days(frame[plan.day])) if plan.day in frame.columns else None,
        exposure=_exposure(frame[plan.exposure], plan) if plan.exposure else None,
        trigger=_trigger(frame[plan.trigger]) if plan.trigger else None,
    )


def need_column(frame: pd.DataFrame, column: str) -> None:
    """Refuse a table without a column that the plan names, and say what it may have meant (DataError)."""
    if column not in frame.columns:
        near = difflib.get_close_matches(column, [str(c) for c in frame.columns], n=1)
        hint = (
            f"did you mean {near[0]!r}?"
            if near
            else f"the table has {', '.join(map(str, frame.columns)) or 'no columns'}"
        )
        raise DataError(f"column {column!r}: the plan names it and the table has no such column; {hint}")
    if list(frame.columns).count(column) > 1:
        raise DataError(f"column {column!r}: the table has it {list(frame.columns).count(column)} times; keep one")


def _variant_codes(values: pd.Series, plan: ExperimentPlan) -> np.ndarray:
    codes = pd.Categorical(_labels(values), categories=plan.variants).codes
    if (codes < 0).any():
        unknown = values[codes < 0]
        raise DataError(
            f"column {plan.variant!r}: {len(unknown)} of {len(values)} rows have a variant that is not in the plan "
            f"(first: {str(unknown.iloc[0])!r}); expected {list(plan.variants)}. Drop those rows, or correct the plan"
        )
    return np.asarray(codes, dtype=np.int64)


def _labels(values: pd.Series) -> pd.Series:
    """Values as text; whole floats as integers, so that variant 1 is "1" also in a column that was once nullable."""
    if values.dtype == object and pd.api.types.infer_dtype(values, skipna=False) == "string":
        return values
    if pd.api.types.is_float_dtype(values) and (values.dropna() % 1 == 0).all():
        values = values.astype("Int64")
    return values.astype("string").astype(object).where(values.notna(), None)


def _one_row_per_unit(units: pd.Series, variant: np.ndarray) -> None:
    if units.isna().any():
        raise DataError(f"column {units.name!r}: {int(units.isna().sum())} rows are null; every row needs its user")
    repeated = units.duplicated(keep=False)
    if not repeated.any():
        return
    variants = pd.Series(variant).groupby(units.to_numpy()).nunique()
    crossed, name = variants[variants > 1], f"column {units.name!r}"
    if len(crossed):
        raise DataError(
            f"{name}: {len(crossed)} users are in more than one variant (first: {str(crossed.index[0])!r}); the "
            "assignment is broken, or rows were joined wrongly"
        )
    raise DataError(
        f"{name}: {int(units.duplicated().sum())} duplicate rows (first: {str(units[repeated].iloc[0])!r}); "
        "expected one row per user: aggregate each user's outcomes first"
    )


def _check_groups(variant: np.ndarray, plan: ExperimentPlan) -> None:
    counts = np.bincount(variant, minlength=len(plan.variants))
    empty = [name for name, count in zip(plan.variants, counts, strict=True) if count == 0]
    if empty:
        found = dict(zip(plan.variants, counts.tolist(), strict=True))
        raise DataError(f"column {plan.variant!r}: no user has variant {empty}; users by variant: {found}")


def outcome_values(frame: pd.DataFrame, metric: Metric, unit: str) -> np.ndarray:
    """A metric's column as floats, shape (n,); refuses nulls, infinities and binary values that are not 0 or 1."""
    values = _numbers(frame[metric.name])
    missing = np.isnan(values)
    if missing.all():
        raise DataError(
            f"column {metric.name!r}: all {len(values)} values are null: no outcome has matured yet; "
            "wait until the first users' outcome windows have closed"
        )
    if missing.any():
        raise DataError(
            f"column {metric.name!r}: {int(missing.sum())} of {len(values)} values are null (first: {unit} "
            f"{str(frame[unit][missing].iloc[0])!r}). Keep only users whose outcome window has closed (choose them by "
            "time of entry, never by outcome), and write 0 where nothing happened"
        )
    if metric.kind == "binary" and not np.isin(values, (0.0, 1.0)).all():
        odd = values[~np.isin(values, (0.0, 1.0))]
        raise DataError(
            f"column {metric.name!r}: {len(odd)} of {len(values)} values are neither 0 nor 1 (first: {odd[0]:g}); "
            'the plan says kind = "binary"; use "continuous" if it is a quantity'
        )
    return values


def _numbers(values: pd.Series) -> np.ndarray:
    """Float values with NaN for null; refuses text, infinities and what no square of fits a float."""
    # a nullable column is often loaded as objects; of its numbers pandas makes a number type, of true and false with
    # null it does not
    values = values.infer_objects()
    if pd.api.types.infer_dtype(values) == "boolean":
        values = values.astype("boolean")
    elif pd.api.types.infer_dtype(values) == "decimal":  # DECIMAL of a database, by way of Parquet
        values = values.astype("Float64")
    numeric = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_complex_dtype(values)
    if not (numeric or values.isna().all()):
        first = values.dropna().iloc[0]
        remedy = "; write true as 1 and false as 0" if str(first).lower() in ("true", "false", "yes", "no") else ""
        kind = "text" if isinstance(first, str) else type(first).__name__
        raise DataError(f"column {values.name!r}: expected numbers, found {kind} (first: {str(first)!r}){remedy}")
    numbers = values.astype("Float64").to_numpy(dtype=float, na_value=np.nan)
    if np.isinf(numbers).any():
        raise DataError(f"column {values.name!r}: {int(np.isinf(numbers).sum())} infinite values; correct the source")
    if (np.abs(numbers) > LARGEST).any():
        raise DataError(f"column {values.name!r}: values up to {np.nanmax(np.abs(numbers)):.3g}, beyond {LARGEST:g}")
    return numbers


def covariate_values(values: pd.Series) -> np.ndarray:
    """A pre-period column as floats, shape (n,), null filled with the mean of the others."""
    numbers = _numbers(values)
    known = numbers[~np.isnan(numbers)]
    if len(known) == 0:
        raise DataError(
            f"column {values.name!r}: all values are null; fill in pre-period values, or drop the covariate"
        )
    return np.where(np.isnan(numbers), known.mean(), numbers)


def segment_groups(values: pd.Series) -> Grouping:
    """A segment column as codes; null is a segment of its own, and so is a category that no user has.

    Raises: DataError: nobody has a value, or nearly everybody has its own.
    """
    if values.isna().all():
        raise DataError(f"segment column {values.name!r}: no user has a value; fill it, or drop it from the plan")
    groups = _grouping(values)
    if len(groups.labels) > max(20, len(values) / SEGMENT_USERS):
        raise DataError(
            f"segment column {values.name!r}: {len(groups.labels)} values among {len(values)} users, so an id or a "
            "quantity; expected groups of users: bin it, or drop it from the plan"
        )
    return groups


def _grouping(values: pd.Series) -> Grouping:
    labels = values.cat.categories if isinstance(values.dtype, pd.CategoricalDtype) else None
    codes, found = pd.factorize(_labels(values).fillna(MISSING), sort=True)
    names: Sequence[str] = [str(label) for label in found]
    unused = [] if labels is None else [str(label) for label in labels if str(label) not in names]
    return Grouping(codes, (*names, *unused))


def _days(values: pd.Series) -> pd.Series:
    """Days of entry; instants become their day."""
    return values.dt.strftime("%Y-%m-%d") if pd.api.types.is_datetime64_any_dtype(values) else values


def _exposure(values: pd.Series, plan: ExperimentPlan) -> Grouping:
    """Variant received, as a code of plan.variants; the last code: never reached."""
    known = values.notna()
    codes = np.full(len(values), len(plan.variants), dtype=np.int64)
    codes[known] = pd.Categorical(_labels(values[known]), categories=plan.variants).codes
    if (codes < 0).any():
        raise DataError(
            f"column {values.name!r}: {int((codes < 0).sum())} rows received {values[codes < 0].iloc[0]!r}, no variant "
            f"of the plan; expected one of {list(plan.variants)}, or null for a user who was never reached"
        )
    return Grouping(codes, (*plan.variants, "(not reached)"))


def _trigger(values: pd.Series) -> np.ndarray:
    numbers = _numbers(values)
    if not np.isin(numbers, (0.0, 1.0)).all():
        missing = int(np.isnan(numbers).sum())
        count = missing or int((~np.isin(numbers, (0.0, 1.0))).sum())
        what = f"{count} of {len(values)} values are {'null' if missing else 'something else'}"
        raise DataError(
            f"column {values.name!r}: {what}; the trigger must be true or false for every user, computed alike "
            "whatever the variant"
        )
    if not numbers.any():
        raise DataError(f"column {values.name!r}: no user is triggered: the variants never decide differently")
    return numbers.astype(bool)
