"""logs.toml: tables of another shape become the raw logs that the simulator wrote; what does not fit is named."""

import gzip
import os

import numpy as np
import pandas as pd
import pytest
from own_platform import ROWS, USERS, number, read

from campaign import CampaignError, DataError
from feature_repo.contracts import DECISIONS, check_file, ingest
from feature_repo.log_map import LogMap, load_log_map
from feature_repo.own_logs import bring_logs

ARMS = ("none", "premium_offer")


@pytest.fixture
def brought(exported, tmp_path, monkeypatch):
    monkeypatch.setenv("TACTFUL_LOGS", str(exported[0] / "logs.toml"))
    bring_logs(tmp_path, load_log_map(), ARMS)
    return tmp_path


# ------------------------------------------------------------------------------------------------- what comes out


def test_bring_logs_equals_the_world_the_exports_were_made_from(exported, brought):
    world = exported[1]
    for table, column, key in (
        ("users", "plan", ["user_id", "event_timestamp"]),
        ("messages", "action", ["user_id", "event_timestamp"]),
        ("subscriptions", "event", ["user_id", "event_timestamp", "event"]),
    ):
        true = read(world / "logs" / table)
        true = true.drop_duplicates(key).assign(user_id=number(true["user_id"]).astype(str))
        unit = {"users": "s", "messages": "ms", "subscriptions": "us"}[table]
        true["event_timestamp"] = true["event_timestamp"].dt.floor(unit)
        found = read(brought / "logs" / table).drop_duplicates(key)
        both = true.sort_values(key)[[*key, column]], found.sort_values(key)[[*key, column]]
        pd.testing.assert_frame_equal(*(frame.reset_index(drop=True).astype(str) for frame in both))
    assert read(brought / "logs" / "subscriptions")["price"].to_numpy() == pytest.approx(9.99)
    assert ingest(brought / "logs", brought / "quarantine") == []


def test_bring_logs_decisions_are_the_logged_ones(exported, brought):
    true, found = read(exported[1] / "decisions"), read(brought / "decisions")
    key = ["decided_at", "user_id"]
    true = true.assign(user_id=number(true["user_id"]).astype(str)).sort_values(key, ignore_index=True)
    found = found.sort_values(key, ignore_index=True)
    for column in ("user_id", "decided_at", "arm", "layer", "salts", "eligible"):
        assert (true[column] == found[column]).all(), column
    assert np.allclose(np.stack(found["propensities"]), [0.6, 0.4])
    assert np.allclose(found["propensity"], true["propensity"])
    for path in sorted((brought / "decisions").glob("date=*/*.parquet")):
        check_file(path, DECISIONS)


def test_bring_logs_twice_does_nothing_and_touches_only_what_changed(mapped, tmp_path):
    assert mapped(USERS, u_csv=ROWS) == 1
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data" / "logs").rglob("*.parquet")}
    assert mapped(USERS) == 0
    assert mapped(USERS, u_csv=ROWS + "9,free,2026-08-01 10:00:00\n") == 1
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "data" / "logs").rglob("*.parquet")}
    assert len(before) == 2
    assert before.items() < after.items()
    assert len(after) == 3


def test_bring_logs_follows_files_that_go(mapped, tmp_path):
    mapped(USERS.replace("u.csv", "*.csv"), u_csv=ROWS, v_csv=ROWS.replace("007", "11"))
    assert set(read(tmp_path / "data" / "logs" / "users")["user_id"]) == {"007", "8", "11"}
    (tmp_path / "v.csv").unlink()
    mapped(USERS.replace("u.csv", "*.csv"))
    assert set(read(tmp_path / "data" / "logs" / "users")["user_id"]) == {"007", "8"}


def test_times_lie_in_the_zone_that_logs_toml_names(mapped, tmp_path):
    rows = "user_id,plan,signup_at\n1,a,2026-07-01 10:00:00\n2,a,2026-07-01T10:00:00Z\n3,a,2026-12-01 10:00:00\n"
    mapped('timezone = "Europe/Berlin"\n' + USERS, u_csv=rows.replace("2026-12", "2026-01"))
    at = read(tmp_path / "data" / "logs" / "users").set_index("user_id")["signup_at"]
    assert [at[user].hour for user in ("1", "2", "3")] == [8, 10, 9]
    mapped('timezone = "Europe/Berlin"\n' + USERS.replace("[users]", '[users]\ntimezone = "Asia/Tokyo"'))
    at = read(tmp_path / "data" / "logs" / "users").set_index("user_id")["signup_at"]
    assert [at[user].hour for user in ("1", "2", "3")] == [1, 10, 1]


@pytest.mark.parametrize("ids", [[7, 8], [7.0, 8.0], ["7", "8"], pd.array([7, 8], dtype="Int64")], ids=str)
def test_ids_are_text_whatever_they_were(mapped, tmp_path, ids):
    frame = pd.DataFrame({"user_id": ids, "plan": "a", "signup_at": pd.Timestamp("2026-07-01")})
    frame.to_parquet(tmp_path / "u.parquet")
    mapped(USERS.replace("csv", "parquet"))
    assert read(tmp_path / "data" / "logs" / "users")["user_id"].tolist() == ["7", "8"]


def test_csv_with_mark_crlf_quotes_and_gzip(mapped, tmp_path):
    rows = '\ufeffuser_id,plan,signup_at\r\n"a,b","the ""big"" one",2026-07-01\r\n'
    (tmp_path / "u.csv.gz").write_bytes(gzip.compress(rows.encode()))
    mapped(USERS.replace("csv", "csv.gz"))
    row = read(tmp_path / "data" / "logs" / "users").iloc[0]
    assert (row["user_id"], row["plan"]) == ("a,b", 'the "big" one')


def test_no_map_is_as_if_there_were_no_file(tmp_path, monkeypatch):
    monkeypatch.delenv("TACTFUL_LOGS", raising=False)
    assert load_log_map() == LogMap()
    assert bring_logs(tmp_path, load_log_map(), ARMS) == 0
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("[users\n", "not valid TOML"),
        ('timezone = "Europe/Berln"', "timezone == 'Europe/Berln' is not known; did you mean \"Europe/Berlin\""),
        ("[user]\n", "user: unknown key; did you mean 'users'"),
        ("[users]\n", "users.files: missing"),
        (USERS + "colums.plan = 'x'", "users.colums: unknown key; did you mean 'columns'"),
        (USERS + "columns.plann = 'x'", "users.columns.plann == no column of ours; did you mean 'plan'"),
        (USERS + "columns.plan = {colum = 'x'}", "colum: unknown key; did you mean 'column'"),
        (USERS + "columns.plan = {}", "column == None and value == None, must be one of the two"),
        (USERS + "columns.plan = 3", "users.columns.plan"),
        (USERS + "columns.signup_at = {column = 'x', unit = 'h'}", "'s', 'ms' or 'us'"),
        (USERS + "columns.signup_at = {column = 'x', unit = 's', format = '%Y'}", "keep one"),
        (USERS + "delimiter = ';;'", "at most 1 character"),
        ("[decisions]\nfiles = 'd.csv'", "decisions.propensities: missing"),
        ("[decisions]\nfiles = 'd.csv'\npropensities = {none = 0.5, a = 0.4}", "sum of propensities == 0.9, must be 1"),
        ("[decisions]\nfiles = 'd.csv'\nholdout_share = 0.1\npropensities = {none = 0.5, a = 0.5}", "name both"),
    ],
)
def test_load_log_map_refuses(mapped, toml, said):
    with pytest.raises(CampaignError) as error:
        mapped(toml)
    assert said in str(error.value)
    assert "logs.toml" in str(error.value)


def test_load_log_map_named_but_absent(tmp_path, monkeypatch):
    monkeypatch.setenv("TACTFUL_LOGS", str(tmp_path / "gone.toml"))
    with pytest.raises(CampaignError, match="no such file"):
        load_log_map()


@pytest.mark.parametrize(
    ("toml", "rows", "said"),
    [
        (USERS, None, "no such file; put it into "),
        (USERS, "", "u.csv: it is empty"),
        (USERS, "user_id,plan,plan,signup_at\n", "column 'plan' stands twice"),
        (USERS, "user_id,plan,Plan,signup_at\n", "stands twice"),
        (USERS, "user_id,plan,,signup_at\n", "a column has no name"),
        (USERS, "user_id;plan;signup_at\n1;a;2026-07-01\n", "nothing says where it comes from"),
        (USERS + "columns.user_id = 'no'", "no;plan\n1;a\n", 'say delimiter = ";" of the table?'),
        (USERS + "columns.user_id = 'no'", "no\tplan\n1\ta\n", 'say delimiter = "\\t" of the table?'),
        (USERS, "user_id,plan,signup_at\n", "no rows"),
        (USERS, "user_id,plan\n1,a\n", "users.signup_at: nothing says where it comes from; name your column"),
        (USERS + "columns.plan = 'Plan'", ROWS, "no column 'Plan', which logs.toml names for users.plan; did you mean"),
        (USERS, ROWS + "9,free\n", "line 4 has 2 fields, the first line names 3: '9,free'; a field that holds ','"),
        (USERS, ROWS + "9,free,2026-07-01,x\n", "line 4 has 4 fields"),
        (USERS, '"user_id",plan,signup_at\n1,"a\nb",2026-07-01\n\n9,free\n', "line 5 has 2 fields"),
        (USERS, ROWS + '9,"free,2026-07-01\n', "line 4: a double quote is not closed, or text stands after"),
        (USERS, ROWS + '9,"fr"ee",2026-07-01\n', "line 4: a double quote is not closed, or text stands after"),
        (USERS, "user_id,plan,signup_at\n" + "1,a,2026-07-01\n" * 9000 + '2,"a,b\n', "line 9002: a double quote"),
        (USERS, (ROWS + "8,paid,2026-01-01\n" * 9000).encode() + b"\xff,a,2026-07-01\n", "export it again, as UTF-8"),
        (USERS, ROWS.encode() + b"\xff\xfe,free,2026-07-01\n", "as UTF-8"),
        (
            USERS,
            ROWS + "9,free,2026-13-01\n",
            "users.signup_at cannot be read as a time: 1 of 3 rows, for example line 4",
        ),
        (USERS, ROWS + "9,free,1751328000\n", "'1751328000'"),
        (
            USERS,
            ROWS + "9,,2026-07-01\n",
            "users.plan is empty: 1 of 3 rows, for example line 4: None; give a `default`",
        ),
        (USERS + "columns.signup_at = {column = 'signup_at', format = '%d.%m.%Y'}", ROWS, "format == '%d.%m.%Y'"),
        (USERS + "columns.signup_at = {column = 'signup_at', unit = 'ms'}", ROWS, "a number of ms since 1970"),
        (USERS + "columns.signup_at = {column = 'signup_at', format = '%Q'}", ROWS, "Unrecognized format"),
        (USERS.replace("u.csv", "u.csv'\nwhere = 'plann = 1").replace('"', "'"), ROWS, "[users] where:"),
        (USERS + "where = \"plan = 'gold'\"", ROWS, "no rows where plan = 'gold'"),
    ],
)
def test_bring_logs_refuses(mapped, tmp_path, toml, rows, said):
    if "where = 'plann" not in toml and "where =" in toml:
        toml = toml.replace('files = "u.csv"', 'files = "u.csv"\n' + toml.splitlines()[-1]).rsplit("\n", 1)[0]
    with pytest.raises(DataError) as error:
        mapped(toml, **({} if rows is None else {"u_csv": rows}))
    assert said in str(error.value)
    assert "\nTraceback" not in str(error.value)
    assert list((tmp_path / "data").rglob("*.parquet")) == []


def test_bring_logs_names_every_problem_and_replaces_nothing(mapped, tmp_path):
    mapped(USERS, u_csv=ROWS)
    before = read(tmp_path / "data" / "logs" / "users")
    with pytest.raises(DataError) as error:
        mapped(USERS, u_csv=ROWS + "9,,x\n")
    assert len(str(error.value).splitlines()) == 3  # two problems, and what to run
    pd.testing.assert_frame_equal(read(tmp_path / "data" / "logs" / "users"), before)


def test_bring_logs_numbers_that_are_times_need_a_unit(mapped, tmp_path):
    pd.DataFrame({"user_id": [1], "plan": "a", "signup_at": [1_751_328_000]}).to_parquet(tmp_path / "u.parquet")
    with pytest.raises(DataError, match="'signup_at' holds numbers; say their unit"):
        mapped(USERS.replace("csv", "parquet"))


def test_bring_logs_arms_and_propensities_must_be_the_campaigns(mapped):
    toml = "[decisions]\nfiles = 'd.csv'\npropensities = {none = 0.5, %s}"
    rows = "user_id,decided_at,arm,p\n1,2026-07-01,none,0.5\n1,2026-07-02,B,0.4\n"
    with pytest.raises(DataError, match="propensities of none, other, and"):
        mapped(toml % "other = 0.5", d_csv=rows)
    with pytest.raises(DataError) as error:
        mapped(toml % "premium_offer = 'p'", d_csv=rows)
    assert "decisions.arm must be one of none, premium_offer" in str(error.value)
    assert "sum to 1: 1 of 2 rows" in str(error.value)


def test_bring_logs_refuses_to_mix_with_other_logs(exported, tmp_path, monkeypatch):
    monkeypatch.setenv("TACTFUL_LOGS", str(exported[0] / "logs.toml"))
    with pytest.raises(DataError, match="holds a simulated world"):
        bring_logs(exported[1], load_log_map(), ARMS)
    other = tmp_path / "logs" / "users" / "date=2026-01-01" / "mine.parquet"
    other.parent.mkdir(parents=True)
    other.touch()
    with pytest.raises(DataError, match=r"mine\.parquet did not come from"):
        bring_logs(tmp_path, load_log_map(), ARMS)
