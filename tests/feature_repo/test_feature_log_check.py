"""`tactful check`: what is missing or wrong in logs, said before anything runs."""

import os
import shutil
from datetime import UTC, datetime

import pandas as pd
import pytest
from own_platform import ROWS, USERS, read

from campaign import DataError, load_campaign
from feature_repo.log_map import load_log_map
from feature_repo.own_logs import own_files
from monitoring.log_check import check_logs

ARMS = ("none", "premium_offer")
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def verdicts(data, now=NOW):
    return {f.part: f for f in check_logs(data, load_campaign(), load_log_map(), now)}


def test_check_counts_what_is_usable_and_writes_nothing(exported, tmp_path, monkeypatch):
    monkeypatch.setenv("TACTFUL_LOGS", str(exported[0] / "logs.toml"))
    found = verdicts(tmp_path)
    assert os.listdir(tmp_path) == []
    assert len(own_files(load_log_map(), ARMS)) == 5
    assert found["sessions"].verdict == "mend"
    assert "outcome retention, listening needs it" in found["sessions"].found
    pushes = read(exported[1] / "logs" / "messages").drop_duplicates("message_id")
    assert found["messages"].found.startswith(f"{len(pushes):,} of {len(pushes):,} rows usable, 2 files")
    assert found["decisions used"].verdict == "mend"  # 400 users are too few
    assert "each split needs 500" in found["decisions used"].fix


def test_check_keeps_good_rows_apart_and_shows_strangers_and_clocks(mapped, tmp_path):
    events = "[messages]\nfiles = 'm.csv'\ncolumns.arm = {value = 'a'}\ncolumns.format = {value = 'b'}\n"
    rows = "user_id,event_timestamp,action\n8,2026-07-02,none\n8,never,none\n55,2026-11-24 20:00:00,none\n"
    with pytest.raises(DataError, match="cannot be read as a time: 1 of 3 rows, for example line 3: 'never'"):
        mapped(USERS + events, u_csv=ROWS, m_csv=rows)
    found = verdicts(tmp_path / "other")
    assert found["messages"].found == "2 of 3 rows usable, 1 file"
    assert "1 rows of messages belong to 1 others, for example '55'" in found["profiles"].found
    mapped(USERS + events, m_csv=rows.replace("8,never,none\n", ""))
    found = verdicts(tmp_path / "other")
    assert "2026-11-24 20:00 UTC, after now (2026-11-24 12:00): is the time zone right?" in found["messages"].fix


def test_check_reads_logs_of_our_own_form(exported, monkeypatch):
    monkeypatch.delenv("TACTFUL_LOGS", raising=False)
    found = verdicts(exported[1])
    assert [part for part, f in found.items() if f.verdict == "mend"] == ["decisions used"]
    log = read(exported[1] / "decisions")
    assert f" of {len(log):,} by 2026-11-24" in found["decisions used"].found
    kept = int(found["decisions used"].found.split()[0].replace(",", ""))
    assert 0 < kept < len(log)


@pytest.mark.parametrize(("first", "last"), [("2026-11-01", "2026-11-23"), ("2026-10-05", "2026-10-20")])
def test_check_names_days_that_a_table_lacks(first, last, exported, tmp_path, monkeypatch):
    monkeypatch.delenv("TACTFUL_LOGS", raising=False)
    assert not [part for part in verdicts(exported[1]) if part.startswith("days of")]
    shutil.copytree(exported[1], tmp_path / "data")
    gone = [
        day
        for day in (tmp_path / "data" / "logs" / "sessions").glob("date=*")
        if first <= day.name.removeprefix("date=") <= last
    ]
    assert gone
    for day in gone:
        shutil.rmtree(day)
    found = verdicts(tmp_path / "data")
    assert found["sessions"].verdict == "ok"
    assert found["days of sessions"].verdict == "look"
    assert f"no row arrives from {first} to {last}: outcome" in found["days of sessions"].found


def test_check_of_nothing_says_where_to_begin(tmp_path, monkeypatch):
    monkeypatch.delenv("TACTFUL_LOGS", raising=False)
    found = verdicts(tmp_path)
    assert [f.verdict for f in found.values()] == ["ok", "mend"]
    assert found["logs"].found == f"none under {tmp_path}, and logs.toml maps none"
    assert "tactful simulate" in found["logs"].fix


JUMP = "user_id,plan,signup_at\n1,a,2026-03-08 01:59:59\n2,a,2026-03-08 02:30:00\n3,a,2026-03-08T02:30:00-05:00\n"


@pytest.mark.parametrize("written", ["", "format"])
def test_check_names_times_that_the_clocks_jump_over(mapped, tmp_path, written):
    toml, rows = 'timezone = "America/New_York"\n' + USERS, JUMP
    if written:
        toml += "columns.signup_at = {column = 'signup_at', format = '%d.%m.%Y %H:%M'}\n"
        rows = "user_id,plan,signup_at\n1,a,08.03.2026 01:59\n2,a,08.03.2026 02:30\n"
    mapped(toml, u_csv=rows)
    found = verdicts(tmp_path / "other")["users"]
    assert found.verdict == "look"
    assert "users.signup_at: 1 times do not exist in America/New_York" in found.fix
    assert "for example line 3, read as 2026-03-08 03:30:00" in found.fix
    mapped(toml.replace("America/New_York", "America/Phoenix"))
    assert verdicts(tmp_path / "other")["users"].verdict == "ok"


def test_check_names_times_that_the_clocks_jump_over_in_parquet(mapped, tmp_path):
    at = pd.to_datetime(["2026-03-08 02:30:00", "2026-03-09 02:30:00"])
    pd.DataFrame({"user_id": ["1", "2"], "plan": "a", "signup_at": at}).to_parquet(tmp_path / "u.parquet")
    mapped('timezone = "America/New_York"\n' + USERS.replace("csv", "parquet"))
    assert "for example row 1, read as 2026-03-08 03:30:00" in verdicts(tmp_path / "other")["users"].fix


def test_check_names_two_profiles_of_a_user_at_one_time(mapped, tmp_path):
    """A row that is there twice is none; where one arrived later, the first counts."""
    rows = ROWS + "8,paid,2026-01-01 10:00:00\n8,gold,2026-01-01 10:00:00\n"
    mapped(USERS, u_csv=rows)
    found = verdicts(tmp_path / "other")["twin profiles"]
    assert found.verdict == "look"
    assert found.found.startswith("1 times a user has two profiles at one time, for example '8' at 2026-01-01 10:00:00")
    assert found.found.endswith("plan 'gold' and 'paid'")
    assert "of those that arrived together chance decides" in found.fix
    arrived = USERS + "columns.event_timestamp = 'signup_at'\ncolumns.created_timestamp = 'at'\n"
    header, *lines = rows.splitlines()
    days = ["2026-07-01 11:00", "2026-01-01 11:00", "2026-01-01 11:00", "2026-01-01 12:00"]
    mapped(arrived, u_csv="\n".join([header + ",at", *(f"{r},{d}" for r, d in zip(lines, days, strict=True))]) + "\n")
    assert "the one that arrived first counts: give" in verdicts(tmp_path / "other")["twin profiles"].fix
    mapped(USERS, u_csv=ROWS + "8,paid,2026-01-01 10:00:00\n")
    assert "twin profiles" not in verdicts(tmp_path / "other")


def test_check_names_ids_that_users_has_in_another_form(mapped, tmp_path):
    events = "[messages]\nfiles = 'm.csv'\ncolumns.arm = {value = 'a'}\ncolumns.format = {value = 'b'}\n"
    rows = "user_id,event_timestamp,action\n7,2026-07-02,none\n 8.0,2026-07-02,none\n8,2026-07-02,none\n"
    mapped(USERS + events, u_csv=ROWS, m_csv=rows)
    found = verdicts(tmp_path / "other")["profiles"]
    assert found.verdict == "look"
    assert "2 rows of messages belong to 2 others, for example ' 8.0'" in found.found
    said = "messages has ' 8.0' where users has '8' (white space and a trailing .0), and 1 more such"
    assert found.fix == f"write ids in every table as in users: {said}"


SENDS = """timezone = "Asia/Tokyo"
[users]
files = "u.csv"
columns.country = {value = "JP"}
columns.device = {value = "web"}
columns.plan = {value = "free"}
[subscriptions]
files = "s.csv"
delimiter = ";"
columns.event = {value = "start"}
[decisions]
files = "d.csv"
delimiter = ";"
propensities = {none = 0.7, premium_offer = 0.3}
columns.decided_at = {column = "day", format = "%Y年%m月%d日"}
columns.arm = {column = "group", values = {0 = "none", 1 = "premium_offer"}}
"""


def test_check_names_an_arm_drawn_otherwise_a_torn_key_and_a_decimal_comma(mapped, tmp_path):
    """Half of 600 got the message, not 30%; days in place of times make two decisions of one user the same."""
    users = "user_id,signup_at\n" + "".join(f"{i:04d},2026-01-01\n" for i in range(600))
    lines = [f"{i:04d};2026年08月{1 + i % 28:02d}日;{i % 2}" for i in range(600)] + ["0000;2026年08月01日;1"]
    prices = "user_id;event_timestamp;price\n0001;2026-09-01 10:00;9,99\n0001;2026-11-01 10:00;9\n"
    with pytest.raises(DataError, match=r'for example line 2: .9,99.; say decimal = "," of the table'):
        mapped(SENDS, u_csv=users, d_csv="user_id;day;group\n" + "\n".join(lines) + "\n", s_csv=prices)
    found = verdicts(tmp_path / "other")
    assert found["decisions"].found == "601 of 601 rows usable, 1 file, 2026-07-31 to 2026-08-27"
    assert found["decision keys"].verdict == "look"
    assert found["decision keys"].found.startswith("1 of 601 rows have the key of another")
    assert found["decision keys"].fix.startswith("1 decisions have two arms")
    assert found["draw"].verdict == "mend"
    assert "share of arm 0: " in found["draw"].found
    assert "expected 0.7 " in found["draw"].found


def test_check_asks_for_control_where_everybody_got_the_message(mapped, tmp_path):
    users = "user_id,signup_at\n" + "".join(f"{i:04d},2026-01-01\n" for i in range(4000))
    lines = "".join(f"{i:04d};2026年08月{1 + i % 28:02d}日;1\n" for i in range(4000))
    prices = "user_id;event_timestamp;price\n0001;2026-11-01 10:00;9\n"
    mapped(SENDS, u_csv=users, d_csv="user_id;day;group\n" + lines, s_csv=prices)
    found = verdicts(tmp_path / "data")
    assert found["decisions used"].verdict == "mend"
    assert "drawn to get no message" in found["decisions used"].fix


def test_check_says_what_costs_the_most_decisions(mapped, tmp_path):
    """Not `bring more`, where each was certain, or where ids are written with other zeros than in users."""
    users = "user_id,signup_at\n" + "".join(f"{i:04d},2026-01-01\n" for i in range(600))
    lines = "".join(f"{i:04d};2026年08月{1 + i % 28:02d}日;{i % 2}\n" for i in range(600))
    prices = "user_id;event_timestamp;price\n0001;2026-11-01 10:00;9\n"
    even = SENDS.replace("none = 0.7, premium_offer = 0.3", "none = 0.5, premium_offer = 0.5")
    files = {"u_csv": users, "s_csv": prices}
    mapped(even, **files, d_csv="user_id;day;group\n" + lines)
    assert "wait until more have matured, or bring more" in verdicts(tmp_path / "data")["decisions used"].fix
    mapped(even, **files, d_csv="user_id;day;group\n" + lines.replace("\n0", "\n"))
    fix = verdicts(tmp_path / "data")["decisions used"].fix
    assert "bring the profiles of these users into the table users" in fix
    assert "bring more decisions" not in fix
    certain = even.replace("none = 0.5, premium_offer = 0.5", "none = 'p', premium_offer = 'q'")
    given = "".join(f"{line};{1 - int(line[-1])};{line[-1]}\n" for line in lines.splitlines())
    mapped(certain, **files, d_csv="user_id;day;group;p;q\n" + given)
    fix = verdicts(tmp_path / "data")["decisions used"].fix
    assert "arms that were certain (propensity 0 or 1) teach nothing, however many there are" in fix
