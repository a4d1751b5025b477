"""Sums of the week on Spark are those of one pass over all rows here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from monitored import campaign, make_frame, make_profile

from campaign import DataError
from feature_repo import spark
from monitoring.drift import measure_drift
from monitoring.profile import count_rows
from monitoring.spark_profile import as_json, count_on_spark


@pytest.fixture(scope="module")
def week(tmp_path_factory: pytest.TempPathFactory):
    """A week with gaps, infinities and new categories, here and as three files of unequal size."""
    frame = make_frame(np.random.default_rng(2), 3_000)
    frame.loc[5::17, "n00"], frame.loc[::300, "n01"], frame.loc[::11, "plan"] = np.nan, np.inf, None
    frame.loc[2_900:, "country"] = "IN"
    folder: Path = tmp_path_factory.mktemp("week")
    for name, rows in (("a", frame[:100]), ("b", frame[100:2_800]), ("c", frame[2_800:])):
        pq.write_table(pa.Table.from_pandas(rows, preserve_index=False), folder / f"{name}.parquet")
    return frame, spark.session().read.parquet(spark.uri(folder))


def test_spark_counts_equal_local(week) -> None:
    frame, rows = week
    profile = make_profile(np.random.default_rng(1), 6_000)
    counts = count_on_spark(profile, rows.repartition(5))
    assert as_json(counts) == as_json(count_rows(profile, frame))
    assert counts.columns["country"].bins["IN"] == 100
    assert counts.columns["n01"].far == 10
    assert measure_drift(profile, counts, campaign().monitoring) == measure_drift(
        profile, count_rows(profile, frame), campaign().monitoring
    )


def test_spark_counts_of_nothing(week) -> None:
    frame, rows = week
    profile = make_profile(np.random.default_rng(1), 6_000)
    assert as_json(count_on_spark(profile, rows.where("false"))) == as_json(count_rows(profile, frame[:0]))


def test_spark_counts_say_what_is_missing(week) -> None:
    with pytest.raises(DataError, match=r"columns \['n03'\] are in the reference profile but not in this frame"):
        count_on_spark(make_profile(np.random.default_rng(1), 6_000), week[1].drop("n03"))
