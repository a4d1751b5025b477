"""The training frame of Spark is the local one, value by value, and trains the same model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from serving_world import NOW

from campaign import DataError, load_campaign
from feature_repo.store import feature_schema, open_store
from models.frame import COLUMNS, ORDER, countable, read_decisions, training_frame
from models.predictions import predict_frame
from models.spark_frame import first_copies, read_frame, spark_decisions, write_training_frame
from models.spec import FitSpec
from models.splits import split_of
from models.stream import fit_parquet


@pytest.fixture(scope="module")
def frames(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, Path]:
    """The local frame, and the folder that Spark wrote; some decisions are in the log twice, some of nobody."""
    data, campaign, store = world / "data", load_campaign(), open_store()
    file = next((data / "decisions").glob("date=*/*.parquet"))
    rows = pq.read_table(file, partitioning=None)
    stranger = rows.slice(20, 3).to_pandas().assign(user_id="nobody", decision_id=["n1", "n2", "n3"])
    again = pa.concat_tables([rows.slice(0, 20), pa.Table.from_pandas(stranger, rows.schema, preserve_index=False)])
    pq.write_table(again.drop_columns("experiment"), file.with_name("again.parquet"))
    out = tmp_path_factory.mktemp("frame") / "frame"
    counted = countable(read_decisions(data / "decisions"), campaign, NOW)
    local = training_frame(store, counted, campaign, data / "logs", NOW)
    n = write_training_frame(store, data / "decisions", campaign, data / "logs", NOW, out)
    assert n == len(local)
    return local, out


def test_spark_frame_equals_local(frames: tuple[pd.DataFrame, Path]) -> None:
    local, out = frames
    found = read_frame(out)
    assert found.pop("split").tolist() == split_of(local["user_id"], load_campaign().splits).tolist()
    assert sorted(found.columns) == sorted(local.columns)
    assert len(local) > 200
    assert local["decision_id"].is_unique
    for name in local.columns:
        wanted, got = local[name], found[name]
        if name == "propensities":
            np.testing.assert_array_equal(np.stack(got), np.stack(wanted))
        elif wanted.dtype == float:
            np.testing.assert_allclose(got, wanted, rtol=1e-12, err_msg=name)
        else:
            assert got.isna().tolist() == wanted.isna().tolist(), name
            assert got.dropna().tolist() == wanted.dropna().tolist(), name
    assert not list(out.parent.glob(".*"))


@pytest.mark.filterwarnings("ignore:arm .* has .* rows")
def test_spark_frame_streams_into_training(frames: tuple[pd.DataFrame, Path], tmp_path: Path) -> None:
    local, out = frames
    files = sorted(out.glob("*/part-*.parquet"))
    in_order = pd.concat(pd.read_parquet(file) for file in files)["decision_id"]
    local.set_index("decision_id").loc[in_order].reset_index().to_parquet(tmp_path / "local.parquet", index=False)
    pd.concat(pd.read_parquet(file) for file in files).to_parquet(tmp_path / "spark.parquet", index=False)
    campaign = load_campaign()
    types = feature_schema(open_store()).types
    spec = FitSpec(types, campaign.arm_names, campaign.outcome, members=2, rules=10, epochs=2, outcome_prefix="y_")
    one, two = (predict_frame(fit_parquet([tmp_path / f"{name}.parquet"], spec), local) for name in ("local", "spark"))
    np.testing.assert_array_equal(one, two)


def test_spark_frame_says_that_nothing_matured(world: Path, tmp_path: Path) -> None:
    data, early = world / "data", pd.Timestamp("2026-04-02", tz="UTC").to_pydatetime()
    with pytest.raises(DataError, match="no usable decision by 2026-04-02"):
        write_training_frame(open_store(), data / "decisions", load_campaign(), data / "logs", early, tmp_path / "f")
    assert not (tmp_path / "f").exists()


def test_copies_that_differ_count_once_and_the_same_as_locally(tmp_path: Path) -> None:
    """In two files, so that no order of rows is given: another time, another arm, and nothing else."""
    n = 40
    copies = pd.DataFrame({name: ["x"] * 4 * n for name in COLUMNS})
    copies["decision_id"] = np.repeat([f"d{i}" for i in range(n)], 4)
    hours = pd.to_timedelta(np.tile([1, 0, 0, 0], n), unit="h")
    copies["decided_at"] = pd.DatetimeIndex(pd.Timestamp("2026-03-02", tz="UTC") + hours).as_unit("us")
    copies["feature_timestamp"] = copies["decided_at"]
    copies["arm"] = np.tile([0, 2, 1, 1], n)
    copies["hour"], copies["propensity"] = 5, 0.5
    copies["propensities"] = [[0.5, 0.25, 0.25]] * len(copies)
    for i, rows in enumerate((copies, copies[::-1])):
        folder = tmp_path / f"date=2026-03-0{2 + i}"
        folder.mkdir()
        pq.write_table(pa.Table.from_pandas(rows, preserve_index=False), folder / "a.parquet")
    wanted = read_decisions(tmp_path)
    assert len(wanted) == n
    assert set(wanted["arm"]) == {1}
    found = first_copies(spark_decisions(tmp_path)).toArrow().to_pandas().sort_values(ORDER, ignore_index=True)
    assert list(found.columns) == COLUMNS
    for name in COLUMNS:
        assert found[name].map(str).tolist() == wanted[name].map(str).tolist(), name
