"""The weekly decision, as a pure function: statistics of the week + earlier decisions + campaign -> Decision.

In this order; the first that holds gives the action:

    a data check failed                                        stop     20
    realised uplift is not what it was at training             retrain  10
    one feature is past the red line                           retrain  10
    drift of features (or of predictions together with some
    feature), this week and the week before                    retrain  10
    any drift, or one of the above during the cooldown         warn      0
    otherwise                                                  none      0

A retraining is followed by `cooldown_weeks` without another, except that uplift which is still not what it was asks
again each week while the gate has kept the champion: a week of new outcomes has matured. Drift of features that a
retraining of this champion has answered asks again only for more columns, or when decisions of the drifted weeks have
matured: until then there is nothing new to train on. A ranking that is upside down (slope significantly below 0), or a
policy that is measured to be worse than sending nothing while its promise is broken, sets `fallback` at once, cooldown
or not: the champion does harm until it is replaced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
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
        currency: of the gain, as it is to be printed.
    """

    week: date
    champion: str
    action: str
    reasons: tuple[str, ...]
    fallback: bool = False
    drift_weeks: int = 0
    record: Mapping[str, Any] = field(default_factory=dict)
    currency: str = "EUR"

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
            "in_words": {"verdict": VERDICTS[self.action], "reasons": self.in_words()},
            "fallback": self.fallback,
            "drift_weeks": self.drift_weeks,
            "champion": self.champion,
        }

    def text(self) -> str:
        """The verdict in a few lines, for the terminal."""
        lines = [f"week {week_name(self.week)}: {VERDICTS[self.action]}"]
        return "\n".join([*lines, *(f"  - {reason}" for reason in self.in_words())])

    def in_words(self) -> list[str]:
        """Each reason as a sentence; of a failed data check, with what it found."""
        found = {f"data:{check['name']}": check["detail"] for check in self.record.get("data", {}).get("failed", ())}
        said = {reason: f": {detail}" for reason, detail in found.items()}
        return [in_words(reason, self.currency) + said.get(reason, "") for reason in self.reasons]


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
    harms = _harms(statistics.realised)
    fallback, urgent = bool(harms), urgent + harms
    waits = not fallback and not _still_waiting(urgent, champion, earlier)
    if urgent and waits and _in_cooldown(week, earlier, campaign):
        action, reasons = "warn", [*urgent, *doubts, "cooldown"]
    else:
        action, reasons = ("retrain" if urgent else "warn" if doubts else "none"), urgent + doubts
    return Decision(week, champion, action, tuple(reasons), fallback, weeks, currency=campaign.currency)


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


def _harms(realised: Realised | None) -> list[str]:
    """Reasons to take the champion out of service at once."""
    if realised is None:
        return []
    inverted = ["inverted:" + ",".join(realised.inverted)] if realised.inverted else []
    return inverted + ([f"harmful:{realised.gain:+.3f}"] if realised.harmful else [])


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


def changed_since(decisions: Sequence[Mapping[str, Any]], campaign: Campaign) -> datetime | None:
    """When the world changed, as far as alarms tell; None where the last decision tells of no change.

    Realised uplift tells it of the newest week that had matured; drift of features of the weeks that drifted. An alarm
    that follows another sooner than a new champion can be measured is about the same change.

    Args:
        decisions: decision.json contents; any order.
        campaign: how long decisions mature and are pooled.
    """
    lag = timedelta(days=campaign.matures_after_days, weeks=campaign.monitoring.pool_weeks)
    newest, *older = sorted(decisions, key=lambda d: str(d["monday"]), reverse=True)
    since, last = _onset(newest, campaign), date.fromisoformat(newest["monday"])
    for d in older:
        monday, onset = date.fromisoformat(d["monday"]), _onset(d, campaign)
        if since is not None and onset is not None and last - monday <= lag:
            since, last = min(since, onset), monday
    return since


def _onset(decision: Mapping[str, Any], campaign: Campaign) -> datetime | None:
    """When what a week asks retraining for began; None where it asks for none, in or out of cooldown."""
    codes = {reason.partition(":")[0] for reason in decision["reasons"]}
    monday = datetime.combine(date.fromisoformat(decision["monday"]), time.min, UTC)
    onsets = []
    if codes & {"realised_uplift", "inverted"}:  # decisions of the 7 days from then on have just matured
        onsets.append(monday - timedelta(days=campaign.matures_after_days))
    if decision["action"] == "retrain" and codes & set(DRIFT_CODES):
        onsets.append(monday - timedelta(weeks=max(int(decision["drift_weeks"]), 1) - 1))
    return min(onsets, default=None)


def _still_waiting(urgent: Sequence[str], champion: str, earlier: Sequence[Mapping[str, Any]]) -> bool:
    """Uplift is still not what it was, and the last retraining left this champion in place."""
    retrained = [h for h in earlier if h["action"] == "retrain"]
    last = max(retrained, key=lambda h: str(h["monday"]), default=None)
    standing = any(reason.startswith("realised_uplift:") for reason in urgent)
    return standing and last is not None and (last["champion"] == champion or bool(last["fallback"]))


def _in_cooldown(week: date, earlier: Sequence[Mapping[str, Any]], campaign: Campaign) -> bool:
    # a week that was answered counts though it was judged again, with the champion that came of it
    calls = [h for h in earlier if h["action"] == "retrain" or h.get("retrained")]
    retrained = [date.fromisoformat(h["monday"]) for h in calls]
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
    "harmful": "the policy gains {what} {currency} per user over sending nothing: fall back at once",
    "cooldown": "a retraining is less than the cooldown ago, so none is asked for",
}


def in_words(reason: str, currency: str) -> str:
    """A reason as a sentence for a person."""
    code, _, what = reason.partition(":")
    return _WORDS[code].format(what=what.replace(",", ", "), currency=currency)
