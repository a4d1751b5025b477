"""What a rehearsal plays, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np

from campaign import DataError

# World days. Until the longest feature window is full nothing is logged; then a random phase, of which 8 weeks (two
# decisions of every user) have matured when the first model is trained.
WARM_UP_DAYS = 91
RANDOM_WEEKS = 12
FIRST_DAY = WARM_UP_DAYS + 7 * RANDOM_WEEKS
END = date(2026, 11, 23)  # of every rehearsed world, a Monday: the same script gives the same world on any day
KINDS = ("price", "market", "fatigue", "tracking")
POLICIES = ("policy", "send_all", "send_none", "frozen", "oracle")


@dataclass(frozen=True)
class Script:
    """A rehearsal.

    Attributes:
        weeks: under the service.
        users: of the platform at its end; each decides every fourth Monday.
        seed: of the world.
        drift: kind of drift, None for none; drift_week: the week (from 1) on whose Monday it begins.
        reports: draw the reports of every week and of every training.
        experiment: the week (from 1) on whose Monday a live experiment begins, None for none.
    """

    weeks: int
    users: int
    seed: int
    drift: str | None = None
    drift_week: int = 0
    reports: bool = False
    experiment: int | None = None

    @classmethod
    def parse(
        cls, *, weeks: int, drift: str, users: int, seed: int, reports: bool = False, experiment: int | None = None
    ) -> Script:
        """From the words of the command line; drift as "none" or "price@8".

        Raises: DataError: no such drift, or its week is not in the rehearsal.
        """
        if drift == "none":
            return cls(weeks, users, seed, reports=reports, experiment=experiment)
        kind, _, number = drift.partition("@")
        week = int(number) if number.isdigit() else 0
        if kind not in KINDS or not 1 <= week <= weeks:
            raise DataError(
                f"drift == {drift!r}; expected none, or KIND@WEEK with KIND one of {', '.join(KINDS)} and WEEK within "
                f"1..{weeks}, as in price@{min(8, weeks)}"
            )
        return cls(weeks, users, seed, kind, week, reports, experiment)

    @property
    def name(self) -> str:
        """Of the folder."""
        drift = f"{self.drift}@{self.drift_week}" if self.drift else "none"
        drift += f"-experiment@{self.experiment}" if self.experiment else ""
        return f"{drift}-{self.users}users-{self.weeks}weeks-seed{self.seed}"

    @property
    def days(self) -> int:
        """Length of the world."""
        return FIRST_DAY + 7 * self.weeks

    def monday(self, week: int) -> date:
        """First day of a week, counted from 1."""
        return END - timedelta(days=7 * (self.weeks - week + 1))


@dataclass(frozen=True)
class Week:
    """One week: true values per user (money per user and window) of policies on that week's users, and what was done.

    `value_policy` is that of the champion that served; `alarm` the monitor's reasons, `action` its verdict.
    """

    week: int
    value_policy: float
    value_send_all: float
    value_send_none: float
    value_frozen: float
    value_oracle: float
    alarm: tuple[str, ...]
    action: str
    promoted: bool
    n: int
    champion: str
    fallback: bool = False
    gate: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The keys that others rely on."""
        keys = ("week", *(f"value_{name}" for name in POLICIES), "alarm", "action", "promoted")
        raw = asdict(self)
        return {key: list(raw[key]) if key == "alarm" else raw[key] for key in keys}


@dataclass(frozen=True)
class Result:
    """A finished rehearsal; `folder` holds rehearsal.html, rehearsal.json and all that the loop wrote."""

    script: Script
    weeks: tuple[Week, ...]
    folder: str
    experiment: Mapping[str, Any] | None = None  # as rehearsal.experiment leaves it in experiment.json
    currency: str = "EUR"

    @property
    def stopped(self) -> bool:
        """The last verdict was that the data is broken."""
        return self.weeks[-1].action == "stop"

    def gain(self, over: str, weeks: Sequence[Week] | None = None) -> float:
        """Mean of the policy's value less another's, money per user and window, every decision counted once."""
        chosen = self.weeks if weeks is None else weeks
        gains = [w.value_policy - getattr(w, f"value_{over}") for w in chosen]
        return float(np.average(gains, weights=[w.n for w in chosen]))

    def summary(self) -> dict[str, Any]:
        """Sizes, what happened when, and mean gains over the other policies."""
        after = [w for w in self.weeks if self.script.drift and w.week >= self.script.drift_week]
        found = asdict(self.script) | {
            "decisions": sum(w.n for w in self.weeks),
            "retrain_weeks": [w.week for w in self.weeks if w.action == "retrain"],
            "promoted_weeks": [w.week for w in self.weeks if w.promoted],
            "fallback_weeks": [w.week for w in self.weeks if w.fallback],
            "stop_weeks": [w.week for w in self.weeks if w.action == "stop"],
            "gain_over": {name: self.gain(name) for name in POLICIES[1:]},
            "folder": self.folder,
        }
        # the script's week becomes what came of it
        found["experiment"] = self.experiment
        return found | ({"gain_over_since_drift": {n: self.gain(n, after) for n in POLICIES[1:]}} if after else {})

    def as_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {"weeks": [week.as_dict() for week in self.weeks], "summary": self.summary()}

    def text(self) -> str:
        """A table, week by week, and the mean gains."""
        head = f"{'week':>4}  {'policy':>7} {'all':>7} {'none':>7} {'frozen':>7} {'oracle':>7}  action"
        lines = [f"{self.script.name}: true value, {self.currency} per user and window", head]
        for w in self.weeks:
            values = " ".join(f"{getattr(w, f'value_{name}'):7.3f}" for name in POLICIES)
            drift = "  <- drift begins" if w.week == self.script.drift_week else ""
            lines.append(f"{w.week:>4}  {values}  {words(w)}{drift}")
        gains = ", ".join(f"{self.gain(n):+.3f} over {n.replace('_', '-')}" for n in POLICIES[1:-1])
        lines += [f"policy, mean of all decisions: {gains}", *experiment_lines(self.experiment)]
        lines += [f"  {m:<12} forecast {f}  live {x}  true {t}" for m, f, x, t in experiment_rows(self.experiment)]
        return "\n".join([*lines, f"plot: {self.folder}/rehearsal.html"])


def words(week: Week) -> str:
    """What was done in a week, for a person."""
    found = [week.action, *(reason.partition(":")[0] for reason in week.alarm)]
    found += ["fell back"] if week.fallback else []
    found += [f"gate: {week.gate}"] if week.gate else []
    return ", ".join(found) + (" -> promoted" if week.promoted else "")


def experiment_lines(told: Mapping[str, Any] | None) -> list[str]:
    """What came of the experiment, for a person: who against whom, its verdict, the reasons, and notes."""
    if told is None:
        return []
    if "refused" in told:
        return [f"experiment of week {told['week']}: not run: {told['refused']}"]
    head = f"experiment {' against '.join(reversed(told['variants']))}, weeks {told['week']} to {told['read_week']}"
    head += f", {told['users']:,} users of {told['planned_users']:,} planned"
    head += f" (to ship with probability {told['ship_probability']:.2f}): {told['decision']}"
    return [head, *told["reasons"], *(f"note: {note}" for note in told["notes"])]


def experiment_rows(told: Mapping[str, Any] | None) -> list[list[str]]:
    """Every metric's effect as forecast and as read, with 95% intervals, and as it truly is."""
    return [
        [
            row["metric"],
            *(f"{row[k]:+.4f} [{row[f'{k}_lower']:+.4f}, {row[f'{k}_upper']:+.4f}]" for k in ("forecast", "live")),
            f"{row['truth']:+.4f}",
        ]
        for row in (told or {}).get("effects", ())
    ]
