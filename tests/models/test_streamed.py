"""A frame that is too large for memory: the network from all of it, the rest from a sample of its users."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from test_report import world

from campaign import load_campaign
from feature_repo.store import FeatureSchema
from models import streamed
from models.challenger import fit_spec
from models.forward import NumpyModel
from models.registry import model_path
from models.spec import columns_of
from models.splits import split_of
from models.stream import fit_parquet
from models.train import fit
from models.worth import headline, rival_policies

NAMES = {"x": "numeric", "minutes_28d": "numeric", "plan": "string"}
SCHEMA = FeatureSchema("uplift_v1", tuple(NAMES), NAMES, dict.fromkeys(NAMES, "profile"), {})


@pytest.fixture(scope="module")
def frame():
    """9,000 decisions of 6,000 users."""
    frame, _ = world()
    frame["user_id"] = [f"u{i % 6000}" for i in range(len(frame))]
    frame["decided_at"] += pd.to_timedelta(np.arange(len(frame)), unit="min")
    return frame.assign(device="web", country="DE", split=split_of(frame["user_id"], load_campaign().splits))


def test_write_frame_keeps_every_row_of_its_split(frame, tmp_path, monkeypatch):
    monkeypatch.setattr(streamed, "BLOCK_ROWS", 1000)
    streamed.write_frame(frame, tmp_path / "frame")
    found = streamed.sample_of_users(tmp_path / "frame", len(frame))
    pd.testing.assert_frame_equal(found[frame.columns], frame)
    first = pd.read_parquet(tmp_path / "frame" / "split=train" / "part-00000.parquet")["decided_at"].head(1000)
    assert first.min() < frame["decided_at"].quantile(0.01) < frame["decided_at"].quantile(0.99) < first.max()


def test_sample_of_users_has_whole_users(frame, tmp_path, monkeypatch):
    monkeypatch.setattr(streamed, "IN_MEMORY_ROWS", 3000)
    streamed.write_frame(frame, tmp_path / "frame")
    found = streamed.sample_of_users(tmp_path / "frame", len(frame))
    assert 2700 < len(found) < 3300
    wanted = frame[frame["user_id"].isin(found["user_id"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(found[frame.columns], wanted)


def test_streamed_training_gives_the_weights_of_training_in_memory_on_the_same_batches(frame, tmp_path):
    """All rows are one block, and so the batches are the same ones."""
    spec = dataclasses.replace(fit_spec(load_campaign(), SCHEMA), epochs=2, rules=10, members=2)
    frame.to_parquet(tmp_path / "all.parquet")
    one, two = fit_parquet([tmp_path / "all.parquet"], spec), fit(frame, spec).model
    assert set(one.tensors) == set(two.tensors)
    for name, values in two.tensors.items():
        np.testing.assert_array_equal(one.tensors[name], values, err_msg=name)


def test_train_streamed_learns_from_all_rows_and_judges_on_a_sample(frame, tmp_path, monkeypatch):
    campaign, data = load_campaign(), tmp_path / "data"
    small = dataclasses.replace(fit_spec(campaign, SCHEMA), epochs=3, rules=10)
    for module in ("streamed", "challenger"):
        monkeypatch.setattr(f"models.{module}.fit_spec", lambda *_: small)
    monkeypatch.setattr(streamed, "IN_MEMORY_ROWS", 7000)
    streamed.write_frame(frame, data / "frame")
    made = streamed.train_streamed(campaign, data / "frame", SCHEMA, data, page=False)
    told = json.loads((model_path(made.tag) / "model.json").read_text())
    assert told["start"] == "streamed"
    sampled = pd.read_parquet(made.folder / "frame.parquet")
    assert told["data_window"] == {
        "from": str(frame["decided_at"].min()),
        "to": str(frame["decided_at"].max()),
        "n": 9000,
        "sampled": len(sampled) / 9000,
    }
    assert 6000 < len(sampled) < 8000
    whole = fit_parquet([data / "frame" / "split=train" / "part-00000.parquet"], small)
    columns = columns_of(frame.head(50), NAMES)
    found = NumpyModel.load(model_path(made.tag))
    np.testing.assert_array_equal(found.predict(columns), whole.predict(columns))
    none = headline(made.values).set_index("policy").loc["send_none"]
    truth = np.dot(campaign.weights, [0.1, 0.8, 5.0])
    assert abs(none["value"] - truth) < 4 * none["se"]
    judged = pd.read_parquet(made.folder / "gate.parquet")
    assert set(judged["split"]) == {"train", "evaluate"}
    held_out = judged[judged["split"] == "evaluate"]
    policies = rival_policies(held_out, campaign, held_out["policy_arm"].to_numpy())
    assert set(policies) == {"response model", "linear T-learner", "LightGBM S-learner"}
    assert (policies["response model"] > 0).sum() == (held_out["policy_arm"] > 0).sum()
