"""A slow twin of snapshots and point-in-time join: plain loops over raw rows, sharing no code with feature_repo."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import pandas as pd

DAY = timedelta(days=1)
TTL = {"user_profile": 14 * DAY}  # every other view: 3 days
PROFILE = ("plan", "country", "device", "age_band", "account_age_days")


def midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


@dataclass
class Oracle:
    """Raw rows by log and user, first copies only."""

    rows: dict[str, dict[str, list[dict[str, Any]]]]
    first_day: date

    @classmethod
    def read(cls, tables: dict[str, pd.DataFrame]) -> Oracle:
        rows: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for name, table in tables.items():
            first: dict[Any, dict[str, Any]] = {}
            for row in table.to_dict("records"):
                key = (row["user_id"], row["event_timestamp"]) if name == "users" else row[f"{_ID[name]}_id"]
                if key not in first or row["created_timestamp"] < first[key]["created_timestamp"]:
                    first[key] = row
            rows[name] = defaultdict(list)
            for row in first.values():
                rows[name][row["user_id"]].append(row)
        arrivals = [table["created_timestamp"].min() for table in tables.values()]
        return cls(rows, min(arrivals).date() + DAY)

    def features(self, user: str, day: date, known: date) -> dict[str, Any] | None:
        """Snapshot row of a user for `day`, as known at `known` 00:00; None without a profile."""
        at, by = midnight(day), midnight(known)
        seen = {
            name: [r for r in users.get(user, ()) if r["event_timestamp"] < at and r["created_timestamp"] < by]
            for name, users in self.rows.items()
        }
        if not seen["users"]:
            return None
        return _profile(seen["users"], at) | _activity(seen["sessions"], at) | _rest(seen, at)

    def corrected(self, user: str, day: date, known: date) -> bool:
        """Whether the snapshot of `day` got a correction at `known` 00:00: an older event arrived on the day before."""
        if not (known - 4 * DAY <= day <= known - DAY and day >= self.first_day):
            return False
        return any(
            row["event_timestamp"] < midnight(day)
            and midnight(known - DAY) <= row["created_timestamp"] < midnight(known)
            for users in self.rows.values()
            for row in users.get(user, ())
        )

    def at(self, user: str, moment: datetime, snapshots: set[date], corrections: set[date]) -> dict[str, Any]:
        """Features at a moment from the snapshot and correction files that exist, view by view."""
        wanted: dict[str, Any] = {}
        for view in ("user_profile", "rest"):
            for name, value in self._newest(user, moment, TTL.get(view, 3 * DAY), snapshots, corrections).items():
                if (name in PROFILE) == (view == "user_profile"):
                    wanted[name] = value
        return wanted

    def _newest(
        self, user: str, moment: datetime, ttl: timedelta, snapshots: set[date], corrections: set[date]
    ) -> dict[str, Any]:
        """Of the rows that are neither in the future nor expired: the newest event, and of its versions the newest."""
        day = moment.date()
        while midnight(day) + ttl >= moment:
            known = moment.date()
            while known >= day:
                exists = day in snapshots if known == day else known in corrections and self.corrected(user, day, known)
                row = self.features(user, day, known) if exists else None
                if row is not None:
                    return row
                known -= DAY
            day -= DAY
        return {}


_ID = {"sessions": "session", "messages": "message", "subscriptions": "subscription_event"}


def _days_since(moments: list[datetime], at: datetime) -> float:
    return (at - max(moments)) / DAY if moments else math.nan


def _profile(rows: list[dict[str, Any]], at: datetime) -> dict[str, Any]:
    newest = max(rows, key=lambda r: r["event_timestamp"])
    values = {name: newest[name] for name in PROFILE[:-1]}
    return values | {"account_age_days": (at - newest["signup_at"]) / DAY}


def _within(rows: list[dict[str, Any]], at: datetime, days: int) -> list[dict[str, Any]]:
    return [r for r in rows if r["event_timestamp"] >= at - days * DAY]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _activity(rows: list[dict[str, Any]], at: datetime) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for days in (7, 28):
        window = _within(rows, at, days)
        values[f"sessions_{days}d"] = len(window)
        values[f"minutes_{days}d"] = sum(r["minutes"] for r in window)
        values[f"ads_{days}d"] = sum(r["ads"] for r in window)
        values[f"active_days_{days}d"] = len({r["event_timestamp"].date() for r in window})
        values[f"skip_rate_{days}d"] = _ratio(sum(r["skips"] for r in window), sum(r["tracks"] for r in window))
    month = _within(rows, at, 28)
    values["tracks_7d"] = sum(r["tracks"] for r in _within(rows, at, 7))
    values["evening_share_28d"] = _ratio(sum(r["event_timestamp"].hour >= 18 for r in month), len(month))
    values["weekend_share_28d"] = _ratio(sum(r["event_timestamp"].weekday() >= 5 for r in month), len(month))
    values["minutes_trend"] = _ratio(values["minutes_7d"] / 7, values["minutes_28d"] / 28)
    values["minutes_90d"] = sum(r["minutes"] for r in _within(rows, at, 90))
    values["days_since_session"] = _days_since([r["event_timestamp"] for r in _within(rows, at, 90)], at)
    return values


def _rest(seen: dict[str, list[dict[str, Any]]], at: datetime) -> dict[str, Any]:
    quarter = _within(seen["messages"], at, 90)
    month = _within(seen["messages"], at, 28)
    dismissed = [r for r in quarter if r["action"] == "dismissed"]
    recent = _within(seen["subscriptions"], at, 90)
    return {
        "messages_7d": len(_within(seen["messages"], at, 7)),
        "messages_28d": len(month),
        "messages_90d": len(quarter),
        "clicks_28d": sum(r["action"] == "clicked" for r in month),
        "dismissals_28d": sum(r["action"] == "dismissed" for r in month),
        "dismissal_rate_90d": _ratio(len(dismissed), len(quarter)),
        "days_since_message": _days_since([r["event_timestamp"] for r in quarter], at),
        "days_since_dismissal": _days_since([r["event_timestamp"] for r in dismissed], at),
        "subscribed_ever": float(any(r["event"] == "start" for r in seen["subscriptions"])),
        "starts_90d": sum(r["event"] == "start" for r in recent),
        "cancels_90d": sum(r["event"] == "cancel" for r in recent),
        "days_since_subscription_event": _days_since([r["event_timestamp"] for r in seen["subscriptions"]], at),
    }
