"""Read a table of somebody else's: a CSV or Parquet file whose columns are not ours to choose."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

import pandas as pd

from campaign import DataError


def read_table(path: Path | str, as_written: Collection[str] = (), text: Collection[str] = ()) -> pd.DataFrame:
    """Read a CSV or Parquet file, by its ending.

    Args:
        path: the file.
        as_written: columns of a CSV that hold names: "007" keeps its zeros, and "None" or "NA" is a name too.
        text: other columns of a CSV that are text, also where this file has only digits in them.

    Raises: DataError: it is missing, empty or not readable.
    """
    file = Path(path)
    if file.suffix not in READERS:
        raise DataError(f"{file}: ends in {file.suffix!r}, expected .csv or .parquet")
    if not file.exists():
        raise DataError(f"{file}: no such file")
    try:
        frame: pd.DataFrame = READERS[file.suffix](file, as_written, text)
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text ({error.reason}, byte {error.start}); save it as UTF-8") from None
    except (ValueError, OSError) as error:  # pandas' and pyarrow's parse errors are ValueErrors
        reason = " ".join(str(error).split())
        raise DataError(f"{file}: not readable as {file.suffix[1:]}: {reason}") from None
    if frame.empty:
        raise DataError(f"{file}: no rows")
    return frame


def _read_csv(file: Path, as_written: Collection[str], text: Collection[str]) -> pd.DataFrame:
    # round_trip: pandas' default parser is off by one bit now and then, enough to cross a rule's threshold;
    # low_memory guesses types by parts of the file, so that one column could hold 1 and "1"
    frame = pd.read_csv(file, float_precision="round_trip", low_memory=False, dtype=dict.fromkeys(text, str))
    header = str(frame.columns[0])
    if len(frame.columns) == 1 and any(mark in header for mark in ";\t|"):
        raise DataError(f"{file}: one column, {header!r}; expected columns separated by commas")
    names = [c for c in as_written if c in frame and (frame[c].dtype.kind in "Oi" or frame[c].isna().all())]
    if names:
        written = pd.read_csv(file, usecols=names, dtype=str, keep_default_na=False, na_values=[""])
        for name in names:
            plain = pd.api.types.is_integer_dtype(frame[name]) and (frame[name].astype(str) == written[name]).all()
            frame[name] = frame[name] if plain else written[name]
    return frame


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Put the file's name before what is wrong with it."""
    try:
        yield
    except DataError as error:
        raise error if str(error).startswith(str(path)) else DataError(f"{path}: {error}") from None


def plain_features(frame: pd.DataFrame, features: Collection[str]) -> pd.DataFrame:
    """Booleans with gaps and SQL's decimals as numbers; pandas reads both as objects."""
    found = [name for name in features if name in frame and frame[name].dtype == object]
    mend = {n: frame[n].astype(float) for n in found if {type(v) for v in frame[n].dropna()} <= {bool, Decimal, float}}
    return frame.assign(**mend)


def _read_parquet(file: Path, *_: Collection[str]) -> pd.DataFrame:
    return pd.read_parquet(file)


READERS: dict[str, Callable[..., pd.DataFrame]] = {".csv": _read_csv, ".parquet": _read_parquet}
