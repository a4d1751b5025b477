"""Is this week's data whole? Broken data stops everything: no drift verdict, no retraining on it.

Each check is a `Check` with what was found, what is allowed, and whether it holds, judged from the sums of the week
(`week_sums`). The columns are checked first; only a table with the right columns is measured further.

What is *not* broken data: new categories and shifted values (monitoring.drift judges them), unless an old category
vanished at the same time (a renamed value), numbers left the range they ever had, or turned overnight into zeros, or
into one value. A change of unit is told from drift only where it piles rows up beyond the reference: minutes written as
hours do where the column's logarithm has an sd below about 1.6; a factor of 2 never does, and asks for a retraining.

The holdout is persistent, and messages change users: after some weeks it has fewer subscribers and other histories than
the rest. So sample ratios are held to a tolerance as well as to a p value, and arms are compared with propensities
outside the holdout, within a tolerance; a broken assignment misses both by far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import chi2, norm

from campaign import Campaign
from monitoring.profile import ColumnCounts, Counts, Profile, reference_counts
from monitoring.week_sums import LAYERS, Shares, WeekSums

FAR_SHARE = 0.01  # of rows further out than the reference range is wide
ZEROS_RISE = 0.15  # of rows that were not 0 and are now
STUCK = 0.30  # of the rows elsewhere that turned to one bin of a number; a bell curve that moves by 2.6 sds has this
ONE_CATEGORY = 0.50  # the same of a category: a flood of users of one country is no broken data
VANISHED, RENAMED = 0.1, 0.05  # an old category at a tenth of its share while new ones hold this much
NO_VALUE = ("", "nan", "none", "null", "n/a", "undefined")  # written for a missing value; not NA, which is Namibia
ZERO = -1  # in place of a bin
REQUEST = ("hour_sin", "hour_cos", "is_evening", "surface_seen")  # whoever asks chooses when and where: any value goes
LAYER_TOLERANCE, SEGMENT_TOLERANCE = 0.05, 0.25  # relative departure of a layer's share
PROPENSITY_TOLERANCE = 0.05  # departure of an arm's share from its mean propensity
MIN_GROUP = 200  # decisions below which arms are not compared with propensities
FAILURES = ("stale_features", "feature_store_error", "model_unavailable", "unknown_user")
FAILURE_SHARE = 0.05
OLD_SHARE = 0.01  # of features that may be older than allowed


@dataclass(frozen=True)
class Check:
    """One check: `value` was found, `limit` is allowed; `detail` says where, for a person."""

    name: str
    ok: bool
    value: float
    limit: float
    detail: str


def check_schema(sums: WeekSums) -> list[Check]:
    """What is never right of a column; one Check per column and rule, with row count and an example."""
    found = []
    for (column, rule), fault in sorted(sums.faults.items()):
        if rule == "column_in_dataframe":
            found.append(Check("schema", False, 1, 0, f"column {column!r} is missing"))
        elif rule == "field_uniqueness":
            repeated = f"{column}: {fault.rows} repeated values, first {fault.example!r}"
            found.append(Check("duplicates", False, fault.rows, 0, repeated))
        else:
            detail = f"{column}: {rule} fails in {fault.rows} of {sums.n} rows, first value {fault.example!r}"
            found.append(Check("schema", False, fault.rows, 0, detail))
    return found or [Check("schema", True, 0, 0, f"{sums.n} rows with the right columns")]


def check_week(
    sums: WeekSums,
    profile: Profile,
    campaign: Campaign,
    *,
    expected_rows: float,
    quarantined: Sequence[str] = (),
) -> list[Check]:
    """Every check on a table whose columns are right.

    Args:
        sums: of the week.
        profile: the champion's reference profile.
        campaign: limits, arms.
        expected_rows: of a week like the last ones.
        quarantined: raw log files that arrived this week and were refused.
    """
    limits = campaign.monitoring
    low, high = expected_rows / limits.row_count_factor, expected_rows * limits.row_count_factor
    checks = [
        Check("quarantine", not quarantined, len(quarantined), 0, "; ".join(quarantined[:3]) or "no log file refused"),
        Check("rows", low <= sums.n <= high, sums.n, high, f"{sums.n} rows; {low:.0f} to {high:.0f} expected"),
    ]
    # without rows the service was down all week, or its log was not compacted: there is nothing else to look at
    if not sums.n or sums.counts is None or sums.settled is None:
        return checks
    # of users whose account fills its windows: a flood of newcomers is not broken data
    settled = sums.settled if sums.settled.n >= MIN_GROUP else sums.counts
    return [
        *checks,
        *_columns(profile, settled, sums.counts, campaign),
        *_ages(sums, campaign),
        *_layers(sums, campaign),
        *_arms(sums, campaign),
    ]


def _columns(profile: Profile, settled: Counts, everybody: Counts, campaign: Campaign) -> list[Check]:
    """Missing values, ranges, zeros, single values and renamed categories of every feature.

    Newcomers have few values and other ones, so `settled` accounts are judged; of `everybody` only what is wrong on an
    account's first day too: a string without a value (profiles come with the sign-up), one written for no value or
    spelled anew, and numbers far outside.
    """
    reference, n, n_whole = reference_counts(profile), max(settled.n, 1), max(everybody.n, 1)
    worst: dict[str, tuple[float, str]] = {}
    turned_to: dict[str, str] = {}
    for name, column in profile["columns"].items():
        ref, now, whole = reference.columns[name], settled.columns[name], everybody.columns[name]
        missing, missing_ref = now.missing / n, ref.missing / reference.n
        if column["kind"] == "string":
            missing = max(missing, whole.missing / n_whole)
        found = {"missing": missing - missing_ref, "range": max(now.far / n, whole.far / n_whole)}
        if name not in REQUEST:
            found["zeros"] = now.zeros / max(now.present, 1) - ref.zeros / max(ref.present, 1)
            if column["role"] == "feature":
                kind = "one_category" if column["kind"] == "string" else "stuck"
                found[kind], cell = _turned(_cells(column, ref), _cells(column, now))
                turned_to[name] = _cell_in_words(column, cell)
        if column["role"] == "ignored":  # moves by itself; broken only when it is gone
            found = {"missing": missing - missing_ref if missing > 0.99 else 0.0}
        if isinstance(ref.bins, Mapping) and isinstance(now.bins, Mapping) and isinstance(whole.bins, Mapping):
            renamed = _renamed(ref.bins, now.bins, any_news=column["role"] != "ignored")
            found["renamed"] = max(renamed, _renamed(ref.bins, whole.bins, any_news=False))
        for kind, value in found.items():
            if value > worst.get(kind, (-1.0, ""))[0]:
                worst[kind] = (float(value), name)
    allowed = {
        "missing": (campaign.monitoring.missing_delta, "share of rows without a value rose by {:.3f}"),
        "range": (FAR_SHARE, "{:.3f} of the rows are far outside the reference range"),
        "zeros": (ZEROS_RISE, "share of zeros rose by {:.3f}"),
        "stuck": (STUCK, "{:.3f} of the rows turned to one value or its neighbours, {}"),
        "one_category": (ONE_CATEGORY, "{:.3f} of the rows turned to one category, {}"),
        "renamed": (RENAMED, "{:.3f} of the rows have a renamed category, or words for a missing one"),
    }
    checks = []
    for kind, (limit, text) in allowed.items():
        if kind in worst:
            value, name = worst[kind]
            detail = f"{name}: {text.format(value, turned_to.get(name))}"
            checks.append(Check(kind, value <= limit, value, limit, detail))
    return checks


def _cells(column: Mapping[str, Any], counts: ColumnCounts) -> dict[Any, int]:
    """Rows of each category; or of each bin of a number without its zeros, which have a check of their own."""
    if isinstance(counts.bins, Mapping):
        return dict(counts.bins)
    rows = np.array(counts.bins)
    rows[np.searchsorted(column["edges"], 0.0)] -= counts.zeros
    return {**dict(enumerate(rows.tolist())), ZERO: counts.zeros}


def _cell_in_words(column: Mapping[str, Any], cell: Any) -> str:
    if cell is None:
        return "none"
    if column["kind"] == "string":
        return repr(cell)
    edges = [-np.inf, *column["edges"], np.inf]
    return f"above {edges[cell]:g} up to {edges[cell + 1]:g}"


def _turned(ref: Mapping[Any, int], now: Mapping[Any, int]) -> tuple[float, Any]:
    """Largest share of the rows elsewhere that must have turned to one cell, zero left out; and that cell, or None.

    0 where a cell's share rose by less than ZEROS_RISE, or the week has too few values: a small rise of what nearly
    everybody has is no news.
    """
    n_ref, n_now = sum(ref.values()), sum(now.values())
    if not n_ref or n_now < MIN_GROUP:
        return 0.0, None
    shares = [(ref.get(cell, 0) / n_ref, rows / n_now, cell) for cell, rows in now.items() if cell != ZERO]
    return max(
        (((new - old) / (1 - old), cell) for old, new, cell in shares if new - old >= ZEROS_RISE), default=(0.0, None)
    )


def _renamed(ref: Mapping[str, int], now: Mapping[str, int], *, any_news: bool) -> float:
    """Share of new categories that are no news: words for no value, or an old category but for case and blanks.

    Where a category that was common has (almost) vanished, every new one is its new name, if `any_news`.
    """
    n_ref, n_now = sum(ref.values()), sum(now.values())
    if not n_ref or not n_now:
        return 0.0
    gone = any_news and any(
        rows / n_ref >= RENAMED and now.get(name, 0) / n_now < VANISHED * rows / n_ref for name, rows in ref.items()
    )
    known = {*NO_VALUE, *(name.strip().lower() for name in ref)}
    new = {name: rows for name, rows in now.items() if name not in ref}
    return sum(rows for name, rows in new.items() if gone or name.strip().lower() in known) / n_now


def _ages(sums: WeekSums, campaign: Campaign) -> list[Check]:
    """Decisions that had no features, or old ones."""
    failed = {reason: sums.reasons[reason] for reason in FAILURES if sums.reasons[reason]}
    share = sum(failed.values()) / sums.n
    detail = "reasons: " + (", ".join(f"{reason} {n}" for reason, n in failed.items()) or "none")
    checks = [Check("failures", share <= FAILURE_SHARE, share, FAILURE_SHARE, detail)]
    ages, limit = sums.ages, campaign.monitoring.max_feature_age_days
    if ages.n:
        old = ages.old / ages.n
        detail = f"{old:.3f} of the features were older than {limit} days"
        checks.append(Check("feature_age", old <= OLD_SHARE, old, OLD_SHARE, detail))
        youngest = f"youngest feature: {ages.youngest:.2f} days old"
        checks.append(Check("feature_future", ages.youngest >= 0, ages.youngest, 0, youngest))
    return checks


def _layers(sums: WeekSums, campaign: Campaign) -> list[Check]:
    """Sample ratio of the random layers: overall, and in each segment."""
    checks = []
    for phase, names in LAYERS.items():
        groups: dict[str, dict[tuple[Shares, str], int]] = {}
        for (where, group, shares, layer), n in sorted(sums.layers.items()):
            if where == phase:
                groups.setdefault(group, {})[shares, layer] = n
        alpha = campaign.monitoring.srm_p / max(len(groups), 1)
        results = {group: _ratio(group, rows, names, alpha) for group, rows in groups.items()}
        if "all" in results:
            checks.append(Check("sample_ratio", *results.pop("all")))
        if results:
            checks.append(Check("sample_ratio_segment", *min(results.values(), key=lambda r: (r[0], r[1]))))
    return checks


def _ratio(
    group: str, rows: Mapping[tuple[Shares, str], int], names: Sequence[str], alpha: float
) -> tuple[bool, float, float, str]:
    """Chi-square of the layers' rows against the shares each was drawn with: (holds, p, alpha, detail).

    A row with shares s adds diag(s) - s s' to the covariance of the counts; with the same shares in all rows the
    statistic is Pearson's.

    Args:
        group: "all", or a segment.
        rows: (shares, layer) -> rows.
        names: of the layers that the shares are of; every other layer is the rest.
        alpha: level.
    """
    kinds = sorted({shares for shares, _ in rows})
    share = np.array([[*shares, 1 - sum(shares)] for shares in kinds])
    seen = np.zeros(share.shape)
    for (shares, layer), n in rows.items():
        seen[kinds.index(shares), names.index(layer) if layer in names else -1] += n
    drawn, observed = seen.sum(axis=1), seen.sum(axis=0)
    n, expected = int(drawn.sum()), drawn @ share
    gap, covariance = observed - expected, np.diag(expected) - (share.T * drawn) @ share
    random = np.flatnonzero(expected[:-1] > 0)
    p, off = 1.0, np.abs(gap[random] / expected[random]).max(initial=0.0)
    enough = np.maximum(expected, observed / 5)[random] >= 5  # 25 rows where fewer than 5 are expected are no chance
    if seen[share < 1e-9].any():  # nobody can be in a layer without a share
        p, off = 0.0, np.inf
    elif len(random) and enough.all():
        statistic = gap @ np.linalg.pinv(covariance, rcond=1e-12, hermitian=True) @ gap
        p = float(chi2.sf(statistic, np.count_nonzero(expected > 1e-9 * n) - 1))
    tolerance = LAYER_TOLERANCE if group == "all" else SEGMENT_TOLERANCE
    found = zip(names, observed / n, expected / n, strict=False)
    detail = ", ".join(f"{name} {rate:.4f} (expected {wanted:.4f})" for name, rate, wanted in found)
    return not (p < alpha and off > tolerance), p, alpha, f"{group}: {detail} of {n} rows, p = {p:.2g}"


def _arms(sums: WeekSums, campaign: Campaign) -> list[Check]:
    """Arms against propensities: holdout gets control, probabilities sum to 1, arms are as frequent as logged."""
    wrong, off = sums.wrong_arm, sums.off
    words = f"{off} rows whose propensities do not sum to 1, or fit neither the arm nor the holdout"
    return [
        Check("holdout_arm", wrong == 0, wrong, 0, f"{wrong} holdout decisions with a message"),
        Check("propensity", off == 0, off, 0, words),
        *_calibration(sums, campaign),
    ]


def _calibration(sums: WeekSums, campaign: Campaign) -> list[Check]:
    """Share of each arm against its mean propensity, outside the holdout, over the threshold and below it."""
    alpha, checks = campaign.monitoring.srm_p, []
    for words, of_arms in sums.arms.items():
        n = int(of_arms[:, 2].sum())
        if n < MIN_GROUP:
            continue
        for name, (chance, spread, share) in zip(campaign.arm_names, of_arms / n, strict=True):
            gap = abs(share - chance)
            p = float(2 * norm.sf(gap / max(np.sqrt(spread / n), 1e-12)))
            detail = f"arm {name}, {words}: share {share:.4f}, mean propensity {chance:.4f}, p = {p:.2g}"
            ok = not (p < alpha and gap > PROPENSITY_TOLERANCE)
            checks.append(Check("calibration", bool(ok), p, alpha, detail))
    return checks
