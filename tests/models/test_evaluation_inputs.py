import numpy as np
import pandas as pd
import pytest

from campaign import DataError
from models.inputs import PROBE, all_different

N = 40_000
USERS = [f"user-{i}" for i in range(N)]


class Clash:
    """Values of few hashes: only comparing them tells them apart."""

    def __init__(self, number):
        self.number = number

    def __hash__(self):
        return self.number % 7

    def __eq__(self, other):
        return self.number == other.number


def twice(first, second):
    """N different users but for row `second`, which repeats row `first`."""
    values = list(USERS)
    values[second] = values[first]
    return pd.Series(values)


@pytest.mark.parametrize(
    "column",
    [
        pd.Series(USERS),
        pd.Series(USERS, index=[0] * N),
        pd.Series(USERS).astype("string[pyarrow]"),
        pd.Series(USERS).astype("category"),
        pd.Series([(i, "a") for i in range(N)]),
        pd.Series([Clash(i) for i in range(4 * PROBE)]),
        pd.Series(np.arange(N)),
        pd.Series(np.arange(N) * 10**6),
        pd.Series(np.arange(N) / 3),
        pd.Series(USERS[:3]),
        pd.Series(USERS[:0]),
    ],
)
def test_all_different_agrees_that_nothing_repeats(column):
    assert all_different(column)
    assert column.is_unique


@pytest.mark.parametrize("rows", [(0, 1), (0, N - 1), (PROBE + 1, N - 2), (N // 2, N // 2 + 1)])
def test_all_different_finds_a_single_repetition(rows):
    assert not all_different(twice(*rows))


def test_all_different_finds_repeated_numbers_and_clashing_values():
    assert not all_different(pd.Series([*range(N), 5]))
    assert not all_different(pd.Series([*(10**6 * i for i in range(N)), 0]))
    assert not all_different(pd.Series([*(Clash(i) for i in range(4 * PROBE)), Clash(PROBE + 3)]))
    assert not all_different(pd.Series([*USERS, None, None]))


def test_all_different_says_what_cannot_be_compared():
    with pytest.raises(DataError, match=r"user holds \[1\]; expected single values"):
        all_different(pd.Series([[1], [2]] * N, name="user"))
