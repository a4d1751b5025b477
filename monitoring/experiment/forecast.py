"""Forecast against outcome: what offline evaluation predicts of live experiments, and what they find; kept over all."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import chdtrc

from campaign import Campaign, CampaignError, DataError
from feature_repo.atomic import write_json
from models.evaluation import evaluate
from models.predictions import mu_hat_of
from models.worth import evaluation_log, evaluation_outcomes
from monitoring.experiment.assign import Scored, arms_of
from monitoring.experiment.checks import believable, quality_checks
from monitoring.experiment.decide import Row, amount
from monitoring.experiment.effects import effect_rows
from monitoring.experiment.file import Forecast, Variant
from monitoring.experiment.look import Look
from monitoring.experiment.plan import ExperimentPlan
from monitoring.experiment.stats import wilson
from monitoring.experiment.table import checked_table

Z95 = 1.959963984540054


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
    mu_hat = mu_hat_of(rows, campaign.arm_names, campaign.outcome_names)
    scored = Scored(
        champion_arm=rows["policy_arm"].to_numpy(dtype=np.int64),
        uplift=mu_hat[:, 1:] - mu_hat[:, :1],
        weights=np.array(campaign.weights),
        costs=np.array(campaign.costs[1:]),
        segments={column: rows[column].to_numpy() for column in campaign.segments.columns},
    )
    arms = arms_of(variants, scored)
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
    """Metric -> effect of the candidate with the highest forecast in money: what the sample size is planned for."""
    weight = dict(zip(campaign.outcome_names, campaign.weights, strict=True))
    by_variant: dict[str, dict[str, float]] = {}
    for f in forecasts:
        by_variant.setdefault(f.variant, {})[f.metric] = f.value
    return max(by_variant.values(), key=lambda effects: sum(weight[m] * e for m, e in effects.items()))


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


def _calibration(metric: str, rows: pd.DataFrame) -> dict[str, str | float]:
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
