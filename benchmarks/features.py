"""Features on one machine against what somebody would write by hand, and against Feast's own engines.

    .venv/bin/python benchmarks/features.py [join|materialize|build|spill ...] [--rounds 3] [--events 20000000]

Writes the section `features` of docs/benchmarks.md; parts not run keep their last lines. The methods of a part take
turns in one process, one thread each; a ratio is the median over the rounds of one method over the other in the same
round, of CPU time of this process (wall time beside it: on a busy machine it is mostly the neighbours').

    join         1M entity rows x 30 features of 100k users (2, 8 and 8 rows a user, 2% of them late)
    materialize  20,000 users, the five views of this repository (33 features), into Redis and SQLite
    build        the snapshot of one day from raw logs; under DuckDB's memory limit of 1 GB
    spill        the same of 200M events, ours alone (not among the default; 25 GB of disk)
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stdout, suppress
from datetime import UTC, date, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from experiment import write_section  # noqa: E402  # after its folder is known
from platform_logs import connect, make_logs  # noqa: E402

from feature_repo.aggregates import COLUMNS  # noqa: E402
from feature_repo.snapshots import build_snapshots  # noqa: E402

DOCS = ROOT / "docs" / "benchmarks.md"
OURS = "feature_repo.offline.AsofDuckDBOfflineStore"
ENGINE = {"type": "feature_repo.engine.StreamingEngine", "memory_limit": "1GB"}
DAY = datetime(2026, 3, 1, tzinfo=UTC)
VIEWS = {"profile": (2, 6, 365), "activity": (8, 14, 14), "messages": (8, 10, 28)}  # rows a user, features, ttl in days
Spent = tuple[float, float]  # CPU and wall seconds


def timed(work: Callable[[], Any]) -> tuple[Spent, Any]:
    """CPU and wall seconds of one call, and what it returned."""
    gc.collect()
    cpu, wall = time.process_time(), time.perf_counter()
    answer = work()
    return (time.process_time() - cpu, time.perf_counter() - wall), answer


def ratio(rounds: list[dict[str, Spent]], method: str, floor: str) -> str:
    """`method` over `floor`, median over the rounds: CPU, and wall in brackets."""
    cpu, wall = (np.median([r[method][i] / r[floor][i] for r in rounds]) for i in (0, 1))
    return f"{cpu:.2f} ({wall:.2f})"


def seconds(rounds: list[dict[str, Spent]], method: str) -> str:
    """Medians over the rounds: CPU and wall seconds."""
    cpu, wall = (np.median([r[method][i] for r in rounds]) for i in (0, 1))
    return f"{cpu:.1f} s CPU, {wall:.1f} s wall"


def make_store(folder: Path, views: list[Any], online: dict[str, Any], offline: str = "duckdb", engine: Any = "local"):
    """An applied feature store with a registry of its own."""
    from feast import FeatureStore, RepoConfig

    folder.mkdir()
    config = RepoConfig(
        project="bench",
        provider="local",
        registry=str(folder / "registry.db"),
        offline_store={"type": offline},
        online_store=online,
        batch_engine=engine,
        materialization={"pull_latest_features": True, "online_write_batch_size": 5000},
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    store.apply([user(), *views])
    return store


def user() -> Any:
    """The entity of all views here."""
    from feast import Entity, ValueType

    return Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)


# join


def measure_join(work: Path, rounds: int) -> list[str]:
    """Point-in-time join: by hand, ours through Feast, Feast's own; equal row by row."""
    import ibis

    con = connect()
    con.execute("SELECT setseed(0.5)")
    some_day = "TIMESTAMPTZ '2026-01-01' + to_microseconds((random() * 90 * 86400e6)::BIGINT)"
    for name, (rows, features, _) in VIEWS.items():
        columns = ", ".join(f"random() AS {name}_{i}" for i in range(features))
        con.execute(f"""COPY (SELECT 'u' || lpad(u::VARCHAR, 8, '0') AS user_id, moment AS event_timestamp,
            CASE WHEN random() < .02 THEN moment + to_microseconds((random() * 5e11)::BIGINT) ELSE moment END
            AS created_timestamp, {columns} FROM (SELECT (range // {rows})::BIGINT AS u, {some_day} AS moment
            FROM range({100_000 * rows}))) TO '{work}/{name}.parquet'""")
    entities = con.execute(f"""SELECT range AS row_id, 'u' || lpad(((random() * 100000)::BIGINT)::VARCHAR, 8, '0')
        AS user_id, {some_day} AS event_timestamp FROM range(1000000)""").df()
    views, names = join_views(work), [f"{v}:{v}_{i}" for v, (_, n, _) in VIEWS.items() for i in range(n)]
    online = {"type": "sqlite", "path": str(work / "none.db")}
    stores = {k: make_store(work / k, views, online, offline) for k, offline in (("ours", OURS), ("feast", "duckdb"))}
    ibis.set_backend("duckdb")
    ibis.get_backend().raw_sql("SET threads = 1")
    spent: list[dict[str, Spent]] = []
    for turn in range(rounds):
        answers, times = {}, {}
        times["hand"], answers["hand"] = timed(lambda: join_by_hand(work, entities))
        for name in ("ours", "feast"):
            times[name], answers[name] = timed(
                lambda name=name: (
                    stores[name].get_historical_features(entities, names, filter_by_created_timestamp=True).to_arrow()
                )
            )
        if turn == 0:
            ours, feast = (answers[name].sort_by("row_id") for name in ("ours", "feast"))
            if not ours.equals(feast):
                raise SystemExit("our join and Feast's differ")
        spent.append(times)
        print(times, flush=True)
    return [
        f"| point-in-time join, 1M x 30, over a hand-written ASOF query | <= 1.3 | {ratio(spent, 'ours', 'hand')} |",
        f"| Feast's own DuckDB store, over the same query | | {ratio(spent, 'feast', 'hand')} |",
        f"| seconds: by hand; ours; Feast's | | {'; '.join(seconds(spent, m) for m in ('hand', 'ours', 'feast'))} |",
        "| rows and values equal to Feast's, 1M x 30, created filter on | equal | equal |",
    ]


def join_views(work: Path) -> list[Any]:
    """One view per file."""
    from feast import FeatureView, Field, FileSource
    from feast.types import Float64

    times = {"timestamp_field": "event_timestamp", "created_timestamp_column": "created_timestamp"}
    return [
        FeatureView(
            name=name,
            entities=[user()],
            ttl=timedelta(days=ttl),
            schema=[Field(name=f"{name}_{i}", dtype=Float64) for i in range(features)],
            source=FileSource(name=name, path=f"{work}/{name}.parquet", **times),
        )
        for name, (_, features, ttl) in VIEWS.items()
    ]


def join_by_hand(work: Path, entities: Any) -> Any:
    """What somebody writes who needs no corrections: one ASOF join per file, and the ttl."""
    con = connect()
    con.register("e", entities)
    columns, joins = [], []
    for v, (_, features, ttl) in VIEWS.items():
        fresh = f"{v}.event_timestamp >= e.event_timestamp - INTERVAL {ttl} DAY"
        columns += [f"CASE WHEN {fresh} THEN {v}_{i} END AS {v}_{i}" for i in range(features)]
        joins.append(
            f"ASOF LEFT JOIN '{work}/{v}.parquet' AS {v} ON e.user_id = {v}.user_id "
            f"AND e.event_timestamp >= {v}.event_timestamp"
        )
    return con.sql(f"SELECT e.*, {', '.join(columns)} FROM e {' '.join(joins)}").to_arrow_table()


# materialize


def make_snapshot(file: Path, users: int, day: datetime = DAY) -> list[Any]:
    """A snapshot of random values with the columns of this repository, and its five views."""
    from feast import FeatureView, FileSource

    from feature_repo import views as defined

    kept = [getattr(defined, name) for name in vars(defined) if isinstance(getattr(defined, name), FeatureView)]
    columns = []
    for column in COLUMNS:
        if column in ("plan", "country", "device", "age_band"):
            columns.append(f"['free', 'premium', 'family'][1 + (random() * 2.99)::INT % 3] AS {column}")
        elif any(word in column for word in ("minutes", "rate", "share", "since", "age_days", "trend")):
            columns.append(f"CASE WHEN random() < .85 THEN random() * 100 END AS {column}")
        else:
            columns.append(f"floor(random() * 20) AS {column}")
    connect().execute(f"""COPY (SELECT 'u' || lpad(range::VARCHAR, 8, '0') AS user_id, TIMESTAMPTZ '{day}' AS
        event_timestamp, TIMESTAMPTZ '{day}' AS created_timestamp, {", ".join(columns)} FROM range({users}))
        TO '{file}' (ROW_GROUP_SIZE 65536)""")
    times = {"timestamp_field": "event_timestamp", "created_timestamp_column": "created_timestamp"}
    source = FileSource(name="s", path=str(file), **times)
    return [
        FeatureView(
            name=view.name,
            entities=[user()],
            ttl=view.ttl,
            schema=[field for field in view.schema if field.name in COLUMNS],
            source=source,
        )
        for view in kept
    ]


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """A redis-server of our own: its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    try:
        time.sleep(1)
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def measure_materialize(work: Path, rounds: int) -> list[str]:
    """Feast's engine and ours, into empty stores, in turn."""
    users, lines = 20_000, []
    views = make_snapshot(work / "snapshot.parquet", users)
    with redis_server(work) as address:
        for kind in ("redis", "sqlite"):
            spent: list[dict[str, Spent]] = []
            for turn in range(rounds):
                times = {}
                for name, engine in (("feast", "local"), ("ours", ENGINE)):
                    online = {"type": "redis", "connection_string": address}
                    if kind == "sqlite":
                        online = {"type": "sqlite", "path": str(work / f"{name}{turn}.db")}
                    store = make_store(work / f"{kind}-{name}-{turn}", views, online, engine=engine)
                    times[name], _ = timed(lambda store=store: materialize(store))
                    if kind == "redis":
                        subprocess.run(["redis-cli", "-p", address.split(":")[1], "flushall"], capture_output=True)
                spent.append(times)
                print(kind, times, flush=True)
            lines += [
                f"| materialize to {kind}, 20,000 users x 33, Feast's time over ours | >= 4 | "
                f"{ratio(spent, 'feast', 'ours')} |",
                f"| seconds: Feast's; ours | | {seconds(spent, 'feast')}; {seconds(spent, 'ours')} |",
            ]
    return lines


def materialize(store: Any, day: datetime = DAY) -> None:
    """Feast's own command, without what it prints."""
    with redirect_stdout(open(os.devnull, "w")):  # closed at exit
        store.materialize(day, day)


# build


def build_by_hand(logs: Path, day: date, file: Path) -> None:
    """The same snapshot, for this one day, in one query: first copies, then one pass over each log."""

    def log(name: str, key: str, since: int | None = 90) -> str:
        recent = f"AND event_timestamp >= d - INTERVAL {since} DAY" if since else ""
        return f"""(SELECT *, TIMESTAMPTZ '{day}' AS d FROM read_parquet('{logs}/{name}/*/*.parquet',
            hive_partitioning = false) WHERE event_timestamp < d AND created_timestamp < d {recent}
            QUALIFY row_number() OVER (PARTITION BY {key} ORDER BY created_timestamp, event_timestamp) = 1)"""

    def last(days: int) -> str:
        return f"FILTER (WHERE event_timestamp >= d - INTERVAL {days} DAY)"

    con = connect(memory_limit="1GB", temp_directory=str(file.parent / "spill-hand"))
    since = f"(epoch_us(TIMESTAMPTZ '{day}') - epoch_us({{}})) / 86400e6"
    con.execute(f"""COPY (WITH p AS (SELECT user_id, arg_max(plan, event_timestamp) AS plan, arg_max(country,
        event_timestamp) AS country, arg_max(device, event_timestamp) AS device, arg_max(age_band, event_timestamp) AS
        age_band, arg_max(signup_at, event_timestamp) AS signup FROM {log("users", "user_id, event_timestamp", None)}
        GROUP BY user_id), s AS (SELECT user_id, count(*) {last(7)} AS sessions_7d,
        sum(minutes) {last(7)} AS minutes_7d,
        sum(tracks) {last(7)} AS tracks_7d, sum(ads) {last(7)} AS ads_7d, sum(skips) {last(7)} AS skips_7d,
        count(DISTINCT event_timestamp::DATE) {last(7)} AS active_days_7d, count(*) {last(28)} AS sessions_28d,
        sum(minutes) {last(28)} AS minutes_28d, sum(tracks) {last(28)} AS tracks_28d, sum(ads) {last(28)} AS ads_28d,
        sum(skips) {last(28)} AS skips_28d, count(DISTINCT event_timestamp::DATE) {last(28)} AS active_days_28d,
        count(*) FILTER (WHERE event_timestamp >= d - INTERVAL 28 DAY AND hour(event_timestamp) >= 18) AS evening,
        count(*) FILTER (WHERE event_timestamp >= d - INTERVAL 28 DAY AND isodow(event_timestamp) >= 6) AS weekend,
        sum(minutes) AS minutes_90d, max(event_timestamp) AS at FROM {log("sessions", "session_id")} GROUP BY user_id),
        m AS (SELECT user_id, count(*) {last(7)} AS messages_7d, count(*) {last(28)} AS messages_28d, count(*) AS
        messages_90d,
        count(*) FILTER (WHERE action = 'clicked' AND event_timestamp >= d - INTERVAL 28 DAY) AS clicks_28d,
        count(*) FILTER (WHERE action = 'dismissed' AND event_timestamp >= d - INTERVAL 28 DAY) AS dismissals_28d,
        count(*) FILTER (WHERE action = 'dismissed') AS dismissals_90d, max(event_timestamp) AS at, max(event_timestamp)
        FILTER (WHERE action = 'dismissed') AS dismissed_at FROM {log("messages", "message_id")} GROUP BY user_id),
        b AS (SELECT user_id, count(*) FILTER (WHERE event = 'start') AS starts, count(*) FILTER (WHERE event = 'start'
        AND event_timestamp >= d - INTERVAL 90 DAY) AS starts_90d, count(*) FILTER (WHERE event = 'cancel' AND
        event_timestamp >= d - INTERVAL 90 DAY) AS cancels_90d, max(event_timestamp) AS at
        FROM {log("subscriptions", "subscription_event_id", None)} GROUP BY user_id)
        SELECT user_id, plan, country, device, age_band, {since.format("signup")} AS account_age_days,
        coalesce(sessions_7d, 0) AS sessions_7d, coalesce(minutes_7d, 0) AS minutes_7d, coalesce(tracks_7d, 0) AS
        tracks_7d, coalesce(ads_7d, 0) AS ads_7d, coalesce(active_days_7d, 0) AS active_days_7d,
        skips_7d / nullif(tracks_7d, 0) AS skip_rate_7d, coalesce(sessions_28d, 0) AS sessions_28d,
        coalesce(minutes_28d, 0) AS minutes_28d, coalesce(ads_28d, 0) AS ads_28d, coalesce(active_days_28d, 0) AS
        active_days_28d, skips_28d / nullif(tracks_28d, 0) AS skip_rate_28d, evening / nullif(sessions_28d, 0) AS
        evening_share_28d, weekend / nullif(sessions_28d, 0) AS weekend_share_28d, {since.format("s.at")} AS
        days_since_session, coalesce(minutes_7d, 0) * 4 / nullif(minutes_28d, 0) AS minutes_trend,
        coalesce(minutes_90d, 0) AS minutes_90d, coalesce(starts, 0) > 0 AS subscribed_ever, coalesce(starts_90d, 0) AS
        starts_90d, coalesce(cancels_90d, 0) AS cancels_90d, {since.format("b.at")} AS days_since_subscription_event,
        coalesce(messages_7d, 0) AS messages_7d, coalesce(messages_28d, 0) AS messages_28d, coalesce(messages_90d, 0) AS
        messages_90d, coalesce(clicks_28d, 0) AS clicks_28d, coalesce(dismissals_28d, 0) AS dismissals_28d,
        dismissals_90d / nullif(messages_90d, 0) AS dismissal_rate_90d, {since.format("m.at")} AS days_since_message,
        {since.format("dismissed_at")} AS days_since_dismissal
        FROM p LEFT JOIN s USING (user_id) LEFT JOIN m USING (user_id) LEFT JOIN b USING (user_id) ORDER BY user_id)
        TO '{file}'""")


def measure_build(work: Path, rounds: int, events: int) -> list[str]:
    """One day's snapshot from raw logs, by hand and by `build_snapshots`, equal value by value."""
    users, days = max(1000, events // 40), 90
    logs, day = work / "logs", date(2026, 1, 1) + timedelta(days=days)
    make_logs(logs, events, users, days)
    print("logs made", flush=True)
    spent: list[dict[str, Spent]] = []
    for turn in range(rounds):
        times, features = {}, work / f"features{turn}"
        times["hand"], _ = timed(lambda: build_by_hand(logs, day, work / "hand.parquet"))
        times["ours"], _ = timed(
            lambda features=features: build_snapshots(logs, features, day, only={day}, memory_limit="1GB")
        )
        spent.append(times)
        print(times, flush=True)
    if wrong := differences(work / "hand.parquet", features / f"date={day}" / "snapshot.parquet"):
        raise SystemExit(f"snapshots differ: {wrong}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [
        f"| one day's snapshot from {events / 1e6:,.1f}M events of {users:,} users, over one hand-written query "
        f"| <= 1.2 | {ratio(spent, 'ours', 'hand')} |",
        f"| seconds: by hand; ours, both under a memory limit of 1 GB; peak of the process | | "
        f"{seconds(spent, 'hand')}; {seconds(spent, 'ours')}; {peak:,.0f} MB |",
    ]


def measure_spill(work: Path, events: int = 200_000_000, users: int = 2_470_000) -> list[str]:
    """The snapshot of one day from more events than its memory holds; its messages are counted in another way."""
    logs, features, day = work / "logs", work / "features", date(2026, 1, 1) + timedelta(days=90)
    make_logs(logs, events, users, 90, 0.17)
    print("logs made", flush=True)
    disk = 0
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
        built = alone.submit(build_spilling, logs, features, day)
        while not built.done():
            disk = max(disk, folder_bytes(features / ".building"))
            time.sleep(1)
    (cpu, wall), peak = built.result()
    file = features / f"date={day}" / "snapshot.parquet"
    known = f"event_timestamp < TIMESTAMPTZ '{day}' AND created_timestamp < TIMESTAMPTZ '{day}'"
    ((rows, messages, counted),) = (
        connect()
        .execute(f"""SELECT count(*), sum(messages_90d)::BIGINT,
        (SELECT count(DISTINCT message_id) FROM read_parquet('{logs}/messages/*/*.parquet') WHERE {known})
        FROM '{file}'""")
        .fetchall()
    )
    if (rows, messages) != (users, counted):
        raise SystemExit(f"{rows:,} users and {messages:,} messages; expected {users:,} and {counted:,}")
    return [
        f"| one day's snapshot from {events / 1e6:,.0f}M events of {users:,} users, memory limit 1 GB | ends "
        f"| {cpu:,.0f} s CPU, {wall:,.0f} s wall |",
        f"| peak of the process, Python and libraries included; largest size on disk | | {peak:,.0f} MB; "
        f"{disk / 1e9:,.1f} GB |",
        f"| users, and messages of 90 days against distinct ids in the logs | equal | {rows:,}; {messages:,} |",
    ]


def build_spilling(logs: Path, features: Path, day: date) -> tuple[Spent, float]:
    """CPU and wall seconds of one build, and the peak of its process in MB."""
    spent, _ = timed(lambda: build_snapshots(logs, features, day, only={day}, memory_limit="1GB"))
    return spent, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def folder_bytes(folder: Path) -> int:
    """Size of what lies in a folder now; files may come and go."""
    sizes = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            sizes += path.stat().st_size
    return sizes


def differences(one: Path, other: Path) -> dict[str, int]:
    """Rows that differ, by column: relative 1e-9 (the hand-written sums of minutes are floating-point)."""
    con, found = connect(), {}
    for column in COLUMNS:
        text = column in ("plan", "country", "device", "age_band")
        differ = (
            "a.{0} IS DISTINCT FROM b.{0}"
            if text
            else ("(a.{0} IS NULL) <> (b.{0} IS NULL) OR abs(a.{0}::DOUBLE - b.{0}) > 1e-9 * (1 + abs(b.{0}))")
        )
        joined = f"FROM '{one}' AS a FULL JOIN '{other}' AS b USING (user_id)"
        query = f"SELECT count(*) {joined} WHERE {differ.format(column)}"
        ((count,),) = con.execute(query).fetchall()
        found |= {column: count} if count else {}
    return found


def main() -> None:
    """Measure the parts named and write their lines."""
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", default=["join", "materialize", "build"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--events", type=int, default=20_000_000)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    titles = {"join": "Join", "materialize": "Materialize", "build": "Build", "spill": "Past memory"}
    if "<!-- features -->" not in DOCS.read_text(encoding="utf-8"):
        parts = "\n\n".join(f"<!-- features {name} -->\n<!-- /features {name} -->" for name in titles)
        intro = (
            "`python benchmarks/features.py [PART ...]`; two shared cores, one thread a method; ratios are medians "
            "over rounds in which the methods take turns: CPU time of the process, wall time in brackets."
        )
        write_section(DOCS, "features", f"## Features on one machine\n\n{intro}\n\n{parts}")
    for part in asked.parts:
        work = Path(tempfile.mkdtemp(prefix="tactful-bench-"))
        try:
            if part == "build":
                lines = measure_build(work, asked.rounds, asked.events)
            elif part == "spill":
                lines = measure_spill(work)
            else:
                lines = {"join": measure_join, "materialize": measure_materialize}[part](work, asked.rounds)
        finally:
            shutil.rmtree(work)
        today = f"{datetime.now(UTC):%Y-%m-%d}"
        rounds = "1 round" if part == "spill" or asked.rounds == 1 else f"{asked.rounds} rounds"
        versions = f"DuckDB {duckdb.__version__}, {rounds}, load {os.getloadavg()[1]:.0f}, {today}"
        head = [f"### {titles[part]} ({versions})", "", "| promise | target | measured |", "| --- | --- | --- |"]
        write_section(DOCS, f"features {part}", "\n".join([*head, *lines]))


if __name__ == "__main__":
    main()
