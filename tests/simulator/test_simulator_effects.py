"""What messages do to users: mixed, learnable, and what each drift changes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from simulated_logs import END, clean_log, decisions, outcomes, truth

from campaign import DataError, load_campaign
from simulator.effects import PROFILES, State, check_messages, expected_outcomes

CAMPAIGN = load_campaign()
WEIGHTS = np.array(CAMPAIGN.weights)


@pytest.fixture(scope="module")
def scores(platform: Path) -> np.ndarray:
    """True score of each message, EUR per user and window, shape (n decisions, 2)."""
    mu = truth(platform)
    return (mu[:, 1:] - mu[:, :1]) @ WEIGHTS - CAMPAIGN.costs[1]


@pytest.fixture(scope="module")
def weighted_sd(platform: Path) -> float:
    matured = decisions(platform)["decided_at"] < pd.Timestamp(END, tz="UTC") - pd.Timedelta(days=31)
    return float((outcomes(platform) @ WEIGHTS)[matured].std())


def test_campaign_measures_match_truth_columns():
    assert [o.measure for o in CAMPAIGN.outcome] == ["subscribed", "retained", "listening_hours"]


def test_base_rates(platform: Path):
    decided, control = decisions(platform), truth(platform)[:, 0]
    subscribed, retained, hours = control.mean(axis=0)
    assert 0.06 < subscribed < 0.08
    assert 0.75 < retained < 0.80
    assert 10 < hours < 15
    plans = clean_log(platform, "users").sort_values("event_timestamp")
    plan = pd.merge_asof(
        decided.sort_values("decided_at"), plans, left_on="decided_at", right_on="event_timestamp", by="user_id"
    ).sort_values(["user_id", "decided_at"])["plan"]
    assert control[(plan == "premium").to_numpy(), 0].mean() < 0.015


def test_score_signs_are_mixed(scores: np.ndarray):
    harmed = (scores < 0).mean(axis=0)
    assert ((harmed > 0.35) & (harmed < 0.50)).all(), harmed
    assert np.abs(scores.mean(axis=0)).max() < 0.25


def test_score_varies_enough_to_learn(scores: np.ndarray, weighted_sd: float):
    assert (scores.std(axis=0) > 0.2 * weighted_sd).all()
    gain = np.maximum(scores, 0).mean(axis=0) - np.maximum(scores.mean(axis=0), 0)
    assert gain[0] > 0.08 * weighted_sd, gain / weighted_sd
    both = np.maximum(scores.max(axis=1), 0).mean() - max(0, scores.mean(axis=0).max())
    assert both > gain.max()  # which message matters too


def state(n: int = 400, **changes: float) -> State:
    """Varied free users, intensity about one session a day."""
    rng = np.random.default_rng(5)
    normal = {name: rng.normal(0, 1, n) for name in ("engagement", "active", "skip", "price", "tolerance")}
    share = {name: rng.random(n) for name in ("lapsed", "fresh", "fatigue", "evening")}
    flag = {name: rng.random(n) < 0.4 for name in ("premium", "on_evening", "home", "web")}
    base = State(
        **normal, **share, **flag, trial=np.zeros(n, dtype=bool), susceptible=rng.normal(0, 1, n),
        intensity=rng.lognormal(-0.5, 0.5, n), minutes=np.full(n, 60.0), market=np.zeros(n, dtype=bool),
    )  # fmt: skip
    return replace(base, **{name: np.full(n, value) for name, value in changes.items()})


def effect(s: State, arm: int, *drifts: str) -> np.ndarray:
    return expected_outcomes(s, arm, frozenset(drifts)) - expected_outcomes(s, 0, frozenset(drifts))


@pytest.mark.parametrize("arm", [1, 2, 3])
def test_fatigue_lowers_every_score(arm: int):
    fresh, tired = (effect(state(fatigue=f), arm) @ WEIGHTS for f in (0.0, 0.9))
    assert (tired < fresh).all()


def test_profiles_differ():
    effects = [effect(state(), arm) @ WEIGHTS for arm in (1, 2, 3)]
    correlation = np.corrcoef(effects)
    assert correlation[np.triu_indices(3, 1)].max() < 0.9


def test_price_halves_what_messages_sell():
    s = state(premium=False)
    np.testing.assert_allclose(effect(s, 1, "price")[:, 0], 0.5 * effect(s, 1)[:, 0], rtol=1e-12)
    base, after = (expected_outcomes(s, 0, d) for d in (frozenset[str](), frozenset({"price"})))
    np.testing.assert_allclose(after[:, 0], 0.85 * base[:, 0])
    np.testing.assert_array_equal(after[:, 1:], base[:, 1:])
    np.testing.assert_array_equal(effect(s, 1, "price")[:, 1:], effect(s, 1)[:, 1:])


def test_fatigue_drift_harms_heavy_users_only():
    s = state()
    before, after = effect(s, 1) @ WEIGHTS, effect(s, 1, "fatigue") @ WEIGHTS
    heavy = s.active > 0
    assert (after[heavy] < 0).all()
    np.testing.assert_array_equal(after[~heavy], before[~heavy])
    np.testing.assert_array_equal(expected_outcomes(s, 0), expected_outcomes(s, 0, frozenset({"fatigue"})))


def test_new_market_reacts_the_other_way():
    s = state()
    here, there = (effect(replace(s, market=np.full(400, m)), 1) @ WEIGHTS for m in (False, True))
    assert np.corrcoef(here, there)[0, 1] < -0.5


@pytest.mark.parametrize("drift", ["market", "tracking"])
def test_drift_leaves_behaviour_alone(drift: str):
    np.testing.assert_array_equal(effect(state(), 1, drift), effect(state(), 1))


@pytest.mark.parametrize("messages", [(), ("a", "a"), ("a", "b", "c", "d")])
def test_check_messages_raises(messages: tuple[str, ...]):
    with pytest.raises(DataError, match=rf"the simulator knows the effects of 1 to {len(PROFILES)} different messages"):
        check_messages(messages)
