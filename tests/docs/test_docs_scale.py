"""The numbers of docs/scale.md are those that the measurements give."""

import sys

import pytest

from campaign import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import scale  # after its folder is known
from growth import exponent, marginal, read_results

BENCHMARKS = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")


def sizes(cpu):
    return {users: [{"cpu_s": seconds, "redis_gb": users / 1e6}] for users, seconds in cpu.items()}


def test_page_has_the_table_of_the_measurements():
    page = scale.PAGE.read_text(encoding="utf-8")
    assert scale.page_table(read_results(), BENCHMARKS) in page, "run benchmarks/scale.py"


def test_benchmarks_page_has_the_table_of_the_measurements():
    from growth import table

    assert table(read_results()) in BENCHMARKS, "run benchmarks/growth.py table"


def test_core_hours_go_on_by_the_slope_of_the_two_largest_sizes():
    costs = {"score": sizes({1_000: 50.0, 10_000: 100.0, 100_000: 100.0 * 10**1.2})}
    assert marginal(costs["score"]) == pytest.approx(1.2)
    assert scale.core_hours(costs, "score", 1_000_000) == pytest.approx(100 * 10**2.4 / 3600)


def test_core_hours_never_grow_slower_than_users():
    costs = {"score": sizes({10_000: 80.0, 100_000: 100.0})}
    assert scale.core_hours(costs, "score", 1_000_000) == pytest.approx(1_000 / 3600)


def test_exponent_of_a_power_law():
    slope, half = exponent(sizes({10: 10**0.9, 100: 100**0.9, 1000: 1000**0.9}))
    assert slope == pytest.approx(0.9)
    assert half < 1e-6


def test_redis_memory_leaves_out_what_an_empty_server_takes():
    costs = {"redis": {n: [{"cpu_s": 1.0, "redis_gb": 0.01 + n * 1e-6}] for n in (10_000, 100_000)}}
    assert scale.redis_gb(costs, 10_000_000) == pytest.approx(10)
