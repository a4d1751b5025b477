"""Small seeded versions of benchmarks/experiment.py: what the read-out promises, on experiments with known truth."""

import importlib
import math
import sys
from pathlib import Path

import pytest

from monitoring.experiment.plan import ExperimentPlan

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
bench, told = importlib.import_module("experiment_worlds"), importlib.import_module("experiment")


def upper(rate, n):
    """Three Monte-Carlo standard errors above a rate."""
    return rate + 3 * math.sqrt(rate * (1 - rate) / n)


@pytest.mark.parametrize("looks", [1, 5])
def test_no_effect_rarely_ships(looks):
    plan = ExperimentPlan(metric=(bench.SUBSCRIPTION,), looks=looks)
    counts = bench.decisions(80, 1500, plan, bench.Effects(), seed=1)
    assert counts["ship"] / 80 <= upper(0.025, 80)


def test_no_effect_rarely_alarms_over_five_looks():
    counts = bench.decisions(40, 1500, bench.GUARDED.model_copy(update={"looks": 5}), bench.Effects(), seed=2)
    assert counts["rollback"] / 40 <= upper(0.05, 40)


def test_sample_ratio_alarms_at_their_nominal_rate():
    assert bench.srm_nominal(20_000, seed=3) == pytest.approx(20, abs=3 * math.sqrt(20))
    for failed in bench.srm_alarms(80, seed=3).values():
        assert failed / 80 <= upper(0.05, 80)


@pytest.mark.parametrize("days", [True, False])
def test_reading_on_past_the_end_rarely_ships(days):
    first, ever = bench.reread(40, 1500, seed=10, readings=5, days=days)
    assert ever / 40 <= upper(0.05, 40)
    assert first <= ever


@pytest.mark.slow
@pytest.mark.parametrize("days", [True, False])
def test_reading_on_past_the_end_keeps_its_rate(days):
    """.025 is planned; with days a little more for the rest of the last one, without at most .025 more."""
    _, ever = bench.reread(300, 2000, seed=31, readings=5, days=days)
    assert ever / 300 <= upper(0.03 if days else 0.05, 300)


def test_effects_outside_the_trigger_are_seen():
    assert bench.untriggered_alarms(40, 3000, 0.0, seed=11) <= 3
    assert bench.untriggered_alarms(20, 8000, 0.04, seed=12) >= 17


def test_a_rate_is_told_with_its_error():
    assert told.rate(30, 1000) == "0.030 (SE 0.005)"
    assert told.rate(0, 400) == "0.000 (SE 0.003)"


@pytest.mark.parametrize("looks", [1, 3])
def test_good_candidate_ships_as_often_as_planned(looks):
    effects = bench.Effects(subscription=0.03)
    plan, promised = bench.planned(effects, looks, seed=4)
    counts = bench.decisions(80, plan.planned_users, plan, effects, seed=5)
    assert promised == pytest.approx(0.8, abs=0.01)
    assert counts["ship"] / 80 == pytest.approx(0.8, abs=3 * math.sqrt(0.8 * 0.2 / 80))


def test_harm_in_one_segment_rarely_ships():
    good = bench.Effects(subscription=0.03)
    plan, _ = bench.planned(good, 3, seed=4)
    at_margin = bench.Effects(subscription=0.03, retention=(0.0, 0.0, -0.10))
    counts = bench.decisions(60, plan.planned_users, plan, at_margin, seed=6)
    assert counts["ship"] / 60 <= upper(0.05, 60)


def test_triggered_analysis_agrees_and_is_narrower():
    found = bench.triggered_agreement(60, 3000, seed=7)
    assert abs(found["difference"]) < 3 * found["difference_se"]
    assert found["width_ratio"] < 0.65
    assert min(found["covered_plain"], found["covered_triggered"]) / 60 >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 60)


def test_cuped_saves_what_theory_says():
    found = bench.cuped_reduction(100, 500, seed=8)
    assert found["users_ratio"] == pytest.approx(found["theory"], rel=0.10)
    # the ratio of two correlated sample variances of 100 effects has a relative SE of about .15
    assert found["variance_ratio"] == pytest.approx(found["theory"], rel=0.45)


def test_forecast_and_live_intervals_cover_their_difference():
    compared = bench.forecast_coverage(30, 5000, 3000, seed=9)
    assert compared["covered"].mean() >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / len(compared))


def test_a_rehearsed_experiment_is_near_forecast_and_truth(tmp_path):
    """One experiment on the simulated platform: every estimate within four standard errors of what is true."""
    compared = bench.rehearsed_experiment(1, 2500, tmp_path)
    assert set(compared["metric"]) == {"subscription", "retention", "listening"}
    live_se = (compared["live_upper"] - compared["live_lower"]) / (2 * 1.96)
    assert (abs(compared["live"] - compared["truth"]) < 4 * live_se).all()
    forecast_se = (compared["forecast_upper"] - compared["forecast_lower"]) / (2 * 1.96)
    assert (abs(compared["forecast"] - compared["truth"]) < 4 * forecast_se).all()


def test_benchmark_section_replaces_only_itself(tmp_path):
    file = tmp_path / "benchmarks.md"
    file.write_text("# Benchmarks\n\n<!-- other -->\nkept\n<!-- /other -->\n")
    told.write_section(file, "experiment", "one")
    told.write_section(file, "experiment", "two")
    text = file.read_text()
    assert "kept" in text
    assert "one" not in text
    assert text.count("<!-- experiment -->\ntwo\n<!-- /experiment -->") == 1
