"""Which policy to run: maximise the weighted outcome under a budget and guardrails, by fixed-sequence testing.

1. Candidates (score > threshold) are ordered by volume before any outcome is looked at.
2. In that order, on the `select` users, each must pass every guardrail; the first that fails ends the sequence
   (`models.certification`).
3. Of the certified candidates, the score's own cut is chosen, unless another is clearly better (`models.own_cut`).
4. Its value is reported from the `evaluate` users, who took no part in choosing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from campaign import DataError
from models.certification import Guardrail, candidate_thresholds, check_guardrails, run_sequence
from models.decision_log import Outcome, check_outcomes, count_arms, read_costs, read_predictions
from models.evaluation import evaluate, evaluate_sample, prepare, segment_rows
from models.inputs import (
    check_columns,
    check_names,
    check_number,
    check_rows,
    is_number,
    read_arms,
    read_array,
    read_features,
)
from models.own_cut import choose, own_cut, reason
from models.policy import Score, SendNone, Threshold, score_matrix
from models.splits import check_disjoint

SHARES = tuple(np.round(np.arange(0.05, 1.0001, 0.05), 2))


@dataclass(frozen=True)
class Choice:
    """A chosen policy, and everything that led to it.

    Attributes:
        policy: Threshold over the score given (rows of the whole log), or SendNone.
        score: name of the chosen score; "" for send-none.
        threshold: message where score > threshold; infinite for send-none.
        reason: why, in one sentence.
        candidates: per candidate in order: score, share, threshold, weighted gain over send-none with se and lower
            bound on `select`, status "certified", "failed" or "not tested", its paired difference to the own cut with
            se (certified ones only), and whether it is chosen.
        table: per tested candidate (score, threshold, share), constraint and segment: estimate, margin, lower_bound,
            n_eff, min_detectable_margin (that a harmless policy passes with 80% power), status "pass", "fail" or
            "underpowered".
        value: `evaluate` of the policy "chosen" on the `evaluate` users.
        own_cut: the threshold is the score's own cut and no guardrail was asked, which the gate then does.
    """

    policy: Threshold | SendNone
    score: str
    threshold: float
    reason: str
    candidates: pd.DataFrame
    table: pd.DataFrame
    value: pd.DataFrame
    own_cut: bool = False


def choose_policy(
    log: pd.DataFrame,
    scores: Score | Mapping[str, Score],
    outcomes: Sequence[Outcome],
    *,
    guardrails: Sequence[Guardrail] = (),
    max_message_share: float = 1.0,
    split: str = "split",
    shares: Sequence[float] = SHARES,
    segments: Sequence[str] = (),
    arm: str = "arm",
    propensity: str = "propensity",
    cluster: str | None = "user_id",
    features: pd.DataFrame | Sequence[str] | None = None,
    mu_hat: np.ndarray | None = None,
    costs: Sequence[float] | None = None,
    estimator: str = "dr",
    alpha: float = 0.05,
) -> Choice:
    """Choose a threshold (and, of several scores, one) that no guardrail speaks against.

    Args:
        log: one row per matured decision, with column `split`; rows that are neither "select" nor "evaluate" are left
            out (the score's model saw them).
        scores: predicted weighted uplift per row (and message arm), or several by name, e.g. one per weight vector:
            each is a sequence of its own at alpha / number of scores; the own cut of the first is what others must
            beat.
        outcomes: what is maximised: the weighted sum, less costs.
        guardrails: which outcomes must not fall.
        max_message_share: budget; candidates that message more of the `select` users are not considered.
        split: column that says who chooses and who grades.
        shares: volumes of the candidates, besides the score's own cut at 0.
        segments: columns in whose every value guardrails must hold.
        arm: as in `evaluate`, like the next five.
        propensity: column of the logged arm's probability.
        cluster: column of the user.
        features: for cross-fitted predictions within `select` and within `evaluate`.
        mu_hat: predictions by a model that saw neither.
        costs: per row of each arm, control's first.
        estimator: of effects; "dr" or "snips".
        alpha: chance that a chosen policy violates a guardrail; one-sided.

    Raises: DataError: what `evaluate` raises; no select or evaluate rows; a user in both; an unknown guardrail.
    """
    _check_options(log, outcomes, guardrails, max_message_share, shares, segments, split, cluster, estimator, alpha)
    predicted, given = read_predictions(mu_hat), read_features(features, log)
    if predicted is not None:
        check_rows("mu_hat", predicted, log)
    check_columns(log, [arm])
    n_arms = count_arms(read_arms(log[arm], arm), read_costs(costs), predicted)
    matrices = _matrices(scores, log, n_arms)
    columns: dict[str, Any] = {"arm": arm, "propensity": propensity, "cluster": cluster, "costs": costs}
    select, evaluated = (_part(log, split, part, given, predicted, columns) for part in ("select", "evaluate"))

    effects = _Effects(select, outcomes, estimator)
    candidates, table = _certified(matrices, effects, guardrails, segments, shares, max_message_share, alpha)
    candidates, best, why = _chosen(candidates, matrices, effects, alpha)

    score, cut = ("", np.inf) if best is None else (str(best["score"]), float(best["threshold"]))
    policy = Threshold(matrices[score], cut) if best else SendNone()
    graded = Threshold(matrices[score][evaluated.rows], cut) if best else SendNone()
    return Choice(
        policy=policy,
        score=score,
        threshold=cut,
        reason=why,
        candidates=candidates,
        table=table,
        value=evaluate(policies={"chosen": graded}, outcomes=outcomes, segments=segments, **evaluated.inputs),
    )


def _check_options(
    log: pd.DataFrame,
    outcomes: Sequence[Outcome],
    guardrails: Sequence[Guardrail],
    max_message_share: float,
    shares: Sequence[float],
    segments: Sequence[str],
    split: str,
    cluster: str | None,
    estimator: str,
    alpha: float,
) -> None:
    check_outcomes(outcomes)
    check_names(segments=segments)
    check_columns(log, [] if cluster is None else [cluster])
    if not isinstance(split, str) or split not in log:
        raise DataError(f"the log has no column {split!r}; add it with models.splits.split_of(user_ids, splits)")
    check_columns(log, [split])
    check_guardrails(guardrails, [o.name for o in outcomes])
    fits = is_number(max_message_share) and 0 <= max_message_share <= 1
    check_number("max_message_share", max_message_share, fits, "in [0, 1]")
    volumes = read_array(shares, "shares", "shares of users in (0, 1]")
    if volumes.ndim != 1 or not np.all((volumes > 0) & (volumes <= 1)):
        raise DataError(f"shares == {volumes.tolist()}, must be in (0, 1]")
    if estimator not in ("ips", "snips", "dr", "sndr"):
        raise DataError(f"estimator == {estimator!r}, must be one with an interval: 'ips', 'snips', 'dr' or 'sndr'")
    check_number("alpha", alpha, is_number(alpha) and 0 < alpha < 0.5, "in (0, 0.5): it is one-sided")
    if cluster is not None:
        check_disjoint(log[cluster].to_numpy(), log[split].to_numpy())


def _matrices(scores: Score | Mapping[str, Score], log: pd.DataFrame, n_arms: int) -> dict[str, np.ndarray]:
    """Scores of the message arms, by the score's name; each (n, n_arms - 1)."""
    named = scores if isinstance(scores, Mapping) else {"score": scores}
    if not named:
        raise DataError("scores is empty; expected a score, or several by name")
    return {str(name): score_matrix(score, log, n_arms) for name, score in named.items()}


@dataclass(frozen=True)
class _Part:
    """Rows of one part of the log (mask), and the inputs of `evaluate` for them alone."""

    rows: np.ndarray
    inputs: dict[str, Any]


def _part(
    log: pd.DataFrame,
    split: str,
    part: str,
    features: pd.DataFrame | None,
    mu_hat: np.ndarray | None,
    columns: Mapping[str, Any],
) -> _Part:
    rows = (log[split] == part).to_numpy(dtype=bool, na_value=False)
    if not rows.any():
        raise DataError(f"no row has {split} == {part!r}; it has {log[split].unique().tolist()[:5]}")
    own = None if features is None else features[rows]
    return _Part(
        rows, {**columns, "log": log[rows], "features": own, "mu_hat": None if mu_hat is None else mu_hat[rows]}
    )


@dataclass(frozen=True)
class _Effects:
    """Differences of candidates to a baseline on the users who select."""

    part: _Part
    outcomes: Sequence[Outcome]
    estimator: str

    def of(
        self, policies: Mapping[str, Threshold], segments: Sequence[str], alpha: float, baseline: str
    ) -> pd.DataFrame:
        """`evaluate` of the policies, differences only, with n_eff."""
        inputs = self.part.inputs
        sample, targets = prepare(policies=policies, outcomes=self.outcomes, estimators=[self.estimator], **inputs)
        parts = segment_rows(inputs["log"], segments, sample.cluster)
        return evaluate_sample(sample, targets, self.outcomes, parts, [self.estimator], [baseline], alpha, values=False)


def _certified(
    matrices: Mapping[str, np.ndarray],
    effects: _Effects,
    guardrails: Sequence[Guardrail],
    segments: Sequence[str],
    shares: Sequence[float],
    max_message_share: float,
    alpha: float,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Candidates of every score with their status, and the constraints tested; each score spends its part of alpha."""
    part, wald = alpha / len(matrices), {o.name for o in effects.outcomes if o.kind == "continuous"}
    candidates, tables = [], []
    for name, matrix in matrices.items():
        score = matrix[effects.part.rows]
        best_score = score.max(axis=1)
        thresholds = candidate_thresholds(best_score, shares, max_message_share)
        policies = {str(i): Threshold(score, cut) for i, cut in enumerate(thresholds)}
        # a two-sided interval at twice the level ends at the one-sided bound
        table = effects.of(policies, segments, 2 * part, "send_none")
        sequence, tested = run_sequence(name, best_score, thresholds, table, guardrails, part, wald)
        candidates.append(sequence)
        tables.append(tested)
    constraints = pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)
    return pd.concat(candidates, ignore_index=True), constraints


def _chosen(
    candidates: pd.DataFrame, matrices: Mapping[str, np.ndarray], effects: _Effects, alpha: float
) -> tuple[pd.DataFrame, dict[str, Any] | None, str]:
    """Candidates with their differences to the own cut, the chosen one (None: nobody), and why."""
    own_shares = {name: float((matrix[effects.part.rows].max(axis=1) > 0).mean()) for name, matrix in matrices.items()}
    own = own_cut(candidates, own_shares)
    nobody = own is not None and own_shares[candidates["score"][own]] == 0
    start = None if nobody else own
    candidates, best = choose(candidates, start, _to_own_cut(candidates, start, matrices, effects, alpha))
    return candidates, best, reason(candidates, own, nobody, best)


def _to_own_cut(
    candidates: pd.DataFrame,
    own: int | None,
    matrices: Mapping[str, np.ndarray],
    effects: _Effects,
    alpha: float,
) -> pd.DataFrame:
    """Weighted difference of every certified candidate to the own cut (None: to nobody): policy, value, se."""
    certified = candidates[candidates["status"] == "certified"]
    if own is None:
        return pd.DataFrame({"policy": certified.index, "value": certified["gain"], "se": certified["se"]})
    policies = {
        str(i): Threshold(matrices[score][effects.part.rows], cut)
        for i, score, cut in zip(certified.index, certified["score"], certified["threshold"], strict=True)
    }
    table = effects.of(policies, (), alpha, str(own))
    return table[(table["outcome"] == "weighted") & table["policy"].isin(list(policies))]
