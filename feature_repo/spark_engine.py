"""Feast's batch engine of the profile `spark`: the newest rows are found on Spark, and its workers write them to Redis.

What is written, and how it is counted and read back, is the code of engine.py. A task that dies is begun again and
writes the same values over what it had written; only what every attempt of a task counted is reported.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import pyarrow as pa
from feast.infra.common.materialization_job import MaterializationTask
from feast.infra.online_stores.redis import RedisOnlineStore

from campaign import StoreError
from feature_repo import spark as spark_session
from feature_repo.engine import (
    BATCH_ROWS,
    LAST_SQL,
    StreamingEngine,
    StreamingEngineConfig,
    newest_sql,
    wanted_of,
    warn_of_expired,
    warn_of_nothing,
    window_sql,
    write,
)
from feature_repo.store import answering


class SparkEngineConfig(StreamingEngineConfig):
    """`batch_engine` of feature_store.spark.yaml."""

    type: Literal["feature_repo.spark_engine.SparkEngine"] = "feature_repo.spark_engine.SparkEngine"  # type: ignore[assignment]


class SparkEngine(StreamingEngine):
    """Materializes all views of a source together, where Spark's workers are; SQLite is written by this process."""

    def _stream(self, tasks: list[MaterializationTask]) -> Exception | None:
        if not isinstance(self.online_store, RedisOnlineStore):
            return super()._stream(tasks)
        source: Any = tasks[0].feature_view.batch_source
        try:
            with spark_session.failing(f"{source.path}: Spark could not materialize it"):
                self._write_on_spark(tasks, source)
        # The contract of a Feast engine: an error is part of the job, and Feast raises it.
        except Exception as error:  # noqa: BLE001
            return error
        return None

    def _write_on_spark(self, tasks: list[MaterializationTask], source: Any) -> None:
        from pyspark.sql import Observation, functions  # type: ignore[import-not-found]

        config, wanted = self.repo_config, wanted_of(tasks)

        def write_all(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            store, rows = RedisOnlineStore(), 0
            for batch in batches:
                for start in range(0, batch.num_rows, BATCH_ROWS):
                    write(store, config, batch.slice(start, BATCH_ROWS), wanted)
                rows += batch.num_rows
            yield pa.RecordBatch.from_pydict({"rows": [rows]})

        with answering():  # said at once, not after four attempts of every task
            self.online_store._get_client(config.online_store).ping()  # type: ignore[attr-defined]
        spark = spark_session.session()
        spark_session.read_files(spark, source.path).createOrReplaceTempView("files")
        spark.sql(_translated(window_sql(tasks, "files"))).createOrReplaceTempView("in_window")
        last = spark.sql(f"SELECT unix_micros(({LAST_SQL})) AS last").first().last
        if last is None:
            warn_of_nothing(tasks)
            return
        warn_of_expired(tasks, last)
        for query in newest_sql(tasks):
            rows, found = spark.sql(_translated(query).replace(":last", f"timestamp_micros({last})")), Observation()
            sent = rows.observe(found, functions.count(functions.lit(1)).alias("rows"))
            written = sent.mapInArrow(write_all, "rows BIGINT").collect()
            if sum(part.rows for part in written) != found.get["rows"]:
                raise StoreError(f"{source.path}: the workers wrote fewer rows than there are; materialize again")


def _translated(query: str) -> str:
    return spark_session.translate(f"CREATE TABLE q AS {query}")[1]
