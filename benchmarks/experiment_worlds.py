"""Simulated experiments with known truth, and how often their read-outs say what; experiment.py tells it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

from campaign import load_campaign
from models import Outcome, evaluate
from models.frame import read_decisions
from models.outcomes import measure_outcomes
from models.policy import Threshold
from monitoring.experiment.assign import experiment_variant
from monitoring.experiment.checks import sample_ratio_p
from monitoring.experiment.design import new_experiment
from monitoring.experiment.file import Variant
from monitoring.experiment.forecast import forecast_against_outcome, forecasts_of
from monitoring.experiment.live import outcome_frame
from monitoring.experiment.plan import ExperimentPlan, Metric, plan_of_campaign
from monitoring.experiment.power import plan_experiment
from monitoring.experiment.read import Readout, read_experiment
from simulator import OUTCOMES, World
from simulator.random_phase import random_day

SEGMENTS = np.array(["free", "premium", "trial"])
SEGMENT_SHARES = (0.6, 0.3, 0.1)
SUBSCRIPTION = Metric(name="subscription", kind="binary", role="success")
LISTENING = Metric(name="listening", kind="continuous", role="success", covariate="listening_before")
RETENTION = Metric(name="retention", kind="binary", role="guardrail", margin=0.03, segment_margin=0.10)
GUARDED = ExperimentPlan(segments=("plan",), metric=(SUBSCRIPTION, RETENTION))
EVENING = 18  # hour from which the candidate of a rehearsed experiment sends


@dataclass(frozen=True)
class Effects:
    """True effects of the treatment: on subscription (rate), on listening (hours), on retention by segment (rate)."""

    subscription: float = 0.0
    listening: float = 0.0
    retention: tuple[float, float, float] = (0.0, 0.0, 0.0)
    differing: float = 1.0  # share of users for whom the variants decide differently; the effects are on these


def draw(rng: np.random.Generator, n: int, effects: Effects = Effects(), control: float = 0.5) -> pd.DataFrame:
    """One experiment's table: activity moves subscription, retention and listening together, as in real logs."""
    activity = rng.standard_normal(n)
    plan = rng.choice(len(SEGMENTS), n, p=SEGMENT_SHARES)
    treated = rng.random(n) >= control
    differs = rng.random(n) < effects.differing
    moved = (treated & differs).astype(float)
    retained = 0.80 + 0.08 * np.tanh(activity) + np.take(effects.retention, plan) * moved
    subscribed = 0.06 + 0.03 * np.tanh(activity) + effects.subscription * moved
    return pd.DataFrame(
        {
            "user_id": np.arange(n),
            "variant": np.where(treated, "treatment", "control"),
            "plan": SEGMENTS[plan],
            "differs": differs,
            "subscription": (rng.random(n) < subscribed).astype(float),
            "retention": (rng.random(n) < retained).astype(float),
            "listening": 5 + 2 * activity + 1.5 * rng.standard_normal(n) + effects.listening * moved,
            "listening_before": 5 + 2 * activity + 1.5 * rng.standard_normal(n),
        }
    )


def read_at_looks(frame: pd.DataFrame, plan: ExperimentPlan) -> list[Readout]:
    """Readings at every planned look until one ships or rolls back, as a live experiment is read."""
    readouts = []
    for fraction in plan.fractions:
        readouts.append(read_experiment(frame.iloc[: round(fraction * len(frame))], plan))
        if readouts[-1].decision != "hold":
            break
    return readouts


def decisions(n_experiments: int, n: int, plan: ExperimentPlan, effects: Effects, seed: int) -> dict[str, int]:
    """How often simulated experiments of n users end in each decision."""
    rng = np.random.default_rng(seed)
    plan = plan.model_copy(update={"planned_users": n})
    counts = dict.fromkeys(("ship", "hold", "rollback"), 0)
    for _ in range(n_experiments):
        counts[read_at_looks(draw(rng, n, effects), plan)[-1].decision] += 1
    return counts


def reread(n_experiments: int, n: int, seed: int, readings: int = 10, *, days: bool) -> tuple[int, int]:
    """A/A experiments of n planned users, read at their end and on, up to twice as many users.

    Returns: experiments that ship at the end; at the end or at any later reading. With `days`, 300 users enter a day
    and the table says when, as a live experiment does; without, nothing tells who was first.
    """
    rng, plan = np.random.default_rng(seed), ExperimentPlan(metric=(SUBSCRIPTION,), planned_users=n)
    first, ever = 0, 0
    for _ in range(n_experiments):
        frame = draw(rng, 2 * n)
        frame = frame.assign(day=frame.index // 300) if days else frame
        users = np.linspace(n, 2 * n, readings + 1).astype(int)
        shipped = [read_experiment(frame.iloc[:k], plan).decision == "ship" for k in users]
        first, ever = first + shipped[0], ever + any(shipped)
    return first, ever


def planned(effects: Effects, looks: int, seed: int) -> tuple[ExperimentPlan, float]:
    """The plan for a candidate with these effects, from the outcomes of 50,000 users; and the promised probability."""
    history = draw(np.random.default_rng(seed), 50_000).assign(variant="control")
    report = plan_experiment(
        history, GUARDED.model_copy(update={"looks": looks}), {"subscription": effects.subscription}
    )
    return report.plan, report.ship_probability


def srm_alarms(n_experiments: int, seed: int) -> dict[str, int]:
    """Healthy experiments in which each sample-ratio check fails at p < 0.05."""
    rng = np.random.default_rng(seed)
    plan = GUARDED.model_copy(update={"srm_p": 0.05})
    failed: dict[str, int] = {"overall": 0, "by day": 0, "by segment": 0}
    for _ in range(n_experiments):
        frame = draw(rng, 2000)
        checks = read_experiment(frame.assign(day=np.arange(2000) * 7 // 2000), plan).checks
        for name, passed in zip(("overall", "by day", "by segment"), checks["passed"], strict=True):
            failed[name] += not passed
    return failed


def srm_nominal(draws: int, seed: int) -> int:
    """Healthy experiments with an overall alarm at the default p < 0.001."""
    treated = np.random.default_rng(seed).binomial(20_000, 0.5, draws)
    return int(np.sum(sample_ratio_p(np.column_stack([20_000 - treated, treated]), np.array([0.5, 0.5])) < 0.001))


def untriggered_alarms(n_experiments: int, n: int, outside: float, seed: int) -> int:
    """Experiments whose trigger (30% of users) fails its check when subscription also moves by `outside` elsewhere."""
    rng = np.random.default_rng(seed)
    plan, failed = ExperimentPlan(metric=(SUBSCRIPTION, LISTENING, RETENTION), trigger="differs"), 0
    for _ in range(n_experiments):
        frame = draw(rng, n, Effects(subscription=outside)).assign(differs=rng.random(n) < 0.3)
        failed += not read_experiment(frame, plan).checks.set_index("check").loc["untriggered", "passed"]
    return failed


def triggered_agreement(n_experiments: int, n: int, seed: int) -> dict[str, float]:
    """Triggered against untriggered analysis of the same experiments, 30% of users differing, true effect known."""
    rng = np.random.default_rng(seed)
    effects = Effects(subscription=0.03, differing=0.3)
    plain = ExperimentPlan(metric=(SUBSCRIPTION,))
    triggered = plain.model_copy(update={"trigger": "differs"})
    rows = []
    for _ in range(n_experiments):
        frame = draw(rng, n, effects)
        for plan in (plain, triggered):
            row = read_experiment(frame, plan).table.iloc[0]
            rows.append((row["effect_size"], row["ci_lower"], row["ci_upper"]))
    values = np.array(rows).reshape(n_experiments, 2, 3)
    gap = values[:, 1, 0] - values[:, 0, 0]
    truth = effects.subscription * effects.differing
    return {
        "difference": float(gap.mean()),
        "difference_se": float(gap.std(ddof=1) / math.sqrt(n_experiments)),
        "width_ratio": float(np.mean((values[:, 1, 2] - values[:, 1, 1]) / (values[:, 0, 2] - values[:, 0, 1]))),
        "covered_plain": float(np.sum((values[:, 0, 1] <= truth) & (truth <= values[:, 0, 2]))),
        "covered_triggered": float(np.sum((values[:, 1, 1] <= truth) & (truth <= values[:, 1, 2]))),
    }


def cuped_reduction(n_experiments: int, n: int, seed: int) -> dict[str, float]:
    """Variance of the effect over experiments, and planned users, with CUPED over without; theory is 1 - rho**2."""
    rng = np.random.default_rng(seed)
    plans = [
        ExperimentPlan(metric=(LISTENING.model_copy(update={"covariate": c}),)) for c in (None, "listening_before")
    ]
    effects = np.array(
        [
            [read_experiment(frame, plan).table["effect_size"].iloc[0] for plan in plans]
            for frame in (draw(rng, n) for _ in range(n_experiments))
        ]
    )
    history = draw(rng, 50_000)
    users = [plan_experiment(history, plan, {"listening": 0.1}).users for plan in plans]
    variance = effects.var(axis=0, ddof=1)
    return {
        "theory": 1 - (4 / 6.25) ** 2,  # activity explains 4 of 6.25 in both periods
        "variance_ratio": float(variance[1] / variance[0]),
        "users_ratio": users[1] / users[0],
    }


def offline_log(rng: np.random.Generator, n: int) -> pd.DataFrame:
    """A decision log with 10% holdout, 10% exploration and a champion that messages 60%: what evaluation sees."""
    score = rng.standard_normal(n)
    propensity_of_message = np.where(score > -0.25, 0.85, 0.05)
    arm = (rng.random(n) < propensity_of_message).astype(int)
    outcomes = message_outcomes(rng, score, arm)
    propensity = np.where(arm == 1, propensity_of_message, 1 - propensity_of_message)
    log = pd.DataFrame({"user_id": np.arange(n), "score": score, "arm": arm, "propensity": propensity})
    return log.assign(**outcomes)


def message_outcomes(rng: np.random.Generator, score: np.ndarray, arm: np.ndarray) -> dict[str, np.ndarray]:
    """Outcomes of users with a known score under an arm: a message helps those with a high score, tires the others."""
    subscribed = 0.05 + arm * np.clip(0.015 + 0.015 * score, -0.02, 0.05)
    listening = 5 + score + arm * (0.1 + 0.1 * score)
    return {
        "subscription": (rng.random(len(score)) < subscribed).astype(float),
        "listening": listening + 2 * rng.standard_normal(len(score)),
    }


def forecast_coverage(n_experiments: int, n_offline: int, n_live: int, seed: int) -> pd.DataFrame:
    """Offline forecast of a threshold policy against send-all, then the live test of the same two policies.

    Returns: one row per experiment and metric, as from `forecast_against_outcome`.
    """
    rng = np.random.default_rng(seed)
    plan = ExperimentPlan(metric=(SUBSCRIPTION, LISTENING.model_copy(update={"covariate": None})))
    outcomes = [Outcome("subscription", "binary", 12.0), Outcome("listening", "continuous", 0.05)]
    compared = []
    for _ in range(n_experiments):
        log = offline_log(rng, n_offline)
        policy = {"candidate": Threshold("score", 0.5)}
        evaluation = evaluate(log, policy, outcomes, features=["score"], estimators=("dr",))
        forecasts = forecasts_of(evaluation, "candidate", "send_all", "treatment")
        score, treated = rng.standard_normal(n_live), rng.random(n_live) < 0.5
        arm = np.where(treated, score > 0.5, True).astype(int)
        live = pd.DataFrame({"user_id": np.arange(n_live), "variant": np.where(treated, "treatment", "control")})
        compared.append(forecast_against_outcome(forecasts, live.assign(**message_outcomes(rng, score, arm)), plan))
    return pd.concat(compared, ignore_index=True)


def rehearsed_experiment(seed: int, users: int, root: Path) -> pd.DataFrame:
    """One experiment on the simulated platform: forecast from its random phase, live test two windows later.

    Offline are the decisions of world day 28 (random arms), evaluated doubly robust against sending nothing; the same
    users decide again on day 84 in the variant that the service's hash gives them. All outcomes are measured from the
    raw logs, the live ones with the window before as covariate.

    Returns: one row per metric, as from `forecast_against_outcome`, and the live effect's `truth`.
    """
    campaign, live_day, end = load_campaign(), 84, date(2026, 11, 23)
    world = World(root, users, live_day + 32, seed, end=end, messages=campaign.arm_names[1:], phase_step=28)
    while world.day < live_day:
        random_day(world, 0, campaign.assignment.holdout_share)
    today = datetime.combine(world.date, datetime.min.time(), UTC)
    variants = [
        Variant(name="send_none", policy="send_none", share=0.5),
        Variant(name="evening", policy="send_all", share=0.5),
    ]
    plan = plan_of_campaign(campaign, "send_none", ["evening"]).model_copy(update={"segments": ()})
    experiment = new_experiment(root, campaign, f"seed-{seed}", variants, plan, share=1.0, starts_at=today)
    log = read_decisions(root / "decisions")
    log = log[log["decided_at"] < today - timedelta(days=40)].reset_index(drop=True)
    log = log.join(measure_outcomes(log, root / "logs", campaign.outcome, today)).assign(evening=log["hour"] >= EVENING)
    outcomes = [Outcome(f"y_{o.name}", o.kind, o.weight) for o in campaign.outcome]
    policy = {"evening": np.column_stack([~log["evening"], log["evening"]]).astype(float)}
    evaluation = evaluate(
        log, policy, outcomes, features=["hour", "surface"], estimators=("dr",), baselines=("send_none",)
    )
    evaluation["outcome"] = evaluation["outcome"].str.removeprefix("y_")
    forecasts = forecasts_of(evaluation, "evening", "send_none", "evening")
    due = world.due()
    variant = experiment_variant(experiment, due.user_ids.tolist())
    sent = due.hour >= EVENING
    world.decide(np.where((variant == 1) & sent, 1, 0))
    for _ in range(31):
        world.advance()  # outcomes close with the window: what is decided on its last day no longer counts
        if len(world.due().user_ids):
            world.decide(np.zeros(len(world.due().user_ids), dtype=np.int64))
    decided = pd.DataFrame({"user_id": due.user_ids, "decided_at": pd.to_datetime(due.decided_at, utc=True)})
    frame = outcome_frame(decided, campaign, root / "logs", datetime.combine(world.date, datetime.min.time(), UTC))
    frame = frame.assign(user_id=due.user_ids, variant=np.array(["send_none", "evening"])[variant])
    truth = ((due.truth[:, 1] - due.truth[:, 0]) * sent[:, None]).mean(axis=0)
    names = dict(zip(OUTCOMES, truth, strict=True))
    true = {o.name: names[o.measure] for o in campaign.outcome}
    compared = forecast_against_outcome(forecasts, frame, plan)
    return compared.assign(truth=compared["metric"].map(true), seed=seed)
