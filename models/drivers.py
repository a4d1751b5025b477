"""Which features drive the scores, and which way: explanations of many users put together, for the report."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from models.explain import Explanation
from models.words import number


def drivers(explained: Explanation, columns: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Which features drive the score, and which way: average contributions by group of users.

    Args:
        explained: of n users.
        columns: their features.

    Returns: one row for each feature and group, the feature that moves most first: `feature`, `size` (mean absolute
        contribution, money per user), `group` ("low", "middle", "high" thirds of a number, a category, or "not known"),
        `value` (the group in words), `users`, `contribution` (the group's mean, money per user).
    """
    size = np.abs(explained.contributions).mean(axis=0)
    rows = []
    for j in np.argsort(-size, kind="stable"):
        name, part = explained.features[j], explained.contributions[:, j]
        for group, value, members in _groups(columns[name]):
            rows.append((name, float(size[j]), group, value, int(members.sum()), float(part[members].mean())))
    return pd.DataFrame(rows, columns=["feature", "size", "group", "value", "users", "contribution"])


def _groups(column: np.ndarray) -> list[tuple[str, str, np.ndarray]]:
    """Name, words and members (n,) of each group of users that is not empty."""
    if column.dtype == object:
        unknown = np.array([value is None for value in column])
        levels = sorted({value for value in column if value is not None})
        groups = [(level, level, np.asarray(column == level)) for level in levels]
    else:
        unknown = np.isnan(column)
        low, high = np.quantile(column[~unknown], [1 / 3, 2 / 3]) if not unknown.all() else (0.0, 0.0)
        groups = [
            ("low", f"up to {number(low)}", column <= low),
            ("middle", f"{number(low)} to {number(high)}", (column > low) & (column <= high)),
            ("high", f"above {number(high)}", column > high),
        ]
    groups.append(("not known", "not known", unknown))
    return [group for group in groups if group[2].any()]
