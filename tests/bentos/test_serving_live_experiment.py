"""Live experiments end to end: train, `experiment plan`, the server's assignment, log, outcomes, `experiment read`.

The platform is simulated: it acts on the server's answers and knows the true effect of every arm on every user.
"""

import json
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest
from serving_world import END, NOW, world_env

from bentos import serve
from campaign import DataError, load_campaign
from feature_repo.contracts import DECISIONS, check_file
from monitoring.experiment.assign import experiment_variant
from monitoring.experiment.file import read_experiment_file
from monitoring.experiment.live import read_live
from simulator.random_phase import random_day
from simulator.world import World

USERS = 4000
BEFORE, AFTER = 84, 33  # days before and after the one on which everybody is decided about; random arms on two of them
pytestmark = pytest.mark.slow  # a minute and a half of CPU: a world, a store, a model and a server of its own
AS_OF = datetime(END.year, END.month, END.day, tzinfo=UTC) + timedelta(days=AFTER - 1)
CAMPAIGN = load_campaign(Path(__file__).parents[2] / "campaign.toml")


# effects so large that 4,000 users can plan: the plan is about arithmetic here, the truth is read below
EFFECTS = ("--effect", "subscription=0.15", "--effect", "retention=0.15", "--share", "0.5")
PLANS = {
    "one": ("--baseline", "send_none", "--threshold", "0", "--ramp", "0.4", *EFFECTS),
    "two": ("--baseline", "send_all", "--threshold", "1", *EFFECTS),
}
VARIANTS = {"one": ("send_none", "threshold_0.000"), "two": ("send_all", "threshold_1.000")}


def ask(url, users):
    """Answers by user; at most 1,000 ids a request."""
    found = {}
    for first in range(0, len(users), 1000):
        response = httpx.post(f"{url}/decide", json={"user_ids": users[first : first + 1000]}, timeout=60)
        found |= {d["user_id"]: d for d in response.json()["decisions"]}
    return found


def ask_when(url, users, reason, user):
    """Answers of everybody once `user` gets `reason`: the server follows the file within a second."""
    deadline = time.monotonic() + 30
    while ask(url, [user])[user]["reason"] != reason:
        assert time.monotonic() < deadline, f"{user} never got {reason}"
        time.sleep(0.2)
    return ask(url, users)


def tactful(folder, *arguments):
    command = [str(Path(sys.executable).parent / "tactful"), *arguments]
    done = subprocess.run(command, env=world_env(folder), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def change(folder, *arguments):
    return tactful(folder, "experiment", "change", *arguments)


STORE = """
import shutil, sys
from datetime import timedelta
from pathlib import Path
from campaign import ROOT, data_dir
from feature_repo.snapshots import build_snapshots
from serving_world import END, apply_and_materialize
repo = Path(sys.argv[1]) / "repo"
(repo / "data").mkdir(parents=True)
shutil.copy(ROOT / "feature_repo" / "feature_store.yaml", repo)
build_snapshots(data_dir() / "logs", data_dir() / "features", END, only=[END - timedelta(days=d) for d in (56, 28, 0)])
apply_and_materialize(repo, "feature_store.yaml")
"""


@pytest.fixture(scope="module")
def platform(tmp_path_factory):
    """(folder, world on the day of the decisions): logs with two days of random arms, store, a trained champion."""
    folder = tmp_path_factory.mktemp("experiment")
    world = World(
        folder / "data", USERS, BEFORE + AFTER, 11, end=END + timedelta(days=AFTER), messages=CAMPAIGN.arm_names[1:],
        phase_step=28,
    )  # fmt: skip
    for _ in range(BEFORE):
        random_day(world, 0, CAMPAIGN.assignment.holdout_share)
    environ = world_env(folder)
    environ["PYTHONPATH"] += f":{Path(__file__).parent}"
    done = subprocess.run(
        [sys.executable, "-c", STORE, str(folder)], env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    tactful(folder, "train")
    tactful(folder, "promote", "--force")
    return folder, world


@pytest.fixture(scope="module")
def lived(platform):
    """What the server answered at each stage, and the frame of decisions after the outcomes have matured."""
    folder, world = platform
    due, experiments = world.due(), folder / "data" / "experiments"
    users, stages = due.user_ids.tolist(), {}
    with serve.serving(folder / "server.log", world_env(folder)) as url:
        stages["before"] = ask(url, users)
        policy = [u for u, d in stages["before"].items() if d["reason"] in ("eligible", "below_threshold")]
        for name, words in PLANS.items():
            tactful(folder, "experiment", "plan", name, *words)
        made = {name: read_experiment_file(experiments / f"{name}.json") for name in PLANS}
        baseline = [u for u, v in zip(policy, experiment_variant(made["one"], policy), strict=True) if v == 0]
        messaged = [u for u, v in zip(policy, experiment_variant(made["two"], policy), strict=True) if v == 0]
        ask_when(url, [], "baseline_arm", messaged[0])  # the server has seen the second file too
        stages["ramp 0.4"] = ask_when(url, users, "baseline_arm", baseline[0])
        everybody = made["one"].model_copy(update={"ramp": 1.0})
        later = [u for u, v in zip(policy, experiment_variant(everybody, policy), strict=True) if v == 0]
        change(folder, "one", "--ramp", "1")
        stages["ramp 1"] = ask_when(url, users, "baseline_arm", next(u for u in later if u not in baseline))
        change(folder, "one", "--state", "stopped")
        stages["stopped"] = ask_when(url, users, stages["before"][baseline[0]]["reason"], baseline[0])
        change(folder, "one", "--state", "running")
        stages["back"] = ask_when(url, users, "baseline_arm", baseline[0])
    arms = [CAMPAIGN.arm_names.index(stages["back"][u]["arm"]) for u in users]
    again = dict(zip(users, arms, strict=True))  # in their next window users get the same arm, newcomers control
    for _ in range(AFTER):
        world.decide([again.get(user, 0) for user in world.due().user_ids])
        world.advance()
    tactful(folder, "compact")
    files = sorted((folder / "data" / "decisions").glob("date=*/service-*.parquet"))
    for file in files:
        check_file(file, DECISIONS)
    log = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
    return folder, stages, log, pd.DataFrame({"arm": arms}, index=users), due


def told(stage):
    answers = {user: (d["arm"], d["reason"]) for user, d in stage.items()}
    return pd.DataFrame.from_dict(answers, orient="index", columns=["arm", "reason"])


def test_ramp_up_stop_and_back_never_reassign(lived):
    _, stages, _, _, _ = lived
    before, partly, fully, stopped, back = (
        told(stages[s]) for s in ("before", "ramp 0.4", "ramp 1", "stopped", "back")
    )
    moved = partly.index[(partly["reason"] == "baseline_arm") & (before["reason"] != "baseline_arm")]
    assert len(moved) > 200
    assert (fully.loc[moved] == partly.loc[moved]).all(axis=None)
    grown = (fully["reason"] == "baseline_arm").sum() - (partly["reason"] == "baseline_arm").sum()
    # send_none has half of experiment one's users: .8 * .5 * .6 * .5 of all more of them at full ramp
    more = 0.12 * len(before)
    assert grown == pytest.approx(more, abs=4 * np.sqrt(more))
    pd.testing.assert_frame_equal(fully, back)
    # experiment two runs on while one is stopped
    assert (stopped["reason"] == "baseline_arm").any()
    freed = (stopped["reason"] != "baseline_arm") & (back["reason"] == "baseline_arm")
    assert freed.sum() == pytest.approx(0.2 * len(before), abs=4 * np.sqrt(0.2 * len(before)))
    pd.testing.assert_frame_equal(stopped[freed], before[freed])
    held = before["reason"].isin(["holdout", "exploration"])
    for stage in (partly, fully, stopped, back):
        pd.testing.assert_frame_equal(stage[held], before[held])


def test_every_enrolled_decision_logs_variant_and_counterfactual(lived):
    _, stages, log, _, _ = lived
    logged = log[log["experiment"].notna() & (log["layer"] != "holdout")]
    parsed = pd.DataFrame([json.loads(text) for text in logged["experiment"]], index=logged.index).dropna()
    enrolled = logged.loc[parsed.index]
    of_user = parsed.assign(user=enrolled["user_id"]).groupby("user")
    assert (of_user["name"].nunique() == 1).all()  # mutual exclusion
    assert (of_user["variant"].nunique() == 1).all()
    assert set(parsed["name"]) == {"one", "two"}
    inside = enrolled["layer"] == "experiment"
    arm = np.array([row["arms"][row["variant"]] for _, row in parsed.iterrows()])
    assert (arm[inside] == enrolled["arm"][inside]).all()
    # what the champion would have done is what it did before the experiment
    champion = {u: CAMPAIGN.arm_names.index(d["arm"]) for u, d in stages["before"].items()}
    one = parsed[inside & (parsed["name"] == "one")]
    assert one["champion"].tolist() == [champion[u] for u in enrolled["user_id"][one.index]]
    assert {row["send_none"] for row in one["arms"]} == {0}
    # an explored user's variant is logged as well: a later propensity can be given the variant
    assert (~inside).sum() > 100
    # everybody else has the champion's arm logged while an experiment runs
    others = logged.drop(index=parsed.index)
    assert set(others["layer"]) == {"exploration", "policy"}
    assert [json.loads(text)["champion"] for text in others["experiment"]] == [
        champion[u] if layer == "policy" else json.loads(text)["champion"]
        for u, layer, text in zip(others["user_id"], others["layer"], others["experiment"], strict=True)
    ]


@pytest.mark.parametrize("name", ["one", "two"])
def test_readout_finds_the_truth_and_the_triggered_one_is_narrower(lived, name):
    folder, _, log, _, due = lived
    variants = VARIANTS[name]
    could = (log["layer"] == "experiment") & ~log["reason"].isin(["unknown_user", "stale_features"])
    entered = log[could].sort_values(["decided_at", "decision_id"]).drop_duplicates("user_id").set_index("user_id")
    parsed = {u: json.loads(text) for u, text in entered["experiment"].items()}
    planned = read_experiment_file(folder / "data" / "experiments" / f"{name}.json")
    # the planned users are read, the first to enter
    mine = dict([(u, p) for u, p in parsed.items() if p["name"] == name][: planned.plan.last_users])
    at = {u: i for i, u in enumerate(due.user_ids.tolist())}
    control, treatment = (np.mean([due.truth[at[u], p["arms"][v]] for u, p in mine.items()], axis=0) for v in variants)
    truth = treatment - control
    plain = read_live(CAMPAIGN, folder / "data", name, AS_OF)
    triggered = read_live(CAMPAIGN, folder / "data", name, AS_OF, triggered=True)
    # the command reads the same; forecasts are of the plan, made before anybody was enrolled
    told = json.loads(tactful(folder, "experiment", "read", name, "--json"))
    assert (told["decision"], told["table"]) == (plain.decision, plain.to_dict()["table"])
    page = json.loads((folder / "data" / "reports" / "experiments" / name / "readout.json").read_text())
    assert [(row["metric"], row["forecast"]) for row in page["forecast"]] == [
        (f.metric, f.value) for f in planned.forecast
    ]
    assert plain.look.planned_users == planned.plan.planned_users <= plain.look.users
    assert plain.checks["passed"].all()
    assert triggered.checks["passed"].all()
    users = {v: sum(p["variant"] == v for p in mine.values()) for v in variants}
    differ = np.mean([len(set(p["arms"].values())) > 1 for p in mine.values()])
    assert any(f"decide differently for {differ:.1%} of users" in note for note in triggered.notes)
    everybody = (t[t["segment"] == ""].set_index("metric") for t in (plain.table, triggered.table))
    ours_all, narrow_all = (t.loc[list(CAMPAIGN.outcome_names)] for t in everybody)
    for k, (ours, narrow) in enumerate(zip(*(t.to_dict("records") for t in (ours_all, narrow_all)), strict=True)):
        assert {variants[0]: ours["n_control"], variants[1]: ours["n_treatment"]} == users
        z = {"success": 1.96, "guardrail": 1.645}[ours["role"]]
        se, se_narrow = ((r["ci_upper"] - r["ci_lower"]) / (2 * z) for r in (ours, narrow))
        assert abs(ours["effect_size"] - truth[k]) < 3.5 * se
        assert abs(narrow["effect_size"] - truth[k]) < 3.5 * se_narrow
        assert se_narrow < se


def test_reading_too_early_is_refused(lived):
    folder, _, _, _, _ = lived
    with pytest.raises(DataError, match="no outcome has matured by"):
        read_live(CAMPAIGN, folder / "data", "one", NOW + timedelta(days=20))


def test_a_broken_experiment_file_leaves_the_champion_serving(lived):
    folder, stages, _, _, _ = lived
    file = folder / "data" / "experiments" / "one.json"
    text = file.read_text()
    file.write_text(text.replace('experiment/one"', 'experiment/other"'))  # another salt
    try:
        with serve.serving(folder / "again.log", world_env(folder)) as url:
            again = told(ask(url, list(stages["before"])[:500]))
        pd.testing.assert_frame_equal(again, told(stages["before"]).loc[again.index])
        assert "edited after the start" in (folder / "again.log").read_text()
    finally:
        file.write_text(text)
