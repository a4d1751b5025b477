"""Sums of the week on Spark are those of one pass over all rows here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyspark.sql.functions as F
import pytest
from monitored import FEATURES, campaign, make_frame, make_profile
from value_tables import assert_same_values

from campaign import DataError
from feature_repo import spark
from models import spark_values
from models.decision_log import Outcome
from models.evaluation import evaluate
from models.policy import RandomShare, SendAll, Threshold, TopShare
from models.predictions import mu_hat_of
from models.spark_values import evaluate_on_spark
from monitoring.checks import check_schema, check_week
from monitoring.drift import measure_drift
from monitoring.spark_week import count_on_spark
from monitoring.week_sums import sum_week


@pytest.fixture(scope="module")
def week(tmp_path_factory: pytest.TempPathFactory):
    """A week with gaps, infinities, new categories and two shares, here and as three files of unequal size."""
    frame = make_frame(np.random.default_rng(2), 3_000)
    frame.loc[5::17, "n00"], frame.loc[::300, "n01"], frame.loc[::11, "plan"] = np.nan, np.inf, None
    frame.loc[2_900:, "country"], frame.loc[2_000:, "salts"] = "IN", '{"holdout_share": 0.05}'
    folder: Path = tmp_path_factory.mktemp("week")
    for name, rows in (("a", frame[:100]), ("b", frame[100:2_800]), ("c", frame[2_800:])):
        pq.write_table(pa.Table.from_pandas(rows, preserve_index=False), folder / f"{name}.parquet")
    return frame, spark.session().read.parquet(spark.uri(folder))


def test_spark_counts_equal_local(week) -> None:
    """Also with a decision that is there twice, of which two tasks would see one each."""
    frame, rows = week
    profile = make_profile(np.random.default_rng(1), 6_000)
    options = {"expected_rows": 3_000.0}
    found = count_on_spark(rows.repartition(5), FEATURES, profile, campaign(), rows=900)
    whole = sum_week(frame, FEATURES, profile, campaign())
    assert (found.n, found.reasons, found.ages, found.layers) == (whole.n, whole.reasons, whole.ages, whole.layers)
    assert found.counts.columns["country"].bins["IN"] == 100
    assert found.counts.columns["n01"].far == 10
    limits = campaign().monitoring
    assert measure_drift(profile, found.counts, limits) == measure_drift(profile, whole.counts, limits)
    checks = [check_week(sums, profile, campaign(), **options) for sums in (found, whole)]
    assert [(c.name, c.ok, c.detail) for c in checks[0]] == [(c.name, c.ok, c.detail) for c in checks[1]]
    again = count_on_spark(rows.union(rows.limit(20)), FEATURES, profile, campaign(), rows=900)
    assert [(c.name, c.value) for c in check_schema(again)] == [("duplicates", 20)]


def test_spark_counts_of_nothing_and_of_broken_rows(week) -> None:
    frame, rows = week
    profile = make_profile(np.random.default_rng(1), 6_000)
    nothing = count_on_spark(rows.where("false"), FEATURES, profile, campaign())
    assert [check.ok for check in check_schema(nothing)] == [True]
    assert nothing.n == 0
    broken = count_on_spark(rows.drop("n03"), FEATURES, profile, campaign(), rows=900)
    assert broken.faults == sum_week(frame.drop(columns="n03"), FEATURES, profile, campaign()).faults
    assert [check.detail for check in check_schema(broken)] == ["column 'n03' is missing"]


@pytest.fixture(scope="module")
def log():
    """Decisions of a random phase, about two for each user."""
    frame = make_frame(np.random.default_rng(4), 4_000, service=False, users=2_000).reset_index(drop=True)
    setup = campaign()
    frame = frame.rename(columns={f"y_{name}": name for name in setup.outcome_names})
    return frame.drop(columns=["propensities"]), setup, [Outcome(o.name, o.kind, o.weight) for o in setup.outcome]


POLICIES = {
    "model": Threshold("score", 0.0),
    "strict": Threshold("score", 0.3),
    "all": SendAll(1),
    "half": RandomShare(0.5),
}


@pytest.mark.parametrize("clustered", [True, False])
def test_spark_values_equal_local(log, clustered: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    frame, setup, outcomes = log
    frame = frame if clustered else frame.drop_duplicates("user_id", ignore_index=True)
    monkeypatch.setattr(spark_values, "ROWS_OF_TASK", 900)
    options = {"segments": ["plan", "device"], "estimators": ("ips", "snips", "dr", "sndr", "dm"), "costs": setup.costs}
    mu_hat = mu_hat_of(frame, setup.arm_names, setup.outcome_names)
    local = evaluate(frame, POLICIES, outcomes, mu_hat=mu_hat, **options)
    rows = spark.session().createDataFrame(pa.Table.from_pandas(frame, preserve_index=False))
    found = evaluate_on_spark(rows, POLICIES, outcomes, setup.arm_names, **options)
    assert len(found) == len(local) > 500
    assert_same_values(found, local, rtol=1e-9, atol=1e-12)


def test_spark_values_say_what_is_wrong(log) -> None:
    frame, setup, outcomes = log
    rows = spark.session().createDataFrame(pa.Table.from_pandas(frame.head(500), preserve_index=False))
    with pytest.raises(DataError, match="0 decisions to evaluate"):
        evaluate_on_spark(rows.where("false"), POLICIES, outcomes, setup.arm_names)
    many = {f"p{i}": Threshold("score", i / 10) for i in range(8)}
    with pytest.raises(DataError, match=r"expected at most 256 combinations"):
        evaluate_on_spark(rows, many, outcomes, setup.arm_names)
    with pytest.raises(DataError, match="policy 'top' is TopShare; expected one that tells an arm from the row alone"):
        evaluate_on_spark(rows, {"top": TopShare("score", 0.1)}, outcomes, setup.arm_names)
    with pytest.raises(DataError, match="takes arm 1, but the log never took it"):
        evaluate_on_spark(rows.where("arm = 0"), POLICIES, outcomes, setup.arm_names)
    with pytest.raises(DataError, match=r"Spark could not evaluate: propensity has 0 in 500 rows"):
        evaluate_on_spark(rows.withColumn("propensity", rows["propensity"] * 0), POLICIES, outcomes, setup.arm_names)
    of_message = rows.withColumn("propensity", F.when(rows["arm"] == 1, rows["propensity"]).otherwise(0.9))
    with pytest.raises(DataError, match="propensity does not fit the arms: rows of arm 0 weighted"):
        evaluate_on_spark(of_message, POLICIES, outcomes, setup.arm_names)
    with pytest.raises(DataError, match="policy name 'send_none' is taken"):
        evaluate_on_spark(rows, {"send_none": SendAll(1)}, outcomes, setup.arm_names)
