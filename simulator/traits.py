"""Who the users are: persistent, correlated traits, drawn once per user.

Everything here is fixed over a user's life. What changes (plan, recent activity, fatigue) is in world.py.
All clocks are UTC; instants are int64 microseconds since 1970-01-01.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.draws import Bools, Floats, Ints, Key, child, choice, normal, uniform

SECOND = 1_000_000
HOUR = 3600 * SECOND
DAY = 24 * HOUR
WEEK = 7 * DAY
BLOCK_DAYS = 28  # a user lives in consecutive blocks of this length; a decision holds for one block

PLANS = ("free", "trial", "premium")
FREE, TRIAL, PREMIUM = range(3)
DEVICES = ("ios", "android", "web")
AGE_BANDS = ("18-24", "25-34", "35-44", "45-54", "55+")
SURFACES = ("home", "search", "playlist", "radio")
NEW_MARKET = "IN"  # not among the platform's countries until the market drift
COUNTRIES = ("US", "GB", "DE", "FR", "BR", "SE", "MX", "JP", NEW_MARKET)

_COUNTRY_SHARE = np.array([0.30, 0.14, 0.13, 0.11, 0.12, 0.06, 0.09, 0.05])
_COUNTRY_ENGAGEMENT = np.array([0.1, 0.1, -0.1, -0.1, 0.2, 0.2, 0.0, -0.3, 0.3])
_COUNTRY_PRICE = np.array([-0.4, -0.2, 0.1, 0.2, 0.7, -0.5, 0.6, -0.3, 0.9])
_AGE_SHARE = np.array([0.24, 0.31, 0.21, 0.14, 0.10])
_AGE_UNKNOWN = 0.05
_SILENT_SHARE = 0.02
_MEAN_ACCOUNT_AGE_DAYS = 600.0

# Share of sessions by hour (UTC): a working-day profile and an evening profile; a user mixes the two by habit.
_DAY_HOURS = np.array(
    [1, 0.5, 0.3, 0.2, 0.3, 0.8, 2, 4, 5.5, 5, 4.5, 4.5, 5, 5, 4.5, 4.5, 5, 5, 4, 3.5, 3, 2.5, 2, 1.5]
)
_EVENING_HOURS = np.array(
    [3, 1.5, 0.6, 0.3, 0.2, 0.2, 0.4, 0.8, 1, 1, 1, 1, 1.2, 1.2, 1.2, 1.5, 2, 4, 8, 11, 13, 12, 9, 6]
)
HOURS_CUMULATIVE = np.cumsum(np.stack([_DAY_HOURS / _DAY_HOURS.sum(), _EVENING_HOURS / _EVENING_HOURS.sum()]), axis=1)


@dataclass(frozen=True)
class Users:
    """Traits of n users; every array has shape (n,) unless said.

    `engagement`, `price` (price sensitivity), `tolerance` (of messages) and `skip` are latent, mean 0 and sd about 1.
    `intensity` is sessions a day in ordinary times, `minutes` the mean length of a session.
    """

    index: Ints
    key: Key
    engagement: Floats
    price: Floats
    tolerance: Floats
    skip: Floats
    intensity: Floats
    minutes: Floats
    evening: Floats
    weekend: Floats
    surface_shares: Floats  # (n, 4)
    device: Ints
    country: Ints
    age: Ints  # -1 unknown
    plan: Ints  # at sign-up, or at the world's start
    phase_day: Ints  # world day of a block start, in [0, 28)
    second: Ints  # second of the day at which blocks start
    signup_at: Ints
    silent: Bools  # never any event

    @property
    def n(self) -> int:
        """Number of users."""
        return len(self.index)


def make_users(index: Ints, seed: int, end: int, phase_step: int, wave: tuple[int, int] | None = None) -> Users:
    """Draw the traits of the users with these numbers.

    Args:
        index: user numbers, shape (n,); a user's traits depend on his number and the seed only.
        seed: of the world.
        end: instant at which the world ends; account ages are exponential there, so that a platform that grows
            steadily has the same age distribution every week.
        phase_step: block starts fall on multiples of this many days (7: once a week).
        wave: (first, last) instant of sign-up when these users are a new market's wave, else None.
    """
    key = child(child(seed, 1), index)
    n = len(index)
    country = choice(key, "country", _COUNTRY_SHARE) if wave is None else np.full(n, COUNTRIES.index(NEW_MARKET))
    age = choice(key, "age", _AGE_SHARE)
    engagement = 0.95 * normal(key, "engagement") + _COUNTRY_ENGAGEMENT[country]
    price = 0.75 * normal(key, "price") + _COUNTRY_PRICE[country] - 0.25 * engagement - 0.12 * (age - 1.5)
    tolerance = 0.85 * normal(key, "tolerance") + 0.25 * engagement + 0.15 * (age - 1.5)
    skip = 0.9 * normal(key, "skip") - 0.25 * engagement - 0.2 * (age - 1.5)
    evening = _logistic(-0.1 + 0.9 * normal(key, "evening") - 0.15 * (age - 1.5))
    account_days = np.minimum(1.0 - _MEAN_ACCOUNT_AGE_DAYS * np.log(uniform(key, "account")), 4000.0)
    signup = end - (account_days * DAY).astype(np.int64)
    if wave is not None:
        signup = wave[0] + ((wave[1] - wave[0]) * uniform(key, "account")).astype(np.int64)
    silent = uniform(key, "silent") < _SILENT_SHARE
    device = _devices(key, age, country == COUNTRIES.index(NEW_MARKET))
    hour = hours(key, "second", evening)
    return Users(
        index=index,
        key=key,
        engagement=engagement,
        price=price,
        tolerance=tolerance,
        skip=skip,
        intensity=np.where(silent, 0.0, 0.58 * np.exp(0.75 * engagement + 0.45 * normal(key, "intensity"))),
        minutes=62.0 * np.exp(0.15 * engagement + 0.3 * normal(key, "minutes")),
        evening=evening,
        weekend=_logistic(-0.75 + 0.5 * normal(key, "weekend")),
        surface_shares=_surfaces(key),
        device=device,
        country=country,
        age=np.where(uniform(key, "age/unknown") < _AGE_UNKNOWN, -1, age),
        plan=np.where(silent, FREE, _plans(key, engagement, price, account_days, wave is not None)),
        phase_day=phase_step * (uniform(key, "phase") * (BLOCK_DAYS // phase_step)).astype(np.int64),
        second=hour * 3600 + (uniform(key, "second/rest") * 3600).astype(np.int64),
        signup_at=signup,
        silent=silent,
    )


def hours(key: Key, label: str, evening: Floats) -> Ints:
    """Hour of the day of one event per key, from a mixture of the day and the evening profile."""
    is_evening = (uniform(key, label + "/profile") < evening).astype(np.int64)
    u = uniform(key, label + "/hour")
    day, night = (np.searchsorted(HOURS_CUMULATIVE[i][:-1], u) for i in (0, 1))
    return np.where(is_evening == 1, night, day).astype(np.int64)


def _plans(key: Key, engagement: Floats, price: Floats, account_days: Floats, new: bool) -> Ints:
    premium = _logistic(-1.0 + 0.6 * engagement - 0.6 * price + 0.25 * np.log(account_days / 400.0))
    premium = np.where(new | (account_days < 120.0), 0.0, premium)
    trial = np.where(account_days < 120.0, 0.5, 0.06) if not new else np.full(len(key), 0.4)
    u = uniform(key, "plan")
    return np.where(u < premium, PREMIUM, np.where(u < premium + (1 - premium) * trial, TRIAL, FREE)).astype(np.int64)


def _devices(key: Key, age: Ints, new_market: Bools) -> Ints:
    ios = 0.45 - 0.05 * age - 0.25 * new_market
    web = 0.08 + 0.05 * age
    return choice(key, "device", np.stack([ios, 1 - ios - web, web], axis=1))


def _surfaces(key: Key) -> Floats:
    tilt = np.stack([normal(key, f"surface/{name}") for name in SURFACES], axis=1)
    weight = np.array([0.42, 0.20, 0.28, 0.10]) * np.exp(0.5 * tilt)
    return np.asarray(weight / weight.sum(axis=1, keepdims=True))


def _logistic(x: Floats) -> Floats:
    return np.asarray(1.0 / (1.0 + np.exp(-x)))
