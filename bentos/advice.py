"""Why a user's features could not be used, and what to do: what stands behind two reasons of a decision."""

from __future__ import annotations

from datetime import datetime

from campaign import StoreError, data_dir
from feature_repo.freshness import fill, too_old
from feature_repo.store import newest_snapshot


def advice(reason: str, now: datetime) -> str:
    """Cause and remedy of a reason, a line each; empty where the reason says it all."""
    if reason != "stale_features":
        return ""
    try:
        newest = newest_snapshot(data_dir() / "features")
    except StoreError as error:
        return str(error)
    if old := too_old(newest, now):
        return f"{old.found}\n{old.fix}"
    return f"snapshots go to {newest}, the online store does not hold them: {fill(newest)}"
