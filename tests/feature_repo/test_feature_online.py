"""Online features equal offline features at the same instant, on SQLite and on Redis; our own checks hold on both."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feature_oracle import midnight
from feature_world import LAST, ROOT, Repo, copy_repo

from campaign import StoreError
from feature_repo.retrieval import feature_schema, historical_features, materialize, online_features, open_store
from feature_repo.store import FeatureSchema, snapshot_file

DAY = timedelta(days=1)
NOON = midnight(LAST) + timedelta(hours=12)


@pytest.fixture(scope="session")
def sqlite_repo(repo: Repo) -> Repo:
    return repo


@pytest.fixture(scope="session")
def redis_repo(repo: Repo, redis_port: int, tmp_path_factory: pytest.TempPathFactory) -> Repo:
    path = copy_repo(tmp_path_factory.mktemp("redis-repo") / "feature_repo")
    profile = path / "feature_store.redis.yaml"
    profile.write_text(profile.read_text().replace("127.0.0.1:6379", f"127.0.0.1:{redis_port}"))
    (path / "data").mkdir()
    shutil.copy(repo.path / "data" / "registry.db", path / "data" / "registry.redis.db")
    return Repo(path, repo.data, "redis")


@pytest.fixture(scope="session", params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def served(request: pytest.FixtureRequest) -> Iterator[Repo]:
    """A feature store that has been materialized to the last day."""
    made: Repo = request.getfixturevalue(f"{request.param}_repo")
    with pytest.MonkeyPatch.context() as patch:
        enter(patch, made)
        assert materialize(open_store(made.path), LAST) == 300
    return made


def enter(patch: pytest.MonkeyPatch, made: Repo) -> None:
    patch.setenv("TACTFUL_DATA", str(made.data))
    patch.setenv("TACTFUL_STORE", made.profile)


@pytest.fixture
def store(served: Repo, monkeypatch: pytest.MonkeyPatch):
    enter(monkeypatch, served)
    return open_store(served.path)


@pytest.fixture
def users(served: Repo) -> list[str]:
    path = served.data / "features" / f"date={LAST}" / "snapshot.parquet"
    return pq.read_table(path, partitioning=None)["user_id"].to_pylist()


INSTANTS = [
    NOON,
    midnight(LAST),
    midnight(LAST + 3 * DAY),  # to the microsecond, the last moment of the 3-day views
    midnight(LAST + 3 * DAY) + timedelta(microseconds=1),
    midnight(LAST + 14 * DAY),
    midnight(LAST + 20 * DAY),
]
CASES = [(now, hour, surface) for now in INSTANTS for hour, surface in ((20, "home"), (None, None))]


@pytest.fixture(scope="module")
def asked(repo: Repo) -> list[str]:
    snapshot = pq.read_table(repo.data / "features" / f"date={LAST}" / "snapshot.parquet", partitioning=None)
    return [*snapshot["user_id"].to_pylist()[::3], "nobody"]


@pytest.fixture(scope="module")
def offline(repo: Repo, asked: list[str]) -> pd.DataFrame:
    """All cases in one frame, one after another."""
    with pytest.MonkeyPatch.context() as patch:
        enter(patch, repo)
        parts = [
            pd.DataFrame({"user_id": asked, "event_timestamp": pd.Timestamp(now), "hour": hour, "surface": surface})
            for now, hour, surface in CASES
        ]
        parts = [p.assign(hour=p["hour"].astype("float64"), surface=p["surface"].astype(object)) for p in parts]
        return historical_features(open_store(repo.path), pd.concat(parts, ignore_index=True))


@pytest.mark.parametrize("case", range(len(CASES)))
def test_online_features_equal_offline(case: int, store, asked: list[str], offline: pd.DataFrame) -> None:
    schema = feature_schema(store)
    now, hour, surface = CASES[case]
    online = online_features(store, asked, hour, surface, now, schema)
    wanted = offline.iloc[case * len(asked) : (case + 1) * len(asked)]
    assert tuple(online.columns) == schema.names
    for name in schema.names:
        assert online.columns[name].dtype == (object if schema.types[name] == "string" else np.float64)
        np.testing.assert_array_equal(online.columns[name], wanted[name].to_numpy(), err_msg=name)


@pytest.mark.parametrize(
    ("age", "status"),
    [
        (timedelta(0), "ok"),
        (3 * DAY, "ok"),
        (3 * DAY + timedelta(microseconds=1), "stale_features"),
        (300 * DAY, "stale_features"),
    ],
)
def test_online_features_status(store, users: list[str], age: timedelta, status: str) -> None:
    found = online_features(store, ["nobody", users[0]], 20, "home", midnight(LAST) + age, feature_schema(store))
    assert found.status.tolist() == ["unknown_user", status]
    assert np.isnat(found.feature_timestamp[0])
    assert found.feature_timestamp[1] == np.datetime64(str(LAST), "us")


def test_online_features_expire_view_by_view(store, users: list[str]) -> None:
    found = online_features(store, users[:5], 20, "home", midnight(LAST) + 5 * DAY, feature_schema(store))
    assert all(v is not None for v in found.columns["plan"])
    assert np.isnan(found.columns["sessions_28d"]).all()
    assert set(found.status) == {"stale_features"}


def test_online_features_of_a_user_without_events(store, users: list[str], oracle) -> None:
    silent = next(
        u for u in users if not any(oracle.rows[log].get(u) for log in ("sessions", "messages", "subscriptions"))
    )
    found = online_features(store, [silent], 20, "home", NOON, feature_schema(store))
    assert found.status.tolist() == ["ok"]
    assert found.columns["sessions_28d"].tolist() == [0.0]
    assert np.isnan(found.columns["days_since_session"]).all()


def test_online_features_keep_order_and_repeats(store, users: list[str]) -> None:
    schema = feature_schema(store)
    asked = [users[3], users[1], users[3], "nobody", users[2]]
    together = online_features(store, asked, 20, "home", NOON, schema)
    for row, user in enumerate(asked):
        alone = online_features(store, [user], 20, "home", NOON, schema)
        for name in schema.names:
            np.testing.assert_array_equal(together.columns[name][[row]], alone.columns[name], err_msg=name)


_PRINT = """
import json, sys
from datetime import datetime
from feature_repo.retrieval import feature_schema, online_features, open_store
store = open_store(sys.argv[1])
schema = feature_schema(store)
found = online_features(store, json.loads(sys.argv[3]), 20, "home", datetime.fromisoformat(sys.argv[2]), schema)
print("ANSWER" + json.dumps([schema.hash, {n: [repr(v) for v in c] for n, c in found.columns.items()}]))
"""


def test_online_features_do_not_depend_on_the_hash_seed(repo: Repo, served: Repo, store, users: list[str]) -> None:
    """Feast's own order does; this process has one seed, the other gets another."""
    if served.profile != "local":
        pytest.skip("once is enough")
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    words = [sys.executable, "-c", _PRINT, str(served.path), NOON.isoformat(), json.dumps(users[:20])]
    env = os.environ | {"PYTHONHASHSEED": seed}
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    other = json.loads(done.stdout.split("ANSWER")[1])
    schema = feature_schema(store)
    here = online_features(store, users[:20], 20, "home", NOON, schema).columns
    assert other == [schema.hash, {n: [repr(v) for v in c] for n, c in here.items()}]
    assert list(other[1]) == list(schema.names)


def test_online_store_that_is_gone(store, users: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    schema = feature_schema(store)

    def gone(**_: object) -> None:
        raise ConnectionError("connection refused")

    monkeypatch.setattr(store, "get_online_features", gone)
    with pytest.raises(StoreError, match="online store does not answer: ConnectionError: connection refused"):
        online_features(store, users[:1], 20, "home", NOON, schema)


@pytest.mark.redis
def test_redis_that_is_down(redis_repo: Repo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    down = Repo(copy_repo(tmp_path / "feature_repo"), redis_repo.data, "redis")
    profile = down.path / "feature_store.redis.yaml"
    profile.write_text(profile.read_text().replace("127.0.0.1:6379", "127.0.0.1:1"))
    shutil.copytree(redis_repo.path / "data", down.path / "data")
    enter(monkeypatch, down)
    store = open_store(down.path)
    with pytest.raises(StoreError, match="online store does not answer: ConnectionError"):
        online_features(store, ["u1"], 20, "home", NOON, feature_schema(store))


def test_materialize_writes_a_day_that_was_built_again(store, served: Repo, users: list[str]) -> None:
    """Same event time, other values: Feast's Redis store would keep the old ones."""
    path, schema = snapshot_file(store, LAST), feature_schema(store)
    before = path.read_bytes()
    column = pq.read_table(path, partitioning=None).schema.get_field_index("minutes_90d")
    try:
        changed = pq.read_table(path, partitioning=None)
        pq.write_table(changed.set_column(column, "minutes_90d", pa.array([1234.5] * len(changed))), path)
        materialize(store, LAST)
        found = online_features(store, users[:3], 20, "home", NOON, schema).columns["minutes_90d"]
        assert found.tolist() == [1234.5] * 3
    finally:
        path.write_bytes(before)
        materialize(store, LAST)


def test_materialize_reads_back(store, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that reports success and writes too little is found out."""
    monkeypatch.setattr("feature_repo.store.snapshot_file", lambda store, day: snapshot_file(store, LAST))
    monkeypatch.setattr(store, "materialize", lambda *_: None)
    with pytest.raises(StoreError, match=r"200 of 200 users lack .* after materializing, for example 'u00000'"):
        materialize(store, LAST + DAY)


def test_open_store_says_what_is_missing(repo: Repo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TACTFUL_DATA", str(tmp_path))
    with pytest.raises(
        StoreError, match=rf"applied for {repo.data}/features.*, but data is now in {tmp_path}; run .* again"
    ):
        open_store(repo.path)
    with pytest.raises(StoreError, match=r"nothing is applied yet; run `feast -c .*/feature_repo apply`"):
        open_store(copy_repo(tmp_path / "feature_repo"))
    monkeypatch.setenv("TACTFUL_STORE", "cassandra")
    with pytest.raises(StoreError, match=r"feature_store.cassandra.yaml: no such profile; .* one of local, redis"):
        open_store(repo.path)


def test_schema_of_an_unknown_service(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TACTFUL_DATA", str(repo.data))
    with pytest.raises(StoreError, match="no feature service 'uplift_v9'; found uplift_v1"):
        feature_schema(open_store(repo.path), "uplift_v9")
    assert isinstance(feature_schema(open_store(repo.path)), FeatureSchema)
