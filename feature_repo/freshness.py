"""How long features are good: the views that are past their ttl at a moment, and what to do about it."""

from __future__ import annotations

import os
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple

from feature_repo.store import import_feast


class TooOld(NamedTuple):
    """Features of a day that decisions can no longer be made with: what is wrong, and a line for each way out."""

    found: str
    fix: str


def ttl_days() -> dict[str, float]:
    """Days that the values of each view of the service are good, from its definitions; nothing need be applied."""
    import_feast()
    from feature_repo import views
    from feature_repo.services import uplift_v1

    ttls: dict[str, timedelta] = {v.name: v.ttl for v in vars(views).values() if getattr(v, "ttl", None)}
    asked: list[Any] = uplift_v1.feature_view_projections
    return {p.name: ttls[p.name] / timedelta(days=1) for p in asked if p.name in ttls}


def too_old(day: date, now: datetime) -> TooOld | None:
    """What is to be said about features of a day (UTC midnight) at `now`; None while every view is good."""
    age = now - datetime(day.year, day.month, day.day, tzinfo=UTC)
    if age <= timedelta(days=1):  # no ttl is shorter; Feast takes seconds to import
        return None
    ttls = ttl_days()
    expired = [view for view, days in ttls.items() if age > timedelta(days=days)]
    if not expired:
        return None
    least = min(ttls[view] for view in expired)
    return TooOld(
        f"the newest features, of {day}, are {age.days} days old, past the ttl of {', '.join(expired)} "
        f"({least:g} days{' or more' if least < max(ttls[view] for view in expired) else ''}): "
        "decisions answer stale_features",
        f"bring logs up to {(now - timedelta(days=min(ttls.values()))).date()} or later and run tactful features; "
        "tactful doctor then says how to fill the online store\n"
        f"or try the service on these logs: export TACTFUL_NOW={day}T12:00:00, the clock of tactful and the service; "
        f"then {fill(day)}",
    )


def fill(day: date) -> str:
    """The command that writes the features of a day into the online store, whatever was materialized before."""
    profile = os.environ.get("TACTFUL_STORE", "local")
    chosen = "" if profile == "local" else f"-f feature_repo/feature_store.{profile}.yaml "
    return f"feast -c feature_repo {chosen}materialize {day}T00:00:00 {day}T00:00:00"
