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

from campaign import Assignment, DataError
from models.splits import draw_window

CONTROL = 0
SHARES = {"holdout": "holdout_share", "exploration": "exploration_share"}  # layer -> what `salts` call its share


def given_history(decisions: pd.DataFrame, assignment: Assignment) -> pd.DataFrame:
    """Decisions that a fresh draw took part in, with propensities given what history tells; in row order.

    Args:
        decisions: every logged decision whose arm was not certain, from the beginning of the log (a first decision
            can only be told where all are there): decision_id, user_id, decided_at, layer, arm, propensity,
            propensities, salts, experiment (where it is null a later decision under an experiment is left out).
        assignment: its shares count where `salts` name none.

    Returns: some of the rows, their index kept; `propensity` and `propensities` replaced.

    Raises: DataError: a logged propensity cannot come from its holdout share; `salts` that cannot be read.
    """
    draws, shares = _draws(decisions), drawn_shares(decisions, assignment)
    later = _repeats(decisions, draws, ["holdout"])
    spent = (draws["window"] >= 0) & _repeats(decisions, draws, ["exploration", "window"])
    repeated = (draws["experiment"] & _repeats(decisions, draws, ["experiment"])).to_numpy()
    told = variant_arm(decisions, repeated)
    kept = ~spent.to_numpy() & ~(later & (decisions["layer"] == "holdout").to_numpy()) & ~(repeated & (told < 0))
    if not kept.any():  # arrays of no rows do not say how many arms there are
        return decisions[kept]
    rows = decisions[kept]
    marginal = given_variant(np.array(rows["propensities"].tolist(), dtype=float), told[kept], shares[kept])
    chance = outside_holdout(marginal, np.where(later, shares["holdout"], 0.0)[kept])
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


def variant_arm(decisions: pd.DataFrame, wanted: np.ndarray) -> np.ndarray:
    """Arm of each wanted user's variant, outside an experiment the champion's; -1 where the log does not say."""
    arm = np.full(len(decisions), -1)
    if "experiment" not in decisions:
        return arm
    for row in np.flatnonzero(wanted & decisions["experiment"].notna().to_numpy()):
        told = json.loads(decisions["experiment"].iloc[row])
        arm[row] = told["arms"][told["variant"]] if "variant" in told else told["champion"]
    return arm


def given_variant(propensities: np.ndarray, arm: np.ndarray, shares: pd.DataFrame) -> np.ndarray:
    """Probability of every arm over holdout and exploration, given the arm of the user's variant; shape (n, n_arms).

    From a user's second window on features tell the variant: only given it are arms as frequent as these say.

    Args:
        propensities: shape (n, n_arms), marginal over all layers; they stand where `arm` is -1.
        arm: shape (n,), from `variant_arm`.
        shares: n rows, from `drawn_shares`.
    """
    known, chance = np.flatnonzero(arm >= 0), propensities.copy()
    holdout, explored = shares["holdout"].to_numpy()[known], shares["exploration"].to_numpy()[known]
    chance[known] = explored[:, None] / propensities.shape[-1]
    chance[known, CONTROL] += holdout
    chance[known, arm[known]] += 1 - holdout - explored
    return chance


def drawn_shares(decisions: pd.DataFrame, assignment: Assignment) -> pd.DataFrame:
    """Shares of all users, `holdout` and `exploration`, that each decision was drawn with; in row order.

    Args:
        decisions: decision_id and `salts`, which name the shares of a log (a platform's own random phase has others
            than campaign.toml, or no holdout at all) and still the old ones after campaign.toml has changed.
        assignment: its shares count where `salts` name none.

    Raises: DataError: `salts` that are no JSON object, or name a share that cannot be.
    """
    code, salts = _salts(decisions)
    found = {
        layer: np.array([told.get(name, getattr(assignment, name)) for told in salts], dtype=float)[code]
        for layer, name in SHARES.items()
    }
    return pd.DataFrame(found, index=decisions.index)


def _salts(decisions: pd.DataFrame) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """What `salts` say: a code for each row, and the content of each code (few: one per change of the service)."""
    code, texts = pd.factorize(decisions["salts"].fillna(""))
    found = [_read(text) for text in texts]
    for k, told in enumerate(found):
        if told is None:
            rows = np.flatnonzero(code == k)
            raise DataError(
                f"salts of {len(rows)} decisions (first: {decisions['decision_id'].iloc[rows[0]]}) are {texts[k]!r}; "
                'expected JSON as {"holdout_share": 0.1}, each share a number from 0 to less than 1'
            )
    return code, [told for told in found if told is not None]


def _read(text: str) -> dict[str, Any] | None:
    """`salts` of a decision; None where they cannot be."""
    try:
        told = json.loads(text or "{}")
    except ValueError:
        return None
    if not isinstance(told, dict):
        return None
    shares = (told.get(name, 0) for name in SHARES.values())
    return told if all(isinstance(share, int | float) and 0 <= share < 1 for share in shares) else None


def _draws(decisions: pd.DataFrame) -> pd.DataFrame:
    """The draws behind each row, by salt: holdout, exploration (window -1: none); any experiment."""
    n = len(decisions)
    draws = {name: np.full(n, "", dtype=object) for name in ("holdout", "exploration")}
    experiment, window = np.zeros(n, dtype=bool), np.full(n, -1)
    users, at = decisions["user_id"].to_numpy(), decisions["decided_at"]
    days = at.to_numpy(dtype="datetime64[D]")
    code, logged = _salts(decisions)
    for k, salts in enumerate(logged):
        rows = np.flatnonzero(code == k)
        if "exploration_salt" in salts and "window_days" not in salts:
            raise DataError(
                f"salts of {len(rows)} decisions (first: {decisions['decision_id'].iloc[rows[0]]}) name "
                "exploration_salt but not window_days: an older version logged them, and nothing tells whether their "
                "exploration was drawn anew; move their partitions out of data/decisions"
            )
        draws["holdout"][rows] = salts.get("holdout_salt", "")
        if "exploration_salt" in salts:
            draws["exploration"][rows] = salts["exploration_salt"]
            window[rows] = draw_window(users[rows], days[rows], salts["window_days"])
        for told in salts.get("experiments", {}).values():
            low, high = told["open_slots"]
            experiment[rows] |= (at.iloc[rows] >= pd.Timestamp(told["starts_at"])).to_numpy() & (low < high)
    return pd.DataFrame(draws | {"experiment": experiment, "window": window}, index=decisions.index)


def _repeats(decisions: pd.DataFrame, draws: pd.DataFrame, names: list[str]) -> np.ndarray:
    """Whether an earlier decision of the user rests on the same draw; shape (n,), in row order."""
    keys = pd.concat([decisions[["user_id", "decided_at", "decision_id"]], draws[names]], axis=1)
    keys = keys.sort_values(["decided_at", "decision_id"], kind="stable")
    return keys.duplicated(["user_id", *names]).reindex(decisions.index).to_numpy()
