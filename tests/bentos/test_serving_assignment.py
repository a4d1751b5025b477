import hashlib
import zlib
from datetime import date, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bentos import assignment as assign
from campaign import load_campaign

USERS = [f"u{i}" for i in range(40_000)]
DAY = date(2026, 3, 2)


def test_layers_follow_the_documented_hash(campaign):
    a, number = campaign.assignment, (DAY - date(1970, 1, 1)).days
    for user, layer in zip(USERS[:300], assign.layers(USERS[:300], a, DAY), strict=True):
        window = (number + zlib.crc32(user.encode()) % a.window_days) // a.window_days
        unit = {
            salt: int.from_bytes(hashlib.sha256(f"{salt}:{key}".encode()).digest()[:8], "big") / 2**64
            for salt, key in ((a.holdout_salt, user), (a.exploration_salt, f"{window}:{user}"))
        }
        if unit[a.holdout_salt] < a.holdout_share:
            assert layer == assign.HOLDOUT
        elif unit[a.exploration_salt] < a.exploration_share / (1 - a.holdout_share):
            assert layer == assign.EXPLORATION
        else:
            assert layer == assign.POLICY


def test_layers_shares_are_shares_of_all_users(campaign):
    share = np.bincount(assign.layers(USERS, campaign.assignment, DAY), minlength=4) / len(USERS)
    # 4 standard errors of a share of 0.1 among 40,000
    np.testing.assert_allclose(share, [0.1, 0.1, 0, 0.8], atol=4 * np.sqrt(0.1 * 0.9 / len(USERS)))


def test_exploration_arms_are_uniform_and_independent_of_the_layer(two_messages):
    explored = assign.layers(USERS, two_messages.assignment, DAY) == assign.EXPLORATION
    arms = assign.exploration_arms(USERS, two_messages.assignment, 3, DAY)[explored]
    share = np.bincount(arms, minlength=3) / len(arms)
    np.testing.assert_allclose(share, 1 / 3, atol=4 * np.sqrt(2 / 9 / len(arms)))


def test_propensities_equal_the_frequencies_of_the_real_draw(two_messages):
    """Known truth: over users, the arm taken with a fixed policy arm occurs as often as its propensity says."""
    a, n_arms = two_messages.assignment, 3
    policy_arm = np.full(len(USERS), 2)
    layer = assign.layers(USERS, a, DAY)
    arm = np.where(layer == assign.HOLDOUT, 0, policy_arm)
    arm = np.where(layer == assign.EXPLORATION, assign.exploration_arms(USERS, a, n_arms, DAY), arm)
    expected = assign.propensities(policy_arm, a, n_arms)[0]
    np.testing.assert_allclose(np.bincount(arm, minlength=3) / len(arm), expected, atol=4 * 0.5 / np.sqrt(len(arm)))


def test_holdout_persists_and_exploration_is_drawn_anew_in_each_window(two_messages):
    """A persistent exploration could be read off a user's messages: its arms would be certain given the features."""
    a, n_arms = two_messages.assignment, 3
    first, later = DAY, DAY + timedelta(days=a.window_days)
    before, after = assign.layers(USERS, a, first), assign.layers(USERS, a, later)
    np.testing.assert_array_equal(before == assign.HOLDOUT, after == assign.HOLDOUT)
    outside = before != assign.HOLDOUT
    both = ((before == assign.EXPLORATION) & (after == assign.EXPLORATION))[outside].mean()
    share = a.exploration_share / (1 - a.holdout_share)
    assert both == pytest.approx(share**2, abs=4 * share / np.sqrt(outside.sum()))
    same = assign.exploration_arms(USERS, a, n_arms, first) == assign.exploration_arms(USERS, a, n_arms, later)
    assert same.mean() == pytest.approx(1 / n_arms, abs=4 * 0.5 / np.sqrt(len(USERS)))


def test_layers_change_within_a_window_for_nobody(campaign):
    a = campaign.assignment
    days = [DAY + timedelta(days=k) for k in range(a.window_days + 1)]
    layer = np.array([assign.layers(USERS[:2000], a, day) for day in days])
    changes = (layer[1:] != layer[:-1]).sum(axis=0)
    assert changes.max() == 1, "at most once in any 28 days"
    changed = (layer[1:] != layer[:-1]).any(axis=1)
    assert changed.mean() > 0.8, "users' windows begin on different days"


@given(st.lists(st.integers(0, 2), min_size=1, max_size=20))
def test_propensities_sum_to_one_and_are_never_certain(arms):
    chance = assign.propensities(np.array(arms), load_campaign().assignment, 3)
    np.testing.assert_allclose(chance.sum(axis=1), 1, atol=1e-12)
    assert (chance > 0).all()
    assert (chance < 1).all()
