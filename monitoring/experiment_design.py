"""What to test, and what offline evaluation expects of it: variants beside the champion, and their forecasts.

Thresholds are proposed from `select` users and forecasts come from `evaluate` users, both strangers to the network, so
a forecast is not flattered by the choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from campaign import Campaign, CampaignError, DataError
from models.challenger import evaluation_log, evaluation_outcomes
from models.curves import gain_curve
from models.evaluation import evaluate
from models.predictions import mu_hat_of
from models.report import score_effect
from monitoring.experiment_assign import arms_of
from monitoring.experiment_file import Forecast, Variant
from monitoring.experiment_forecast import forecasts_of


def candidates(
    campaign: Campaign,
    frame: pd.DataFrame,
    control: Variant,
    *,
    thresholds: Sequence[float] = (),
    weights: Mapping[str, float] | None = None,
    ladder: bool = False,
) -> tuple[Variant, ...]:
    """Control and the candidates, with equal shares.

    Candidates are the ladder of thresholds from the offline gain curve, the thresholds and weights that were named, or
    the champion as it is. A champion is tested against nothing but other thresholds or weights of its own.

    Args:
        campaign: outcomes and weights.
        frame: the champion's frame.parquet.
        control: the baseline policy.
        thresholds: EUR, each a candidate.
        weights: outcome -> EUR per unit, of every candidate with a threshold; default: the campaign's.
        ladder: propose thresholds.
    """
    unknown = set(weights or {}) - set(campaign.outcome_names)
    if unknown:
        raise CampaignError(f"weights of {sorted(unknown)}: outcomes are {list(campaign.outcome_names)}")
    own = None
    if weights:
        default = dict(zip(campaign.outcome_names, campaign.weights, strict=True))
        own = tuple({**default, **weights}.values())
        thresholds = thresholds or (0.0,)
    if not thresholds and (ladder or control.policy == "champion"):
        chosen = frame[frame["split"] == "select"]
        curve = gain_curve(chosen["score"].to_numpy(), score_effect(campaign, chosen, _mu_hat(campaign, chosen)))
        score, sent = frame["score"].to_numpy(), frame["policy_arm"].to_numpy() > 0
        rungs = threshold_ladder(chosen["score"].to_numpy(), curve)["threshold"]
        # the champion's own rung is in the test already where it is the control
        thresholds = [t for t in rungs if control.policy != "champion" or ((score > t) != sent).any()]
        if not thresholds:
            raise CampaignError("the gain curve has no threshold but the champion's own: name others with --threshold")
    names = [f"threshold_{t:.3f}".replace("-", "minus") + ("_reweighted" if own else "") for t in thresholds]
    share = 1 / (1 + max(1, len(names)))
    found = [
        Variant(name=name, policy="threshold", share=share, threshold=t, weights=own)
        for name, t in zip(names, thresholds, strict=True)
    ] or [Variant(name="champion", policy="champion", share=share)]
    return (control.model_copy(update={"share": share}), *found)


def threshold_ladder(score: np.ndarray, curve: pd.DataFrame, keep: float = 0.9) -> pd.DataFrame:
    """A short ladder of thresholds worth testing, from the offline gain curve.

    The best one, the one with the fewest messages that keeps most of its gain, and the one with the most messages
    that does: the offline curve is flat near its top, and only live users can tell these apart.

    Args:
        score: shape (n,), EUR, of the users the curve was made from.
        curve: from models.curves.gain_curve: columns share (of users messaged) and gain (over sending to nobody).
        keep: part of the best gain that a rung must keep.

    Returns: one to three rows with columns threshold (EUR; message when score > threshold), share, gain; fewest
        messages first.
    Raises: CampaignError: no threshold gains anything.
    """
    rungs = curve[["share", "gain"]].sort_values("share", ignore_index=True)
    best = rungs["gain"].idxmax()
    if not rungs["gain"].max() > 0:
        raise CampaignError(
            f"gain curve: the best gain is {rungs['gain'].max():g}, must be > 0: no threshold beats send-none"
        )
    near = rungs.index[rungs["gain"] >= keep * rungs["gain"].max()]
    rungs = rungs.loc[sorted({near[0], best, near[-1]})]
    rungs.insert(0, "threshold", np.quantile(score, 1 - rungs["share"]))
    return rungs.reset_index(drop=True)


def offline_forecasts(
    campaign: Campaign, frame: pd.DataFrame, variants: Sequence[Variant], model_tag: str
) -> tuple[Forecast, ...]:
    """Every candidate's difference to control on the `evaluate` users, doubly robust, with 95% intervals.

    Args:
        campaign: outcomes, weights and costs.
        frame: the champion's frame.parquet.
        variants: control first.
        model_tag: the champion.

    Raises: CampaignError: two variants decide alike about all these users.
    """
    rows = frame[frame["split"] == "evaluate"].reset_index(drop=True)
    if rows.empty:
        raise DataError("frame.parquet has no evaluate users; train again")
    mu_hat = _mu_hat(campaign, rows)
    segments = {column: rows[column].to_numpy() for column in campaign.segments.columns}
    arms = arms_of(
        variants,
        rows["policy_arm"].to_numpy(dtype=np.int64),
        mu_hat[:, 1:] - mu_hat[:, :1],
        np.array(campaign.weights),
        np.array(campaign.costs[1:]),
        segments,
    )
    known: dict[bytes, str] = {}
    for k, v in enumerate(variants):
        twin = known.setdefault(np.ascontiguousarray(arms[:, k]).tobytes(), v.name)
        if twin != v.name:
            raise CampaignError(f"{twin} and {v.name} decide alike about all {len(rows)} evaluate users: drop one")
    policies = {f"variant {v.name}": np.eye(len(campaign.arm))[arms[:, k]] for k, v in enumerate(variants)}
    values = evaluate(
        evaluation_log(campaign, rows),
        policies,
        evaluation_outcomes(campaign),
        mu_hat=mu_hat,
        estimators=("dr",),
        costs=campaign.costs,
        baselines=(f"variant {variants[0].name}",),
    )
    told = [
        forecasts_of(values, f"variant {v.name}", f"variant {variants[0].name}", v.name, model_tag=model_tag)
        for v in variants[1:]
    ]
    return tuple(forecast for candidate in told for forecast in candidate)


def expected_effects(campaign: Campaign, forecasts: Sequence[Forecast]) -> dict[str, float]:
    """Metric -> effect of the candidate with the highest forecast in EUR: what the sample size is planned for."""
    weight = dict(zip(campaign.outcome_names, campaign.weights, strict=True))
    by_variant: dict[str, dict[str, float]] = {}
    for f in forecasts:
        by_variant.setdefault(f.variant, {})[f.metric] = f.value
    return max(by_variant.values(), key=lambda effects: sum(weight[m] * e for m, e in effects.items()))


def _mu_hat(campaign: Campaign, frame: pd.DataFrame) -> np.ndarray:
    return mu_hat_of(frame, campaign.arm_names, campaign.outcome_names)
