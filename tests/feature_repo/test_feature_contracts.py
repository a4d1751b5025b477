"""Log contracts: each bad file gets its own message, and none is half let in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feature_logs import START, make_logs, write_logs, write_parquet

from campaign import DataError
from feature_repo import contracts
from feature_repo.contracts import DECISIONS, LOGS, check_file, ingest

Change = Callable[[pd.DataFrame], pd.DataFrame]


@pytest.fixture(scope="module")
def day_one() -> dict[str, pd.DataFrame]:
    """Rows of each log that arrived on the first day."""
    tables = make_logs(users=200, days=3, seed=5)
    return {k: t[t["created_timestamp"].dt.date == START].reset_index(drop=True) for k, t in tables.items()}


def put(frame: pd.DataFrame, log: str, logs: Path, day: str = str(START)) -> Path:
    path = logs / log / f"date={day}" / "part-0.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_parquet(frame, path)
    return path


def setting(column: str, row: int, value: object) -> Change:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame = frame.copy()
        if value is None:
            frame[column] = frame[column].astype(object)
        frame.loc[row, column] = value
        return frame

    return change


VALUES = [
    (
        "sessions",
        lambda f: f.drop(columns="minutes"),
        "column 'minutes' is missing; found session_id, user_id, .*; add it",
    ),
    (
        "sessions",
        lambda f: f.assign(minutes="5"),
        "column 'minutes' is string, must be a floating-point number of 32 or 64 bits; export it",
    ),
    ("sessions", lambda f: f.assign(tracks=1.5), "column 'tracks' is double, must be an integer"),
    (
        "sessions",
        lambda f: f.assign(minutes=f["minutes"].astype("float16")),
        "column 'minutes' is halffloat, must be a floating-point number of 32 or 64 bits; export it",
    ),
    (
        "sessions",
        lambda f: f.assign(Minutes=0.0, MINUTES=0.0),
        "columns minutes, Minutes, MINUTES differ in upper and lower case alone; keep 'minutes', rename the other",
    ),
    (
        "sessions",
        lambda f: f.assign(tracks=np.full(len(f), 2**63, np.uint64)),
        r"column 'tracks' must be < 2\^63: (\d+) of \1 rows are not, for example row 0: 9223372036854775808",
    ),
    ("sessions", lambda f: f.assign(user_id=range(len(f))), "column 'user_id' is int64, must be a string"),
    (
        "sessions",
        setting("minutes", 3, -1.5),
        r"column 'minutes' must be > 0: 1 of \d+ rows are not, for example row 3: -1.5",
    ),
    ("sessions", setting("minutes", 0, np.inf), "column 'minutes' must be finite: .* row 0: inf"),
    ("sessions", setting("minutes", 0, np.nan), "column 'minutes' must not be null"),
    ("sessions", setting("minutes", 0, 1e6), "column 'minutes' must be <= 10080: .* 1000000.0"),
    ("sessions", setting("tracks", 2, -3), "column 'tracks' must be >= 0: .* row 2: -3"),
    ("sessions", setting("user_id", 4, None), "column 'user_id' must not be null: 1 of .* row 4: None"),
    (
        "messages",
        setting("action", 1, "swiped"),
        "column 'action' must be one of none, clicked, dismissed: .* 'swiped'",
    ),
    ("subscriptions", setting("event", 0, "pause"), "column 'event' must be one of start, renew, cancel: .* 'pause'"),
    ("subscriptions", setting("price", 0, -1.0), "column 'price' must be >= 0"),
    ("users", setting("plan", 0, None), "column 'plan' must not be null"),
    (
        "users",
        setting("created_timestamp", 0, pd.Timestamp("2026-03-02T00:00:00Z")),
        "column 'created_timestamp' must be on 2026-03-01 UTC, the date of its folder: 1 of .* 2026-03-02T00:00:00",
    ),
    (
        "users",
        setting("event_timestamp", 0, pd.Timestamp("2026-03-05T00:00:00Z")),
        "column 'event_timestamp' must not be more than a day after created_timestamp: 1 of .* 2026-03-05",
    ),
]


@pytest.mark.parametrize(("log", "change", "message"), VALUES)
def test_check_file_bad_values(log: str, change: Change, message: str, day_one, tmp_path: Path) -> None:
    path = put(change(day_one[log]), log, tmp_path)
    with pytest.raises(DataError, match=f"^{path}: {message}"):
        check_file(path, LOGS[log])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (pa.timestamp("us"), "is timestamp.us., must be a timestamp in UTC .* naive time .* localize it to UTC"),
        (pa.timestamp("ns", tz="UTC"), "is timestamp.ns, tz=UTC., must be .* microsecond .* coerce_timestamps='us'"),
        (pa.date32(), "is date32.day., must be a timestamp in UTC"),
    ],
)
def test_check_file_bad_timestamps(kind: pa.DataType, message: str, day_one, tmp_path: Path) -> None:
    table = pa.Table.from_pandas(day_one["messages"], preserve_index=False)
    index = table.schema.names.index("created_timestamp")
    table = table.set_column(index, "created_timestamp", table.column(index).cast(kind, safe=False))
    path = tmp_path / "bad.parquet"
    pq.write_table(table, path)
    with pytest.raises(DataError, match=f"column 'created_timestamp' {message}"):
        check_file(path, LOGS["messages"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable Parquet file .*; export it again"),
        (b"user_id,minutes\nu1,3\n", "not a readable Parquet file"),
        (b"PAR1" + b"\x00" * 100 + b"PAR1", "not a readable Parquet file"),
    ],
)
def test_check_file_not_parquet(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.parquet"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        check_file(path, LOGS["users"])


def test_check_file_truncated_and_damaged(day_one, tmp_path: Path) -> None:
    path = put(day_one["sessions"], "sessions", tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="not a readable Parquet file"):
        check_file(path, LOGS["sessions"])
    path.write_bytes(whole[:200] + b"\xff" * 400 + whole[600:])  # the footer is whole, a page is not
    with pytest.raises(DataError, match=r"part-0.parquet: "):
        check_file(path, LOGS["sessions"])


def test_check_file_without_rows(day_one, tmp_path: Path) -> None:
    path = put(day_one["sessions"].head(0), "sessions", tmp_path)
    with pytest.raises(DataError, match=r"0 rows, must be at least 1; .* leave the file out when nothing happened"):
        check_file(path, LOGS["sessions"])


def test_check_file_names_every_problem(day_one, tmp_path: Path) -> None:
    frame = setting("tracks", 0, -1)(setting("minutes", 0, 0.0)(day_one["sessions"]))
    with pytest.raises(DataError) as caught:
        check_file(put(frame, "sessions", tmp_path), LOGS["sessions"])
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f.assign(country="NZ"),  # drift, not breakage
        lambda f: f.assign(device="tv", plan="family"),
        lambda f: f.assign(age_band=None),
        lambda f: f.assign(plan=f["plan"].astype("category")),
        lambda f: f.assign(extra=1),
        lambda f: f[f.columns[::-1]],
    ],
)
def test_check_file_lets_drift_in(change: Change, day_one, tmp_path: Path) -> None:
    check_file(put(change(day_one["users"]), "users", tmp_path), LOGS["users"])


def decisions() -> pa.Table:
    at = pd.Timestamp("2026-03-01T12:00:00Z").as_unit("us")
    texts = dict.fromkeys(
        ("decision_id", "request_id", "user_id", "cluster_id", "campaign_hash", "feature_service"), "x"
    )
    row = texts | dict.fromkeys(("policy_hash", "model_tag", "schema_hash"), "") | {"salts": "{}", "decided_at": at}
    row |= dict.fromkeys(
        ("features", "feature_timestamp", "uplift", "score", "threshold", "surface", "segments", "hour", "experiment")
    )
    row |= {"layer": "exploration", "reason": "exploration", "arm": 1, "propensity": 0.45, "propensities": [0.55, 0.45]}
    return pa.Table.from_pylist([row | {"eligible": True}])


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("propensity", 0.0, "column 'propensity' must be > 0: 1 of 1 rows are not, for example row 0: 0.0"),
        ("propensity", 1.5, "column 'propensity' must be <= 1"),
        ("layer", "guess", "column 'layer' must be one of holdout, exploration, experiment, policy"),
        ("reason", "because", "column 'reason' must be one of eligible, below_threshold"),
        ("arm", 2, r"column 'arm' must be the index of one of the propensities: .* row 0: 2"),
        ("propensities", [0.5, 0.4], "column 'propensities' must sum to 1"),
        ("propensities", [0.7, 0.3], "column 'propensity' must be the propensity of the arm"),
    ],
)
def test_check_file_bad_decisions(column: str, value: object, message: str, tmp_path: Path) -> None:
    table = decisions()
    index = table.schema.names.index(column)
    path = tmp_path / "d.parquet"
    pq.write_table(table.set_column(index, column, pa.array([value], table.schema.field(column).type)), path)
    with pytest.raises(DataError, match=message):
        check_file(path, DECISIONS)


def test_check_file_good_decisions(tmp_path: Path) -> None:
    pq.write_table(decisions(), tmp_path / "d.parquet")
    check_file(tmp_path / "d.parquet", DECISIONS)


@pytest.fixture
def logs(day_one, tmp_path: Path) -> Path:
    write_logs(day_one, tmp_path / "logs")
    return tmp_path / "logs"


def test_ingest_moves_a_bad_file_and_says_why(logs: Path, day_one, tmp_path: Path) -> None:
    bad = put(setting("minutes", 3, -1.0)(day_one["sessions"]), "sessions", logs)
    content = bad.read_bytes()
    (moved,) = ingest(logs, tmp_path / "quarantine")
    assert moved.path == tmp_path / "quarantine" / "sessions" / f"date={START}" / "part-0.parquet"
    assert not bad.exists()
    assert moved.path.read_bytes() == content
    assert "column 'minutes' must be > 0" in moved.reason
    assert moved.path.with_name("part-0.parquet.txt").read_text() == moved.reason + "\n"
    assert ingest(logs, tmp_path / "quarantine") == []


def test_ingest_lets_the_repaired_file_in(logs: Path, day_one, tmp_path: Path) -> None:
    put(day_one["sessions"].drop(columns="ads"), "sessions", logs)
    assert len(ingest(logs, tmp_path / "quarantine")) == 1
    repaired = put(day_one["sessions"], "sessions", logs)
    assert ingest(logs, tmp_path / "quarantine") == []
    assert repaired.exists()
    assert not list((tmp_path / "quarantine").rglob("*.txt"))  # the week's checks would go on to tell of it


def test_ingest_reads_a_file_once(logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    monkeypatch.setattr(contracts, "check_file", lambda path, contract: read.append(path))
    ingest(logs, tmp_path / "q")
    assert len(read) == 4
    ingest(logs, tmp_path / "q")
    assert len(read) == 4
    os.utime(next(logs.glob("users/*/*.parquet")), ns=(1, 1))  # changed: looked at again
    ingest(logs, tmp_path / "q")
    assert len(read) == 5


def test_ingest_checks_again_when_its_memory_is_damaged_or_of_other_contracts(
    logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(logs, tmp_path / "q")
    read: list[Path] = []
    monkeypatch.setattr(contracts, "check_file", lambda path, contract: read.append(path))
    (logs / "checked.json").write_text('{"contr')
    ingest(logs, tmp_path / "q")
    monkeypatch.setattr(contracts, "_HASH", "another")
    ingest(logs, tmp_path / "q")
    assert len(read) == 8


@pytest.mark.parametrize("step", ["reason written", "file moved"])
def test_ingest_killed_is_repaired_by_the_next_run(
    step: str, logs: Path, day_one, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = put(day_one["messages"].assign(action="?"), "messages", logs)
    target = tmp_path / "q" / "messages" / f"date={START}" / "part-0.parquet"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(*((Path, "replace", killed) if step == "reason written" else (contracts, "write_json", killed)))
    with pytest.raises(KeyboardInterrupt):
        ingest(logs, tmp_path / "q")
    monkeypatch.undo()
    ingest(logs, tmp_path / "q")
    assert not bad.exists()
    assert target.exists()
    assert "must be one of" in target.with_name("part-0.parquet.txt").read_text()
    assert ingest(logs, tmp_path / "q") == []


def test_ingest_without_logs(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    assert ingest(tmp_path / "logs", tmp_path / "q") == []
    shutil.rmtree(tmp_path / "logs")
    assert ingest(tmp_path / "logs", tmp_path / "q") == []
