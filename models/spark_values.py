"""Policy values on Spark: the sums of `evaluate`, made for the users of each task, added up, and read here.

Everything `evaluate` says follows from sums over users (models/estimators.py, models/cells.py), and a user's decisions
meet in one task. So one pass over any number of rows gives the same table; only the order of additions differs.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa

from campaign import DataError
from feature_repo import spark as engine
from models.cells import MAX_CELLS, Kinds
from models.decision_log import Outcome, read_sample
from models.estimators import Moments, Sample
from models.evaluation import BASELINES, check_weights, segment_rows, weight_sums, with_constants
from models.inputs import check_alpha, check_names
from models.intervals import Cells
from models.policy import Policy, RandomShare, SendAll, SendNone, Target, Threshold
from models.predictions import mu_hat_of
from models.value_rows import COLUMNS, Part

if TYPE_CHECKING:
    from pyspark.sql import DataFrame  # type: ignore[import-not-found]

ROWS_OF_TASK = 1_000_000  # decisions in a worker's memory at once
Sums = dict[str, tuple[Moments, Cells]]  # by segment


@dataclass(frozen=True)
class _Question:
    """What is asked of every part of the log."""

    policies: Mapping[str, Policy]
    outcomes: Sequence[Outcome]
    arms: Sequence[str]
    cluster: str
    segments: Sequence[str]
    estimators: Sequence[str]
    costs: Sequence[float]
    alpha: float

    def sums(self, log: pd.DataFrame, shift: np.ndarray) -> tuple[Sums, np.ndarray]:
        """The sums of a whole number of users, and those of their weights."""
        mu_hat = mu_hat_of(log, self.arms, [o.name for o in self.outcomes])
        sample = read_sample(
            log,
            self.outcomes,
            arm="arm",
            propensity="propensity",
            cluster=self.cluster,
            mu_hat=mu_hat,
            costs=self.costs,
            n_arms=len(self.arms),
        )
        # one shift for all parts; 0 stays what tells that nothing happened
        outcome = np.array([log[o.name].to_numpy(dtype=float) for o in self.outcomes]) - shift[:, None]
        sample = replace(sample, outcome=outcome, shift=shift)
        targets = [_target(name, policy, log, len(self.arms)) for name, policy in self.policies.items()]
        parts = [
            Part(sample, targets, Kinds.of(targets), self.outcomes, self.estimators, self.alpha, segment, rows)
            for segment, rows in segment_rows(log, self.segments, sample.cluster)
        ]
        return {part.segment: (part.sums, part.cells) for part in parts}, weight_sums(sample)

    def table(self, segment: str, sums: tuple[Moments, Cells], shift: np.ndarray) -> list[list[object]]:
        """Rows of the answer, from the sums of one segment."""
        n_arms, none = len(self.arms), np.zeros(0, dtype=int)
        alone = sums[0].n_clusters == sums[0].n_obs
        outcome, costs = np.zeros((len(self.outcomes), 0)), np.asarray(self.costs, dtype=float)
        sample = Sample(none, none, outcome, shift, None, None if alone else none, costs)
        targets = [_target(name, policy, None, n_arms) for name, policy in self.policies.items()]
        _check_support(targets, Kinds.of(targets), sums[1])
        part = Part(sample, targets, Kinds.of(targets), self.outcomes, self.estimators, self.alpha, segment, None, sums)
        return part.table(BASELINES, True)


def evaluate_on_spark(
    log: DataFrame,
    policies: Mapping[str, Policy],
    outcomes: Sequence[Outcome],
    arms: Sequence[str],
    *,
    cluster: str = "user_id",
    segments: Sequence[str] = (),
    estimators: Sequence[str] = ("snips", "dr"),
    alpha: float = 0.05,
    costs: Sequence[float] | None = None,
) -> pd.DataFrame:
    """`models.evaluation.evaluate` of decisions on Spark, with the predictions that are logged beside them.

    Args:
        log: columns arm, propensity, `cluster`, those of the outcomes, segments and policies, and
            `mu_<control>_<outcome>` and `uplift_<arm>_<outcome>` (`models.predictions.prediction_columns`).
        policies: by name; each tells a row's arm from that row alone: `Threshold` of columns, `SendAll`, `RandomShare`.
        outcomes: what is counted.
        arms: names; index 0 is control.
        cluster: column of the user.
        segments: columns; each value is reported beside everybody.
        estimators: as for `evaluate`, but for "plain_replay".
        alpha: 1 - confidence level.
        costs: per row of each arm, control's first.

    Returns: the table of `evaluate`; send_none and send_all are added and compared with.
    Raises: DataError: as `evaluate`; too many policies; Spark cannot read the rows.
    """
    check_names(segments=segments, estimators=estimators)
    check_alpha(alpha)
    asked: dict[str, Policy] = with_constants(policies, len(arms))
    _check_policies(asked, len(arms))
    question = _Question(asked, outcomes, arms, cluster, segments, estimators, costs or [0.0] * len(arms), alpha)
    with engine.failing("Spark could not evaluate"):
        whole = log.selectExpr("count(*) AS n", *(f"avg({o.name}) AS {o.name}" for o in outcomes)).first()
        if not whole.n:
            raise DataError("0 decisions to evaluate; expected matured decisions")
        shift = np.array([whole[o.name] for o in outcomes], dtype=float)

        def sums(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            parts = [batch for batch in batches if batch.num_rows]
            if parts:
                made = question.sums(pa.Table.from_batches(parts).to_pandas(), shift)
                yield pa.RecordBatch.from_pydict({"sums": [pickle.dumps(made)]})

        tasks = 1 + whole.n // ROWS_OF_TASK
        answers = log.repartition(tasks, cluster).mapInArrow(sums, "sums BINARY").collect()
    total: Sums = {}
    weights = np.zeros((len(arms), 2))
    for answer in answers:
        made, of_weights = pickle.loads(answer.sums)
        weights += of_weights
        for segment, (moments, cells) in made.items():
            before = total.get(segment)
            total[segment] = (moments, cells) if before is None else (before[0] + moments, before[1] + cells)
    check_weights(weights, whole.n, "propensity")
    names = sorted(total, key=lambda name: (name != "", [name.startswith(f"{s}=") for s in segments][::-1], name))
    rows = [row for name in names for row in question.table(name, total[name], shift)]
    return pd.DataFrame(rows, columns=[*COLUMNS, "n_eff"])[COLUMNS]


def _is_constant(policy: Policy) -> bool:
    return isinstance(policy, SendAll | SendNone | RandomShare)


def _target(name: str, policy: Policy, log: pd.DataFrame | None, n_arms: int) -> Target:
    """A policy with a table that is the same in every part, one row for each arm; without a log, of no rows."""
    if _is_constant(policy):
        return Target(name, policy.probabilities(pd.DataFrame(), n_arms), None)
    arm = np.zeros(0) if log is None else policy.probabilities(log, n_arms).argmax(axis=1)
    return Target(name, np.eye(n_arms), arm.astype(np.int16))


def _check_policies(policies: Mapping[str, Policy], n_arms: int) -> None:
    for name, policy in policies.items():
        by_column = isinstance(policy, Threshold) and not isinstance(policy.score, np.ndarray)
        if not (by_column or _is_constant(policy)):
            raise DataError(
                f"policy {name!r} is {type(policy).__name__}; expected one that tells an arm from the row alone: "
                "Threshold of columns, SendAll, SendNone or RandomShare (give a share's cut as a Threshold)"
            )
    varying = sum(not _is_constant(policy) for policy in policies.values())
    if n_arms ** (varying + 1) > MAX_CELLS:
        raise DataError(f"{varying} policies of {n_arms} arms; expected at most {MAX_CELLS} combinations of arms")


def _check_support(targets: Sequence[Target], kinds: Kinds, cells: Cells) -> None:
    """An arm that the log never took has no outcomes to learn from."""
    taken = cells.n.sum(axis=0) > 0
    for j, target in enumerate(targets):
        wanted = (target.table[kinds.digits[j]] * cells.size[:, None]).sum(axis=0)
        for a in np.flatnonzero((wanted > 0) & ~taken):
            raise DataError(f"policy {target.name!r} takes arm {a}, but the log never took it; its value is not known")
