"""Columns of a log as arrays, or an error that names the column, the rows and what was expected."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real

import numpy as np
import pandas as pd

from campaign import DataError

LEAST, MOST = 1e-9, 1e100  # propensities and numbers beyond would overflow, and are never meant
PROBE = 1 << 12  # rows looked at first for repeated values
MAX_ARMS = 100  # tables are as wide as the highest arm: an id in place of an index would fill the memory


def check_columns(log: pd.DataFrame, names: Sequence[str]) -> None:
    """Raise DataError when the log is no frame, is empty, or lacks a column or has it twice."""
    if not isinstance(log, pd.DataFrame):
        raise DataError(f"the log is a {type(log).__name__}; expected a pandas DataFrame, one row per matured decision")
    if log.empty:
        raise DataError("the log has no rows; expected one row per matured decision")
    for name in names:
        if name not in log:
            raise DataError(f"the log has no column {name!r}; it has {list(log.columns)}")
        if isinstance(log[name], pd.DataFrame):
            raise DataError(f"the log has column {name!r} {log[name].shape[1]} times; rename or drop all but one")


def check_names(**lists: object) -> None:
    """Raise DataError where a list of names is one string: its letters would be taken for names."""
    for argument, value in lists.items():
        if isinstance(value, str):
            raise DataError(f"{argument} == {value!r}, must be a list of names: [{value!r}]")


def is_number(value: object) -> bool:
    """Whether an option is a number, not NaN."""
    return isinstance(value, Real) and value == value


def read_numbers(column: pd.Series, name: str) -> np.ndarray:
    """A column as floats, missing values as NaN; shape (n,) (DataError: it holds something else)."""
    try:
        if column.dtype.kind in "mMc":
            raise ValueError
        if isinstance(column.dtype, np.dtype):
            return column.to_numpy(dtype=float)
        return column.to_numpy(dtype=float, na_value=np.nan)
    except (TypeError, ValueError):
        first = column.iloc[int(pd.to_numeric(column, errors="coerce").isna().to_numpy().argmax())]
        raise DataError(f"{name} has dtype {column.dtype}, for example {first!r}; expected numbers") from None


def all_different(column: pd.Series) -> bool:
    """Whether no value comes twice, faster than a hash table of a million users.

    Dense integers are counted. Other values are compared by 32 bits of Python's hash (which a string keeps) in sorted
    order; the few that agree there are compared themselves.

    Raises: DataError: values cannot be hashed.
    """
    values = column.to_numpy()
    n = len(values)
    if values.dtype.kind in "iu" and n:
        low, high = int(values.min()), int(values.max())
        if high - low < 4 * n:
            return int(np.bincount(values - low).max()) == 1
    if values.dtype != object or n < 4 * PROBE:
        return _is_unique(column)
    # users who come often are found in a few rows: neighbours, and rows far apart
    if not _is_unique(column.iloc[:PROBE]) or not _is_unique(column.iloc[:: n // PROBE]):
        return False
    hashes = np.fromiter(map(hash, values), np.int64, n).astype(np.uint32)
    ordered = np.sort(hashes)
    agree = np.zeros(1 << 16, dtype=bool)
    agree[ordered[1:][ordered[1:] == ordered[:-1]] & 0xFFFF] = True
    return _is_unique(column[agree[hashes & 0xFFFF]])


def _is_unique(column: pd.Series) -> bool:
    try:
        return bool(column.is_unique)
    except TypeError:
        raise DataError(f"{column.name} holds {column.iloc[0]!r}; expected single values") from None


def read_propensity(column: pd.Series, name: str) -> np.ndarray:
    """The logged propensities, in (0, 1); shape (n,) (DataError: one is not, with its rows)."""
    p = read_numbers(column, name)
    if not (p.min() >= LEAST and p.max() < 1):  # NaN fails it too
        rows = np.flatnonzero(~((p >= LEAST) & (p < 1)))
        raise DataError(
            f"{name} has {p[rows[0]]:g} in {len(rows)} rows (first rows {rows[:3].tolist()}); need 0 < {name} < 1. "
            "A certain arm cannot be compared with another: leave such rows out, and log the probability over all "
            "random layers, not within one"
        )
    return p


def read_arms(column: pd.Series, name: str) -> np.ndarray:
    """The logged arms, 0 = control; shape (n,), intp (DataError: missing, not whole numbers, negative or too high)."""
    if column.isna().any():
        row = int(column.isna().to_numpy().argmax())
        raise DataError(
            f"{name} is missing in {int(column.isna().sum())} rows (first: row {row}); every row has an arm"
        )
    values = column.to_numpy()
    if values.dtype.kind not in "iub":
        raise DataError(f"{name} has dtype {column.dtype}; expected integers, 0 = control (map the names to 0, 1, ...)")
    arms = values.astype(np.intp, copy=False)
    if arms.min() < 0:
        row = int(np.argmax(arms < 0))
        raise DataError(f"{name} has {arms[row]} in row {row}; expected 0 (control), 1, 2, ...")
    if arms.max() >= MAX_ARMS:
        row = int(arms.argmax())
        raise DataError(
            f"{name} has {arms[row]} in row {row}; arms are counted 0 (control), 1, 2, ..., below {MAX_ARMS}: "
            "map ids of messages to those"
        )
    return arms


def read_outcome(column: pd.Series, name: str, kind: str) -> np.ndarray:
    """An outcome, finite, and 0 or 1 where `kind` is "binary"; shape (n,) (DataError: it is not)."""
    y = read_numbers(column, f"outcome {name!r}")
    bad = ~(np.abs(y) < MOST)
    if bad.any():
        raise DataError(
            f"outcome {name!r} is NaN or infinite in {int(bad.sum())} rows (first: row "
            f"{int(bad.argmax())}); evaluate matured decisions only"
        )
    if kind == "binary" and np.count_nonzero(y == 0) + np.count_nonzero(y == 1) < len(y):
        row = int(np.argmax((y != 0) & (y != 1)))
        raise DataError(f"outcome {name!r} is binary but has {y[row]:g} in row {row}; expected 0 or 1")
    return y
