"""Point-in-time frames against the slow twin, and the guards around Feast."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feature_logs import START
from feature_oracle import Oracle
from feature_world import LAST, ONLY_CORRECTIONS, OUTAGE, Repo, day_range

from campaign import DataError, StoreError
from feature_repo.aggregates import COLUMNS
from feature_repo.retrieval import feature_schema, historical_features, latest_features, open_store
from feature_repo.store import FeatureSchema

pytestmark = pytest.mark.usefixtures("_data_root")
DAY = timedelta(days=1)
REQUEST = ("hour_sin", "hour_cos", "is_evening", "surface_seen")


@pytest.fixture(scope="module")
def decisions(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """2,000 decisions: any second of the world, some at midnight, some where a view expires, some of unknown users."""
    rng = np.random.default_rng(11)
    n = 2_000
    seconds = rng.integers(0, 61 * 86_400, n)
    seconds[:200] -= seconds[:200] % 86_400  # ties with event_timestamp and created_timestamp
    seconds[200:300] = 22 * 86_400  # the 3-day views of day 19 expire here, and a microsecond later they are expired
    users = rng.choice(np.append(tables["users"]["user_id"].unique(), "nobody"), n)
    when = pd.Timestamp(START, tz="UTC") + pd.to_timedelta(seconds, unit="s")
    when = when + pd.to_timedelta(np.where(np.arange(n) // 50 == 5, 1, 0), unit="us")
    frame = pd.DataFrame({"user_id": users, "event_timestamp": when.as_unit("us"), "plan_then": "kept"})
    hour = pd.array(rng.integers(0, 24, n), dtype="Int64")
    frame["hour"] = hour
    frame.loc[::7, "hour"] = pd.NA
    frame["surface"] = rng.choice(np.array(["home", "search", None], dtype=object), n)
    return pd.concat([frame, frame.tail(20)]).set_index(np.arange(n + 20)[::-1])  # repeated rows, and an odd index


@pytest.fixture(scope="module")
def frame(repo: Repo, decisions: pd.DataFrame) -> pd.DataFrame:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TACTFUL_DATA", str(repo.data))
        return historical_features(open_store(repo.path), decisions)


@pytest.mark.parametrize("rows", [1, 300])
def test_historical_features_in_parts_are_the_same(
    repo: Repo, decisions: pd.DataFrame, frame: pd.DataFrame, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("feature_repo.retrieval.PART_ROWS", rows)
    some = slice(None) if rows > 1 else slice(2_000, None)  # a user and a join for each row
    found = historical_features(open_store(repo.path), decisions[some])
    pd.testing.assert_frame_equal(found, frame[some])


def test_historical_features_equal_oracle(frame: pd.DataFrame, decisions: pd.DataFrame, oracle: Oracle) -> None:
    days = set(day_range(START + DAY, LAST))
    snapshots, corrections = days - OUTAGE - ONLY_CORRECTIONS, days - OUTAGE
    wanted = [
        oracle.at(user, when.to_pydatetime(), snapshots, corrections)
        for user, when in zip(decisions["user_id"], decisions["event_timestamp"], strict=True)
    ]
    for name in COLUMNS:
        expected = [row.get(name) for row in wanted]
        if frame[name].dtype == object:
            assert frame[name].tolist() == expected, name
        else:
            np.testing.assert_allclose(frame[name], np.array(expected, float), rtol=1e-9, atol=1e-9, err_msg=name)
    expired = frame["sessions_7d"].isna() & frame["plan"].notna()
    assert {"expired": int(expired.sum()) > 100, "unknown": int(frame["plan"].isna().sum()) > 100} == {
        "expired": True,
        "unknown": True,
    }


def test_historical_features_draw_no_bar(repo: Repo, decisions: pd.DataFrame) -> None:
    backend: Any = ibis.get_backend()
    backend.raw_sql("SET enable_progress_bar = true")  # as in a process whose main module is no file
    historical_features(open_store(repo.path), decisions.head(3))
    assert backend.raw_sql("SELECT current_setting('enable_progress_bar')").fetchone() == (False,)


def test_historical_features_keep_rows_order_and_columns(
    frame: pd.DataFrame, decisions: pd.DataFrame, repo: Repo
) -> None:
    pd.testing.assert_frame_equal(frame[decisions.columns], decisions)
    names = feature_schema(open_store(repo.path)).names
    assert frame.columns.tolist() == [*decisions.columns, *names]


def test_historical_features_of_the_request(frame: pd.DataFrame) -> None:
    hour = frame["hour"].astype(float)
    np.testing.assert_allclose(frame["hour_sin"], np.sin(hour * np.pi / 12), atol=1e-12)
    np.testing.assert_allclose(frame["hour_cos"], np.cos(hour * np.pi / 12), atol=1e-12)
    np.testing.assert_array_equal(frame["is_evening"], np.where(hour.isna(), np.nan, hour >= 18))
    assert frame["surface_seen"].tolist() == frame["surface"].tolist()


def test_historical_features_without_request_are_null(repo: Repo, decisions: pd.DataFrame) -> None:
    found = historical_features(open_store(repo.path), decisions[["user_id", "event_timestamp"]].head(5))
    assert found[list(REQUEST)].isna().all(axis=None)


def test_historical_features_do_not_see_later_corrections(repo: Repo, oracle: Oracle, tables) -> None:
    """A correction made at the next midnight is unknown a microsecond before, and known at it."""
    known = min(ONLY_CORRECTIONS)
    day = known - DAY
    users = [
        u
        for u in sorted(tables["users"]["user_id"].unique())
        if oracle.corrected(u, day, known)
        and oracle.features(u, day, day) not in (None, oracle.features(u, day, known))
    ]
    assert users
    midnight = pd.Timestamp(known, tz="UTC").as_unit("us")
    for moment, version in ((midnight - pd.Timedelta("1us"), day), (midnight, known)):
        asked = pd.DataFrame({"user_id": users, "event_timestamp": moment})
        found = historical_features(open_store(repo.path), asked)
        wanted = [oracle.features(u, day, version) for u in users]
        for name in ("sessions_28d", "minutes_90d", "messages_90d", "starts_90d", "days_since_session"):
            np.testing.assert_allclose(found[name], [w[name] for w in wanted], rtol=1e-9, err_msg=name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="user_id"), "no column 'user_id'; found event_timestamp"),
        (lambda f: f.assign(plan="free"), "columns named like features: plan; rename them"),
        (lambda f: f.assign(user_id=None), "column 'user_id' must not be null: 3 rows are, first 0"),
        (lambda f: f.assign(user_id=7), "column 'user_id' is int64, must be strings"),
        (
            lambda f: f.assign(event_timestamp=f["event_timestamp"].dt.tz_localize(None)),
            r"column 'event_timestamp' is datetime64\[us\], must be a time in UTC",
        ),
        (lambda f: f.head(0), "entity_frame has 0 rows"),
    ],
)
def test_historical_features_bad_input(change, message: str, repo: Repo, decisions: pd.DataFrame) -> None:
    with pytest.raises(DataError, match=message):
        historical_features(open_store(repo.path), change(decisions[["user_id", "event_timestamp"]].head(3)))


def test_historical_features_lost_rows_are_an_error(
    repo: Repo, decisions: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(repo.path)
    original = store.get_historical_features

    class Losing:
        def __init__(self, job: object) -> None:
            self.job = job

        def to_arrow(self) -> pa.Table:
            return self.job.to_arrow().slice(1)

    monkeypatch.setattr(store, "get_historical_features", lambda **asked: Losing(original(**asked)))
    with pytest.raises(StoreError, match="Feast returned 4 rows for 5 asked"):
        historical_features(store, decisions[["user_id", "event_timestamp"]].head(5))


def test_feature_schema(repo: Repo) -> None:
    schema = feature_schema(open_store(repo.path))
    assert schema.names == (*COLUMNS, *REQUEST)
    assert [n for n in schema.names if schema.types[n] == "string"] == [
        "plan",
        "country",
        "device",
        "age_band",
        "surface_seen",
    ]
    assert {schema.ttl_days[n] for n in COLUMNS if schema.views[n] == "user_profile"} == {14.0}
    assert {schema.ttl_days[n] for n in COLUMNS if schema.views[n] != "user_profile"} == {3.0}
    assert schema.hash == feature_schema(open_store(repo.path)).hash
    assert len(schema.hash) == 16


def test_feature_schema_hash_tells_any_change() -> None:
    base = FeatureSchema("s", ("a", "b"), {"a": "numeric", "b": "string"}, {"a": "v"}, {"a": 3.0})
    others = [
        FeatureSchema("t", base.names, base.types, base.views, base.ttl_days),
        FeatureSchema("s", ("b", "a"), base.types, base.views, base.ttl_days),
        FeatureSchema("s", base.names, base.types | {"b": "numeric"}, base.views, base.ttl_days),
        FeatureSchema("s", base.names, base.types, base.views, {"a": 4.0}),
    ]
    assert len({base.hash, *(o.hash for o in others)}) == 5


def test_latest_features_is_the_snapshot_of_the_day(repo: Repo) -> None:
    store = open_store(repo.path)
    batches = list(latest_features(store, LAST, batch_rows=100))
    assert [b.num_rows for b in batches] == [100, 100, 100]
    found = pa.Table.from_batches(batches)
    assert found.column_names == ["user_id", "event_timestamp", *feature_schema(store).names]
    stored = pq.read_table(repo.data / "features" / f"date={LAST}" / "snapshot.parquet", partitioning=None)
    assert all(found[name].to_pylist() == stored[name].to_pylist() for name in COLUMNS)
    assert all(found[name].null_count == found.num_rows for name in REQUEST)


def test_latest_features_of_a_day_without_snapshot(repo: Repo) -> None:
    with pytest.raises(StoreError, match="no snapshot of 2026-05-20; run `tactful features`"):
        list(latest_features(open_store(repo.path), LAST + 20 * DAY))


def _half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:1000])


def _damaged(file: Path) -> None:
    """The footer is whole, the pages are not."""
    whole = file.read_bytes()
    file.write_bytes(whole[:4] + bytes(len(whole) // 2) + whole[4 + len(whole) // 2 :])


def _lacking(file: Path) -> None:
    pq.write_table(pq.read_table(file, partitioning=None).drop_columns("minutes_7d"), file)


@pytest.mark.parametrize("day", [START + DAY, LAST])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            _half,
            r"date={day}/snapshot.parquet: not a whole Parquet file \(.*\); remove its folder, and run",
        ),
        (_lacking, r"date={day}/snapshot.parquet: columns \['minutes_7d'\] are missing; it has .*; remove its folder"),
        (_damaged, r"\*.parquet cannot be read: .*; if it is one of the files, remove its folder"),
    ],
)
def test_historical_features_name_the_snapshot_that_is_wrong(
    repo: Repo, spoil: Callable[[Path], None], message: str, day: date
) -> None:
    file = repo.data / "features" / f"date={day}" / "snapshot.parquet"
    kept, asked = file.read_bytes(), [day, START + 2 * DAY]
    when = pd.to_datetime([pd.Timestamp(moment, tz="UTC") for moment in asked])
    try:
        spoil(file)
        with pytest.raises(StoreError, match=message.replace("{day}", str(day))):
            historical_features(
                open_store(repo.path), pd.DataFrame({"user_id": ["u00001", "u00002"], "event_timestamp": when})
            )
        if spoil is not _damaged:
            with pytest.raises(StoreError, match=message.replace("{day}", str(day))):
                next(latest_features(open_store(repo.path), day))
    finally:
        file.write_bytes(kept)
