"""`tactful doctor` and `tactful status` on a world that is whole, and on ones that are not."""

import json
import shutil
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from serving_world import END, NOW, world_env

from campaign import ROOT
from monitoring.doctor import examine
from monitoring.status import status_text


def tactful(world, *words, **more):
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *words],
        cwd=ROOT,
        env=world_env(world, **more),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, json.loads(done.stdout)


def test_doctor_finds_a_whole_world_in_place(world):
    code, findings = tactful(world, "doctor", "--json")
    by_part = {f["part"]: f for f in findings}
    assert code == 0
    assert [p for p, f in by_part.items() if f["verdict"] == "mend"] == []
    assert by_part["snapshots"]["found"] == f"newest of {END}"
    assert by_part["online store"]["found"] == f"sqlite: features of {END}"
    assert by_part["model"]["found"].startswith("champion tactful:")
    assert by_part["clock"]["found"].startswith("$TACTFUL_NOW says 2026-06-01 12:00 UTC, the machine 20")


def test_old_features_are_named_everywhere_with_the_way_out(world):
    """Eight days after the newest snapshot every decision is `stale_features`."""
    late = (NOW + timedelta(days=8)).isoformat()
    code, findings = tactful(world, "doctor", "--json", TACTFUL_NOW=late)
    assert code == 3
    (old,) = [f for f in findings if f["verdict"] == "mend"]
    assert old["part"] == "snapshots"
    assert old["found"].startswith(f"the newest features, of {END}, are 8 days old, past the ttl of activity_7d, ")
    assert f"export TACTFUL_NOW={END}T12:00:00" in old["fix"]
    _, told = tactful(world, "explain", "u0000001", "--json", TACTFUL_NOW=late)
    assert (told["reason"], told["advice"]) == ("stale_features", f"{old['found']}\n{old['fix']}")
    assert tactful(world, "status", "--json", TACTFUL_NOW=late)[1]["features_too_old"] == old["found"]
    _, findings = tactful(world, "check", "--json", TACTFUL_NOW=late)
    assert [(f["verdict"], f["fix"]) for f in findings if f["part"] == "age"] == [("look", old["fix"])]


def test_explain_shows_how_ids_are_written(world):
    """Another form of a known id, an id like no other, and one that is right."""
    for asked, said in (
        (" U0000001", "no user ' U0000001', but 'u0000001' (apart by white space and other case): ask by the id as"),
        ("17", f"the snapshot of {END} has no user '17'; its ids are written like 'u0"),
        ("u0000001", ""),
    ):
        _, told = tactful(world, "explain", asked, "--json")
        assert told["advice"].startswith(said)
        assert bool(told["advice"]) == bool(said)


def test_doctor_names_views_that_were_left_empty(world, tmp_path):
    """As `feast materialize-incremental` leaves them a week after the newest snapshot."""
    shutil.copytree(world / "repo", tmp_path / "repo")
    with sqlite3.connect(tmp_path / "repo" / "data" / "online.db") as db:
        db.execute("DELETE FROM tactful_activity_7d")
    code, findings = tactful(world, "doctor", "--json", TACTFUL_FEATURE_REPO=str(tmp_path / "repo"))
    assert code == 3
    (empty,) = [f for f in findings if f["verdict"] == "mend"]
    assert empty["part"] == "online store"
    assert "some views are empty or expired" in empty["found"]
    assert empty["fix"] == f"feast -c feature_repo materialize {END}T00:00:00 {END}T00:00:00"


def test_doctor_names_what_must_be_mended(world):
    """Another campaign than the model was trained for, and features of another repository."""
    text = (ROOT / "campaign.toml").read_text().replace('name = "premium_offer"', 'name = "discount"')
    other = world / "other.toml"
    other.write_text(text)
    code, findings = tactful(world, "doctor", "--json", TACTFUL_CAMPAIGN=str(other))
    assert code == 3
    mend = {f["part"]: f["fix"] for f in findings if f["verdict"] == "mend"}
    assert mend == {"model": "tactful train, then tactful promote"}


def test_doctor_of_nothing_says_where_to_begin(tmp_path, monkeypatch):
    monkeypatch.setenv("TACTFUL_DATA", str(tmp_path / "data"))
    found = {f.part: f for f in examine(datetime.now(UTC))}
    assert {part: f.fix for part, f in found.items() if f.verdict == "mend"} == {
        "logs": "tactful simulate, or put your own there, or map them in logs.toml (docs/logs.md)",
        "clock": "",
        "snapshots": "tactful features",
        "online store": "",
        "model": "tactful train, then tactful promote",
    }
    assert (found["clock"].found, found["online store"].found) == ("waits for logs", "waits for snapshots")


@pytest.mark.parametrize(
    ("now", "verdict", "words"),
    [
        (datetime(2026, 5, 20, 9, tzinfo=UTC), "mend", "logs of 2026-05-31, but today is 2026-05-20"),
        (datetime(2026, 6, 4, 9, tzinfo=UTC), "look", "the newest logs are 4 days old"),
        (datetime(2026, 6, 1, 9, tzinfo=UTC), "ok", "2026-06-01 09:00 UTC"),
    ],
)
def test_doctor_compares_clocks(world, monkeypatch, now, verdict, words):
    class Then(datetime):
        """The machine's clock says `now`."""

        @classmethod
        def now(cls, tz=None):
            return now

    monkeypatch.setenv("TACTFUL_DATA", str(world / "data"))
    monkeypatch.setattr("monitoring.doctor.datetime", Then)
    clock = next(f for f in examine(now) if f.part == "clock")
    assert (clock.verdict, words in clock.found) == (verdict, True)


def test_doctor_points_to_the_quarantine(tmp_path, monkeypatch):
    monkeypatch.setenv("TACTFUL_DATA", str(tmp_path))
    for folder in ("logs/users", "quarantine/sessions"):
        (tmp_path / folder / "date=2026-06-01").mkdir(parents=True)
        (tmp_path / folder / "date=2026-06-01" / "a.parquet").touch()
    logs = next(f for f in examine(datetime.now(UTC)) if f.part == "logs")
    assert logs.verdict == "look"
    assert "1 files in quarantine" in logs.found
    assert f"read {tmp_path}/quarantine/sessions/date=2026-06-01/a.parquet.txt" in logs.fix


def test_status_of_a_world_and_of_nothing(world, tmp_path):
    code, found = tactful(world, "status", "--json")
    assert code == 0
    assert (found["features_day"], found["materialized_until"]) == (str(END), f"{END} 00:00 UTC")
    assert found["champion_since"] == "2026-06-01T12:00:00+00:00"
    assert found["last_week"] is None
    empty = status_text(
        {**dict.fromkeys(found), "campaign": "c", "decisions_today": {}, "last_week": {"week": "W", "action": "none"}}
    )
    assert "champion       none yet -> tactful train, then tactful promote" in empty
    assert "last verdict   W: none" in empty
    assert "decided today  nothing -> bentoml serve" in empty
