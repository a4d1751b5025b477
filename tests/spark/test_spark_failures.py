"""What goes wrong around Spark: a sentence that says what to do, nothing half-written, and a rerun that goes on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feature_logs import START, make_logs, write_logs

from campaign import DataError, StoreError
from feature_repo import spark
from feature_repo.contracts import ingest
from feature_repo.snapshots import build_snapshots

DAYS = 4
DAY = timedelta(days=1)
ALL = [f"date={START + d * DAY}" for d in range(1, DAYS + 1)]


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("failures") / "data" / "logs"
    write_logs(make_logs(users=60, days=DAYS), folder, DAYS)
    assert ingest(folder, folder.parent / "quarantine") == []
    return folder


@pytest.fixture(scope="module", autouse=True)
def lonely(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """A command whose cluster does not answer: it waits for a minute, while the other tests run."""
    data = tmp_path_factory.mktemp("lonely")
    shutil.copytree(logs, data / "logs")
    with features_command(data, PYSPARK_SUBMIT_ARGS="--master spark://127.0.0.1:1 pyspark-shell") as command:
        yield command
        command.kill()


def built(features: Path) -> list[str]:
    """Days in place; each of them must be whole."""
    days = sorted(features.glob("date=*"))
    assert all(pq.read_metadata(day / "snapshot.parquet").num_rows for day in days)
    return [day.name for day in days]


def test_no_java_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(StoreError, match="Spark needs Java 17, and there is none; run `apt-get install"):
        spark.session()


def test_a_java_that_does_not_start_is_said(logs: Path, tmp_path: Path) -> None:
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text("#!/bin/sh\nexit 1\n")
    java.chmod(0o755)
    done = features_command(logs.parent, JAVA_HOME=str(tmp_path))
    told = done.communicate(timeout=300)[1]
    assert done.returncode == 3
    assert "does not start" in told
    assert "Traceback" not in told


def features_command(data: Path, **more: str) -> subprocess.Popen[str]:
    environ = os.environ | {"TACTFUL_ENGINE": "spark", "TACTFUL_DATA": str(data), "TACTFUL_NOW": "2030-01-01"} | more
    words = [sys.executable, "-m", "pipeline", "features"]
    root = Path(__file__).parents[2]
    return subprocess.Popen(words, env=environ, cwd=root, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def java_of(pid: int) -> int | None:
    """Spark's JVM, a child of the command."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if b"java" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[0]:
            return int(child)
    return None


def test_a_lost_spark_is_said_and_the_next_run_goes_on(logs: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(logs, data / "logs")
    command = features_command(data)
    deadline = time.monotonic() + 400
    while not list((data / "features" / ".building").glob("*/_SUCCESS")) and time.monotonic() < deadline:
        time.sleep(0.02)  # until a table stands
    java = java_of(command.pid)
    assert java
    os.kill(java, signal.SIGKILL)
    told = command.communicate(timeout=300)[1]
    assert command.returncode == 3, told
    assert "Spark could not build the snapshots" in told
    assert "run the same command again: what is finished is kept" in " ".join(told.split())
    assert "Traceback" not in told
    before = built(data / "features")
    assert len(build_snapshots(data / "logs", data / "features", engine="spark")) == DAYS - len(before)
    assert built(data / "features") == ALL


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system")
def test_a_full_disk_is_said_and_the_next_run_goes_on(logs: Path, tmp_path: Path) -> None:
    features = tmp_path / "features"
    features.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(features)], check=True)
    try:
        with pytest.raises(DataError, match=r"Spark could not build the snapshots: .*No space left on device"):
            build_snapshots(logs, features, engine="spark")
        assert built(features) == []
        assert not (features / ".building").exists()
        subprocess.run(["mount", "-o", "remount,size=64m", str(features)], check=True)
        build_snapshots(logs, features, engine="spark")
        assert built(features) == ALL
    finally:
        subprocess.run(["umount", str(features)], check=True)


def test_a_log_of_another_type_on_a_later_day_is_said(logs: Path, tmp_path: Path) -> None:
    shutil.copytree(logs, tmp_path / "logs")
    day = tmp_path / "logs" / "sessions" / f"date={START + 2 * DAY}"
    file = next(day.glob("*.parquet"))
    table = pq.read_table(file, partitioning=None)
    at = table.schema.get_field_index("minutes")
    pq.write_table(table.set_column(at, "minutes", table["minutes"].cast(pa.string())), file)
    with pytest.raises(DataError, match=r"(?s)Spark could not build the snapshots: .*what is finished is kept"):
        build_snapshots(tmp_path / "logs", tmp_path / "features", engine="spark")
    assert built(tmp_path / "features") == []
    (bad,) = ingest(tmp_path / "logs", tmp_path / "quarantine")  # as `tactful features` does first
    assert "column 'minutes' is string, must be a floating-point number" in bad.reason


def test_a_cluster_that_does_not_answer_is_said(lonely: subprocess.Popen[str]) -> None:
    told = " ".join(lonely.communicate(timeout=300)[1].split())
    assert lonely.returncode == 3
    assert "Spark on spark://127.0.0.1:1 does not start" in told
    assert "does it answer?" in told
    assert "Traceback" not in told
