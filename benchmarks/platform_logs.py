"""Raw logs and decisions of a platform of any size, written by DuckDB: 30 times faster than simulating lives.

Users are alike and nothing causes anything, so no model trained on them is worth a look; rows, columns, keys, late and
repeated events are as in docs/logs.md, and so is what reading them costs.
"""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path
from typing import Any

import duckdb

FIRST_DAY = date(2026, 1, 1)
WINDOW_DAYS = 28
START = f"TIMESTAMPTZ '{FIRST_DAY}'"


def connect(**settings: Any) -> duckdb.DuckDBPyConnection:
    """DuckDB in UTC with one thread."""
    con = duckdb.connect(config={"threads": 1} | settings)
    con.execute("SET TimeZone = 'UTC'")
    return con


def make_logs(logs: Path, events: int, users: int, days: int, messages: float = 0.05) -> None:
    """Raw logs by arrival day: 1 event in 200 arrives days late, 1 session in 1,100 twice.

    Args:
        logs: an empty folder.
        events: sessions and messages of all days together.
        users: every one has a profile from the first day on; 1 in 90 starts, renews or cancels on a day.
        days: from FIRST_DAY on.
        messages: share of the events.
    """
    con = connect()
    con.execute("SELECT setseed(0.25)")
    who = f"'u' || lpad(floor(random() * {users})::BIGINT::VARCHAR, 8, '0') AS user_id"
    sizes = {"sessions": round(events / days * (1 - messages)), "messages": round(events / days * messages)}
    sizes["subscriptions"] = max(1, users // 90)
    for day in range(days):
        arrived = f"{START} + INTERVAL {day} DAY + to_microseconds((random() * 86399e6)::BIGINT)"
        late = "to_microseconds(CASE WHEN random() < .005 THEN (random() * 3 * 86400e6)::BIGINT ELSE 0 END)"
        files = {name: _file(logs / name, FIRST_DAY + timedelta(days=day)) for name in sizes}
        rows = f"""SELECT *, greatest(created_timestamp - {late}, {START}) AS event_timestamp
            FROM (SELECT {who}, {arrived} AS created_timestamp"""
        con.execute(f"""COPY (WITH s AS MATERIALIZED (
            {rows}, 's{day}-' || range AS session_id, 1 + floor(random() * 9000) / 100 AS minutes,
            (random() * 30)::INT AS tracks, (random() * 9)::INT AS skips, (random() * 4)::INT AS ads,
            'home' AS surface FROM range({sizes["sessions"]})))
            FROM s UNION ALL FROM s WHERE tracks = 7 AND ads = 2 AND skips = 3) TO '{files["sessions"]}'""")
        con.execute(f"""COPY ({rows}, 'm{day}-' || range AS message_id, 'a' AS arm, 'banner' AS format,
            ['none', 'clicked', 'dismissed'][1 + (random() * 2.99)::INT % 3] AS action
            FROM range({sizes["messages"]}))) TO '{files["messages"]}'""")
        con.execute(f"""COPY ({rows}, 'b{day}-' || range AS subscription_event_id,
            ['start', 'renew', 'cancel'][1 + range % 3] AS event, 9.99 AS price
            FROM range({sizes["subscriptions"]}))) TO '{files["subscriptions"]}'""")
    con.execute(f"""COPY (SELECT 'u' || lpad(range::VARCHAR, 8, '0') AS user_id, {START} AS event_timestamp, {START} AS
        created_timestamp, ['free', 'premium', 'trial'][1 + range % 3] AS plan, 'SE' AS country, 'ios' AS device,
        '18-24' AS age_band, {START} - INTERVAL 30 DAY AS signup_at FROM range({users}))
        TO '{_file(logs / "users", FIRST_DAY)}'""")


def make_decisions(decisions: Path, users: int, days: int, holdout_share: float) -> None:
    """A random phase: every user once in each WINDOW_DAYS from the 28th day on, in the layout of the decision log."""
    con = connect()
    con.execute("SELECT setseed(0.75)")
    control = holdout_share + (1 - holdout_share) / 2
    for day in range(WINDOW_DAYS, days):
        con.execute(f"""COPY (SELECT 'd{day}-' || u AS decision_id, 'u' || lpad(u::VARCHAR, 8, '0') AS user_id,
            {START} + INTERVAL {day} DAY + to_microseconds((random() * 86399e6)::BIGINT) AS decided_at,
            CASE WHEN held THEN 'holdout' ELSE 'exploration' END AS layer, layer AS reason, arm,
            CASE WHEN arm = 0 THEN {control} ELSE {1 - control} END AS propensity,
            [{control}::DOUBLE, {1 - control}::DOUBLE] AS propensities,
            '{{"holdout_share": {holdout_share}}}' AS salts, NULL::VARCHAR AS experiment, '' AS model_tag,
            NULL::TIMESTAMPTZ AS feature_timestamp, (random() * 23)::INT AS hour, 'home' AS surface
            FROM (SELECT *, CASE WHEN held THEN 0 ELSE floor(random() * 2) END::INT AS arm
            FROM (SELECT range AS u, hash(range) % 1000 < {1000 * holdout_share} AS held
            FROM range({day % WINDOW_DAYS}, {users}, {WINDOW_DAYS}))))
            TO '{_file(decisions, FIRST_DAY + timedelta(days=day))}'""")


def _file(folder: Path, day: date) -> Path:
    """The file of one day, its folder made."""
    made = folder / f"date={day}"
    made.mkdir(parents=True)
    return made / "part.parquet"
