"""Is this week's data whole? Broken data stops everything: no drift verdict, no retraining on it.

Each check is a `Check` with what was found, what is allowed, and whether it holds. The columns are checked first
(pandera); only a table with the right columns is measured further.

What is *not* broken data: new categories and shifted values (monitoring.drift judges them), unless an old category
vanished at the same time (a renamed value), numbers left the range they ever had, or turned into zeros overnight.

The holdout is persistent, and messages change users: after some weeks it has fewer subscribers and other histories than
the rest. So sample ratios are held to a tolerance as well as to a p value, and arms are compared with propensities
outside the holdout, within a tolerance; a broken assignment misses both by far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import chisquare, norm

from campaign import Campaign
from models.propensities import given_variant, outside_holdout
from monitoring.profile import Counts, Profile, count_rows, prediction_names, reference_counts

FAR_SHARE = 0.01  # of rows further out than the reference range is wide
ZEROS_RISE = 0.15  # of rows that were not 0 and are now
VANISHED, RENAMED = 0.1, 0.05  # an old category at a tenth of its share while new ones hold this much
LAYER_TOLERANCE, SEGMENT_TOLERANCE = 0.05, 0.25  # relative departure of a layer's share
PROPENSITY_TOLERANCE = 0.05  # departure of an arm's share from its mean propensity
NEWCOMER, NEWCOMER_DAYS = "account_age_days", 28  # a younger account has few values, and zeros
MIN_GROUP = 200  # decisions below which arms are not compared with propensities
FAILURES = ("stale_features", "feature_store_error", "model_unavailable", "unknown_user")
FAILURE_SHARE = 0.05


@dataclass(frozen=True)
class Check:
    """One check: `value` was found, `limit` is allowed; `detail` says where, for a person."""

    name: str
    ok: bool
    value: float
    limit: float
    detail: str


def check_schema(frame: pd.DataFrame, features: Mapping[str, str], campaign: Campaign) -> list[Check]:
    """Columns, types and values that are never right, by pandera; one Check per kind of failure.

    Args:
        frame: decisions of the week with features and predictions.
        features: name -> "numeric" | "string".
        campaign: arms and outcomes.
    """
    import pandera.errors
    import pandera.pandas as pa

    number, text = pa.Column(float, nullable=True), pa.Column(object, pa.Check(_is_text), nullable=True)
    finite = pa.Column(float, pa.Check(np.isfinite, element_wise=False), nullable=False)
    schema = pa.DataFrameSchema(
        {
            "decision_id": pa.Column(object, unique=True, report_duplicates="exclude_first"),
            "user_id": pa.Column(object),
            "decided_at": pa.Column(pd.DatetimeTZDtype("us", "UTC")),
            "layer": pa.Column(object, pa.Check.isin(["holdout", "exploration", "experiment", "policy"])),
            "arm": pa.Column(int, pa.Check.in_range(0, len(campaign.arm) - 1), coerce=True),
            "propensity": pa.Column(float, pa.Check.in_range(0, 1, include_min=False)),
            "reason": pa.Column(object),
            "eligible_by_policy": pa.Column(bool),
        }
        | {name: number if kind == "numeric" else text for name, kind in features.items()}
        | dict.fromkeys(prediction_names(campaign), finite)
    )
    try:
        schema.validate(frame, lazy=True)
    except pandera.errors.SchemaErrors as error:
        return _failures(error.failure_cases, len(frame))
    return [Check("schema", True, 0, 0, f"{len(frame)} rows, {len(frame.columns)} columns")]


def _is_text(values: pd.Series) -> pd.Series:
    if pd.api.types.infer_dtype(values, skipna=True) == "string":
        return pd.Series(True, index=values.index)
    return values.map(lambda value: isinstance(value, str))


def _failures(cases: pd.DataFrame, n: int) -> list[Check]:
    """The failures that pandera found, as one Check per column and rule, with row count and an example."""
    found = []
    for (column, rule), rows in cases.groupby([cases["column"].fillna(""), "check"], sort=True):
        example = rows["failure_case"].iloc[0]
        if rule == "column_in_dataframe":
            found.append(Check("schema", False, 1, 0, f"column {example!r} is missing"))
        elif rule == "field_uniqueness":
            found.append(
                Check("duplicates", False, len(rows), 0, f"{column}: {len(rows)} repeated values, first {example!r}")
            )
        else:
            detail = f"{column}: {rule} fails in {len(rows)} of {n} rows, first value {example!r}"
            found.append(Check("schema", False, len(rows), 0, detail))
    return found


def check_week(
    frame: pd.DataFrame,
    profile: Profile,
    counts: Counts,
    campaign: Campaign,
    *,
    expected_rows: float,
    quarantined: Sequence[str] = (),
) -> list[Check]:
    """Every check on a table whose columns are right.

    Args:
        frame: decisions of the week.
        profile: the champion's reference profile.
        counts: `count_rows(profile, frame)`.
        campaign: limits, shares of the layers, segments.
        expected_rows: of a week like the last ones.
        quarantined: raw log files that arrived this week and were refused.
    """
    limits = campaign.monitoring
    low, high = expected_rows / limits.row_count_factor, expected_rows * limits.row_count_factor
    checks = [
        Check("quarantine", not quarantined, len(quarantined), 0, "; ".join(quarantined[:3]) or "no log file refused"),
        Check(
            "rows", low <= len(frame) <= high, len(frame), high, f"{len(frame)} rows; {low:.0f} to {high:.0f} expected"
        ),
    ]
    if frame.empty:  # the service was down all week, or its log was not compacted: there is nothing else to look at
        return checks
    return [
        *checks,
        *_columns(profile, _settled(frame, profile, counts), campaign),
        *_ages(frame, campaign),
        *_layers(frame, campaign),
        *_arms(frame, campaign),
    ]


def _settled(frame: pd.DataFrame, profile: Profile, counts: Counts) -> Counts:
    """Counts of users whose account fills its windows: a flood of newcomers is not broken data."""
    if NEWCOMER not in frame:
        return counts
    settled = ~(frame[NEWCOMER] < NEWCOMER_DAYS).to_numpy()
    return count_rows(profile, frame[settled]) if MIN_GROUP <= settled.sum() < len(frame) else counts


def _columns(profile: Profile, counts: Counts, campaign: Campaign) -> list[Check]:
    """Missing values, ranges, zeros and renamed categories of every feature."""
    reference, n = reference_counts(profile), max(counts.n, 1)
    worst: dict[str, tuple[float, str]] = {}
    for name, column in profile["columns"].items():
        ref, now = reference.columns[name], counts.columns[name]
        missing, missing_ref = now.missing / n, ref.missing / reference.n
        found = {
            "missing": missing - missing_ref,
            "range": now.far / n,
            "zeros": now.zeros / max(now.present, 1) - ref.zeros / max(ref.present, 1),
            "renamed": _renamed(ref.bins, now.bins) if column["kind"] == "string" else 0.0,
        }
        if column["role"] == "ignored":  # moves by itself; broken only when it is gone
            found = {"missing": missing - missing_ref if missing > 0.99 else 0.0}
        for kind, value in found.items():
            if value > worst.get(kind, (-1.0, ""))[0]:
                worst[kind] = (float(value), name)
    allowed = {
        "missing": (campaign.monitoring.missing_delta, "share of rows without a value rose by {:.3f}"),
        "range": (FAR_SHARE, "{:.3f} of the rows are far outside the reference range"),
        "zeros": (ZEROS_RISE, "share of zeros rose by {:.3f}"),
        "renamed": (RENAMED, "{:.3f} of the rows have new categories while an old one vanished"),
    }
    return [
        Check(kind, worst[kind][0] <= limit, worst[kind][0], limit, f"{worst[kind][1]}: {text.format(worst[kind][0])}")
        for kind, (limit, text) in allowed.items()
        if kind in worst
    ]


def _renamed(ref: Any, now: Any) -> float:
    """Share of new categories, where a category that was common has (almost) vanished; else 0."""
    n_ref, n_now = sum(ref.values()), sum(now.values())
    if not n_ref or not n_now:
        return 0.0
    gone = any(
        rows / n_ref >= RENAMED and now.get(name, 0) / n_now < VANISHED * rows / n_ref for name, rows in ref.items()
    )
    return sum(rows for name, rows in now.items() if name not in ref) / n_now if gone else 0.0


def _ages(frame: pd.DataFrame, campaign: Campaign) -> list[Check]:
    """Decisions that had no features, or old ones."""
    failed = frame["reason"].isin(FAILURES)
    detail = "reasons: " + (", ".join(f"{k} {v}" for k, v in frame["reason"][failed].value_counts().items()) or "none")
    checks = [Check("failures", failed.mean() <= FAILURE_SHARE, float(failed.mean()), FAILURE_SHARE, detail)]
    if "feature_timestamp" in frame and frame["feature_timestamp"].notna().any():
        age = (frame["decided_at"] - frame["feature_timestamp"]).dt.total_seconds() / 86_400
        old, limit = float(age.quantile(0.99)), campaign.monitoring.max_feature_age_days
        checks.append(
            Check("feature_age", old <= limit, old, limit, f"99% of the features were younger than {old:.2f} days")
        )
        checks.append(
            Check("feature_future", age.min() >= 0, float(age.min()), 0, f"youngest feature: {age.min():.2f} days old")
        )
    return checks


def _layers(frame: pd.DataFrame, campaign: Campaign) -> list[Check]:
    """Sample ratio of the random layers: overall, and in each segment."""
    service = frame["model_tag"].fillna("") != "" if "model_tag" in frame else pd.Series(True, index=frame.index)
    checks = []
    for rows, name in ((frame[service], "service"), (frame[~service], "random phase")):
        if len(rows) == 0:
            continue
        shares = _layer_shares(campaign, name == "service")
        groups = [("all", rows["layer"])]
        for column in campaign.segments.columns:
            groups += [(f"{column}={value}", part["layer"]) for value, part in rows.groupby(column, observed=True)]
        results = [_ratio(group, layer, shares, campaign.monitoring.srm_p / len(groups)) for group, layer in groups]
        first, *segments = results
        checks.append(Check("sample_ratio", *first))
        if segments:
            worst = min(segments, key=lambda r: (r[0], r[1]))
            checks.append(Check("sample_ratio_segment", *worst))
    return checks


def _layer_shares(campaign: Campaign, service: bool) -> dict[str, float]:
    """Expected share of each random layer; the rest is "other"."""
    holdout, exploration = campaign.assignment.holdout_share, campaign.assignment.exploration_share
    return {"holdout": holdout} | ({"exploration": exploration} if service else {})


def _ratio(group: str, layer: pd.Series, shares: Mapping[str, float], alpha: float) -> tuple[bool, float, float, str]:
    """Chi-square of the layers' rows against their shares: (holds, p, alpha, detail)."""
    n = len(layer)
    rows = {name: int((layer == name).sum()) for name in shares}
    observed = np.array([*rows.values(), n - sum(rows.values())])
    expected = np.array([*shares.values(), 1 - sum(shares.values())]) * n
    used = expected > 0
    p = float(chisquare(observed[used], expected[used]).pvalue) if n * min(shares.values()) >= 5 else 1.0
    tolerance = LAYER_TOLERANCE if group == "all" else SEGMENT_TOLERANCE
    off = max(abs(rows[name] / n / share - 1) for name, share in shares.items())
    detail = ", ".join(f"{name} {rows[name] / n:.4f} (expected {share:.4f})" for name, share in shares.items())
    return not (p < alpha and off > tolerance), p, alpha, f"{group}: {detail} of {n} rows, p = {p:.2g}"


def _arms(frame: pd.DataFrame, campaign: Campaign) -> list[Check]:
    """Arms against propensities: holdout gets control, probabilities sum to 1, arms are as frequent as logged."""
    wrong = int(((frame["layer"] == "holdout") & (frame["arm"] != 0)).sum())
    checks = [Check("holdout_arm", wrong == 0, wrong, 0, f"{wrong} holdout decisions with a message")]
    table = np.array(frame["propensities"].tolist(), dtype=float)
    own = table[np.arange(len(frame)), frame["arm"].to_numpy(dtype=np.int64)]
    random, holdout = (own > 0) & (own < 1), campaign.assignment.holdout_share
    small = random & (table[:, 0] < holdout - 1e-9)  # the holdout alone makes control likelier
    off = int((small | (np.abs(table.sum(axis=1) - 1) > 1e-6) | (np.abs(own - frame["propensity"]) > 1e-9)).sum())
    words = f"{off} rows whose propensities do not sum to 1, or fit neither the arm nor the holdout"
    checks.append(Check("propensity", off == 0, off, 0, words))
    outside = random & ~small & (frame["layer"] != "holdout").to_numpy()
    table[outside] = outside_holdout(table[outside], holdout)
    table[outside] = given_variant(frame[outside], table[outside], holdout, campaign.assignment.exploration_share)
    return [*checks, *_calibration(frame, table, outside, campaign)]


def _calibration(frame: pd.DataFrame, table: np.ndarray, random: np.ndarray, campaign: Campaign) -> list[Check]:
    """Share of each arm against its mean propensity, outside the holdout, over the threshold and below it."""
    eligible, arm, alpha = frame["eligible_by_policy"].to_numpy(), frame["arm"].to_numpy(), campaign.monitoring.srm_p
    checks = []
    for group, words in ((random & eligible, "over the threshold"), (random & ~eligible, "below the threshold")):
        n = int(group.sum())
        for a, name in enumerate(campaign.arm_names if n >= MIN_GROUP else ()):
            chance, share = table[group, a], float((arm[group] == a).mean())
            gap = abs(share - float(chance.mean()))
            p = float(2 * norm.sf(gap / max(np.sqrt((chance * (1 - chance)).mean() / n), 1e-12)))
            detail = f"arm {name}, {words}: share {share:.4f}, mean propensity {chance.mean():.4f}, p = {p:.2g}"
            checks.append(Check("calibration", not (p < alpha and gap > PROPENSITY_TOLERANCE), p, alpha, detail))
    return checks
