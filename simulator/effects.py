"""What a message does to a user: behaviour rates under each arm, and their exact expected outcomes.

A block's behaviour is a handful of rates (chance to subscribe, to churn, sessions a day ...), a function of the user's
state at the block's start and of the arm. `expected_outcomes` is the closed form of what blocks.py draws from the same
rates: the true effect of an arm is a difference of two rows of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from campaign import DataError
from simulator.draws import Bools, Floats

OUTCOMES = ("subscribed", "retained", "listening_hours")
HALF_DAYS = 14  # outcomes look at the first and the second half of a block
DISPERSION = 3  # of session counts in half a block (negative binomial)

DRIFTS = ("price", "market", "fatigue", "tracking")


@dataclass(frozen=True)
class State:
    """What decides a block's behaviour, at its start; every array has shape (n,).

    Attributes:
        premium, trial: plan.
        engagement: latent trait, mean 0, sd about 1.
        active: log sessions of the last 28 days, centred and scaled to sd about 1.
        lapsed: days since the last session over 28, in [0, 1].
        fresh: 1 for a new account, falling to 0 with account age (exp(-days / 150)).
        skip, price, tolerance: latent traits, mean 0, sd about 1.
        fatigue: from messages and dismissals of past blocks, in [0, 1).
        evening: share of listening in the evening; on_evening: the decision falls at 18:00 UTC or later.
        home, web: the decision's surface is home; the device is the web player.
        susceptible: latent, how much he reacts to messages in ways no log shows; mean 0, sd 1.
        intensity: expected sessions a day without message or churn; 0 for users without events.
        minutes: expected minutes of a session.
        market: user of the market drift's wave.
    """

    premium: Bools
    trial: Bools
    engagement: Floats
    active: Floats
    lapsed: Floats
    fresh: Floats
    skip: Floats
    price: Floats
    tolerance: Floats
    fatigue: Floats
    evening: Floats
    on_evening: Bools
    home: Bools
    web: Bools
    susceptible: Floats
    intensity: Floats
    minutes: Floats
    market: Bools


@dataclass(frozen=True)
class Rates:
    """Behaviour of a block; every array has shape (n,).

    A user who churns stops at a random moment of his second week. A premium user cancels with `cancel` in his first
    week and then comes back with `return_` in the second; any other user subscribes with `start` in the first two.
    """

    start: Floats
    cancel: Floats
    return_: Floats
    churn: Floats
    intensity: Floats


@dataclass(frozen=True)
class Profile:
    """How one message changes behaviour: coefficients of terms of the state (see `_TERMS`).

    start and churn are on the logit scale, listening on the log scale of sessions a day.
    """

    start: Mapping[str, float]
    churn: Mapping[str, float]
    listening: Mapping[str, float]


_TERMS: dict[str, Callable[[State], Floats]] = {
    "one": lambda s: np.ones_like(s.active),
    "premium": lambda s: s.premium.astype(float),
    "trial": lambda s: s.trial.astype(float),
    "active": lambda s: s.active,
    "lapsed": lambda s: s.lapsed,
    "fresh": lambda s: s.fresh,
    "skip": lambda s: s.skip,
    "price": lambda s: s.price,
    "tolerance": lambda s: s.tolerance,
    "fatigue": lambda s: s.fatigue,
    "evening": lambda s: s.evening - 0.5,
    "evening_match": lambda s: np.where(s.on_evening, s.evening, 0.0),
    "home": lambda s: s.home.astype(float),
    "web": lambda s: s.web.astype(float),
    "susceptible": lambda s: s.susceptible,
    # the middle listens enough to care and not enough to have decided already
    "middling": lambda s: np.exp(-(s.active**2)) - 0.4,
    "premium_active": lambda s: np.where(s.premium, np.tanh(s.active), 0.0),
    "free_skip": lambda s: np.where(s.premium, 0.0, s.skip),
    "skip_fatigue": lambda s: np.tanh(s.skip) * s.fatigue,
}

# One profile per message arm, in the order in which the arms are named.
PROFILES = (
    # an offer of the paid plan: sells to new, evening and middling listeners; annoys subscribers, skippers, the tired
    Profile(
        start={"one": 0.0, "fresh": 0.8, "middling": 1.3, "skip": -0.65, "price": -0.4, "fatigue": -1.6, "web": -0.9,
               "evening_match": 0.6, "home": 0.4, "trial": -0.3, "susceptible": 0.3},
        churn={"one": -1.3, "premium": 0.2, "premium_active": 0.9, "skip": 0.6, "free_skip": 0.5, "fatigue": 2.0,
               "skip_fatigue": 2.0, "tolerance": -0.5, "lapsed": -1.0, "web": 0.7, "susceptible": -0.2},
        listening={"one": 0.1, "fatigue": -0.3, "evening_match": 0.2, "skip": -0.06, "premium": -0.1},
    ),
    # a new playlist: brings lapsing listeners back and keeps subscribers, sells little
    Profile(
        start={"one": 0.15, "active": 0.15, "skip": -0.3, "fatigue": -1.0, "home": 0.2, "susceptible": 0.2},
        churn={"one": -0.15, "lapsed": -2.4, "premium": -0.5, "skip": 0.8, "fatigue": 1.5, "tolerance": -0.4,
               "evening": -0.5, "susceptible": -0.2},
        listening={"one": 0.1, "lapsed": 0.3, "skip": -0.1, "fatigue": -0.3, "evening_match": 0.1},
    ),
    # a discount: sells to the price-sensitive, makes subscribers ask what they pay for
    Profile(
        start={"one": 0.8, "price": 1.0, "fresh": -0.8, "active": 0.3, "fatigue": -1.8, "web": 0.4, "trial": -0.5,
               "susceptible": 0.3},
        churn={"one": -1.85, "premium": 0.7, "price": -0.4, "skip": 0.7, "fatigue": 2.0, "tolerance": -0.5},
        listening={"one": 0.1, "fatigue": -0.3, "premium": -0.15},
    ),
)  # fmt: skip


def check_messages(messages: tuple[str, ...]) -> None:
    """Raise DataError unless there are 1 to 3 distinct message names."""
    if not 1 <= len(messages) <= len(PROFILES) or len(set(messages)) < len(messages):
        raise DataError(
            f"messages are {list(messages)}; the simulator knows the effects of 1 to {len(PROFILES)} different "
            "messages: name as many arms beside control"
        )


def rates(state: State, arm: int, drifts: frozenset[str] = frozenset()) -> Rates:
    """Behaviour of every user for one block under one arm.

    Args:
        state: n users at the block's start.
        arm: 0 for control, k for the k-th message.
        drifts: kinds of drift in force.
    """
    control = _control_rates(state, price_rise="price" in drifts)
    if arm == 0:
        return control
    profile = PROFILES[arm - 1]
    start, churn, listening = (_sum(state, terms) for terms in (profile.start, profile.churn, profile.listening))
    sign = np.where(state.market, -1.0, 1.0)
    heavy = (state.active > 0.0) if "fatigue" in drifts else np.zeros(len(sign), dtype=bool)
    start = np.where(heavy, -1.5, sign * _bounded(start, 2.0))
    churn = np.where(heavy, 1.3, sign * _bounded(churn, 2.4))
    sold = _logit_shift(control.start, start)
    if "price" in drifts:
        # half of what the message added (or took) before the price rise, on top of the lower base
        before = _control_rates(state, price_rise=False).start
        sold = control.start + 0.5 * (_logit_shift(before, start) - before)
    return replace(
        control,
        start=sold,
        cancel=_logit_shift(control.cancel, 0.35 * _bounded(churn, 1.0)),
        return_=_logit_shift(control.return_, np.full_like(churn, 0.5)),
        churn=_logit_shift(control.churn, churn),
        intensity=control.intensity * np.exp(np.where(heavy, -0.25, _bounded(listening, 0.5))),
    )


def expected_outcomes(state: State, arm: int, drifts: frozenset[str] = frozenset()) -> Floats:
    """True expected outcomes of every user under one arm.

    With rates of `rates`: a churner's last moment is distributed like a session of his second week, so he keeps half
    of that week: 7 + 3.5 days of listening. Windows count from the decision, and halves of a block are whole weeks,
    in which weekday and hour patterns average out exactly.

    Returns: shape (n, 3): P(a start in days [0, 14)), P(a session in days [14, 28)), E(hours in days [0, 14)).
    """
    r = rates(state, arm, drifts)
    subscribed = np.where(state.premium, r.cancel * r.return_, r.start)
    half = HALF_DAYS * r.intensity
    retained = (1 - r.churn) * (1 - (1 + half / DISPERSION) ** -DISPERSION)
    hours = r.intensity * (HALF_DAYS - r.churn * HALF_DAYS / 4) * state.minutes / 60
    return np.stack([subscribed, retained, hours], axis=1)


def _control_rates(s: State, price_rise: bool) -> Rates:
    start = -2.5 + 0.25 * s.engagement + 0.3 * s.active - 0.35 * s.price + 0.4 * s.fresh + 0.9 * s.trial
    churn = -2.2 - 0.25 * s.engagement - 0.35 * s.active + 1.2 * s.lapsed + 0.2 * s.skip
    cancel = -1.55 - 0.3 * s.engagement + 0.35 * s.price + 0.2 * s.skip
    alive = s.intensity > 0
    start_share = np.where(alive & ~s.premium, _logistic(start) * (0.85 if price_rise else 1.0), 0.0)
    return Rates(
        start=start_share,
        cancel=np.where(alive & s.premium, _logistic(cancel), 0.0),
        return_=np.full_like(cancel, 0.04),
        churn=_logistic(churn),
        intensity=s.intensity,
    )


def _sum(state: State, coefficients: Mapping[str, float]) -> Floats:
    return np.asarray(sum(weight * _TERMS[term](state) for term, weight in coefficients.items()))


def _bounded(x: Floats, limit: float) -> Floats:
    return np.asarray(limit * np.tanh(x / limit))


def _logit_shift(p: Floats, shift: Floats) -> Floats:
    """Probability p with `shift` added to its logit; 0 stays 0."""
    odds = p / (1 - p) * np.exp(shift)
    return np.asarray(odds / (1 + odds))


def _logistic(x: Floats) -> Floats:
    return np.asarray(1.0 / (1.0 + np.exp(-x)))
