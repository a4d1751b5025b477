"""Policies: who gets which arm, with which probability.

A policy is an object with `probabilities(log, n_arms)`, or an array: shape (n,) is the probability of the message
where there is one message arm, shape (n, n_arms) the probability of every arm. Arm 0 is control.
A score is an array with one row per log row (one column per message arm, or one for all), or names of log columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import pandas as pd

from campaign import DataError
from models.inputs import (
    check_columns,
    check_index,
    check_number,
    is_number,
    read_array,
    read_numbers,
    read_probabilities,
)

Score = np.ndarray | str | Sequence[str]

MAX_CODES = 16  # a policy with more distinct rows of probabilities is treated as fully stochastic


@runtime_checkable
class Policy(Protocol):
    """Anything that gives each row of a log a probability for each arm."""

    def probabilities(self, log: pd.DataFrame, n_arms: int) -> np.ndarray:
        """Shape (n, n_arms), rows sum to 1; shape (1, n_arms) when every row has the same."""


@dataclass(frozen=True)
class SendNone:
    """Nobody gets a message."""

    def probabilities(self, log: pd.DataFrame, n_arms: int) -> np.ndarray:
        """Control with probability 1; shape (1, n_arms)."""
        return np.eye(n_arms)[:1]


@dataclass(frozen=True)
class SendAll:
    """Everybody gets a message: each message arm with equal probability, or the one given by `arm`."""

    arm: int | None = None

    def probabilities(self, log: pd.DataFrame, n_arms: int) -> np.ndarray:
        """Shape (1, n_arms)."""
        if self.arm is None:
            return np.array([[0.0] + [1 / (n_arms - 1)] * (n_arms - 1)])
        if not (isinstance(self.arm, int | np.integer) and 1 <= self.arm < n_arms):
            raise DataError(f"SendAll(arm={self.arm!r}): message arms are 1..{n_arms - 1}")
        return np.eye(n_arms)[[self.arm]]


@dataclass(frozen=True)
class RandomShare:
    """A random share of users gets a message, each message arm equally often."""

    share: float

    def probabilities(self, log: pd.DataFrame, n_arms: int) -> np.ndarray:
        """Shape (1, n_arms)."""
        _check_share("RandomShare", self.share)
        return np.array([[1 - self.share] + [self.share / (n_arms - 1)] * (n_arms - 1)])


@dataclass(frozen=True, eq=False)
class Threshold:
    """The message arm with the highest score, where that score is > threshold; control elsewhere."""

    score: Score
    threshold: float = 0.0

    def probabilities(self, log: pd.DataFrame, n_arms: int) -> np.ndarray:
        """Shape (n, n_arms), each row 0 but for one 1."""
        cut = self.threshold
        check_number("Threshold: threshold", cut, is_number(cut), "a number; infinity messages nobody")
        scores = score_matrix(self.score, log, n_arms)
        return _to_arms(scores, (scores.max(axis=1) > self.threshold).astype(float), n_arms)


@dataclass(frozen=True, eq=False)
class TopShare:
    """The message arm with the highest score for the top `share` of users; never more users than that.

    Users tied at the cut share the remaining places with equal probability, so row order does not matter.
    With P(outcome | message) as the score this is the response-model baseline (see `response_baseline`).
    """

    score: Score
    share: float

    def probabilities(self, log: pd.DataFrame, n_arms: int) -> np.ndarray:
        """Shape (n, n_arms)."""
        _check_share("TopShare", self.share)
        scores = score_matrix(self.score, log, n_arms)
        return _to_arms(scores, top_share(scores.max(axis=1), self.share), n_arms)


@dataclass(frozen=True)
class LoggingPolicy:
    """The policy that wrote the log: its value is the plain mean of the outcomes.

    With one message arm the logged propensity is enough; with more, `propensities` names a column of lists, one
    probability per arm.
    """

    arm: str = "arm"
    propensity: str = "propensity"
    propensities: str = "propensities"

    def probabilities(self, log: pd.DataFrame, n_arms: int) -> np.ndarray:
        """Shape (n, n_arms)."""
        if self.propensities in log:
            check_columns(log, [self.propensities])
            return read_probabilities(log[self.propensities], self.propensities, n_arms)
        if n_arms > 2:
            raise DataError(
                f"LoggingPolicy: column {self.propensities!r} is missing; with {n_arms} arms the log must hold the "
                "probability of every arm, as a list per row"
            )
        check_columns(log, [self.arm, self.propensity])
        p = read_numbers(log[self.propensity], self.propensity)
        message = np.where(log[self.arm].to_numpy() == 1, p, 1 - p)
        return np.column_stack([1 - message, message])


def response_baseline(mu_hat: np.ndarray, outcome: int, share: float) -> TopShare:
    """Rank by P(outcome | message) and message the top share: what most teams do, shown beside uplift.

    Args:
        mu_hat: shape (n, n_arms, n_outcomes), predicted outcomes of the log's rows.
        outcome: index of the outcome ranked by.
        share: of users messaged.
    """
    return TopShare(mu_hat[:, 1:, outcome], share)


def top_share(score: np.ndarray, share: float) -> np.ndarray:
    """Probability of being among the top `share` by score; shape (n,); ties share the last places equally."""
    n = len(score)
    places = int(np.floor(share * n + 1e-9))
    if places == 0 or places == n:
        return np.full(n, float(places == n))
    cut = -np.partition(-score, places - 1)[places - 1]
    above, tied = score > cut, score == cut
    return np.where(above, 1.0, np.where(tied, (places - above.sum()) / tied.sum(), 0.0))


def score_matrix(score: Score, log: pd.DataFrame, n_arms: int) -> np.ndarray:
    """Scores of the message arms; shape (n, n_arms - 1), or (n, 1) when one score is given for one message arm.

    Raises: DataError: a column is missing, the shape does not fit, or a score is NaN.
    """
    names = [score] if isinstance(score, str) else score
    if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
        missing = [name for name in names if name not in log]
        if missing:
            raise DataError(f"score column {missing[0]!r} is not in the log; it has {list(log.columns)}")
        check_columns(log, names)
        values = np.column_stack([read_numbers(log.loc[:, str(name)], f"score column {name!r}") for name in names])
    else:
        check_index(score, "score", log)
        values = read_array(score, "score", "an array of numbers, or names of log columns")
    values = values[:, None] if values.ndim == 1 else values
    if values.shape != (len(log), n_arms - 1):
        raise DataError(f"score has shape {values.shape}; expected ({len(log)}, {n_arms - 1}): log rows x message arms")
    bad = np.isnan(values).any(axis=1)
    if bad.any():
        raise DataError(f"score is NaN in {int(bad.sum())} rows (first: row {int(bad.argmax())}); give every row one")
    return values


@dataclass(frozen=True)
class Target:
    """A checked policy on the rows of one log, kept small: `table[code[i]]` are the arm probabilities of row i.

    `code` is None where all rows share `table[0]`, and also for a fully stochastic policy, whose table has n rows.
    """

    name: str
    table: np.ndarray
    code: np.ndarray | None

    @property
    def is_constant(self) -> bool:
        """Every row has the same probabilities."""
        return len(self.table) == 1

    @property
    def has_cells(self) -> bool:
        """Few distinct rows of probabilities: exact small-sample intervals exist."""
        return self.is_constant or self.code is not None

    def probabilities(self, rows: slice | np.ndarray) -> np.ndarray:
        """Arm probabilities of some rows; shape (rows, n_arms), or (1, n_arms) when all are the same."""
        if self.is_constant:
            return self.table
        return self.table[rows] if self.code is None else self.table[self.code[rows]]

    def columns(self, rows: slice | np.ndarray) -> list[np.ndarray]:
        """As `probabilities`, one contiguous array per arm: gathering rows of a table is slow."""
        if self.is_constant or self.code is None:
            return list(self.probabilities(rows).T)
        code = self.code[rows].astype(np.intp)
        return [column.take(code) for column in self.table.T]

    def of_arm(self, arm: np.ndarray, rows: slice | np.ndarray) -> np.ndarray:
        """Probability that the policy takes the logged arm; shape (rows,)."""
        if self.is_constant:
            return np.asarray(self.table[0].take(arm))
        n_arms = self.table.shape[1]
        code = self.code[rows] if self.code is not None else np.arange(len(self.table))[rows]
        return np.asarray(self.table.ravel().take(code.astype(np.intp) * n_arms + arm))


def resolve(name: str, policy: Policy | np.ndarray, log: pd.DataFrame, n_arms: int) -> Target:
    """Check a policy against a log and store it compactly.

    Raises: DataError: wrong shape, a probability outside [0, 1] or rows that do not sum to 1, with policy and row.
    """
    n = len(log)
    expected = "a models.Policy, or an array of probabilities"
    if isinstance(policy, Policy) and not isinstance(policy, type):
        values = read_array(policy.probabilities(log, n_arms), f"policy {name!r}", expected)
        if values.shape == (1, n_arms):
            _check_table(name, values)
            return Target(name, values, None)
    else:
        check_index(policy, f"policy {name!r}", log)
        values = read_array(policy, f"policy {name!r}", expected)
    if values.shape == (n,) and n_arms == 2:
        _check_range(name, values)
        return _from_message_probability(name, values)
    if values.shape != (n, n_arms):
        expected = f"({n},) or ({n}, 2)" if n_arms == 2 else f"({n}, {n_arms})"
        raise DataError(f"policy {name!r} has shape {values.shape}; expected {expected}: log rows x arms")
    _check_table(name, values)
    if n_arms == 2:
        return _from_message_probability(name, values[:, 1])
    if np.all((values == 0) | (values == 1)):
        return Target(name, np.eye(n_arms), values.argmax(axis=1).astype(np.int8))
    return Target(name, values[:1], None) if np.all(values == values[0]) else Target(name, values, None)


def _from_message_probability(name: str, message: np.ndarray) -> Target:
    if np.count_nonzero(message == 0) + np.count_nonzero(message == 1) == len(message):
        return Target(name, np.eye(2), message.astype(np.int8))
    code, levels = pd.factorize(message)
    if len(levels) <= MAX_CODES:
        table = np.column_stack([1 - levels, levels])
        return Target(name, table, None if len(levels) == 1 else code.astype(np.int8))
    return Target(name, np.column_stack([1 - message, message]), None)


def _check_table(name: str, values: np.ndarray) -> None:
    _check_range(name, values)
    wrong = np.abs(values.sum(axis=1) - 1) > 1e-6
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(
            f"policy {name!r}: probabilities of row {row} sum to {values[row].sum():g} ({int(wrong.sum())} rows are "
            "off); expected 1 over all arms, control included"
        )


def _check_range(name: str, values: np.ndarray) -> None:
    # written so that NaN is caught as well
    if not (values.min() >= 0 and values.max() <= 1):
        bad = ~((values >= 0) & (values <= 1))
        row = int(np.argwhere(bad)[0][0])
        raise DataError(
            f"policy {name!r}: {float(values[bad][0]):g} in row {row} is not a probability "
            f"({int(bad.sum())} values outside [0, 1]); expected the probability of sending"
        )


def _check_share(policy: str, share: float) -> None:
    check_number(f"{policy}: share", share, is_number(share) and 0 <= share <= 1, "in [0, 1]")


def _to_arms(scores: np.ndarray, message: np.ndarray, n_arms: int) -> np.ndarray:
    """Give the probability of a message to the arm with the highest score; shape (n, n_arms)."""
    values = np.zeros((len(scores), n_arms))
    values[:, 0] = 1 - message
    values[np.arange(len(scores)), 1 + scores.argmax(axis=1)] += message
    return values
