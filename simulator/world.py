"""The platform, day by day: who is due for a decision, what happens under it, what the logs say.

    World.due() -> Due            users whose block starts today, with the request's context and the truth
    World.decide(arms)            the arm of each of them; their next 28 days are drawn
    World.advance()               writes the rows that arrive today; then tomorrow begins

Warm-up: before world day 28 nothing is decided; blocks run under a pilot (half control, half a random message), so that
message histories differ from the first decision on. Two hidden blocks before the world's start settle activity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import date, timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from campaign import DataError
from simulator.draws import Floats, Ints, Key, child, choice, uniform
from simulator.effects import DRIFTS, check_messages, expected_outcomes
from simulator.life import live, newborn, state_of
from simulator.logs import Outbox, labels, write_log
from simulator.rows import add_block, add_profiles
from simulator.traits import BLOCK_DAYS, DAY, SECOND, SURFACES, Users, make_users

HIDDEN_DAYS = 2 * BLOCK_DAYS
WARM_UP_DAYS = 28
MARKET_FIRST_USER = 50_000_000
_MARKET_SHARE = 0.35  # size of the market drift's wave, as a share of the users
_MARKET_DAYS = 7  # in which the wave signs up
_PILOT_SHARE = 0.5  # of warm-up blocks under a message


@dataclass(frozen=True)
class Drift:
    """A change of the world from a world day on. kind: price, market, fatigue or tracking."""

    kind: str
    day: int


@dataclass(frozen=True)
class Due:
    """Users whose block starts on one day; arrays of shape (n,), ordered by user number.

    `truth` has shape (n, n_arms, 3): expected subscribed, retained, listening_hours under each arm. It is for
    measuring, never for deciding. `user_key` and `key` (of the user's block) seed draws made outside, as in
    `draws.uniform(due.key, "my label")`: they do not disturb the world's own.
    """

    user_ids: NDArray[np.object_]
    decided_at: NDArray[np.datetime64]
    hour: Ints
    surface: NDArray[np.object_]
    truth: Floats
    number: Ints  # of the decision, unique in the world
    user_key: Key
    key: Key


class World:
    """A simulated platform whose decisions are taken outside."""

    def __init__(
        self,
        root: Path,
        users: int,
        days: int,
        seed: int,
        *,
        end: date,
        messages: Sequence[str],
        phase_step: int = 1,
        drifts: Sequence[Drift] = (),
        first_user: int = 0,
    ) -> None:
        """Draw the users and their time before the world's start; nothing is written yet.

        Args:
            root: data folder; logs go under root/logs.
            users: number of users at the end of the world (about 0.17% of them sign up on each day of it).
            days: length of the world.
            seed: of every draw.
            end: the world covers [end - days, end).
            messages: names of the message arms.
            phase_step: block starts fall on world days that are multiples of this (1, or 7 for weekly steps).
            drifts: changes of the world.
            first_user: number of the first user, when a world is written in chunks of users.

        Raises:
            DataError: more messages than effects are known for, or an unknown drift.
        """
        check_messages(tuple(messages))
        self.root, self.seed, self.messages = root, seed, tuple(messages)
        self.start_date = end - timedelta(days=days)
        self.day = 0
        self.drifts = _checked(drifts)
        self._start, self._end = _midnight(self.start_date), _midnight(end)
        self._part = f"part-{first_user:08d}"
        self.users = self._draw_users(first_user, users, phase_step)
        self._ids = np.array([f"u{i:07d}" for i in self.users.index], dtype=object)
        self._id_column = labels(np.arange(self.users.n), tuple(self._ids))
        self._life = newborn(self.users, self._begin(np.arange(self.users.n), self.users.phase_day - HIDDEN_DAYS))
        self._outbox = Outbox(self._start, self._end)
        add_profiles(self._outbox, self.users, self._start)
        for day in range(-HIDDEN_DAYS, 0):
            self._pilot(self._starting(day), day)
        self._due: Due | None = None
        self._decided = False

    @property
    def date(self) -> date:
        """Calendar date of the current world day."""
        return self.start_date + timedelta(days=self.day)

    def due(self) -> Due:
        """Users who need an arm today; the same answer until the day is over."""
        if self._due is None:
            rows = self._due_rows()
            key, begin, surface = self._request(rows, self.day)
            state = state_of(self.users, self._life, rows, key, begin, surface, self.seed)
            arms = range(len(self.messages) + 1)
            truth = [expected_outcomes(state, arm, self._in_force(self.day)) for arm in arms]
            self._due = Due(
                user_ids=self._ids[rows],
                decided_at=begin.astype("datetime64[us]"),
                hour=self.users.second[rows] // 3600,
                surface=np.array(SURFACES, dtype=object)[surface],
                truth=np.stack(truth, axis=1),
                number=self.users.index[rows] * 100_000 + self.day,
                user_key=self.users.key[rows],
                key=key,
            )
        return self._due

    def decide(self, arms: NDArray[np.integer] | Sequence[int]) -> None:
        """Give today's due users their arms (0 control, k the k-th message), in the order of `due()`.

        Raises:
            DataError: not one known arm per due user, or the day is decided already.
        """
        rows, chosen = self._due_rows(), np.asarray(arms, dtype=np.int64)
        if self._decided:
            raise DataError(f"{self.date} is decided already; call advance() for the next day")
        if chosen.shape != rows.shape:
            raise DataError(f"arms has shape {chosen.shape}; expected one arm for each of {len(rows)} due users")
        if len(rows) and not 0 <= chosen.min() <= chosen.max() <= len(self.messages):
            raise DataError(f"arms range from {chosen.min()} to {chosen.max()}; expected 0 to {len(self.messages)}")
        self.due()  # fixes the day's truth before the users live on
        self._pilot(np.setdiff1d(self._starting(self.day), rows), self.day)
        self._live(rows, self.day, chosen)
        self._decided = True

    def advance(self) -> None:
        """Write the rows that arrive today under root/logs, then go to the next day.

        Raises:
            DataError: users are due today and `decide` was not called.
        """
        if not self._decided:
            if len(self._due_rows()):
                raise DataError(f"{len(self._due_rows())} users are due on {self.date}; call decide(arms) first")
            self.decide([])
        for log in self._outbox.logs:
            columns = self._outbox.take(log, self.day)
            if columns is not None:
                write_log(self.root / "logs", log, self.date, self._part, columns, self._id_column, self.messages)
        self.day, self._due, self._decided = self.day + 1, None, False

    def _draw_users(self, first: int, n: int, phase_step: int) -> Users:
        users = make_users(np.arange(first, first + n), self.seed, self._end, phase_step)
        if "market" not in self.drifts:
            return users
        opens = self._start + self.drifts["market"] * DAY
        numbers = MARKET_FIRST_USER + np.arange(first, first + round(_MARKET_SHARE * n))
        return _joined(
            users, make_users(numbers, self.seed, self._end, phase_step, (opens, opens + _MARKET_DAYS * DAY))
        )

    def _starting(self, day: int) -> Ints:
        """Rows of users on the platform whose block starts on a world day, or who sign up during that block."""
        rows = np.flatnonzero(self.users.phase_day == day % BLOCK_DAYS)
        return rows[self.users.signup_at[rows] < self._begin(rows, day) + BLOCK_DAYS * DAY]

    def _due_rows(self) -> Ints:
        rows = self._starting(self.day)
        known = self.users.signup_at[rows] < self._begin(rows, self.day)
        return rows[known] if self.day >= WARM_UP_DAYS else rows[:0]

    def _begin(self, rows: Ints, day: int | Ints) -> Ints:
        return np.asarray(self._start + day * DAY + self.users.second[rows] * SECOND, dtype=np.int64)

    def _request(self, rows: Ints, day: int) -> tuple[Key, Ints, Ints]:
        """Key, start and surface of the block that begins on a world day."""
        key = child(self.users.key[rows], day + HIDDEN_DAYS)
        return key, self._begin(rows, day), choice(key, "decision/surface", self.users.surface_shares[rows])

    def _in_force(self, day: int) -> frozenset[str]:
        return frozenset(kind for kind, since in self.drifts.items() if day >= since)

    def _pilot(self, rows: Ints, day: int) -> None:
        """Blocks without a decision: warm-up under a pilot, a newcomer's first days under control."""
        key = child(self.users.key[rows], day + HIDDEN_DAYS)
        arms = np.where(
            uniform(key, "pilot") < _PILOT_SHARE, choice(key, "pilot/arm", _even(len(self.messages))) + 1, 0
        )
        known = self.users.signup_at[rows] < self._begin(rows, day)
        self._live(rows, day, np.where(known, arms, 0))

    def _live(self, rows: Ints, day: int, arms: Ints) -> None:
        if not len(rows):
            return
        key, begin, surface = self._request(rows, day)
        state = state_of(self.users, self._life, rows, key, begin, surface, self.seed)
        # Plans rest before the world's start and before sign-up: the first profile row of each user is then true.
        subscribing = begin >= np.maximum(self._start, self.users.signup_at[rows])
        block = live(self.users, self._life, rows, key, begin, state, arms, self._in_force(day), subscribing)
        add_block(self._outbox, self.users, block, day + HIDDEN_DAYS, self._since("price"), self._since("tracking"))

    def _since(self, kind: str) -> int | None:
        """Instant from which a drift is in force, None when there is none."""
        return self._start + self.drifts[kind] * DAY if kind in self.drifts else None


def _checked(drifts: Sequence[Drift]) -> dict[str, int]:
    for drift in drifts:
        if drift.kind not in DRIFTS:
            raise DataError(f"drift kind is {drift.kind!r}; the simulator knows {', '.join(DRIFTS)}")
    return {drift.kind: drift.day for drift in drifts}


def _even(k: int) -> Floats:
    return np.full(k, 1 / k)


def _midnight(day: date) -> int:
    return int(np.datetime64(day, "us").astype(np.int64))


def _joined(a: Users, b: Users) -> Users:
    return Users(**{f.name: np.concatenate([getattr(a, f.name), getattr(b, f.name)]) for f in fields(Users)})
