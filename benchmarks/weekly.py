"""What weekly monitoring promises, measured on simulated platforms with known truth.

    .venv/bin/python benchmarks/weekly.py [PART ...] [--scale 0.2]      parts: see --help; default all

Writes the section `monitoring` of docs/benchmarks.md; parts that are not run keep their last lines. One process; about
16 minutes of one core for alarms, 8 for detection, 15 for the gate and as long as Evidently takes for speed. `--scale`
takes a share of the years, runs, trials and rows. Figures carry Monte-Carlo standard errors and seeds. Small versions
of the same measurements run in the tests.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from scipy.stats import norm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "monitoring"))
from experiment import write_section  # noqa: E402
from monitored import (  # noqa: E402  # after its folder is known
    FEATURES,
    MONDAY,
    Truth,
    campaign,
    make_frame,
    make_inputs,
    make_profile,
)

from feature_repo.atomic import write_text  # noqa: E402
from monitoring.decide import Decision, decide  # noqa: E402
from monitoring.drift import measure_drift  # noqa: E402
from monitoring.gate import judge  # noqa: E402
from monitoring.profile import build_profile, count_rows  # noqa: E402
from monitoring.realised import measure_realised  # noqa: E402
from monitoring.weekly import measure_week, record, run_week  # noqa: E402

WEEKS = 52
YEARS = ROOT / "data" / "benchmarks" / "alarms.json"
GATE_ROWS = 50_000
MATURED_LAG = 5  # weeks from a decision until its outcome is known
Row = tuple[str, str, str]


def simulate_year(seed: int, rows: int, truth: Truth, weeks: int = WEEKS) -> list[Decision]:
    """Weekly decisions of one platform and one champion; the decision rule is the real one, history included.

    Args:
        seed: of everything.
        rows: decisions a week; their outcomes are known MATURED_LAG weeks later.
        truth: how the platform behaves.
        weeks: to simulate.
    """
    rng = np.random.default_rng([seed, rows])
    profile, pool = make_profile(rng, 2 * rows), campaign().monitoring.pool_weeks
    frames = [make_frame(rng, rows, truth, monday=MONDAY + timedelta(weeks=w)) for w in range(-MATURED_LAG - pool, 0)]
    history: list[dict] = []
    decisions = []
    for week in range(weeks):
        monday = MONDAY + timedelta(weeks=week)
        frames = [*frames[1:], make_frame(rng, rows, truth, monday=monday)]
        inputs = make_inputs(profile, frames[-1], pd.concat(frames[:pool], ignore_index=True), monday)
        statistics = measure_week(inputs, history)
        decision = decide(monday, inputs.champion, statistics, history, inputs.campaign)
        history.append(decision.as_dict() | record(inputs, statistics))
        decisions.append(decision)
    return decisions


def false_alarms(years: int, rows: int, wobble: float, seed: int) -> dict[str, float]:
    """False retrain and stop decisions a year on platforms where nothing but ordinary wobble happens.

    Years that were simulated already are read from data/benchmarks/alarms.json: delete it after a change of the rule.
    """
    kept = json.loads(YEARS.read_text()) if YEARS.exists() else {}
    for year in range(years):
        name = f"{rows} rows, wobble {wobble}, seed {seed + year}"
        if name not in kept:
            decisions = simulate_year(seed + year, rows, Truth(wobble=wobble))
            found = Counter(decision.action for decision in decisions)
            found.update({reason.split(":")[0] for d in decisions if d.action == "retrain" for reason in d.reasons})
            kept[name] = found
            write_text(YEARS, json.dumps(kept, indent=1))
            print(f"{name}: {dict(found)}", flush=True)
    played = [Counter(kept[f"{rows} rows, wobble {wobble}, seed {seed + year}"]) for year in range(years)]
    retrain = np.array([found["retrain"] for found in played])
    return {
        "years": years,
        "retrain_per_year": float(retrain.mean()),
        "se": float(retrain.std(ddof=1) / np.sqrt(years)) if years > 1 else float("nan"),
        "worst_year": int(retrain.max()),
        "with_any": float((retrain > 0).mean()),
        "stop_per_year": sum(found["stop"] for found in played) / years,
        "warn_per_year": sum(found["warn"] for found in played) / years,
        "from_realised": sum(found["realised_uplift"] for found in played) / years,
        "from_drift": sum(found["feature_drift"] + found["red_line"] for found in played) / years,
    }


def weeks_to_find(truth: Truth, runs: int, rows: int, seed: int, looks: int = 5) -> np.ndarray:
    """Matured weeks after a change of the uplift until it is found; shape (runs,), looks + 1 where it is not."""
    found = np.full(runs, looks + 1)
    pool = campaign().monitoring.pool_weeks
    for run in range(runs):
        rng = np.random.default_rng([seed, run])
        lines = make_profile(rng, 2 * rows)["lines"]
        matured = [make_frame(rng, rows, Truth(wobble=0.02)) for _ in range(pool)]
        for week in range(looks):
            matured = [*matured[1:], make_frame(rng, rows, truth, monday=MONDAY + timedelta(weeks=week))]
            realised = measure_realised(pd.concat(matured, ignore_index=True), campaign(), lines)
            if realised is not None and realised.alarms:
                found[run] = week + 1
                break
    return found


def actions_after(truth: Truth, runs: int, rows: int, seed: int, weeks: int = 2, broken: str = "") -> list[list[str]]:
    """Actions of the first weeks after a change that shows in the features; `broken` turns most of a column to 0."""
    found = []
    for run in range(runs):
        rng = np.random.default_rng([seed, run])
        profile = make_profile(rng, 2 * rows)
        history: list[dict] = []
        for week in range(weeks):
            monday = MONDAY + timedelta(weeks=week)
            frame = make_frame(rng, rows, truth, monday=monday)
            if broken:
                frame[broken] = np.where(rng.random(rows) < 0.8, 0.0, frame[broken])
            inputs = make_inputs(profile, frame, frame.iloc[:0], monday)
            statistics = measure_week(inputs, history)
            decision = decide(monday, inputs.champion, statistics, history, inputs.campaign)
            history.append(decision.as_dict() | record(inputs, statistics))
        found.append([h["action"] for h in history])
    return found


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


def drift_seconds(rows: int, seed: int) -> dict[str, float]:
    """Processor seconds of our drift verdict and of Evidently's preset, on the same 35 columns."""
    rng = np.random.default_rng(seed)
    reference, current = (make_frame(rng, rows, service=service).assign(split="evaluate") for service in (False, True))
    profile = build_profile(reference, FEATURES, campaign(), weeks=1)
    # the preset sees the 35 features; leave the predictions out of ours as well
    profile["columns"] = {name: c for name, c in profile["columns"].items() if name in FEATURES}
    began = time.process_time()
    measure_drift(profile, count_rows(profile, current), campaign().monitoring)
    ours = time.process_time() - began
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    kinds = {kind: [n for n, k in FEATURES.items() if k == kind] for kind in ("numeric", "string")}
    definition = DataDefinition(numerical_columns=kinds["numeric"], categorical_columns=kinds["string"])
    sides = [Dataset.from_pandas(f[list(FEATURES)], data_definition=definition) for f in (current, reference)]
    began = time.process_time()
    Report([DataDriftPreset(columns=list(FEATURES))]).run(*sides).dict()
    return {"ours": ours, "evidently": time.process_time() - began}


def measure_alarms(scale: float) -> list[Row]:
    """False alarms of the whole decision rule."""
    rows = []
    for years, wobble, seed in ((50, 0.03, 100), (5, 0.0, 200)):
        f = false_alarms(scaled(years, scale), 10_000, wobble, seed)
        promise = f"<= {campaign().monitoring.yearly_false_alarm:g} a year"
        what = f"false retrain alarms, {f['years']} years of 10,000 decisions a week, weekly wobble {wobble:g} sd"
        rows.append(
            (what, promise, f"{f['retrain_per_year']:.2f} a year (SE {f['se']:.2f}), worst year {f['worst_year']}")
        )
        causes = f"{f['from_realised']:.2f} / {f['from_drift']:.2f}"
        others = f"{f['stop_per_year']:.2f} / {f['warn_per_year']:.1f}"
        rows.append(("the same: years with one by uplift / drift; stops / warnings a year", "", f"{causes}; {others}"))
    return rows


def measure_detection(scale: float) -> list[Row]:
    """How soon real changes are found."""
    rows = []
    cases = (
        ("subscription uplift halved (price), 20,000 a week", Truth(sub_effect=0.5, wobble=0.02), 20_000, 60, ">= .80"),
        ("every uplift halved, 10,000 a week", Truth(effect=0.5, wobble=0.02), 10_000, 60, ""),
        ("ranking upside down, 10,000 a week", Truth(invert=True, wobble=0.02), 10_000, 20, ""),
    )
    for name, truth, n, runs, target in cases:
        found = weeks_to_find(truth, scaled(runs, scale), n, 300)
        share = float((found <= 5).mean())
        se = np.sqrt(share * (1 - share) / len(found))
        measured = f"{share:.2f} (SE {se:.2f}, {len(found)} runs), median week {np.median(found):.0f}"
        rows.append((f"{name}: found in <= 5 matured weeks", target, measured))
    runs = scaled(40, scale)
    market = actions_after(Truth(new_market=0.25, wobble=0.02), runs, 20_000, 400)
    share = float(np.mean([any(a != "none" for a in actions) for actions in market]))
    rows.append(("new country, a quarter of the users: found in <= 2 weeks", ">= .95", f"{share:.2f} ({runs} runs)"))
    bug = actions_after(Truth(wobble=0.02), runs, 20_000, 500, weeks=1, broken="l03")
    stopped = np.mean([actions == ["stop"] for actions in bug])
    rows.append(("80% of a column turns to 0: stop in the first week", "1.00", f"{stopped:.2f} ({runs} runs)"))
    return rows


def share_promoted(gap: float, trials: int, *, service: bool, seed: int = 600) -> Row:
    """How often a challenger of known value passes."""
    target = "<= .05" if gap < 0 else ">= .80" if gap == 0.10 else ""
    found = gate_trials(gap, trials, GATE_ROWS, seed, service=service)
    log = "the champion's traffic" if service else "a random phase"
    se = np.sqrt(found["promote"] * (1 - found["promote"]) / trials)
    person = f", needs a person {found['needs_a_person']:.2f}" if found["needs_a_person"] else ""
    what = f"promoted: challenger {found['gap']:+.3f} of the oracle's value, {GATE_ROWS:,} decisions of {log}"
    return what, target, f"{found['promote']:.2f} (SE {se:.2f}, {trials} trials{person})"


def measure_worse(scale: float) -> list[Row]:
    """Challengers that are truly worse, by a little."""
    return [share_promoted(-0.01, scaled(200, scale), service=service) for service in (True, False)]


def measure_better(scale: float) -> list[Row]:
    """Challengers that are truly better: the power curve."""
    gaps = (0.05, 0.10, 0.20)
    return [share_promoted(gap, scaled(50, scale), service=service) for gap in gaps for service in (True, False)]


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


def measure_bound(scale: float) -> list[Row]:
    """What any unbiased gate could do with the champion's traffic."""
    explorations, trials, rows = (0.1, 0.2, 0.4, 0.8), scaled(20, scale), []
    for gap in (0.05, 0.10, 0.20):
        found = power_bound(gap, explorations, trials, 600)
        what = f"bound of the power, challenger {gap:+.2f} of the oracle's value, {GATE_ROWS:,} decisions"
        told = ", ".join(f"{power:.2f} at {share:.0%}" for share, power in zip(explorations, found, strict=True))
        rows.append((f"{what} of the champion's traffic, by exploration share", "", told))
    return rows


def measure_speed(scale: float) -> list[Row]:
    """Drift verdict against Evidently's preset."""
    n = scaled(1_000_000, scale)
    seconds = drift_seconds(n, 700)
    ratio = seconds["evidently"] / seconds["ours"]
    what = f"drift verdict of {n:,} x 35, and Evidently's preset on the same rows, processor seconds in one run"
    return [(what, ">= 100x", f"{seconds['ours']:.2f} s against {seconds['evidently']:.0f} s: {ratio:.0f}x")]


def measure_report(scale: float) -> list[Row]:
    """The whole weekly step with Evidently's report, on a full sample of 20,000 rows a side."""
    import evidently  # noqa: F401  # its import takes seconds, and is not the report's

    rng = np.random.default_rng(800)
    week, sample, *matured = (make_frame(rng, 20_000) for _ in range(6))
    sample = sample.assign(split="evaluate")
    profile = build_profile(sample, FEATURES, campaign(), weeks=1.0)
    inputs = make_inputs(profile, week, pd.concat(matured, ignore_index=True), reference_sample=sample)
    with TemporaryDirectory() as folder:
        began, wall = time.process_time(), time.perf_counter()
        run_week(inputs, Path(folder))
        spent, passed = time.process_time() - began, time.perf_counter() - wall
        size = max(file.stat().st_size for file in Path(folder).rglob("report.html")) / 1e6
    what = "weekly step, 20,000 decisions, 80,000 matured ones, Evidently's report from 20,000 rows a side"
    return [(what, "< 30 s, 10 MB", f"{spent:.0f} processor s ({passed:.0f} s wall, machine shared), {size:.1f} MB")]


PARTS = {
    "alarms": measure_alarms,
    "detection": measure_detection,
    "gate_worse": measure_worse,
    "gate_better": measure_better,
    "gate_bound": measure_bound,
    "speed": measure_speed,
    "report": measure_report,
}


def scaled(number: int, scale: float) -> int:
    """So many of them, at least 5."""
    return max(round(number * scale), 5)


def main(parts: list[str], scale: float) -> None:
    """Measure the parts and write the section; figures of earlier runs are kept beside it."""
    store = ROOT / "data" / "benchmarks" / "monitoring.json"
    kept = json.loads(store.read_text()) if store.exists() else {}
    for part in parts or list(PARTS):
        began = time.process_time()
        kept[part] = {"rows": PARTS[part](scale), "seconds": time.process_time() - began}
        store.parent.mkdir(parents=True, exist_ok=True)
        store.write_text(json.dumps(kept, indent=1))
    lines = [
        "## Weekly monitoring",
        "",
        "`python benchmarks/weekly.py`, seeds 100 to 700, processor seconds by part: ",
    ]
    lines[-1] += ", ".join(f"{part} {kept[part]['seconds']:.0f}" for part in PARTS if part in kept) + "."
    lines += ["", "| promise | target | measured |", "| --- | --- | --- |"]
    lines += [f"| {a} | {b} | {c} |" for part in PARTS if part in kept for a, b, c in kept[part]["rows"]]
    write_section(ROOT / "docs" / "benchmarks.md", "monitoring", "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--scale", type=float, default=1.0, help="share of the years, runs, trials and rows")
    options = parser.parse_args()
    main(options.parts, options.scale)
