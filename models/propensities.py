"""The probability of each arm given what a user's history tells: what every estimator divides by.

The log holds propensities that are marginal over all layers. That is right at a user's first decision. Afterwards our
own messages are part of the features: a user without any is in the holdout far more often than `holdout_share` says,
and given such features the marginal propensity is no longer P(arm). So draws that persist are conditioned on, and only
draws that are fresh at a decision are averaged over:

    layer          drawn                            first decision under it     later ones
    holdout        once per user and salt           marginal                    holdout rows left out, others given
                                                                                "not in the holdout"
    exploration    anew in each window of a user    fresh                       fresh; a second decision in a window
                                                                                is left out
    experiment     once per user and experiment,    marginal                    given the variant (or the champion),
                   in slots drawn once for all                                  whose arm the log tells (`experiment`)

With holdout share h, exploration share e and k arms:

    P(a | variant) = h [a = control] + e / k + (1 - h - e) [a = the variant's arm]
    P(a | not in the holdout) = (P(a) - h [a = control]) / (1 - h)

Experiments count as one draw: all share one draw of slots, so an earlier one, ended or not, tells who is in the next.

What is left is a value over all first decisions and the later ones of users outside the holdout, who are those a policy
is for. A new holdout salt is a new draw: everybody's next decision is a first one again.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd

from campaign import DataError
from models.splits import draw_window

CONTROL = 0


def given_history(decisions: pd.DataFrame, holdout_share: float) -> pd.DataFrame:
    """Decisions that a fresh draw took part in, with propensities given what history tells; in row order.

    Args:
        decisions: every logged decision whose arm was not certain, from the beginning of the log (a first decision
            can only be told where all are there): decision_id, user_id, decided_at, layer, arm, propensity,
            propensities, salts, experiment (where it is null a later decision under an experiment is left out).
        holdout_share: of decisions whose `salts` name none (a platform's own random phase).

    Returns: some of the rows, their index kept; `propensity` and `propensities` replaced.

    Raises: DataError: a logged propensity cannot come from that holdout share.
    """
    draws = _draws(decisions, holdout_share)
    later = _repeats(decisions, draws, ["holdout"])
    spent = (draws["window"] >= 0) & _repeats(decisions, draws, ["exploration", "window"])
    repeated = (draws["experiment"] & _repeats(decisions, draws, ["experiment"])).to_numpy()
    variant_arm = _variant_arm(decisions, repeated)
    kept = ~spent.to_numpy() & ~(later & (decisions["layer"] == "holdout").to_numpy()) & ~(repeated & (variant_arm < 0))
    if not kept.any():  # arrays of no rows do not say how many arms there are
        return decisions[kept]
    rows, known = decisions[kept], np.flatnonzero(repeated[kept])
    marginal = np.array(rows["propensities"].tolist(), dtype=float)
    marginal[known] = _given_variant(variant_arm[kept][known], draws[kept].iloc[known], marginal.shape[-1])
    chance = outside_holdout(marginal, np.where(later, draws["share"], 0.0)[kept])
    own = chance[np.arange(len(rows)), rows["arm"].to_numpy(dtype=np.int64)]
    return rows.assign(propensity=own, propensities=list(chance))


def outside_holdout(propensities: np.ndarray, share: np.ndarray | float) -> np.ndarray:
    """Probability of every arm for a user who is not in the holdout; shape (n, n_arms).

    Args:
        propensities: shape (n, n_arms), marginal over all layers.
        share: of users in the holdout; a number, or shape (n,); 0 leaves a row as it is.

    Raises: DataError: control is less likely than the holdout alone makes it.

    >>> outside_holdout(np.array([[0.55, 0.45]]), 0.1)
    array([[0.5, 0.5]])
    """
    share = np.broadcast_to(share, len(propensities))
    chance: np.ndarray = propensities.copy()
    chance[:, CONTROL] -= share
    chance /= (1 - share)[:, None]
    bad = chance[:, CONTROL] < -1e-9
    if bad.any():
        row = int(bad.argmax())
        raise DataError(
            f"propensities: control has {propensities[row, CONTROL]:g} in {int(bad.sum())} rows (first: row {row}), "
            f"less than the holdout's share of {share[row]:g} alone; log probabilities over all layers together, and "
            "the share they were drawn with in `salts`"
        )
    return np.asarray(np.clip(chance, 0.0, 1.0))


def given_variant(decisions: pd.DataFrame, outside: np.ndarray, holdout: float, exploration: float) -> np.ndarray:
    """Probability of every arm outside the holdout, given the user's variant where the log tells it; (n, n_arms).

    From a user's second window on features tell the variant: only given it are arms as frequent as these say.

    Args:
        decisions: `experiment` as logged; without that column nothing changes.
        outside: shape (n, n_arms), from `outside_holdout`.
        holdout: share of users.
        exploration: share of users.
    """
    arm = _variant_arm(decisions, np.ones(len(decisions), dtype=bool))
    known, chance = np.flatnonzero(arm >= 0), outside.copy()
    chance[known] = exploration / outside.shape[1]
    chance[known, arm[known]] += 1 - holdout - exploration
    chance[known] /= 1 - holdout
    return chance


def _variant_arm(decisions: pd.DataFrame, wanted: np.ndarray) -> np.ndarray:
    """Arm of each wanted user's variant, outside an experiment the champion's; -1 where the log does not say."""
    arm = np.full(len(decisions), -1)
    if "experiment" not in decisions:
        return arm
    for row in np.flatnonzero(wanted & decisions["experiment"].notna().to_numpy()):
        told = json.loads(decisions["experiment"].iloc[row])
        arm[row] = told["arms"][told["variant"]] if "variant" in told else told["champion"]
    return arm


def _given_variant(arm: np.ndarray, draws: pd.DataFrame, n_arms: int) -> np.ndarray:
    """Probability of every arm over holdout and exploration, for users whose variant has this arm; (n, n_arms)."""
    holdout, explored = draws["share"].to_numpy(), draws["explored"].to_numpy()
    chance = np.repeat(explored[:, None] / n_arms, n_arms, axis=1)
    chance[:, CONTROL] += holdout
    chance[np.arange(len(arm)), arm] += 1 - holdout - explored
    return chance


def _draws(decisions: pd.DataFrame, holdout_share: float) -> pd.DataFrame:
    """The draws behind each row, by salt: holdout, exploration (their shares; window -1: none); any experiment."""
    n = len(decisions)
    draws = {name: np.full(n, "", dtype=object) for name in ("holdout", "exploration")}
    experiment = np.zeros(n, dtype=bool)
    share, explored, window = np.full(n, holdout_share), np.zeros(n), np.full(n, -1)
    code, texts = pd.factorize(decisions["salts"].fillna(""))
    users, at = decisions["user_id"].to_numpy(), decisions["decided_at"]
    days = at.to_numpy(dtype="datetime64[D]")
    for k, text in enumerate(texts):
        rows = np.flatnonzero(code == k)
        salts: dict[str, Any] = json.loads(text or "{}")
        if "exploration_salt" in salts and "window_days" not in salts:
            raise DataError(
                f"salts of {len(rows)} decisions (first: {decisions['decision_id'].iloc[rows[0]]}) name "
                "exploration_salt but not window_days: an older version logged them, and nothing tells whether their "
                "exploration was drawn anew; move their partitions out of data/decisions"
            )
        draws["holdout"][rows] = salts.get("holdout_salt", "")
        share[rows] = salts.get("holdout_share", holdout_share)
        if "exploration_salt" in salts:
            draws["exploration"][rows] = salts["exploration_salt"]
            explored[rows] = salts.get("exploration_share", 0.0)
            window[rows] = draw_window(users[rows], days[rows], salts["window_days"])
        for told in salts.get("experiments", {}).values():
            low, high = told["open_slots"]
            experiment[rows] |= (at.iloc[rows] >= pd.Timestamp(told["starts_at"])).to_numpy() & (low < high)
    draws |= {"experiment": experiment, "share": share, "explored": explored, "window": window}
    return pd.DataFrame(draws, index=decisions.index)


def _repeats(decisions: pd.DataFrame, draws: pd.DataFrame, names: list[str]) -> np.ndarray:
    """Whether an earlier decision of the user rests on the same draw; shape (n,), in row order."""
    keys = pd.concat([decisions[["user_id", "decided_at", "decision_id"]], draws[names]], axis=1)
    keys = keys.sort_values(["decided_at", "decision_id"], kind="stable")
    return keys.duplicated(["user_id", *names]).reindex(decisions.index).to_numpy()
