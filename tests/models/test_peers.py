"""A peer of the benchmarks computes what the library it stands for does."""

import numpy as np
import pytest

from benchmarks.peers import sklift_qini


def test_sklift_qini_equals_scikit_uplift():
    # sklift.metrics.qini_auc_score (0.5.1) gives this on these rows; benchmarks/evaluation.py runs it afresh
    rng = np.random.default_rng(3)
    score, message = np.round(rng.random(400), 2), rng.integers(0, 2, 400)
    outcome = (rng.random(400) < 0.2 + 0.3 * score * message).astype(float)
    assert sklift_qini(outcome, score, message) == pytest.approx(0.09128851265161411, abs=1e-12)
