"""Interactions for the network: rules taken from boosted trees. Needed to train, never to serve.

Boosted trees that see the arm as one more feature split on it where the effect differs; the conjunction of the other
splits on such a path says for whom. The network gets these conjunctions as inputs and learns their weights itself.
Each member's rules come from trees that never saw its fold, so that out-of-fold predictions stay honest.

Source: Friedman and Popescu (2008), Predictive learning via rule ensembles; here restricted to arm interactions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np

from models.encode import code_counts
from models.spec import Feature

TREES = 60
PARAMS = {
    "num_leaves": 7,
    "learning_rate": 0.2,
    "min_data_in_leaf": 100,
    "lambda_l2": 1.0,
    "cat_smooth": 10,
    "min_data_per_group": 50,
    "max_bin": 255,  # the codes are bins already
    "verbose": -1,
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
}
MIN_SUPPORT = 0.01  # of the training rows; a rule also leaves out as many

Rule = tuple[tuple[int, frozenset[int]], ...]  # (feature, allowed codes), sorted by feature


def find_rules(
    code: np.ndarray,
    arm: np.ndarray,
    outcome: np.ndarray,
    binary: Sequence[bool],
    fold: np.ndarray,
    members: int,
    features: Sequence[Feature],
    per_member: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Rules of every member, from boosted trees trained without its fold.

    Args:
        code: (n, n_features), from `models.encode.codes`.
        arm: (n,) index.
        outcome: (n, n_outcomes), continuous ones standardised.
        binary: which outcomes are 0/1.
        fold: (n,) in 0..members-1.
        members: of the ensemble; a small frame may leave a fold empty.
        features: of the codes.
        per_member: keep this many rules of each member, the ones that move most predictions.
        seed: of the trees.

    Returns: allowed codes (n_codes, n_rules) bool, and which member may use which rule (members, n_rules) bool.
    """
    found = []
    for member in range(members):
        scores = _scores(code, arm, outcome, binary, fold != member, features, seed)
        ranked = sorted(scores, key=lambda rule: (-scores[rule], _key(rule)))
        supported = (rule for rule in ranked if _supported(rule, code[fold != member], features))
        found.append(list(islice(supported, per_member)))
    union = sorted({rule for rules in found for rule in rules}, key=_key)
    position = {rule: i for i, rule in enumerate(union)}
    mask = np.zeros((members, len(union)), dtype=bool)
    for member, rules in enumerate(found):
        mask[member, [position[rule] for rule in rules]] = True
    return _allowed(union, features), mask


def _key(rule: Rule) -> list[tuple[int, list[int]]]:
    return [(feature, sorted(allowed)) for feature, allowed in rule]


def _scores(
    code: np.ndarray,
    arm: np.ndarray,
    outcome: np.ndarray,
    binary: Sequence[bool],
    rows: np.ndarray,
    features: Sequence[Feature],
    seed: int,
) -> dict[Rule, float]:
    """Importance of every rule that the trees of these rows give: sum over leaves of |leaf value| * sqrt(rows)."""
    import lightgbm  # a training dependency only: serving never imports it

    inputs = np.column_stack([code[rows], arm[rows]]).astype(np.float32)
    # between balanced arms and the rows as they are: full balance lets a few controls steer every split
    weight = np.sqrt(1 / (np.bincount(arm) / len(arm)))[arm[rows]]
    strings = [i for i, f in enumerate(features) if f.kind == "string"]
    data = lightgbm.Dataset(
        inputs, weight=weight, categorical_feature=[*strings, len(features)], params=PARAMS, free_raw_data=False
    )
    counts = code_counts(features)
    scores: dict[Rule, float] = defaultdict(float)
    for j, is_binary in enumerate(binary):
        data.set_label(outcome[rows, j].astype(np.float32))
        params = PARAMS | {"objective": "binary" if is_binary else "regression", "seed": seed}
        booster = lightgbm.train(params, data, num_boost_round=TREES)
        for tree in booster.dump_model()["tree_info"]:
            _walk(tree["tree_structure"], {}, False, counts, scores)
    return scores


def _walk(
    node: dict[str, Any], path: dict[int, frozenset[int]], on_arm: bool, counts: np.ndarray, scores: dict[Rule, float]
) -> None:
    """Add every leaf below `node` whose path splits on the arm; `path` holds the codes allowed so far."""
    if "leaf_value" in node:
        if on_arm and len(path) >= 2:
            scores[tuple(sorted(path.items()))] += abs(node["leaf_value"]) * np.sqrt(node["leaf_count"])
        return
    feature = node["split_feature"]
    if feature == len(counts):
        for child in ("left_child", "right_child"):
            _walk(node[child], path, True, counts, scores)
        return
    every = path.get(feature, frozenset(range(counts[feature])))
    if node["decision_type"] == "==":
        left = every & {int(value) for value in str(node["threshold"]).split("||")}
    else:
        left = frozenset(value for value in every if value <= node["threshold"])
    for child, allowed in (("left_child", left), ("right_child", every - left)):
        _walk(node[child], path | {feature: allowed}, on_arm, counts, scores)


def _supported(rule: Rule, code: np.ndarray, features: Sequence[Feature]) -> bool:
    """Whether the rule holds in more than MIN_SUPPORT of the rows, and fails in as many."""
    counts = code_counts(features)
    holds = np.ones(len(code), dtype=bool)
    for feature, allowed in rule:
        table = np.zeros(counts[feature], dtype=bool)
        table[list(allowed)] = True
        holds &= table[code[:, feature]]
    return bool(MIN_SUPPORT <= holds.mean() <= 1 - MIN_SUPPORT)


def _allowed(rules: Sequence[Rule], features: Sequence[Feature]) -> np.ndarray:
    offsets = np.r_[0, np.cumsum(code_counts(features))]
    allowed = np.ones((int(offsets[-1]), len(rules)), dtype=bool)
    for i, rule in enumerate(rules):
        for feature, kept in rule:
            allowed[offsets[feature] : offsets[feature + 1], i] = False
            allowed[[offsets[feature] + value for value in kept], i] = True
    return allowed
