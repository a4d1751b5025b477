"""Which users train, select and evaluate: disjoint sets of users, drawn by salted hash."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable
from datetime import date

import numpy as np
import pandas as pd

from campaign import DataError, Splits
from models.inputs import read_levels

SPLITS = np.array(["train", "select", "evaluate"], dtype=object)

_BELOW_ONE = float(np.nextafter(1.0, 0.0))  # the nearest float64 to (2**64 - 1) / 2**64 is 1.0: keep [0, 1) half-open
_DAY_0 = date(1970, 1, 1).toordinal()


def hash_unit(salt: str, user_ids: Iterable[object]) -> np.ndarray:
    """A number in [0, 1) per user that depends on salt and user only; THE hash of every random draw by user.

    Two draws need two salts: with one salt they would be perfectly correlated.

    Args:
        salt: names the draw, e.g. "premium-nudge/holdout/1".
        user_ids: ids; hashed as text.

    Returns: shape (n,), float64: the first 8 bytes of sha256("salt:user"), big-endian, over 2**64.

    >>> hash_unit("a", ["u1", "u2"]).round(4).tolist()
    [0.1959, 0.2886]
    """
    prefix = hashlib.sha256(f"{salt}:".encode())
    units = []
    for user in user_ids:
        digest = prefix.copy()
        digest.update(str(user).encode())
        units.append(int.from_bytes(digest.digest()[:8], "big"))
    return np.minimum(np.array(units, dtype=float) / 2.0**64, _BELOW_ONE)


def unit(salt: str, user_id: str) -> float:
    """`hash_unit` of one user, without arrays.

    >>> round(unit("a", "u1"), 4)
    0.1959
    """
    digest = hashlib.sha256(f"{salt}:{user_id}".encode()).digest()
    return min(int.from_bytes(digest[:8], "big") / 2.0**64, _BELOW_ONE)


def draw_window(user_ids: Iterable[object], day: date | np.ndarray, window_days: int) -> np.ndarray:
    """The window of its user that a day lies in, counted from 1970: exploration is drawn anew in each.

    Users' windows begin on different days (by CRC-32 of the id), so that no day sees all draws change at once.

    Args:
        user_ids: n ids; hashed as text.
        day: UTC date, or n dates (datetime64).
        window_days: length of a window.

    Returns: shape (n,), int64.

    >>> draw_window(["u1", "u1", "u2"], np.array(["2026-01-05", "2026-02-02", "2026-02-02"], dtype="M8[D]"), 28)
    array([731, 732, 731])
    """
    phase = np.array([zlib.crc32(str(user).encode()) % window_days for user in user_ids], dtype=np.int64)
    return (np.asarray(day, dtype="datetime64[D]").astype(np.int64) + phase) // window_days


def window_of(user_id: str, day: date, window_days: int) -> int:
    """`draw_window` of one user, without arrays.

    >>> window_of("u1", date(2026, 2, 2), 28)
    732
    """
    return (day.toordinal() - _DAY_0 + zlib.crc32(user_id.encode()) % window_days) // window_days


def split_of(user_ids: Iterable[object], splits: Splits) -> np.ndarray:
    """The set each user belongs to: "train", "select" or "evaluate"; shape (n,), object.

    Every row of a user gets the same answer, now and in every later run with the same salt.
    """
    codes, users = pd.factorize(np.array(list(user_ids), dtype=object))
    unit = hash_unit(splits.salt, users)
    return SPLITS[np.searchsorted([splits.train, splits.train + splits.select], unit, side="right")][codes]


def check_disjoint(user_ids: np.ndarray, split: np.ndarray) -> None:
    """Raise DataError when a user is in two sets: what chose a policy would then also grade it."""
    user, users = read_levels(pd.Series(user_ids), "cluster", sort=False)
    part, parts = read_levels(pd.Series(split), "split", sort=False)
    pairs = pd.DataFrame({"user": user, "split": part}).drop_duplicates()
    twice = pairs["user"].duplicated()
    if twice.any():
        first = pairs.loc[twice, "user"].iloc[0]
        user_id = users[first] if first >= 0 else None
        sets = [parts[k] if k >= 0 else None for k in pairs.loc[pairs["user"] == first, "split"]]
        raise DataError(
            f"{pairs.loc[twice, 'user'].nunique()} clusters are in two splits (first: {user_id} in {sets}); "
            "expected each user in one; draw the splits with models.splits.split_of"
        )
