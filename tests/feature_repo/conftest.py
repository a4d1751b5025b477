"""One small world, its snapshots with some days missing, and an applied feature store, shared by the tests here."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path

import pandas as pd
import pytest
from feature_logs import START, make_logs, write_logs
from feature_oracle import Oracle
from feature_world import DAYS, LAST, ONLY_CORRECTIONS, OUTAGE, Repo, copy_repo
from own_platform import export

from feature_repo.contracts import ingest
from feature_repo.log_map import load_log_map
from feature_repo.own_logs import bring_logs
from feature_repo.snapshots import build_snapshots

THIRD_PARTIES = (
    "ignore:fetch_arrow_table:DeprecationWarning",  # ibis
    "ignore::DeprecationWarning:feast.*",
    "ignore::DeprecationWarning:ibis.*",
    "ignore::DeprecationWarning:google.*",
    "ignore::pydantic.warnings.PydanticDeprecatedSince20",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for rule in THIRD_PARTIES:
                item.add_marker(pytest.mark.filterwarnings(rule))


@pytest.fixture(scope="session")
def tables() -> dict[str, pd.DataFrame]:
    return make_logs(days=DAYS)


@pytest.fixture(scope="session")
def arrived(tables: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """What had arrived by the end of the world."""
    end = pd.Timestamp(LAST, tz="UTC")
    return {name: table[table["created_timestamp"] < end] for name, table in tables.items()}


@pytest.fixture(scope="session")
def oracle(arrived: dict[str, pd.DataFrame]) -> Oracle:
    return Oracle.read(arrived)


@pytest.fixture(scope="session")
def logs_dir(tables: dict[str, pd.DataFrame], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "logs"
    write_logs(tables, folder, DAYS)
    assert ingest(folder, folder.parent / "quarantine") == []
    return folder


@pytest.fixture(scope="session")
def features_dir(logs_dir: Path) -> Path:
    """Snapshots of every day."""
    folder = logs_dir.parent / "all-features"
    days = build_snapshots(logs_dir, folder)
    assert days == [START + timedelta(days=d) for d in range(1, DAYS + 1)]
    return folder


@pytest.fixture(scope="session")
def repo(features_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Repo:
    """A copy of feature_repo applied by Feast's command line to snapshots with an outage in them."""
    data = features_dir.parent / "data"
    shutil.copytree(features_dir, data / "features")
    for day in OUTAGE:
        shutil.rmtree(data / "features" / f"date={day}")
    for day in ONLY_CORRECTIONS:
        (data / "features" / f"date={day}" / "snapshot.parquet").unlink()
    made = Repo(copy_repo(tmp_path_factory.mktemp("repo") / "feature_repo"), data)
    done = made.feast("apply")
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    assert "Warning" not in done.stderr
    return made


@pytest.fixture
def _data_root(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TACTFUL_DATA", str(repo.data))


@pytest.fixture(scope="session")
def redis_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A redis-server of our own on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path_factory.mktemp("redis"))]
    server = subprocess.Popen(["redis-server", *words], stdout=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield port
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Exports of 400 users, a fifth held out, and the world they were made from; not to be changed."""
    root = tmp_path_factory.mktemp("own")
    return root, export(root, 400, 60, 5, date(2026, 11, 24), 0.2)


@pytest.fixture
def mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Write logs.toml and files beside it; returns a function that brings them."""
    monkeypatch.setenv("TACTFUL_LOGS", str(tmp_path / "logs.toml"))

    def write(toml: str, **files: str | bytes) -> int:
        (tmp_path / "logs.toml").write_text(toml)
        for name, content in files.items():
            path = tmp_path / name.replace("_csv", ".csv")
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return bring_logs(tmp_path / "data", load_log_map(), ("none", "premium_offer"))

    return write
