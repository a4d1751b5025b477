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
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from experiment_worlds import (
    GUARDED,
    SUBSCRIPTION,
    Effects,
    cuped_reduction,
    decisions,
    forecast_coverage,
    planned,
    rehearsed_experiment,
    reread,
    srm_alarms,
    srm_nominal,
    triggered_agreement,
    untriggered_alarms,
)

from campaign import data_dir
from feature_repo.atomic import write_text
from monitoring.experiment.checks import sample_ratio_p
from monitoring.experiment.plan import ExperimentPlan

REHEARSED = 300
PIECE_SECONDS = 420  # a run that has not finished by then keeps what it has, and says so
Row = tuple[str, str, str]  # promise, target, measured
DOCS = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"


def rate(hits: float, n: int, digits: int = 3) -> str:
    """A share of n and its Monte-Carlo standard error (not 0 at a share of 0)."""
    share = hits / n
    return f"{share:.{digits}f} (SE {math.sqrt(max(share, 1 / n) * (1 - share) / n):.{digits}f})"


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
            "`python benchmarks/experiment.py [GROUP ...]`; one core, seeds 11 to 23 (`rehearsed`: 1000 to 1299); SE: "
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
