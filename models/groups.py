"""Groups of users in words: a small tree of the score, and what was measured in each of its leaves.

The tree is grown on the score, which saw no outcome of these users, so the mean effect of a leaf is as honest as that
of any group fixed beforehand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from models.curves import mean_effect
from models.words import number

MIN_SHARE = 0.04  # of users in a leaf
MIN_ROWS = 20


@dataclass(frozen=True)
class Groups:
    """Leaves of the tree, highest score first: rule, n_obs, share, predicted, and measured effect with its interval.

    `table` has columns rule, n_obs, share, predicted, measured, se, ci_lower, ci_upper; `explained` is the share of the
    score's variance that lies between the leaves.
    """

    table: pd.DataFrame
    explained: float


def score_groups(
    features: pd.DataFrame,
    score: np.ndarray,
    effect: np.ndarray,
    *,
    cluster: np.ndarray | None = None,
    depth: int = 3,
    alpha: float = 0.05,
) -> Groups:
    """Split users by the few features that explain most of the score.

    Args:
        features: numeric columns; a missing value counts as the median.
        score: shape (n,), from a model that saw none of these rows.
        effect: shape (n,), effect score of each row (`models.estimators.effect_scores`).
        cluster: shape (n,), user of each row; None: rows are independent.
        depth: of the tree; at most 2 ** depth groups.
        alpha: 1 - confidence level of each group's interval.
    """
    from sklearn.tree import DecisionTreeRegressor

    known = features.astype(float)
    known = known.fillna(known.median()).fillna(0.0)
    least = max(MIN_ROWS, int(MIN_SHARE * len(known)))
    tree = DecisionTreeRegressor(max_depth=depth, min_samples_leaf=least, random_state=0).fit(known.to_numpy(), score)
    leaf, rules = tree.apply(known.to_numpy()), leaf_rules(tree, list(map(str, known.columns)))
    rows = []
    for node, rule in rules.items():
        inside = leaf == node
        estimate = mean_effect(effect, inside, cluster, alpha)
        interval = [estimate.value, estimate.se, estimate.ci_lower, estimate.ci_upper]
        rows.append([rule, int(inside.sum()), inside.mean(), score[inside].mean(), *interval])
    columns = ["rule", "n_obs", "share", "predicted", "measured", "se", "ci_lower", "ci_upper"]
    table = pd.DataFrame(rows, columns=columns).sort_values("predicted", ascending=False, ignore_index=True)
    return Groups(table, float(tree.score(known.to_numpy(), score)))


def leaf_rules(tree: Any, names: list[str]) -> dict[int, str]:
    """The rule of every leaf of a scikit-learn tree, one interval per feature: {node: "skip_rate <= 0.2, ads > 3"}."""
    grown, rules = tree.tree_, {}

    def walk(node: int, limits: dict[str, tuple[float, float]]) -> None:
        if grown.children_left[node] < 0:
            rules[node] = ", ".join(_words(name, *limit) for name, limit in limits.items()) or "everybody"
            return
        name, cut = names[grown.feature[node]], float(grown.threshold[node])
        low, high = limits.get(name, (-np.inf, np.inf))
        walk(grown.children_left[node], limits | {name: (low, min(high, cut))})
        walk(grown.children_right[node], limits | {name: (max(low, cut), high)})

    walk(0, {})
    return rules


def _words(name: str, low: float, high: float) -> str:
    if low == -np.inf:
        return f"{name} <= {number(high)}"
    return f"{name} > {number(low)}" if high == np.inf else f"{number(low)} < {name} <= {number(high)}"
