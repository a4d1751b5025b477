"""The week and its matured decisions on Spark: for decision logs that do not fit in memory.

Features, predictions and sums are those of one machine, computed on parts of the rows; what comes back is one small
table per task, and a sample to draw.
"""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator, Mapping
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from campaign import Campaign
from feature_repo import spark as engine
from feature_repo.spark_join import historical_features
from models.forward import NumpyModel
from models.spark_frame import first_copies, written
from monitoring.evidently_report import SAMPLE_ROWS
from monitoring.inputs import model_predictions
from monitoring.profile import Profile, prediction_names
from monitoring.week_sums import WeekSums, sum_week

if TYPE_CHECKING:
    from pyspark.sql import DataFrame  # type: ignore[import-not-found]

ROWS_OF_TASK = 500_000  # decisions in a worker's memory at once


def count_on_spark(
    frame: DataFrame, features: Mapping[str, str], profile: Profile, campaign: Campaign, rows: int = ROWS_OF_TASK
) -> WeekSums:
    """`sum_week` of decisions on Spark; those with one id meet in one task, of about `rows`.

    Raises: DataError: Spark cannot read the rows.
    """

    def count(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        parts = [batch for batch in batches if batch.num_rows]
        if parts:
            sums = sum_week(pa.Table.from_batches(parts).to_pandas(), features, profile, campaign)
            yield pa.RecordBatch.from_pydict({"sums": [pickle.dumps(sums)]})

    with engine.failing("Spark could not count the rows"):
        nobody = frame.limit(0).toArrow().to_pandas()
        n = frame.count()
        found = frame.repartition(1 + n // rows, "decision_id").mapInArrow(count, "sums BINARY").collect()
    parts = [pickle.loads(part.sums) for part in found]
    return reduce(WeekSums.__add__, parts) if parts else sum_week(nobody, features, profile, campaign)


def week_on_spark(
    store: Any, decisions: DataFrame, campaign: Campaign, model: NumpyModel, profile: Profile, steps: Path
) -> tuple[WeekSums, pd.DataFrame]:
    """Sums of the week, and at most SAMPLE_ROWS of its decisions with features and predictions.

    Args:
        store: an applied feature store.
        decisions: of the week.
        campaign: arms, segments, limits.
        model: the champion.
        profile: its reference profile.
        steps: folder for what is in between, on a file system that all workers share; removed.
    """
    features = {feature.name: feature.kind for feature in model.spec.features}
    with engine.failing("Spark could not read the week", engine.UNREADABLE):
        once = first_copies(decisions)
        frame = historical_features(store, once.withColumn("event_timestamp", once["decided_at"]))
        try:
            types = dict.fromkeys(prediction_names(campaign), "DOUBLE") | {"eligible_by_policy": "BOOLEAN"}
            predicted = written(
                engine.appended(frame, types, lambda rows: model_predictions(rows, campaign, model)), steps
            )
            sums = count_on_spark(predicted, features, profile, campaign)
            # the same rows whatever the order, and all of them where they are few
            drawn = predicted.selectExpr("*", "xxhash64(decision_id) AS __draw").orderBy("__draw").limit(SAMPLE_ROWS)
            sample = drawn.drop("__draw").toArrow().to_pandas()
        finally:
            shutil.rmtree(steps, ignore_errors=True)
    return sums, sample.sort_values(["decided_at", "decision_id"], ignore_index=True)
