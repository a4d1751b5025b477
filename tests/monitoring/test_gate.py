import json

import numpy as np
import pandas as pd
import pytest
from monitored import FEATURES, campaign, make_frame
from scipy.stats import norm

from campaign import DataError, ModelError
from models import Outcome, Threshold, evaluate
from models.baselines import fit_linear_t, fit_response
from models.policy import response_baseline
from models.spec import FitSpec
from models.verdicts import KEYS
from models.worth import RESPONSE, rival_columns
from monitoring.gate import judge
from monitoring.promotion import run_gate

SETUP = campaign()


@pytest.fixture(scope="module")
def frame():
    return make_frame(np.random.default_rng(20), 12_000, service=False)


def mu_hat(frame):
    base = frame[[f"mu_none_{o}" for o in SETUP.outcome_names]].to_numpy()
    return np.stack([base, base + frame[[f"uplift_premium_offer_{o}" for o in SETUP.outcome_names]].to_numpy()], axis=1)


def policies(frame, seed=21, noise=2.0):
    """The challenger acts on the truth, the champion on the truth plus noise."""
    score = frame["score"].to_numpy()
    rough = score + noise * score.std() * np.random.default_rng(seed).normal(size=len(score))
    return {"challenger": (score > 0).astype(np.int64), "champion": (rough > 0).astype(np.int64)}


def test_judge_promotes_a_better_challenger(frame):
    verdict = judge(frame, policies(frame), mu_hat(frame), SETUP)
    assert verdict.verdict == "promote"
    assert verdict.reasons[0].startswith("better than champion: +0.")


def test_judge_keeps_against_a_worse_challenger(frame):
    arms = policies(frame)
    swapped = {"challenger": arms["champion"], "champion": arms["challenger"]}
    assert judge(frame, swapped, mu_hat(frame), SETUP).verdict == "keep"


def test_judge_keeps_an_equal_challenger(frame):
    arm = policies(frame)["champion"]
    verdict = judge(frame, {"challenger": arm, "champion": arm}, mu_hat(frame), SETUP)
    assert verdict.verdict == "keep"
    assert verdict.table[0].se == 0
    assert verdict.as_dict()["table"][0]["power"] is None
    assert verdict.reasons[1] == "the two policies differ on 0.0% of the decisions: too alike to tell apart"


@pytest.mark.parametrize(("share", "alike"), [(0.01, True), (0.04, True), (0.06, False), (0.4, False)])
def test_judge_says_how_likely_a_better_challenger_would_be_found(frame, share, alike):
    """Nearly the champion: a small standard error is no power. Else the power is that of the normal test."""
    champion = policies(frame, noise=1.0)["champion"]
    swapped = np.random.default_rng(25).random(len(frame)) < share
    verdict = judge(
        frame, {"challenger": np.where(swapped, 1 - champion, champion), "champion": champion}, mu_hat(frame), SETUP
    )
    found, differ = verdict.table[0], swapped.mean()
    assert verdict.verdict == "keep"
    assert found.differ == pytest.approx(differ, rel=1e-9)
    if alike:
        assert np.isnan(found.power)
        assert (
            verdict.reasons[1] == f"the two policies differ on {differ:.1%} of the decisions: too alike to tell apart"
        )
        return
    nothing = next(c for c in verdict.table if c.name == "send_none" and c.outcome == "weighted")
    gain = nothing.difference - found.difference  # of the champion
    assert found.power == pytest.approx(norm.sf(1.6449 - 0.1 * gain / found.se), abs=1e-3)
    said = (
        f"a challenger better by 10% that differs on as many decisions ({differ:.0%}) would be found with probability "
    )
    assert verdict.reasons[1] == f"{said}{found.power:.2f}"


def test_judge_a_champion_that_gains_nothing_has_no_tenth(frame):
    champion = np.zeros(len(frame), dtype=np.int64)
    verdict = judge(
        frame, {"challenger": 1 - policies(frame)["challenger"], "champion": champion}, mu_hat(frame), SETUP
    )
    assert (verdict.verdict, len(verdict.reasons)) == ("keep", 1)
    assert verdict.as_dict()["table"][0]["power"] is None


def test_judge_without_a_champion_asks_for_better_than_nothing(frame):
    arm = policies(frame)["challenger"]
    assert judge(frame, {"challenger": arm}, mu_hat(frame), SETUP).verdict == "promote"
    assert judge(frame, {"challenger": 1 - arm}, mu_hat(frame), SETUP).verdict == "keep"


def test_judge_says_that_a_challenger_sends_nothing(frame):
    """Where the champion does measurable harm it is no reason to keep that: a person is asked."""
    arm = policies(frame)["challenger"]
    verdict = judge(frame, {"challenger": np.zeros_like(arm)}, mu_hat(frame), SETUP)
    assert verdict.verdict == "keep"
    assert "sends no messages" in verdict.reasons[0]
    rival = {"challenger": np.zeros_like(arm), "champion": 1 - arm}
    assert judge(frame, rival, mu_hat(frame), SETUP).verdict == "needs_a_person"


def test_judge_paired_difference_equals_evaluate(frame):
    arms, mu = policies(frame), mu_hat(frame)
    found = next(c for c in judge(frame, arms, mu, SETUP).table if c.name == "send_none" and c.outcome == "weighted")
    outcomes = [Outcome(o.name, o.kind, o.weight) for o in SETUP.outcome]
    log = frame.rename(columns={f"y_{o}": o for o in SETUP.outcome_names})
    table = evaluate(log, {"challenger": arms["challenger"]}, outcomes, estimators=("dr",), mu_hat=mu)
    row = table[
        (table["policy"] == "challenger") & (table["baseline"] == "send_none") & (table["outcome"] == "weighted")
    ]
    cost = SETUP.costs[1] * arms["challenger"].mean()  # evaluate was given no costs
    assert found.difference + cost == pytest.approx(row["value"].iloc[0], rel=1e-9)
    assert found.se == pytest.approx(row["se"].iloc[0], rel=1e-3)


@pytest.fixture(scope="module")
def gate_rows():
    """What training leaves for the gate: a challenger that acts on the truth, and the simpler models, truly fitted."""
    frame = make_frame(np.random.default_rng(30), 14_000, service=False)
    spec = FitSpec(FEATURES, SETUP.arm_names, SETUP.outcome, outcome_prefix="y_", costs=SETUP.costs, unit="user_id")
    train, judged = frame.head(4_000), frame.tail(10_000).reset_index(drop=True)
    rival = {RESPONSE: fit_response(train, spec), "linear T-learner": fit_linear_t(train, spec)}
    columns = rival_columns(SETUP, {name: model.predict(judged) for name, model in rival.items()})
    split = np.where(np.arange(len(judged)) < 2_000, "train", "evaluate")
    return pd.concat([judged.assign(split=split), columns], axis=1)


def gate_of(rows, folder):
    (folder / "reports" / "tactful-1").mkdir(parents=True)
    rows.to_parquet(folder / "reports" / "tactful-1" / "gate.parquet")
    return run_gate(SETUP, folder, "tactful:1", None)


def test_run_gate_promotes_where_the_simpler_models_do_worse(gate_rows, tmp_path):
    """The response model sends to as many of the held-out rows as the challenger, as in `evaluate`'s table."""
    verdict = gate_of(gate_rows, tmp_path)
    assert verdict.verdict == "promote"
    found = {c.name: c for c in verdict.table if c.outcome == "weighted"}
    assert set(found) == {"linear T-learner", RESPONSE, "send_none"}
    assert found[RESPONSE].status == "better"
    rows = gate_rows[gate_rows["split"] == "evaluate"].reset_index(drop=True)
    sent = rows["policy_arm"].to_numpy()
    response = np.zeros((len(rows), 2, 1))
    response[:, 1, 0] = rows["response_to_premium_offer"]
    outcomes = [Outcome(o.name, o.kind, o.weight) for o in SETUP.outcome]
    compared = {
        "challenger": Threshold(rows["score"].to_numpy()),
        RESPONSE: response_baseline(response, 0, sent.mean()),
    }
    table = evaluate(
        rows.rename(columns={f"y_{o}": o for o in SETUP.outcome_names}),
        compared,
        outcomes,
        baselines=[RESPONSE],
        estimators=("dr",),
        mu_hat=mu_hat(rows),
        costs=SETUP.costs,
    )
    row = table.query("policy == 'challenger' and baseline == @RESPONSE and outcome == 'weighted'")
    assert found[RESPONSE].n == len(rows) == 8_000
    assert found[RESPONSE].difference == pytest.approx(row["value"].item(), rel=1e-9)


def test_run_gate_leaves_out_weeks_found_broken_since(gate_rows, tmp_path):
    late = gate_rows["decided_at"] + pd.Timedelta(weeks=1) * (np.arange(len(gate_rows)) % 2)
    (tmp_path / "monitoring" / "2026-W07").mkdir(parents=True)
    stop = {"schema": 1, "week": "2026-W07", "monday": "2026-02-09", "action": "stop", "data": {"n": 5_000}}
    (tmp_path / "monitoring" / "2026-W07" / "decision.json").write_text(json.dumps(dict.fromkeys(KEYS) | stop))
    verdict = gate_of(gate_rows.assign(decided_at=late), tmp_path)
    assert next(c.n for c in verdict.table if c.name == "send_none") == 5_000
    assert verdict.reasons[-1].startswith("left out, as its data was found broken: 2026-W07, 5,000 decisions; to take")


def test_run_gate_a_response_model_that_does_better_needs_a_person(gate_rows, tmp_path):
    """The challenger acts on retention's uplift alone; who responds gains more. True values: the score is the truth."""
    narrow = (gate_rows["uplift_premium_offer_retention"] > 0.0125).to_numpy().astype(np.int64)
    share = narrow[gate_rows["split"] == "evaluate"].mean()
    responds = gate_rows["response_to_premium_offer"] > gate_rows["response_to_premium_offer"].quantile(1 - share)
    assert (gate_rows["score"] * responds).mean() > 1.2 * (gate_rows["score"] * narrow).mean() > 0
    verdict = gate_of(gate_rows.assign(policy_arm=narrow), tmp_path)
    assert verdict.verdict == "needs_a_person"
    assert any(reason.startswith("worse than response model: -0.") for reason in verdict.reasons)


def test_run_gate_rows_without_the_response_model(gate_rows, tmp_path):
    with pytest.raises(ModelError, match=r"have no \['response_to_premium_offer'\].*run `tactful train`"):
        gate_of(gate_rows.drop(columns="response_to_premium_offer"), tmp_path)


def test_judge_a_simple_baseline_that_does_better_needs_a_person(frame):
    arms = policies(frame, noise=1.0)
    arms = {"challenger": arms["champion"], "linear_t_learner": arms["challenger"], "champion": 1 - arms["challenger"]}
    verdict = judge(frame, arms, mu_hat(frame), SETUP)
    assert verdict.verdict == "needs_a_person"
    assert any(reason.startswith("worse than linear_t_learner") for reason in verdict.reasons)


def test_judge_a_violated_guardrail_needs_a_person(frame):
    lost = frame["y_retention"].where((frame["arm"] == 0) | (np.random.default_rng(22).random(len(frame)) > 0.2), 0.0)
    better = frame["y_listening"] + 60 * frame["arm"] * policies(frame)["challenger"]
    verdict = judge(frame.assign(y_retention=lost, y_listening=better), policies(frame), mu_hat(frame), SETUP)
    assert verdict.verdict == "needs_a_person"
    assert any(reason.startswith("guardrail retention, everybody: -0.") for reason in verdict.reasons)


def test_judge_a_flat_score_needs_a_person(frame):
    shuffled = frame.copy()
    names = [f"uplift_premium_offer_{o}" for o in SETUP.outcome_names]
    shuffled[names] = frame[names].sample(frac=1, random_state=1).to_numpy()
    verdict = judge(shuffled, policies(frame), mu_hat(frame), SETUP)
    assert verdict.verdict == "needs_a_person"
    assert any("does not rank users" in reason for reason in verdict.reasons)


def too_high(frame, euros):
    """The same decisions and policy, from a model that promises so many EUR more of every user."""
    name = "uplift_premium_offer_subscription"
    return frame.assign(**{name: frame[name] + euros / SETUP.weights[0]})


def test_judge_tells_a_wrong_level_and_promotes_all_the_same(frame):
    campaign = SETUP.model_copy(update={"currency": "kr"})
    verdict = judge(too_high(frame, 0.35), policies(frame), mu_hat(frame), campaign)
    assert verdict.verdict == "promote"
    (arm,) = verdict.calibration
    assert arm.level_off
    assert arm.ranks
    assert arm.predicted - arm.realised == pytest.approx(0.35, abs=4 * arm.se)
    assert "told only: uplift of arm premium_offer is predicted as +0." in verdict.reasons[1]
    assert " kr per user on average, measured as +" in verdict.reasons[1]
    assert verdict.as_dict()["calibration"][0]["level_off"]


def test_judge_rarely_tells_that_a_right_level_is_wrong():
    """Exact predictions, users who come back: at most 1%, plus 3 standard errors."""
    told = []
    for trial in range(40):
        frame = make_frame(np.random.default_rng([24, trial]), 4_000, service=trial % 2 == 0, users=3_000)
        (arm,) = judge(frame, policies(frame), mu_hat(frame), SETUP).calibration
        told.append((arm.realised - arm.predicted) / arm.se)
        assert arm.level_off <= (abs(told[-1]) > 2.5)
    z = np.array(told)
    assert (np.abs(z) > 2.576).mean() <= 0.01 + 3 * np.sqrt(0.01 * 0.99 / len(z))
    assert z.std() == pytest.approx(1, abs=0.35)


def test_judge_few_decisions_need_a_person(frame):
    few = frame.head(300)
    arms = {name: arm[:300] for name, arm in policies(frame).items()}
    verdict = judge(few, arms, mu_hat(few), SETUP)
    assert verdict.verdict == "needs_a_person"
    assert "200 needed" in verdict.reasons[0]


def test_judge_one_user_needs_a_person(frame):
    """Its standard error is 0: without a word about it, whatever is above 0 were certain."""
    verdict = judge(frame.assign(user_id="u1"), policies(frame), mu_hat(frame), SETUP)
    assert verdict.verdict == "needs_a_person"
    assert verdict.reasons == ("few_users: 1 among the decisions, 200 needed",)


def with_nan(mu):
    mu[3:5, 1] = np.nan
    return mu


@pytest.mark.parametrize(("trials", "rows"), [(12, 3_000), pytest.param(200, 10_000, marks=pytest.mark.slow)])
def test_judge_rarely_promotes_a_worse_challenger(trials, rows):
    """Truth is known: the challenger acts on more noise than the champion. At most 5%, plus 3 standard errors."""
    promoted = 0
    for trial in range(trials):
        frame = make_frame(np.random.default_rng([23, trial]), rows, service=False)
        better, worse = (policies(frame, trial, noise)["champion"] for noise in (1.0, 1.6))
        promoted += judge(frame, {"challenger": worse, "champion": better}, mu_hat(frame), SETUP).verdict == "promote"
    assert promoted / trials <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / trials)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, m: ({"champion": p["champion"]}, m), "no policy 'challenger' among"),
        (lambda p, m: (p, m[:, :1]), r"mu_hat has shape \(12000, 1, 3\), expected \(12000, 2, 3\)"),
        (lambda p, m: (p | {"champion": p["champion"][:5]}, m), r"policy 'champion' has shape \(5,\)"),
        (lambda p, m: (p | {"champion": p["champion"] + 4}, m), r"policy 'champion' has arms 4..5, expected 0..1"),
        (lambda p, m: (p | {"champion": p["champion"] * 0.5}, m), "of float64, expected"),
        (lambda p, m: (p, with_nan(m)), "mu_hat is no number in 2 of 12000 rows, first in row 3; run `tactful train`"),
    ],
)
def test_judge_bad_input(frame, change, message):
    with pytest.raises(DataError, match=message):
        judge(frame, *change(policies(frame), mu_hat(frame)), SETUP)
