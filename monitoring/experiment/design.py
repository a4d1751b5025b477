"""Plan a live experiment: its candidates, what offline evaluation expects of them, its size, and the file that assigns.

Thresholds are proposed from `select` users and forecasts come from `evaluate` users, both strangers to the network, so
a forecast is not flattered by the choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from campaign import Campaign, CampaignError, DataError
from models.challenger import evaluation_log, evaluation_outcomes
from models.curves import gain_curve
from models.evaluation import evaluate
from models.predictions import mu_hat_of
from models.report import score_effect
from monitoring.experiment.assign import arms_of
from monitoring.experiment.file import Experiment, Forecast, Variant, new_experiment, write_experiment
from monitoring.experiment.live import outcome_frame
from monitoring.experiment.plan import plan_of_campaign
from monitoring.experiment.power import PlannedExperiment, plan_experiment


def plan_for_champion(
    campaign: Campaign,
    data: Path,
    tag: str,
    name: str,
    control: Variant,
    *,
    as_of: datetime,
    ladder: bool = False,
    thresholds: Sequence[float] = (),
    weights: Mapping[str, float] | None = None,
    effects: Mapping[str, float] | None = None,
    **options: Any,
) -> tuple[Experiment, PlannedExperiment]:
    """Plan candidates of the champion against a baseline, from the champion's own frame: what the command does.

    Args:
        campaign: the loaded campaign.
        data: the data folder.
        tag: the champion.
        name: of the experiment.
        control: the baseline.
        as_of: events that arrived at this instant or later are not known yet.
        ladder: as for `candidates`, and so are thresholds and weights.
        thresholds: see above.
        weights: see above.
        effects: metric -> absolute effect to plan for; default: the best candidate's offline forecast.
        options: of `plan_live`: share, starts_at, looks, power, ramp.
    """
    frame = pd.read_parquet(data / "reports" / tag.replace(":", "-") / "frame.parquet")
    variants = candidates(campaign, frame, control, thresholds=thresholds, weights=weights, ladder=ladder)
    forecast = offline_forecasts(campaign, frame, variants, tag)
    history = planning_frame(frame, campaign, data / "logs", as_of)
    wanted = effects or expected_effects(campaign, forecast)
    return plan_live(campaign, data / "experiments", name, variants, history, wanted, forecast=forecast, **options)


def plan_live(
    campaign: Campaign,
    folder: Path,
    name: str,
    variants: Sequence[Variant],
    history: pd.DataFrame,
    effects: Mapping[str, float],
    *,
    share: float,
    starts_at: datetime,
    looks: int = 1,
    power: float = 0.8,
    ramp: float = 1.0,
    forecast: Sequence[Forecast] = (),
) -> tuple[Experiment, PlannedExperiment]:
    """Plan an experiment from the users' own past and write its file, which the service picks up.

    Args:
        campaign: metrics, margins, segments, alpha and windows.
        folder: `experiments` under the data folder.
        name: of the experiment.
        variants: control (the baseline policy) first.
        history: from `planning_frame`, one row per user of the platform.
        effects: metric -> expected absolute effect of a candidate.
        share: of users outside holdout and exploration, all variants together.
        starts_at: first day.
        looks: planned readings.
        power: wanted probability that such a candidate ships.
        ramp: part of the share that is enrolled at the start.
        forecast: what offline evaluation predicts, to be compared with the outcome.

    Raises: CampaignError: no sample size reaches the power, there are not enough users, or no slots are free.
    """
    names = [v.name for v in variants]
    shares = [v.share for v in variants]
    plan = plan_of_campaign(campaign, names[0], names[1:], shares=shares, looks=looks, exposure="received")
    free = 1 - campaign.assignment.holdout_share - campaign.assignment.exploration_share
    available = int(len(history) * free * share)
    planned = plan_experiment(
        history,
        plan,
        effects,
        power=power,
        users_per_day=available / campaign.assignment.window_days,  # a user decides once per window
        matures_after_days=campaign.matures_after_days,
        available_users=available,
    )
    experiment = new_experiment(
        folder, campaign, name, variants, planned.plan, share=share, starts_at=starts_at, ramp=ramp, forecast=forecast
    )
    write_experiment(folder, experiment)
    return experiment, planned


def planning_frame(trained: pd.DataFrame, campaign: Campaign, logs_dir: Path, as_of: datetime) -> pd.DataFrame:
    """The users' own past, to plan from: each user's last matured decision with outcomes and pre-period values.

    Args:
        trained: from models.frame.training_frame: user_id, decided_at and the segment columns are used.
        campaign: outcomes and segments.
        logs_dir: raw logs.
        as_of: as for `training_frame`.
    """
    last = trained.sort_values("decided_at").drop_duplicates("user_id", keep="last").reset_index(drop=True)
    known = last[["user_id", *campaign.segments.columns]]
    return pd.concat([known, outcome_frame(last, campaign, logs_dir, as_of)], axis=1)


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


def forecasts_of(
    evaluation: pd.DataFrame, policy: str, baseline: str, variant: str, *, estimator: str = "dr", model_tag: str = ""
) -> tuple[Forecast, ...]:
    """The forecast of one candidate from the table of `models.evaluate`: everybody's difference to the baseline.

    Args:
        evaluation: from `models.evaluate` at alpha = 0.05.
        policy: name of the candidate there.
        baseline: name of the control policy there.
        variant: name of the candidate in the experiment.
        estimator: whose rows to take.
        model_tag: kept beside the forecast.

    Raises: DataError: the table has no such rows.
    """
    wanted = {"policy": policy, "baseline": baseline, "estimator": estimator, "segment": ""}
    rows = evaluation[np.logical_and.reduce([evaluation[key] == value for key, value in wanted.items()])]
    rows = rows[rows["outcome"] != "weighted"]
    if rows.empty:
        raise DataError(f"evaluation: no rows with {wanted}; it has policies {sorted(evaluation['policy'].unique())}")
    keys = ["value", "ci_lower", "ci_upper"]
    return tuple(
        Forecast(variant=variant, metric=str(outcome), value=value, ci_lower=low, ci_upper=high, model_tag=model_tag)
        for outcome, (value, low, high) in zip(
            rows["outcome"], rows[keys].astype(float).to_numpy().tolist(), strict=True
        )
    )


def expected_effects(campaign: Campaign, forecasts: Sequence[Forecast]) -> dict[str, float]:
    """Metric -> effect of the candidate with the highest forecast in EUR: what the sample size is planned for."""
    weight = dict(zip(campaign.outcome_names, campaign.weights, strict=True))
    by_variant: dict[str, dict[str, float]] = {}
    for f in forecasts:
        by_variant.setdefault(f.variant, {})[f.metric] = f.value
    return max(by_variant.values(), key=lambda effects: sum(weight[m] * e for m, e in effects.items()))


def _mu_hat(campaign: Campaign, frame: pd.DataFrame) -> np.ndarray:
    return mu_hat_of(frame, campaign.arm_names, campaign.outcome_names)
