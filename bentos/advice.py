"""Why a user's features could not be used, and what to do: what stands behind two reasons of a decision."""

from __future__ import annotations

from datetime import datetime

from campaign import StoreError, data_dir
from feature_repo.freshness import fill, too_old
from feature_repo.ids import difference, ids_like
from feature_repo.store import newest_snapshot


def advice(user_id: str, reason: str, now: datetime) -> str:
    """Cause and remedy of a reason, a line each; empty where the reason says it all."""
    if reason not in ("stale_features", "unknown_user"):
        return ""
    try:
        newest = newest_snapshot(data_dir() / "features")
        if reason == "stale_features" and (old := too_old(newest, now)):
            return f"{old.found}\n{old.fix}"
        return unknown_id(user_id) or f"snapshots go to {newest}, but not in the online store: {fill(newest)}"
    except StoreError as error:
        return str(error)


def unknown_id(user_id: str) -> str:
    """What is wrong with an id that the newest snapshot does not have; empty where it has it.

    Raises: StoreError: there is no snapshot, or it cannot be read.
    """
    newest = newest_snapshot(data_dir() / "features")
    like, example = ids_like(data_dir() / "features" / f"date={newest}" / "snapshot.parquet", user_id)
    if user_id in like:
        return ""
    if like:
        form = difference(user_id, like[0])
        return f"no user {user_id!r}, but {like[0]!r} (apart by {form}): ask by the id as the table users has it"
    return (
        f"the snapshot of {newest} has no user {user_id!r}; its ids are written like {example!r}. A new user is known "
        "from the midnight after the profile arrived"
    )
