"""Thresholds from your own quiet weeks: how much moves when nothing is wrong.

Every platform wobbles: weekdays, campaigns, seasons. From the stats.json of weeks in which nothing was wrong, each
threshold is the value that such a week, or two in a row where the rule wants two, exceeds with no more than its share
of the false alarm budget (upper prediction bounds). With few weeks the bound is wide, as it must be.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.stats import chi2, norm
from scipy.stats import t as student

from campaign import Campaign, DataError
from models.verdicts import read_verdict, week_folders
from monitoring.decide import PERSISTENCE_WEEKS
from monitoring.drift import eligible_moved
from monitoring.realised import LOOKS_PER_YEAR, REALISED_SHARE

MIN_WEEKS = 6
# below these nothing matters in practice, however quiet the weeks were
FLOORS = {"drift_effect": 0.05, "psi_red_line": 0.10, "missing_delta": 0.02, "row_count_factor": 1.5}
RED_LINE_CEILING = 0.5  # unless a quiet week had more; see `calibrate`


@dataclass(frozen=True)
class Calibration:
    """Proposed [monitoring] thresholds, what the campaign has now, and the weeks they rest on.

    `red_line_wanted`: the bound of `psi_red_line` from so few weeks, where it is too high to be proposed.
    """

    proposed: Mapping[str, float]
    current: Mapping[str, float]
    weeks: tuple[str, ...]
    red_line_wanted: float | None = None

    def summary(self) -> dict[str, Any]:
        """What a machine reads."""
        return {"proposed": dict(self.proposed), "current": dict(self.current), "weeks": list(self.weeks)}

    def text(self) -> str:
        """Lines for campaign.toml."""
        lines = [f"# calibrated on {len(self.weeks)} quiet weeks, {self.weeks[0]} to {self.weeks[-1]}", "[monitoring]"]
        lines += [f"{name} = {value:g}  # was {self.current[name]:g}" for name, value in self.proposed.items()]
        if self.red_line_wanted is not None:
            lines.append(
                f"# psi_red_line: {len(self.weeks)} weeks bound it by {self.red_line_wanted:.2g} only, which a new "
                f"market may not reach: held at {self.proposed['psi_red_line']:g}; calibrate again on more weeks"
            )
        return "\n".join(lines)


def calibrate(stats: Mapping[str, Mapping[str, Any]], campaign: Campaign) -> Calibration:
    """Propose thresholds.

    The red line alone is held down: it is there for a change that need not persist to be believed, as a tenth of the
    users in an unknown category (PSI about 0.8 against 20,000 rows). The bound from six wobbling weeks can be 3.7,
    which no new market passes; that says how little six weeks tell, and nothing about the platform. So it stays at
    RED_LINE_CEILING, or at the largest PSI that the quiet weeks had; more quiet weeks would show what that costs in
    false alarms.

    Args:
        stats: ISO week -> content of its stats.json; weeks in which nothing was wrong.
        campaign: false alarm budget and drift share.

    Raises: DataError: fewer than MIN_WEEKS weeks with a drift measurement.
    """
    quiet = {week: s for week, s in sorted(stats.items()) if s.get("drift")}
    if len(quiet) < MIN_WEEKS:
        raise DataError(
            f"{len(quiet)} quiet weeks with statistics ({', '.join(quiet) or 'none'}), at least {MIN_WEEKS} needed; "
            "run `tactful monitor --week DATE` for more weeks in which nothing was wrong"
        )
    weekly = [_of_week(s, campaign.monitoring.drift_share) for s in quiet.values()]
    psi, missing, rows = (np.array([w[name] for w in weekly]) for name in ("psi", "missing", "rows"))
    budget = (1 - REALISED_SHARE) * campaign.monitoring.yearly_false_alarm / LOOKS_PER_YEAR
    alpha = budget / 3  # each rule of drift: share of the features, features with predictions, red line
    # Effects are like the size of a normal number, whose 2/3 power is nearly normal (Wilson, Hilferty 1931, PNAS 17)
    effects = [np.array([w[rule] for w in weekly]) ** (2 / 3) for rule in ("features", "with_predictions")]
    bounds = {
        "drift_effect": max(persisting_bound(effect, alpha) for effect in effects) ** 1.5,
        "psi_red_line": np.exp(prediction_bound(np.log(psi), alpha)),
        "missing_delta": prediction_bound(missing, budget),
        "row_count_factor": np.exp(prediction_bound(np.abs(np.log(rows / np.median(rows))), budget)),
    }
    ceiling = max(RED_LINE_CEILING, float(psi.max()))
    wanted, bounds["psi_red_line"] = bounds["psi_red_line"], min(bounds["psi_red_line"], ceiling)
    proposed = {name: float(f"{max(bound, FLOORS[name]):.2g}") for name, bound in bounds.items()}
    current = {name: float(getattr(campaign.monitoring, name)) for name in proposed}
    return Calibration(proposed, current, tuple(quiet), float(wanted) if wanted > ceiling else None)


def _of_week(stats: Mapping[str, Any], drift_share: float) -> dict[str, float]:
    """What the thresholds are held against.

    `features` is the largest threshold at which `drift_share` of the features are over it, `with_predictions` that at
    which one feature is and the predictions have moved: at either the week would drift. The others are worst cases.
    """
    drift = stats["drift"]
    features = [c for c in drift["columns"] if c["role"] == "feature"]
    effects = sorted((c["effect"] for c in features), reverse=True)
    predicted = max((c["effect"] for c in drift["columns"] if c["role"] == "prediction"), default=0.0)
    moved = eligible_moved(drift["share_eligible"], drift["share_reference"])
    return {
        "features": effects[max(ceil(drift_share * len(effects)), 1) - 1],
        "with_predictions": effects[0] if moved else min(effects[0], predicted),
        "psi": max(c["psi"] for c in features),
        "missing": max(c["missing"] - c["missing_ref"] for c in features),
        "rows": next(check["value"] for check in stats["checks"] if check["name"] == "rows"),
    }


def prediction_bound(values: np.ndarray, alpha: float) -> float:
    """Value that the next one exceeds with probability alpha, if they are normal.

    Source: Hahn, Meeker (1991), Statistical Intervals, section 4.7: mean + t(n-1) sd sqrt(1 + 1/n).
    """
    n = len(values)
    return float(values.mean() + student.isf(alpha, n - 1) * values.std(ddof=1) * np.sqrt(1 + 1 / n))


def persisting_bound(values: np.ndarray, alpha: float) -> float:
    """Value that both of the next two exceed with probability alpha, if all are normal and independent."""
    return float(values.mean() + persisting_factor(len(values), alpha) * values.std(ddof=1))


def persisting_factor(n: int, alpha: float) -> float:
    """Sample sds above the mean of n values that both of the next two exceed with probability alpha.

    More than for one at sqrt(alpha): a bound that came out low by chance is exceeded by both.

    Source: Fertig, Mann (1977), Technometrics 19, 167-177: at least 1 of 2 future observations below the bound.
    """
    u = (np.arange(200) + 0.5) / 200
    mean, sd = norm.ppf(u)[:, None] / np.sqrt(n), np.sqrt(chi2.ppf(u, n - 1) / (n - 1))  # of samples of N(0, 1)
    return float(brentq(lambda k: np.mean(norm.sf(mean + k * sd) ** 2) - alpha, 0, 1000))


def read_stats(out_dir: Path, weeks: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """The stats.json of the named weeks (ISO, "2026-W07"), or of every quiet week.

    Raises: DataError: a named week has none.
    """
    folders = [folder for folder in week_folders(out_dir) if (folder / "stats.json").exists()]
    files = {folder.name: folder / "stats.json" for folder in folders}
    absent = [week for week in weeks if week not in files]
    if absent:
        there = ", ".join(files) or "none"
        raise DataError(f"{out_dir}: no stats.json of {', '.join(absent)}; weeks there are: {there}")
    chosen = weeks or [folder.name for folder in folders if _quiet(read_verdict(folder))]
    return {week: json.loads(files[week].read_text(encoding="utf-8")) for week in chosen}


def _quiet(verdict: Mapping[str, Any]) -> bool:
    """Whether nothing was wrong, or only what may have passed by the next week.

    A change whose alarm is answered, or waits for the end of a cooldown, is a `warn` week after week, and no wobble.
    """
    if verdict["action"] != "warn":
        return bool(verdict["action"] == "none")
    codes = {reason.partition(":")[0] for reason in verdict["reasons"]}
    return codes <= {"feature_drift", "prediction_drift"} and verdict["drift_weeks"] < PERSISTENCE_WEEKS
