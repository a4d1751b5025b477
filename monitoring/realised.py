"""Did the messages do what the model promised? Realised against predicted uplift, on matured decisions.

Covariates cannot answer this; random arms can. Every decision's arm was random with a known propensity, so the doubly
robust score of a row (`models.estimators.effect_scores`) is an unbiased measurement of its user's uplift, also when
most traffic follows the policy. What the model promised is taken off it: the **error** of a row has mean 0 for every
user if the promise holds. A line through the errors against the predicted uplift says by how much the level is off and
whether the slope is (best linear predictor, Chernozhukov et al. 2018): slope 1 = uplift as heterogeneous as promised,
0 = the ranking tells nothing, below 0 = it is upside down.

No model is perfectly calibrated, so a week is not tested against the promise itself but against the same line measured
at training on predictions of rows the network had not seen (`Line`s in the reference profile, with their covariance).

The control's predicted outcome (`mu_<control>_<outcome>`) is used, not only the uplift: taken off each outcome, it
makes the scores less noisy. The propensities are those given a user's history (`models.propensities`).

Weekly looks: a year has 52. Each look may raise a false alarm with probability `yearly_false_alarm / 52`, shared over
its tests (Bonferroni), so that the expected number of false alarms a year is at most what was promised, however the
pooled weeks overlap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import chi2, ncx2, norm

from campaign import Campaign, DataError
from models.estimators import effect_scores

MIN_ARM_ROWS = 200  # decisions of an arm below which nothing is said about it
MIN_CHANGE = 0.20  # of the promised uplift (root mean square over users): smaller changes do not ask for retraining
REALISED_SHARE = 0.9  # of the false alarm budget; the rest is left for drift of features
LOOKS_PER_YEAR = 52
WEIGHTED = "weighted"


@dataclass(frozen=True)
class Line:
    """Line through the errors of one arm and outcome against the predicted uplift, with cluster-robust covariance.

    error(s) = level + slope * (s - center), so the realised slope is 1 + slope.

    Attributes:
        arm, outcome: names; the outcome "weighted" is the sum of weight times outcome, EUR.
        n: decisions; n_arm, n_control: of this arm, of control.
        center: mean predicted uplift; spread: its sd over users, outcome units.
        level, slope: as above; cov: their covariance, as (level-level, level-slope, slope-slope).
    """

    arm: str
    outcome: str
    n: int
    n_arm: int
    n_control: int
    center: float
    spread: float
    level: float
    slope: float
    cov: tuple[float, float, float]

    def at(self, center: float) -> tuple[np.ndarray, np.ndarray]:
        """Level and slope, and their covariance, with the line written around another center."""
        move = np.array([[1.0, center - self.center], [0.0, 1.0]])
        cov = np.array([[self.cov[0], self.cov[1]], [self.cov[1], self.cov[2]]])
        return move @ [self.level, self.slope], move @ cov @ move.T


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
        segments: arm, segment ("plan=free"), n, predicted, realised, se; weighted, EUR.
        gain, gain_se: of the policy over sending nothing, EUR per user, costs taken off.
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


@dataclass(frozen=True)
class Uplifts:
    """Predicted uplift and measured score of every row; shape (n, n_message_arms, n_outcomes + 1), weighted last."""

    predicted: np.ndarray
    score: np.ndarray
    arm: np.ndarray
    user: np.ndarray


def uplifts(frame: pd.DataFrame, campaign: Campaign) -> Uplifts:
    """Predicted uplift and doubly robust score of each matured decision.

    Args:
        frame: columns user_id, arm, propensity, `uplift_<arm>_<outcome>`, `mu_<control>_<outcome>`, `y_<outcome>`.
        campaign: arms, outcomes and weights.

    Raises: DataError: a column is missing or has no value in some row, or a propensity is not within (0, 1).
    """
    control, *messages = campaign.arm_names
    needed = [
        *(f"uplift_{arm}_{outcome}" for arm in messages for outcome in campaign.outcome_names),
        *(f"mu_{control}_{outcome}" for outcome in campaign.outcome_names),
        *(f"y_{outcome}" for outcome in campaign.outcome_names),
    ]
    _check_columns(frame, ["user_id", "arm", "propensity", *needed])
    values = frame[needed].to_numpy(dtype=float)
    k, n = len(campaign.outcome), len(frame)
    predicted = values[:, : len(messages) * k].reshape(n, len(messages), k)
    base, outcome = values[:, -2 * k : -k], values[:, -k:]
    mu_hat = np.concatenate([base[:, None, :], base[:, None, :] + predicted], axis=1)
    arm = frame["arm"].to_numpy(dtype=np.int64)
    score = effect_scores(outcome, arm, frame["propensity"].to_numpy(dtype=float), mu_hat)
    weights = np.asarray(campaign.weights)
    predicted, score = (np.concatenate([x, (x @ weights)[..., None]], axis=2) for x in (predicted, score))
    return Uplifts(predicted, score, arm, pd.factorize(frame["user_id"])[0])


def _check_columns(frame: pd.DataFrame, needed: Sequence[str]) -> None:
    absent = [name for name in needed if name not in frame]
    if absent:
        raise DataError(f"matured decisions: columns {absent} are missing; predictions and outcomes are needed per row")
    holes = {name: int(rows) for name, rows in frame[list(needed)].isna().sum().items() if rows}
    if holes:
        raise DataError(f"matured decisions: rows without a value, by column: {holes}; of {len(frame)} rows")
    bad = ~((frame["propensity"] > 0) & (frame["propensity"] < 1))
    if bad.any():
        first = frame["propensity"][bad].iloc[0]
        raise DataError(
            f"matured decisions: propensity {first:g} (and {int(bad.sum())} rows in all) is not within (0, 1); leave "
            "decisions out whose arm was certain, as models.frame.countable does"
        )


def lines(rows: Uplifts, campaign: Campaign) -> list[Line]:
    """The line of errors of every message arm and outcome; arms with too few decisions are left out."""
    names = [*campaign.outcome_names, WEIGHTED]
    found = []
    n_control = int((rows.arm == 0).sum())
    for a, arm in enumerate(campaign.arm_names[1:]):
        n_arm = int((rows.arm == a + 1).sum())
        if min(n_arm, n_control) < MIN_ARM_ROWS:
            continue
        for o in (len(names) - 1, *range(len(names) - 1)):
            s = rows.predicted[:, a, o]
            theta, cov = fit_line(s, rows.score[:, a, o] - s, rows.user)
            covariance = (float(cov[0, 0]), float(cov[0, 1]), float(cov[1, 1]))
            sizes = (len(s), n_arm, n_control)
            shape = (float(s.mean()), float(s.std()), float(theta[0]), float(theta[1]))
            found.append(Line(arm, names[o], *sizes, *shape, covariance))
    return found


def fit_line(s: np.ndarray, error: np.ndarray, user: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares of error on (1, s - mean s), with covariance robust to clusters of users.

    Args:
        s: predicted uplift, shape (n,).
        error: measured score minus s, shape (n,).
        user: integer code of each row's user, shape (n,).

    Returns: coefficients (2,) and covariance (2, 2). A constant s has slope 0 with variance 0.
    Source: Liang, Zeger (1986), Biometrika 73, 13-22; factor G / (G - 1) for G users.
    """
    centered = s - s.mean()
    squares = float(centered @ centered)
    if squares <= 1e-12 * max(float(s @ s), 1e-300):
        centered, squares = np.zeros_like(s), 1.0
    theta = np.array([error.mean(), centered @ error / squares])
    residual = error - theta[0] - theta[1] * centered
    by_user = np.column_stack([np.bincount(user, residual / len(s)), np.bincount(user, residual * centered / squares)])
    return theta, by_user.T @ by_user * (len(by_user) / max(len(by_user) - 1, 1))


def reference_lines(frame: pd.DataFrame, campaign: Campaign) -> list[dict[str, Any]]:
    """Lines at training, for the reference profile; JSON-serialisable.

    Args:
        frame: matured decisions with predictions of models that did not see the row (out of fold, or held-out users).
        campaign: arms, outcomes and weights.
    """
    return [asdict(line) | {"cov": list(line.cov)} for line in lines(uplifts(frame, campaign), campaign)]


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
    by_name = {(r["arm"], r["outcome"]): Line(**(dict(r) | {"cov": tuple(r["cov"])})) for r in reference}
    levels = spend(campaign)
    tests = [_test(line, by_name.get((line.arm, line.outcome)), levels[line.outcome == WEIGHTED]) for line in now]
    gain, gain_se = _policy_gain(frame, rows, campaign)
    return Realised(
        n=len(frame),
        weeks=tuple(sorted({f"{day:%G-W%V}" for day in frame["decided_at"].dt.floor("D").unique()})),
        tests=tuple(tests),
        deciles=tuple(_deciles(rows, campaign)),
        segments=tuple(_segments(frame, rows, campaign)),
        gain=gain,
        gain_se=gain_se,
    )


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


def mean_and_se(values: np.ndarray, user: np.ndarray) -> tuple[float, float]:
    """Mean of the rows and its standard error, clustered by user."""
    mean = float(values.mean())
    by_user = np.bincount(user, values - mean) / len(values)
    users = max(len(np.unique(user)), 2)
    return mean, float(np.sqrt(by_user @ by_user * users / (users - 1)))


def _policy_gain(frame: pd.DataFrame, rows: Uplifts, campaign: Campaign) -> tuple[float, float]:
    """Value of the champion's policy minus sending nothing, EUR per user."""
    arm = frame["policy_arm"].to_numpy(dtype=np.int64)
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
