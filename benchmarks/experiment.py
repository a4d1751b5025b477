"""What the experiment read-out promises, measured on simulated experiments with known truth.

    .venv/bin/python benchmarks/experiment.py [aa|srm|power|triggered|cuped|forecast|rehearsed ...]

Writes the section `experiment` of docs/benchmarks.md. One process, about 4 minutes of one core; `rehearsed` takes 11
more, in pieces, and runs only when it is named. Every figure carries its Monte-Carlo standard error and its seed. Small
versions of the same functions run in the tests.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from campaign import data_dir, load_campaign
from feature_repo.atomic import write_text
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
REHEARSED = 300
PIECE_SECONDS = 420  # a run that has not finished by then keeps what it has, and says so
Row = tuple[str, str, str]  # promise, target, measured
DOCS = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"


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


def rate(hits: float, n: int, digits: int = 3) -> str:
    """A share of n and its Monte-Carlo standard error (not 0 at a share of 0)."""
    share = hits / n
    return f"{share:.{digits}f} (SE {math.sqrt(max(share, 1 / n) * (1 - share) / n):.{digits}f})"


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


def rehearsed_forecasts() -> list[Row]:
    """Offline forecast against live outcome on the simulated platform; finished seeds are kept and not run again."""
    kept = data_dir() / "benchmarks" / "rehearsed"
    kept.mkdir(parents=True, exist_ok=True)
    began, seeds = time.monotonic(), range(1000, 1000 + REHEARSED)
    for seed in seeds:
        if (kept / f"{seed}.csv").exists():
            continue
        if time.monotonic() - began > PIECE_SECONDS:
            raise SystemExit(f"{len(list(kept.glob('*.csv')))} of {REHEARSED} experiments; run it again to go on")
        with TemporaryDirectory() as folder:
            rows = rehearsed_experiment(seed, 4000, Path(folder))
        rows.to_csv(kept / f"{seed}.csv", index=False)
    compared = pd.concat([pd.read_csv(kept / f"{seed}.csv") for seed in seeds])
    rows = []
    for metric, part in [*compared.groupby("metric"), ("all metrics", compared)]:
        share, se = part["covered"].mean(), part.groupby("seed")["covered"].mean().std(ddof=1) / math.sqrt(REHEARSED)
        what = f"95% interval of live minus forecast covers 0, {metric}, {REHEARSED} experiments of 4,000 users"
        rows.append((what, ".95 +- .02", f"{share:.3f} (SE {se:.3f})"))
    inside = (compared["live_lower"] <= compared["truth"]) & (compared["truth"] <= compared["live_upper"])
    rows.append(("95% live interval covers the true effect, all metrics", ".95", rate(inside.sum(), len(inside))))
    return rows


def told(what: str, target: str, counts: dict[str, int], decision: str = "ship") -> Row:
    """A row with the share of one decision."""
    return (f"{what}: {decision}", target, rate(counts[decision], sum(counts.values())))


def no_effect() -> list[Row]:
    """A/A experiments: how often they ship or alarm."""
    one_metric, five_looks = ExperimentPlan(metric=(SUBSCRIPTION,)), {"looks": 5}
    aa = "A/A, 1,000 experiments of 4,000 users, one success metric"
    on = "read at the end and 10 times past it, up to 8,000 users"
    rows = []
    for days, how in ((True, "day of entry in the table"), (False, "no days")):
        first, ever = reread(1000, 4000, 21, days=days)
        rows.append((f"{aa}, {on}, {how}: ship at the end", "<= .05 (.025 planned)", rate(first, 1000)))
        rows.append((f"{aa}, {on}, {how}: ship at any reading", "<= .05", rate(ever, 1000)))
    return [
        told(f"{aa}, 1 look", "<= .05 (.025 planned)", decisions(1000, 4000, one_metric, Effects(), 11)),
        told(
            f"{aa}, 5 looks",
            "<= .05 (.025 planned)",
            decisions(1000, 4000, one_metric.model_copy(update=five_looks), Effects(), 12),
        ),
        told(
            "A/A, 500 experiments of 4,000 users, guardrail in 3 segments, 5 looks",
            "<= .05",
            decisions(500, 4000, GUARDED.model_copy(update=five_looks), Effects(), 13),
            "rollback",
        ),
        *rows,
    ]


def sample_ratios() -> list[Row]:
    """Alarms of the sample-ratio checks when nothing is wrong."""
    rows = [("alarm at p < .001, overall, 200,000 draws", ".001", rate(srm_nominal(200_000, 14), 200_000, 5))]
    treated = np.random.default_rng(14).binomial(200, 0.1, (20_000, 30))
    days = sample_ratio_p(np.column_stack([200 - treated.ravel(), treated.ravel()]), np.array([0.9, 0.1]))
    by_day = int((days.reshape(20_000, 30).min(axis=1) < 0.001 / 30).sum())
    what = "alarm at p < .001, 30 days of 200 users, 10% treated, 20,000 draws"
    rows.append((what, "<= .001", rate(by_day, 20_000, 5)))
    for name, failed in srm_alarms(2000, 15).items():
        rows.append((f"alarm at p < .05, {name}, 2,000 experiments", ".05", rate(failed, 2000)))
    return rows


def power_and_harm() -> list[Row]:
    """A good candidate at the planned size, and the same one harming retention in a segment of 10% of users."""
    good, rows = Effects(subscription=0.02), []
    for looks, seed in ((1, 16), (5, 17)):
        plan, promised = planned(good, looks, seed)
        users = plan.planned_users or 0
        counts = decisions(1000, users, plan, good, seed + 100)
        what = f"{looks} look(s), {users} users planned for +2 pp"
        rows.append(told(f"{what}, promised {promised:.3f}, 1,000 experiments", ">= .80 +- .04", counts))
        for harm in (0.10, 0.15):
            harmful = Effects(subscription=0.02, retention=(0.0, 0.0, -harm))
            counts = decisions(400, users, plan, harmful, seed + 200)
            what = f"{looks} look(s), retention -{100 * harm:.0f} pp in one segment (margin 10 pp), 400 experiments"
            rows.append(told(what, "<= .05", counts))
    return rows


def triggered_analysis() -> list[Row]:
    """Triggered against untriggered analysis."""
    n = 2000
    found = triggered_agreement(n, 8000, 18)
    difference = f"{found['difference']:+.6f} (SE {found['difference_se']:.6f})"
    coverage = " / ".join(rate(found[key], n) for key in ("covered_plain", "covered_triggered"))
    outside = "check of effects outside the trigger fails, 70% of 8,000 users outside, 500 experiments"
    return [
        (f"triggered minus untriggered effect (truth .009), 30% differ, {n:,} experiments", "0 +- 2 SE", difference),
        ("width, triggered over untriggered", "< 1; .59 by theory", f"{found['width_ratio']:.3f}"),
        ("95% coverage of the true effect, untriggered / triggered", ".95", coverage),
        (f"{outside}, nothing there", ".01", rate(untriggered_alarms(500, 8000, 0.0, 22), 500)),
        (f"{outside}, +2 pp there", "(power)", rate(untriggered_alarms(500, 8000, 0.02, 23), 500)),
    ]


def variance_reduction() -> list[Row]:
    """CUPED against theory."""
    found = cuped_reduction(1000, 1000, 19)
    theory = f"{found['theory']:.3f} +- 10%"
    return [
        ("variance of the effect over 1,000 experiments, with / without", theory, f"{found['variance_ratio']:.3f}"),
        ("planned users, with / without", theory, f"{found['users_ratio']:.3f}"),
    ]


def forecasts() -> list[Row]:
    """Offline forecast against live outcome."""
    n = 1000
    compared = forecast_coverage(n, 10_000, 8000, 20)
    rows = []
    for metric, part in [*compared.groupby("metric"), ("both metrics", compared)]:
        told = rate(part["covered"].sum(), len(part))
        rows.append((f"95% interval of live minus forecast covers 0, {metric}", ".95 +- .02", told))
    first = rate(compared.iloc[:600]["covered"].sum(), 600)
    return [*rows, ("the same, first 300 of these 1,000 experiments", ".95 +- .02", first)]


GROUPS: dict[str, tuple[str, Callable[[], list[Row]]]] = {
    "aa": ("No effect", no_effect),
    "srm": ("Sample ratio", sample_ratios),
    "power": ("Good and harmful candidates", power_and_harm),
    "triggered": ("Triggered analysis", triggered_analysis),
    "cuped": ("CUPED", variance_reduction),
    "forecast": ("Forecast against outcome", forecasts),
    "rehearsed": ("Forecast against outcome on the simulated platform", rehearsed_forecasts),
}


def write_section(file: Path, name: str, text: str) -> None:
    """Replace one section between its markers, or append it; other sections stay as they are."""
    old = file.read_text(encoding="utf-8") if file.exists() else "# Benchmarks\n"
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    section = f"{start}\n{text.strip()}\n{end}"
    if start in old and end in old:
        new = old[: old.index(start)] + section + old[old.index(end) + len(end) :]
    else:
        new = f"{old.rstrip()}\n\n{section}\n"
    write_text(file, new)


def _own_place(name: str) -> None:
    """Markers of a group that the section of experiments does not have yet, at its end."""
    text, end = DOCS.read_text(encoding="utf-8"), "<!-- /experiment -->"
    if f"<!-- experiment {name} -->" not in text:
        write_text(DOCS, text.replace(end, f"\n<!-- experiment {name} -->\n<!-- /experiment {name} -->\n{end}", 1))


def main(names: Sequence[str]) -> None:
    """Measure the named groups (default: all but `rehearsed`) and write their tables."""
    if "<!-- experiment -->" not in (DOCS.read_text(encoding="utf-8") if DOCS.exists() else ""):
        tables = "\n\n".join(f"<!-- experiment {name} -->\n<!-- /experiment {name} -->" for name in GROUPS)
        intro = (
            "`python benchmarks/experiment.py [GROUP ...]`; one core, seeds 11 to 20 (`rehearsed`: 1000 to 1299); SE: "
            "Monte-Carlo standard error."
        )
        write_section(DOCS, "experiment", f"## Live experiments\n\n{intro}\n\n{tables}")
    for name in names or [group for group in GROUPS if group != "rehearsed"]:
        _own_place(name)
        title, measured = GROUPS[name]
        began = time.process_time()
        rows = measured()
        head = [f"### {title} (`{name}`, {time.process_time() - began:.0f} s)", ""]
        head += ["| promise | target | measured |", "| --- | --- | --- |"]
        text = "\n".join([*head, *(f"| {what} | {target} | {found} |" for what, target, found in rows)])
        write_section(DOCS, f"experiment {name}", text)
        print(f"{text}\n", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
