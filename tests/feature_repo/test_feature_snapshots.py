"""Snapshots: the values, built once, whole, and the same however the work was cut."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from feature_logs import START, make_logs, write_logs
from feature_oracle import Oracle

from campaign import DataError, StoreError
from feature_repo import snapshots
from feature_repo.aggregates import COLUMNS
from feature_repo.contracts import ingest
from feature_repo.log_files import stale_days
from feature_repo.snapshots import build_snapshots

DAY = timedelta(days=1)


def read(path: Path) -> pd.DataFrame:
    return pq.read_table(path, partitioning=None).to_pandas()


def contents(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*.parquet"))
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def assert_equal_rows(found: pd.DataFrame, wanted: list[dict]) -> None:
    """Column by column; 1e-9 because the twin adds in another order."""
    for name in COLUMNS:
        expected = [row[name] for row in wanted]
        if found[name].dtype == object:
            assert found[name].tolist() == expected, name
        else:
            np.testing.assert_allclose(found[name], np.array(expected, float), rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "logs"
    write_logs(make_logs(users=40, days=12, seed=3), folder, 12)
    return folder


@pytest.mark.parametrize("number", [1, 2, 15, 33, 60])
def test_snapshot_equals_oracle(number: int, features_dir: Path, oracle: Oracle) -> None:
    day = START + number * DAY
    found = read(features_dir / f"date={day}" / "snapshot.parquet")
    users = sorted(u for u in oracle.rows["users"] if oracle.features(u, day, day) is not None)
    assert found["user_id"].tolist() == users
    assert set(found["event_timestamp"]) == set(found["created_timestamp"]) == {pd.Timestamp(day, tz="UTC")}
    assert_equal_rows(found, [oracle.features(u, day, day) for u in users])


@pytest.mark.parametrize("number", [2, 17, 34])
def test_corrections_equal_oracle(number: int, features_dir: Path, oracle: Oracle) -> None:
    known = START + number * DAY
    found = read(features_dir / f"date={known}" / "corrections.parquet")
    days = [known - back * DAY for back in (4, 3, 2, 1)]
    wanted = [
        (day, user)
        for day in days
        for user in sorted(oracle.rows["users"])
        if oracle.corrected(user, day, known) and oracle.features(user, day, known) is not None
    ]
    assert wanted
    assert list(zip(found["event_timestamp"].dt.date, found["user_id"], strict=True)) == wanted
    assert set(found["created_timestamp"]) == {pd.Timestamp(known, tz="UTC")}
    assert_equal_rows(found, [oracle.features(user, day, known) for day, user in wanted])


def test_snapshot_types_are_microseconds_utc_and_float64(features_dir: Path) -> None:
    schema = pq.read_schema(features_dir / f"date={START + DAY}" / "snapshot.parquet")
    types = {
        str(schema.field(n).type) for n in schema.names if n not in ("user_id", "plan", "country", "device", "age_band")
    }
    assert types == {"timestamp[us, tz=UTC]", "double"}


def test_build_day_by_day_equals_range(small: Path, tmp_path: Path) -> None:
    build_snapshots(small, tmp_path / "range")
    for number in range(1, 13):
        assert build_snapshots(small, tmp_path / "daily", START + number * DAY) == [START + number * DAY]
    assert contents(tmp_path / "daily") == contents(tmp_path / "range")


def test_build_in_any_chunks_and_time_zone_is_the_same(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_snapshots(small, tmp_path / "one")
    monkeypatch.setattr(snapshots, "CHUNK_ROWS", 100)
    monkeypatch.setenv("TZ", "America/New_York")
    build_snapshots(small, tmp_path / "many", threads=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "many")


def test_build_ignores_what_arrived_later(small: Path, tmp_path: Path) -> None:
    """The logs of later days change nothing: no leak from the future."""
    early = tmp_path / "logs"
    write_logs(make_logs(users=40, days=12, seed=3), early, 6)
    build_snapshots(early, tmp_path / "early")
    build_snapshots(small, tmp_path / "late", START + 6 * DAY)
    assert contents(tmp_path / "early") == contents(tmp_path / "late")


def test_build_again_does_nothing(small: Path, tmp_path: Path) -> None:
    assert len(build_snapshots(small, tmp_path / "f")) == 12
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "f").rglob("*.parquet")}
    assert build_snapshots(small, tmp_path / "f") == []
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "f").rglob("*.parquet")} == stamps


@pytest.mark.parametrize("step", ["_write", "_fsync", "rename"])
def test_build_killed_is_repaired_by_the_next_run(step: str, small: Path, tmp_path: Path) -> None:
    """Kill -9 before, within and after the writing of the fifth day; what is there is whole, the rest is built."""
    code = f"""
import os, signal, sys
from pathlib import Path
from feature_repo import snapshots
calls = 0
target = os if {step!r} == "rename" else snapshots
original = getattr(target, {step!r})
def dying(*arguments, **options):
    global calls
    calls += 1
    if calls == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **options)
setattr(target, {step!r}, dying)
snapshots.build_snapshots(Path({str(small)!r}), Path({str(tmp_path / "killed")!r}))
"""
    died = subprocess.run([sys.executable, "-c", code], check=False)
    assert died.returncode == -signal.SIGKILL
    build_snapshots(small, tmp_path / "whole")
    visible = {path: sha for path, sha in contents(tmp_path / "killed").items() if not path.startswith(".building")}
    assert visible.items() < contents(tmp_path / "whole").items()
    build_snapshots(small, tmp_path / "killed")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert not (tmp_path / "killed" / ".building").exists()


def test_build_first_day_is_the_second_of_the_logs(small: Path, tmp_path: Path) -> None:
    assert build_snapshots(small, tmp_path / "f", START + DAY) == [START + DAY]


def test_build_stops_at_today(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TACTFUL_NOW", f"{START + 3 * DAY}T23:30:00-02:00")  # already the next day in UTC
    assert build_snapshots(small, tmp_path / "f")[-1] == START + 4 * DAY


def test_build_with_a_log_that_never_was(small: Path, tmp_path: Path) -> None:
    """No message was ever sent: counts are 0, recencies null."""
    tables = make_logs(users=20, days=4, seed=1)
    del tables["messages"]
    write_logs(tables, tmp_path / "logs", 4)
    build_snapshots(tmp_path / "logs", tmp_path / "f")
    found = read(tmp_path / "f" / f"date={START + 4 * DAY}" / "snapshot.parquet")
    assert (found["messages_90d"] == 0).all()
    assert found[["dismissal_rate_90d", "days_since_message"]].isna().all(axis=None)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("none", "no logs; expected .*sessions.*date=YYYY-MM-DD"),
        ("future", r"logs end on 2026-03-12, so the last snapshot is 2026-03-13; asked until 2026-04-01"),
        ("no users", "logs/users: no profiles, so nobody would have features"),
        ("no date", r"sessions/date=yesterday: not a date; expected a folder date=YYYY-MM-DD"),
        ("corrupt", "a log cannot be read: .*part-0.parquet.*; `tactful check` names the file"),
    ],
)
def test_build_bad_input(case: str, message: str, small: Path, tmp_path: Path) -> None:
    logs = tmp_path / "none" if case == "none" else small
    if case in ("corrupt", "no users", "no date"):
        logs = tmp_path / "logs"
        write_logs(make_logs(users=20, days=4, seed=1), logs, 4)
        sessions = next(logs.glob("sessions/*/*.parquet"))
        if case == "corrupt":
            sessions.write_bytes(b"PAR1 and nothing else")
        elif case == "no users":
            shutil.rmtree(logs / "users")
        else:
            sessions.parent.rename(logs / "sessions" / "date=yesterday")
    with pytest.raises(DataError, match=message):
        build_snapshots(logs, tmp_path / "f", date(2026, 4, 1) if case == "future" else None)
    assert not list((tmp_path / "f").rglob("*.parquet"))


def test_build_sees_neither_empty_folders_nor_hidden_files(tmp_path: Path) -> None:
    """An exporter makes tomorrow's folder ahead, and writes under a name that begins with a dot."""
    logs = _logs(tmp_path / "logs")
    before = _rebuilt(logs, tmp_path / "f")
    (logs / "sessions" / f"date={START + 30 * DAY}").mkdir()
    (next(logs.glob("sessions/date=*")) / ".part.parquet").write_text("half")
    assert build_snapshots(logs, tmp_path / "f") == []
    assert contents(tmp_path / "f") == before
    assert ingest(logs, tmp_path / "quarantine") == []


def test_build_refuses_a_second_builder(small: Path, tmp_path: Path) -> None:
    with snapshots._only_builder(_made(tmp_path / "f")), pytest.raises(StoreError, match="another process is building"):
        build_snapshots(small, tmp_path / "f")


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _logs(folder: Path) -> Path:
    write_logs(make_logs(users=40, days=12, seed=3), folder, 12)
    return folder


def _rebuilt(logs: Path, folder: Path) -> dict[str, str]:
    build_snapshots(logs, folder)
    return contents(folder)


@pytest.mark.parametrize("table", ["sessions", "users", "subscriptions", "messages"])
def test_build_takes_up_a_file_that_came_late(table: str, tmp_path: Path) -> None:
    """A file that was mended, or delivered after its day's snapshot: the end is as if it had always been there."""
    logs = _logs(tmp_path / "logs")
    file = sorted((logs / table).glob("date=*/*.parquet"))[3]
    day = date.fromisoformat(file.parent.name.removeprefix("date="))
    aside = tmp_path / "mended.parquet"
    file.rename(aside)
    build_snapshots(logs, tmp_path / "f")
    aside.rename(file)
    told: list[str] = []
    built = build_snapshots(logs, tmp_path / "f", tell=told.append)
    assert built == [d for d in (START + n * DAY for n in range(1, 13)) if d > day]
    assert told == [
        f"{file.relative_to(logs)} came or changed after snapshots of its days were built: "
        f"{len(built)} days are built again"
    ]
    assert contents(tmp_path / "f") == _rebuilt(logs, tmp_path / "fresh")
    assert build_snapshots(logs, tmp_path / "f") == []


def test_build_takes_up_a_changed_file_also_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = _logs(tmp_path / "logs")
    build_snapshots(logs, tmp_path / "f")
    file = sorted((logs / "sessions").glob("date=*/*.parquet"))[2]
    table = pq.read_table(file, partitioning=None)
    pq.write_table(table.slice(0, len(table) // 2), file)

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(snapshots, "_build", dies)
        with pytest.raises(KeyboardInterrupt):
            build_snapshots(logs, tmp_path / "f")
    # days 3 to 12, whatever `until` says
    assert build_snapshots(logs, tmp_path / "f", START + DAY) == [START + n * DAY for n in range(3, 13)]
    assert contents(tmp_path / "f") == _rebuilt(logs, tmp_path / "fresh")


def test_build_keeps_snapshots_whose_old_logs_were_deleted(tmp_path: Path) -> None:
    logs = _logs(tmp_path / "logs")
    build_snapshots(logs, tmp_path / "f")
    before = contents(tmp_path / "f")
    for folder in logs.glob(f"*/date={START}"):
        shutil.rmtree(folder)
    assert build_snapshots(logs, tmp_path / "f") == []
    assert contents(tmp_path / "f") == before


def test_stale_days_end_where_a_log_is_forgotten() -> None:
    built = [date(2026, 1, 1) + n * DAY for n in range(200)]
    now = {f"{table}/date=2026-01-10/a.parquet": [1, 1] for table in ("sessions", "users")}
    found = stale_days({}, now, built)
    assert max(found["sessions/date=2026-01-10/a.parquet"]) == date(2026, 1, 10) + 95 * DAY
    assert max(found["users/date=2026-01-10/a.parquet"]) == built[-1]
    assert min(found["users/date=2026-01-10/a.parquet"]) == date(2026, 1, 11)
    assert stale_days(now, now, built) == stale_days(None, now, built) == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system")
@pytest.mark.parametrize("size", ["12k", "60k", "250k"])
def test_build_says_that_the_disk_is_full_and_goes_on_when_there_is_room(
    small: Path, tmp_path: Path, size: str
) -> None:
    features = tmp_path / "features"
    features.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(features)], check=True)
    try:
        with pytest.raises(
            StoreError, match=r"snapshots could not be built: .*No space left.*what is finished is kept"
        ):
            build_snapshots(small, features)
        assert not (features / ".building").exists()
        kept = contents(features)
        subprocess.run(["mount", "-o", "remount,size=64m", str(features)], check=True)
        build_snapshots(small, features)
        build_snapshots(small, tmp_path / "other")
        assert contents(features) == contents(tmp_path / "other")
        assert kept.items() <= contents(features).items()
    finally:
        subprocess.run(["umount", str(features)], check=True)


def test_build_in_folders_with_a_quote_in_their_names(small: Path, tmp_path: Path) -> None:
    shutil.copytree(small, tmp_path / "the user's logs")
    build_snapshots(tmp_path / "the user's logs", tmp_path / "it's here", START + 3 * DAY)
    build_snapshots(small, tmp_path / "plain", START + 3 * DAY)
    assert contents(tmp_path / "it's here") == contents(tmp_path / "plain")


def test_build_says_that_it_had_too_little_memory(small: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"Out of Memory.*memory_limit == '1MB' is too little .*give more") as told:
        build_snapshots(small, tmp_path, memory_limit="1MB")
    assert "make room" not in str(told.value)
    assert contents(tmp_path) == {}
