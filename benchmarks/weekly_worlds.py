"""Platforms with known truth for benchmarks/weekly.py: quiet years, changes to find, challengers of known value."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "monitoring"))
from monitored import MONDAY, Truth, campaign, make_frame, make_inputs, make_profile  # noqa: E402

from campaign import Campaign  # noqa: E402
from monitoring.calibrate import calibrate  # noqa: E402
from monitoring.decide import Decision, Statistics, decide  # noqa: E402
from monitoring.drift import measure_drift  # noqa: E402
from monitoring.gate import judge  # noqa: E402
from monitoring.profile import count_rows  # noqa: E402
from monitoring.realised import Realised, compare, policy_gain  # noqa: E402
from monitoring.uplift_line import Uplifts, lines, uplifts  # noqa: E402
from monitoring.weekly import as_json, measure_week, record  # noqa: E402

WEEKS = 52
GATE_ROWS = 50_000
MATURED_LAG = 5  # weeks from a decision until its outcome is known


def simulate_year(
    seed: int, rows: int, truth: Truth, weeks: int = WEEKS, *, checks: bool = False, quiet: int = 0
) -> list[Decision]:
    """Weekly decisions of one platform and one champion; the decision rule is the real one, history included.

    Args:
        seed: of everything.
        rows: decisions a week; their outcomes are known MATURED_LAG weeks later.
        truth: how the platform behaves.
        weeks: to simulate.
        checks: the whole weekly step. Else without data checks, which can only stop, and without the tables of the
            reports; every week is scored once and not once for each pool that it is in: half of the time.
        quiet: weeks before the year, from which `tactful monitor calibrate` proposes the thresholds; 0: the defaults.
    """
    rng = np.random.default_rng([seed, rows])
    profile, pool = make_profile(rng, 2 * rows), campaign().monitoring.pool_weeks
    setup = calibrated(profile, [make_frame(rng, rows, truth) for _ in range(quiet)])
    mondays = [MONDAY + timedelta(weeks=w) for w in range(-MATURED_LAG - pool, weeks)]
    recent: list[Any] = []
    history: list[dict] = []
    decisions = []
    for monday in mondays:
        frame = make_frame(rng, rows, truth, monday=monday)
        recent = [*recent[-MATURED_LAG - pool + 1 :], frame if checks else scored(frame)]
        if monday < MONDAY:
            continue
        matured = recent[:pool]
        matured_frame = pd.concat(matured) if checks else frame.iloc[:0]
        inputs = make_inputs(profile, frame, matured_frame, monday, campaign=setup)
        statistics = measure_week(inputs, history) if checks else quick_statistics(profile, frame, matured, setup)
        decision = decide(monday, inputs.champion, statistics, history, inputs.campaign)
        history.append(decision.as_dict() | record(inputs, statistics))
        decisions.append(decision)
    return decisions


def calibrated(profile: dict, weeks: Sequence[pd.DataFrame]) -> Campaign:
    """The campaign with the thresholds of drift proposed from quiet weeks; as it is without any."""
    setup, stats = campaign(), {}
    for k, frame in enumerate(weeks):
        drift = measure_drift(profile, count_rows(profile, frame), setup.monitoring)
        rows = {"name": "rows", "value": float(len(frame))}
        stats[f"week {k:02d}"] = as_json({"checks": [rows], "drift": asdict(drift)})
    if not stats:
        return setup
    found = {name: calibrate(stats, setup).proposed[name] for name in ("drift_effect", "psi_red_line")}
    return setup.model_copy(update={"monitoring": setup.monitoring.model_copy(update=found)})


def scored(frame: pd.DataFrame) -> tuple[Uplifts, np.ndarray]:
    """What realised uplift needs of a week: its rows, and the policy's arms."""
    return uplifts(frame, campaign()), frame["policy_arm"].to_numpy()


def quick_statistics(
    profile: dict, frame: pd.DataFrame, matured: Sequence[tuple[Uplifts, np.ndarray]], setup: Campaign
) -> Statistics:
    """What the decision rests on, from the functions of the weekly step."""
    drift = measure_drift(profile, count_rows(profile, frame), setup.monitoring)
    return Statistics((), drift, pooled(profile, matured))


def pooled(profile: dict, matured: Sequence[tuple[Uplifts, np.ndarray]]) -> Realised:
    """Realised uplift of some weeks, without the tables of the reports."""
    setup, weeks = campaign(), [week for week, _ in matured]
    rows = Uplifts(  # every decision is of a user of its own here
        *(np.concatenate([getattr(week, name) for week in weeks]) for name in ("predicted", "score", "arm")),
        user=np.arange(sum(len(week.user) for week in weeks)),
    )
    gain, gain_se = policy_gain(np.concatenate([arm for _, arm in matured]), rows, setup)
    tests = compare(lines(rows, setup), setup, profile["lines"])
    return Realised(len(rows.arm), (), tests, (), (), gain, gain_se)


def weeks_to_find(truth: Truth, rows: int, seed: Sequence[int], looks: int = 5, **options: Any) -> int:
    """Matured weeks after a change of the uplift until it is found; looks + 1 where it is not."""
    rng, setup = np.random.default_rng(seed), campaign()
    profile, pool = make_profile(rng, 2 * rows), setup.monitoring.pool_weeks
    matured = [scored(make_frame(rng, rows, Truth(wobble=truth.wobble), **options)) for _ in range(pool)]
    for week in range(1, looks + 1):
        frame = make_frame(rng, rows, truth, monday=MONDAY + timedelta(weeks=week), **options)
        matured = [*matured[1:], scored(frame)]
        if pooled(profile, matured).alarms:
            return week
    return looks + 1


def actions_after(
    truth: Truth, rows: int, seed: Sequence[int], weeks: int = 2, broken: str = "", quiet: int = 0
) -> list[str]:
    """Actions of the first weeks after a change that shows in the features.

    `broken`: a client's bug from then on: "zero" turns 80% of a column to 0, "missing" loses 30% of it.
    `quiet`: as for `simulate_year`; weeks of the same wobble without the change.
    """
    rng = np.random.default_rng(seed)
    profile = make_profile(rng, 2 * rows)
    setup = calibrated(profile, [make_frame(rng, rows, Truth(wobble=truth.wobble)) for _ in range(quiet)])
    history: list[dict] = []
    for week in range(weeks):
        monday = MONDAY + timedelta(weeks=week)
        frame = make_frame(rng, rows, truth, monday=monday)
        if broken:
            share, value = {"zero": (0.8, 0.0), "missing": (0.3, np.nan)}[broken]
            frame["l03"] = np.where(rng.random(rows) < share, value, frame["l03"])
        inputs = make_inputs(profile, frame, frame.iloc[:0], monday, campaign=setup)
        statistics = measure_week(inputs, history)
        decision = decide(monday, inputs.champion, statistics, history, inputs.campaign)
        history.append(decision.as_dict() | record(inputs, statistics))
    return [str(h["action"]) for h in history]


def gate_trials(gap: float, trials: int, rows: int, seed: int, *, service: bool) -> dict[str, float]:
    """Share of trials in which a challenger is promoted whose true value is `gap` (share of the oracle's) higher.

    Champion and challenger both act on a noisy copy of the true score; the champion has 75% of the oracle's value, and
    the errors of the two correlate by .5.
    `service`: the log is the champion's own traffic (10% holdout, 10% exploration), else a random phase.
    """
    setup = campaign()
    verdicts: Counter[str] = Counter()
    real = []
    for trial in range(trials):
        rng, arms = np.random.default_rng([seed, trial]), {}

        def champion_of(score: np.ndarray, rng=rng, arms=arms) -> np.ndarray:
            arms["champion"], arms["challenger"] = rival_policies(score, gap, rng)
            return arms["champion"]

        frame = make_frame(rng, rows, service=service, policy=champion_of)
        score, champion, challenger = frame["score"].to_numpy(), arms["champion"], arms["challenger"]
        mu_hat = np.stack([frame[[f"mu_none_{o}" for o in setup.outcome_names]].to_numpy()] * 2, axis=1)
        mu_hat[:, 1] += frame[[f"uplift_{setup.arm_names[1]}_{o}" for o in setup.outcome_names]].to_numpy()
        verdicts[judge(frame, arms, mu_hat, setup).verdict] += 1
        oracle = np.maximum(score, 0).mean()
        real.append(float((score * (challenger - champion)).mean() / oracle))
    return {name: verdicts[name] / trials for name in ("promote", "keep", "needs_a_person")} | {
        "gap": float(np.mean(real))
    }


def rival_policies(score: np.ndarray, gap: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Arms of a champion with 75% of the oracle's value and of a challenger with `gap` more."""
    common, *own = rng.normal(size=(3, len(score)))  # models of one team make half of their errors together
    champion, challenger = (
        _policy(score, share, (common + noise) / np.sqrt(2))
        for share, noise in zip((0.75, 0.75 + gap), own, strict=True)
    )
    return champion, challenger


def _policy(score: np.ndarray, share: float, noise: np.ndarray) -> np.ndarray:
    """Arms of a policy that acts on the score plus noise, with `share` of the oracle's value (by bisection)."""
    noise, oracle = noise * score.std(), np.maximum(score, 0).mean()
    low, high = 0.0, 20.0
    for _ in range(30):
        middle = (low + high) / 2
        value = (score * (score + middle * noise > 0)).mean() / oracle
        low, high = (middle, high) if value > share else (low, middle)
    return (score + middle * noise > 0).astype(np.int64)


def power_bound(gap: float, explorations: Sequence[float], trials: int, seed: int) -> np.ndarray:
    """Power of the best unbiased estimator at each exploration share, mean over trials; shape (len(explorations),).

    Both models' predictions are taken as exact. Where the policies differ the score then has variance v1/p1 + v0/p0
    (v: variance of the outcome under an arm, p: its probability), and that of the uplift itself is added: the
    semiparametric bound (Hahn 1998, Econometrica 66, theorem 1), which doubly robust scores attain.
    """
    setup, powers = campaign(), []
    holdout = setup.assignment.holdout_share
    for trial in range(trials):
        rng = np.random.default_rng([seed, trial])
        frame = make_frame(rng, GATE_ROWS, service=False)
        champion, challenger = rival_policies(frame["score"].to_numpy(), gap, rng)
        gain = frame["score"].to_numpy() * (challenger - champion)
        control, message = (_outcome_variance(frame, message) for message in (False, True))
        for share in explorations:
            p = share / 2 + (1 - holdout - share) * champion
            noise = np.where(champion == challenger, 0.0, message / p + control / (1 - p))
            se = np.sqrt((noise.mean() + gain.var()) / GATE_ROWS)
            powers.append(norm.cdf(gain.mean() / se - norm.ppf(0.95)))
    return np.array(powers).reshape(trials, len(explorations)).mean(axis=0)


def _outcome_variance(frame: pd.DataFrame, message: bool) -> np.ndarray:
    """Variance of the weighted outcome given the features, EUR^2; the three outcomes are drawn independently."""
    setup, total = campaign(), np.zeros(len(frame))
    for outcome in setup.outcome:
        mean = frame[f"mu_none_{outcome.name}"] + message * frame[f"uplift_{setup.arm_names[1]}_{outcome.name}"]
        variance = mean * (1 - mean) if outcome.kind == "binary" else mean**2  # listening is exponential
        total += outcome.weight**2 * np.clip(variance.to_numpy(), 0, None)
    return total
