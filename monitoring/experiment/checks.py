"""Quality checks of an experiment: when one fails, no effect is believed and nothing ships.

Sample ratio (overall, by day, by segment): users per variant against the planned shares. Exposure: users got the
variant they were assigned to, and every variant was reached alike. Trigger: it fires alike in every variant.
Covariate: alike in every variant; if not, it was measured after the start, and CUPED would take out the effect itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from monitoring.experiment.plan import ExperimentPlan
from monitoring.experiment.stats import Welch, homogeneity, sample_ratio_p, two_sided_p
from monitoring.experiment.table import ExperimentTable, Grouping

MAX_CROSSED = 0.01  # share of users that may have got another variant than assigned

COLUMNS = ["check", "scope", "pvalue", "threshold", "passed", "detail"]
Row = tuple[str, str, float, float, bool, str]


def quality_checks(table: ExperimentTable, plan: ExperimentPlan) -> pd.DataFrame:
    """Every check as a row: check, scope ("" is everybody), pvalue, threshold, passed, detail in words."""
    rows = list(_sample_ratio_rows(table, plan))
    if table.exposure is not None:
        rows += _exposure_rows(table, table.exposure, plan)
    if table.trigger is not None:
        counts = _crossed(table.variant, table.trigger.astype(int), len(plan.variants), 2)
        rows.append(_alike("trigger", counts, plan, "users trigger"))
    rows += [_before_row(name, values, table.variant, plan) for name, values in table.covariate.items()]
    return pd.DataFrame(rows, columns=COLUMNS)


def _crossed(rows: np.ndarray, columns: np.ndarray, n_rows: int, n_columns: int) -> np.ndarray:
    return np.bincount(rows * n_columns + columns, minlength=n_rows * n_columns).reshape(n_rows, n_columns)


def _sample_ratio_rows(table: ExperimentTable, plan: ExperimentPlan) -> Iterator[Row]:
    shares = np.asarray(plan.variant_shares)
    counts = np.bincount(table.variant, minlength=len(shares))
    yield _ratio_row("", float(sample_ratio_p(counts[None, :], shares)[0]), plan.srm_p, counts, plan)
    groupings = {**({plan.day: table.day} if table.day is not None else {}), **table.segments}
    for column, grouping in groupings.items():
        yield _worst_level(column, grouping, table.variant, plan)


def _worst_level(column: str, grouping: Grouping, variant: np.ndarray, plan: ExperimentPlan) -> Row:
    """The level with the smallest p value, against srm_p over the number of levels: one error rate per column."""
    shares = np.asarray(plan.variant_shares)
    counts = _crossed(grouping.codes, variant, len(grouping.labels), len(shares))
    ps = sample_ratio_p(counts, shares)
    worst = int(ps.argmin())
    scope = f"{column}={grouping.labels[worst]}"
    return _ratio_row(scope, float(ps[worst]), plan.srm_p / len(ps), counts[worst], plan)


def _ratio_row(scope: str, p: float, threshold: float, counts: np.ndarray, plan: ExperimentPlan) -> Row:
    shares = np.asarray(plan.variant_shares)
    expected = counts.sum() * shares / shares.sum()
    cells = zip(plan.variants, counts, expected, strict=True)
    users = ", ".join(f"{name} {count} (planned {e:.0f})" for name, count, e in cells)
    return ("sample_ratio", scope, p, threshold, p >= threshold, f"{users}; p {p:.2g}")


def _exposure_rows(table: ExperimentTable, exposure: Grouping, plan: ExperimentPlan) -> list[Row]:
    k = len(plan.variants)
    reached = exposure.codes < k
    crossed = float(np.mean(exposure.codes[reached] != table.variant[reached])) if reached.any() else 0.0
    detail = f"{crossed:.2%} of reached users got another variant than assigned (tolerated {MAX_CROSSED:.0%})"
    delivered: Row = ("delivery", "", float("nan"), MAX_CROSSED, crossed <= MAX_CROSSED, detail)
    counts = _crossed(table.variant, reached.astype(int), k, 2)
    return [delivered, _alike("exposure", counts, plan, "users are reached")]


def _alike(check: str, counts: np.ndarray, plan: ExperimentPlan, words: str) -> Row:
    """Whether the share of column 1 is the same in every variant."""
    p = homogeneity(counts)
    shares = counts[:, 1] / counts.sum(axis=1)
    by_variant = ", ".join(f"{name} {share:.1%}" for name, share in zip(plan.variants, shares, strict=True))
    return (check, "", p, plan.srm_p, p >= plan.srm_p, f"{words}: {by_variant}; p {p:.2g}")


def _before_row(metric: str, values: np.ndarray, variant: np.ndarray, plan: ExperimentPlan) -> Row:
    """Whether the covariate of a metric has the same mean in every treatment as in control."""
    control, ps = values[variant == 0], []
    for arm in range(1, len(plan.variants)):
        treated = values[variant == arm]
        if min(len(control), len(treated)) > 1 and (welch := Welch.of(treated, control)).se > 0:
            ps.append(two_sided_p(welch.z_against(0.0)))
    p = min(1.0, len(ps) * min(ps)) if ps else 1.0
    threshold = plan.srm_p / sum(m.covariate is not None for m in plan.metric)
    means = [float(values[variant == code].mean()) for code in range(len(plan.variants))]
    told = ", ".join(f"{name} {mean:.4g}" for name, mean in zip(plan.variants, means, strict=True))
    return ("covariate", metric, p, threshold, p >= threshold, f"mean of {metric}'s covariate: {told}; p {p:.2g}")
