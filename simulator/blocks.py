"""One block (28 days) of many users: every event that happens in it, drawn from the rates of effects.py.

A block runs from the decision's instant for exactly four weeks, and all its events lie inside: nothing leaks into the
outcome windows of the block before or after.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.draws import Bools, Floats, Ints, Key, child, choice, negative_binomial, uniform
from simulator.effects import DISPERSION, HALF_DAYS, Rates
from simulator.traits import BLOCK_DAYS, DAY, HOUR, SECOND, WEEK, Users, hours

BLOCK = BLOCK_DAYS * DAY
NEVER = np.iinfo(np.int64).max
_MONDAY = 4 * DAY  # 1970-01-05
_WEEKDAY_SHARE = np.cumsum([0.19, 0.19, 0.19, 0.20, 0.23])[:-1]
_WEIBULL = 1.25  # of session minutes: skewed, sd about .8 of the mean
_WEIBULL_MEAN = 0.93138  # gamma(1 + 1 / 1.25)
_MESSAGE_SHARE = 0.45  # of an eligible user's sessions show a message


@dataclass(frozen=True)
class Sessions:
    """Sessions that happened; arrays of shape (m,). `row` points into the cohort."""

    row: Ints
    key: Key
    number: Ints  # within the block
    at: Ints
    minutes: Floats
    tracks: Ints
    skips: Ints
    ads: Ints
    surface: Ints


@dataclass(frozen=True)
class Messages:
    """Messages shown; `session` points into the block's sessions. action: 0 none, 1 clicked, 2 dismissed."""

    session: Ints
    at: Ints
    popup: Bools
    action: Ints


@dataclass(frozen=True)
class Subscriptions:
    """Instants of each event within the block, shape (n,); NEVER where there is none."""

    start: Ints
    renew: Ints
    cancel: Ints
    trial_begin: Ints
    trial_end: Ints


def draw_sessions(key: Key, users: Users, rates: Rates, minutes: Floats, begin: Ints, ads: Bools) -> Sessions:
    """Sessions of one block.

    Args:
        key: of each user's block, shape (n,).
        users: their traits.
        rates: churn and sessions a day.
        minutes: expected minutes of a session.
        begin: instant of the block's start.
        ads: whether ads are played.
    """
    mean = HALF_DAYS * rates.intensity
    first = negative_binomial(key, "sessions/first", mean, DISPERSION)
    total = first + negative_binomial(key, "sessions/second", mean, DISPERSION)
    row = np.repeat(np.arange(users.n), total)
    number = np.arange(len(row)) - np.repeat(np.cumsum(total) - total, total)
    event = child(key[row], number)
    week = 2 * (number >= first[row]) + (uniform(event, "week") < 0.5)
    since = week * WEEK + _within_week(event, users, row, begin[row])
    # A churner's last moment is drawn like a session of his second week: half of that week's sessions survive.
    last = WEEK + _within_week(child(key, -1), users, np.arange(users.n), begin)
    last = np.where(uniform(key, "churn") < rates.churn, last, BLOCK)
    kept = since < last[row]
    return _fill(event[kept], row[kept], number[kept], (begin[row] + since)[kept], users, minutes, ads)


def _within_week(key: Key, users: Users, row: Ints, begin: Ints) -> Ints:
    """Microseconds from `begin` to the next moment of listening, by the user's weekday and hour habits."""
    weekend = uniform(key, "weekend") < users.weekend[row]
    u = uniform(key, "weekday")
    weekday = np.where(weekend, 5 + (u < 0.5), np.searchsorted(_WEEKDAY_SHARE, u))
    hour = hours(key, "hour", users.evening[row])
    within_hour = (uniform(key, "second") * HOUR).astype(np.int64)
    return np.asarray((weekday * DAY + hour * HOUR + within_hour - (begin - _MONDAY)) % WEEK, dtype=np.int64)


def _fill(key: Key, row: Ints, number: Ints, at: Ints, users: Users, mean: Floats, ads: Bools) -> Sessions:
    minutes = mean[row] / _WEIBULL_MEAN * (-np.log(uniform(key, "minutes"))) ** (1 / _WEIBULL)
    minutes = np.maximum(np.round(minutes, 2), 0.01)
    tracks = 1 + (minutes / 3.4 + uniform(key, "tracks")).astype(np.int64)
    skip_share = 1 / (1 + np.exp(1.4 - 0.8 * users.skip[row] - 1.2 * (uniform(key, "skips") - 0.5)))
    skips = (tracks * skip_share + uniform(key, "skips/rest")).astype(np.int64)
    ad_count = np.where(ads[row], (minutes / 14 * 2 * uniform(key, "ads") + uniform(key, "ads/rest")), 0)
    surface = choice(key, "surface", users.surface_shares[row])
    return Sessions(
        row, key, number, at, minutes, tracks, np.minimum(skips, tracks), ad_count.astype(np.int64), surface
    )


def draw_messages(sessions: Sessions, arm: Ints, tolerance: Floats, fatigue: Floats, end: Ints) -> Messages:
    """Messages of eligible users (arm > 0) at some of their sessions, a few seconds in and before the block's end."""
    key = sessions.key
    shown = np.flatnonzero((arm[sessions.row] > 0) & (uniform(key, "shown") < _MESSAGE_SHARE))
    key, row = key[shown], sessions.row[shown]
    popup = uniform(key, "format") < 0.4
    dismissed = 1 / (1 + np.exp(0.7 + 0.9 * tolerance[row] - 1.5 * fatigue[row] - 0.6 * popup))
    clicked = 0.08 * (1 - fatigue[row])
    u = uniform(key, "action")
    action = np.where(u < dismissed, 2, np.where(u > 1 - (1 - dismissed) * clicked, 1, 0))
    at = sessions.at[shown] + (SECOND * (2 + 18 * uniform(key, "shown/second"))).astype(np.int64)
    return Messages(shown, np.minimum(at, end[row] - 1), popup, action)


def draw_subscriptions(key: Key, rates: Rates, begin: Ints, premium: Bools, trial: Bools, arm: Ints) -> Subscriptions:
    """Subscription events of one block; a message brings starts forward without changing their window."""
    half = HALF_DAYS * DAY
    u = uniform(key, "start/when")
    when = np.where(arm > 0, u**2, u)
    started = ~premium & (uniform(key, "start") < rates.start)
    cancelled = premium & (uniform(key, "cancel") < rates.cancel)
    returned = cancelled & (uniform(key, "return") < rates.return_)
    since_start = np.where(returned, half / 2 * (1 + u), half * when).astype(np.int64)
    since_cancel = (half / 2 * uniform(key, "cancel/when")).astype(np.int64)
    since_renew = (BLOCK * uniform(key, "renew/when")).astype(np.int64)
    turns = ~premium & ~started & (uniform(key, "trial") < np.where(trial, 0.7, 0.05))
    since_turn = half + (half * uniform(key, "trial/when")).astype(np.int64)
    return Subscriptions(
        start=np.where(started | returned, begin + since_start, NEVER),
        renew=np.where(premium & ~cancelled, begin + since_renew, NEVER),
        cancel=np.where(cancelled, begin + since_cancel, NEVER),
        trial_begin=np.where(turns & ~trial, begin + since_turn, NEVER),
        trial_end=np.where(turns & trial, begin + since_turn, NEVER),
    )
