"""Of the certified candidates, the score's own cut, unless another is better by more than one standard error.

The own cut is threshold 0, or the certified candidate nearest to it in volume; nobody, where no score is above 0. The
model that made the score saw far more of each user than twenty noisy estimates do: the highest of those is mostly luck
in small logs, while a score whose cut is truly off is still overruled.

Source: Breiman et al. (1984), Classification and Regression Trees, 3.4.3 (one-standard-error rule).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd


def own_cut(candidates: pd.DataFrame, own_share: Mapping[str, float]) -> int | None:
    """Row of the certified candidate nearest in volume to its score's cut at 0; of the first score that has any."""
    for score, share in own_share.items():
        certified = candidates[(candidates["score"] == score) & (candidates["status"] == "certified")]
        if len(certified):
            distance = (certified["share"] - share).abs()
            return int(certified["threshold"].abs()[distance == distance.min()].idxmin())
    return None


def choose(
    candidates: pd.DataFrame, own: int | None, differences: pd.DataFrame
) -> tuple[pd.DataFrame, dict[str, Any] | None]:
    """Mark the own cut, or the best of those better by more than one standard error; None if its gain is not above 0.

    Args:
        candidates: of `run_sequence`.
        own: row of the own cut, None when that messages nobody or nothing is certified.
        differences: policy (row of a certified candidate, as text), value and se of its difference to the own cut.
    """
    rows = differences["policy"].astype(int)
    difference, se = np.full((2, len(candidates)), np.nan)
    difference[rows], se[rows] = differences["value"], differences["se"]
    if own is not None:
        difference[own] = se[own] = 0.0
    candidates = candidates.assign(difference=difference, difference_se=se, chosen=False)
    better = difference > se
    row = int(np.where(better, difference, -np.inf).argmax()) if better.any() else own
    if row is None or not candidates["gain"].to_numpy()[row] > 0:
        return candidates, None
    candidates["chosen"] = np.arange(len(candidates)) == row
    return candidates, {str(name): value for name, value in candidates.iloc[row].items()}


def reason(candidates: pd.DataFrame, own: int | None, nobody: bool, best: dict[str, Any] | None) -> str:
    """Why this candidate (or nobody), in one sentence."""
    if candidates.empty:
        return "nothing to certify: no threshold messages anybody within the budget; send no messages"
    if own is None:
        return "nothing certified: the smallest candidate already fails a guardrail; send no messages"
    start, certified = candidates.loc[own], int((candidates["status"] == "certified").sum())
    cut = "the score's own cut" if start["threshold"] == 0 else "the certified cut nearest to the score's own (0)"
    if nobody:
        cut = "the score's own cut (0), which messages nobody"
    if best is None:
        return (
            f"neither {cut} nor one that is better by more than one standard error ({certified} certified candidates) "
            "has a weighted gain above 0; send no messages"
        )
    own_cut = cut if nobody else f"{cut}, score {start['score']!r} > {start['threshold']:.6g}"
    sentence = f"score {best['score']!r} > {best['threshold']:.6g} messages {best['share']:.0%} of users"
    if candidates.loc[own, "chosen"]:
        return f"{sentence}: {cut}; none of {certified} certified candidates is better by more than one standard error"
    return (
        f"{sentence} and gains {best['difference']:.4g} (standard error {best['difference_se']:.2g}) more per decision "
        f"than {own_cut}; the most of {certified} certified candidates"
    )
