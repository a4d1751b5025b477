"""From events to rows of the raw logs: ids, prices, plan changes, and what a broken client gets wrong."""

from __future__ import annotations

import numpy as np

from simulator.blocks import NEVER
from simulator.draws import Ints, child, uniform
from simulator.life import Block
from simulator.logs import Outbox
from simulator.traits import FREE, HOUR, PREMIUM, SECOND, TRIAL, Users

EVENTS = ("start", "renew", "cancel")
_PRICE, _PRICE_AFTER = 9.99, 12.99  # EUR a month, before and after the price drift
_BROKEN_SHARE = 0.8  # of sessions, by the tracking drift
_BLOCKS, _EVENTS = 10_000, 100_000  # more than a user's blocks, more than a block's events


def add_profiles(outbox: Outbox, users: Users, start: int) -> None:
    """First profile row of every user: at sign-up, or in an export during the world's first two hours."""
    export = start + (2 * HOUR * uniform(users.key, "export")).astype(np.int64)
    _add_plans(outbox, users, np.arange(users.n), np.maximum(export, users.signup_at), users.plan)


def add_block(
    outbox: Outbox, users: Users, block: Block, number: int, price_from: int | None, broken_from: int | None
) -> None:
    """Send every row of one block.

    Args:
        outbox: takes the rows.
        users: traits of everybody.
        block: what happened.
        number: of the block, part of its events' ids.
        price_from: instant of the price drift, None without one.
        broken_from: instant from which a client bug writes most minutes as 0, None without one.
    """
    _add_sessions(outbox, users, block, number, broken_from)
    _add_messages(outbox, users, block, number)
    _add_subscriptions(outbox, users, block, number, price_from)
    subs = block.subscriptions
    for at, plan in ((subs.cancel, FREE), (subs.start, PREMIUM), (subs.trial_begin, TRIAL), (subs.trial_end, FREE)):
        some = np.flatnonzero(at < NEVER)
        _add_plans(outbox, users, block.rows[some], at[some], np.full(len(some), plan))


def _add_sessions(outbox: Outbox, users: Users, block: Block, number: int, broken_from: int | None) -> None:
    s = block.sessions
    row = block.rows[s.row]
    minutes = s.minutes
    if broken_from is not None:
        minutes = np.where((s.at >= broken_from) & (uniform(s.key, "broken") < _BROKEN_SHARE), 0.0, minutes)
    columns = {
        "session_id": _event_ids(users, block, number, s.row) + s.number,
        "row": row, "event_timestamp": s.at, "minutes": minutes,
        "tracks": s.tracks, "skips": s.skips, "ads": s.ads, "surface": s.surface,
    }  # fmt: skip
    outbox.add("sessions", s.key, s.at + (s.minutes * 60 * SECOND).astype(np.int64), columns)


def _add_messages(outbox: Outbox, users: Users, block: Block, number: int) -> None:
    m, s = block.messages, block.sessions
    of = s.row[m.session]
    columns = {
        "message_id": _event_ids(users, block, number, of) + s.number[m.session],
        "row": block.rows[of], "event_timestamp": m.at, "arm": block.arms[of] - 1,
        "format": m.popup.astype(np.int64), "action": m.action,
    }  # fmt: skip
    outbox.add("messages", child(s.key[m.session], 1), m.at, columns)


def _add_subscriptions(outbox: Outbox, users: Users, block: Block, number: int, price_from: int | None) -> None:
    for event, name in enumerate(EVENTS):
        at = getattr(block.subscriptions, name)
        some = np.flatnonzero(at < NEVER)
        at = at[some]
        raised = np.zeros(len(at), dtype=bool) if price_from is None else at >= price_from
        columns = {
            "subscription_event_id": _event_ids(users, block, number, some) + event,
            "row": block.rows[some], "event_timestamp": at, "event": np.full(len(at), event),
            "price": np.where(raised, _PRICE_AFTER, _PRICE),
        }  # fmt: skip
        outbox.add("subscriptions", child(block.key[some], 1 + event), at, columns)


def _add_plans(outbox: Outbox, users: Users, rows: Ints, at: Ints, plan: Ints) -> None:
    columns = {
        "row": rows, "event_timestamp": at, "plan": plan, "country": users.country[rows],
        "device": users.device[rows], "age_band": users.age[rows], "signup_at": users.signup_at[rows],
    }  # fmt: skip
    outbox.add("users", child(users.key[rows], at), at, columns)


def _event_ids(users: Users, block: Block, number: int, of: Ints) -> Ints:
    """First id number of each user's block; `of` points into the cohort."""
    return (users.index[block.rows[of]] * _BLOCKS + number) * _EVENTS
