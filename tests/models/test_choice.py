import numpy as np
import pandas as pd
import pytest
from known_truth import guarded_log

from models import Guardrail, Outcome, SendNone, Threshold, choose_policy, evaluate
from models.certification import _constraint, candidate_thresholds
from models.choice import SHARES

OUTCOMES = [Outcome("y", "binary", 10.0), Outcome("kept", "binary", 0.0)]


def test_choose_policy_takes_the_score_own_cut_unless_another_is_clearly_better():
    choice = choose_policy(guarded_log(20_000, 0.0, 3), "x", OUTCOMES, guardrails=[Guardrail("kept", 0.05)])
    assert isinstance(choice.policy, Threshold)
    assert choice.threshold == 0.0
    certified = choice.candidates[choice.candidates["status"] == "certified"]
    assert certified["chosen"].sum() == 1
    assert (certified["difference"] <= certified["difference_se"]).all()
    assert certified["gain"].max() > certified.loc[certified["chosen"], "gain"].item()
    assert "the score's own cut; none of" in choice.reason
    assert choice.candidates["share"].is_monotonic_increasing
    assert set(choice.table["status"]) <= {"pass", "fail", "underpowered"}
    assert choice.score in choice.reason


def test_choose_policy_overrules_a_cut_that_is_off():
    log = guarded_log(60_000, 0.0, 0)
    choice = choose_policy(log.assign(x=log["x"] + 0.4), "x", OUTCOMES)
    chosen = choice.candidates[choice.candidates["chosen"]].iloc[0]
    assert abs(choice.threshold - 0.4) < 0.2
    assert chosen["difference"] > chosen["difference_se"] > 0
    assert chosen["difference"] == choice.candidates["difference"].max()
    assert "more per decision than the score's own cut, score 'score' > 0" in choice.reason
    # the difference is the paired one of evaluate
    own = log[log["split"] == "select"]
    policies = {"chosen": Threshold(own["x"].to_numpy() + 0.4, choice.threshold), "cut": Threshold("x", -0.4)}
    table = evaluate(own, policies, OUTCOMES, baselines=["cut"], estimators=["dr"])
    found = table[(table["policy"] == "chosen") & (table["baseline"] == "cut") & (table["outcome"] == "weighted")]
    np.testing.assert_allclose(found[["value", "se"]].iloc[0].astype(float), chosen.iloc[[7, 8]].astype(float))


def test_choose_policy_takes_the_certified_cut_nearest_to_the_score_own():
    log = guarded_log(20_000, 0.0, 6)
    choice = choose_policy(log, "x", OUTCOMES, max_message_share=0.3)
    assert choice.candidates["share"].max() == pytest.approx(0.3, abs=1e-3)
    assert choice.candidates.loc[choice.candidates["chosen"], "share"].item() == choice.candidates["share"].max()
    assert "the certified cut nearest to the score's own (0)" in choice.reason


def test_choose_policy_reports_the_value_of_users_that_took_no_part():
    log = guarded_log(6_000, 0.0, 1)
    choice = choose_policy(log, "x", OUTCOMES)
    assert (choice.value["n_obs"] == (log["split"] == "evaluate").sum()).all()
    assert set(choice.value["policy"]) == {"chosen", "send_all", "send_none"}
    # outcomes of the evaluate users have no say
    other = log.assign(y=np.where(log["split"] == "evaluate", 1 - log["y"], log["y"]))
    pd.testing.assert_frame_equal(choose_policy(other, "x", OUTCOMES).candidates, choice.candidates)


def test_choose_policy_sends_nothing_when_the_first_candidate_fails():
    log = guarded_log(60_000, 0.7, 2)
    choice = choose_policy(log, "x", OUTCOMES, guardrails=[Guardrail("kept", 0.01)])
    assert isinstance(choice.policy, SendNone)
    assert choice.threshold == np.inf
    assert choice.reason.startswith("nothing certified: the smallest candidate already fails a guardrail")
    assert choice.candidates["status"].tolist() == ["failed"] + ["not tested"] * (len(choice.candidates) - 1)
    assert choice.table["status"].tolist() == ["fail"]


def test_choose_policy_sends_nothing_when_nothing_helps():
    log = guarded_log(20_000, 0.0, 3)
    choice = choose_policy(log, "x", OUTCOMES, costs=[0.0, 10.0])
    assert isinstance(choice.policy, SendNone)
    assert "has a weighted gain above 0; send no messages" in choice.reason


def test_choose_policy_heeds_a_score_that_messages_nobody():
    """Nobody's score is above 0: the own cut is send-none, which only a gain of more than one standard error beats."""
    log, overruled = guarded_log(20_000, 0.0, 3), 0
    for seed in range(12):
        noise = log.assign(y=(np.random.default_rng(seed).random(len(log)) < 0.1).astype(float), x=-1.0)
        choice = choose_policy(noise, "x", OUTCOMES[:1])
        if isinstance(choice.policy, SendNone):
            assert "the score's own cut (0), which messages nobody" in choice.reason
        overruled += not isinstance(choice.policy, SendNone)
    assert overruled <= 5, "by chance in 16% of the draws"
    choice = choose_policy(log.assign(x=log["x"] - 0.6), "x", OUTCOMES)
    assert choice.candidates.loc[choice.candidates["chosen"], "share"].item() == pytest.approx(0.5, abs=0.25)
    assert "more per decision than the score's own cut (0), which messages nobody; the most of" in choice.reason


def test_choose_policy_stops_at_a_segment_that_is_harmed():
    log = guarded_log(60_000, 0.0, 4, segment_harm=0.3)
    guardrails = [Guardrail("kept", 0.2, segment_margin=0.05)]
    choice = choose_policy(log, "x", OUTCOMES, guardrails=guardrails, segments=["segment"])
    failed = choice.table[choice.table["status"] != "pass"]
    assert failed["segment"].tolist() == ["segment=b"]
    assert (choice.candidates.query("status == 'certified'")["share"] < 0.2).all()
    assert choice.candidates.query("status == 'not tested'").shape[0] > 0


def test_choose_policy_calls_small_data_underpowered():
    log = guarded_log(600, 0.0, 5)
    choice = choose_policy(log, "x", OUTCOMES, guardrails=[Guardrail("kept", 0.002)])
    last = choice.table.iloc[-1]
    assert last["status"] == "underpowered"
    assert last["min_detectable_margin"] > 0.002
    assert 0 < last["n_eff"] < 600


def test_few_events_are_underpowered_not_a_failure():
    """Of a segment's 30 messaged users one has the event: the exact bound lies far below the estimate."""
    effect = {"segment": "plan=trial", "status": "ok", "value": -0.01, "se": 0.011, "ci_lower": -0.08, "n_eff": 1.0}
    *_, detectable, status = _constraint(effect, Guardrail("kept", 0.02, 0.06), 0.05, wald=False)
    assert status == "underpowered"
    assert detectable == pytest.approx(0.07 * (1.6449 + 0.8416) / 1.6449, rel=1e-3)
    *_, detectable, status = _constraint(effect | {"value": -0.07}, Guardrail("kept", 0.02, 0.06), 0.05, wald=False)
    assert status == "fail"


def test_choose_policy_certifies_no_mean_on_a_handful_of_events():
    """A Wald bound on two events is no bound: a harm far past the margin would pass about half the time."""
    rng = np.random.default_rng(0)
    log = guarded_log(6_000, 0.0, 1)
    few = rng.random(len(log)) < 0.004
    log["hours"] = np.where(few, rng.lognormal(1, 0.5, len(log)), 0.0)
    outcomes = [*OUTCOMES, Outcome("hours", "continuous", 0.0)]
    choice = choose_policy(log, "x", outcomes, guardrails=[Guardrail("hours", 1.0)], shares=[1.0])
    assert choice.table["lower_bound"].iloc[0] > -1.0
    assert set(choice.table["status"]) == {"underpowered"}
    assert choice.policy == SendNone()
    log["hours"] = 2.0 + rng.normal(size=len(log))
    choice = choose_policy(log, "x", outcomes, guardrails=[Guardrail("hours", 1.0)], shares=[1.0])
    assert set(choice.table["status"]) == {"pass"}


def test_choose_policy_keeps_the_budget():
    choice = choose_policy(guarded_log(20_000, 0.0, 6), "x", OUTCOMES, max_message_share=0.3)
    assert choice.candidates["share"].max() <= 0.3


def test_choose_policy_shares_alpha_between_scores():
    log = guarded_log(20_000, 0.0, 7)
    rng = np.random.default_rng(0)
    scores = {"good": log["x"].to_numpy(), "noise": rng.normal(size=len(log))}
    choice = choose_policy(log, scores, OUTCOMES, guardrails=[Guardrail("kept", 0.05)])
    alone = choose_policy(log, scores["good"], OUTCOMES, guardrails=[Guardrail("kept", 0.05)], alpha=0.025)
    assert set(choice.candidates["score"]) == {"good", "noise"}
    good = choice.table[choice.table["score"] == "good"]
    np.testing.assert_allclose(good["lower_bound"], alone.table["lower_bound"])


@pytest.mark.parametrize("estimator", ["ips", "snips", "sndr"])
def test_choose_policy_takes_every_estimator_with_an_interval(estimator):
    log = guarded_log(3_000, 0.0, 8)
    choice = choose_policy(log, "x", OUTCOMES, guardrails=[Guardrail("kept", 0.2)], estimator=estimator, features=["x"])
    assert choice.table["margin"].eq(0.2).all()
    # a harmless policy passes with 80% where the margin is (1.645 + 0.842) standard errors
    ratio = choice.table["min_detectable_margin"] / (choice.table["estimate"] - choice.table["lower_bound"])
    assert ratio.between(1.2, 1.9).all(), "2.487 standard errors over about 1.645"
    own = log[log["split"] == "select"].reset_index(drop=True)
    first = choice.candidates.iloc[0]
    table = evaluate(own, {"it": Threshold("x", first["threshold"])}, OUTCOMES, estimators=[estimator], features=["x"])
    found = table.query("policy == 'it' and baseline == 'send_none' and outcome == 'weighted'").iloc[0]
    assert found["value"] == pytest.approx(first["gain"], abs=1e-12)
    assert found["se"] == pytest.approx(first["se"], rel=1e-9)


def test_candidates_are_every_twentieth_of_the_users_and_the_own_cut():
    np.testing.assert_allclose(SHARES, np.arange(1, 21) / 20)
    shares = choose_policy(guarded_log(3_000, 0.0, 9), "x", OUTCOMES).candidates["share"].to_numpy()
    assert len(shares) == 21
    assert all(np.abs(shares - share).min() < 1e-3 for share in SHARES)


def test_candidate_thresholds_are_nested_by_volume_and_hold_the_score_own_cut():
    score = np.array([3.0, 2.0, 2.0, -1.0])
    cuts = candidate_thresholds(score, [0.25, 0.5, 1.0], 1.0)
    assert [(score > cut).mean() for cut in cuts] == [0.25, 0.75, 1.0]
    assert 0.0 in cuts or (score > 0).mean() == 0.75
    assert candidate_thresholds(score, [0.25, 0.5, 1.0], 0.5) == [2.0]


def test_value_of_a_threshold_on_the_data_that_chose_it_is_too_high():
    """The deliberately wrong variant, beside the honest one; the score is pure noise, so the true gain is 0."""
    naive, honest = [], []
    for r in range(40):
        log = guarded_log(4_000, 0.0, 1000 + r)
        log["x"] = np.random.default_rng(r).normal(size=len(log))
        choice = choose_policy(log, "x", OUTCOMES[:1], features=None)
        if isinstance(choice.policy, SendNone):
            naive.append(0.0)
            honest.append(0.0)
            continue
        naive.append(choice.candidates.loc[choice.candidates["chosen"], "gain"].item())
        found = choice.value.query("policy == 'chosen' and baseline == 'send_none' and outcome == 'weighted'")
        honest.append(found[found["estimator"] == "dr"]["value"].item())
    naive, honest = np.array(naive), np.array(honest)
    assert naive.mean() > 4 * naive.std() / np.sqrt(40)
    assert abs(honest.mean()) < 3 * honest.std() / np.sqrt(40)


def test_guardrail_at_the_boundary_is_rarely_violated():
    """Small version of benchmarks/evaluation.py: full volume costs exactly the margin; certifying it is the error."""
    violations = 0
    for r in range(60):
        log = guarded_log(3_000, 0.05, 2000 + r)
        choice = choose_policy(log, "x", OUTCOMES, guardrails=[Guardrail("kept", 0.025)], shares=[0.25, 0.5, 0.75, 1.0])
        share = 0.0 if isinstance(choice.policy, SendNone) else (log["x"] > choice.threshold).mean()
        violations += 0.05 * share >= 0.025 * 0.98
    # 5% of 60, and three Monte Carlo standard errors
    assert violations <= 60 * (0.05 + 3 * np.sqrt(0.05 * 0.95 / 60))


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({"split": "train"}, {}, "no row has split == 'select'; it has"),
        ({"user_id": 1}, {}, "1 clusters are in two splits"),
        ({}, {"split": "part"}, "the log has no column 'part'; add it with models.splits.split_of"),
        ({}, {"guardrails": [Guardrail("churn", 0.1)]}, "guardrail 'churn' is not an outcome"),
        ({}, {"scores": "z"}, "score column 'z' is not in the log"),
        ({}, {"scores": {}}, "scores is empty"),
        ({}, {"guardrails": [Guardrail("kept", -0.1)]}, "guardrail 'kept': margin == -0.1, must be a number >= 0"),
        ({}, {"guardrails": [Guardrail("kept", 0.1, np.nan)]}, "margin == nan, must be a number >= 0"),
        ({}, {"max_message_share": 1.5}, "max_message_share == 1.5, must be in"),
        ({}, {"shares": [0.0, 0.5]}, "shares == .*, must be in"),
        ({}, {"alpha": 0.6}, "alpha == 0.6, must be in .*one-sided"),
        ({}, {"estimator": "dm"}, "estimator == 'dm', must be one with an interval"),
        ({}, {"segments": "segment"}, r"segments == 'segment', must be a list of names: \['segment'\]"),
        ({}, {"mu_hat": np.zeros((10, 2, 2))}, "mu_hat has 10 rows, the log has 300"),
        ({}, {"features": pd.DataFrame({"x": [1.0]})}, "features has 1 rows, the log has 300"),
        ({"arm": 0.5}, {}, "arm has dtype float64; expected integers"),
        ({}, {"shares": ["a"]}, r"shares is .*; expected shares of users in \(0, 1\]"),
        ({}, {"max_message_share": "0.5"}, r"max_message_share == '0.5', must be in \[0, 1\]"),
        ({}, {"guardrails": ["kept"]}, r"guardrails == \['kept'\], must be a list of models.Guardrail"),
        ({}, {"guardrails": [Guardrail("kept", "0.1")]}, "margin == '0.1', must be a number >= 0"),
        ({}, {"estimator": ["dr"]}, r"estimator == \['dr'\], must be one with an interval"),
        ({}, {"scores": np.zeros(300, complex)}, "score is .*; expected an array of numbers, or names of log columns"),
        ({}, {"scores": None}, r"score has shape \(\); expected \(300, 1\)"),
        ({}, {"features": np.zeros((300, 1))}, "features is a ndarray; expected a DataFrame"),
        ({"split": [["select"]] * 300}, {}, "split holds .*; expected single values"),
    ],
)
def test_choose_policy_says_what_is_wrong(change, arguments, message):
    log = guarded_log(300, 0.0, 0).assign(**change)
    with pytest.raises(ValueError, match=message):
        choose_policy(log, **{"scores": "x", "outcomes": OUTCOMES, **arguments})
