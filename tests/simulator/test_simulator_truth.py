"""The truth is the expectation of what the logs say: by arm, by decile of the truth, and state by state."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from simulated_logs import END, decisions, outcomes, truth

from simulator import simulate
from simulator.blocks import BLOCK, NEVER, draw_sessions, draw_subscriptions
from simulator.draws import child
from simulator.effects import OUTCOMES, State, expected_outcomes, rates
from simulator.life import take
from simulator.traits import DAY, SECOND, make_users

MAX_Z = 4.0  # of about 100 comparisons; a normal deviate passes 4 once in 16,000


def surprises(observed: np.ndarray, expected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """z value and standard error of the mean difference, per outcome."""
    difference = observed - expected
    se = difference.std(axis=0) / np.sqrt(len(difference))
    return difference.mean(axis=0) / np.maximum(se, 1e-12), se


def closed(decided: pd.DataFrame) -> np.ndarray:
    """Decisions whose windows, and three days for late rows, lie inside the world."""
    return (decided["decided_at"] < pd.Timestamp(END, tz="UTC") - pd.Timedelta(days=28 + 3)).to_numpy()


def check_truth(root: Path) -> None:
    decided = decisions(root)
    arm = decided["arm"].to_numpy()
    expected = truth(root)[np.arange(len(arm)), arm]
    observed = outcomes(root)
    matured = closed(decided)
    for k in range(3):
        rows = matured & (arm == k)
        z, se = surprises(observed[rows], expected[rows])
        assert np.abs(z).max() < MAX_Z, (k, z)
        assert (se < [0.006, 0.008, 0.45]).all(), se  # sharp: well below the effects told apart
        for o, name in enumerate(OUTCOMES):
            decile = pd.qcut(pd.Series(expected[rows, o]).rank(method="first"), 10, labels=False)
            for tenth in range(10):
                part = np.flatnonzero(rows)[decile == tenth]
                # no normal bound below 5 expected events; the exact zeros are checked apart
                if expected[part, o].sum() >= 5:
                    z, _ = surprises(observed[part], expected[part])
                    assert abs(z[o]) < MAX_Z, (name, k, tenth, z[o])


def test_truth_equals_mean_of_logged_outcomes(platform: Path):
    check_truth(platform)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [21, 22, 23])
def test_truth_equals_mean_of_logged_outcomes_large(tmp_path: Path, seed: int):
    simulate(tmp_path, 60_000, 90, seed, end=END, messages=["offer", "playlist"])
    check_truth(tmp_path)


def test_truth_of_silent_users_is_zero(platform: Path):
    expected = truth(platform)
    silent = (expected == 0).all(axis=(1, 2))
    assert 0.015 < silent.mean() < 0.025
    assert (outcomes(platform)[silent] == 0).all()


def one_state(rng: np.random.Generator, copies: int) -> State:
    """One random state, `copies` times."""
    premium = rng.random() < 0.3
    values: dict[str, float | bool] = {field.name: rng.normal(0, 0.8) for field in fields(State)}
    values |= {"premium": premium, "trial": not premium and rng.random() < 0.2, "on_evening": rng.random() < 0.5}
    values |= {"home": rng.random() < 0.5, "web": rng.random() < 0.2, "market": False}
    values |= {name: rng.random() for name in ("lapsed", "fresh", "fatigue", "evening")}
    values |= {"intensity": rng.uniform(0.05, 1.2), "minutes": rng.uniform(30, 90)}
    return State(**{name: np.full(copies, value) for name, value in values.items()})


@pytest.mark.parametrize("case", range(5))
def test_expected_outcomes_one_state(case: int):
    """Same state, 20,000 lives with habits of different users at different hours of the week."""
    n = 20_000
    rng = np.random.default_rng(case)
    state = one_state(rng, n)
    users = take(make_users(np.arange(500), case, 10**15, 1), rng.integers(0, 500, n))
    begin = 20_000 * DAY + rng.integers(0, 28 * 86_400, n) * SECOND
    for arm in range(4):
        key = child(child(case + 100, arm), np.arange(n))
        behaviour = rates(state, arm)
        sessions = draw_sessions(key, users, behaviour, state.minutes, begin, ~state.premium)
        since = sessions.at - begin[sessions.row]
        assert since.min() >= 0
        assert since.max() < BLOCK
        start = draw_subscriptions(key, behaviour, begin, state.premium, state.trial, np.full(n, arm)).start - begin
        subscribed = start < NEVER - begin
        assert ((start >= 0) & (start < BLOCK // 2))[subscribed].all()
        hours = np.bincount(sessions.row, sessions.minutes * (since < BLOCK // 2), minlength=n) / 60
        retained = np.bincount(sessions.row, since >= BLOCK // 2, minlength=n) > 0
        z, _ = surprises(np.stack([subscribed, retained, hours], axis=1), expected_outcomes(state, arm))
        assert np.abs(z).max() < MAX_Z, (arm, z)


def test_outcomes_of_blocks_do_not_leak(platform: Path):
    """The next decision falls exactly four weeks later, when every outcome window has closed."""
    gaps = decisions(platform).groupby("user_id")["decided_at"].diff().dropna()
    assert (gaps == pd.Timedelta(days=28)).all()
