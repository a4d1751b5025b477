"""Rules from boosted trees: they name the users who react, and come only from rows they may see."""

import numpy as np

from models.encode import code_counts, codes, fit_encoding, fit_features
from models.rules import find_rules

N = 6000
RNG = np.random.default_rng(0)
COLUMNS = {
    "a": RNG.normal(size=N),
    "b": RNG.normal(size=N),
    "noise": RNG.normal(size=N),
    "plan": RNG.choice(np.array(["x", "y", "z"], dtype=object), N),
}
ARM = RNG.integers(0, 2, N)
REACTS = (COLUMNS["a"] > 0) & (COLUMNS["plan"] == "y")
OUTCOME = np.column_stack([ARM * REACTS + 0.3 * RNG.normal(size=N)]).astype(np.float32)
FEATURES = fit_features(COLUMNS)
CODE = codes(COLUMNS, FEATURES, fit_encoding(COLUMNS, FEATURES))
FOLD = np.arange(N) % 3


def holds(allowed):
    offsets = np.r_[0, np.cumsum(code_counts(FEATURES))]
    return np.stack([allowed[offsets[j] + CODE[:, j]] for j in range(len(FEATURES))]).all(axis=0)


def test_find_rules_names_the_users_who_react():
    allowed, mask = find_rules(CODE, ARM, OUTCOME, [False], FOLD, 3, FEATURES, 10, seed=0)
    rules = holds(allowed)
    agreement = [np.corrcoef(rules[:, r], REACTS)[0, 1] for r in range(rules.shape[1])]
    assert max(agreement) > 0.9
    assert mask.shape == (3, allowed.shape[1])
    assert (mask.sum(axis=1) <= 10).all()
    assert mask.any(axis=0).all()
    assert ((rules.mean(axis=0) > 0.005) & (rules.mean(axis=0) < 0.995)).all()


def test_find_rules_of_a_member_ignore_its_own_fold():
    changed = OUTCOME.copy()
    changed[FOLD == 1] = RNG.normal(size=(N // 3, 1)) * 5
    sets = []
    for outcome in (OUTCOME, changed):
        allowed, mask = find_rules(CODE, ARM, outcome, [False], FOLD, 3, FEATURES, 10, seed=0)
        sets.append([{allowed[:, r].tobytes() for r in np.flatnonzero(mask[k])} for k in range(3)])
    assert sets[0][1] == sets[1][1]
    assert sets[0][0] != sets[1][0]


def test_find_rules_finds_none_where_nobody_reacts():
    flat = np.zeros((N, 1), dtype=np.float32)
    allowed, mask = find_rules(CODE, ARM, flat, [False], FOLD, 3, FEATURES, 10, seed=0)
    assert allowed.shape[1] == mask.shape[1] == 0
