"""Scoring on Spark gives the local table, one row per user, also when a worker is killed half-way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pyspark import cloudpickle
from serving_world import END, NOW

from bentos import spark_bulk
from bentos.bulk import score_all
from campaign import DataError, load_campaign
from feature_repo import spark

BATCH = 100
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def local(world: Path) -> pd.DataFrame:
    """In the batches that Spark makes: sums of float32 depend on them in the eighth digit."""
    return table_of(score_all(world / "data", load_campaign(), now=NOW, batch_rows=BATCH))


@pytest.fixture
def on_spark(world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small batches, so that a task has several of them."""
    monkeypatch.setenv("TACTFUL_ENGINE", "spark")
    spark.session().conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", str(BATCH))
    yield world / "data"
    spark.session().conf.unset("spark.sql.execution.arrow.maxRecordsPerBatch")


def table_of(folder: Path) -> pd.DataFrame:
    parts = sorted(folder.glob("part-*.parquet"))
    return pd.concat([pd.read_parquet(part) for part in parts]).sort_values("user_id", ignore_index=True)


def test_spark_score_equals_local(on_spark: Path, local: pd.DataFrame) -> None:
    folder = score_all(on_spark, load_campaign(), now=NOW)
    found = table_of(folder)
    assert json.loads((folder / "run.json").read_text())["engine"] == "spark"
    assert found["user_id"].is_unique
    pd.testing.assert_frame_equal(found, local, check_exact=True)
    before = [part.stat().st_mtime_ns for part in folder.glob("part-*")]
    score_all(on_spark, load_campaign(), now=NOW)
    assert [part.stat().st_mtime_ns for part in folder.glob("part-*")] == before


@dataclass(frozen=True)
class Dying:
    """A model in whose third batch the worker is killed, the first `times` times."""

    model: Any
    marks: Path
    times: int

    @property
    def spec(self) -> Any:
        return self.model.spec

    def predict(self, columns: dict[str, Any]) -> Any:
        size = len(next(iter(columns.values())))
        if size:
            (self.marks / f"{os.getpid()}-{len(list(self.marks.glob(f'{os.getpid()}-*')))}").touch()
        died = len(list(self.marks.glob("died-*")))
        if died < self.times and len(list(self.marks.glob(f"{os.getpid()}-*"))) == 3:
            (self.marks / f"died-{died}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.model.predict(columns)


def with_deaths(monkeypatch: pytest.MonkeyPatch, marks: Path, times: int) -> None:
    whole = spark_bulk.score_snapshot

    def dying(snapshot: Path, folder: Path, run: dict[str, Any], scored: spark_bulk.Scored) -> None:
        bundle = replace(scored[0], model=Dying(scored[0].model, marks, times))
        whole(snapshot, folder, run, (bundle, *scored[1:]))

    monkeypatch.setattr(spark_bulk, "score_snapshot", dying)


def test_spark_score_when_a_worker_is_killed(
    on_spark: Path, local: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.rmtree(on_spark / "eligibility")
    with_deaths(monkeypatch, tmp_path, 1)
    folder = score_all(on_spark, load_campaign(), now=NOW)
    workers = {mark.name.split("-")[0] for mark in tmp_path.glob("*-*")} - {"died"}
    assert len(list(tmp_path.glob("died-*"))) == 1
    assert len(workers) == 2, "the task was begun by one worker and finished by another"
    pd.testing.assert_frame_equal(table_of(folder), local, check_exact=True)


def test_spark_score_leaves_the_old_table_when_every_attempt_dies(
    on_spark: Path, local: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = on_spark / "eligibility" / f"date={END}"
    (folder / "run.json").unlink()  # of another run
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with_deaths(monkeypatch, tmp_path, 99)
    with pytest.raises(DataError, match="Spark could not score"):
        score_all(on_spark, load_campaign(), now=NOW)
    assert len(list(tmp_path.glob("died-*"))) == 4  # as often as Spark tries
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not list(folder.parent.glob(".*"))
