"""Snapshots of Spark are those of DuckDB, value by value, on a machine that is not in UTC.

The logs have late and repeated events, ties, profiles that arrive late and users without events. Run by
`make test-spark`.
"""

from __future__ import annotations

import shutil
import time
from datetime import date, timedelta
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feature_logs import START, make_logs, write_logs

from campaign import DataError, StoreError
from feature_repo import spark
from feature_repo.contracts import ingest
from feature_repo.snapshots import build_snapshots

DAYS = 8
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def logs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "logs"
    write_logs(make_logs(users=120, days=DAYS), folder, DAYS)
    retype(folder / "users" / f"date={START + DAY}", "age_band", pa.null())  # as pandas writes a day without any
    retype(folder / "sessions" / f"date={START + DAY}", "tracks", pa.uint64())
    assert ingest(folder, folder.parent / "quarantine") == []
    return folder


def retype(folder: Path, column: str, kind: pa.DataType) -> None:
    """Write the file of a folder again, a column in another type that the contract takes."""
    file = folder / "part-0.parquet"
    table = pq.read_table(file, partitioning=None)
    values = pa.nulls(len(table)) if pa.types.is_null(kind) else table[column].cast(kind)
    pq.write_table(table.set_column(table.schema.get_field_index(column), column, values), file)


@pytest.fixture(scope="module")
def local(logs_dir: Path) -> Path:
    build_snapshots(logs_dir, logs_dir.parent / "local")
    return logs_dir.parent / "local"


@pytest.fixture(scope="module")
def distributed(logs_dir: Path) -> Path:
    """Built in two runs, the second with the corrections of days of the first."""
    folder = logs_dir.parent / "distributed"
    first = build_snapshots(logs_dir, folder, START + 5 * DAY, engine="spark")
    assert first == [START + d * DAY for d in range(1, 6)]
    build_snapshots(logs_dir, folder, engine="spark")
    return folder


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.glob("*/*.parquet"))


def test_spark_writes_the_same_files(local: Path, distributed: Path) -> None:
    assert files(distributed) == files(local)
    assert sum("corrections" in name for name in files(local)) > 3
    assert not (distributed / ".building").exists()


def test_spark_writes_the_same_values(local: Path, distributed: Path) -> None:
    nulls = 0
    for name in files(local):
        wanted, found = pq.read_table(local / name), pq.read_table(distributed / name)
        # DuckDB also writes down which columns happen to have no null in this file
        assert dict(zip(found.schema.names, found.schema.types, strict=True)) == dict(
            zip(wanted.schema.names, wanted.schema.types, strict=True)
        ), name
        assert found.column_names == wanted.column_names, name
        for column in wanted.column_names:
            where = f"{name}: {column}"
            nulls += wanted[column].null_count
            if not pa.types.is_floating(wanted.schema.field(column).type):
                assert found[column].to_pylist() == wanted[column].to_pylist(), where
                continue
            assert found[column].is_null().to_pylist() == wanted[column].is_null().to_pylist(), where
            # the last bit of a division may differ
            np.testing.assert_allclose(found[column].to_numpy(), wanted[column].to_numpy(), rtol=1e-12, err_msg=where)
    assert nulls > 500  # rates over nothing and unknown age bands


def test_spark_builds_only_what_is_missing(logs_dir: Path, distributed: Path) -> None:
    assert build_snapshots(logs_dir, distributed, engine="spark") == []


def test_spark_says_which_file_is_broken_and_keeps_finished_days(logs_dir: Path, local: Path, tmp_path: Path) -> None:
    shutil.copytree(logs_dir, tmp_path / "logs")
    shutil.copytree(local, tmp_path / "features")
    last = START + DAYS * DAY
    shutil.rmtree(tmp_path / "features" / f"date={last}")
    broken = next((tmp_path / "logs" / "sessions" / f"date={last - DAY}").glob("*.parquet"))
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(DataError, match=r"Spark could not build the snapshots: .*what is finished is kept"):
        build_snapshots(tmp_path / "logs", tmp_path / "features", last, only=[last], engine="spark")
    assert not (tmp_path / "features" / f"date={last}").exists()
    assert (tmp_path / "features" / f"date={last - DAY}" / "snapshot.parquet").exists()


def test_read_as_takes_what_duckdb_takes(tmp_path: Path) -> None:
    """Files of different types, without a column, or with nothing but nulls in it."""
    columns = [
        {"id": ["a"], "n": pa.array([3], pa.uint64()), "s": pa.nulls(1)},
        {"id": ["b"], "n": pa.array([4], pa.int32()), "s": ["x"]},
        {"id": ["c"], "s": pa.array(["y"]).dictionary_encode()},
        {"id": ["d"], "n": pa.array([2**63 - 1], pa.uint64()), "s": pa.nulls(1)},
    ]
    for i, table in enumerate(columns):
        pq.write_table(pa.table(table), tmp_path / f"{i}.parquet")
    files, types = [str(file) for file in tmp_path.glob("*.parquet")], {"s": "STRING", "n": "BIGINT", "id": "STRING"}
    found = spark.read_as(spark.session(), files, types)
    told = duckdb.sql(
        "SELECT s::VARCHAR AS s, n::BIGINT AS n, id::VARCHAR AS id "
        f"FROM read_parquet('{tmp_path}/*.parquet', union_by_name=true) ORDER BY id"
    )
    assert found.dtypes == [("s", "string"), ("n", "bigint"), ("id", "string")]
    assert sorted(map(tuple, found.collect()), key=lambda row: row[2]) == told.fetchall()
    assert told.fetchall() == [(None, 3, "a"), ("x", 4, "b"), ("y", None, "c"), (None, 2**63 - 1, "d")]


def test_read_files_names_a_file_that_is_not_whole(local: Path, tmp_path: Path) -> None:
    whole = (local / files(local)[0]).read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole)
    (tmp_path / "b.parquet").write_bytes(whole[:1000])
    with pytest.raises(StoreError, match=r"b\.parquet: not a whole Parquet file \(.*\); remove its folder"):
        spark.read_files(spark.session(), f"{tmp_path}/*.parquet")


def test_translate_leaves_nothing_of_duckdb() -> None:
    name, query = spark.translate(
        "CREATE TABLE t AS WITH c AS MATERIALIZED (SELECT 1 AS a) SELECT *, epoch_us(a::TIMESTAMP) AS us FROM c "
        "QUALIFY row_number() OVER (PARTITION BY a ORDER BY b) = 1"
    )
    assert name == "t"
    assert "EXCEPT (_w)" in query
    assert "UNIX_MICROS(CAST(a AS TIMESTAMP))" in query.upper().replace("A AS", "a AS")
    for foreign in ("MATERIALIZED", "QUALIFY", "EPOCH_US", "TIMESTAMP_NTZ"):
        assert foreign not in query.upper()


def test_session_is_in_utc_whatever_the_machine() -> None:
    assert time.tzname[0] == "EST"
    rows = spark.session().sql("SELECT CAST(TIMESTAMP '2026-03-01 00:00:00' AS LONG) AS seconds").collect()
    assert rows[0].seconds == (date(2026, 3, 1) - date(1970, 1, 1)).days * 86_400
