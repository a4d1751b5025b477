"""What to test beside the champion, and what offline evaluation expects of it; the commands that plan and change."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import pipeline
from campaign import CampaignError, load_campaign
from models.predictions import prediction_columns
from models.registry import pointer_path
from monitoring.experiment.design import candidates, threshold_ladder
from monitoring.experiment.file import Forecast, Variant, read_experiment_file
from monitoring.experiment.forecast import expected_effects, offline_forecasts

CAMPAIGN = load_campaign(Path(__file__).parents[2] / "campaign.toml")
CONTROL = Variant(name="send_none", policy="send_none", share=0.5)
CHAMPION = Variant(name="champion", policy="champion", share=0.5)


@pytest.fixture(scope="module")
def frame():
    """A champion's frame: one feature moves the uplift, which the predictions know; 45% of rows were messaged."""
    rng = np.random.default_rng(3)
    n = 12_000
    x, arm = rng.normal(size=n), (rng.random(n) < 0.45).astype(int)
    gain = 0.02 * x
    base = np.tile([0.10, 0.85, 5.0], (n, 1))
    mu_hat = np.stack([base, base + np.stack([gain, 0 * x, 2 * x], axis=1)], axis=1)
    mean = mu_hat[np.arange(n), arm]
    weights = dict(zip(CAMPAIGN.outcome_names, CAMPAIGN.weights, strict=True))
    return pd.DataFrame(
        {
            "user_id": [f"u{i}" for i in range(n)],
            "decided_at": pd.Timestamp("2026-05-01T12:00:00Z"),
            "split": np.resize(["train", "select", "evaluate"], n),
            "plan": rng.choice(["free", "trial"], n),
            "arm": arm,
            "propensity": np.where(arm == 1, 0.45, 0.55),
            "y_subscription": (rng.random(n) < mean[:, 0]).astype(float),
            "y_retention": (rng.random(n) < mean[:, 1]).astype(float),
            "y_listening": mean[:, 2] + rng.normal(size=n),
        }
    ).join(prediction_columns(mu_hat, CAMPAIGN.arm_names, weights, CAMPAIGN.costs, 0.1))


def test_the_candidate_is_the_champion_unless_others_are_named(frame):
    assert [v.name for v in candidates(CAMPAIGN, frame, CONTROL)] == ["send_none", "champion"]
    named = candidates(CAMPAIGN, frame, CONTROL, thresholds=[-0.5, 0.25])
    assert [(v.name, v.threshold, v.share) for v in named[1:]] == [
        ("threshold_minus0.500", -0.5, 1 / 3),
        ("threshold_0.250", 0.25, 1 / 3),
    ]
    (reweighted,) = candidates(CAMPAIGN, frame, CHAMPION, weights={"retention": 9.0})[1:]
    assert (reweighted.weights, reweighted.threshold) == ((12.0, 9.0, 0.05), 0.0)
    with pytest.raises(CampaignError, match=r"weights of \['retentoin'\]: outcomes are"):
        candidates(CAMPAIGN, frame, CHAMPION, weights={"retentoin": 9.0})


def test_a_champion_is_tested_against_a_ladder_of_its_own_thresholds(frame):
    control, *rungs = candidates(CAMPAIGN, frame, CHAMPION)
    assert control.policy == "champion"
    assert 1 <= len(rungs) <= 3
    assert sum(v.share for v in (control, *rungs)) == pytest.approx(1)
    # the score is .24 x + .1 x - .05: messages pay from x = .15 on, for 44% of users; near there the curve is flat
    shares = [(frame["score"] > v.threshold).mean() for v in rungs]
    assert shares == sorted(shares)
    assert shares[0] - 0.02 <= 0.44 <= shares[-1] + 0.02


def test_forecasts_are_of_evaluate_users_and_near_the_truth(frame):
    variants = candidates(CAMPAIGN, frame, CONTROL)
    forecasts = offline_forecasts(CAMPAIGN, frame, variants, "tactful:a")
    rows = frame[frame["split"] == "evaluate"]
    sent = rows["policy_arm"] > 0
    truth = [(rows[f"uplift_{CAMPAIGN.arm_names[1]}_{name}"] * sent).mean() for name in CAMPAIGN.outcome_names]
    for f, expected in zip(forecasts, truth, strict=True):
        assert (f.variant, f.model_tag) == ("champion", "tactful:a")
        assert f.ci_lower < expected < f.ci_upper
    others = frame.assign(y_subscription=np.where(frame["split"] == "evaluate", frame["y_subscription"], 0.0))
    assert offline_forecasts(CAMPAIGN, others, variants, "tactful:a") == forecasts
    assert expected_effects(CAMPAIGN, forecasts) == {f.metric: f.value for f in forecasts}


def test_planned_is_for_the_candidate_worth_most():
    forecasts = [
        Forecast(variant=v, metric="subscription", value=x, ci_lower=-1, ci_upper=1)
        for v, x in (("a", 0.1), ("b", 0.2))
    ]
    assert expected_effects(CAMPAIGN, forecasts) == {"subscription": 0.2}


def test_variants_that_decide_alike_are_refused(frame):
    variants = candidates(CAMPAIGN, frame, CHAMPION, thresholds=[0.1])  # the champion's own
    with pytest.raises(CampaignError, match=r"champion and threshold_0.100 decide alike about all 4000 evaluate users"):
        offline_forecasts(CAMPAIGN, frame, variants, "tactful:a")


def test_ladder_brackets_the_best_threshold():
    score = np.random.default_rng(1).permutation(np.arange(1000)) / 1000
    shares = np.linspace(0.05, 0.95, 19)
    curve = pd.DataFrame({"share": shares, "gain": 1 - (shares - 0.6) ** 2 * 2})
    ladder = threshold_ladder(score, curve.sample(frac=1, random_state=1))
    assert ladder["share"].tolist() == pytest.approx([0.4, 0.6, 0.8])
    assert [(score > t).mean() for t in ladder["threshold"]] == pytest.approx([0.4, 0.6, 0.8], abs=0.002)
    assert (ladder["gain"] >= 0.9).all()


def test_ladder_of_a_peak_at_the_end_is_short():
    curve = pd.DataFrame({"share": [0.25, 0.5, 1.0], "gain": [0.1, 0.2, 1.0]})
    assert threshold_ladder(np.arange(8.0), curve)["share"].tolist() == [1.0]


def test_ladder_without_gain_is_refused():
    with pytest.raises(CampaignError, match="no threshold beats send-none"):
        threshold_ladder(np.arange(3.0), pd.DataFrame({"share": [0.5, 1.0], "gain": [-1.0, 0.0]}))


def run(*arguments, code=0):
    done = CliRunner().invoke(pipeline.app, ["experiment", *arguments], catch_exceptions=True)
    assert done.exit_code == code, done.output
    return done


@pytest.fixture
def platform(frame, tmp_path, monkeypatch):
    """A data folder with the champion's pointer and frame, and logs in which every user played once."""
    monkeypatch.setenv("TACTFUL_DATA", str(tmp_path))
    monkeypatch.setenv("TACTFUL_NOW", "2026-06-20T12:00:00+00:00")
    pointer_path().parent.mkdir(parents=True)
    pointer = {"schema": 1, "champion": "tactful:a", "challenger": None, "previous": [], "history": []}
    pointer_path().write_text(json.dumps(pointer))
    report = tmp_path / "reports" / "tactful-a"
    report.mkdir(parents=True)
    frame.to_parquet(report / "frame.parquet")
    rng = np.random.default_rng(5)
    at = frame["decided_at"].repeat(6).reset_index(drop=True) + pd.to_timedelta(
        rng.uniform(-20, 27, 6 * len(frame)), "D"
    )
    users = frame["user_id"].repeat(6).reset_index(drop=True)
    keep = rng.random(len(users)) < 0.95
    events = pd.DataFrame({"user_id": users, "event_timestamp": at, "created_timestamp": at})[keep].reset_index(
        drop=True
    )
    tables = {
        "sessions": events.assign(session_id=events.index.astype(str), minutes=30.0),
        "subscriptions": events.iloc[::9].assign(subscription_event_id=events.index[::9].astype(str), event="start"),
    }
    for name, table in tables.items():
        folder = tmp_path / "logs" / name / "date=2026-06-19"
        folder.mkdir(parents=True)
        times = dict.fromkeys(("event_timestamp", "created_timestamp"), "datetime64[us, UTC]")
        table.astype(times).to_parquet(folder / "part-0.parquet")
    return tmp_path


def test_plan_writes_the_file_and_change_moves_its_state(platform):
    told = run("plan", "one", "--effect", "subscription=0.08", "--share", "0.9", "--looks", "3", "--ramp", "0.25")
    assert "a candidate this good ships with probability 0.8" in told.output
    made = read_experiment_file(platform / "experiments" / "one.json")
    assert [v.name for v in made.variants] == ["send_none", "champion"]
    assert {f.metric for f in made.forecast} == set(CAMPAIGN.outcome_names)
    assert "25% of its 90.0% of users enrolled" in run("change", "one").output
    run("change", "one", "--ramp", "1.0")
    run("change", "one", "--state", "stopped")
    state = json.loads(run("change", "one", "--state", "running", "--json").output)
    assert (state["state"], state["ramp"], len(state["history"])) == ("running", 1.0, 4)
    # planned again it is the same design, running on; another design under the same name is refused
    down = run("change", "one", "--ramp", "0.5", code=1)
    assert "a ramp only goes up" in str(down.exception)
    other = run("plan", "one", "--effect", "subscription=0.08", "--share", "0.9", code=1)
    assert "cannot change mid-flight" in str(other.exception)


def test_plan_tells_what_can_be_seen_in_each_segment(platform):
    asked = ["--baseline", "rule", "--rule", "plan=free", "--effect", "subscription=0.08", "--share", "0.9"]
    planned = json.loads(run("plan", "rules", *asked, "--json").output)
    table = pd.DataFrame(planned["table"])
    segments = table[(table["metric"] == "subscription") & (table["segment"] != "")]
    assert set(segments["segment"]) == {"plan=free", "plan=trial"}
    assert (segments["mde"] > table["mde"][table["metric"] == "subscription"].iloc[0]).all()
    assert planned["experiment"]["variants"][0]["rule"] == {"plan": ["free"]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--effect", "subs=0.05"], "unknown metric 'subs'"),
        (["--effect", "subscription=0.05", "--share", "1.5"], r"share == 1.5, must be in"),
        (["--baseline", "rule"], "only a rule policy has a rule"),
        (["--baseline", "rule", "--rule", "country=DE"], "rule on 'country', known segments"),
        (["--effect", "subscription=0.001", "--share", "0.5"], "users needed for power 0.8, but there are"),
    ],
)
def test_bad_plans_are_refused(platform, arguments, message):
    with pytest.raises(Exception, match=message):
        raise run("plan", "one", *arguments, code=1).exception
    assert not (platform / "experiments").exists()


def test_triggered_with_a_table_is_refused_not_ignored(tmp_path):
    done = run("read", "--frame", str(tmp_path / "f.csv"), "--plan", str(tmp_path / "p.toml"), "--triggered", code=2)
    assert "names its column as trigger" in " ".join(done.output.split())
