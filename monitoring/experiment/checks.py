"""Quality checks of an experiment: when one fails, no effect is believed and nothing ships.

Sample ratio (overall, by day, by segment): users per variant against the planned shares. Exposure: users got the
variant they were assigned to, and every variant was reached alike. Trigger: it fires alike in every variant, and
nothing moves among the users it leaves out. Covariate: alike in every variant, for everybody and in each segment; if
not, it was measured after the start, and CUPED would move the effect itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy.special import bdtr, bdtrc, chdtrc

from monitoring.experiment.decide import amount
from monitoring.experiment.effects import compare, enough
from monitoring.experiment.plan import ExperimentPlan
from monitoring.experiment.stats import Welch, two_sided_p
from monitoring.experiment.table import ExperimentTable, Grouping

LARGE = 1000  # expected users per variant from which the chi-square tail is good enough
MAX_CROSSED = 0.01  # share of users that may have got another variant than assigned
# An effect that the trigger misses is no larger than the one looked for, so srm_p would rarely see it; and a false
# alarm costs little, because the same users can be read without the trigger.
UNTRIGGERED_P = 0.01

COLUMNS = ["check", "scope", "pvalue", "threshold", "passed", "detail"]
Row = tuple[str, str, float, float, bool, str]


def quality_checks(table: ExperimentTable, plan: ExperimentPlan) -> pd.DataFrame:
    """Every check as a row: check, scope ("" is everybody), pvalue, threshold, passed, detail in words."""
    rows = list(_sample_ratio_rows(table, plan))
    if table.exposure is not None:
        rows += _exposure_rows(table, table.exposure, plan)
    rows += [_before_row(name, values, table, plan) for name, values in table.covariate.items()]
    if table.trigger is not None:
        counts = _crossed(table.variant, table.trigger.astype(int), len(plan.variants), 2)
        rows.append(_alike("trigger", counts, plan, "users trigger"))
        rows.append(_untriggered_row(believable(table, pd.DataFrame(rows, columns=COLUMNS)), ~table.trigger, plan))
    return pd.DataFrame(rows, columns=COLUMNS)


def believable(table: ExperimentTable, checks: pd.DataFrame) -> ExperimentTable:
    """The table without the covariates and the trigger that failed their checks: no effect is read through these."""
    failed = checks[~checks["passed"].astype(bool)]
    broken = set(failed["scope"][failed["check"] == "covariate"])
    covariate = {name: values for name, values in table.covariate.items() if name not in broken}
    no_trigger = failed["check"].isin(["trigger", "untriggered"]).any()
    return replace(table, covariate=covariate, trigger=None if no_trigger else table.trigger)


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
    told = f"{crossed:.2%} of reached users got another variant than assigned (tolerated {MAX_CROSSED:.0%})"
    passed, detail = (crossed <= MAX_CROSSED, told) if reached.any() else (False, f"{plan.exposure} is null for all")
    delivered: Row = ("delivery", "", float("nan"), MAX_CROSSED, passed, detail)
    counts = _crossed(table.variant, reached.astype(int), k, 2)
    return [delivered, _alike("exposure", counts, plan, "users are reached")]


def _alike(check: str, counts: np.ndarray, plan: ExperimentPlan, words: str) -> Row:
    """Whether the share of column 1 is the same in every variant."""
    p = homogeneity(counts)
    shares = counts[:, 1] / counts.sum(axis=1)
    by_variant = ", ".join(f"{name} {share:.1%}" for name, share in zip(plan.variants, shares, strict=True))
    return (check, "", p, plan.srm_p, p >= plan.srm_p, f"{words}: {by_variant}; p {p:.2g}")


def _untriggered_row(table: ExperimentTable, left_out: np.ndarray, plan: ExperimentPlan) -> Row:
    """Whether any metric moves among users for whom the variants decide alike: there, nothing can have happened."""
    found: list[tuple[float, str]] = []
    for arm, name in enumerate(plan.treatments, start=1):
        rows = left_out & table.pair(arm)
        if not enough(table.variant[rows] == arm):
            continue
        for metric in plan.metric:
            effect = compare(table, metric, arm, rows).effect
            if effect is not None:
                moved = amount(metric.kind, effect.estimate)
                found.append((two_sided_p(effect.z_against(0.0)), f"{metric.name} {moved} under {name}"))
    p, worst = min(found, default=(1.0, "too few to tell"))
    p = min(1.0, p * len(found)) if found else p
    detail = f"{left_out.mean():.1%} of users do not trigger; largest difference among them: {worst}; p {p:.2g}"
    return ("untriggered", "", p, UNTRIGGERED_P, p >= UNTRIGGERED_P, detail)


def _before_row(metric: str, values: np.ndarray, table: ExperimentTable, plan: ExperimentPlan) -> Row:
    """Whether the covariate of a metric has the same mean in every candidate as in control.

    Half of the error is for everybody, half for all segments together: CUPED is done in each.
    """
    groups, arms, found = list(table.segment_rows()), len(plan.treatments), []
    for number, (_, mask) in enumerate(groups):
        tests = arms * min(2, len(groups)) * (len(groups) - 1 if number else 1)
        for arm in range(1, arms + 1):
            found.append((tests * _before_p(values, table.variant, mask & table.pair(arm), arm), number))
    p, worst = min(found)
    p, (segment, mask) = min(1.0, p), groups[worst]
    threshold = plan.srm_p / sum(m.covariate is not None for m in plan.metric)
    means = [values[mask & (table.variant == code)] for code in range(arms + 1)]
    told = ", ".join(f"{name} {part.mean():.4g}" for name, part in zip(plan.variants, means, strict=True) if len(part))
    detail = f"mean of {metric}'s covariate{f' in {segment}' if segment else ''}: {told}; p {p:.2g}"
    return ("covariate", metric, p, threshold, p >= threshold, detail)


def _before_p(values: np.ndarray, variant: np.ndarray, rows: np.ndarray, arm: int) -> float:
    treated, x = variant[rows] == arm, values[rows]
    if not enough(treated):
        return 1.0
    welch = Welch.of(x[treated], x[~treated])
    rounding = 1e-12 * float(np.abs(x).max())
    if abs(welch.estimate) <= rounding:
        return 1.0
    return two_sided_p(welch.z_against(0.0)) if welch.se > rounding else 0.0


def sample_ratio_p(counts: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """P value of counts against planned shares, for each row of counts; shape (n,).

    Chi-square where at least LARGE users are expected in every variant. Below, the chi-square tail is too short for
    the small p values that many days or segments are judged at (3 to 6 times the nominal rate at 10% treated): there
    the exact binomial of each variant against the rest, doubled, times the number of variants where they are > 2.

    Args:
        counts: users by variant, shape (n, k).
        shares: planned shares, shape (k,).
    """
    total, share = counts.sum(axis=1, keepdims=True), shares / shares.sum()
    k = counts.shape[1]
    with np.errstate(invalid="ignore"):  # a row without users
        chi_square = chdtrc(k - 1, np.nansum((counts - total * share) ** 2 / (total * share), axis=1))
    tails = np.minimum(bdtr(counts, total, share), bdtrc(counts - 1.0, total, share))
    tails = np.where(counts == 0, bdtr(counts, total, share), tails)  # bdtrc has no tail "at least 0"
    exact = np.minimum(1.0, (2 * tails).min(axis=1) * (1 if k == 2 else k))
    return np.asarray(np.where((total * share).min(axis=1) >= LARGE, chi_square, exact))


def homogeneity(table: np.ndarray) -> float:
    """P value that the share of column 1 is the same in every row (variant); shape (k, 2).

    Chi-square, or where fewer than 20 are expected in a cell Fisher's exact test of each row against the first.
    """
    table = table[:, table.sum(axis=0) > 0]
    if table.shape[1] < 2:
        return 1.0
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    if expected.min() >= 20:
        return float(chdtrc(len(table) - 1, ((table - expected) ** 2 / expected).sum()))
    from scipy.stats import fisher_exact

    return min(1.0, (len(table) - 1) * min(float(fisher_exact(table[[0, row]])[1]) for row in range(1, len(table))))
