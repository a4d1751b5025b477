"""Plan a live experiment: its candidates, its size, and the file that assigns.

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

from campaign import Campaign, CampaignError, validated
from models.curves import gain_curve
from models.predictions import mu_hat_of
from models.report import score_effect
from monitoring.experiment.file import Experiment, Forecast, Variant, read_experiments, write_experiment
from monitoring.experiment.forecast import expected_effects, offline_forecasts
from monitoring.experiment.live import outcome_frame
from monitoring.experiment.plan import ExperimentPlan, plan_of_campaign
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
        thresholds: money, each a candidate.
        weights: outcome -> money per unit, of every candidate with a threshold; default: the campaign's.
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
        curve = gain_curve(
            chosen["score"].to_numpy(),
            score_effect(campaign, chosen, mu_hat_of(chosen, campaign.arm_names, campaign.outcome_names)),
        )
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
        score: shape (n,), money, of the users the curve was made from.
        curve: from models.curves.gain_curve: columns share (of users messaged) and gain (over sending to nobody).
        keep: part of the best gain that a rung must keep.

    Returns: one to three rows with columns threshold (money; message when score > threshold), share, gain; fewest
        messages first.
    Raises: CampaignError: no threshold gains anything.
    """
    rungs = curve[["share", "gain"]].sort_values("share", ignore_index=True)
    best = rungs["gain"].idxmax()
    if not rungs["gain"].max() > 0:
        raise CampaignError(
            f"gain curve: the best gain is {rungs['gain'].max():g}, must be > 0: no threshold beats send-none; "
            "name one with --threshold, or train again with more decisions"
        )
    near = rungs.index[rungs["gain"] >= keep * rungs["gain"].max()]
    rungs = rungs.loc[sorted({near[0], best, near[-1]})]
    rungs.insert(0, "threshold", np.quantile(score, 1 - rungs["share"]))
    return rungs.reset_index(drop=True)


def new_experiment(
    folder: Path,
    campaign: Campaign,
    name: str,
    variants: Sequence[Variant],
    plan: ExperimentPlan,
    *,
    share: float,
    starts_at: datetime,
    ramp: float = 1.0,
    forecast: Sequence[Forecast] = (),
) -> Experiment:
    """Design an experiment in the first free slots of the campaign; `write_experiment` makes it live.

    Args:
        folder: the campaign's experiment files.
        campaign: the loaded campaign.
        name: of the experiment; also names its salt.
        variants: control first.
        plan: how it will be read; its variants are those of `variants`, in that order.
        share: of users outside the holdout and exploration, all variants together, at full ramp.
        starts_at: nobody is enrolled before.
        ramp: part of the share that is enrolled at the start.
        forecast: what offline evaluation predicts.

    Raises: CampaignError: shares over 1, no interval of that size is free, or a variant does not fit the campaign.
    """
    _check_variants(variants, campaign)
    values = {
        "name": name,
        "campaign_hash": campaign.hash,
        "salt": f"{campaign.name}/experiment/{name}",
        "slot_salt": f"{campaign.name}/experiment-slots/1",
        "slots": _free_slots(read_experiments(folder), share, name),
        "variants": [v.model_dump() for v in variants],
        "starts_at": starts_at,
        "plan": plan.model_dump(mode="json"),
        "forecast": [f.model_dump() for f in forecast],
        "ramp": ramp,
        "history": [{"at": starts_at, "state": "running", "ramp": ramp}],
    }
    return validated(Experiment, values, Path(f"experiment {name}"))


def _check_variants(variants: Sequence[Variant], campaign: Campaign) -> None:
    """What the service could not decide by must be refused here, not at a request."""
    for v in variants:
        if v.arm >= len(campaign.arm):
            raise CampaignError(f"variant {v.name}: arm == {v.arm}, must be below {len(campaign.arm)}")
        if v.weights is not None and len(v.weights) != len(campaign.outcome):
            raise CampaignError(
                f"variant {v.name}: weights == {list(v.weights)}, must be {len(campaign.outcome)}: one per outcome"
            )
        if unknown := set(v.rule or {}) - set(campaign.segments.columns):
            raise CampaignError(
                f"variant {v.name}: rule on {sorted(unknown)}, known segments: {list(campaign.segments.columns)}"
            )


def _free_slots(experiments: Sequence[Experiment], share: float, name: str) -> tuple[float, float]:
    if not 0 < share <= 1:
        raise CampaignError(f"share == {share:g}, must be in (0, 1]: it is a share of users")
    taken = sorted(e.slots for e in experiments if e.state != "ended" and e.name != name)
    start = 0.0
    for low, high in [*taken, (1.0, 1.0)]:
        if start + share <= low + 1e-12:
            return (start, min(1.0, start + share))
        start = max(start, high)
    held = ", ".join(f"{e.name} holds {e.slots[0]:g} to {e.slots[1]:g}" for e in experiments if e.state != "ended")
    raise CampaignError(
        f"share == {share:g}: with the running experiments the shares sum to over 1, or leave no gap that large "
        f"({held}); end one of them, or ask for a smaller share"
    )
