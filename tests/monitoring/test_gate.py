import numpy as np
import pytest
from monitored import campaign, make_frame

from campaign import DataError
from models import Outcome, evaluate
from monitoring.gate import judge

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


def test_judge_few_decisions_need_a_person(frame):
    few = frame.head(300)
    arms = {name: arm[:300] for name, arm in policies(frame).items()}
    verdict = judge(few, arms, mu_hat(few), SETUP)
    assert verdict.verdict == "needs_a_person"
    assert "200 needed" in verdict.reasons[0]


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
    ],
)
def test_judge_bad_input(frame, change, message):
    with pytest.raises(DataError, match=message):
        judge(frame, *change(policies(frame), mu_hat(frame)), SETUP)
