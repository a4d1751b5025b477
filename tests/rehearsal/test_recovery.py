"""Recovery after a drift, on a scale that shows what doing nothing reaches."""

import sys
from pathlib import Path

import pytest

from rehearsal import Week

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def loop():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import loop
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    return loop


def week(policy, none, frozen):
    return Week(9, policy, 1.0, none, frozen, 4.0, (), "none", False, 100, "tactful:1")


def test_shares_put_frozen_and_nothing_on_the_scale_of_the_policy(loop):
    """Value: nearly all of the ideal's 2.5 by sending nothing. Gain: half of the ideal's 0.5, frozen below nothing."""
    found = loop.shares([week(2.2, 2.0, 1.9), week(2.3, 2.0, 1.9)], 2.5, 0.5)
    assert found == pytest.approx(
        {"value": 0.9, "value_frozen": 0.76, "value_send_none": 0.8, "gain": 0.5, "gain_frozen": -0.2}
    )


def test_section_shows_them_and_what_was_not_measured_before(loop):
    played = {"script": "price@2-seed1", "kind": "price", "gain": dict.fromkeys(loop.RIVALS, 0.1), "retrain": [3]}
    played |= {"promoted": [4], "fallback": [], "stop": [], "alarm": [3], "promoted_since": [4]}
    new = {
        "value": 0.9,
        "value_frozen": 0.76,
        "value_send_none": 0.8,
        "gain": 0.5,
        "gain_frozen": -0.2,
        "gain_all": 0.4,
    }
    told = loop.section(
        [played | {"recovery": new}, played | {"recovery": {"value": 0.9, "gain": 0.5, "gain_all": 0.4}}]
    )
    assert "| price@2 | 1, 1 | 0.90, 0.90 | 0.76, - | 0.80, - | 0.50, 0.50 | -0.20, - | 0.40, 0.40 |" in told
