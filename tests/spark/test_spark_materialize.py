"""The profile `spark`: its workers write into a Redis what one machine writes, also when one of them is killed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import redis
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.types import Float64
from serving_world import NOW, apply_and_materialize
from test_feature_engine import DAY, LAST, counts, make_store

from campaign import StoreError
from feature_repo import spark
from feature_repo.online import online_features
from feature_repo.store import feature_schema, open_store

pytestmark = [
    pytest.mark.redis,
    pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed"),
]


@pytest.fixture(scope="module")
def client() -> Iterator[redis.Redis]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        client = redis.Redis(port=port)
        for _ in range(500):
            try:
                client.ping()
                break
            except redis.ConnectionError:
                time.sleep(0.02)
        yield client
        process.terminate()


def address(client: redis.Redis) -> str:
    return f"127.0.0.1:{client.connection_pool.connection_kwargs['port']}"


def contents(client: redis.Redis) -> dict[Any, Any]:
    """Everything in the online store, byte by byte."""
    return {key: client.hgetall(key) for key in client.scan_iter()}


def test_profile_spark_writes_what_the_profile_redis_writes(
    world: Path, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for profile in ("redis", "spark"):
        name = f"feature_store.{profile}.yaml"
        text = (Path(__file__).parents[2] / "feature_repo" / name).read_text()
        (world / "repo" / name).write_text(text.replace("127.0.0.1:6379", address(client)))
        client.flushall()
        apply_and_materialize(world / "repo", name)
        found[profile] = contents(client)
    assert len(found["redis"]) == 400
    assert found["spark"] == found["redis"]
    users, answers = [f"u{i:07d}" for i in range(0, 400, 7)], []
    for profile in ("local", "spark"):
        monkeypatch.setenv("TACTFUL_STORE", profile)
        store = open_store()
        answers.append(online_features(store, users, 20, "home", NOW, feature_schema(store)))
    assert (answers[0].status == "ok").sum() > 50
    assert answers[1].status.tolist() == answers[0].status.tolist()
    for feature, values in answers[0].columns.items():
        np.testing.assert_array_equal(answers[1].columns[feature], values, err_msg=feature)


def workers() -> list[int]:
    """Python processes that run tasks: children of Spark's daemon."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and b"pyspark.daemon" in (folder / "cmdline").read_bytes():
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
    mine = [pid for pid, parent in parents.items() if parent in parents]
    return [pid for pid in mine if _descends(parents[pid])]


def _descends(pid: int) -> bool:
    """Whether a process was begun by this one, over however many others."""
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        if pid == os.getpid():
            return True
    return False


def kill_when(client: redis.Redis, users: int, killed: list[int]) -> None:
    """SIGKILL the workers once some users are written."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if client.dbsize() >= users:
            killed += workers()
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
            return
        time.sleep(0.002)


def one_view(folder: Path, redis_at: str) -> FeatureStore:
    """A store with one view of the Parquet files in a folder."""
    source = FileSource(name="s", path=str(folder / "*.parquet"), timestamp_field="at", created_timestamp_column="made")
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
    schema = [Field(name="count", dtype=Float64)]
    view = FeatureView(name="v", entities=[user], ttl=2 * DAY, schema=schema, source=source)
    engine = {"type": "feature_repo.spark_engine.SparkEngine"}
    return make_store(folder / "ours", engine, {"type": "redis", "connection_string": redis_at}, [view])


def test_materialize_when_a_worker_is_killed(client: redis.Redis, tmp_path: Path) -> None:
    n, killed = 20_000, []
    pq.write_table(counts(LAST - DAY, n + 50, 1.0), tmp_path / "a.parquet")
    pq.write_table(counts(LAST, n, 2.0), tmp_path / "b.parquet")
    store = one_view(tmp_path, address(client))
    client.flushall()
    spark.session().conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", "200")
    killer = Thread(target=kill_when, args=(client, 1000, killed))
    killer.start()
    try:
        store.materialize(LAST - 2 * DAY, LAST)
    finally:
        killer.join()
        spark.session().conf.unset("spark.sql.execution.arrow.maxRecordsPerBatch")
    assert killed
    assert client.dbsize() == n + 50
    users = [f"u{i}" for i in range(0, n + 50, 50)] + [f"u{n + 49}"]
    answer = store.get_online_features(["v:count"], {"user_id": users}).to_dict()["count"]
    assert answer == [2.0] * 400 + [1.0] * 2


def test_materialize_says_that_redis_does_not_answer(tmp_path: Path) -> None:
    pq.write_table(counts(LAST, 10, 2.0), tmp_path / "a.parquet")
    with socket.socket() as nobody:  # bound, and nobody listens
        nobody.bind(("127.0.0.1", 0))
        store = one_view(tmp_path, f"127.0.0.1:{nobody.getsockname()[1]}")
        with pytest.raises(StoreError, match="online store does not answer: ConnectionError"):
            store.materialize(LAST - DAY, LAST)


def test_materialize_refuses_days_of_different_columns(client: redis.Redis, tmp_path: Path) -> None:
    """Spark itself would write nulls."""
    pq.write_table(counts(LAST - DAY, 3, 2.0), tmp_path / "a.parquet")
    renamed = counts(LAST, 3, 2.0).rename_columns(["user_id", "at", "made", "n"])
    pq.write_table(renamed, tmp_path / "b.parquet")
    store = one_view(tmp_path, address(client))
    client.flushall()
    with pytest.raises(StoreError, match=r"a.parquet: columns \['count', 'n'\] are in this file or in .*b.parquet"):
        store.materialize(LAST - DAY, LAST)
    assert client.dbsize() == 0
