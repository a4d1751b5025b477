"""The closed loop on a small platform, through the command; then what its leftovers are good for."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from campaign import ROOT, DataError, StoreError, load_campaign
from rehearsal import Script, rehearse
from rehearsal.page import page
from rehearsal.script import Result, Week

WORDS = ("rehearse", "--weeks", "2", "--users", "3000", "--seed", "5", "--drift", "tracking@1", "--json")
NAME = "tracking@1-3000users-2weeks-seed5"
KEYS = ["week", "value_policy", "value_send_all", "value_send_none", "value_frozen", "value_oracle"]
KEYS += ["alarm", "action", "promoted"]


def start(data, *words):
    environ = os.environ | {"TACTFUL_DATA": str(data), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    data = tmp_path_factory.mktemp("rehearsed")
    process = start(data, "-m", "pipeline", *WORDS)
    printed, told = process.communicate(timeout=500)
    assert process.returncode == 20, told[-4000:]
    return data, json.loads(printed)


def test_rehearse_tracking_bug_ends_in_stop_and_trains_nothing(rehearsed):
    data, result = rehearsed
    assert [list(week) for week in result["weeks"]] == [KEYS, KEYS]
    for week in result["weeks"]:
        assert week["action"] == "stop"
        assert "data:quarantine" in week["alarm"]
    assert not any(week["promoted"] for week in result["weeks"])
    pointer = json.loads((data / "rehearsals" / NAME / "data" / "registry" / "champion.json").read_text())
    assert len(pointer["history"]) == 1


def test_rehearse_oracle_is_best_and_frozen_is_the_champion(rehearsed):
    for week in rehearsed[1]["weeks"]:
        assert week["value_oracle"] >= max(week[f"value_{name}"] for name in ("policy", "send_all", "send_none"))
        assert week["value_frozen"] == week["value_policy"]


def test_rehearse_decided_everybody_who_was_due_with_the_service_code(rehearsed):
    import pandas as pd

    data, result = rehearsed
    folder = data / "rehearsals" / NAME
    decisions = pd.concat(map(pd.read_parquet, (folder / "data" / "decisions").glob("date=*/service-*.parquet")))
    assert len(decisions) == result["summary"]["decisions"]
    assert decisions["decision_id"].is_unique
    assert set(decisions["layer"]) == {"holdout", "exploration", "policy"}
    arms = [np.load(file).sum() for file in sorted((folder / "weeks").glob("*.npy"))]
    assert sum(arms) == decisions["arm"].sum()


def test_rehearse_again_repeats_nothing(rehearsed):
    data, result = rehearsed
    began = time.time()
    process = start(data, "-m", "pipeline", *WORDS)
    printed, _ = process.communicate(timeout=300)
    assert json.loads(printed) == result
    assert [
        p for p in (data / "rehearsals" / NAME / "data").rglob("*") if p.is_file() and p.stat().st_mtime > began
    ] == []


# what happens after a verdict, in the finished rehearsal's own data, registry and model store
AFTERWARDS = """
import json, os, shutil, sys
folder = sys.argv[1]
os.environ |= {"TACTFUL_DATA": folder + "/data", "TACTFUL_FEATURE_REPO": folder + "/repo",
               "BENTOML_HOME": folder + "/bentoml"}
from datetime import UTC, datetime
from pathlib import Path
from bentos.bundle import load_bundle
from campaign import DataError, StoreError, load_campaign
from models import registry
from models.registry import model_path, read_pointer
from monitoring import promotion
from monitoring.promotion import changing_champion, fall_back
from monitoring.retraining import retrain
campaign, data, end = load_campaign(), Path(folder) / "data", datetime(2026, 11, 23, tzinfo=UTC)
when = {"as_of": end, "now": end}
found = {"first": read_pointer().champion}
try:
    retrain(campaign, data, **when)
except DataError as error:
    found["broken"] = str(error)
found["silent"] = fall_back(campaign, data, "week X", **when)
found["still"] = fall_back(campaign, data, "week X", **when)
bundle = load_bundle(found["silent"], model_path(found["silent"]), campaign)
found["threshold"] = bundle.threshold
found["report"] = (data / "reports" / found["silent"].replace(":", "-") / "frame.parquet").exists()
with changing_champion(data):
    try:
        retrain(campaign, data, **when)
    except StoreError as error:
        found["busy"] = str(error)
week = sorted((data / "monitoring").glob("*-W*/decision.json"))[-1]
decision = json.loads(week.read_text()) | {"action": "warn", "fallback": True}
week.write_text(json.dumps(decision))
found["not_again"] = retrain(campaign, data, **when).fallback
third = data.parent / "third"
shutil.copytree(model_path(found["first"]), third, ignore=shutil.ignore_patterns("model.yaml"))
spec = json.loads((third / "model.json").read_text())
(third / "model.json").write_text(json.dumps(spec | {"policy": {"threshold": -1e6, "reason": "send to everybody"}}))
registry.rollback("by hand", at="now")
found["third"] = registry.pack(third)
registry.promote(found["third"], "by hand", at="now")
week.write_text(json.dumps(decision | {"champion": found["third"]}))
promotion.CERTAIN = -1e9  # so few users cannot make sure that the first model helps: here any gain is enough
(third / "model.json").write_text(json.dumps(spec | {"feature_schema_hash": "of other definitions"}))
other = registry.pack(third, set_challenger=False)
found["served"] = [promotion._surely_helps(campaign, data, tag, end) for tag in (found["first"], other)]
found["back"] = retrain(campaign, data, **when).summary()
found["reasons"] = [entry["reason"] for entry in read_pointer().history]
week.write_text(json.dumps(decision | {"action": "retrain", "fallback": False, "champion": found["first"]}))
before = set((data / "reports").rglob("gate.parquet"))
retrain(campaign, data, **when, page=False)
found["trained"] = len(set((data / "reports").rglob("gate.parquet")) - before)
found["pages"] = [str(path) for path in (data / "reports").rglob("*.html")]
print(json.dumps(found))
"""


def test_fall_back_at_once_to_nothing_or_to_a_predecessor_that_helps(rehearsed):
    data, _ = rehearsed
    process = start(data, "-c", AFTERWARDS, str(data / "rehearsals" / NAME))
    printed, told = process.communicate(timeout=300)
    assert process.returncode == 0, told[-3000:]
    found = json.loads(printed.splitlines()[-1])
    assert "the data is broken" in found["broken"]
    assert found["silent"] != found["first"]
    assert found["still"] == found["silent"]
    assert found["threshold"] > 1e300
    assert found["report"]
    assert "is running already" in found["busy"]
    assert found["not_again"] is None  # the week's finding was about a champion that is gone
    assert found["served"] == [True, False]  # the service takes no model of other feature definitions
    assert found["back"] == {"action": "warn", "trained": False, "fallback": found["first"]}
    assert found["reasons"][1] == "fallback to sending nothing: week X"
    assert found["reasons"][-1] == f"fallback: week {found_week(data)}"
    assert found["trained"] == 1
    assert found["pages"] == []  # the rehearsal asked for none


def found_week(data: Path) -> str:
    return sorted((data / "rehearsals" / NAME / "data" / "monitoring").glob("*-W*"))[-1].name


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_rehearse_killed_goes_on_to_the_same_end(rehearsed, tmp_path):
    patterns = ("data/reports/*/gate.parquet", "weeks/01.npy", "data/monitoring/*/decision.json")
    for pattern in patterns:
        process = start(tmp_path, "-m", "pipeline", *WORDS)
        while not list((tmp_path / "rehearsals" / NAME).glob(pattern)):
            assert process.poll() is None, process.stderr.read()[-3000:]
            time.sleep(0.05)
        process.kill()
        process.communicate()
        pointer = tmp_path / "rehearsals" / NAME / "data" / "registry" / "champion.json"
        if pointer.exists():
            assert json.loads(pointer.read_text())["schema"] == 1
    process = start(tmp_path, "-m", "pipeline", *WORDS)
    printed, _ = process.communicate(timeout=500)
    assert json.loads(printed)["weeks"] == rehearsed[1]["weeks"]


@pytest.mark.parametrize("drift", ["price", "price@0", "price@9", "war@2", "@3", "price@x"])
def test_script_refuses_other_drifts(drift):
    with pytest.raises(DataError, match=r"expected none, or KIND@WEEK .* within 1\.\.8"):
        Script.parse(weeks=8, drift=drift, users=1000, seed=1)


def test_script_mondays_end_with_the_world():
    script = Script.parse(weeks=3, drift="market@2", users=1000, seed=1)
    assert [str(script.monday(week)) for week in (1, 2, 3)] == ["2026-11-02", "2026-11-09", "2026-11-16"]
    assert script.drift_week == 2


def test_rehearse_refuses_a_process_whose_definitions_read_another_folder(tmp_path):
    import feature_repo.sources  # as a rehearsal before leaves them

    wanted = rf"read {re.escape(feature_repo.sources.snapshots.path)}.*must read {re.escape(str(tmp_path))}.*own"
    with pytest.raises(StoreError, match=wanted):
        rehearse(Script(1, 1000, 1), load_campaign(), tmp_path, finish=lambda *parts: None)


def weeks():
    values = {"value_send_all": 4.0, "value_send_none": 3.0, "value_frozen": 4.4, "value_oracle": 5.0}
    common = values | {"champion": "t:1", "alarm": (), "action": "none", "promoted": False}
    return (
        Week(week=1, value_policy=4.5, n=100, **common),
        Week(week=2, value_policy=4.8, n=300, **(common | {"alarm": ("red_line:plan",), "action": "retrain"})),
    )


def test_result_gains_count_every_decision_once():
    result = Result(Script(2, 1000, 1, "price", 2), weeks(), "somewhere")
    assert result.gain("frozen") == pytest.approx((100 * 0.1 + 300 * 0.4) / 400)
    assert result.summary()["gain_over_since_drift"]["send_all"] == pytest.approx(0.8)
    assert result.summary()["retrain_weeks"] == [2]


def test_page_is_self_contained_and_names_what_happened():
    html = page(Result(Script(2, 1000, 1, "price", 2), weeks(), "somewhere", None, "kr"))
    assert "True value, kr per user and window" in html
    assert "EUR" not in html
    assert "Drift price begins in week 2" in html
    assert "plan" in html
    for outside in ("http://", "https://", "<script", "<link", "src="):
        assert outside not in html
