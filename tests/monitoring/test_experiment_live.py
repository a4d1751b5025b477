"""From a decision log and raw logs to the table that is read."""

import json
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from campaign import CampaignError, DataError, load_campaign
from monitoring.experiment.assign import experiment_variant
from monitoring.experiment.design import new_experiment, plan_live, planning_frame
from monitoring.experiment.file import (
    Forecast,
    Variant,
    change_state,
    read_experiment_file,
    write_experiment,
)
from monitoring.experiment.forecast import read_forecasts
from monitoring.experiment.live import live_frame, model_change_notes, read_experiment_log, read_live
from monitoring.experiment.plan import plan_of_campaign
from monitoring.experiment.read import read_experiment

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
    candidate = (np.arange(N) % 4 == 0).astype(int)
    arm = np.where(variant == 1, candidate, 1)
    names = ("send_all", "candidate")
    logged = [
        json.dumps(
            {"name": "one", "hash": experiment.hash, "variant": names[v], "arms": {"send_all": 1, "candidate": c}}
        )
        for v, c in zip(variant.tolist(), candidate.tolist(), strict=True)
    ]
    first = pd.DataFrame(
        {
            "decision_id": [f"d{i}" for i in range(N)],
            "user_id": ids,
            "decided_at": pd.to_datetime(START) + pd.to_timedelta(np.arange(N) % 5, unit="D"),
            "layer": np.where(variant >= 0, "experiment", "policy"),
            "arm": arm,
            "model_tag": "tactful:a",
            "experiment": np.where(variant >= 0, np.array(logged, dtype=object), None),
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


def test_decisions_of_another_experiment_do_not_count(platform):
    """A later experiment in the same slots: its users never were in this one, whatever their hash says."""
    root, experiment, _ = platform
    log = read_experiment_log(root / "decisions")
    later = log.assign(experiment=log["experiment"].str.replace('"one"', '"two"'))
    mixed = pd.concat([log[log["user_id"] < "u2"], later[log["user_id"] >= "u2"]])
    frame = live_frame(mixed, experiment, CAMPAIGN, root / "logs", AS_OF)
    assert 0 < len(frame) < log["user_id"].nunique()
    assert (frame["user_id"] < "u2").all()


@pytest.mark.parametrize(
    ("field", "message"),
    [("hash", "users were decided about under another design .*changed mid-flight"),
     ("variant", "users are logged in another variant than their id is hashed to .*decision log was changed")],
)  # fmt: skip
def test_a_changed_design_or_log_is_refused(platform, field, message):
    root, experiment, _ = platform
    log = read_experiment_log(root / "decisions")
    first = json.loads(log["experiment"].iloc[0])
    value = {"hash": "0" * 16, "variant": {"send_all": "candidate", "candidate": "send_all"}[first["variant"]]}[field]
    log.loc[0, "experiment"] = json.dumps({**first, field: value})
    with pytest.raises(DataError, match=message):
        live_frame(log, experiment, CAMPAIGN, root / "logs", AS_OF)


def test_a_stopped_experiment_is_read_in_its_variants(platform):
    root, experiment, _ = platform
    log = read_experiment_log(root / "decisions")
    stopped = change_state(root / "experiments", "one", AS_OF, state="stopped")
    before = live_frame(log, experiment, CAMPAIGN, root / "logs", AS_OF)
    pd.testing.assert_frame_equal(live_frame(log, stopped, CAMPAIGN, root / "logs", AS_OF), before)


def test_a_model_that_changed_mid_flight_is_said(platform):
    root, experiment, _ = platform
    log = read_experiment_log(root / "decisions")
    assert model_change_notes(live_frame(log, experiment, CAMPAIGN, root / "logs", AS_OF)) == []
    log.loc[log.index < 200, "model_tag"] = "tactful:b"
    (note,) = model_change_notes(live_frame(log, experiment, CAMPAIGN, root / "logs", AS_OF))
    assert "tactful:a" in note
    assert "tactful:b" in note


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


def test_a_user_without_features_enters_with_the_first_decision_that_could_be_taken(platform):
    """Control in every variant and no segment: a handful of such users must not hold up a guardrail."""
    root, experiment, variant = platform
    (file,) = (root / "decisions").rglob("*.parquet")
    log = pd.read_parquet(file).assign(reason="eligible")
    unknown = log["user_id"].isin(["u5", "u6"]) & ~log["decision_id"].str.endswith("b")
    log.loc[unknown, "reason"] = "unknown_user"
    log.loc[unknown, "segments"] = None
    log.to_parquet(file)
    frame = live_frame(read_experiment_log(root / "decisions"), experiment, CAMPAIGN, root / "logs", AS_OF)
    assert len(frame) == (variant >= 0).sum()
    assert (variant[5:7] >= 0).any()
    days = frame.set_index("user_id")["day"]
    expected = {"u5": "2026-03-03", "u6": "2026-03-04"}  # a day after their first
    assert {user: day for user, day in days.items() if user in expected} == {
        user: day for user, day in expected.items() if variant[int(user[1:])] >= 0
    }
    assert frame["plan"].notna().all()


def test_no_decisions_is_said(tmp_path):
    with pytest.raises(DataError, match="no decisions; expected date="):
        read_experiment_log(tmp_path)


def test_no_experiment_in_the_log_is_said(platform):
    root = platform[0]
    for file in (root / "decisions").rglob("*.parquet"):
        pd.read_parquet(file).assign(layer="policy").to_parquet(file)
    with pytest.raises(DataError, match="no decision of the experiment layer"):
        read_experiment_log(root / "decisions")


def planned_in(root, campaign=CAMPAIGN, **keys):
    """A plan from the outcomes of made users; the effects are large, so that few are needed."""
    variants = [
        Variant(name="send_all", policy="send_all", share=0.5),
        Variant(name="candidate", policy="threshold", share=0.5, threshold=0.0),
    ]
    rng = np.random.default_rng(1)
    n = 20_000
    history = pd.DataFrame({"user_id": np.arange(n), **dict.fromkeys(CAMPAIGN.segments.columns, "all")})
    for name, rate in (("subscription", 0.1), ("retention", 0.9)):
        history[name], history[name + "_before"] = (rng.random((2, n)) < rate).astype(float)
    history["listening"], history["listening_before"] = rng.gamma(2.0, 1.0, (2, n))
    options = {"share": 0.8, "starts_at": START, "looks": 2} | keys
    return plan_live(campaign, root / "experiments", "one", variants, history, {"subscription": 0.05}, **options)


def test_plan_live_writes_the_file_that_assigns_and_is_read(tmp_path):
    experiment, planned = planned_in(tmp_path)
    assert read_experiment_file(tmp_path / "experiments" / "one.json") == experiment
    assert experiment.plan.planned_users == planned.users
    assert experiment.plan.looks == 2
    # 80% of the 80% outside holdout and exploration enter within a window; outcomes are known 30 days later
    assert planned.days == math.ceil(planned.users / (20_000 * 0.8 * 0.8 / 28)) + 30
    assert planned_in(tmp_path)[0] == experiment  # planning again changes nothing


def test_plan_live_refuses_more_users_than_there_are(tmp_path):
    with pytest.raises(CampaignError, match=r"users needed for power 0\.8, but there are"):
        planned_in(tmp_path, share=0.05)
    assert not (tmp_path / "experiments").exists()


def test_read_live_writes_the_readout_and_remembers_readings_and_forecasts(platform):
    root, experiment, _ = platform
    forecast = [Forecast(variant="candidate", metric="retention", value=0.0, ci_lower=-0.2, ci_upper=0.2)]
    plan = experiment.plan.model_copy(update={"planned_users": 300, "looks": 2})
    (root / "experiments" / "one.json").unlink()
    planned = experiment.model_copy(update={"plan": plan, "forecast": tuple(forecast)})
    write_experiment(root / "experiments", planned)
    (decisions,) = (root / "decisions").glob("*/*.parquet")
    log = pd.read_parquet(decisions)
    log["experiment"] = log["experiment"].str.replace(experiment.hash, planned.hash)
    log.to_parquet(decisions)
    reports = root / "reports" / "experiments"
    early = read_live(CAMPAIGN, root, "one", START + timedelta(days=32))
    assert not (reports / "forecasts.json").exists()  # not all planned users are in
    late = read_live(CAMPAIGN, root, "one", AS_OF)
    read_live(CAMPAIGN, root, "one", AS_OF)
    readings = json.loads((reports / "one" / "readings.json").read_text())
    assert [r["users"] for r in readings] == [early.look.users, late.look.users]
    assert late.look.fractions == (readings[0]["fraction"], 1.0)
    assert sorted(p.name for p in (reports / "one").iterdir()) == [
        "readings.json",
        "readout.html",
        "readout.json",
        "readout.md",
    ]
    assert json.loads((reports / "one" / "readout.json").read_text())["forecast"][0]["metric"] == "retention"
    assert len(read_forecasts(reports / "forecasts.json")) == 1


def test_reading_on_past_the_planned_end_reads_the_same_users(platform):
    root, experiment, _ = platform
    plan = experiment.plan.model_copy(update={"planned_users": 150})
    (root / "experiments" / "one.json").unlink()
    planned = experiment.model_copy(update={"plan": plan})
    write_experiment(root / "experiments", planned)
    (decisions,) = (root / "decisions").glob("*/*.parquet")
    log = pd.read_parquet(decisions)
    log["experiment"] = log["experiment"].str.replace(experiment.hash, planned.hash)
    log.to_parquet(decisions)
    full, later = (read_live(CAMPAIGN, root, "one", START + timedelta(days=days)) for days in (33, 40))
    assert (full.look, full.look.users) == (later.look, 150)
    pd.testing.assert_frame_equal(full.table, later.table)
    assert any("323 users: the first 150 are read, as planned" in note for note in later.notes)
    readings = json.loads((root / "reports" / "experiments" / "one" / "readings.json").read_text())
    assert [reading["users"] for reading in readings] == [150]


def test_planning_frame_takes_each_users_last_decision(platform):
    root, _, _ = platform
    decided = pd.to_datetime(START)
    trained = pd.DataFrame({"user_id": ["u1", "u1", "u2"], "plan": "free", "device": "web"})
    trained["decided_at"] = [decided - pd.Timedelta(days=30), decided + pd.Timedelta(days=1), decided]
    frame = planning_frame(trained, CAMPAIGN, root / "logs", AS_OF).set_index("user_id")
    assert len(frame) == 2
    assert frame.loc["u1", "retention"] == 1
    expected = {*CAMPAIGN.segments.columns, *CAMPAIGN.outcome_names, *(f"{o}_before" for o in CAMPAIGN.outcome_names)}
    assert set(frame.columns) == expected
