"""The training frame on Spark: what models/frame.py does in memory, for decision logs that do not fit there.

The rules are those of models/frame.py itself, run on all decisions of a share of the users at a time; features come
from the join of feature_repo/spark_join.py, outcomes from the SQL of models/outcomes.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from campaign import Campaign, DataError
from feature_repo import spark as engine
from feature_repo.atomic import replacing
from feature_repo.spark_join import historical_features
from feature_repo.store import feature_schema
from models.frame import COLUMNS, ORDER, decision_files, sieve
from models.outcomes import MEASURES, outcome_files, outcome_sql, outcome_values
from models.splits import split_of

if TYPE_CHECKING:
    from pyspark.sql import DataFrame  # type: ignore[import-not-found]

DECISIONS_OF_TASK = 50_000  # sieved at once; bounds the memory of a worker
SQL_TYPES = {
    "decided_at": "TIMESTAMP",
    "feature_timestamp": "TIMESTAMP",
    "arm": "BIGINT",
    "hour": "BIGINT",
    "propensity": "DOUBLE",
    "propensities": "ARRAY<DOUBLE>",
}
"""Of the columns of a decision that are no strings."""
NOT_KEPT = ("salts", "experiment")


def write_training_frame(
    store: Any,
    decisions_dir: Path,
    campaign: Campaign,
    logs_dir: Path,
    as_of: datetime,
    out: Path,
    keep: Callable[[pd.DataFrame], np.ndarray] | None = None,
    broken: Collection[date] = (),
) -> int:
    """Write `models.frame.training_frame` as files `split=<train|select|evaluate>/*.parquet`.

    Args:
        store: an applied feature store.
        decisions_dir: compacted decisions.
        campaign: arms, outcomes and windows.
        logs_dir: raw logs.
        as_of: nothing that arrived at this instant or later is used.
        out: replaced when everything is written; on a file system that all workers share.
        keep: which of the decisions that count are wanted; shape (n,), bool. Default: all.
        broken: of `models.frame.sieve`.

    Returns: number of rows.
    Raises: DataError: as `training_frame`; Spark cannot read something.
    """
    schema = feature_schema(store)
    steps = out.with_name(f".{out.name}.steps")
    with replacing(out) as aside, engine.failing(f"{out}: Spark could not make the frame", engine.UNREADABLE):
        # written down between the steps: what is on disk need not be computed again when a worker dies
        counted = written(_counted(decisions_dir, campaign, as_of, tuple(broken)), steps / "decisions")
        if counted.isEmpty():
            raise DataError(f"{decisions_dir}: no usable decision by {as_of}; `tactful train` without Spark counts why")
        if keep is not None:
            counted = _kept(counted, keep)
        entities = counted.withColumn("event_timestamp", counted["decided_at"])
        known = " OR ".join(f"{name} IS NOT NULL" for name in schema.views)
        frame = historical_features(store, entities).where(known)
        for outcome in campaign.outcome:
            y = written(_measured(counted, logs_dir, outcome, as_of), steps / outcome.name)
            frame = frame.join(y, "decision_id")
        frame.write.partitionBy("split").parquet(engine.uri(aside))
        rows: int = frame.sparkSession.read.parquet(engine.uri(aside)).count()
    shutil.rmtree(steps)
    return rows


def read_frame(folder: Path) -> pd.DataFrame:
    """The frame in memory with its `split`, its rows in the order of `models.frame.training_frame`."""
    frame = pd.read_parquet(folder).sort_values(["decided_at", "decision_id"], ignore_index=True)
    return frame.assign(split=frame["split"].astype(object))


def written(frame: DataFrame, folder: Path) -> DataFrame:
    """The frame, computed: read back from the Parquet files of a folder that is written anew."""
    frame.write.mode("overwrite").parquet(engine.uri(folder))
    return frame.sparkSession.read.parquet(engine.uri(folder))


def spark_decisions(decisions_dir: Path) -> DataFrame:
    """Every compacted decision, also one that is there twice; a column that a file has not is null."""
    types = {name: SQL_TYPES.get(name, "STRING") for name in COLUMNS}
    return engine.read_as(engine.session(), decision_files(decisions_dir), types)


def first_copies(decisions: DataFrame) -> DataFrame:
    """Each decision once: of the rows with one id the first, with the lowest arm, as `read_decisions` keeps.

    Of copies that agree in both, and in nothing else, the lowest by the other columns: the same in every run.
    """
    from pyspark.sql import functions

    names = dict.fromkeys(["decided_at", "arm", *decisions.columns])
    first = decisions.groupBy("decision_id").agg(functions.min(functions.struct(*names)).alias("copy"))
    return first.select(*(f"copy.{name}" for name in decisions.columns))


def _kept(decisions: DataFrame, keep: Callable[[pd.DataFrame], np.ndarray]) -> DataFrame:
    def kept(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield batch.filter(pa.array(keep(batch.to_pandas())))

    return decisions.mapInArrow(kept, decisions.schema)


def _counted(decisions_dir: Path, campaign: Campaign, as_of: datetime, broken: tuple[date, ...]) -> DataFrame:
    """Decisions that count, by `models.frame.sieve`; a user's decisions meet in one task."""
    decisions = spark_decisions(decisions_dir)
    tasks = max(1, decisions.count() // DECISIONS_OF_TASK)
    arms = len(campaign.arm)

    def counted(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        parts = list(batches)
        if not sum(part.num_rows for part in parts):
            return
        table = pa.Table.from_batches(parts)
        frame = table.to_pandas().sort_values(ORDER, ignore_index=True)
        kept, _ = sieve(frame.drop_duplicates("decision_id", ignore_index=True), campaign, as_of, broken)
        unknown = kept[~kept["arm"].between(0, arms - 1)]
        if len(unknown):
            first = unknown.iloc[0]
            raise DataError(f"decision {first['decision_id']}: arm {first['arm']}; campaign.toml has 0..{arms - 1}")
        kept["split"] = split_of(kept["user_id"], campaign.splits)
        schema = table.schema.append(pa.field("split", pa.string()))
        yield from pa.Table.from_pandas(kept, schema, preserve_index=False).to_batches()

    answer = decisions.selectExpr("*", "CAST(NULL AS STRING) AS split").schema
    kept = decisions.repartition(tasks, "user_id").mapInArrow(counted, answer)
    return kept.drop(*NOT_KEPT)


def _measured(counted: DataFrame, logs_dir: Path, outcome: Any, as_of: datetime) -> DataFrame:
    """decision_id and y_<name> of every decision."""
    spark = counted.sparkSession
    rows = counted.selectExpr("decision_id AS row", "user_id", "unix_micros(decided_at) AS decided_at")
    rows.createOrReplaceTempView("decisions")
    oldest = spark.sql("SELECT min(decided_at) AS oldest FROM decisions").first().oldest
    table = MEASURES[outcome.measure].table
    engine.read_log(spark, table, outcome_files(logs_dir, outcome, oldest)).createOrReplaceTempView("raw")
    _, query = engine.translate(f"CREATE TEMP TABLE y AS {outcome_sql(outcome)}")
    return spark.sql(query, outcome_values(outcome, as_of)).selectExpr(
        "row AS decision_id", f"CAST(y AS DOUBLE) AS y_{outcome.name}"
    )
