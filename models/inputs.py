"""What callers hand over, as arrays and numbers, or a DataError that names argument, rows and what was expected.

Every argument and column of the evaluation comes in through here: beyond, no type or range needs a second look.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

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
        if not isinstance(name, Hashable) or name not in log:
            raise DataError(f"the log has no column {name!r}; it has {list(log.columns)}")
        if isinstance(log[name], pd.DataFrame):
            raise DataError(f"the log has column {name!r} {log[name].shape[1]} times; rename or drop all but one")


def check_names(**lists: object) -> None:
    """Raise DataError where an argument is no list of names; the letters of one string would be taken for names."""
    for argument, value in lists.items():
        if isinstance(value, str):
            raise DataError(f"{argument} == {value!r}, must be a list of names: [{value!r}]")
        if not isinstance(value, Iterable) or isinstance(value, Mapping | pd.DataFrame):
            raise DataError(f"{argument} is a {type(value).__name__}; expected a list of names")
        strange = [name for name in value if not isinstance(name, Hashable)]
        if strange:
            raise DataError(f"{argument} holds {_excerpt(strange[0])}; expected names")


def is_number(value: object) -> bool:
    """Whether an option is a number, not NaN."""
    return isinstance(value, Real) and value == value


def check_number(name: str, value: Any, fits: bool | np.bool_ | None, expected: str) -> None:
    """Raise DataError when an option is no number or does not fit.

    Args:
        name: of the option.
        value: what was given.
        fits: whether it is in range; asked of numbers only (`is_number(x) and 0 < x < 1`).
        expected: in words, e.g. "in (0, 1)".
    """
    if not fits:
        raise DataError(f"{name} == {f'{value:g}' if isinstance(value, Real) else repr(value)}, must be {expected}")


def check_alpha(alpha: Any) -> None:
    """Raise DataError when 1 - confidence level is not in (0, 1)."""
    check_number("alpha", alpha, is_number(alpha) and 0 < alpha < 1, "in (0, 1)")


def read_array(value: object, name: str, expected: str) -> np.ndarray:
    """An array of floats from whatever holds numbers (DataError: text, complex numbers, dates, ragged rows)."""
    try:
        values = np.asarray(value)
        text = values.dtype == object and any(isinstance(v, str | bytes) for v in values.flat)
        if values.dtype.kind not in "biufO" or text:
            raise TypeError
        return values.astype(float, copy=False)
    except (TypeError, ValueError):
        raise DataError(f"{name} is {_excerpt(value)}; expected {expected}") from None


def read_features(features: Any, log: pd.DataFrame) -> pd.DataFrame | None:
    """Features as a frame with the rows of the log, from a frame or from names of the log's columns."""
    if features is None:
        return None
    if isinstance(features, np.ndarray | pd.Series):
        raise DataError(f"features is a {type(features).__name__}; expected a DataFrame, or names of log columns")
    if not isinstance(features, pd.DataFrame):
        check_names(features=features)
        check_columns(log, list(features))
        return log[list(features)]
    check_rows("features", features, log)
    check_index(features, "features", log)
    return features


def check_rows(name: str, given: Any, log: pd.DataFrame) -> None:
    """Raise DataError when what stands beside the log has other rows than it."""
    if not isinstance(given, np.ndarray | pd.DataFrame):
        raise DataError(f"{name} is a {type(given).__name__}; expected a DataFrame or an array, rows as in the log")
    rows = len(given) if np.ndim(given) else 0
    if rows != len(log):
        raise DataError(f"{name} has {rows} rows, the log has {len(log)}; expected the same rows")


def check_index(given: object, name: str, log: pd.DataFrame) -> None:
    """Raise DataError when a Series or DataFrame is indexed otherwise than the log: rows are matched by position."""
    if isinstance(given, pd.Series | pd.DataFrame) and len(given) == len(log) and not given.index.equals(log.index):
        raise DataError(
            f"{name} has another index than the log; rows are matched by position: put it in the log's order and "
            "give .to_numpy()"
        )


def read_probabilities(column: pd.Series, name: str, n_arms: int) -> np.ndarray:
    """A column of lists, the probability of every arm; shape (n, arms) with at least `n_arms` arms."""
    values = read_array(column.tolist(), name, "a list of probabilities per row, one per arm")
    if values.ndim != 2 or values.shape[1] < n_arms:
        raise DataError(
            f"{name} holds {_excerpt(column.iloc[0])}; expected a list of {n_arms} probabilities per row, one per arm"
        )
    return values


def read_levels(column: pd.Series, name: str, *, sort: bool = True) -> tuple[np.ndarray, pd.Index]:
    """Codes of a column's values, -1 where missing, and the values in order (DataError: a row holds several)."""
    try:
        code, levels = pd.factorize(column, sort=sort, use_na_sentinel=True)
    except TypeError:
        raise DataError(f"{name} holds {column.iloc[0]!r}; expected single values") from None
    return code, pd.Index(levels)


def read_times(column: pd.Series, name: str) -> pd.Series:
    """A column of times, UTC; times without a zone are taken as UTC."""
    try:
        return pd.to_datetime(column, utc=True)
    except (TypeError, ValueError):
        raise DataError(f"{name} has dtype {column.dtype}, for example {column.iloc[0]!r}; expected times") from None


def _excerpt(value: object) -> str:
    return repr(str(value)[:60])


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
