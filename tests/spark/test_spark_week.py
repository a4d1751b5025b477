"""`tactful monitor` on Spark rests on what it rests on locally, and gives the same verdict."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from serving_world import NOW

from campaign import DataError, load_campaign
from feature_repo.atomic import write_json
from models.forward import NumpyModel
from models.registry import model_path, pack, promote, required_champion
from models.splits import split_of
from monitoring.inputs import matured_frame, weekly_inputs
from monitoring.profile import build_profile
from monitoring.weekly import WeekInputs, run_week

DAY = pd.Timestamp("2026-05-13").date()


@pytest.fixture(scope="module")
def local(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WeekInputs]:
    """The week of a champion that was packed with a profile of the decisions it is measured on."""
    before, campaign = required_champion(), load_campaign()
    folder = tmp_path_factory.mktemp("packed") / "model"
    shutil.copytree(model_path(before), folder, ignore=shutil.ignore_patterns("model.yaml"))
    model = NumpyModel.load(folder)
    frame = matured_frame(campaign, world / "data", model, NOW)
    frame["split"] = split_of(frame["user_id"], campaign.splits)
    kinds = {feature.name: feature.kind for feature in model.spec.features}
    write_json(folder / "reference_profile.json", build_profile(frame, kinds, campaign, weeks=3.0))
    promote(pack(folder), "test", at=NOW.isoformat())
    yield weekly_inputs(campaign, world / "data", DAY, NOW)
    promote(before, "test", at=NOW.isoformat())


@pytest.fixture
def on_spark(world: Path, local: WeekInputs, monkeypatch: pytest.MonkeyPatch) -> WeekInputs:
    monkeypatch.setenv("TACTFUL_ENGINE", "spark")
    return weekly_inputs(load_campaign(), world / "data", DAY, NOW)


def same(found: pd.DataFrame, wanted: pd.DataFrame) -> None:
    assert len(found) == len(wanted) > 50
    for name in wanted.columns:
        one, two = found[name], wanted[name]
        if name == "propensities":
            np.testing.assert_array_equal(np.stack(one), np.stack(two))
        elif two.dtype == float:
            # predictions are of float32, and depend on the batch in the eighth digit
            np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6, err_msg=name)
        else:
            assert one.isna().tolist() == two.isna().tolist(), name
            assert one.dropna().tolist() == two.dropna().tolist(), name


def test_spark_week_equals_local(on_spark: WeekInputs, local: WeekInputs, world: Path) -> None:
    assert local.counted is None
    assert on_spark.counted is not None
    # what nobody reads of a week is not carried along
    same(on_spark.week_frame, local.week_frame.drop(columns=["policy_arm"]).filter(regex="^(?!mu_)"))
    same(on_spark.matured_frame, local.matured_frame.drop(columns=["salts", "experiment"]))
    assert on_spark.sums.n == local.sums.n
    assert on_spark.sums.layers == local.sums.layers
    assert on_spark.sums.reasons == local.sums.reasons
    for name, counts in local.sums.counts.columns.items():
        if name in local.features:
            assert np.array_equal(on_spark.sums.counts.columns[name].bins, counts.bins), name
    left = [path.name for path in (world / "data" / "monitoring").glob(".*")]
    assert left == []


def test_spark_week_gives_the_local_verdict(on_spark: WeekInputs, local: WeekInputs, tmp_path: Path) -> None:
    decisions = [run_week(inputs, tmp_path / name) for name, inputs in (("spark", on_spark), ("local", local))]
    assert decisions[0].as_dict()["reasons"] == decisions[1].as_dict()["reasons"]
    found, wanted = (
        json.loads((tmp_path / name / "2026-W20" / "stats.json").read_text()) for name in ("spark", "local")
    )
    assert [check["name"] for check in found["checks"]] == [check["name"] for check in wanted["checks"]]
    for one, two in zip(found["checks"], wanted["checks"], strict=True):
        assert one["value"] == pytest.approx(two["value"], rel=1e-5, abs=1e-6), one


def test_spark_week_says_that_it_is_not_in_the_logs(world: Path, local: WeekInputs, monkeypatch) -> None:
    monkeypatch.setenv("TACTFUL_ENGINE", "spark")
    with pytest.raises(DataError, match="the week of 2026-01-05 is not in the logs: decisions begin on 2026-"):
        weekly_inputs(load_campaign(), world / "data", pd.Timestamp("2026-01-07").date(), NOW)
