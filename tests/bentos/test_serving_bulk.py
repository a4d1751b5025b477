"""Bulk scoring and the whole worker, in this process, on the built world."""

import asyncio
import json
import os
import shutil
import time
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest
from serving_world import END, NOW

from bentos.bulk import push, score_all
from bentos.features import Ask
from bentos.schemas import DecideRequest
from bentos.snapshot_reader import SnapshotReader
from bentos.worker import Worker
from feature_repo.atomic import write_json
from feature_repo.retrieval import feature_schema, open_store
from models import registry

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:On demand feature view:RuntimeWarning"),
]


@pytest.fixture
def inside(world, monkeypatch):
    """This process lives in the world."""
    from bentoml._internal.configuration.containers import BentoMLContainer
    from bentoml._internal.models import ModelStore

    monkeypatch.setenv("TACTFUL_DATA", str(world / "data"))
    monkeypatch.setenv("TACTFUL_FEATURE_REPO", str(world / "repo"))
    monkeypatch.setenv("TACTFUL_NOW", NOW.isoformat())
    monkeypatch.delenv("TACTFUL_STORE", raising=False)
    # the store itself, not its folder: it is made once, by whatever test asks first
    BentoMLContainer.model_store.set(ModelStore(str(world / "bentoml" / "models")))
    yield world
    BentoMLContainer.model_store.reset()


async def decide(users, jump=None, monkeypatch=None):
    """The worker's answers about users without context; then again at the instants of `jump`."""
    worker = Worker()
    await worker.start()
    try:
        answers = [(await worker.decider.decide(DecideRequest(user_ids=users)))["decisions"]]
        for moment in jump or []:
            monkeypatch.setenv("TACTFUL_NOW", moment.isoformat())
            answers.append((await worker.decider.decide(DecideRequest(user_ids=users)))["decisions"])
        assert await worker.problems() == []
        return answers
    finally:
        await worker.stop()


def test_score_all_equals_the_service(inside, campaign):
    folder = score_all(inside / "data", campaign, now=NOW, batch_rows=128)
    parts = sorted(folder.glob("part-*.parquet"))
    frame = pd.concat([pd.read_parquet(part) for part in parts]).set_index("user_id")
    assert len(parts) == -(-len(frame) // 128)
    assert frame.index.is_unique
    assert set(frame["layer"]) >= {"holdout", "exploration", "policy"}
    users = frame.index[:300].tolist()
    (answers,) = asyncio.run(decide(users))
    found = frame.loc[users]
    assert found["reason"].tolist() == [d["reason"] for d in answers]
    assert found["arm"].tolist() == [d["arm"] for d in answers]
    np.testing.assert_allclose(found["score"], [d["score"] for d in answers], rtol=0, atol=1e-6)
    for outcome in campaign.outcome_names:
        served = [d["uplift"]["premium_offer"][outcome] for d in answers]
        np.testing.assert_allclose(found[f"uplift_premium_offer_{outcome}"], served, rtol=0, atol=1e-6)


def test_score_all_resumes_and_starts_over_when_inputs_change(inside, campaign):
    folder = score_all(inside / "data", campaign, now=NOW, batch_rows=128)
    times = {part.name: part.stat().st_mtime_ns for part in folder.glob("part-*.parquet")}
    assert score_all(inside / "data", campaign, now=NOW, batch_rows=128) == folder
    missing = folder / "part-00001.parquet"
    content = pd.read_parquet(missing)
    missing.unlink()
    (folder / "run.json").write_text(
        (folder / "run.json").read_text().replace(',\n "done": true', "").replace(' "done": true,\n', "")
    )
    score_all(inside / "data", campaign, now=NOW, batch_rows=128)
    after = {part.name: part.stat().st_mtime_ns for part in folder.glob("part-*.parquet")}
    assert {name for name in after if after[name] != times[name]} == {"part-00001.parquet"}
    pd.testing.assert_frame_equal(pd.read_parquet(missing), content)
    score_all(inside / "data", campaign, now=NOW + timedelta(days=30), batch_rows=128)
    assert set(pd.read_parquet(missing)["reason"]) == {"stale_features"}
    assert folder.name == f"date={END}"


class Killed(Exception):
    pass


@pytest.mark.parametrize("profile", ["local", pytest.param("redis", marks=pytest.mark.redis)])
def test_push_lets_a_client_look_eligibility_up_with_feast_alone(inside, campaign, monkeypatch, profile, request):
    if profile == "redis":
        request.getfixturevalue("redis_world")
        monkeypatch.setenv("TACTFUL_STORE", "redis")
    folder = score_all(inside / "data", campaign, now=NOW, batch_rows=128)
    table = pd.concat([pd.read_parquet(part) for part in sorted(folder.glob("part-*.parquet"))])

    def kill(done, users):
        assert users == len(table)
        if done > 128:
            raise Killed

    with pytest.raises(Killed):
        push(folder, NOW, kill)
    assert push(folder, NOW) == len(table) - 256, "it goes on behind the two parts that were written"
    assert push(folder, NOW) == 0
    asked, names = table.iloc[::7], ["eligible", "arm", "reason", "score", "model_tag"]
    rows = {"user_id": [*asked["user_id"], "nobody"]}
    found = open_store().get_online_features([f"eligibility:{name}" for name in names], rows).to_dict(True)
    for name in names:
        expected = asked[name].astype(object).where(asked[name].notna(), None).tolist()
        assert found[name] == [*expected, None], name
    assert found["eligible__ts"] == [int(NOW.timestamp())] * len(asked) + [0]


def test_worker_survives_a_clock_that_jumps(inside, monkeypatch):
    users = [str(u) for u in np.load(inside / "expected.npz")["users"][:20]]
    jumps = [NOW + timedelta(days=30), NOW - timedelta(days=30), NOW]
    first, ahead, behind, back = asyncio.run(decide(users, jumps, monkeypatch))
    assert {d["reason"] for d in ahead} == {"stale_features"}
    assert not any(d["eligible"] for d in ahead)
    uplifts = [[d["uplift"] for d in answers] for answers in (behind, first)]
    assert uplifts[0] == uplifts[1], "features from the future of a clock that is behind are still the newest"
    assert back == first


@pytest.mark.parametrize(("setting", "times"), [("none", 0), ("batch", 1)])
def test_worker_waits_for_the_disk_where_it_is_told_to(inside, monkeypatch, setting, times):
    synced, fsync = [], os.fsync
    monkeypatch.setenv("TACTFUL_LOG_FSYNC", setting)
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_size) or fsync(handle))
    answers = asyncio.run(decide(["nobody"]))
    assert answers[0][0]["reason"] == "unknown_user"
    assert len(synced) == times
    assert all(size > 100 for size in synced), "the line was written before"


async def tags_served(pointer, tags):
    """What a worker serves, and why not what it should, while the pointer names one model after another."""
    worker, value = Worker(), json.loads(pointer.read_text())
    found = []
    try:
        for tag in tags:
            write_json(pointer, {**value, "champion": tag})
            if not found:
                await worker.start()
            champion = worker.decider.champion
            await asyncio.to_thread(champion.follow, time.monotonic())
            found.append((champion.tag, champion.error or ""))
        return found
    finally:
        await worker.stop()
        write_json(pointer, value)


def test_worker_refuses_a_model_of_another_schema_and_keeps_the_old(inside, tmp_path):
    first, second = json.loads((inside / "models.json").read_text())
    foreign = tmp_path / "foreign"
    shutil.copytree(inside / "model-2", foreign)
    (foreign / "sha256.json").unlink(missing_ok=True)
    raw = json.loads((foreign / "model.json").read_text())
    (foreign / "model.json").write_text(json.dumps({**raw, "feature_schema_hash": "0123456789ab"}))
    other, pointer = registry.pack(foreign, set_challenger=False), registry.pointer_path()
    served = asyncio.run(tags_served(pointer, [other, first, other, second]))
    assert [tag for tag, _ in served] == ["", first, first, second]
    assert [bool(error) for _, error in served] == [True, False, True, False]
    assert "schema 0123456789ab, the feature store has" in served[2][1]


async def rows_of_both(users, at):
    """Rows of the worker's own reader, and of the day's snapshot, for the same requests."""
    worker = Worker()
    await worker.start()
    try:
        serving = worker.decider.champion.serving
        asks = [Ask("", users, 20, "home"), Ask("", ["nobody"], None, None), Ask("", users[:3], 3, "radio")]
        store = open_store()
        snapshot = SnapshotReader(store, feature_schema(store, serving.bundle.feature_service), serving.bundle)
        snapshot.open(END)
        return await serving.reader.read(asks, at), await snapshot.read(asks, at)
    finally:
        await worker.stop()


def test_snapshot_reader_equals_the_online_store(inside):
    users = pd.read_parquet(inside / "data" / "features" / f"date={END}" / "snapshot.parquet")["user_id"][:200].tolist()
    online, snapshot = asyncio.run(rows_of_both(users, NOW))
    for name in ("numeric", "status", "timestamp"):
        np.testing.assert_array_equal(getattr(snapshot, name), getattr(online, name), err_msg=name)
    assert snapshot.strings.tolist() == online.strings.tolist()
    assert len(set(online.status.tolist())) == 2  # known and unknown users were compared
