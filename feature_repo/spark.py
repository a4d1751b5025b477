"""The snapshots on Spark: the SQL of aggregates.py rewritten for Spark, writing the files that DuckDB writes.

There is one definition of the features: sqlglot translates the dialect, and `translate` what it does not know of Spark.
Values are the same: sums are over whole numbers, and a day is a UTC day because the session's zone is UTC.

Each file is written by one task, and a day is put in place by the driver with one rename, as on one machine. So the
data root must be a file system that all workers share.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from functools import reduce
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import sqlglot
from sqlglot import exp
from sqlglot.transforms import eliminate_qualify

from campaign import DataError, StoreError
from feature_repo import aggregates
from feature_repo.contracts import LOGS
from feature_repo.store import parquet_columns

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession  # type: ignore[import-not-found]

UNREADABLE = "`tactful check` names a log file that cannot be read; then "
CHUNK_DAYS = 32  # computed by one job; bounds what Spark spills
SQL_TYPES = {"string": "STRING", "timestamp": "TIMESTAMP", "integer": "BIGINT", "float": "DOUBLE"}

_ARROW_TYPES = {"BIGINT": pa.int64, "DOUBLE": pa.float64, "BOOLEAN": pa.bool_, "STRING": pa.string}

DEFAULTS = {
    "spark.ui.enabled": "false",
}
"""Where spark-submit or spark-defaults.conf say nothing."""

LOCAL = "local[*,4]"  # a worker for each core; a task is tried four times, so a killed worker costs time only
ON_ONE_MACHINE = {
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
    "spark.sql.shuffle.partitions": "4",  # the default, 200, is minutes of starting tasks
}

REQUIRED = {
    "spark.ui.showConsoleProgress": "false",  # else spark-submit sets it for a shell, and logs are full of bars
    "spark.sql.session.timeZone": "UTC",  # else timestamps come back in the machine's zone
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",  # the default, INT96, reads as nanoseconds
    "spark.pyspark.python": sys.executable,  # else workers take the system's Python, which has none of our packages
}


def session() -> SparkSession:
    """The Spark session of this process, begun on first use.

    Raises:
        StoreError: PySpark or Java is not installed, or Spark does not start.
    """
    try:
        from py4j.protocol import Py4JError  # type: ignore[import-not-found]
        from pyspark import SparkConf, SparkContext  # type: ignore[import-not-found]
        from pyspark.errors import PySparkException  # type: ignore[import-not-found]
        from pyspark.sql import SparkSession
    except ImportError:
        raise StoreError("PySpark is not installed; run `make .venv-spark`, and use .venv-spark/bin/python") from None
    if not (shutil.which("java") or os.environ.get("JAVA_HOME")):
        raise StoreError("Spark needs Java 17, and there is none; run `apt-get install openjdk-17-jre-headless`")
    os.environ["PYSPARK_PYTHON"] = sys.executable
    master = "this machine"
    try:
        SparkContext.getSystemProperty("spark.master")  # begins the JVM; before it, SparkConf knows nobody's settings
        conf = SparkConf()
        master = str(conf.get("spark.master")).replace("local[*]", LOCAL)  # what spark-submit says if nobody said
        local = ON_ONE_MACHINE if master.startswith("local") else {}
        for name, value in (DEFAULTS | local).items():
            conf.setIfMissing(name, value)
        conf.setMaster(master).setAll(list(REQUIRED.items()))
        spark = SparkSession.builder.config(conf=conf).getOrCreate()
    except (PySparkException, Py4JError, OSError) as error:
        advice = "is the master right that spark-defaults.conf or PYSPARK_SUBMIT_ARGS name, and does it answer?"
        raise StoreError(f"Spark on {master} does not start: {_reason(error)}; {advice} Its log is above") from None
    if spark.conf.get("spark.sql.session.timeZone") != "UTC":  # a session of somebody else, begun before
        spark.conf.set("spark.sql.session.timeZone", "UTC")
    return spark


def build(
    logs: dict[str, list[str]], chunks: list[list[date]], first_ever: date, building: Path, done: Callable[[date], None]
) -> None:
    """Write the snapshots of all days into `building`, and say `done` when a day's folder is whole.

    Args:
        logs: Parquet files of each log.
        chunks: the days, in runs of consecutive days.
        first_ever: the first day that can have a snapshot.
        building: an empty folder on a file system that the workers share.
        done: called with each day in order.
    """
    spark = session()
    told = (f"{building.parent}: Spark could not build the snapshots", UNREADABLE)
    with failing(*told):
        for log, files in logs.items():
            read_log(spark, log, files).createOrReplaceTempView(f"raw_{log}")
        for sql in _DAILY:
            _table(spark, building, sql)
    for chunk in chunks:
        span = {"first": chunk[0], "last": chunk[-1], "first_ever": first_ever}
        with failing(*told):
            _table(spark, building, aggregates.ASOF, span)
            _table(spark, building, aggregates.FEATURES)
            _write(spark, building / "parts")
        for day in chunk:
            _collect(spark, building, day)
            done(day)
        for name in ("target", "features", "parts"):
            shutil.rmtree(building / name)


_DAILY = (
    aggregates.USERS,
    aggregates.PROFILES,
    aggregates.DAILY_SESSIONS,
    aggregates.DAILY_MESSAGES,
    aggregates.DAILY_SUBSCRIPTIONS,
)


def uri(path: Path | str) -> str:
    """How Spark is told a path of the file system; `Path.as_uri` writes = and spaces in a way it takes literally."""
    return f"file://{Path(path).absolute()}"


@contextmanager
def failing(told: str, advice: str = "") -> Iterator[None]:
    """Turn what Spark says of a failed job into our error, beginning with `told`; nothing is in place by then."""
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    try:
        yield
    except (PySparkException, Py4JError, OSError, EOFError) as error:  # the last two: Spark is gone, or a disk is full
        again = "run the same command again: what is finished is kept"
        raise DataError(f"{told}: {_reason(error)}; {advice}{again}") from None


def _reason(error: Exception) -> str:
    """The line of an error that says why: our own error in a worker, else the innermost cause, else the first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    ours = [line.partition("Error: ")[2] for line in lines if line.startswith("campaign.")]
    causes = [line.removeprefix(": ") for line in lines if line.startswith(("Caused by", ": "))]
    return ours[0] if ours else (causes or lines or [type(error).__name__])[-1 if causes else 0][:500]


def appended(frame: DataFrame, types: Mapping[str, str], compute: Callable[[pd.DataFrame], pd.DataFrame]) -> DataFrame:
    """The rows with more columns: `types` in SQL, `compute` on batches of rows gives their values."""

    def append(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            if batch.num_rows:
                columns = compute(batch.to_pandas())
                for name, kind in types.items():
                    batch = batch.append_column(name, pa.array(columns[name], _ARROW_TYPES[kind]()))
                yield batch

    nulls = (f"CAST(NULL AS {kind}) AS {name}" for name, kind in types.items())
    return frame.mapInArrow(append, frame.selectExpr("*", *nulls).schema)


def read_files(spark: SparkSession, pattern: str) -> DataFrame:
    """Parquet files that have the same columns.

    Spark takes the columns of one file, and without a word gives nulls where another lacks them.

    Raises: StoreError: there is no file, one is not whole, or columns are not those of the newest one.
    """
    files = sorted(glob(pattern))
    if not files:
        raise StoreError(f"{pattern}: no such file; run `tactful features`")
    newest = set(parquet_columns(files[-1]))
    for file in files:
        other = newest ^ set(parquet_columns(file))
        if other:
            raise StoreError(
                f"{file}: columns {sorted(other)} are in this file or in {files[-1]}, not in both; files of another "
                "version: move them away, and build them again (`tactful features`)"
            )
    return spark.read.parquet(*map(uri, files))


def read_log(spark: SparkSession, log: str, files: list[str]) -> DataFrame:
    """Rows of a log: the columns of the contract, in the types of aggregates.py; absent ones are null."""
    return read_as(spark, files, {name: SQL_TYPES[column.kind] for name, column in LOGS[log].columns.items()})


def read_as(spark: SparkSession, files: Sequence[str], types: Mapping[str, str]) -> DataFrame:
    """Rows of Parquet files: columns in these SQL types, as DuckDB casts them; absent ones are null.

    Spark itself reads neither a column without any value (pyarrow's type null) nor UINT64 as the type that is asked
    for, so files that have such columns are read apart.
    """
    alike: dict[str, list[str]] = {}
    for file in files:
        alike.setdefault(_readable(file, types), []).append(uri(file))
    frames = [spark.read.schema(schema).parquet(*paths) for schema, paths in alike.items()]
    typed = [
        frame.selectExpr(
            *(f"CAST({name if name in frame.columns else 'NULL'} AS {kind}) AS {name}" for name, kind in types.items())
        )
        for frame in frames
    ]
    return reduce(lambda one, other: one.unionAll(other), typed) if typed else spark.createDataFrame([], _ddl(types))


def _readable(file: str, types: Mapping[str, str]) -> str:
    """The schema to read a file with; what is wrong with one that has no footer, Spark says."""
    try:
        stored = {field.name: field.type for field in pq.read_schema(file)}
    except (pa.ArrowException, OSError):
        stored = {}
    decimals = {name: "DECIMAL(20,0)" for name in types if stored.get(name) == pa.uint64()}
    return _ddl({name: kind for name, kind in {**types, **decimals}.items() if stored.get(name) != pa.null()})


def _ddl(types: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in types.items())


def _table(spark: SparkSession, building: Path, sql: str, values: dict[str, Any] | None = None) -> None:
    """Run one CREATE TABLE of aggregates.py.

    Written down between the steps: kept in memory, the plan of the last step would hold all steps before it, and Spark
    plan for minutes; and what is on disk need not be computed again when a worker dies.
    """
    name, query = translate(sql)
    folder = uri(building / name)
    spark.sql(query, values or {}).write.parquet(folder)
    spark.read.parquet(folder).createOrReplaceTempView(name)


def translate(sql: str) -> tuple[str, str]:
    """Name and query of a `CREATE TABLE name AS query` of DuckDB, the query in Spark's SQL.

    Beyond what sqlglot knows: MATERIALIZED and casts around unnest are dropped, epoch_us and TIMESTAMP get Spark's
    names, QUALIFY does not leave its helper column behind. A number for each row of a whole table would be given by
    one worker; the columns it is ordered by do as well, so Spark gets those.
    """
    create = sqlglot.parse_one(sql, read="duckdb")
    query: Any = create.expression
    for cte in query.find_all(exp.CTE):
        cte.set("materialized", None)
    for call in query.find_all(exp.Anonymous):
        if call.name.lower() == "epoch_us":
            call.set("this", "unix_micros")
    for kind in query.find_all(exp.DataType):
        if kind.is_type("TIMESTAMPNTZ"):  # DuckDB's TIMESTAMP; here the session's zone is UTC
            kind.replace(exp.DataType.build("TIMESTAMPTZ"))
    for cast in list(query.find_all(exp.Cast)):
        if isinstance(cast.this, exp.Explode):
            cast.replace(cast.this)
        elif isinstance(cast.this, exp.Window) and not cast.this.args.get("partition_by"):
            keys = [ordered.this for ordered in cast.this.args["order"].expressions]
            cast.replace(keys[0] if len(keys) == 1 else exp.func("struct", *keys))
    for select in list(query.find_all(exp.Select)):
        if select.args.get("qualify"):
            whole: Any = eliminate_qualify(select.copy())
            helper = whole.args["where"].this.this.name
            select.replace(whole.select(exp.Star(except_=[exp.column(helper)]), append=False))
    return create.this.name, create.expression.sql(dialect="spark")  # not query: the whole of it may be replaced


def _write(spark: SparkSession, folder: Path) -> None:
    """Parquet files known=D/file=<snapshot|corrections>/part-*, ordered by user: all of a file in one task."""
    frame = spark.table("features").selectExpr("*", "if(day = known, 'snapshot', 'corrections') AS file")
    parts = frame.repartition("known", "file").sortWithinPartitions("known", "file", "row").drop("row", "day")
    parts.write.partitionBy("known", "file").parquet(uri(folder))


def _collect(spark: SparkSession, building: Path, day: date) -> None:
    """The folder of one day from the parts written for it; a snapshot without users is a file without rows."""
    made = building / f"date={day}"
    made.mkdir()
    for name in ("snapshot", "corrections"):
        parts = sorted((building / "parts" / f"known={day}" / f"file={name}").glob("part-*.parquet"))
        if len(parts) > 1:
            raise StoreError(f"{parts[0].parent}: expected 1 file, Spark wrote {len(parts)}; build the day again")
        if parts:
            os.rename(parts[0], made / f"{name}.parquet")
        elif name == "snapshot":
            from pyspark.sql.pandas.types import to_arrow_schema  # type: ignore[import-not-found]

            columns = spark.table("features").drop("row", "day", "known").schema
            pq.write_table(to_arrow_schema(columns, timezone="UTC").empty_table(), made / f"{name}.parquet")
