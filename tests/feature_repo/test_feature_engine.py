"""The streaming engine leaves in the online stores what Feast's own engine leaves there, byte by byte."""

from __future__ import annotations

import datetime as dt
import json
import sqlite3
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.types import (
    Array,
    Bool,
    Bytes,
    Float32,
    Float64,
    Int32,
    Int64,
    Json,
    String,
    UnixTimestamp,
)

from campaign import StoreError
from feature_repo import engine

ENGINE = {"type": "feature_repo.engine.StreamingEngine"}
DAY = timedelta(days=1)
LAST = dt.datetime(2024, 5, 3, tzinfo=UTC)  # long past
N = 700

TYPES: dict[str, tuple[Any, pa.DataType]] = {
    "double": (Float64, pa.float64()),
    "count": (Float64, pa.float64()),
    "single": (Float32, pa.float32()),
    "big": (Int64, pa.int64()),
    "small": (Int32, pa.int32()),
    "flag": (Bool, pa.bool_()),
    "text": (String, pa.string()),
    "raw": (Bytes, pa.binary()),
    "moment": (UnixTimestamp, pa.timestamp("us", tz="UTC")),
    "json": (Json, pa.string()),
    "doubles": (Array(Float64), pa.list_(pa.float64())),
    "singles": (Array(Float32), pa.list_(pa.float32())),
    "longs": (Array(Int64), pa.list_(pa.int64())),
    "ints": (Array(Int32), pa.list_(pa.int32())),
    "flags": (Array(Bool), pa.list_(pa.bool_())),
    "texts": (Array(String), pa.list_(pa.string())),
    "raws": (Array(Bytes), pa.list_(pa.binary())),
}
NEVER_NULL = ("flag", "moment", "big", "small")  # with nulls Feast reads them as floats, or stores the null as a year


def column(name: str, rng: np.random.Generator) -> list[Any]:
    """Values of one type: ordinary, zero, extreme, empty; every eleventh is null where Feast can tell it apart."""
    kind = name.rstrip("s") if name not in ("text", "texts") else "text"
    numbers = rng.normal(size=N) * 10.0 ** rng.integers(-5, 9, N)
    made: dict[str, list[Any]] = {
        "double": [0.0, -0.0, float("inf"), 5e-324, *numbers[4:]],
        "count": rng.integers(0, 9, N).astype(float).tolist(),
        "single": np.float32(numbers).tolist(),
        "big": [0, -1, 2**53, -(2**60), *rng.integers(-(10**9), 10**9, N - 4).tolist()],
        "long": rng.integers(-(10**9), 10**9, N).tolist(),
        "small": [0, -(2**31), *rng.integers(-9, 9, N - 2).tolist()],
        "int": rng.integers(-9, 9, N).tolist(),
        "flag": (rng.random(N) < 0.5).tolist(),
        "text": ["", "naïve", "a\x00b", *(f"t{i}" for i in rng.integers(0, 40, N - 3))],
        "raw": [b"\x00\xff", *(bytes([i]) for i in rng.integers(0, 255, N - 1))],
        "moment": [LAST - timedelta(seconds=int(s)) for s in rng.integers(0, 10**8, N)],
        "json": [json.dumps({"a": int(i)}) for i in rng.integers(0, 5, N)],
    }
    values = made[kind]
    if name != kind and name not in ("text",):
        return [values[i : i + int(rng.integers(1, 4))] for i in range(N - 4)] + [values[:2]] * 4
    return [None if i % 11 == 5 and name not in NEVER_NULL else value for i, value in enumerate(values)]


def typed_rows(day: dt.datetime, seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    columns = {name: pa.array(column(name, rng), kind) for name, (_, kind) in TYPES.items()}
    stamps = pa.array([day] * N, pa.timestamp("us", tz="UTC"))
    users = pa.array([f"u{i}" if i else "ü" for i in range(N)])
    return pa.table({"user_id": users, "at": stamps, "made": stamps, **columns})


def make_store(folder: Path, engine: Any, online: dict[str, Any], views: list[FeatureView]) -> FeatureStore:
    folder.mkdir(parents=True)
    config = RepoConfig(
        project="bytes",
        provider="local",
        registry=str(folder / "registry.db"),
        offline_store={"type": "duckdb"},
        online_store=online | ({"path": str(folder / "online.db")} if online["type"] == "sqlite" else {}),
        batch_engine=engine,
        materialization={"pull_latest_features": True},
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
    store.apply([user, *views])
    return store


def make_views(path: Path) -> list[FeatureView]:
    """All types, in two views of one source with different ttl."""
    source = FileSource(name="s", path=str(path), timestamp_field="at", created_timestamp_column="made")
    fields = [Field(name=name, dtype=dtype) for name, (dtype, _) in TYPES.items()]
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
    return [
        FeatureView(name="first", entities=[user], ttl=3 * DAY, schema=fields[:5], source=source),
        FeatureView(name="second", entities=[user], ttl=DAY, schema=fields[5:], source=source),
    ]


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def online(request: pytest.FixtureRequest) -> dict[str, Any]:
    if request.param == "sqlite":
        return {"type": "sqlite"}
    port = request.getfixturevalue("redis_port")
    redis.Redis(port=port).flushall()
    return {"type": "redis", "connection_string": f"127.0.0.1:{port}"}


def contents(store: FeatureStore) -> dict[Any, Any]:
    """Everything in the online store, byte by byte."""
    online: Any = store.config.online_store
    if online.type == "redis":
        client = redis.Redis(port=int(online.connection_string.split(":")[1]))
        return {key: client.hgetall(key) for key in client.scan_iter()}
    with sqlite3.connect(online.path) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {(name, *row[:2]): row[2:] for name in tables for row in db.execute(f"SELECT * FROM {name}")}


def test_same_bytes_as_feast_for_every_type(online: dict[str, Any], tmp_path: Path) -> None:
    days = [typed_rows(LAST - back * DAY, seed=back) for back in (2, 1, 0)]
    # Some users are missing on the last day, and some rows of it are corrected.
    days[2] = pa.concat_tables([days[2].slice(0, 600), days[1].slice(10, 5).set_column(1, "at", days[2]["at"][:5])])
    made = pa.array([LAST] * 600 + [LAST + timedelta(hours=1)] * 5, pa.timestamp("us", tz="UTC"))
    days[2] = days[2].set_column(2, "made", made)
    pq.write_table(pa.concat_tables(days), tmp_path / "rows.parquet")
    expected, found = [], []
    for name, kind, result in (("feast", "local", expected), ("ours", ENGINE, found)):
        store = make_store(tmp_path / name, kind, online, make_views(tmp_path / "rows.parquet"))
        store.materialize(LAST - 3 * DAY, LAST)
        refs = [f"{'first' if i < 5 else 'second'}:{feature}" for i, feature in enumerate(TYPES)]
        asked = {"user_id": ["ü", "u1", "u5", "u12", "u650", "nobody"]}
        answer = store.get_online_features(refs, asked).to_dict(include_event_timestamps=True)
        result += [contents(store), {k: repr(answer[k]) for k in sorted(answer)}]
        if online["type"] == "redis":
            redis.Redis(port=int(online["connection_string"].split(":")[1])).flushall()
    assert len(expected[0]) >= N
    assert found[0].keys() == expected[0].keys()
    assert [k for k in expected[0] if found[0][k] != expected[0][k]] == []
    assert found[1] == expected[1]


def counts(day: dt.datetime, n: int, value: float) -> pa.Table:
    stamps = pa.array([day] * n, pa.timestamp("us", tz="UTC"))
    users = pa.array([f"u{i}" for i in range(n)])
    return pa.table({"user_id": users, "at": stamps, "made": stamps, "count": pa.array([value] * n)})


@pytest.fixture
def one_view(tmp_path: Path) -> list[FeatureView]:
    (tmp_path / "days").mkdir()
    source = FileSource(
        name="s", path=str(tmp_path / "days" / "*.parquet"), timestamp_field="at", created_timestamp_column="made"
    )
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
    schema = [Field(name="count", dtype=Float64)]
    return [FeatureView(name="v", entities=[user], ttl=2 * DAY, schema=schema, source=source)]


def read(store: FeatureStore, users: list[str]) -> list[Any]:
    answer = store.get_online_features(["v:count"], {"user_id": users}).to_dict()
    return answer["count"]


def test_incremental_with_an_end_long_past(online: dict[str, Any], tmp_path: Path, one_view: list[FeatureView]) -> None:
    """Feast begins at the real clock minus the ttl, and would write nothing; here it is the end minus the ttl."""
    pq.write_table(counts(LAST - 4 * DAY, 30, 1.0), tmp_path / "days" / "old.parquet")
    pq.write_table(counts(LAST, 20, 2.0), tmp_path / "days" / "new.parquet")
    store = make_store(tmp_path / "ours", ENGINE, online, one_view)
    store.materialize_incremental(LAST)
    assert read(store, ["u0", "u19", "u25"]) == [2.0, 2.0, None]  # u25's only row has expired
    pq.write_table(counts(LAST + DAY, 10, 3.0), tmp_path / "days" / "next.parquet")
    store.materialize_incremental(LAST + DAY)
    assert read(store, ["u0", "u19"]) == [3.0, 2.0]


def test_never_goes_back_in_time_and_takes_corrections(
    online: dict[str, Any], tmp_path: Path, one_view: list[FeatureView]
) -> None:
    pq.write_table(counts(LAST, 20, 2.0), tmp_path / "days" / "new.parquet")
    store = make_store(tmp_path / "ours", ENGINE, online, one_view)
    store.materialize(LAST, LAST)
    pq.write_table(counts(LAST - DAY, 25, 1.0), tmp_path / "days" / "old.parquet")
    store.materialize(LAST - DAY, LAST - DAY)
    assert read(store, ["u0", "u22"]) == [2.0, 1.0]
    pq.write_table(counts(LAST, 20, 5.0), tmp_path / "days" / "new.parquet")
    store.materialize(LAST, LAST)
    assert read(store, ["u0", "u22"]) == [5.0, 1.0]


def test_a_store_that_forgets_is_found_out(
    online: dict[str, Any], tmp_path: Path, one_view: list[FeatureView], monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(counts(LAST, 20, 2.0), tmp_path / "days" / "new.parquet")
    store = make_store(tmp_path / "ours", ENGINE, online, one_view)
    writer = getattr(engine, f"write_{online['type']}")
    monkeypatch.setattr(engine, f"write_{online['type']}", lambda *asked: [writer(*asked)[0] - 1])
    with pytest.raises(StoreError, match="v: the online store holds 19 of the 20 users just written"):
        store.materialize(LAST, LAST)
    assert store.get_feature_view("v").materialization_intervals == []


def test_a_missing_key_is_refused(online: dict[str, Any], tmp_path: Path, one_view: list[FeatureView]) -> None:
    rows = counts(LAST, 3, 2.0)
    pq.write_table(rows.set_column(0, "user_id", pa.array(["u0", None, "u2"])), tmp_path / "days" / "new.parquet")
    store = make_store(tmp_path / "ours", ENGINE, online, one_view)
    with pytest.raises(ValueError, match="1 of 3 rows have no 'user_id'"):
        store.materialize(LAST, LAST)


def test_schema_change_between_days(online: dict[str, Any], tmp_path: Path, one_view: list[FeatureView]) -> None:
    pq.write_table(counts(LAST - DAY, 3, 2.0), tmp_path / "days" / "a.parquet")
    pq.write_table(counts(LAST, 3, 2.0).rename_columns(["user_id", "at", "made", "n"]), tmp_path / "days" / "b.parquet")
    store = make_store(tmp_path / "ours", ENGINE, online, one_view)
    with pytest.raises(StoreError, match=r"b\.parquet: columns \['count'\] are missing; it has .*; remove its"):
        store.materialize(LAST - DAY, LAST)
    assert contents(store) == {}


def test_materialize_before_any_snapshot(online: dict[str, Any], tmp_path: Path, one_view: list[FeatureView]) -> None:
    store = make_store(tmp_path / "ours", ENGINE, online, one_view)
    with pytest.raises(StoreError, match=r"days/\*\.parquet: no such file; run `tactful features`, then this again"):
        store.materialize(LAST, LAST)


def test_materialize_with_too_little_memory(tmp_path: Path, one_view: list[FeatureView]) -> None:
    pq.write_table(counts(LAST, 200_000, 2.0), tmp_path / "days" / "a.parquet")
    store = make_store(tmp_path / "ours", ENGINE | {"memory_limit": "1MB"}, {"type": "sqlite"}, one_view)
    with pytest.raises(StoreError, match=r"Out of Memory.*; raise memory_limit of batch_engine in feature_store.yaml"):
        store.materialize(LAST, LAST)


def test_several_keys(online: dict[str, Any], tmp_path: Path) -> None:
    """Two join keys, one of them a number: same bytes as Feast."""
    frame = pd.DataFrame({"user_id": ["a", "a", "b"], "item": [1, 2, 1], "count": [1.0, 2.0, 3.0], "at": [LAST] * 3})
    pq.write_table(pa.Table.from_pandas(frame.astype({"at": "datetime64[us, UTC]"})), tmp_path / "pairs.parquet")
    keys = [
        Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING),
        Entity(name="item", join_keys=["item"], value_type=ValueType.INT64),
    ]
    source = FileSource(name="s", path=str(tmp_path / "pairs.parquet"), timestamp_field="at")
    view = FeatureView(name="v", entities=keys, ttl=DAY, schema=[Field(name="count", dtype=Float64)], source=source)
    found = []
    for name, kind in (("feast", "local"), ("ours", ENGINE)):
        store = make_store(tmp_path / name, kind, online, [])
        store.apply([*keys, view])
        store.materialize(LAST, LAST)
        found.append(contents(store))
        if online["type"] == "redis":
            redis.Redis(port=int(online["connection_string"].split(":")[1])).flushall()
    assert len(found[0]) == 3
    assert found[0] == found[1]
