"""The ASOF join gives what Feast's own DuckDB store gives, on small tables full of ties, late rows and expiry edges."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.types import Float64, Int64, String
from feature_world import ROOT

OURS = "feature_repo.offline.AsofDuckDBOfflineStore"
START = pd.Timestamp("2026-03-25", tz="UTC")  # the clocks of Europe change on the 29th
HOUR = pd.Timedelta("1h")
Stores = tuple[FeatureStore, FeatureStore, int]  # Feast's, ours, and the seed of their rows


def hours(values: np.ndarray) -> pd.DatetimeIndex:
    return pd.DatetimeIndex(START + pd.to_timedelta(values, unit="h")).as_unit("us")


def source_rows(seed: int) -> pd.DataFrame:
    """400 rows of 12 users on a grid of 60 hours: repeated events, corrections, late rows, nulls; no full ties."""
    rng = np.random.default_rng(seed)
    event, late = rng.integers(0, 60, 400), rng.choice([0, 0, 1, 5, 30], 400)
    frame = pd.DataFrame(
        {
            "user": [f"u{u}" for u in rng.integers(0, 12, 400)],
            "item": rng.integers(0, 2, 400),
            "at": hours(event),
            "made": hours(event + late - rng.choice([0, 3], 400)),
            "x": np.where(rng.random(400) < 0.2, np.nan, rng.normal(size=400)),
            "n": rng.integers(0, 1000, 400),
            "s": rng.choice(np.array(["a", "b", None], dtype=object), 400),
        }
    )
    # Of rows equal in key, event and creation Feast picks any.
    return frame.drop_duplicates(["user", "item", "at", "made"])


def entity_rows(seed: int) -> pd.DataFrame:
    """500 rows: on the grid, a microsecond beside it, users without rows, repeated rows."""
    rng = np.random.default_rng(seed + 100)
    when = hours(rng.integers(-5, 90, 500)) + pd.to_timedelta(rng.choice([-1, 0, 0, 0, 1], 500), unit="us")
    frame = pd.DataFrame(
        {
            "row": np.arange(500),
            "user": [f"u{u}" for u in rng.integers(0, 14, 500)],
            "item": rng.integers(0, 3, 500),
            "event_timestamp": pd.DatetimeIndex(when).as_unit("us"),
            "friend": [f"u{u}" for u in rng.integers(0, 14, 500)],
        }
    )
    return pd.concat([frame, frame.tail(30).assign(row=np.arange(500, 530))], ignore_index=True)


def make_store(folder: Path, offline: str, seed: int) -> FeatureStore:
    """Two sources: keyed by user (made unique) and by user and item; four views, two of them of one source."""
    folder.mkdir(parents=True)
    rows = source_rows(seed)
    rows.to_parquet(folder / "both.parquet")
    by_user = rows.drop_duplicates(["user", "at", "made"])
    by_user.rename(columns={"x": "x_raw"}).to_parquet(folder / "user.parquet")
    by_user.assign(at=by_user["at"].dt.tz_localize(None)).drop(columns="made").drop_duplicates(
        ["user", "at"]
    ).to_parquet(folder / "naive.parquet")
    config = RepoConfig(
        project="asof",
        provider="local",
        registry=str(folder / "registry.db"),
        offline_store={"type": offline},
        online_store={"type": "sqlite", "path": str(folder / "online.db")},
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    user = Entity(name="user", join_keys=["user"], value_type=ValueType.STRING)
    item = Entity(name="item", join_keys=["item"], value_type=ValueType.INT64)
    times = {"timestamp_field": "at", "created_timestamp_column": "made"}
    mapped = FileSource(name="u", path=str(folder / "user.parquet"), field_mapping={"x_raw": "x"}, **times)
    both = FileSource(name="b", path=str(folder / "both.parquet"), **times)
    naive = FileSource(name="n", path=str(folder / "naive.parquet"), timestamp_field="at")
    x, n, s = Field(name="x", dtype=Float64), Field(name="n", dtype=Int64), Field(name="s", dtype=String)
    views = [
        FeatureView(name="short", entities=[user], ttl=timedelta(hours=4), schema=[x, s], source=mapped),
        FeatureView(name="long", entities=[user], ttl=timedelta(hours=24), schema=[n], source=mapped),
        FeatureView(name="pair", entities=[item, user], ttl=timedelta(hours=10), schema=[x, n, s], source=both),
        FeatureView(name="ever", entities=[user], ttl=timedelta(0), schema=[s], source=naive),
    ]
    store.apply([user, item, mapped, both, naive, *views])
    return store


REFS = ["long:n", "short:x", "short:s", "pair:s", "pair:n", "ever:s", "pair:x"]


def ask(store: FeatureStore, entities: pd.DataFrame, created_filter: bool) -> pa.Table:
    job = store.get_historical_features(
        entities, REFS, full_feature_names=True, filter_by_created_timestamp=created_filter
    )
    return job.to_arrow().sort_by("row")


@pytest.fixture(scope="module", params=[1, 2])
def stores(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Stores:
    folder = tmp_path_factory.mktemp("asof")
    return (
        make_store(folder / "feast", "duckdb", request.param),
        make_store(folder / "ours", OURS, request.param),
        request.param,
    )


@pytest.mark.parametrize("created_filter", [False, True])
def test_asof_equals_feast(stores: Stores, created_filter: bool) -> None:
    feast, ours, seed = stores
    entities = entity_rows(seed)
    expected, found = (ask(store, entities.copy(), created_filter) for store in (feast, ours))
    assert found.schema == expected.schema
    assert found.num_rows == len(entities)
    for name in expected.column_names:
        assert found[name].to_pylist() == expected[name].to_pylist(), name
    # The table reaches what it is about.
    assert 50 < found["long__n"].null_count < 450
    assert found["short__s"].null_count > found["long__n"].null_count
    assert ask(ours, entities.copy(), not created_filter)["pair__n"] != found["pair__n"]


def test_asof_equals_slow_twin(stores: Stores) -> None:
    """Row by row in Python, for the view with a created filter and a ttl."""
    _, ours, seed = stores
    entities, rows = entity_rows(seed), source_rows(seed)
    found = ask(ours, entities.copy(), True)["pair__n"].to_pylist()
    for row, value in zip(entities.itertuples(), found, strict=True):
        known = rows[(rows["user"] == row.user) & (rows["item"] == row.item)]
        known = known[(known["at"] <= row.event_timestamp) & (known["made"] <= row.event_timestamp)]
        newest = known.sort_values(["at", "made"]).tail(1)
        fresh = len(newest) and newest["at"].iloc[0] + 10 * HOUR >= row.event_timestamp
        assert value == (newest["n"].iloc[0] if fresh else None), row


def test_asof_reads_only_rows_that_can_be_good(stores: Stores) -> None:
    """All entity rows are late: most rows of the sources have expired for some views and not for others."""
    feast, ours, seed = stores
    entities = entity_rows(seed)
    entities = entities[entities["event_timestamp"] >= START + 58 * HOUR].reset_index(drop=True)
    found = ask(ours, entities.copy(), True)
    assert found.equals(ask(feast, entities.copy(), True))
    assert 0 < found["long__n"].null_count < found["short__s"].null_count < len(entities)


def test_asof_reads_only_users_that_are_asked_for(stores: Stores) -> None:
    feast, ours, seed = stores
    entities = entity_rows(seed)
    first, last = sorted(entities["user"].dropna().unique())[2:4]
    entities = entities[entities["user"].between(first, last)].reset_index(drop=True)
    assert ask(ours, entities.copy(), True).equals(ask(feast, entities.copy(), True))


def test_asof_keeps_to_its_memory_limit(stores: Stores) -> None:
    ask(stores[1], entity_rows(stores[2]), True)
    limit, folder = (
        ibis.get_backend()
        .raw_sql("SELECT current_setting('memory_limit'), current_setting('temp_directory')")
        .fetchone()
    )
    assert limit == "1.8 GiB"  # 2 GB of feature_store.yaml
    assert folder.startswith(tempfile.gettempdir())


@pytest.mark.parametrize("change", [lambda t: t.dt.tz_convert("Europe/Berlin"), lambda t: t.dt.tz_localize(None)])
def test_asof_reads_times_as_feast_does(stores: Stores, change) -> None:
    feast, ours, seed = stores
    entities = entity_rows(seed)
    entities["event_timestamp"] = change(entities["event_timestamp"])
    assert ask(ours, entities.copy(), True).equals(ask(feast, entities.copy(), True))


def test_asof_keeps_rows_without_key(stores: Stores) -> None:
    feast, ours, seed = stores
    entities = entity_rows(seed)
    entities.loc[::9, "user"] = None
    found = ask(ours, entities.copy(), True)
    assert found.equals(ask(feast, entities.copy(), True))
    assert found["ever__s"].to_pylist()[::9] == [None] * 59


def test_asof_with_other_entity_columns(stores: Stores) -> None:
    """A view joined by another column: the features of the friend."""
    answers = []
    for store in stores[:2]:
        view = store.get_feature_view("long").with_name("of_friend").with_join_key_map({"user": "friend"})
        from feast import FeatureService

        service = FeatureService(name="friends", features=[view, store.get_feature_view("short")])
        store.apply([service])
        job = store.get_historical_features(entity_rows(stores[2]), store.get_feature_service("friends"))
        answers.append(job.to_arrow().sort_by("row"))
    assert answers[0].schema == answers[1].schema
    assert answers[0].to_pylist() == answers[1].to_pylist()
    assert answers[0].column_names[-3:] == ["n", "x", "s"]


_DIGEST = """
import sys, pathlib, tempfile, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[1])
from test_feature_asof import OURS, ask, entity_rows, make_store
print("DIGEST", ask(make_store(pathlib.Path(tempfile.mkdtemp()) / "s", OURS, 1), entity_rows(1), True).to_pydict())
"""


def test_asof_with_the_machine_in_another_zone(tmp_path: Path) -> None:
    env = os.environ | {"TZ": "America/New_York", "TMPDIR": str(tmp_path)}
    words = [sys.executable, "-c", _DIGEST, str(Path(__file__).parent)]
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    here = ask(make_store(tmp_path / "here", OURS, 1), entity_rows(1), True)
    assert done.stdout.split("DIGEST ")[1] == f"{here.to_pydict()}\n"


def odd_store(folder: Path, offline: str, ttl: timedelta) -> FeatureStore:
    """One view of 400 rows, without created times."""
    store = make_store(folder, offline, 1)
    rows = source_rows(1).drop_duplicates(["user", "at"])
    rows.to_parquet(folder / "odd.parquet")
    source = FileSource(name="o", path=str(folder / "odd.parquet"), timestamp_field="at")
    user = store.get_entity("user")
    store.apply(
        [FeatureView(name="odd", entities=[user], ttl=ttl, schema=[Field(name="n", dtype=Int64)], source=source)]
    )
    return store


def expired_edges(rows: pd.DataFrame, ttl: timedelta) -> pd.DataFrame:
    """Entity rows where a row expires, and a microsecond before and after."""
    last = rows.sort_values("at").drop_duplicates("user", keep="last")
    when = [last["at"] + ttl + pd.Timedelta(us, "us") for us in (-1, 0, 1)]
    users = pd.concat([last["user"]] * 3, ignore_index=True)
    stamps = pd.concat(when, ignore_index=True).dt.as_unit("us")
    return pd.DataFrame({"row": range(len(users)), "user": users, "event_timestamp": stamps})


@pytest.mark.parametrize("ttl", [timedelta(hours=30), timedelta(days=2), timedelta(days=1, microseconds=7)])
def test_asof_good_up_to_any_ttl(ttl: timedelta, tmp_path: Path) -> None:
    """Feast's own store refuses a ttl of days and hours; its rule, good up to and including the ttl, holds for all."""
    rows = source_rows(1).drop_duplicates(["user", "at"])
    entities = expired_edges(rows, ttl)
    job = odd_store(tmp_path / "ours", OURS, ttl).get_historical_features(entities.copy(), ["odd:n"])
    found = job.to_arrow().sort_by("row")["n"].to_pylist()
    newest = rows.sort_values("at").drop_duplicates("user", keep="last")["n"].tolist()
    assert found == newest * 2 + [None] * len(newest)
    if not ttl.seconds and not ttl.microseconds:
        feast = odd_store(tmp_path / "feast", "duckdb", ttl).get_historical_features(entities.copy(), ["odd:n"])
        assert feast.to_arrow().sort_by("row")["n"].to_pylist() == found


def test_asof_takes_entity_columns_of_any_name(stores: Stores) -> None:
    entities = entity_rows(stores[2]).assign(__0_ts="mine", __0_known=1.0, __1_user="too", ___0_created=2)
    expected, found = (ask(store, entities.copy(), True) for store in stores[:2])
    assert found.column_names == expected.column_names
    assert found.equals(expected)
