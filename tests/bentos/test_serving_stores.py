"""The fast readers against Feast's public call, value by value."""

import asyncio
import shutil
import sqlite3
from datetime import timedelta

import numpy as np
import pytest
from serving_world import NOW

from bentos import decoding
from bentos.bundle import CODE, OK
from bentos.decoding import Decoder, Layout
from bentos.explain import _read_once
from bentos.features import Ask, FeastReader
from bentos.redis_wire import RedisWire
from bentos.stores import RedisReader, SqliteReader, entity_key, open_reader
from campaign import StoreError

NUMBERS = decoding._numbers
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:On demand feature view:RuntimeWarning"),
]


def readers_of(folder, profile, monkeypatch):
    """Feast's reader and the fast one, of the same model features in an order of its own."""
    from feature_repo.retrieval import feature_schema, open_store

    monkeypatch.setenv("TACTFUL_STORE", profile)
    monkeypatch.setenv("TACTFUL_DATA", str(folder / "data"))
    store = open_store(folder / "repo")
    schema = feature_schema(store)
    numeric = [n for n in reversed(schema.names) if schema.types[n] == "numeric" and n != "minutes_90d"]
    strings = [n for n in schema.names if schema.types[n] == "string"]
    return FeastReader(store, schema, numeric, strings), open_reader(store, schema, numeric, strings)


@pytest.fixture(params=["local", pytest.param("redis", marks=pytest.mark.redis)])
def readers(request, world, monkeypatch):
    folder = world
    if request.param == "redis":
        folder, _ = request.getfixturevalue("redis_world")
    slow, fast = readers_of(folder, request.param, monkeypatch)
    assert isinstance(fast, SqliteReader if request.param == "local" else RedisReader)
    yield slow, fast
    slow.close()
    fast.close()


async def _read(fast, asks, now):
    try:
        return await fast.read(asks, now)
    finally:
        if isinstance(fast, RedisReader):
            fast.close()
            await asyncio.sleep(0.01)


def both(readers, asks, now):
    slow, fast = readers
    return slow.read_now(asks, now), asyncio.run(_read(fast, asks, now))


def assert_equal(expected, found):
    np.testing.assert_array_equal(found.numeric, expected.numeric)
    np.testing.assert_array_equal(found.strings, expected.strings)
    np.testing.assert_array_equal(found.status, expected.status)
    np.testing.assert_array_equal(found.timestamp, expected.timestamp)


@pytest.fixture(scope="module")
def users(world):
    return [str(u) for u in np.load(world / "expected.npz")["users"]]


def test_reader_equals_feast_value_by_value(readers, users):
    asks = [
        Ask("a", users[:70], 20, "home"),
        Ask("b", ["nobody", users[0], users[0], "ünïcode 用户"], None, None),
        Ask("c", users[70:], 0, "search"),
        Ask("d", users[:1], None, "car"),
        Ask("e", users[:1], 3, None),
    ]
    expected, found = both(readers, asks, NOW)
    assert_equal(expected, found)
    assert {OK, CODE["unknown_user"]} == set(found.status)
    assert np.isnan(found.numeric).any()
    assert np.isfinite(found.numeric).mean() > 0.5


def test_reader_is_read_once_and_closed_as_explain_does(readers, users):
    """A connection to Redis that outlives its event loop cannot be closed: `tactful explain` ended in a traceback."""
    _, fast = readers
    rows = asyncio.run(_read_once(fast, Ask("a", users[:1]), NOW))
    assert len(rows.timestamp) == 1


@pytest.mark.parametrize("days", [2.5, 2.500001, 3, 13.5, 14.1, 400])
def test_reader_expires_as_feast_and_we_do(readers, users, days):
    expected, found = both(readers, [Ask("a", [*users[:5], "nobody"], 1, "home")], NOW + timedelta(days=days))
    assert_equal(expected, found)
    assert found.status[0] == (OK if days <= 2.5 else CODE["stale_features"])


def test_reader_says_when_the_store_is_gone(world, monkeypatch, tmp_path, users):
    slow, fast = readers_of(world, "local", monkeypatch)
    copy = tmp_path / "online.db"
    shutil.copy(fast.path, copy)
    fast.path = str(copy)
    before = asyncio.run(fast.read([Ask("a", users[:3])], NOW))
    copy.unlink()
    with pytest.raises(OSError, match="No such file"):
        asyncio.run(fast.read([Ask("a", users[:3])], NOW))
    copy.write_bytes(b"not a database, and long enough to be looked at" * 100)
    with pytest.raises(StoreError, match="does not answer"):
        asyncio.run(fast.read([Ask("a", users[:3])], NOW))
    copy.unlink()
    shutil.copy(slow.store.config.repo_path / "data" / "online.db", copy)
    assert_equal(before, asyncio.run(fast.read([Ask("a", users[:3])], NOW)))


def test_reader_reads_values_of_other_types_as_feast_does(world, monkeypatch, tmp_path, users):
    """A value stored as an integer (a feature whose type was changed) is read through its message."""
    from feast.protos.feast.types.Value_pb2 import Value

    _, fast = readers_of(world, "local", monkeypatch)
    copy = tmp_path / "online.db"
    shutil.copy(fast.path, copy)
    with sqlite3.connect(copy) as connection:
        connection.execute(
            "UPDATE tactful_activity_7d SET value = ? WHERE entity_key = ? AND feature_name = 'sessions_7d'",
            (Value(int64_val=7).SerializeToString(), entity_key(users[0])),
        )
    connection.close()
    fast.path = str(copy)
    found = asyncio.run(fast.read([Ask("a", users[:2])], NOW))
    assert found.numeric[0, fast.layout.numeric.index("sessions_7d")] == 7


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("127.0.0.1:6379", True),
        ("host:1,db=2,password=x", True),
        ("a:1,b:2", False),
        ("host:1,skip_full_coverage_check=true", False),
    ],
)
def test_wire_knows_which_connection_strings_it_can_serve(text, known):
    assert (RedisWire.of(text, 1.0) is not None) == known


@pytest.mark.redis
def test_wire_logs_in_and_selects(redis_world):
    async def ask(text, *command):
        import hiredis

        wire = RedisWire.of(text, 1.0)
        try:
            return (await wire.ask(hiredis.pack_command(command), 1))[0]
        finally:
            wire.close()
            await asyncio.sleep(0.01)

    _, port = redis_world
    assert asyncio.run(ask(f"127.0.0.1:{port},db=3", "DBSIZE")) == 0
    assert asyncio.run(ask(f"127.0.0.1:{port},db=0", "DBSIZE")) > 100
    with pytest.raises(StoreError, match=r"Redis at 127\.0\.0\.1"):
        asyncio.run(ask(f"127.0.0.1:{port},password=wrong,username=nobody", "PING"))
    with pytest.raises(OSError, match="Connect call failed"):
        asyncio.run(ask("127.0.0.1:1", "PING"))


def test_entity_key_is_feasts():
    from feast.infra.key_encoding_utils import serialize_entity_key
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    for user in ("u1", "ünïcode 用户", "x" * 128):
        expected = serialize_entity_key(EntityKey(join_keys=["user_id"], entity_values=[Value(string_val=user)]), 3)
        assert entity_key(user) == expected


def test_reader_finds_a_store_in_a_folder_of_any_name(world, monkeypatch, tmp_path, users):
    _, fast = readers_of(world, "local", monkeypatch)
    before = asyncio.run(fast.read([Ask("a", users[:3])], NOW))
    copy = tmp_path / "50%25 #1?" / "online.db"
    copy.parent.mkdir()
    shutil.copy(fast.path, copy)
    fast.path = str(copy)
    assert_equal(before, asyncio.run(fast.read([Ask("a", users[:3])], NOW)))


def test_decoder_joins_no_more_numbers_than_the_model_has(monkeypatch):
    """Of a model that takes no number from the request; an extra one would send every batch the slow way."""
    counts = []
    monkeypatch.setattr(decoding, "_numbers", lambda stored, n: counts.append((len(stored), n)) or NUMBERS(stored, n))
    layout = Layout(("b", "a"), (), (("v", "a"), ("v", "b")), 2, ("v",), np.array([10**12]), lambda hour, surface: {})
    value = decoding._double
    at = np.array([[int(NOW.timestamp()) * 10**6]] * 2)
    rows = Decoder(layout).rows([Ask("r", ["x", "y"])], [[value(1), value(2)], [None, value(4)]], at, NOW)
    np.testing.assert_array_equal(rows.numeric, [[2, 1], [4, np.nan]])
    assert counts == [(4, 4)]
