import errno
import json
import os
import resource
import shutil
import signal
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from linear_model import make_rows

from bentos.bundle import CODE, OK
from bentos.decision_log import compact, decided_on, read_decisions
from bentos.engine import decide, decide_without_model
from bentos.raw_log import DecisionLog, LogError, batch_line, context_of, read_lines
from campaign import DataError
from feature_repo.contracts import DECISIONS, check_file

AT = datetime(2026, 6, 1, 12, 0, 1, 250, tzinfo=UTC)


@pytest.fixture
def write(campaign, bundle):
    """Append requests of three users to a log; returns the decisions logged."""
    context = context_of(campaign, bundle)

    def append(log, request_id, at=AT):
        users = [f"{request_id}-{i}" for i in range(3)]
        rows = make_rows([1.0, 0.0, np.nan], [OK, OK, CODE["unknown_user"]])
        rows.timestamp[2] = 0
        decisions = decide(users, rows, bundle, campaign.assignment, at.date())
        line = batch_line(context, at, [(request_id, 3, 20, "home")], users, decisions, rows)
        log.append(context, line, at.date().isoformat())
        return decisions

    return append


def read_all(folder):
    files = sorted(folder.glob("date=*/*.parquet"))
    return pd.concat([pq.ParquetFile(f).read().to_pandas() for f in files], ignore_index=True)


def test_decided_on_counts_compacted_and_raw_once(tmp_path, write):
    raw, out, day = tmp_path / "raw", tmp_path / "out", AT.date()
    done, living = DecisionLog(raw, 2**20), DecisionLog(raw, 2**20)
    write(done, "r1")
    done.close()
    write(living, "r2")
    expected = Counter(decided_on(day, raw, out))
    assert expected.total() == 6
    compact(raw, out)  # the finished file is gone, the living one is there and in Parquet
    write(living, "r3")
    assert decided_on(day, raw, out).total() == 9
    assert decided_on(day - timedelta(days=1), raw, out) == Counter()
    living.close()


def test_compact_keeps_every_value(tmp_path, write, campaign):
    log = DecisionLog(tmp_path / "raw", 2**20)
    decisions = write(log, "r1")
    log.close()
    result = compact(tmp_path / "raw", tmp_path / "out")
    assert (result.files, result.decisions, result.finished) == (1, 3, 1)
    (file,) = (tmp_path / "out").glob("date=2026-06-01/*.parquet")
    check_file(file, DECISIONS)
    frame = read_all(tmp_path / "out")
    assert frame["decision_id"].tolist() == ["r1-0", "r1-1", "r1-2"]
    assert frame["decided_at"].tolist() == [pd.Timestamp(AT)] * 3
    assert frame["arm"].tolist() == decisions.arm.tolist()
    assert frame["score"].tolist()[:2] == decisions.score.tolist()[:2]
    assert json.loads(frame["features"][0]) == {"x": 1.0, "plan": "free"}
    assert json.loads(frame["segments"][0]) == {c: "free" if c == "plan" else None for c in campaign.segments.columns}
    assert json.loads(frame["uplift"][0]) == {
        "premium_offer": {"subscription": 1.0, "retention": 2.0, "listening": 3.0}
    }
    assert json.loads(frame["salts"][0])["holdout_salt"] == campaign.assignment.holdout_salt
    assert frame["reason"][2] == "unknown_user"
    assert frame.loc[2, ["features", "uplift", "score", "feature_timestamp"]].isna().all()
    assert frame["propensity"][2] == 1
    assert not list((tmp_path / "raw").glob("*.log"))


def test_compact_again_changes_nothing(tmp_path, write):
    log = DecisionLog(tmp_path / "raw", 2**20)
    write(log, "r1")
    compact(tmp_path / "raw", tmp_path / "out")
    write(log, "r2")
    compact(tmp_path / "raw", tmp_path / "out")
    assert list((tmp_path / "raw").glob("*.log")), "a living writer keeps its file"
    log.close()
    for _ in range(3):
        compact(tmp_path / "raw", tmp_path / "out")
        assert sorted(read_all(tmp_path / "out")["request_id"]) == ["r1"] * 3 + ["r2"] * 3
    assert not list((tmp_path / "raw").glob("*.log"))


def test_compact_splits_by_day_and_size(tmp_path, write):
    log = DecisionLog(tmp_path / "raw", 3000)
    for i in range(20):
        write(log, f"r{i}", AT + timedelta(hours=i))
    log.close()
    assert len(list((tmp_path / "raw").glob("*.log"))) > 2
    compact(tmp_path / "raw", tmp_path / "out")
    frame = read_all(tmp_path / "out")
    assert frame["decision_id"].is_unique
    assert len(frame) == 60
    for file in (tmp_path / "out").glob("date=*/*.parquet"):
        check_file(file, DECISIONS)


def _die_after(calls):
    """From now on this process dies at its next rename or removal but `calls`."""
    left = [calls]

    def dying(real):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                os._exit(9)
            return real(*args, **kwargs)

        return call

    for name in ("replace", "unlink"):
        setattr(Path, name, dying(getattr(Path, name)))


def test_compact_killed_at_any_write_loses_and_doubles_nothing(tmp_path, write):
    """Kill the compaction at each of its renames and removals in turn; a rerun must give each decision once."""
    log = DecisionLog(tmp_path / "raw", 2500)
    for i in range(12):
        write(log, f"r{i}", AT + timedelta(hours=2 * i))
    log.close()
    for after in (0, 1, 2, 4):
        child = os.fork()
        if child == 0:
            _die_after(after)
            compact(tmp_path / "raw", tmp_path / "out")
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    compact(tmp_path / "raw", tmp_path / "out")
    frame = read_all(tmp_path / "out")
    assert sorted(frame["decision_id"]) == sorted(f"r{i}-{k}" for i in range(12) for k in range(3))


def test_compact_ignores_a_torn_last_line(tmp_path, write):
    log = DecisionLog(tmp_path / "raw", 2**20)
    write(log, "r1")
    write(log, "r2")
    log.close()
    (path,) = (tmp_path / "raw").glob("*.log")
    whole = path.read_bytes()
    for cut in (1, 2, 40, 300):
        path.write_bytes(whole[:-cut])
        assert {row["request_id"] for row in read_decisions(path)} == {"r1"}
    result = compact(tmp_path / "raw", tmp_path / "out")
    assert result.damaged == ()
    assert set(read_all(tmp_path / "out")["request_id"]) == {"r1"}


def test_compact_sets_a_damaged_file_aside_and_keeps_its_good_lines(tmp_path, write):
    log = DecisionLog(tmp_path / "raw", 2**20)
    for i in range(3):
        write(log, f"r{i}")
    log.close()
    (path,) = (tmp_path / "raw").glob("*.log")
    content = bytearray(path.read_bytes())
    content[content.index(b"r1-0")] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="line 3 is damaged"):
        list(read_lines(path))
    result = compact(tmp_path / "raw", tmp_path / "out")
    assert [p.name for p in result.damaged] == [path.name]
    assert set(read_all(tmp_path / "out")["request_id"]) == {"r0"}
    assert (tmp_path / "raw" / "damaged" / path.name).exists()


def test_compact_refuses_to_run_twice_at_once(tmp_path):
    from bentos.decision_log import _only_one

    (tmp_path / "raw").mkdir()
    with _only_one(tmp_path / "raw"), pytest.raises(DataError, match="another compaction"):
        compact(tmp_path / "raw", tmp_path / "out")


@pytest.mark.parametrize("room", ["a few bytes", "a context line"])
def test_append_to_a_full_disk_raises_and_leaves_whole_lines(tmp_path, write, campaign, room):
    """A file size limit stands in for a full disk: the system refuses the rest of the write in the same way."""
    log = DecisionLog(tmp_path / "raw", 2**20)
    write(log, "r1")
    (path,) = (tmp_path / "raw").glob("*.log")
    lines = path.read_bytes().splitlines()
    # a context line may fit where the batch that was refused does not: the log is not ready then
    left = 20 if room == "a few bytes" else 2 * len(lines[0]) + 2
    large = "r2" * len(lines[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + left, hard))
    try:
        with pytest.raises(LogError, match="cannot write the decision log"):
            write(log, large)
        assert log.error
        assert not log.check(context_of(campaign, None), "2026-06-01")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    write(log, "r3")
    assert log.error is None
    log.close()
    assert {row["request_id"] for row in read_decisions(path)} == {"r1", "r3"}


def test_append_to_an_unwritable_folder_raises(tmp_path, write):
    (tmp_path / "raw").write_text("a file where the folder should be")
    log = DecisionLog(tmp_path / "raw", 2**20)
    with pytest.raises(LogError, match="cannot write"):
        write(log, "r1")


def test_check_sees_the_log_recover(tmp_path, campaign):
    blocker = tmp_path / "raw"
    blocker.write_text("in the way")
    log, context = DecisionLog(blocker, 2**20), context_of(campaign, None)
    assert not log.check(context, "2026-06-01")
    blocker.unlink()
    assert log.check(context, "2026-06-01")
    log.close()
    assert compact(tmp_path / "raw", tmp_path / "out").decisions == 0


def test_decisions_without_a_model_are_logged_too(tmp_path, campaign):
    log, context = DecisionLog(tmp_path / "raw", 2**20), context_of(campaign, None)
    found = decide_without_model(["a", "b"], campaign, AT.date())
    log.append(context, batch_line(context, AT, [("r", 2, None, None)], ["a", "b"], found, None), "2026-06-01")
    log.close()
    compact(tmp_path / "raw", tmp_path / "out")
    frame = read_all(tmp_path / "out")
    assert frame["reason"].tolist() == ["model_unavailable"] * 2
    assert frame["model_tag"].tolist() == ["", ""]
    for file in (tmp_path / "out").glob("date=*/*.parquet"):
        check_file(file, DECISIONS)


def test_killed_writer_leaves_whole_lines(tmp_path, campaign):
    """kill -9 while lines are written one after another: every whole line is read, at most the last is torn."""
    users = [f"u{i}" for i in range(50)]
    context, decisions = context_of(campaign, None), decide_without_model(users, campaign, AT.date())
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        log = DecisionLog(tmp_path, 2**20)
        for i in range(10**9):
            line = batch_line(context, AT, [(f"r{i}", 50, None, None)], users, decisions, None)
            log.append(context, line, "2026-06-01")
            os.write(send, b"%d\n" % i)
    os.close(send)
    with os.fdopen(receive, "rb") as answers:
        answered = [int(answers.readline()) for _ in range(200)]
        os.kill(child, signal.SIGKILL)
        answered += [int(line) for line in answers.read().split()]
    os.waitpid(child, 0)
    rows = [row["request_id"] for path in tmp_path.glob("*.log") for row in read_decisions(path)]
    assert {f"r{i}" for i in answered} <= set(rows)
    assert len(rows) == 50 * len(set(rows))


def test_append_goes_on_in_another_file_when_its_own_is_removed(tmp_path, write):
    """Somebody empties the folder while the service runs: an open file would take the rest with it."""
    log = DecisionLog(tmp_path / "raw", 2**20)
    write(log, "r1")
    shutil.rmtree(tmp_path / "raw")
    write(log, "r2")
    log.close()
    (path,) = (tmp_path / "raw").glob("*.log")
    assert {row["request_id"] for row in read_decisions(path)} == {"r2"}


def test_append_cuts_a_torn_line_off_before_the_next(tmp_path, write, monkeypatch):
    log, whole = DecisionLog(tmp_path / "raw", 2**20), os.write
    write(log, "r1")

    calls = iter([10, None])

    def torn(handle, data):
        room = next(calls)
        if room is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(handle, data[:room])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", torn)
        with pytest.raises(LogError, match="No space left"):
            write(log, "r2")
    write(log, "r3")
    log.close()
    (path,) = (tmp_path / "raw").glob("*.log")
    assert {row["request_id"] for row in read_decisions(path)} == {"r1", "r3"}
