"""The parts of the training loss, on numbers that can be checked by hand."""

import numpy as np
import pytest
import torch

from models.encode import Encoded
from models.losses import spread_penalty
from models.optimise import TrainingRows, shuffled


def test_spread_penalty_is_the_variance_of_differences_to_control():
    base = torch.randn(2, 50, 1, 3, generator=torch.Generator().manual_seed(0))
    alike = base.expand(2, 50, 3, 3)
    assert float(spread_penalty(alike)) == pytest.approx(0, abs=1e-6)
    shifted = alike.clone()
    shifted[0, :25, 2, 1] += 2.0  # half of the rows of one member, arm and outcome: variance 1
    assert float(spread_penalty(shifted)) == pytest.approx(1.0, rel=1e-5)


def test_weights_have_mean_one_over_the_rows_a_member_learns_from():
    n, members = 90, 3
    rows = TrainingRows(
        inputs=Encoded(np.zeros((n, 2), np.float32), np.zeros((n, 1), np.uint8)),
        arm=np.arange(n) % 2,
        outcome=np.zeros((n, 1), np.float32),
        propensity=np.full(n, 0.5),
        fold=np.arange(n) % members,
    )
    start = {"rules.count": np.array([8])}
    (batch,) = shuffled(rows, n, 2, members, start, np.random.default_rng(0))
    weights = batch[-1].numpy()
    assert (weights == 0).mean(axis=1) == pytest.approx(1 / members)
    assert weights.mean(axis=1) == pytest.approx(1.0)
