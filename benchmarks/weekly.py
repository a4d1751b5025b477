"""What weekly monitoring promises, measured on simulated platforms with known truth.

    .venv/bin/python benchmarks/weekly.py [PART ...] [--scale 0.2]      parts: see --help; default all

Writes the table `monitoring` of docs/benchmarks.md, and nothing of what is written by hand around it; parts that are
not run keep their last lines. One process; about
16 minutes of one core for alarms, 8 for detection, 15 for the gate and as long as Evidently takes for speed. `--scale`
takes a share of the years, runs, trials and rows. Figures carry Monte-Carlo standard errors and seeds. Small versions
of the same measurements run in the tests.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from experiment import write_section
from weekly_worlds import (
    GATE_ROWS,
    ROOT,
    actions_after,
    gate_trials,
    power_bound,
    simulate_year,
    weeks_to_find,
)

sys.path.insert(0, str(ROOT / "tests" / "monitoring"))
from monitored import FEATURES, Truth, campaign, make_frame, make_inputs

from feature_repo.atomic import write_json
from monitoring.decide import DRIFT_CODES
from monitoring.drift import measure_drift
from monitoring.profile import build_profile, count_rows
from monitoring.weekly import run_week

KEPT = ROOT / "data" / "benchmarks" / "weekly.json"
Row = tuple[str, str, str]


def kept(name: str, measure: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """A measurement that was made before, or made now; in data/benchmarks/weekly.json: delete it after a change."""
    found = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    if name not in found:
        found[name] = measure(*args, **options)
        write_json(KEPT, found)
        print(f"{name}: {found[name]}", flush=True)
    return found[name]


def year_of(seed: int, rows: int, wobble: float, **options: Any) -> list[list[str]]:
    """Action and reasons of each week that asked for something, of a year in which nothing but wobble happens."""
    decisions = simulate_year(seed, rows, Truth(wobble=wobble), **options)
    return [[f"{d.week}", d.action, *d.reasons] for d in decisions if d.action != "none"]


def false_alarms(years: int, rows: int, wobble: float, seed: int, quiet: int = 0) -> dict[str, float]:
    """False retrain decisions a year on platforms where nothing but ordinary wobble happens."""
    name = f"year {rows} rows, wobble {wobble}" + (f", calibrated on {quiet} weeks" if quiet else "")
    played = [kept(f"{name}, seed {s}", year_of, s, rows, wobble, quiet=quiet) for s in range(seed, seed + years)]
    asked = [[week for week in year if week[1] == "retrain"] for year in played]
    retrain = np.array([len(year) for year in asked])
    codes = [[{reason.split(":")[0] for reason in week[2:]} for week in year] for year in asked]
    return {
        "years": years,
        "retrain_per_year": float(retrain.mean()),
        "se": float(retrain.std(ddof=1) / np.sqrt(years)) if years > 1 else float("nan"),
        "worst_year": int(retrain.max()),
        "warn_per_year": sum(week[1] == "warn" for year in played for week in year) / years,
        "from_realised": sum("realised_uplift" in found for year in codes for found in year) / years,
        "from_drift": sum(bool(found & set(DRIFT_CODES)) for year in codes for found in year) / years,
    }


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
    del reference, current  # Evidently copies its own
    began = time.process_time()
    Report([DataDriftPreset(columns=list(FEATURES))]).run(*sides).dict()
    return {"ours": ours, "evidently": time.process_time() - began}


def measure_alarms(scale: float) -> list[Row]:
    """False alarms of the whole decision rule."""
    rows = []
    default = ((50, 0.03, 100, 0), (10, 0.0, 200, 0), (10, 0.05, 200, 0))
    for years, wobble, seed, quiet in (*default, (10, 0.03, 4000, 12), (10, 0.05, 4000, 12)):
        f = false_alarms(scaled(years, scale), 10_000, wobble, seed, quiet)
        promise = f"<= {campaign().monitoring.yearly_false_alarm:g} a year"
        what = f"false retrain alarms, {f['years']} years of 10,000 decisions a week, weekly wobble {wobble:g} sd"
        what += f", thresholds of `tactful monitor calibrate` from {quiet} weeks" if quiet else ""
        rows.append(
            (what, promise, f"{f['retrain_per_year']:.2f} a year (SE {f['se']:.2f}), worst year {f['worst_year']}")
        )
        causes = f"{f['from_realised']:.2f} / {f['from_drift']:.2f}; {f['warn_per_year']:.1f}"
        rows.append(("the same: by realised uplift / by drift of features; warnings a year", "", causes))
    seeds = range(100, 100 + scaled(3, scale))
    full = [kept(f"whole year {s}", year_of, s, 10_000, 0.03, checks=True) for s in seeds]
    same = sum(
        year == kept(f"year 10000 rows, wobble 0.03, seed {s}", list) for s, year in zip(seeds, full, strict=True)
    )
    what = "years that the whole weekly step, data checks included, decides week by week as the rule above"
    rows.append((what, "all", f"{same} of {len(full)}"))
    return rows


def measure_detection(scale: float) -> list[Row]:
    """How soon real changes are found."""
    rows, half = [], Truth(sub_effect=0.5, wobble=0.02)
    price = "subscription uplift halved (price), 20,000 a week"
    cases: tuple[tuple[str, Truth, int, int, str, dict], ...] = (
        (f"{price}, 10% randomised", half, 20_000, 200, ">= .80", {"randomised": (0.05, 0.05)}),
        (f"{price}, 20% randomised", half, 20_000, 100, ">= .80", {}),
        ("every uplift halved, 10,000 a week", Truth(effect=0.5, wobble=0.02), 10_000, 60, "", {}),
        ("ranking upside down, 10,000 a week", Truth(invert=True, wobble=0.02), 10_000, 40, "", {}),
    )
    for name, truth, n, runs, target, options in cases:
        found = np.array(
            [
                kept(f"{name}, run {run}", weeks_to_find, truth, n, (300, run), **options)
                for run in range(scaled(runs, scale))
            ]
        )
        measured = f"{told_share(found <= 5)}, median week {np.median(found):.0f}, latest {found.max()}"
        rows.append((f"{name}: found in <= 5 matured weeks", target, measured))
    runs = range(scaled(100, scale))
    market, quiet = Truth(new_market=0.25, wobble=0.02), Truth(wobble=0.02)
    after = [kept(f"market, run {run}", actions_after, market, 20_000, (400, run)) for run in runs]
    found = np.array(["retrain" in actions for actions in after])
    rows.append(("new country, a quarter of the users: retrain in <= 2 weeks", ">= .95", told_share(found)))
    restless = Truth(new_market=0.25, wobble=0.05)
    after = [
        kept(f"calibrated market, run {run}", actions_after, restless, 10_000, (900, run), quiet=12) for run in runs
    ]
    found = np.array(["retrain" in actions for actions in after])
    what = "the same, 10,000 a week, weekly wobble 0.05 sd, thresholds of `tactful monitor calibrate` from 12 weeks"
    rows.append((what, ">= .95", told_share(found)))
    for bug, what in (("zero", "80% of a column turns to 0"), ("missing", "30% of a column is lost")):
        after = [kept(f"{bug}, run {run}", actions_after, quiet, 20_000, (500, run), broken=bug) for run in runs]
        found = np.array([actions == ["stop", "stop"] for actions in after])
        rows.append((f"{what}: stop in the first week and the second, no retrain", "1.00", told_share(found)))
    return rows


def told_share(hits: np.ndarray) -> str:
    """Share of runs, with its SE, or the exact bound where all runs agree (one-sided 95%)."""
    share, runs = float(hits.mean()), len(hits)
    if share in (0.0, 1.0):
        bound = 0.05 ** (1 / runs)
        return f"{share:.2f} ({runs} runs; 95%: {f'>= {bound:.3f}' if share else f'<= {1 - bound:.3f}'})"
    return f"{share:.3f} (SE {np.sqrt(share * (1 - share) / runs):.3f}, {runs} runs)"


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
    lines = ["| promise | target | measured |", "| --- | --- | --- |"]
    lines += [f"| {a} | {b} | {c} |" for part in PARTS if part in kept for a, b, c in kept[part]["rows"]]
    write_section(ROOT / "docs" / "benchmarks.md", "monitoring", "\n".join(lines))
    print("\n".join(lines))
    print("processor seconds: " + ", ".join(f"{part} {kept[part]['seconds']:.0f}" for part in PARTS if part in kept))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--scale", type=float, default=1.0, help="share of the years, runs, trials and rows")
    options = parser.parse_args()
    main(options.parts, options.scale)
