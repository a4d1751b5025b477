from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from linear_model import make_bundle, make_rows

from bentos import assignment as assign
from bentos.bundle import CODE, OK, REASONS
from bentos.engine import decide
from bentos.experiments import Live, with_experiments
from bentos.raw_log import context_of
from monitoring.experiment.design import new_experiment
from monitoring.experiment.file import Variant
from monitoring.experiment.plan import plan_of_campaign

START = datetime(2026, 3, 2, tzinfo=UTC)
USERS = [f"u{i}" for i in range(30_000)]


@pytest.fixture
def live(campaign, tmp_path):
    """Half of the users outside holdout and exploration: send_all against a higher threshold, half each."""
    variants = (
        Variant(name="send_all", policy="send_all", share=0.5),
        Variant(name="candidate", policy="threshold", share=0.5, threshold=2.0),
    )
    plan = plan_of_campaign(campaign, "send_all", ["candidate"], planned_users=9000, looks=3)
    experiment = new_experiment(tmp_path, campaign, "one", variants, plan, share=0.5, starts_at=START)
    return Live((experiment,), campaign.segments.columns)


def run(campaign, live, x, now=START, status=None):
    bundle, rows = make_bundle(campaign), make_rows(x, status)
    before = decide(USERS, rows, bundle, campaign.assignment, now.date())
    return before, with_experiments(USERS, rows, bundle, campaign.assignment, before, live, now)


def test_experiments_change_nothing_before_their_start(campaign, live):
    before, after = run(campaign, live, np.ones(len(USERS)), START - timedelta(seconds=1))
    assert after is before


def test_experiments_take_users_of_the_policy_layer_only(campaign, live):
    before, after = run(campaign, live, np.full(len(USERS), 0.2))
    inside = after.layer == assign.EXPERIMENT
    assert set(before.layer[inside]) == {assign.POLICY}
    share = inside.sum() / (before.layer == assign.POLICY).sum()
    assert share == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(24_000))
    np.testing.assert_array_equal(after.arm[~inside], before.arm[~inside])
    # score 0.95: above the champion's 0.5, below the candidate's 2; send_all is the baseline
    baseline = after.reason == CODE["baseline_arm"]
    assert (after.arm[baseline] == 1).all()
    assert (after.arm[inside & ~baseline] == 0).all()
    assert {REASONS[r] for r in after.reason[inside]} == {"baseline_arm", "below_threshold"}


def test_experiments_propensities_equal_the_frequencies(campaign, live):
    """Known truth: everybody has one score, so each arm occurs as often as its propensity says."""
    for x in (0.2, 1.0, -1.0):
        _, after = run(campaign, live, np.full(len(USERS), x))
        found = np.bincount(after.arm, minlength=2) / len(USERS)
        np.testing.assert_allclose(found, after.propensities[0], atol=4 * 0.5 / np.sqrt(len(USERS)))
        np.testing.assert_allclose(after.propensities.sum(axis=1), 1, atol=1e-12)
        assert after.propensities.min() > 0


def test_experiments_leave_users_without_features_alone(campaign, live):
    status = np.full(len(USERS), OK)
    status[::3] = CODE["stale_features"]
    _, after = run(campaign, live, np.ones(len(USERS)), status=status)
    assert (after.arm[::3] == 0).all()
    assert (after.reason[::3] == CODE["stale_features"]).all()
    assert (after.propensities[::3] == [1, 0]).all()


def test_experiments_salts_are_logged(campaign, live):
    assert b"campaign/experiment" not in context_of(campaign, None).line
    assert campaign.name.encode() + b"/experiment/one" in context_of(campaign, None, live.salts).line
    assert context_of(campaign, None, live.salts).id != context_of(campaign, None).id
