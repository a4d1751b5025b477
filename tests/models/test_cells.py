import numpy as np
import pytest
from known_truth import World

from models import Outcome, RandomShare, SendAll, SendNone, Threshold
from models.cells import Kinds, cell_sums
from models.decision_log import read_sample
from models.estimators import Columns, moments
from models.intervals import count_cells
from models.policy import resolve

ESTIMATORS = ["ips", "snips", "dr", "sndr"]
OUTCOMES = [Outcome("y", "binary", 12.0), Outcome("hours", "continuous", 0.5)]


def some_policies(log):
    """Two score cuts on two arms, three levels of probability, and policies that treat all alike."""
    x = log["x"].to_numpy()
    levels = np.array([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0], [0.0, 0.4, 0.6]])[(x * 3).astype(int)]
    policies = [Threshold(np.column_stack([x - 0.5, 0.4 - x])), levels, SendNone(), RandomShare(0.4), SendAll(2)]
    return [resolve(str(i), policy, log, 3) for i, policy in enumerate(policies)]


@pytest.mark.parametrize("predictions", ["own", "constant", "strided", "none"])
@pytest.mark.parametrize("part", [False, True])
def test_cell_sums_equal_the_moments_of_scores(predictions, part):
    """Oracle: every score of every row, without cells."""
    log, mean = World(3_000, 0.3, varying=True, n_arms=3).draw()
    rng = np.random.default_rng(0)
    log["hours"] = rng.exponential(size=len(log)) * (rng.random(len(log)) < 0.7)
    mu_hat = {
        "own": np.stack([mean, 2 * mean], axis=2),
        "constant": np.broadcast_to(rng.random((3, 2)), (len(log), 3, 2)),
        "strided": np.stack([mean, 2 * mean], axis=1).transpose(0, 2, 1),
        "none": None,
    }[predictions]
    sample = read_sample(log, OUTCOMES, cluster=None, mu_hat=mu_hat, costs=[0.0, 0.1, 0.2], n_arms=3)
    columns = Columns.needed(ESTIMATORS if mu_hat is not None else ["snips"], 2)
    targets = [t for t in some_policies(log) if t.has_cells]
    kinds, rows = Kinds.of(targets), rng.permutation(len(log))[:2_000] if part else None
    at = slice(None) if rows is None else rows
    found, cells = cell_sums(sample, targets, columns, kinds, rows)
    expected = moments(sample, targets, columns, rows)
    for mine, theirs in zip(vars(found).values(), vars(expected).values(), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-10, atol=1e-9)
    cell = kinds.of_rows(at, sample.arm[at], 3)
    event = log[["y", "hours"]].to_numpy().T[:, at] != 0
    counted = count_cells(cell, len(kinds), 3, sample.propensity[at], event)
    for mine, theirs in zip(vars(cells).values(), vars(counted).values(), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12)


def test_kinds_of_nested_thresholds_are_few():
    log, _ = World(2_000, 0.2).draw()
    cuts = np.linspace(0.05, 0.95, 25)
    targets = [resolve(str(cut), Threshold("x", cut), log, 2) for cut in cuts]
    kinds = Kinds.of([*targets, resolve("none", SendNone(), log, 2)])
    assert 26 <= len(kinds) <= 104
    for j, target in enumerate(targets):
        np.testing.assert_array_equal(kinds.digits[j][kinds.code], target.code)
    assert not kinds.digits[-1].any()


def test_no_event_leaves_exactly_none():
    log, _ = World(2_000, 0.2).draw()
    log["y"] *= log["arm"]
    sample = read_sample(log, OUTCOMES[:1], mu_hat=np.full((len(log), 2, 1), 0.2))
    targets = [resolve("none", SendNone(), log, 2)]
    _, cells = cell_sums(sample, targets, Columns.needed(["dr"], 1), Kinds.of(targets))
    assert cells.events[0, 0, 0] == cells.v_events[0, 0, 0] == cells.v2_events[0, 0, 0] == 0
