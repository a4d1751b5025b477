"""Counter-based random numbers: every draw is a hash of (seed, user, block, event, label).

A stateful generator would make a user's behaviour depend on how many users were drawn before him. Here it depends on
his own key only: worlds of 1,000 and 1,000,000 users share their first 1,000, chunks need no order, and two worlds
that differ in a policy or a drift share every other draw (common random numbers).

Source: SplitMix64 finaliser, Steele, Lea, Flood (2014), "Fast splittable pseudorandom number generators".
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

Key = NDArray[np.uint64]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_GOLDEN = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1


def child(key: Key | int, counter: NDArray[np.integer] | int) -> Key:
    """Key of the `counter`-th child of each key; shapes broadcast, at least one dimension."""
    parent = np.atleast_1d(np.asarray(key, dtype=np.uint64))
    step = (np.atleast_1d(np.asarray(counter)).astype(np.int64).view(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN)
    return _mix(_mix(parent) + step)


def uniform(key: Key, label: str) -> Floats:
    """One draw in (0, 1) per key; another `label` gives an independent draw."""
    offset = np.uint64(zlib.crc32(label.encode()) * _GOLDEN & _WORD)
    # 53 bits, centred: never exactly 0 or 1, so that logarithms are finite
    return (_mix(key + offset) >> np.uint64(11)).astype(np.float64) * 2.0**-53 + 2.0**-54


def normal(key: Key, label: str) -> Floats:
    """One standard normal draw per key (Box-Muller)."""
    radius = np.sqrt(-2.0 * np.log(uniform(key, label + "/radius")))
    return np.asarray(radius * np.cos(2 * np.pi * uniform(key, label + "/angle")))


def choice(key: Key, label: str, shares: NDArray[np.float64]) -> Ints:
    """Index drawn with the given shares.

    Args:
        key: shape (n,).
        label: name of the draw.
        shares: shape (k,) or (n, k); rows sum to 1.
    """
    cumulative = np.cumsum(shares, axis=-1)[..., :-1]
    return np.asarray((uniform(key, label)[:, None] > cumulative).sum(axis=-1), dtype=np.int64)


def negative_binomial(key: Key, label: str, mean: Floats, shape: int) -> Ints:
    """Overdispersed counts: variance mean + mean**2 / shape, P(0) = (1 + mean / shape) ** -shape.

    A sum of `shape` geometric draws, each by inversion: closed form, no rejection loop.
    """
    log_ratio = np.log(np.maximum(mean, 1e-12) / (mean + shape))
    parts = [np.floor(np.log(uniform(key, f"{label}/{i}")) / log_ratio) for i in range(shape)]
    return np.asarray(np.sum(parts, axis=0), dtype=np.int64)


def _mix(x: Key) -> Key:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
