"""Feast's own commands, as documented, on a copy of the repository; and a light import."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from datetime import datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pyarrow.parquet as pq
import pytest
from feature_world import LAST, ROOT, Repo, copy_repo

from feature_repo.aggregates import COLUMNS
from feature_repo.freshness import fill


def test_materialize_incremental(repo: Repo, tmp_path: Path) -> None:
    """Up to a day long past, where Feast's own engine writes nothing. The machine is not in UTC."""
    fresh = Repo(copy_repo(tmp_path / "feature_repo"), repo.data)
    shutil.copytree(repo.path / "data", fresh.path / "data", ignore=shutil.ignore_patterns("online.db"))
    with (
        sqlite3.connect(repo.path / "data" / "online.db") as applied,
        sqlite3.connect(fresh.path / "data" / "online.db") as to,
    ):
        applied.backup(to)
        for name in tables(to):
            to.execute(f"DELETE FROM {name}")
    done = fresh.feast("materialize-incremental", f"{LAST}T00:00:00", TZ="America/New_York")
    assert done.returncode == 0, done.stderr
    noise = [line for line in done.stderr.splitlines() if "Warning" in line or "WARNING" in line or "leak" in line]
    assert noise == []
    users = pq.read_metadata(repo.data / "features" / f"date={LAST}" / "snapshot.parquet").num_rows
    with sqlite3.connect(fresh.path / "data" / "online.db") as db:
        # `eligibility` is pushed by `tactful score --push`, never materialized
        rows = {
            name: db.execute(f"SELECT count(*), min(event_ts), max(event_ts) FROM {name}").fetchone()
            for name in tables(db)
        }
    assert [name for name, (count, *_) in rows.items() if not count] == ["tactful_eligibility"]
    filled = [row for row in rows.values() if row[0]]
    assert sum(count for count, *_ in filled) == len(COLUMNS) * users
    # Feast's SQLite store writes UTC as if it were local time, and reads it back the same way.
    local = datetime.combine(LAST, time(), ZoneInfo("America/New_York"))
    assert {stamp for _, *stamps in filled for stamp in stamps} == {int(local.timestamp())}


def test_materialize_incremental_says_which_views_get_nothing(repo: Repo, tmp_path: Path) -> None:
    """A week after the last snapshot only the profile is still good; the day itself fills them all, afterwards too."""
    fresh = Repo(copy_repo(tmp_path / "feature_repo"), repo.data)
    assert fresh.feast("apply").returncode == 0
    done = fresh.feast("materialize-incremental", f"{LAST + timedelta(days=7)}T12:00:00")
    assert done.returncode == 0, done.stderr
    assert f"the newest row, of {LAST}, is older than they may be; `tactful doctor`" in done.stderr
    assert "activity_28d" in done.stderr.partition("nothing is written for ")[2].partition(":")[0]
    assert filled(fresh) == {"tactful_user_profile"}
    done = fresh.feast(*fill(LAST).split()[3:])
    assert done.returncode == 0, done.stderr
    assert len(filled(fresh)) == 5


def filled(repo: Repo) -> set[str]:
    with sqlite3.connect(repo.path / "data" / "online.db") as db:
        return {name for name in tables(db) if db.execute(f"SELECT 1 FROM {name}").fetchone()}


@pytest.mark.redis
def test_feast_commands_with_the_redis_profile(repo: Repo, redis_port: int, tmp_path: Path) -> None:
    """As the README has it: from the root, the profile by its path. A time without snapshots is said."""
    fresh = Repo(copy_repo(tmp_path / "feature_repo"), repo.data, "redis")
    profile = fresh.path / "feature_store.redis.yaml"
    profile.write_text(profile.read_text().replace("127.0.0.1:6379", f"127.0.0.1:{redis_port}"))
    done = fresh.feast("apply")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (fresh.path / "data" / "registry.redis.db").exists()
    done = fresh.feast("materialize-incremental", "2020-02-02T00:00:00")  # before the first snapshot
    assert done.returncode == 0, done.stdout + done.stderr
    assert "to 2020-02-02 00:00 UTC, so nothing is written; for earlier days: feast materialize" in done.stderr


def tables(db: sqlite3.Connection) -> list[str]:
    return [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]


def test_import_is_light() -> None:
    """The log contracts, snapshots and retrieval load without Feast: it takes seconds."""
    code = "import sys, feature_repo.snapshots, feature_repo.retrieval; print('feast' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_feastignore_lists_every_file_but_the_services() -> None:
    """A definition read twice, under two names, would be defined twice."""
    folder = ROOT / "feature_repo"
    ignored = {line for line in (folder / ".feastignore").read_text().splitlines() if line and not line.startswith("#")}
    assert ignored == {p.name for p in folder.glob("*.py")} - {"__init__.py", "services.py"}


def test_profiles_differ_only_in_the_online_store() -> None:
    import yaml

    local, redis = (
        yaml.safe_load((ROOT / "feature_repo" / f"feature_store{p}.yaml").read_text()) for p in ("", ".redis")
    )
    assert {k for k in local if local[k] != redis[k]} == {"registry", "online_store"}
    assert timedelta(seconds=local["registry"]["cache_ttl_seconds"]) <= timedelta(minutes=10)
