import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bentos import assignment as assign
from campaign import load_campaign

USERS = [f"u{i}" for i in range(40_000)]


def test_layers_follow_the_documented_hash(campaign):
    a = campaign.assignment
    for user, layer in zip(USERS[:300], assign.layers(USERS[:300], a), strict=True):
        unit = {
            salt: int.from_bytes(hashlib.sha256(f"{salt}:{user}".encode()).digest()[:8], "big") / 2**64
            for salt in (a.holdout_salt, a.exploration_salt)
        }
        if unit[a.holdout_salt] < a.holdout_share:
            assert layer == assign.HOLDOUT
        elif unit[a.exploration_salt] < a.exploration_share / (1 - a.holdout_share):
            assert layer == assign.EXPLORATION
        else:
            assert layer == assign.POLICY


def test_layers_shares_are_shares_of_all_users(campaign):
    share = np.bincount(assign.layers(USERS, campaign.assignment), minlength=4) / len(USERS)
    # 4 standard errors of a share of 0.1 among 40,000
    np.testing.assert_allclose(share, [0.1, 0.1, 0, 0.8], atol=4 * np.sqrt(0.1 * 0.9 / len(USERS)))


def test_exploration_arms_are_uniform_and_independent_of_the_layer(two_messages):
    explored = assign.layers(USERS, two_messages.assignment) == assign.EXPLORATION
    arms = assign.exploration_arms(USERS, two_messages.assignment, 3)[explored]
    share = np.bincount(arms, minlength=3) / len(arms)
    np.testing.assert_allclose(share, 1 / 3, atol=4 * np.sqrt(2 / 9 / len(arms)))


def test_propensities_equal_the_frequencies_of_the_real_draw(two_messages):
    """Known truth: over users, the arm taken with a fixed policy arm occurs as often as its propensity says."""
    a, n_arms = two_messages.assignment, 3
    policy_arm = np.full(len(USERS), 2)
    layer = assign.layers(USERS, a)
    arm = np.where(layer == assign.HOLDOUT, 0, policy_arm)
    arm = np.where(layer == assign.EXPLORATION, assign.exploration_arms(USERS, a, n_arms), arm)
    expected = assign.propensities(policy_arm, a, n_arms)[0]
    np.testing.assert_allclose(np.bincount(arm, minlength=3) / len(arm), expected, atol=4 * 0.5 / np.sqrt(len(arm)))


@given(st.lists(st.integers(0, 2), min_size=1, max_size=20))
def test_propensities_sum_to_one_and_are_never_certain(arms):
    chance = assign.propensities(np.array(arms), load_campaign().assignment, 3)
    np.testing.assert_allclose(chance.sum(axis=1), 1, atol=1e-12)
    assert (chance > 0).all()
    assert (chance < 1).all()
