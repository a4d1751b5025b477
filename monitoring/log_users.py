"""Whom the rows of your logs are about: users without a profile, ids in two forms, profiles that contradict another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import duckdb

from feature_repo.contracts import LOGS
from feature_repo.duck import connect
from feature_repo.ids import difference, plain_sql
from monitoring.doctor import Finding

Files = Mapping[str, Sequence[str]]
"""Parquet files of each table that has any."""


def strangers(files: Files) -> Finding:
    """Rows of users without a profile: no feature is made for them, so they count nowhere.

    Args:
        files: with those of the table users.
    """
    with connect() as con:
        con.execute("CREATE TABLE known AS SELECT DISTINCT user_id FROM read_parquet($f)", {"f": files["users"]})
        con.execute("CREATE TABLE others (log VARCHAR, user_id VARCHAR, n BIGINT)")
        for log in files:
            con.execute(
                "INSERT INTO others SELECT $log, user_id, count(*) FROM read_parquet($f, union_by_name = true) "
                "ANTI JOIN known USING (user_id) GROUP BY user_id",
                {"log": log, "f": files[log]},
            )
        (known,) = con.execute("SELECT count(*) FROM known").fetchone() or (0,)
        by_log = con.execute("SELECT log, sum(n) FROM others GROUP BY log").fetchall()
        rows = dict(by_log)
        if not rows:
            return Finding("profiles", "ok", f"{known:,} users; every row belongs to one")
        users, example = con.execute("SELECT count(DISTINCT user_id), min(user_id) FROM others").fetchone() or (0, "")
        forms, formed = _other_forms(con)
    parts = ", ".join(f"{rows[log]:,} rows of {log}" for log in files if log in rows)
    said = f"{known:,} users; {parts} belong to {users:,} others, for example {example!r}"
    fixes = [f"write ids in every table as in users: {line}" for line in forms]
    if users > formed:
        fixes.append("they count nowhere: bring these users into the table users, if they are yours")
    return Finding("profiles", "look", said, "\n".join(fixes))


def _other_forms(con: duckdb.DuckDBPyConnection) -> tuple[list[str], int]:
    """A line for each log whose ids are known in another form, with an example of both; and how many such users."""
    con.execute(
        f"CREATE TABLE formed AS SELECT log, others.user_id AS theirs, min(known.user_id) AS ours FROM others "
        f"JOIN known ON {plain_sql('others.user_id')} = {plain_sql('known.user_id')} GROUP BY log, theirs"
    )
    found = con.execute(
        "SELECT log, count(*), min(theirs), arg_min(ours, theirs) FROM formed GROUP BY log ORDER BY log"
    )
    lines = [
        f"{log} has {theirs!r} where users has {ours!r} ({difference(theirs, ours)}), and {count - 1:,} more such"
        for log, count, theirs, ours in found.fetchall()
    ]
    (users,) = con.execute("SELECT count(DISTINCT theirs) FROM formed").fetchone() or (0,)
    return lines, users


def twins(files: Sequence[str]) -> Finding | None:
    """Two profiles of a user at one time that say different things: only one of them can count."""
    values = [name for name in LOGS["users"].columns if name not in ("user_id", "event_timestamp", "created_timestamp")]
    kinds = ", ".join(f"count(DISTINCT coalesce({name}::VARCHAR, '')) AS {name}" for name in values)
    with connect() as con:
        con.execute("SET TimeZone = 'UTC'")
        con.execute(
            f"CREATE TABLE twins AS SELECT user_id, event_timestamp, count(DISTINCT created_timestamp) AS arrivals, "
            f"{kinds} FROM read_parquet($f) GROUP BY ALL HAVING greatest({', '.join(values)}) > 1",
            {"f": list(files)},
        )
        count, early = con.execute("SELECT count(*), count_if(arrivals > 1) FROM twins").fetchone() or (0, 0)
        if not count:
            return None
        user, at, _, *differ = con.execute("FROM twins ORDER BY user_id, event_timestamp LIMIT 1").fetchone() or ()
        column = next(name for name, n in zip(values, differ, strict=True) if n > 1)
        two = con.execute(
            f"SELECT DISTINCT {column}::VARCHAR FROM read_parquet($f) WHERE user_id = $user AND event_timestamp = $at "
            "ORDER BY 1 LIMIT 2",
            {"f": list(files), "user": user, "at": at},
        ).fetchall()
    said = " and ".join(repr(value) for (value,) in two)
    chance = "" if early == count else "; of those that arrived together chance decides"
    return Finding(
        "twin profiles",
        "look",
        f"{count:,} times a user has two profiles at one time, for example {user!r} at {at:%Y-%m-%d %H:%M:%S} UTC: "
        f"{column} {said}",
        f"the one that arrived first counts{chance}: give the later one its own event_timestamp, or leave one out",
    )
