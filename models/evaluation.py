"""What a policy is worth, from randomised decisions: values and paired differences with honest intervals.

    evaluate(log, {"model": Threshold(score)}, [Outcome("subscribed", "binary", 12.0)], segments=["plan"])

Intervals are clustered by user. For 0/1 outcomes under policies that treat few kinds of rows (threshold, share,
send-all) they come from Wilson limits by cell, carried to the estimator (see models.intervals); elsewhere they are
Wald intervals on the scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from campaign import DataError
from models.cells import Kinds
from models.decision_log import Outcome, read_sample
from models.estimators import ESTIMATORS, Sample
from models.inputs import check_alpha, check_columns, check_names, read_features, read_levels
from models.log_checks import cluster_sums
from models.nuisance import arm_means, cross_fit
from models.policy import Policy, SendAll, SendNone, Target, resolve
from models.value_rows import COLUMNS, Part

BASELINES = ("send_all", "send_none")
# a mean weight further than FAR from 1 and beyond FAR_Z standard errors is a wrong column, not chance
FAR, FAR_Z = 0.2, 5.0


def evaluate(
    log: pd.DataFrame,
    policies: Mapping[str, Policy | np.ndarray],
    outcomes: Sequence[Outcome],
    *,
    arm: str = "arm",
    propensity: str = "propensity",
    cluster: str | None = "user_id",
    segments: Sequence[str] = (),
    estimators: Sequence[str] = ("snips", "dr"),
    features: pd.DataFrame | Sequence[str] | None = None,
    mu_hat: np.ndarray | None = None,
    alpha: float = 0.05,
    costs: Sequence[float] | None = None,
    baselines: Sequence[str] = BASELINES,
) -> pd.DataFrame:
    """Values of policies and their paired differences to baselines, per outcome, segment and estimator.

    Args:
        log: one row per matured decision; the columns named below, and one per outcome.
        policies: by name. An array of shape (n,) is the probability of the message (one message arm), one of shape
            (n, n_arms) the probability of every arm. `send_none`, `send_all` (each message arm equally likely) and,
            with several message arms, `send_all_<arm>` are always added.
        outcomes: what is counted; the weighted sum of them, less `costs`, is reported as outcome "weighted".
        arm: column of the logged arm, integer, 0 = control.
        propensity: column of the probability with which the logged arm was drawn, in (0, 1).
        cluster: column of the user; standard errors are clustered by it. None: every row stands alone.
        segments: columns of the log; each value is reported as segment "column=value" beside "" (everybody).
        estimators: some of "ips", "snips", "dr", "sndr", "dm" (no interval), "replay" (= snips), "plain_replay".
        features: for dr without `mu_hat`: columns of the log, or a frame with its rows, from which outcomes are
            predicted by ridge regression, cross-fitted by cluster.
        mu_hat: shape (n, n_arms, n_outcomes), predictions by a model that saw none of these rows. With neither,
            dr uses each arm's mean outcome.
        alpha: 1 - confidence level.
        costs: per row of each arm, control's first, in units of the weighted reward; counted in "weighted" only.
        baselines: policies the others are compared with, row by row.

    Returns: columns COLUMNS. `baseline` is "" for values, `segment` "" for everybody. Units are those of the outcome,
        per decision. `n_obs` is the number of decisions; `n_events` the decisions with an outcome other than 0 that
        an estimate rests on (for a difference: on the weaker side, where the policies differ; for "weighted": of the
        rarest outcome). `status` is "ok"; "insufficient" (fewer than 10 events or, for a 0/1 outcome, non-events:
        read the interval, not the value); "identical" (both policies do the same: the difference is 0, no interval);
        or "diagnostic" (dm: no interval).

    Raises: DataError: see `models.decision_log.read_sample`; a policy of wrong shape or range; a policy that takes an
        arm the log never took; propensities that cannot be those of the arms taken (`models.log_checks.check_log`
        looks closer).
    """
    check_names(segments=segments, estimators=estimators, baselines=baselines)
    estimators, baselines = tuple(dict.fromkeys(estimators)), tuple(dict.fromkeys(baselines))
    sample, targets = prepare(log, policies, outcomes, arm, propensity, cluster, estimators, features, mu_hat, costs)
    if cluster is not None:  # rows that are said to be independent may hide users who keep their arm
        check_weights(weight_sums(sample), len(sample), propensity)
    parts = segment_rows(log, segments, sample.cluster)
    return evaluate_sample(sample, targets, outcomes, parts, estimators, baselines, alpha)[COLUMNS]


def evaluate_sample(
    sample: Sample,
    targets: list[Target],
    outcomes: Sequence[Outcome],
    segments: Sequence[tuple[str, np.ndarray | None]],
    estimators: Sequence[str],
    baselines: Sequence[str],
    alpha: float,
    *,
    values: bool = True,
) -> pd.DataFrame:
    """`evaluate` on arrays that were checked before; one more column, `n_eff`, behind the weaker side.

    `values` False leaves out the values themselves: many policies are compared and only differences are needed.
    """
    _check_options(targets, estimators, baselines, alpha)
    _check_support(sample, targets)
    if "plain_replay" in estimators:
        _check_replay(sample, targets)
    kinds = Kinds.of(targets)
    rows: list[list[object]] = []
    for segment, index in segments:
        rows += Part(sample, targets, kinds, outcomes, estimators, alpha, segment, index).table(baselines, values)
    return pd.DataFrame(rows, columns=[*COLUMNS, "n_eff"])


def prepare(
    log: pd.DataFrame,
    policies: Mapping[str, Policy | np.ndarray],
    outcomes: Sequence[Outcome],
    arm: str,
    propensity: str,
    cluster: str | None,
    estimators: Sequence[str],
    features: pd.DataFrame | Sequence[str] | None,
    mu_hat: np.ndarray | None,
    costs: Sequence[float] | None,
) -> tuple[Sample, list[Target]]:
    """Check everything, resolve the policies, and find predictions if an estimator needs them."""
    if not isinstance(policies, Mapping):
        raise DataError(f"policies is a {type(policies).__name__}; expected a dict: name -> policy or array")
    sample = read_sample(
        log,
        outcomes,
        arm=arm,
        propensity=propensity,
        cluster=cluster,
        mu_hat=mu_hat,
        costs=costs,
        n_arms=max([2, *map(_width, policies.values())]),
    )
    given = read_features(features, log)
    if features is not None and not isinstance(features, pd.DataFrame):
        _check_leaks(features, [arm, propensity, *(o.name for o in outcomes)])
    n_arms = len(sample.costs)
    asked = with_constants(policies, n_arms)
    targets = [resolve(name, policy, log, n_arms) for name, policy in asked.items()]
    if mu_hat is None and {"dr", "sndr", "dm"} & set(estimators):
        predicted = arm_means(sample) if given is None else cross_fit(given, sample, [o.kind for o in outcomes])
        sample = Sample(**{**vars(sample), "mu_hat": predicted})
    return sample, targets


def with_constants(policies: Mapping[str, Any], n_arms: int) -> dict[str, Any]:
    """The policies, and those that do the same with everybody (DataError: a name of theirs is taken)."""
    added: dict[str, Policy] = {"send_all": SendAll(), "send_none": SendNone()}
    if n_arms > 2:
        added |= {f"send_all_{a}": SendAll(a) for a in range(1, n_arms)}
    taken = [name for name in policies if name in added]
    if taken:
        raise DataError(f"policy name {taken[0]!r} is taken: evaluate adds {', '.join(added)} itself; choose another")
    return {**policies, **added}


def weight_sums(sample: Sample) -> np.ndarray:
    """Weights 1 / propensity of each arm's rows: their sum, and the sum over users of (theirs - their rows) squared.

    Returns: shape (n_arms, 2); those of parts with whole users add up.
    """
    weight, sums = 1 / sample.propensity, np.zeros((len(sample.costs), 2))
    for arm in range(len(sums)):
        own = np.where(sample.arm == arm, weight, 0.0)
        sums[arm] = own.sum(), cluster_sums(own[:, None] - 1, sample.cluster)[1][0, 0]
    return sums


def check_weights(sums: np.ndarray, n: int, propensity: str) -> None:
    """Raise DataError where weights average far from 1: the column holds another probability than the arm's own.

    Of several message arms only control is asked: the others need not be possible for every row.
    """
    mean = sums[:, 0] / n
    if not mean.all():
        return
    for arm in [a for a in range(2 if len(sums) == 2 else 1) if abs(mean[a] - 1) > FAR]:
        z = (sums[arm, 0] - n) / max(float(np.sqrt(sums[arm, 1])), 1e-12)
        if abs(z) > FAR_Z:
            raise DataError(
                f"{propensity} does not fit the arms: rows of arm {arm} weighted by 1 / {propensity} make up "
                f"{mean[arm]:.3g} of the log, expected 1 ({z:+.0f} standard errors); give the probability of the arm "
                "each row got (of a message p, of control 1 - p), not that of the message"
            )


def _check_leaks(features: Sequence[str], later: Sequence[str]) -> None:
    """Predictions from the arm or an outcome are wrong however well they are cross-fitted."""
    leaks = [name for name in features if name in later]
    if leaks:
        raise DataError(
            f"feature {leaks[0]!r} is known only after the decision (arm, propensity and outcomes are); expected "
            "features known before it"
        )


def _width(policy: Any) -> int:
    """Columns of a policy given as a table; 0 for any other."""
    try:
        shape = np.shape(policy)
    except ValueError:  # rows of different lengths: `resolve` says so
        return 0
    return int(shape[1]) if len(shape) == 2 else 0


def _check_options(
    targets: Sequence[Target], estimators: Sequence[str], baselines: Sequence[str], alpha: float
) -> None:
    unknown = [e for e in estimators if e not in ESTIMATORS]
    if unknown or not estimators:
        raise DataError(f"estimators == {list(estimators)}; expected some of {', '.join(ESTIMATORS)}")
    names = [t.name for t in targets]
    strange = [b for b in baselines if b not in names]
    if strange:
        raise DataError(f"baseline {strange[0]!r} is not a policy; policies are {names}")
    check_alpha(alpha)


def _check_support(sample: Sample, targets: Sequence[Target]) -> None:
    """An arm that the log never took has no outcomes to learn from."""
    taken = np.bincount(sample.arm, minlength=len(sample.costs)) > 0
    if taken.all():
        return
    for target in targets:
        table = target.table
        if target.code is not None:
            table = table * (np.bincount(target.code, minlength=len(table)) / len(sample))[:, None] * len(table)
        wanted = table.mean(axis=0)
        for a in np.flatnonzero((wanted > 0) & ~taken):
            raise DataError(
                f"policy {target.name!r} takes arm {a} for {wanted[a]:.1%} of the decisions, but the log never took "
                f"it (arms taken: {np.flatnonzero(taken).tolist()}); its value cannot be known from this log"
            )


def _check_replay(sample: Sample, targets: Sequence[Target]) -> None:
    """Plain replay averages the rows where log and policy agree: they must be a uniform sample of all rows."""
    for target in targets:
        match = target.of_arm(sample.arm, slice(None))
        chance = sample.propensity[match > 0]
        if not len(chance):
            raise DataError(
                f"plain_replay of policy {target.name!r}: the log never did what it does, so nothing can be replayed; "
                "check which way round its probabilities are"
            )
        if not np.all((match == 0) | (match == 1)) or np.ptp(chance) > 1e-9:
            raise DataError(
                f"plain_replay of policy {target.name!r}: the log agrees with it with probability {chance.min():g} to "
                f"{chance.max():g}, so the rows where they agree are no fair sample (with a 90/10 holdout the value "
                "was 32% too high); use 'replay' (propensity-weighted) or 'dr'"
            )


def segment_rows(
    log: pd.DataFrame, columns: Sequence[str], cluster: np.ndarray | None
) -> list[tuple[str, np.ndarray | None]]:
    """Name and row indices of every segment, sorted by cluster; "" is everybody (None: all rows as they are)."""
    order = None if cluster is None else np.argsort(cluster, kind="stable")
    parts: list[tuple[str, np.ndarray | None]] = [("", order)]
    check_columns(log, columns)
    for column in dict.fromkeys(columns):
        code, values = read_levels(log[column], f"segment column {column!r}")
        code = code if order is None else code[order]
        for level in range(-1 if (code < 0).any() else 0, len(values)):
            rows = np.flatnonzero(code == level)
            label = "missing" if level < 0 else values[level]
            parts.append((f"{column}={label}", rows if order is None else order[rows]))
    names = [name for name, _ in parts]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DataError(f"two segments read {twice[0]!r} (missing values read 'missing'); rename the value of one")
    return parts
