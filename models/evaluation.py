"""What a policy is worth, from randomised decisions: values and paired differences with honest intervals.

    evaluate(log, {"model": Threshold(score)}, [Outcome("subscribed", "binary", 12.0)], segments=["plan"])

Intervals are clustered by user. For 0/1 outcomes under policies that treat few kinds of rows (threshold, share,
send-all) they come from Wilson limits by cell, carried to the estimator (see models.intervals); elsewhere they are
Wald intervals on the scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from campaign import DataError
from models.cells import MAX_CELLS, Kinds, cell_sums
from models.columns import check_columns, check_names, is_number
from models.decision_log import WEIGHTED, Outcome, read_sample
from models.estimators import ESTIMATORS, Columns, Moments, Sample, effect_scores, estimate, moments
from models.intervals import Cells, carry_over, count_cells, mover, normal_quantile
from models.nuisance import arm_means, cross_fit
from models.policy import Policy, SendAll, SendNone, Target, resolve

COLUMNS = [
    "policy",
    "baseline",
    "outcome",
    "segment",
    "estimator",
    "value",
    "se",
    "ci_lower",
    "ci_upper",
    "n_obs",
    "n_events",
    "status",
]
BASELINES = ("send_all", "send_none")
MIN_EVENTS = 10


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
        arm the log never took.
    """
    check_names(segments=segments, estimators=estimators, features=features, baselines=baselines)
    estimators, baselines = tuple(dict.fromkeys(estimators)), tuple(dict.fromkeys(baselines))
    sample, targets = prepare(log, policies, outcomes, arm, propensity, cluster, estimators, features, mu_hat, costs)
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
        rows += _Part(sample, targets, kinds, outcomes, estimators, alpha, segment, index).table(baselines, values)
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
    n_arms = max([2, 0 if costs is None else len(costs), *map(_width, policies.values())])
    sample = read_sample(
        log, outcomes, arm=arm, propensity=propensity, cluster=cluster, mu_hat=mu_hat, costs=costs, n_arms=n_arms
    )
    n_arms = len(sample.costs)
    added: dict[str, Policy | np.ndarray] = {"send_all": SendAll(), "send_none": SendNone()}
    if n_arms > 2:
        added |= {f"send_all_{a}": SendAll(a) for a in range(1, n_arms)}
    taken = [name for name in policies if name in added]
    if taken:
        raise DataError(f"policy name {taken[0]!r} is taken: evaluate adds {', '.join(added)} itself; choose another")
    targets = [resolve(name, policy, log, n_arms) for name, policy in {**policies, **added}.items()]
    if mu_hat is None and {"dr", "sndr", "dm"} & set(estimators):
        if features is not None and not isinstance(features, pd.DataFrame):
            check_columns(log, list(features))
            features = log[list(features)]
        kinds = [o.kind for o in outcomes]
        predicted = arm_means(sample) if features is None else cross_fit(features, sample, kinds)
        sample = Sample(**{**vars(sample), "mu_hat": predicted})
    return sample, targets


def _width(policy: Any) -> int:
    """Columns of a policy given as a table; 0 for any other."""
    try:
        shape = np.shape(policy)
    except ValueError:  # rows of different lengths: `resolve` says so
        return 0
    return int(shape[1]) if len(shape) == 2 else 0


def effect_table(
    log: pd.DataFrame,
    outcomes: Sequence[Outcome],
    *,
    arm: str = "arm",
    propensity: str = "propensity",
    cluster: str | None = "user_id",
    features: pd.DataFrame | Sequence[str] | None = None,
    mu_hat: np.ndarray | None = None,
    costs: Sequence[float] | None = None,
) -> np.ndarray:
    """Doubly robust effect score of each row, message arm and outcome: what curves and segment means are made of.

    Args as in `evaluate`.

    Returns: shape (n, n_arms - 1, n_outcomes + 1): effect against control in the outcome's unit; the last is the
        weighted reward less the arm's cost. The mean over any users is unbiased for their mean uplift.
    """
    sample, _ = prepare(log, {}, outcomes, arm, propensity, cluster, ["dr"], features, mu_hat, costs)
    y = (sample.outcome + sample.shift[:, None]).T
    scores = effect_scores(y, sample.arm, sample.propensity, np.asarray(sample.mu_hat))
    weighted = scores @ np.array([o.weight for o in outcomes]) - (sample.costs[1:] - sample.costs[0])
    return np.concatenate([scores, weighted[..., None]], axis=2)


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
    if not (is_number(alpha) and 0 < alpha < 1):
        raise DataError(f"alpha == {alpha!r}, must be in (0, 1)")


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
        try:
            code, values = pd.factorize(log[column], sort=True, use_na_sentinel=True)
        except TypeError:
            raise DataError(
                f"segment column {column!r} holds {log[column].iloc[0]!r}; expected single values"
            ) from None
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


@dataclass
class _Part:
    """Everything known about one segment: sums once, then every value, difference and interval from them."""

    sample: Sample
    targets: list[Target]
    kinds: Kinds
    outcomes: Sequence[Outcome]
    estimators: Sequence[str]
    alpha: float
    segment: str
    rows: np.ndarray | None

    def __post_init__(self) -> None:
        self.columns = Columns.needed(self.estimators, len(self.outcomes))
        self.at: slice | np.ndarray = slice(None) if self.rows is None else self.rows
        self.sums, self.cells = self._sums()
        self.pairs: dict[tuple[int, int | None], tuple[Cells, np.ndarray]] = {}
        self.behind: dict[tuple[int, int | None], tuple[np.ndarray, np.ndarray, float]] = {}

    def _sums(self) -> tuple[Moments, Cells]:
        """Moments of every score, and sums by cell."""
        sample, n_arms = self.sample, len(self.sample.costs)
        few = len(self.kinds) * n_arms <= MAX_CELLS and all(t.has_cells for t in self.targets)
        if sample.cluster is None and few:
            return cell_sums(sample, self.targets, self.columns, self.kinds, self.rows)
        arm = sample.arm[self.at]
        event = sample.outcome[:, self.at] != -sample.shift[:, None]
        cell = self.kinds.of_rows(self.at, arm, n_arms)
        return (
            moments(sample, self.targets, self.columns, self.rows),
            count_cells(cell, len(self.kinds), n_arms, sample.propensity[self.at], event),
        )

    def table(self, baselines: Sequence[str], values: bool) -> list[list[object]]:
        """Values of every policy (if wanted), then its differences to every baseline but itself."""
        names = [t.name for t in self.targets]
        known = {
            (p, e): self._weighted(p, *estimate(self.sums, self.columns, p, e, self.sample.shift))
            for p in range(len(names))
            for e in self.estimators
        }
        rows: list[list[object]] = []
        others = [*([None] if values else []), *(names.index(name) for name in baselines)]
        for p in range(len(names)):
            for b in others:
                if b == p:
                    continue
                for e in self.estimators:
                    value, influence = known[p, e]
                    if b is not None:
                        value, influence = value - known[b, e][0], influence - known[b, e][1]
                    rows += self._rows(p, b, e, value, influence)
        return rows

    def _weighted(self, policy: int, value: np.ndarray, influence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Append the weighted reward, less the policy's expected cost, as one more outcome."""
        weights, cost = np.array([o.weight for o in self.outcomes]), self.columns.cost(policy)
        mean_cost = self.sums.total[cost] / self.sums.n_obs
        extra = weights @ influence
        extra[cost] -= 1.0
        extra[0] += mean_cost
        return np.append(value, weights @ value - mean_cost), np.vstack([influence, extra])

    def _rows(
        self, p: int, b: int | None, estimator: str, value: np.ndarray, influence: np.ndarray
    ) -> list[list[object]]:
        cells, coefficient = self._cells(p, b)
        binary = np.array([o.kind == "binary" for o in self.outcomes] + [False])
        variance = self.sums.variance(influence)
        design = np.ones_like(value) if self.sample.cluster is None else self.sums.design_effect(influence)
        if (p, b) not in self.behind:
            self.behind[p, b] = (*_events(cells, coefficient, binary[:-1]), _n_eff(cells, coefficient))
        n_events, enough, rows_behind = self.behind[p, b]
        by_cells = binary & self._has_cells(p, b)
        inflation = design * self.sums.correction
        down, up = _distances(cells, coefficient, variance, design, inflation, self.alpha, by_cells)
        lower = np.where(binary, np.maximum(value - down, 0.0 if b is None else -1.0), value - down)
        upper = np.where(binary, np.minimum(value + up, 1.0), value + up)
        status = np.where(enough & (upper > lower), "ok", "insufficient")
        se, none = np.sqrt(variance), ~(upper > lower)
        if b is not None and self._identical(p, b):
            value, se, none, status = np.zeros_like(value), np.zeros_like(se), True, np.full_like(status, "identical")
        elif estimator == "dm":
            se, none, status = np.full_like(se, np.nan), True, np.full_like(status, "diagnostic")
        lower, upper = np.where(none, np.nan, lower), np.where(none, np.nan, upper)
        n_eff = rows_behind / design
        names = [*(o.name for o in self.outcomes), WEIGHTED]
        head = [self.targets[p].name, "" if b is None else self.targets[b].name]
        numbers = zip(value, se, lower, upper, n_events, status, n_eff, strict=True)
        return [
            [*head, name, self.segment, estimator, v, s, low, high, self.sums.n_obs, int(events), str(state), n]
            for name, (v, s, low, high, events, state, n) in zip(names, numbers, strict=True)
        ]

    def _has_cells(self, p: int, b: int | None) -> bool:
        return self.targets[p].has_cells and (b is None or self.targets[b].has_cells)

    def _cells(self, p: int, b: int | None) -> tuple[Cells, np.ndarray]:
        """Cell sums for a policy or pair, and the coefficient of each cell's mean outcome in the estimate."""
        if (p, b) not in self.pairs:
            pair = [p] if b is None else [p, b]
            group, tables = self.kinds.digits[0] * 0, [self.targets[t].table for t in pair]
            for t in pair:
                if self.targets[t].code is not None:
                    group = group * len(self.targets[t].table) + self.kinds.digits[t]
            groups, at, group = np.unique(group, return_index=True, return_inverse=True)
            cells = self.cells.grouped(group, len(groups))
            prob = [
                table[self.kinds.digits[t, at]] if self.targets[t].has_cells else table.mean(axis=0, keepdims=True)
                for t, table in zip(pair, tables, strict=True)
            ]
            difference = prob[0] - (prob[1] if b is not None else 0.0)
            self.pairs[p, b] = cells, np.broadcast_to(difference, cells.n.shape) * cells.size[:, None]
        return self.pairs[p, b]

    def _identical(self, p: int, b: int) -> bool:
        first, second = self.targets[p], self.targets[b]
        if first.has_cells and second.has_cells:
            return not self._cells(p, b)[1].any()
        return np.array_equal(first.probabilities(self.at), second.probabilities(self.at))


def _distances(
    cells: Cells,
    coefficient: np.ndarray,
    variance: np.ndarray,
    design_effect: np.ndarray,
    inflation: np.ndarray,
    alpha: float,
    by_cells: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Distances from each outcome's estimate down and up to its limits; MOVER-Wilson where `by_cells`, else Wald."""
    down = normal_quantile(alpha) * np.sqrt(variance)
    up = down.copy()
    used = coefficient != 0
    for k in np.flatnonzero(by_cells & used.any()).tolist():
        share, n_eff = cells.share(k)[used], cells.n_eff()[used] / design_effect[k]
        # an empty cell knows nothing: its share is anywhere between 0 and 1
        both = mover(coefficient[used], share, np.maximum(n_eff, 1e-9), alpha)
        cell_variance = (coefficient[used] ** 2 * cells.share_variance(k)[used]).sum() * inflation[k]
        down[k], up[k] = carry_over(np.array(both), cell_variance, variance[k], alpha)
    return down, up


def _events(cells: Cells, coefficient: np.ndarray, binary: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Events an estimate rests on, and whether they (for 0/1 outcomes non-events too) are enough; by outcome.

    For a difference, of the side (policy or baseline) that has fewer; the last entry is the weighted reward's.
    """
    sides = _sides(coefficient)
    if not sides:
        return np.zeros(len(binary) + 1, dtype=int), np.zeros(len(binary) + 1, dtype=bool)
    events = np.array([cells.events[:, side].sum(axis=1) for side in sides])
    others = np.array([cells.n[side].sum() for side in sides])[:, None] - events
    enough = (events.min(axis=0) >= MIN_EVENTS) & (~binary | (others.min(axis=0) >= MIN_EVENTS))
    return np.append(events.min(axis=0), events.min()).astype(int), np.append(enough, enough.all())


def _n_eff(cells: Cells, coefficient: np.ndarray) -> float:
    """Kish's effective number of rows behind the weaker side of an estimate."""
    n_eff = np.maximum(cells.n_eff(), 1e-9)
    sides = [np.abs(coefficient) * side for side in _sides(coefficient)]
    return min((float(side.sum() ** 2 / (side**2 / n_eff).sum()) for side in sides), default=0.0)


def _sides(coefficient: np.ndarray) -> list[np.ndarray]:
    """Cells that enter with plus, and those that enter with minus."""
    return [side for side in (coefficient > 0, coefficient < 0) if side.any()]
