"""The week's counts on Spark: `profile.count_rows` on parts of the rows, added up; whole numbers, so the same."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from feature_repo import spark as engine
from monitoring.profile import ColumnCounts, Counts, Profile, count_rows

if TYPE_CHECKING:
    from pyspark.sql import DataFrame  # type: ignore[import-not-found]


def count_on_spark(profile: Profile, frame: DataFrame) -> Counts:
    """Count the rows of a frame in the profile's bins, one pass; what comes back is one small table per task.

    Args:
        profile: of the champion (`monitoring.profile.build_profile`).
        frame: its columns and eligible_by_policy; others are not read.

    Raises: DataError: a profiled column is missing, or Spark cannot read the rows.
    """
    none = count_rows(profile, pd.DataFrame(columns=frame.columns, dtype=float))  # and is every column there?

    def count(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        parts = [count_rows(profile, batch.to_pandas()) for batch in batches]
        if parts:
            yield pa.RecordBatch.from_pydict({"counts": [json.dumps(as_json(reduce(Counts.__add__, parts)))]})

    with engine.failing("Spark could not count the rows"):
        wanted = frame.select(*profile["columns"], "eligible_by_policy")
        found = wanted.mapInArrow(count, "counts STRING").collect()
    return reduce(Counts.__add__, (from_json(json.loads(row.counts)) for row in found), none)


def as_json(counts: Counts) -> dict[str, Any]:
    """Counts as plain values, on their way from a worker."""
    columns = {
        name: [c.bins if isinstance(c.bins, Mapping) else c.bins.tolist(), c.missing, c.zeros, c.far]
        for name, c in counts.columns.items()
    }
    return {"n": counts.n, "eligible": counts.eligible, "columns": columns}


def from_json(raw: Mapping[str, Any]) -> Counts:
    """The inverse of `as_json`."""
    columns = {
        name: ColumnCounts(bins if isinstance(bins, dict) else np.asarray(bins, dtype=np.int64), *rest)
        for name, (bins, *rest) in raw["columns"].items()
    }
    return Counts(raw["n"], raw["eligible"], columns)
