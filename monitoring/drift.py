"""Has the distribution of a feature or of the predictions moved since training? On every row, from counts alone.

Effect sizes, not p values, decide: with enough rows everything is significant. Sources of the rules: the share of
columns over `drift_effect` decides with two weeks' persistence (monitoring.decide); one column over `psi_red_line` is
enough. A Benjamini-Hochberg guard keeps small weeks from alarming by noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import chi2

from campaign import Monitoring
from monitoring.profile import ColumnCounts, Counts, Profile, reference_counts

MIN_ROWS = 500  # with fewer values in the week a column is not judged
FALSE_DISCOVERY_RATE = 0.01
ELIGIBLE_CHANGE = 0.20  # relative change of the share eligible that counts as drift of the predictions


@dataclass(frozen=True)
class ColumnDrift:
    """How far one column moved.

    Attributes:
        name: column.
        role: feature (counts), ignored (a feature that moves by itself) or prediction.
        n: values seen this week.
        effect: Wasserstein distance in reference sds; for strings sqrt(PSI), the same size for small shifts.
        shift: signed change of the mean in reference sds; 0 for strings.
        psi: population stability index over reference deciles, or categories.
        p: chi-square p value of the same table.
        missing: share of rows without a value; missing_ref: in the reference.
        new: categories the reference does not know -> share of this week's values.
        warn: effect over the threshold, significant, and enough rows.
        red: PSI over the red line as well.
    """

    name: str
    role: str
    n: int
    effect: float
    shift: float
    psi: float
    p: float
    missing: float
    missing_ref: float
    new: Mapping[str, float] = field(default_factory=dict)
    warn: bool = False
    red: bool = False


@dataclass(frozen=True)
class Drift:
    """Drift of every column, and of the share eligible."""

    columns: tuple[ColumnDrift, ...]
    share_eligible: float
    share_reference: float

    def of(self, role: str) -> list[ColumnDrift]:
        """Columns of one role, most drifted first."""
        return sorted((c for c in self.columns if c.role == role), key=lambda c: (-c.effect, c.name))

    @property
    def share_warn(self) -> float:
        """Share of the features that count which are over the threshold."""
        features = self.of("feature")
        return sum(c.warn for c in features) / len(features) if features else 0.0

    @property
    def red(self) -> list[str]:
        """Features past the red line."""
        return [c.name for c in self.of("feature") if c.red]

    @property
    def predictions_moved(self) -> bool:
        """A predicted uplift or the score is over the threshold, or the share eligible changed by a fifth."""
        moved = eligible_moved(self.share_eligible, self.share_reference)
        return moved or any(c.warn for c in self.of("prediction"))


def eligible_moved(share: float, reference: float) -> bool:
    """Whether the share eligible changed by a fifth."""
    return abs(share - reference) > ELIGIBLE_CHANGE * max(reference, 0.01)


def measure_drift(profile: Profile, counts: Counts, limits: Monitoring) -> Drift:
    """Compare counts of the current week with the reference profile."""
    reference = reference_counts(profile)
    found = []
    for name, column in profile["columns"].items():
        ref, now = reference.columns[name], counts.columns[name]
        compare = _compare_strings if column["kind"] == "string" else _compare_numbers
        missing = {"missing": now.missing / max(counts.n, 1), "missing_ref": ref.missing / max(reference.n, 1)}
        found.append({"name": name, "role": column["role"], "n": now.present} | missing | compare(column, ref, now))
    significant = benjamini_hochberg([c["p"] for c in found], FALSE_DISCOVERY_RATE)
    columns = []
    for c, is_significant in zip(found, significant, strict=True):
        warn = bool(is_significant and c["n"] >= MIN_ROWS and c["effect"] >= limits.drift_effect)
        columns.append(ColumnDrift(**c, warn=warn, red=warn and c["psi"] >= limits.psi_red_line))
    return Drift(tuple(columns), counts.share_eligible, reference.share_eligible)


def _compare_numbers(column: Mapping[str, Any], ref: ColumnCounts, now: ColumnCounts) -> dict[str, float]:
    """Distances between two binned distributions of a number."""
    edges, ref_bins, now_bins = np.asarray(column["edges"]), np.asarray(ref.bins), np.asarray(now.bins)
    decile = _deciles(ref_bins)
    psi, p = psi_and_p(np.bincount(decile, ref_bins), np.bincount(decile, now_bins))
    if not ref.present or not now.present or column["sd"] == 0:
        return {"effect": float(np.sqrt(psi)), "shift": 0.0, "psi": psi, "p": p}
    gap = np.cumsum(ref_bins)[:-1] / ref.present - np.cumsum(now_bins)[:-1] / now.present
    distance, shift = integrate_gap(edges, gap)
    return {"effect": distance / column["sd"], "shift": shift / column["sd"], "psi": psi, "p": p}


def integrate_gap(edges: np.ndarray, gap: np.ndarray) -> tuple[float, float]:
    """Integrals of |F_ref - F_now| (Wasserstein distance) and of F_ref - F_now (change of the mean) between the edges.

    Args:
        edges: ascending, shape (k,).
        gap: F_ref - F_now at the edges, shape (k,). Within a bin it is taken to be linear, which is exact to first
            order for a continuous column; a column of whole numbers has an edge at (almost) every value, and between
            neighbouring values the gap is constant: that of the lower edge.
    """
    steps = np.diff(edges)
    whole = bool(np.all(edges == np.round(edges)))
    left, right = gap[:-1], gap[:-1] if whole else gap[1:]
    same_sign = left * right >= 0
    total = np.abs(left) + np.abs(right)
    crossing = (left**2 + right**2) / np.where(total > 0, total, 1)
    return float((steps * np.where(same_sign, total, crossing)).sum() / 2), float((steps * (left + right)).sum() / 2)


def _compare_strings(column: Mapping[str, Any], ref: ColumnCounts, now: ColumnCounts) -> dict[str, Any]:
    """Distances between two tables of categories; `new` are those the reference does not know."""
    ref_bins, now_bins = dict(ref.bins), dict(now.bins)
    new = {name: rows for name, rows in now_bins.items() if name not in ref_bins}
    names = [*ref_bins, *new]
    psi, p = psi_and_p(
        np.array([ref_bins.get(name, 0) for name in names]), np.array([now_bins.get(name, 0) for name in names])
    )
    shares = {name: rows / now.present for name, rows in new.items()}
    return {"effect": float(np.sqrt(psi)), "shift": 0.0, "psi": psi, "p": p, "new": shares}


def _deciles(bins: np.ndarray) -> np.ndarray:
    """Decile of the reference that each bin belongs to (a value held by many rows fills several: it stays whole)."""
    middle = (np.cumsum(bins) - bins / 2) / max(bins.sum(), 1)
    return np.unique(np.minimum((middle * 10).astype(int), 9), return_inverse=True)[1]


def psi_and_p(ref: np.ndarray, now: np.ndarray) -> tuple[float, float]:
    """Population stability index of two tables of counts, and the p value of their two-sample chi-square test.

    Half a row is added to each cell, so that an empty cell gives a large and finite index.

    Source: Yurdakul (2018), Statistical properties of population stability index, eq. 2.1.
    """
    if len(ref) < 2 or not ref.sum() or not now.sum():
        return 0.0, 1.0
    ref_share, now_share = (ref + 0.5) / (ref + 0.5).sum(), (now + 0.5) / (now + 0.5).sum()
    psi = float(((now_share - ref_share) * np.log(now_share / ref_share)).sum())
    total = ref + now
    share = total / total.sum()
    used = total > 0
    statistic = sum(((x[used] - x.sum() * share[used]) ** 2 / (x.sum() * share[used])).sum() for x in (ref, now))
    return psi, float(chi2.sf(statistic, max(int(used.sum()) - 1, 1)))


def benjamini_hochberg(p: Sequence[float], rate: float) -> np.ndarray:
    """Which of the p values are significant at this false discovery rate; shape (n,), bool.

    Source: Benjamini, Hochberg (1995), JRSS B 57, 289-300.
    """
    values = np.asarray(p, dtype=float)
    order = np.argsort(values, kind="stable")
    passed = values[order] <= rate * np.arange(1, len(values) + 1) / max(len(values), 1)
    significant = np.zeros(len(values), dtype=bool)
    if passed.any():
        significant[order[: np.flatnonzero(passed)[-1] + 1]] = True
    return significant
