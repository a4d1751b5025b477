"""A live experiment in a small rehearsal: the plan, the service's assignment, the reading, and the truth beside it."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from campaign import ROOT, DataError, load_campaign
from rehearsal import Script, experiment
from rehearsal.page import page
from rehearsal.script import Result, Week, experiment_lines

CAMPAIGN = load_campaign(ROOT / "campaign.toml")
WEEKS, USERS = 5, 3000  # the first week's users mature in the fifth

# Margins so wide that so few users can plan; two members, to be quick
PLAY = """
import json, sys
from pathlib import Path
import pipeline
from campaign import load_campaign
from rehearsal import Script, rehearse
campaign = load_campaign()
wide = {"margin": 0.3, "segment_margin": 0.9}
outcome = tuple(o.model_copy(update=wide) if o.role == "guardrail" else o for o in campaign.outcome)
training = campaign.training.model_copy(update={"members": 2})
campaign = campaign.model_copy(update={"outcome": outcome, "training": training})
script = Script.parse(weeks=5, drift="none", users=3000, seed=3, experiment=1)
result = rehearse(script, campaign, Path(sys.argv[1]), finish=lambda *parts: pipeline._finish(campaign, *parts))
print(json.dumps(result.as_dict()))
print(result.text(), file=sys.stderr)
"""


NAME = "none-experiment@1-3000users-5weeks-seed3"


def start(data):
    environ = os.environ | {"TACTFUL_DATA": str(data), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", PLAY, str(data)],
        cwd=ROOT,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process):
    """What was printed as JSON, and to people."""
    printed, told = process.communicate(timeout=500)
    assert process.returncode == 0, told[-4000:]
    return json.loads(printed.splitlines()[-1]), told


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    data = tmp_path_factory.mktemp("rehearsed")
    result, told = finished(start(data))
    folder = data / "rehearsals" / NAME
    files = sorted((folder / "data" / "decisions").glob("date=*/service-*.parquet"))
    log = pd.concat(map(pd.read_parquet, files), ignore_index=True).sort_values("decided_at")
    return folder, result, log, told


def enrolled(log, first_only=True):
    """Decisions of the experiment layer with what was logged of variant and arms."""
    rows = log[log["layer"] == "experiment"]
    rows = rows.drop_duplicates("user_id") if first_only else rows
    told = pd.DataFrame([json.loads(text) for text in rows["experiment"]], index=rows.index)
    return rows[["user_id", "decided_at", "arm"]].join(told[["variant", "arms"]])


def test_users_are_enrolled_by_the_service_and_keep_their_variant(rehearsed):
    _, result, log, _ = rehearsed
    rows = enrolled(log, first_only=False)
    assert (rows.groupby("user_id")["variant"].nunique() == 1).all()
    assert [arms[v] for arms, v in zip(rows["arms"], rows["variant"], strict=True)] == rows["arm"].tolist()
    assert rows["user_id"].duplicated().any()  # the fifth week's users are the first's
    share = len(rows) / result["summary"]["decisions"]
    assert share == pytest.approx(0.8 * 0.9, abs=4 * np.sqrt(0.72 * 0.28 / USERS))
    treated = (rows["variant"] == "champion").mean()
    assert treated == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(rows["user_id"].nunique()))


def test_read_at_maturity_beside_forecast_and_truth(rehearsed):
    folder, result, log, _ = rehearsed
    told = result["summary"]["experiment"]
    assert (told["week"], told["read_week"], told["variants"]) == (1, WEEKS, ["send_none", "champion"])
    first = enrolled(log)
    first = first[
        first["decided_at"] < first["decided_at"].min() + pd.Timedelta(days=1)
    ]  # only the first Monday's matured
    assert told["users"] == len(first)
    truth = pd.concat(map(pd.read_parquet, sorted((folder / "data" / "truth").glob("*.parquet"))))
    truth = truth[truth["decided_at"].dt.date == first["decided_at"].dt.date.iloc[0]].set_index(["user_id", "arm"])
    by_metric = {row["metric"]: row for row in told["effects"]}
    for outcome in CAMPAIGN.outcome:
        of = truth[outcome.measure].to_dict()
        gains = [
            of[user, arms["champion"]] - of[user, arms["send_none"]]
            for user, arms in zip(first["user_id"], first["arms"], strict=True)
        ]
        row = by_metric[outcome.name]
        assert row["truth"] == pytest.approx(np.mean(gains), abs=1e-12)
        half = (row["live_upper"] - row["live_lower"]) / 2
        assert abs(row["live"] - row["truth"]) < 2 * half  # 4 standard errors
        assert row["live_covers_truth"] == (row["live_lower"] <= row["truth"] <= row["live_upper"])
        assert row["forecast_lower"] < row["forecast"] < row["forecast_upper"]
    assert (folder / "data" / "reports" / "experiments" / "rehearsed" / "readout.html").exists()


def test_variants_that_show_in_the_features_are_not_broken_data(rehearsed):
    """In the fifth week users come back whose messages tell their variant: marginal propensities do not hold there."""
    assert [week["action"] for week in rehearsed[1]["weeks"]].count("stop") == 0


def test_it_is_printed_and_on_the_page(rehearsed):
    folder, result, _, printed = rehearsed
    told = result["summary"]["experiment"]
    head = f"experiment champion against send_none, weeks 1 to 5, {told['users']} users of"
    assert head in printed
    assert f": {told['decision']}" in printed
    assert head in (folder / "rehearsal.html").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_while_it_runs_it_comes_to_the_same_end(rehearsed, tmp_path):
    for left in ("experiment.json", "weeks/02.npy", "data/reports/experiments/rehearsed/readout.json"):
        process = start(tmp_path)
        while not (tmp_path / "rehearsals" / NAME / left).exists():
            assert process.poll() is None, process.stderr.read()[-3000:]
            time.sleep(0.05)
        process.kill()
        process.communicate()
    result, _ = finished(start(tmp_path))
    ours, theirs = (r["summary"]["experiment"] for r in (result, rehearsed[1]))
    assert ours == theirs
    assert result["weeks"] == rehearsed[1]["weeks"]


@pytest.mark.parametrize(("weeks", "week"), [(5, 2), (5, 0), (4, 1)])
def test_a_week_that_cannot_mature_is_refused(weeks, week):
    script = Script.parse(weeks=weeks, drift="none", users=1000, seed=1, experiment=week)
    expected = "a week from 1 to 1" if weeks == 5 else "at least 5 weeks"
    with pytest.raises(DataError, match=f"experiment == {week} with weeks == {weeks}; expected {expected}"):
        experiment.check(script, CAMPAIGN)


def test_a_killed_week_forgets_only_what_it_began(tmp_path):
    (tmp_path / "data" / "experiments").mkdir(parents=True)
    (tmp_path / "experiment.json").write_text(json.dumps({"week": 3, "read_week": None}))
    experiment.forget_since(tmp_path, 4)
    assert experiment.found(tmp_path) == {"week": 3, "read_week": None}
    experiment.forget_since(tmp_path, 3)
    assert experiment.found(tmp_path) is None
    assert not (tmp_path / "data" / "experiments").exists()


def test_a_refused_plan_is_told():
    told = {"week": 2, "read_week": None, "refused": "900 users needed"}
    assert experiment_lines(told) == ["experiment of week 2: not run: 900 users needed"]
    assert experiment_lines(None) == []
    keys = ("value_policy", "value_send_all", "value_send_none", "value_frozen", "value_oracle")
    week = Week(week=1, alarm=(), action="none", promoted=False, n=1, champion="t:1", **dict.fromkeys(keys, 1.0))
    assert "not run: 900 users needed" in page(Result(Script(1, 1000, 1), (week,), "x", told))
