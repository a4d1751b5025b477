"""What changes about the users: plan, recent activity, fatigue; and one block lived under given arms."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from simulator.blocks import (
    BLOCK,
    NEVER,
    Messages,
    Sessions,
    Subscriptions,
    draw_messages,
    draw_sessions,
    draw_subscriptions,
)
from simulator.draws import Bools, Floats, Ints, Key, child, normal
from simulator.effects import Rates, State, rates
from simulator.traits import (
    BLOCK_DAYS,
    COUNTRIES,
    DAY,
    DEVICES,
    FREE,
    NEW_MARKET,
    PREMIUM,
    SURFACES,
    TRIAL,
    WEEK,
    Users,
)

_EVENING_HOUR = 18
_HABIT = 0.5  # weight of last block's activity in this one's
_WOBBLE = 0.03  # sd of the platform's log activity from week to week


@dataclass
class Life:
    """One value per user of everything that changes, at the start of his current block; arrays of shape (n,)."""

    plan: Ints
    sessions: Ints  # of the last block
    expected: Floats  # sessions of the last block, had it been an ordinary one
    last_session: Ints
    messages: Floats  # shown, halved with each block
    dismissals: Floats


@dataclass(frozen=True)
class Block:
    """What happened to a cohort in one block."""

    rows: Ints
    key: Key
    arms: Ints
    sessions: Sessions
    messages: Messages
    subscriptions: Subscriptions


def newborn(users: Users, begin: Ints) -> Life:
    """Everybody as after an ordinary block without messages; `begin` is each user's first block start."""
    expected = BLOCK_DAYS * users.intensity
    return Life(
        plan=users.plan.copy(),
        sessions=np.round(expected).astype(np.int64),
        expected=expected,
        last_session=begin - DAY,
        messages=np.zeros(users.n),
        dismissals=np.zeros(users.n),
    )


def take(users: Users, rows: Ints) -> Users:
    """The users of these rows."""
    return Users(**{field.name: getattr(users, field.name)[rows] for field in fields(Users)})


def state_of(users: Users, life: Life, rows: Ints, key: Key, begin: Ints, surface: Ints, seed: int) -> State:
    """State of a cohort at its block's start.

    Args:
        users: traits of everybody.
        life: what changes, of everybody.
        rows: the cohort, shape (n,).
        key: of each user's block, shape (n,).
        begin: instants of the block's start, shape (n,).
        surface: index of the surface on which the decision is asked, shape (n,).
        seed: of the world.
    """
    cohort = take(users, rows)
    plan = life.plan[rows]
    habit = ((life.sessions[rows] + 2) / (life.expected[rows] + 2)) ** _HABIT
    week = np.exp(_WOBBLE * normal(child(child(seed, 3), begin // WEEK), "wobble"))
    account_days = np.maximum(begin - cohort.signup_at, 0) / DAY
    last_seen = np.maximum(life.last_session[rows], cohort.signup_at)
    return State(
        premium=plan == PREMIUM,
        trial=plan == TRIAL,
        engagement=cohort.engagement,
        active=(np.log1p(life.sessions[rows]) - 2.5) / 0.9,
        lapsed=np.clip((begin - last_seen) / BLOCK, 0.0, 1.0),
        fresh=np.exp(-account_days / 150.0),
        skip=cohort.skip,
        price=cohort.price,
        tolerance=cohort.tolerance,
        fatigue=1 - np.exp(-(life.messages[rows] + 2 * life.dismissals[rows]) / 22),
        evening=cohort.evening,
        on_evening=cohort.second >= _EVENING_HOUR * 3600,
        home=surface == SURFACES.index("home"),
        web=cohort.device == DEVICES.index("web"),
        susceptible=normal(cohort.key, "susceptible"),
        intensity=cohort.intensity * habit * week * np.exp(0.25 * normal(key, "mood")),
        minutes=cohort.minutes,
        market=cohort.country == COUNTRIES.index(NEW_MARKET),
    )


def live(
    users: Users,
    life: Life,
    rows: Ints,
    key: Key,
    begin: Ints,
    state: State,
    arms: Ints,
    drifts: frozenset[str],
    subscribing: Bools,
) -> Block:
    """Draw one block of a cohort under given arms and bring `life` to its end.

    Args:
        users: traits of everybody.
        life: what changes, of everybody; changed in place.
        rows: the cohort, shape (n,).
        key: of each user's block, shape (n,).
        begin: instants of the block's start, shape (n,).
        state: the cohort's state then.
        arms: shape (n,).
        drifts: kinds of drift in force.
        subscribing: users whose plan may change in this block, shape (n,).
    """
    cohort = take(users, rows)
    chosen = _rates_of(state, arms, drifts)
    plan = life.plan[rows]
    sessions = draw_sessions(key, cohort, chosen, state.minutes, begin, plan != PREMIUM)
    sessions = _select(sessions, sessions.at >= cohort.signup_at[sessions.row])
    messages = draw_messages(sessions, arms, state.tolerance, state.fatigue, begin + BLOCK)
    subscriptions = draw_subscriptions(key, chosen, begin, plan == PREMIUM, plan == TRIAL, arms)
    subscriptions = Subscriptions(
        **{f.name: np.where(subscribing, getattr(subscriptions, f.name), NEVER) for f in fields(Subscriptions)}
    )
    _record(life, rows, cohort, begin, sessions, messages, subscriptions)
    return Block(rows, key, arms, sessions, messages, subscriptions)


def _record(
    life: Life, rows: Ints, cohort: Users, begin: Ints, sessions: Sessions, messages: Messages, subs: Subscriptions
) -> None:
    n = len(rows)
    life.sessions[rows] = np.bincount(sessions.row, minlength=n)
    life.expected[rows] = cohort.intensity * np.clip((begin + BLOCK - cohort.signup_at) / DAY, 0, BLOCK_DAYS)
    last = np.maximum(life.last_session[rows], cohort.signup_at)
    np.maximum.at(last, sessions.row, sessions.at)
    life.last_session[rows] = last
    seen_by = sessions.row[messages.session]
    life.messages[rows] = 0.5 * life.messages[rows] + np.bincount(seen_by, minlength=n)
    dismissed = np.bincount(seen_by[messages.action == 2], minlength=n)
    life.dismissals[rows] = 0.5 * life.dismissals[rows] + dismissed
    plan = life.plan[rows]
    plan = np.where((subs.cancel < NEVER) | (subs.trial_end < NEVER), FREE, plan)
    plan = np.where(subs.trial_begin < NEVER, TRIAL, plan)
    life.plan[rows] = np.where(subs.start < NEVER, PREMIUM, plan)


def _rates_of(state: State, arms: Ints, drifts: frozenset[str]) -> Rates:
    """Rates of each user under his own arm."""
    by_arm = {int(arm): rates(state, int(arm), drifts) for arm in np.unique(arms)}
    mixed: dict[str, Floats] = {}
    for field in fields(Rates):
        mixed[field.name] = np.zeros(len(arms))
        for arm, of_arm in by_arm.items():
            mixed[field.name] = np.where(arms == arm, getattr(of_arm, field.name), mixed[field.name])
    return Rates(**mixed)


def _select(sessions: Sessions, kept: Bools) -> Sessions:
    return Sessions(**{field.name: getattr(sessions, field.name)[kept] for field in fields(Sessions)})
