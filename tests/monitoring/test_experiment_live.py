"""From a decision log and raw logs to the table that is read."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from campaign import DataError, load_campaign
from monitoring.experiment_assign import experiment_variant
from monitoring.experiment_file import Variant, change_state, new_experiment, write_experiment
from monitoring.experiment_live import live_frame, read_experiment_log
from monitoring.experiment_plan import plan_of_campaign
from monitoring.experiment_read import read_experiment

CAMPAIGN = load_campaign(Path(__file__).parents[2] / "campaign.toml")
START = datetime(2026, 3, 2, tzinfo=UTC)
AS_OF = START + timedelta(days=40)
MICROS = "datetime64[us, UTC]"
N = 400


def experiment_in(folder):
    variants = [
        Variant(name="send_all", policy="send_all", share=0.5),
        Variant(name="candidate", policy="threshold", share=0.5, threshold=0.0),
    ]
    plan = plan_of_campaign(CAMPAIGN, "send_all", ["candidate"], exposure="received")
    made = new_experiment(folder, CAMPAIGN, "one", variants, plan, share=0.8, starts_at=START)
    write_experiment(folder, made)
    return made


@pytest.fixture
def platform(tmp_path):
    """Decisions of N users, two each, and sessions: every user plays 30 minutes on day 3 and -20 and, odd ones, 20."""
    experiment = experiment_in(tmp_path / "experiments")
    ids = [f"u{i}" for i in range(N)]
    variant = experiment_variant(experiment, ids)
    subscription_uplift = np.where(np.arange(N) % 4 == 0, 0.1, -0.1)
    arm = np.where(variant == 1, (subscription_uplift > 0).astype(int), 1)
    uplift = [
        json.dumps({"premium_offer": {"subscription": u, "retention": 0.0, "listening": 0.0}})
        for u in subscription_uplift
    ]
    first = pd.DataFrame(
        {
            "decision_id": [f"d{i}" for i in range(N)],
            "user_id": ids,
            "decided_at": pd.to_datetime(START) + pd.to_timedelta(np.arange(N) % 5, unit="D"),
            "layer": np.where(variant >= 0, "experiment", "policy"),
            "arm": arm,
            "uplift": uplift,
            "threshold": 0.5,
            "segments": [json.dumps({"plan": "free" if i % 3 else "trial", "device": "web"}) for i in range(N)],
        }
    )
    again = first.assign(
        decision_id=first["decision_id"] + "b", decided_at=first["decided_at"] + pd.Timedelta(days=1), arm=0
    )
    decisions = pd.concat([first, again, first.iloc[:3]])  # and some delivered twice
    folder = tmp_path / "decisions" / "date=2026-03-02"
    folder.mkdir(parents=True)
    decisions.astype({"decided_at": MICROS}).to_parquet(folder / "part-0.parquet")
    played = [(i, day) for i in range(N) for day in (3, -20, *((20,) if i % 2 else ()))]
    at = [first["decided_at"].iloc[i] + pd.Timedelta(days=day) for i, day in played]
    write_log(tmp_path, "sessions", [ids[i] for i, _ in played], at, {"session_id": range(len(at)), "minutes": 30.0})
    started = {"subscription_event_id": range(N), "event": "start"}
    write_log(tmp_path, "subscriptions", ids, first["decided_at"] + pd.Timedelta(days=1), started)
    return tmp_path, experiment, variant


def write_log(root, table, user_ids, at, columns):
    frame = pd.DataFrame({"user_id": user_ids, "event_timestamp": pd.Series(list(at)), **columns})
    frame["created_timestamp"] = frame["event_timestamp"]
    folder = root / "logs" / table / "date=2026-03-02"
    folder.mkdir(parents=True)
    frame.astype({"event_timestamp": MICROS, "created_timestamp": MICROS}).to_parquet(folder / "part-0.parquet")


def test_live_frame_has_one_row_per_user_with_assignment_outcomes_and_history(platform):
    root, experiment, variant = platform
    log = read_experiment_log(root / "decisions")
    frame = live_frame(log, experiment, CAMPAIGN, root / "logs", AS_OF).set_index("user_id")
    inside = [f"u{i}" for i in range(N) if variant[i] >= 0]
    assert sorted(frame.index) == sorted(inside)
    numbers = np.array([int(user[1:]) for user in frame.index])
    assert frame["variant"].tolist() == [("send_all", "candidate")[variant[i]] for i in numbers]
    assert frame["retention"].tolist() == (numbers % 2).astype(float).tolist()
    assert (frame["listening"] == 0.5).all()
    assert (frame["subscription"] == 1).all()
    # the same outcomes 28 days earlier: day -20 of a user is day 8 of that window
    assert (frame["listening_before"] == 0.5).all()
    assert (frame["retention_before"] == 0).all()
    assert frame["plan"].tolist() == ["free" if i % 3 else "trial" for i in numbers]
    # the policies differ where the threshold policy does not message
    assert frame["differs"].tolist() == (numbers % 4 != 0).tolist()
    assert (frame["received"] == frame["variant"]).all()


def test_live_frame_is_what_the_plan_reads(platform):
    root, experiment, _ = platform
    frame = live_frame(read_experiment_log(root / "decisions"), experiment, CAMPAIGN, root / "logs", AS_OF)
    assert read_experiment(frame, experiment.plan).decision == "hold"
    triggered = read_experiment(frame, experiment.plan.model_copy(update={"trigger": "differs"}))
    assert any("triggered analysis" in note for note in triggered.notes)


def test_wrong_delivery_is_seen(platform):
    root, experiment, variant = platform
    log = read_experiment_log(root / "decisions")
    wrong = log.assign(arm=1)  # everybody got the message
    frame = live_frame(wrong, experiment, CAMPAIGN, root / "logs", AS_OF)
    crossed = frame["received"] != frame["variant"]
    assert crossed.sum() == ((variant == 1) & (np.arange(N) % 4 != 0)).sum()
    assert "delivery check failed" in " ".join(read_experiment(frame, experiment.plan).reasons)


def test_a_stopped_experiment_is_read_in_its_variants(platform):
    root, experiment, _ = platform
    log = read_experiment_log(root / "decisions")
    stopped = change_state(root / "experiments", "one", AS_OF, state="stopped")
    before = live_frame(log, experiment, CAMPAIGN, root / "logs", AS_OF)
    pd.testing.assert_frame_equal(live_frame(log, stopped, CAMPAIGN, root / "logs", AS_OF), before)


def test_reading_before_any_outcome_matured_is_refused(platform):
    root, experiment, _ = platform
    log = read_experiment_log(root / "decisions")
    with pytest.raises(
        DataError, match=r"no outcome has matured by 2026-03-12.*known 30 days after entry\); read it later"
    ):
        live_frame(log, experiment, CAMPAIGN, root / "logs", START + timedelta(days=10))
    with pytest.raises(DataError, match="no user has entered yet"):
        live_frame(log.iloc[:0], experiment, CAMPAIGN, root / "logs", AS_OF)


def test_only_matured_users_count(platform):
    root, experiment, _ = platform
    log = read_experiment_log(root / "decisions")
    frame = live_frame(log, experiment, CAMPAIGN, root / "logs", START + timedelta(days=32))
    assert set(frame["day"]) == {"2026-03-02", "2026-03-03", "2026-03-04"}


def test_no_decisions_is_said(tmp_path):
    with pytest.raises(DataError, match="no decisions; expected date="):
        read_experiment_log(tmp_path)


def test_no_experiment_in_the_log_is_said(platform):
    root = platform[0]
    for file in (root / "decisions").rglob("*.parquet"):
        pd.read_parquet(file).assign(layer="policy").to_parquet(file)
    with pytest.raises(DataError, match="no decision of the experiment layer"):
        read_experiment_log(root / "decisions")
