"""Did the messages do what the model promised? Realised against predicted uplift, on matured decisions.

Covariates cannot answer this; random arms can (`monitoring.uplift_line`). No model is perfectly calibrated, so a week
is not tested against the promise itself but against the same line measured at training on predictions of rows the
network had not seen (`Line`s in the reference profile, with their covariance).

Weekly looks: a year has 52. Each look may raise a false alarm with probability `yearly_false_alarm / 52`, shared over
its tests (Bonferroni), so that the expected number of false alarms a year is at most what was promised, however the
pooled weeks overlap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import chi2, ncx2, norm

from campaign import Campaign
from monitoring.uplift_line import MIN_ARM_ROWS, WEIGHTED, Line, Uplifts, lines, mean_and_se, uplifts

MIN_CHANGE = 0.20  # of the promised uplift (root mean square over users): smaller changes do not ask for retraining
REALISED_SHARE = 0.9  # of the false alarm budget; the rest is left for drift of features
LOOKS_PER_YEAR = 52


@dataclass(frozen=True)
class UpliftTest:
    """One arm and outcome of the week against its reference line.

    Attributes:
        predicted: promised uplift, mean over users, corrected by the reference line; realised: measured; se: of that.
        slope, slope_se: realised slope and its standard error.
        p: that the week's line is the reference line (Wald, 2 degrees of freedom).
        alpha: this test's share of the look's false alarm probability.
        change: root mean square change of the uplift over users, relative to the promise.
        power_half: probability that the test finds a halved uplift.
        alarm: p < alpha and the change is not negligible.
        inverted: alarm, and the slope is below 0 with the same confidence.
    """

    arm: str
    outcome: str
    predicted: float
    realised: float
    se: float
    slope: float
    slope_se: float
    p: float
    alpha: float
    change: float
    power_half: float
    alarm: bool
    inverted: bool


@dataclass(frozen=True)
class Realised:
    """Realised uplift of the pooled weeks.

    Attributes:
        n: matured decisions; weeks: ISO weeks they were taken in.
        tests: one per arm and outcome, the weighted one of each arm first.
        deciles: by predicted weighted uplift of each arm: arm, decile, n, predicted, realised, se.
        segments: arm, segment ("plan=free"), n, predicted, realised, se; weighted, money.
        gain, gain_se: of the policy over sending nothing, money per user, costs taken off.
    """

    n: int
    weeks: tuple[str, ...]
    tests: tuple[UpliftTest, ...]
    deciles: tuple[Mapping[str, Any], ...]
    segments: tuple[Mapping[str, Any], ...]
    gain: float
    gain_se: float

    @property
    def alarms(self) -> list[str]:
        """Tests that ask for retraining, as arm/outcome."""
        return [f"{t.arm}/{t.outcome}" for t in self.tests if t.alarm]

    @property
    def harmful(self) -> bool:
        """The policy is measured to be worse than sending nothing, and its promise is broken.

        The sign alone decides, since the alarm has paid for the error already: without a broken promise nothing falls
        back, so false fallbacks are at most as frequent as false alarms (Manski 2004, Econometrica 72: empirical
        success).
        """
        return self.gain < 0 and any(t.alarm and t.outcome == WEIGHTED for t in self.tests)

    @property
    def inverted(self) -> list[str]:
        """Arms whose ranking is upside down."""
        return [t.arm for t in self.tests if t.outcome == WEIGHTED and t.inverted]


def measure_realised(
    frame: pd.DataFrame, campaign: Campaign, reference: Sequence[Mapping[str, Any]] = ()
) -> Realised | None:
    """Compare realised with promised uplift; None where there are too few decisions of some arm to say anything.

    Args:
        frame: pooled matured decisions that the champion was not trained on; see `uplifts`, and eligible_by_policy,
            policy_arm, decided_at and the segment columns.
        campaign: arms, outcomes, segments and the yearly false alarm budget.
        reference: `reference_lines` of the champion; an arm and outcome without one is held to its promise itself.
    """
    if len(frame) < 2 * MIN_ARM_ROWS:
        return None
    rows = uplifts(frame, campaign)
    now = lines(rows, campaign)
    if not now:
        return None
    gain, gain_se = policy_gain(frame["policy_arm"].to_numpy(dtype=np.int64), rows, campaign)
    return Realised(
        n=len(frame),
        weeks=tuple(sorted({f"{day:%G-W%V}" for day in frame["decided_at"].dt.floor("D").unique()})),
        tests=compare(now, campaign, reference),
        deciles=tuple(_deciles(rows, campaign)),
        segments=tuple(_segments(frame, rows, campaign)),
        gain=gain,
        gain_se=gain_se,
    )


def compare(
    now: Sequence[Line], campaign: Campaign, reference: Sequence[Mapping[str, Any]] = ()
) -> tuple[UpliftTest, ...]:
    """Test each line against its reference line (see `measure_realised`)."""
    by_name = {(r["arm"], r["outcome"]): Line(**(dict(r) | {"cov": tuple(r["cov"])})) for r in reference}
    levels = spend(campaign)
    return tuple(_test(line, by_name.get((line.arm, line.outcome)), levels[line.outcome == WEIGHTED]) for line in now)


def spend(campaign: Campaign) -> dict[bool, float]:
    """False alarm probability of one test of a weekly look: {True: a weighted test, False: a single outcome's}.

    Half goes to the weighted uplift, which is what the campaign is for; the other half is shared by the outcomes.
    """
    look = REALISED_SHARE * campaign.monitoring.yearly_false_alarm / LOOKS_PER_YEAR
    per_arm = min(look, 0.5) / (len(campaign.arm) - 1)
    return {True: per_arm / 2, False: per_arm / 2 / len(campaign.outcome)}


def _test(line: Line, reference: Line | None, alpha: float) -> UpliftTest:
    theta, cov = line.at(line.center)
    promise, promise_cov = reference.at(line.center) if reference else (np.zeros(2), np.zeros((2, 2)))
    delta, total = theta - promise, cov + promise_cov
    rank = 2 if line.spread > 0 and total[1, 1] > 0 else 1
    inverse = np.linalg.pinv(total[:rank, :rank])
    p = float(chi2.sf(delta[:rank] @ inverse @ delta[:rank], rank))
    promised = np.array([line.center + promise[0], 1 + promise[1]])  # level, slope of the promised uplift
    size = np.hypot(promised[0], promised[1] * line.spread)
    change = float(np.hypot(delta[0], delta[1] * line.spread) / size) if size > 0 else 0.0
    half = -promised[:rank] / 2
    power = float(ncx2.sf(chi2.isf(alpha, rank), rank, max(half @ inverse @ half, 1e-9)))
    alarm = p < alpha and change >= MIN_CHANGE
    slope, slope_se = float(1 + theta[1]), float(np.sqrt(cov[1, 1]))
    return UpliftTest(
        arm=line.arm,
        outcome=line.outcome,
        predicted=float(promised[0]),
        realised=float(line.center + theta[0]),
        se=float(np.sqrt(cov[0, 0])),
        slope=slope,
        slope_se=slope_se,
        p=p,
        alpha=alpha,
        change=change,
        power_half=power,
        alarm=bool(alarm),
        inverted=bool(alarm and slope_se > 0 and norm.cdf(slope / slope_se) < alpha),
    )


def policy_gain(arm: np.ndarray, rows: Uplifts, campaign: Campaign) -> tuple[float, float]:
    """Value of a policy (its arm of each row) minus sending nothing, and the standard error; money per user."""
    score = rows.score[np.arange(len(arm)), np.maximum(arm, 1) - 1, -1]
    return mean_and_se(np.where(arm > 0, score - np.asarray(campaign.costs)[arm], 0.0), rows.user)


def _deciles(rows: Uplifts, campaign: Campaign) -> list[dict[str, Any]]:
    found = []
    for a, arm in enumerate(campaign.arm_names[1:]):
        s = rows.predicted[:, a, -1]
        place = np.argsort(np.argsort(s, kind="stable"), kind="stable")
        for decile in range(10):
            chosen = place * 10 // len(s) == decile
            found.append({"arm": arm, "decile": decile + 1} | _group(rows, a, chosen))
    return found


def _segments(frame: pd.DataFrame, rows: Uplifts, campaign: Campaign) -> list[dict[str, Any]]:
    found = []
    for column in campaign.segments.columns:
        values = frame[column].astype(object).where(frame[column].notna(), "missing").astype(str).to_numpy()
        for a, arm in enumerate(campaign.arm_names[1:]):
            for value in sorted(set(values)):
                found.append({"arm": arm, "segment": f"{column}={value}"} | _group(rows, a, values == value))
    return found


def _group(rows: Uplifts, a: int, chosen: np.ndarray) -> dict[str, Any]:
    mean, se = mean_and_se(rows.score[chosen, a, -1], rows.user[chosen])
    return {
        "n": int(chosen.sum()),
        "predicted": float(rows.predicted[chosen, a, -1].mean()),
        "realised": mean,
        "se": se,
    }
