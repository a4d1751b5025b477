import numpy as np
import pandas as pd
import pytest

from models.policy import (
    LoggingPolicy,
    RandomShare,
    SendAll,
    SendNone,
    Threshold,
    TopShare,
    resolve,
    response_baseline,
    top_share,
)

LOG = pd.DataFrame({"arm": [0, 1, 1, 0], "propensity": [0.1, 0.9, 0.8, 0.2], "s": [1.0, 2.0, 2.0, -1.0]})


@pytest.mark.parametrize(
    ("policy", "n_arms", "expected"),
    [
        (SendNone(), 2, [[1, 0]]),
        (SendAll(), 3, [[0, 0.5, 0.5]]),
        (SendAll(2), 3, [[0, 0, 1]]),
        (RandomShare(0.3), 3, [[0.7, 0.15, 0.15]]),
        (Threshold("s"), 2, [[0, 1], [0, 1], [0, 1], [1, 0]]),
        (Threshold("s", 1.0), 2, [[1, 0], [0, 1], [0, 1], [1, 0]]),
        (TopShare("s", 0.5), 2, [[1, 0], [0, 1], [0, 1], [1, 0]]),
        (TopShare("s", 0.25), 2, [[1, 0], [0.5, 0.5], [0.5, 0.5], [1, 0]]),
        (LoggingPolicy(), 2, [[0.1, 0.9], [0.1, 0.9], [0.2, 0.8], [0.2, 0.8]]),
    ],
)
def test_policy_gives_the_probabilities_it_names(policy, n_arms, expected):
    np.testing.assert_allclose(policy.probabilities(LOG, n_arms), expected, atol=1e-12)


def test_threshold_takes_the_best_of_several_arms():
    scores = np.array([[0.2, 0.3], [0.4, 0.1], [-0.1, -0.2], [0.0, 0.0]])
    assert Threshold(scores).probabilities(LOG, 3).argmax(axis=1).tolist() == [2, 1, 0, 0]


def test_top_share_never_messages_more_and_ignores_row_order():
    rng = np.random.default_rng(0)
    score = rng.integers(0, 5, 1000).astype(float)
    order = rng.permutation(1000)
    chance = top_share(score, 0.3)
    assert chance.sum() == pytest.approx(300)
    np.testing.assert_array_equal(top_share(score[order], 0.3), chance[order])
    assert top_share(rng.random(7), 0.5).sum() == 3  # 3.5 places: rounded down, nobody by half


def test_response_baseline_ranks_by_the_outcome_under_the_message():
    mu_hat = np.zeros((4, 2, 2))
    mu_hat[:, 1, 1] = [0.1, 0.4, 0.3, 0.2]
    mu_hat[:, 0, 1] = [0.0, 0.9, 0.9, 0.0]  # control plays no part
    chance = response_baseline(mu_hat, 1, 0.5).probabilities(LOG, 2)[:, 1]
    assert chance.tolist() == [0, 1, 1, 0]


class OneForAll:
    """A policy of one's own: the same probabilities for every row."""

    def __init__(self, *probabilities: float):
        self.table = np.array([probabilities])

    def probabilities(self, log, n_arms):
        return self.table


def test_logging_policy_needs_all_propensities_with_several_arms():
    with pytest.raises(ValueError, match="with 3 arms the log must hold the probability of every arm"):
        LoggingPolicy().probabilities(LOG, 3)
    log = LOG.assign(propensities=[[0.2, 0.3, 0.5]] * 4)
    assert LoggingPolicy().probabilities(log, 3).shape == (4, 3)


@pytest.mark.parametrize(
    ("policy", "n_arms", "message"),
    [
        (np.array([0, 0.5, 1.2, 0]), 2, r"policy 'p': 1.2 in row 2 is not a probability \(1 values outside"),
        (np.array([0, np.nan, 1, 0]), 2, "policy 'p': nan in row 1 is not a probability"),
        (np.zeros(3), 2, r"policy 'p' has shape \(3,\); expected \(4,\) or \(4, 2\)"),
        (np.zeros(4), 3, r"policy 'p' has shape \(4,\); expected \(4, 3\)"),
        (np.full((4, 2), 0.4), 2, "probabilities of row 0 sum to 0.8"),
        (Threshold("t"), 2, "score column 't' is not in the log"),
        (Threshold(np.array([1, np.nan, 0, 0])), 2, r"score is NaN in 1 rows \(first: row 1\)"),
        (Threshold(np.zeros(3)), 2, r"score has shape \(3, 1\); expected \(4, 1\)"),
        (TopShare("s", 1.5), 2, r"TopShare: share == 1.5, must be in \[0, 1\]"),
        (SendAll(2), 2, r"SendAll\(arm=2\): message arms are 1..1"),
        (OneForAll(0.5, 0.6), 2, "probabilities of row 0 sum to 1.1"),
        (OneForAll(-0.5, 1.5), 2, "policy 'p': -0.5 in row 0 is not a probability"),
        (OneForAll(np.nan, 0.5), 2, "policy 'p': nan in row 0 is not a probability"),
    ],
)
def test_resolve_names_what_is_wrong(policy, n_arms, message):
    with pytest.raises(ValueError, match=message):
        resolve("p", policy, LOG, n_arms)


@pytest.mark.parametrize(
    "policy",
    [np.array([0, 1, 1, 0.0]), np.array([0.2, 0.5, 0.5, 0.2]), np.full(4, 0.3), np.array([True, False, True, True])],
)
def test_resolve_stores_probabilities_losslessly(policy):
    target = resolve("p", policy, LOG, 2)
    assert target.has_cells
    stored = np.broadcast_to(target.probabilities(slice(None)), (4, 2))
    np.testing.assert_array_equal(stored[:, 1], policy.astype(float))
    np.testing.assert_allclose(target.of_arm(LOG["arm"].to_numpy(), slice(None)), stored[range(4), LOG["arm"]])


def test_resolve_keeps_a_fully_stochastic_policy_whole():
    values = np.random.default_rng(0).dirichlet([1, 1, 1], 4)
    target = resolve("p", values, LOG, 3)
    assert not target.has_cells
    np.testing.assert_array_equal(target.probabilities(np.array([2, 0])), values[[2, 0]])
