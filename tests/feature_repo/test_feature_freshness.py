"""Features of a day against the clock: which views are past their ttl, and the way out."""

from datetime import UTC, date, datetime, timedelta

import pytest
from feature_world import Repo

from feature_repo.freshness import fill, too_old, ttl_days
from feature_repo.retrieval import feature_schema, open_store

DAY = date(2026, 6, 1)
MIDNIGHT = datetime(2026, 6, 1, tzinfo=UTC)


def test_ttl_days_are_those_the_store_applies(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TACTFUL_DATA", str(repo.data))
    schema = feature_schema(open_store(repo.path))
    assert ttl_days() == {schema.views[name]: days for name, days in schema.ttl_days.items()}


def test_too_old_begins_after_the_shortest_ttl() -> None:
    short, longest = min(ttl_days().values()), max(ttl_days().values())
    assert too_old(DAY, MIDNIGHT + timedelta(days=short)) is None
    old = too_old(DAY, MIDNIGHT + timedelta(days=short, microseconds=1))
    assert old is not None
    assert old.found.startswith("the newest features, of 2026-06-01, are 3 days old, past the ttl of activity_7d")
    assert "user_profile" not in old.found
    assert "bring logs up to 2026-06-01 or later" in old.fix
    assert "export TACTFUL_NOW=2026-06-01T12:00:00" in old.fix
    assert fill(DAY) in old.fix
    oldest = too_old(DAY, MIDNIGHT + timedelta(days=longest, hours=1))
    assert oldest is not None
    assert all(view in oldest.found for view in ttl_days())


def test_fill_names_the_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fill(DAY) == "feast -c feature_repo materialize 2026-06-01T00:00:00 2026-06-01T00:00:00"
    monkeypatch.setenv("TACTFUL_STORE", "redis")
    assert fill(DAY).startswith("feast -c feature_repo -f feature_repo/feature_store.redis.yaml materialize 2026")
