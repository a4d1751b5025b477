"""Forecast against outcome: does offline evaluation predict what live experiments find? Kept over experiments."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.special import chdtrc

from feature_repo.atomic import write_json
from monitoring.experiment.checks import believable, quality_checks
from monitoring.experiment.decide import Look, Row, amount
from monitoring.experiment.effects import effect_rows
from monitoring.experiment.file import Forecast
from monitoring.experiment.plan import ExperimentPlan
from monitoring.experiment.stats import wilson
from monitoring.experiment.table import checked_table

Z95 = 1.959963984540054


def forecast_against_outcome(forecasts: Sequence[Forecast], frame: pd.DataFrame, plan: ExperimentPlan) -> pd.DataFrame:
    """Offline forecast beside the live effect, with a 95% interval of their difference (live minus forecast).

    The interval combines both by MOVER, so that it keeps the unequal sides of rare outcomes. It assumes that forecast
    and experiment are of different users or times. Read it when the planned users are in: an experiment that stopped
    early because it looked good overstates its effect.

    Args:
        forecasts: predicted differences with 95% intervals.
        frame: the experiment's table.
        plan: its plan.

    Returns: columns variant, metric, forecast, forecast_lower, forecast_upper, live, live_lower, live_upper,
        difference, ci_lower, ci_upper, covered (0 lies inside: no contradiction).
    """
    live = _live_95(frame, plan)
    rows = []
    for f in forecasts:
        row = next(row for row in live if (row["variant"], row["metric"]) == (f.variant, f.metric))
        effect, low, high = row["effect_size"], row["ci_lower"], row["ci_upper"]
        gap = effect - f.value
        lower = gap - math.hypot(effect - low, f.ci_upper - f.value)
        upper = gap + math.hypot(high - effect, f.value - f.ci_lower)
        told = (f.variant, f.metric, f.value, f.ci_lower, f.ci_upper, effect, low, high, gap, lower, upper)
        rows.append((*told, lower <= 0 <= upper))
    names = ["variant", "metric", "forecast", "forecast_lower", "forecast_upper", "live", "live_lower", "live_upper"]
    return pd.DataFrame(rows, columns=[*names, "difference", "ci_lower", "ci_upper", "covered"])


def _live_95(frame: pd.DataFrame, plan: ExperimentPlan) -> list[Row]:
    """Live effects of everybody with plain two-sided 95% intervals, whatever the plan's roles and looks."""
    as_success = {"role": "success", "margin": None, "segment_margin": None}
    metric = tuple(m.model_copy(update=as_success) for m in plan.metric)
    plain = plan.model_copy(update={"metric": metric, "segments": (), "alpha": 0.05, "looks": 1, "planned_users": None})
    table = checked_table(frame, plain)
    table = believable(table, quality_checks(table, plain))
    return effect_rows(table, plain, Look(1, table.n, None, ()))


def keep_forecasts(file: Path, experiment: str, compared: pd.DataFrame) -> None:
    """Add an experiment's comparison to the record of all; reading it again replaces its rows."""
    kept = read_forecasts(file)
    kept = kept[kept["experiment"] != experiment] if len(kept) else kept
    rows = [*kept.to_dict("records"), *compared.assign(experiment=experiment).to_dict("records")]
    write_json(file, {"schema": 1, "comparisons": rows})


def read_forecasts(file: Path) -> pd.DataFrame:
    """The record of all experiments' comparisons; empty when there is none yet."""
    if not file.exists():
        return pd.DataFrame()
    return pd.DataFrame(json.loads(file.read_text(encoding="utf-8"))["comparisons"])


def forecast_calibration(kept: pd.DataFrame) -> pd.DataFrame:
    """How well offline evaluation forecasts live experiments, by metric.

    Args:
        kept: from `read_forecasts`.

    Returns: columns metric, n_experiments, coverage (of the 95% intervals), coverage_lower, coverage_upper (Wilson),
        bias (mean of live minus forecast, inverse-variance weighted), bias_se, pvalue (chi-square: the differences are
        no larger than their intervals say).
    """
    return pd.DataFrame([_calibration(str(metric), rows) for metric, rows in kept.groupby("metric", sort=True)])


def calibration_notes(kept: pd.DataFrame, plan: ExperimentPlan) -> list[str]:
    """How far offline evaluation can be trusted, in words, from the second experiment on."""
    if kept.empty or kept["experiment"].nunique() < 2:
        return []
    notes = []
    for metric in plan.metric:
        for row in forecast_calibration(kept[kept["metric"] == metric.name]).to_dict("records"):
            bias, se = amount(metric.kind, row["bias"]), amount(metric.kind, row["bias_se"], signed=False)
            notes.append(
                f"offline forecasts of {metric.name} so far: {row['coverage']:.0%} of {row['n_experiments']} intervals "
                f"held (should be 95%; 95% interval {row['coverage_lower']:.0%} to {row['coverage_upper']:.0%}); live "
                f"less forecast {bias} on average (SE {se})"
            )
    return notes


def _calibration(metric: str, rows: pd.DataFrame) -> dict[str, Any]:
    n, covered = len(rows), int(rows["covered"].sum())
    low, high = wilson(covered, n, Z95)
    se = (rows["ci_upper"] - rows["ci_lower"]).to_numpy(dtype=float) / (2 * Z95)
    gap = rows["difference"].to_numpy(dtype=float)
    weight = se**-2
    return {
        "metric": metric,
        "n_experiments": n,
        "coverage": covered / n,
        "coverage_lower": low,
        "coverage_upper": high,
        "bias": float(gap @ weight / weight.sum()),
        "bias_se": float(weight.sum() ** -0.5),
        "pvalue": float(chdtrc(n, float(((gap / se) ** 2).sum()))),
    }
