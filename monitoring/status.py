"""Where things stand: the champion, the newest features, the last verdict, today's decisions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from campaign import TactfulError, load_campaign
from feature_repo.freshness import too_old
from feature_repo.store import newest_snapshot, open_store
from models.registry import read_pointer
from models.verdicts import broken_weeks, last_verdict

T = TypeVar("T")


def status(data: Path, decided_today: Counter[str], now: datetime) -> dict[str, Any]:
    """One value for each question; null where there is nothing yet.

    Args:
        data: data folder.
        decided_today: decisions the service logged today, by reason.
        now: the clock that decisions are made by.
    """
    pointer = read_pointer()
    promoted = [entry["at"] for entry in pointer.history if entry["tag"] == pointer.champion]
    day = _or_none(lambda: newest_snapshot(data / "features"))
    old = too_old(day, now) if day else None
    return {
        "campaign": load_campaign().name,
        "champion": pointer.champion,
        "champion_since": promoted[-1] if promoted else None,
        "challenger": pointer.challenger,
        "features_day": str(day) if day else None,
        "features_too_old": old.found if old else None,
        "materialized_until": _or_none(_materialized),
        "last_week": _last_week(data / "monitoring"),
        "broken_weeks": list(broken_weeks(data / "monitoring").values()),
        "decisions_today": dict(decided_today.most_common()),
    }


def _or_none(read: Callable[[], T]) -> T | None:
    try:
        return read()
    except TactfulError:  # nothing there yet; `tactful doctor` says why
        return None


def _materialized() -> str | None:
    """Until when every view of the feature store was materialized, as Feast's registry has it."""
    ends: list[datetime | None] = [view.most_recent_end_time for view in open_store().list_feature_views()]
    known = [end for end in ends if end is not None]
    return f"{min(known):%Y-%m-%d %H:%M} UTC" if known and len(known) == len(ends) else None


def _last_week(folder: Path) -> dict[str, Any] | None:
    found = last_verdict(folder)
    return {name: found[name] for name in ("week", "action", "reasons")} if found else None


# what is not there yet -> the command that makes it
NEXT = {
    "champion": "none yet -> tactful train, then tactful promote",
    "features": "none yet -> tactful features",
    "online store": "empty -> feast -c feature_repo apply, then feast -c feature_repo materialize-incremental TIME",
    "last verdict": "none yet -> tactful monitor",
    "decided today": "nothing -> bentoml serve answers; tactful doctor says what is missing",
}


def status_text(found: dict[str, Any]) -> str:
    """The same for a person; where there is nothing yet, the command that makes it."""
    week, today = found["last_week"], found["decisions_today"]
    old = ": too old, decisions answer stale_features -> tactful doctor" if found["features_too_old"] else ""
    rows = {
        "campaign": found["campaign"],
        "champion": f"{found['champion']} since {found['champion_since'][:16]}" if found["champion"] else None,
        "challenger": found["challenger"] or "none",
        "features": f"snapshots to {found['features_day']}{old}" if found["features_day"] else None,
        "online store": f"filled to {found['materialized_until']}" if found["materialized_until"] else None,
        "last verdict": f"{week['week']}: {week['action']}" if week else None,
        "decided today": ", ".join(f"{n:,} {reason}" for reason, n in today.items()),
    }
    if found["broken_weeks"]:
        rows["not trained on"] = (
            f"{'; '.join(found['broken_weeks'])}: broken data -> mend it, then tactful monitor --week DATE"
        )
    return "\n".join(f"{name:<14} {value or NEXT[name]}" for name, value in rows.items())
