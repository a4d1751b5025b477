"""What one day costs at 10M, 100M and 500M users: the tables of docs/scale.md, from benchmarks/growth.csv.

    .venv/bin/python benchmarks/scale.py

A step's CPU is that of the largest size measured, carried on by the slope between the two largest sizes, at least 1:
nothing here is hoped to get cheaper by the user. tests/docs/test_docs_scale.py holds the page to it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
from experiment import write_section  # noqa: E402  # after its folder is known
from growth import DAYS, DOCS, EVENTS, Costs, marginal, median, read_results  # noqa: E402

PAGE = ROOT / "docs" / "scale.md"
USERS = (10_000_000, 100_000_000, 500_000_000)
SESSIONS = 0.73  # a user and day, as in the simulator; each asks the service once
PEAK = 3.0  # busiest hour over the mean hour: assumed
EVENT_BYTES = 28  # of a generated session or message in Parquet
SNAPSHOT_BYTES = 81  # of a user's row in a computed snapshot, at 10,000 users
DAILY = {
    "features": "snapshot of the day, from 90 days of logs",
    "score": "every user scored",
    "redis": "every user into Redis",
}
WEEKLY = {
    "drift": "drift counts of 1.1 decisions a user",
    "values": "policy values of these",
    "frame": "training frame of these, joined to 90 days of snapshots",
    "stream": "the network on 55% of these",
}


def core_hours(costs: Costs, step: str, users: int) -> float:
    """CPU hours of one run of a step."""
    sizes = costs[step]
    largest = max(sizes)
    growth = max(1.0, marginal(sizes))
    return median(sizes[largest], "cpu_s") / 3600 * (users / largest) ** growth


def redis_gb(costs: Costs, users: int) -> float:
    """Memory of Redis: resident bytes a user between the two largest sizes, times users."""
    sizes = costs["redis"]
    low, high = sorted(sizes)[-2:]
    return (median(sizes[high], "redis_gb") - median(sizes[low], "redis_gb")) / (high - low) * users


def request_ms(benchmarks: str) -> dict[str, float]:
    """CPU of one decision about one user, from the tables of docs/benchmarks.md: a lone request, and of 16 at once."""
    found = {}
    for label, clients in (("alone", 1), ("busy", 16)):
        part = benchmarks.split(f"\n{clients} at a time, 1 user a request:")[1]
        match = re.search(r"\(d\) Tactful, Redis \| ([\d.]+) \|", part)
        if match is None:
            raise SystemExit(f"docs/benchmarks.md: no row '(d) Tactful, Redis' for {clients} at a time")
        found[label] = float(match[1])
    return found


def model(costs: Costs, benchmarks: str, users: int) -> dict[str, float]:
    """Every number of the page for so many users, by the label of its row; of the steps measured at two sizes."""
    events, ms = EVENTS * users, request_ms(benchmarks)
    peak = SESSIONS * users / 86_400 * PEAK
    rows = {
        "events a day, millions": events / 1e6,
        "logs a day, GB": events * EVENT_BYTES / 1e9,
        "logs of the 90 days that are read, GB": events * EVENT_BYTES * DAYS / 1e9,
        "a snapshot, GB": users * SNAPSHOT_BYTES / 1e9,
    }
    for often, steps in (("daily", DAILY), ("weekly", WEEKLY)):
        known = {step: what for step, what in steps.items() if len(costs.get(step, {})) > 1}
        rows |= {f"{often}, core-hours: {what}": core_hours(costs, step, users) for step, what in known.items()}
    if len(costs.get("redis", {})) > 1:
        rows["Redis, GB of memory"] = redis_gb(costs, users)
    return rows | {
        "decisions a second in the busiest hour": peak,
        "cores for them, one request at a time": peak * ms["alone"] / 1000,
        "cores for them, requests met 16 at once": peak * ms["busy"] / 1000,
    }


def page_table(costs: Costs, benchmarks: str) -> str:
    """The table of the page."""
    columns = [model(costs, benchmarks, users) for users in USERS]
    head = "| | " + " | ".join(f"{users / 1e6:,.0f}M users" for users in USERS) + " |"
    lines = [f"| {label} | {' | '.join(_figures(column[label]) for column in columns)} |" for label in columns[0]]
    return "\n".join([head, "| --- | ---: | ---: | ---: |", *lines])


def _figures(value: float) -> str:
    """Two figures that count: more would promise more than is known."""
    return f"{float(f'{value:.2g}'):,.10g}"


if __name__ == "__main__":
    write_section(PAGE, "scale", page_table(read_results(), DOCS.read_text(encoding="utf-8")))
