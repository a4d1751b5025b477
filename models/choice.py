"""Which policy to run: maximise the weighted outcome under a budget and guardrails, by fixed-sequence testing.

1. Candidates (score > threshold) are ordered by volume before any outcome is looked at.
2. In that order, on the `select` users, each must pass every guardrail: the one-sided lower bound of its effect
   against send-none is >= -margin, overall and in every segment. The first that fails ends the sequence, so the chance
   that any certified candidate truly violates a guardrail is at most alpha.
3. Of the certified candidates, the score's own cut (threshold 0, or the nearest to it in volume; nobody, where no
   score is above 0) is chosen, unless another's weighted gain is higher by more than one standard error of their
   paired difference. The model that made the score saw far more of each user than twenty noisy estimates do: the
   highest of those is mostly luck in small logs, while a score whose cut is truly off is still overruled.
4. Its value is reported from the `evaluate` users, who took no part in choosing.

Source: Angelopoulos et al. (2021), "Learn then Test", arXiv:2110.01052 (fixed-sequence testing);
Berger (1982), Technometrics 24, 295-300 (all guardrails at level alpha each: intersection-union test);
Breiman et al. (1984), Classification and Regression Trees, 3.4.3 (one-standard-error rule).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from campaign import DataError
from models.columns import check_columns, check_names, read_arms
from models.decision_log import Outcome, check_outcomes
from models.evaluation import evaluate, evaluate_sample, prepare, segment_rows
from models.intervals import normal_quantile
from models.policy import Score, SendNone, Threshold, score_matrix
from models.splits import check_disjoint

SHARES = tuple(np.round(np.arange(0.05, 1.0001, 0.05), 2))
POWER = 0.8


@dataclass(frozen=True)
class Guardrail:
    """An outcome that must not fall by more than `margin` (its own unit) overall, `segment_margin` in a segment."""

    outcome: str
    margin: float
    segment_margin: float | None = None

    def margin_in(self, segment: str) -> float:
        """The margin that counts in a segment ("" is everybody)."""
        return self.margin if segment == "" or self.segment_margin is None else self.segment_margin


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
    """

    policy: Threshold | SendNone
    score: str
    threshold: float
    reason: str
    candidates: pd.DataFrame
    table: pd.DataFrame
    value: pd.DataFrame


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
    check_outcomes(outcomes)
    check_names(segments=segments, features=features)
    check_columns(log, [arm, *([cluster] if cluster else [])])
    if split not in log:
        raise DataError(f"the log has no column {split!r}; add it with models.splits.split_of(user_ids, splits)")
    _check_options(guardrails, outcomes, max_message_share, shares, estimator, alpha)
    if cluster:
        check_disjoint(log[cluster].to_numpy(), log[split].to_numpy())
    mu_hat = None if mu_hat is None else np.asarray(mu_hat, dtype=float)
    for name, given in (("features", features if isinstance(features, pd.DataFrame) else None), ("mu_hat", mu_hat)):
        if given is not None and len(given) != len(log):
            raise DataError(f"{name} has {len(given)} rows, the log has {len(log)}; expected the same rows")
    n_arms = max(
        int(read_arms(log[arm], arm).max()) + 1,
        2,
        0 if costs is None else len(costs),
        0 if mu_hat is None or mu_hat.ndim != 3 else mu_hat.shape[1],
    )
    named = scores if isinstance(scores, Mapping) else {"score": scores}
    if not named:
        raise DataError("scores is empty; expected a score, or several by name")
    matrices = {name: score_matrix(score, log, n_arms) for name, score in named.items()}
    columns: dict[str, Any] = {"arm": arm, "propensity": propensity, "cluster": cluster, "costs": costs}

    select, inputs = _rows_of(log, split, "select", features, mu_hat)
    inputs |= columns
    sequences = []
    for name, matrix in matrices.items():
        score = matrix[select]
        thresholds = candidate_thresholds(score.max(axis=1), shares, max_message_share)
        policies = {str(i): Threshold(score, cut) for i, cut in enumerate(thresholds)}
        bound = 2 * alpha / len(matrices)  # a two-sided interval at twice the level ends at the one-sided bound
        effects = _effects(policies, outcomes, segments, estimator, bound, inputs)
        sequences.append(_run_sequence(name, score.max(axis=1), thresholds, effects, guardrails, alpha / len(matrices)))
    candidates = pd.concat([tested for tested, _ in sequences], ignore_index=True)
    own_shares = {name: float((m[select].max(axis=1) > 0).mean()) for name, m in matrices.items()}
    own, certified = _own_cut(candidates, own_shares), candidates[candidates["status"] == "certified"]
    nobody = own is not None and own_shares[candidates["score"][own]] == 0
    differences = pd.DataFrame({"policy": certified.index, "value": certified["gain"], "se": certified["se"]})
    if own is not None and not nobody:
        policies = {
            str(i): Threshold(matrices[score][select], cut)
            for i, score, cut in zip(certified.index, certified["score"], certified["threshold"], strict=True)
        }
        effects = _effects(policies, outcomes, (), estimator, alpha, inputs, baseline=str(own))
        differences = effects[(effects["outcome"] == "weighted") & effects["policy"].isin(list(policies))]
    candidates, best = _choose(candidates, None if nobody else own, differences)

    evaluated, inputs = _rows_of(log, split, "evaluate", features, mu_hat)
    chosen: dict[str, Threshold | SendNone] = {"chosen": SendNone()}
    policy: Threshold | SendNone = SendNone()
    if best is not None:
        matrix, cut = matrices[str(best["score"])], float(best["threshold"])
        policy, chosen = Threshold(matrix, cut), {"chosen": Threshold(matrix[evaluated], cut)}
    tables = [constraints for _, constraints in sequences]
    return Choice(
        policy=policy,
        score="" if best is None else str(best["score"]),
        threshold=np.inf if best is None else float(best["threshold"]),
        reason=_reason(candidates, own, nobody, best),
        candidates=candidates,
        table=pd.concat([t for t in tables if len(t)] or tables[:1], ignore_index=True),
        value=evaluate(policies=chosen, outcomes=outcomes, segments=segments, **inputs, **columns),
    )


def _check_options(
    guardrails: Sequence[Guardrail],
    outcomes: Sequence[Outcome],
    max_message_share: float,
    shares: Sequence[float],
    estimator: str,
    alpha: float,
) -> None:
    known = {o.name for o in outcomes}
    for guardrail in guardrails:
        if guardrail.outcome not in known:
            raise DataError(f"guardrail {guardrail.outcome!r} is not an outcome; outcomes are {sorted(known)}")
        for margin in (guardrail.margin, guardrail.margin_in("any segment")):
            if not 0 <= margin < np.inf:
                raise DataError(f"guardrail {guardrail.outcome!r}: margin == {margin:g}, must be a number >= 0")
    if not 0 <= max_message_share <= 1:
        raise DataError(f"max_message_share == {max_message_share:g}, must be in [0, 1]")
    if not all(0 < share <= 1 for share in shares):
        raise DataError(f"shares == {list(shares)}, must be in (0, 1]")
    if estimator not in ("ips", "snips", "dr", "sndr"):
        raise DataError(f"estimator == {estimator!r}, must be one with an interval: 'ips', 'snips', 'dr' or 'sndr'")
    if not 0 < alpha < 0.5:
        raise DataError(f"alpha == {alpha:g}, must be in (0, 0.5): it is one-sided")


def _rows_of(
    log: pd.DataFrame,
    split: str,
    part: str,
    features: pd.DataFrame | Sequence[str] | None,
    mu_hat: np.ndarray | None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Mask of a part's rows, and the inputs of `evaluate` for them alone."""
    mask = (log[split] == part).to_numpy(dtype=bool, na_value=False)
    if not mask.any():
        raise DataError(f"no row has {split} == {part!r}; it has {log[split].unique().tolist()[:5]}")
    own = features[mask] if isinstance(features, pd.DataFrame) else features
    return mask, {"log": log[mask], "features": own, "mu_hat": None if mu_hat is None else mu_hat[mask]}


def _effects(
    policies: Mapping[str, Threshold],
    outcomes: Sequence[Outcome],
    segments: Sequence[str],
    estimator: str,
    alpha: float,
    inputs: Mapping[str, Any],
    baseline: str = "send_none",
) -> pd.DataFrame:
    """Differences of every candidate to a baseline, with n_eff."""
    sample, targets = prepare(policies=policies, outcomes=outcomes, estimators=[estimator], **inputs)
    parts = segment_rows(inputs["log"], segments, sample.cluster)
    return evaluate_sample(sample, targets, outcomes, parts, [estimator], [baseline], alpha, values=False)


CANDIDATE_COLUMNS = ["score", "threshold", "share", "gain", "se", "lower_bound", "status"]
CONSTRAINT_COLUMNS = [
    "score",
    "threshold",
    "share",
    "constraint",
    "segment",
    "estimate",
    "margin",
    "lower_bound",
    "n_eff",
    "min_detectable_margin",
    "status",
]


def _run_sequence(
    name: str,
    best_score: np.ndarray,
    thresholds: Sequence[float],
    effects: pd.DataFrame,
    guardrails: Sequence[Guardrail],
    alpha: float,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Test candidates in order until one fails; returns candidates and tested constraints."""
    by_candidate: dict[str, list[dict[str, Any]]] = {str(i): [] for i in range(len(thresholds))}
    for effect in effects.to_dict("records"):
        if effect["policy"] in by_candidate:
            by_candidate[effect["policy"]].append({str(key): value for key, value in effect.items()})
    candidates: list[list[object]] = []
    constraints: list[list[object]] = []
    going = True
    for i, cut in enumerate(thresholds):
        own = by_candidate[str(i)]
        gain = next(e for e in own if e["outcome"] == "weighted" and e["segment"] == "")
        status, share = "not tested", float((best_score > cut).mean())
        if going:
            tested = [_constraint(e, g, alpha) for g in guardrails for e in own if e["outcome"] == g.outcome]
            constraints += [[name, cut, share, *row] for row in tested]
            going = all(row[-1] == "pass" for row in tested)
            status = "certified" if going else "failed"
        candidates.append([name, cut, share, gain["value"], gain["se"], gain["ci_lower"], status])
    return pd.DataFrame(candidates, columns=CANDIDATE_COLUMNS), pd.DataFrame(constraints, columns=CONSTRAINT_COLUMNS)


def _constraint(effect: dict[str, Any], guardrail: Guardrail, alpha: float) -> list[object]:
    """One guardrail in one segment: passes where the lower bound of the effect is >= -margin.

    A constraint that fails although the estimate is within the margin, in data that would pass a harmless policy less
    than 80% of the time, is "underpowered": it says nothing against the policy, but it does not certify it either.
    """
    margin = guardrail.margin_in(effect["segment"])
    lower = 0.0 if effect["status"] == "identical" else effect["ci_lower"]
    detectable = (normal_quantile(2 * alpha) + normal_quantile(2 * (1 - POWER))) * effect["se"]
    status = "pass" if lower >= -margin else "fail"
    if status == "fail" and not effect["value"] < -margin and not detectable <= margin:
        status = "underpowered"
    names = [guardrail.outcome, effect["segment"]]
    return [*names, effect["value"], margin, lower, effect["n_eff"], detectable, status]


def _own_cut(candidates: pd.DataFrame, own_share: Mapping[str, float]) -> int | None:
    """Row of the certified candidate nearest in volume to its score's cut at 0; of the first score that has any."""
    for score, share in own_share.items():
        certified = candidates[(candidates["score"] == score) & (candidates["status"] == "certified")]
        if len(certified):
            distance = (certified["share"] - share).abs()
            return int(certified["threshold"].abs()[distance == distance.min()].idxmin())
    return None


def _choose(
    candidates: pd.DataFrame, own: int | None, differences: pd.DataFrame
) -> tuple[pd.DataFrame, dict[str, Any] | None]:
    """Mark the own cut, or the best of those better by more than one standard error; None if its gain is not above 0.

    Args:
        candidates: of `_run_sequence`.
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


def candidate_thresholds(score: np.ndarray, shares: Sequence[float], max_share: float) -> list[float]:
    """Thresholds in order of volume: those that message about each share, and 0; none above the budget.

    Args:
        score: shape (n,), each user's best score.
        shares: of users to message.
        max_share: budget; a candidate that messages more is left out.
    """
    ordered = np.sort(score)[::-1]
    places = {int(np.floor(share * len(score) + 1e-9)) for share in shares}
    # `score > threshold`: the first score that is not messaged is the threshold; everybody needs one below all
    cuts = {float(ordered[k]) if k < len(score) else float(np.nextafter(ordered[-1], -np.inf)) for k in places}
    return sorted(
        (cut for cut in cuts | {0.0} if 0 < (score > cut).mean() <= max_share + 1e-12),
        key=lambda cut: -cut,
    )


def _reason(candidates: pd.DataFrame, own: int | None, nobody: bool, best: dict[str, Any] | None) -> str:
    if candidates.empty:
        return "nothing to certify: no threshold messages anybody within the budget; send no messages"
    if own is None:
        return "nothing certified: the smallest candidate already fails a guardrail (see the table); send no messages"
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
