"""The weekly decision, as a pure function: statistics of the week + earlier decisions + campaign -> Decision.

In this order; the first that holds gives the action:

    a data check failed                                        stop     20
    realised uplift is not what it was at training             retrain  10
    one feature is past the red line                           retrain  10
    drift of features (or of predictions together with some
    feature), this week and the week before                    retrain  10
    any drift, or one of the above during the cooldown         warn      0
    otherwise                                                  none      0

A retraining is followed by `cooldown_weeks` without another. Drift that a retraining of this champion has answered (the
gate kept it) asks again only for more columns, or when decisions of the drifted weeks have matured: until then there is
nothing new to train on. A ranking that is upside down (slope significantly below
0) sets `fallback` at once, cooldown or not: the champion does harm until it is replaced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from campaign import Campaign
from monitoring.checks import Check
from monitoring.drift import Drift
from monitoring.realised import Realised

EXIT_CODES = {"none": 0, "warn": 0, "retrain": 10, "stop": 20}
PERSISTENCE_WEEKS = 2
DRIFT_CODES = ("feature_drift", "red_line")


@dataclass(frozen=True)
class Statistics:
    """What was measured; drift and realised are None where the data is broken or nothing could be said."""

    checks: tuple[Check, ...]
    drift: Drift | None = None
    realised: Realised | None = None

    @property
    def failed(self) -> list[Check]:
        """Checks that do not hold."""
        return [check for check in self.checks if not check.ok]


@dataclass(frozen=True)
class Decision:
    """The verdict of one week.

    Attributes:
        week: Monday of the week.
        champion: model tag; empty without one.
        action: none, warn, retrain or stop.
        reasons: "code:what", e.g. "feature_drift:country,plan"; see docs/monitoring.md.
        fallback: serve send-none or the previous champion until the next promotion.
        drift_weeks: weeks in a row with drift, this one included.
        record: everything else that decision.json holds.
    """

    week: date
    champion: str
    action: str
    reasons: tuple[str, ...]
    fallback: bool = False
    drift_weeks: int = 0
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """Of `tactful monitor`: 0 nothing to do, 10 retrain, 20 the data is broken."""
        return EXIT_CODES[self.action]

    def as_dict(self) -> dict[str, Any]:
        """Content of decision.json, schema 1."""
        return {
            **self.record,
            "schema": 1,
            "week": week_name(self.week),
            "monday": self.week.isoformat(),
            "action": self.action,
            "exit_code": self.exit_code,
            "reasons": list(self.reasons),
            "fallback": self.fallback,
            "drift_weeks": self.drift_weeks,
            "champion": self.champion,
        }

    def text(self) -> str:
        """The verdict in a few lines, for the terminal."""
        lines = [f"week {week_name(self.week)}: {VERDICTS[self.action]}"]
        lines += [f"  - {in_words(reason)}" for reason in self.reasons]
        return "\n".join(lines)


def week_name(day: date) -> str:
    """ISO week of a day, e.g. 2026-W07."""
    year, week, _ = day.isocalendar()
    return f"{year}-W{week:02d}"


def decide(
    week: date, champion: str, statistics: Statistics, history: Sequence[Mapping[str, Any]], campaign: Campaign
) -> Decision:
    """Decide what this week asks for.

    Args:
        week: Monday of the week.
        champion: tag of the model that was measured.
        statistics: of the week.
        history: earlier decision.json contents, any order; weeks from this one on are left out.
        campaign: cooldown and drift share.
    """
    earlier = [h for h in history if date.fromisoformat(h["monday"]) < week]
    if statistics.failed:
        names = sorted({check.name for check in statistics.failed})
        return Decision(week, champion, "stop", tuple(f"data:{name}" for name in names))
    drifting, weeks = _drift_weeks(week, champion, statistics.drift, earlier, campaign)
    urgent, doubts = _reasons(statistics, drifting, weeks)
    answered = _answered(week, champion, earlier, campaign)
    doubts = [reason for reason in urgent if _columns(reason) <= answered] + doubts
    urgent = [reason for reason in urgent if reason not in doubts]
    fallback = bool(statistics.realised and statistics.realised.inverted)
    if fallback:
        urgent.append("inverted:" + ",".join(statistics.realised.inverted))  # type: ignore[union-attr]
    if urgent and not fallback and _in_cooldown(week, earlier, campaign):
        action, reasons = "warn", [*urgent, *doubts, "cooldown"]
    else:
        action, reasons = ("retrain" if urgent else "warn" if doubts else "none"), urgent + doubts
    return Decision(week, champion, action, tuple(reasons), fallback, weeks)


def _drift_weeks(
    week: date,
    champion: str,
    drift: Drift | None,
    earlier: Sequence[Mapping[str, Any]],
    campaign: Campaign,
) -> tuple[bool, int]:
    """Whether the week drifts, and for how many weeks in a row it has; a single broken week does not end the row."""
    if drift is None:
        return False, 0
    some = any(c.warn for c in drift.of("feature"))
    share = drift.share_warn
    drifting = (some and share >= campaign.monitoring.drift_share) or (some and drift.predictions_moved)
    if not drifting:
        return False, 0
    same = [h for h in earlier if h["champion"] == champion and h["action"] != "stop"]
    before = max(same, key=lambda h: str(h["monday"]), default=None)
    recent = before is not None and (week - date.fromisoformat(before["monday"])).days <= 14
    return True, 1 + (int(before["drift_weeks"]) if before is not None and recent else 0)


def _reasons(statistics: Statistics, drifting: bool, weeks: int) -> tuple[list[str], list[str]]:
    """Reasons to retrain, and reasons to look."""
    urgent: list[str] = []
    doubts: list[str] = []
    if statistics.realised and statistics.realised.alarms:
        urgent.append("realised_uplift:" + ",".join(statistics.realised.alarms))
    drift = statistics.drift
    if drift is None:
        return urgent, doubts
    if drift.red:
        urgent.append("red_line:" + ",".join(drift.red))
    moved = [c.name for c in drift.of("feature") if c.warn]
    if moved:
        persists = drifting and weeks >= PERSISTENCE_WEEKS
        (urgent if persists else doubts).append("feature_drift:" + ",".join(moved))
    if drift.predictions_moved:
        names = [c.name for c in drift.of("prediction") if c.warn] or ["share_eligible"]
        doubts.append("prediction_drift:" + ",".join(names))
    return urgent, doubts


def _columns(reason: str) -> set[tuple[str, str]]:
    """Code and column of each feature in a reason; one that is no drift of features has a column no drift can have."""
    code, _, names = reason.partition(":")
    return {(code, name) for name in names.split(",")} if code in DRIFT_CODES else {("", reason)}


def _answered(
    week: date, champion: str, earlier: Sequence[Mapping[str, Any]], campaign: Campaign
) -> set[tuple[str, str]]:
    """Drift for which this champion was up for replacement already, within the time that new outcomes need."""
    wait = campaign.matures_after_days + 7 * campaign.monitoring.pool_weeks
    asked = [
        reason
        for h in earlier
        if h["action"] == "retrain" and h["champion"] == champion
        if (week - date.fromisoformat(h["monday"])).days <= wait
        for reason in h["reasons"]
    ]
    return {pair for reason in asked for pair in _columns(reason) if pair[0]}


def _in_cooldown(week: date, earlier: Sequence[Mapping[str, Any]], campaign: Campaign) -> bool:
    retrained = [date.fromisoformat(h["monday"]) for h in earlier if h["action"] == "retrain"]
    return any((week - monday).days <= 7 * campaign.monitoring.cooldown_weeks for monday in retrained)


VERDICTS = {
    "none": "fine: nothing to do",
    "warn": "look: something moved, not enough to retrain",
    "retrain": "retrain: the champion no longer fits",
    "stop": "stop: the data is broken; nothing may be trained on it",
}

_WORDS = {
    "data": "the data check {what!r} failed",
    "realised_uplift": "the realised uplift is not what it was at training, for {what}",
    "red_line": "the distribution moved past the red line, for {what}",
    "feature_drift": "features moved since training: {what}",
    "prediction_drift": "the predictions moved since training: {what}",
    "inverted": "users ranked high gain less than users ranked low, for {what}: fall back at once",
    "cooldown": "a retraining is less than the cooldown ago, so none is asked for",
}


def in_words(reason: str) -> str:
    """A reason as a sentence for a person."""
    code, _, what = reason.partition(":")
    return _WORDS[code].format(what=what.replace(",", ", "))
