"""Forecast against outcome, kept over experiments."""

import numpy as np
import pandas as pd
import pytest

from campaign import DataError
from monitoring.experiment.file import Forecast
from monitoring.experiment.forecast import (
    calibration_notes,
    forecast_against_outcome,
    forecast_calibration,
    forecasts_of,
    keep_forecasts,
    read_forecasts,
)
from monitoring.experiment.plan import ExperimentPlan, Metric

PLAN = ExperimentPlan(
    looks=5,
    planned_users=4000,
    metric=(
        Metric(name="hours", kind="continuous", role="success"),
        Metric(name="kept", kind="binary", role="guardrail", margin=0.02),
    ),
)


def table(seed=1, n=4000):
    rng = np.random.default_rng(seed)
    treated = rng.random(n) < 0.5
    hours = rng.normal(0.2 * treated, 1)
    return pd.DataFrame(
        {
            "user_id": np.arange(n),
            "variant": np.where(treated, "treatment", "control"),
            "hours": hours,
            "kept": rng.random(n) < 0.9,
        }
    )


def forecast(metric, value, half):
    return Forecast(variant="treatment", metric=metric, value=value, ci_lower=value - half, ci_upper=value + half)


def test_difference_combines_both_errors():
    row = forecast_against_outcome([forecast("hours", 0.2, 0.05)], table(), PLAN).iloc[0]
    assert row["difference"] == pytest.approx(row["live"] - 0.2)
    live_half = row["live_upper"] - row["live"]
    assert row["ci_upper"] - row["difference"] == pytest.approx(np.hypot(live_half, 0.05))
    # a plain 95% interval, not the repeated one of five looks
    assert live_half == pytest.approx(1.96 * 2 / np.sqrt(4000), rel=0.05)
    assert row["covered"]


def test_each_side_of_the_difference_comes_from_the_sides_that_it_is_made_of():
    """Low live against high forecast below, high live against low forecast above: by hand, with unequal sides."""
    guess = Forecast(variant="treatment", metric="kept", value=0.01, ci_lower=-0.04, ci_upper=0.02)
    frame = table(n=400).assign(kept=lambda f: np.where(f["variant"] == "treatment", 1, f.index % 40 > 0))
    row = forecast_against_outcome([guess], frame, PLAN).iloc[0]
    below, above = row["live"] - row["live_lower"], row["live_upper"] - row["live"]
    assert abs(below - above) > 0.005
    assert row["difference"] - row["ci_lower"] == pytest.approx(np.hypot(below, 0.01), rel=1e-9)
    assert row["ci_upper"] - row["difference"] == pytest.approx(np.hypot(above, 0.05), rel=1e-9)


def test_a_covariate_that_differs_is_left_out_of_the_live_effect():
    metric = PLAN.metric[0].model_copy(update={"covariate": "before"})
    frame = table().assign(before=lambda f: f["hours"] + 3.0 * (f["variant"] == "treatment"))
    guess = [forecast("hours", 0.2, 0.05)]
    through, plain = (
        forecast_against_outcome(guess, frame, PLAN.model_copy(update={"metric": (m, PLAN.metric[1])}))
        for m in (metric, PLAN.metric[0])
    )
    pd.testing.assert_frame_equal(through, plain)


def test_a_wrong_forecast_is_contradicted():
    assert not forecast_against_outcome([forecast("hours", 0.6, 0.05)], table(), PLAN)["covered"].iloc[0]


def test_reading_again_replaces_the_experiment_in_the_record(tmp_path):
    file = tmp_path / "forecasts.json"
    assert read_forecasts(file).empty
    for seed, name in ((1, "a"), (2, "b"), (3, "a")):
        compared = forecast_against_outcome(
            [forecast("hours", 0.2, 0.05), forecast("kept", 0.0, 0.01)], table(seed), PLAN
        )
        keep_forecasts(file, name, compared)
    kept = read_forecasts(file)
    assert kept.groupby("experiment").size().to_dict() == {"a": 2, "b": 2}
    again = file.read_bytes()
    keep_forecasts(file, "a", compared)
    assert file.read_bytes() == again


def test_calibration_sees_biased_forecasts():
    honest, biased = [], []
    rng = np.random.default_rng(7)
    for seed in range(40):
        frame = table(seed)
        guess = 0.2 + rng.normal(0, 0.03)
        for value, rows in ((guess, honest), (guess + 0.12, biased)):
            rows.append(forecast_against_outcome([forecast("hours", value, 1.96 * 0.03)], frame, PLAN))
    good, bad = (forecast_calibration(pd.concat(rows)).iloc[0] for rows in (honest, biased))
    assert good["n_experiments"] == 40
    assert good["coverage"] > 0.85
    assert good["pvalue"] > 0.01
    assert abs(good["bias"]) < 3 * good["bias_se"]
    assert bad["coverage"] < 0.5
    assert bad["pvalue"] < 1e-6
    assert bad["bias"] == pytest.approx(-0.12, abs=0.03)


def test_calibration_is_told_from_the_second_experiment_on(tmp_path):
    file = tmp_path / "forecasts.json"
    assert calibration_notes(read_forecasts(file), PLAN) == []
    for seed, name in ((1, "a"), (2, "b")):
        keep_forecasts(file, name, forecast_against_outcome([forecast("hours", 0.2, 0.05)], table(seed), PLAN))
        notes = calibration_notes(read_forecasts(file), PLAN)
    (note,) = notes
    assert "offline forecasts of hours so far: 100% of 2 intervals held" in note


def test_forecasts_come_from_the_evaluation_table():
    columns = ["policy", "baseline", "outcome", "segment", "estimator", "value", "ci_lower", "ci_upper"]
    rows = [
        ("low", "send_all", "kept", "", "dr", 0.01, 0.0, 0.02),
        ("low", "send_all", "weighted", "", "dr", 1.0, 0.5, 1.5),
        ("low", "send_all", "kept", "plan=free", "dr", 0.05, 0.0, 0.1),
        ("low", "send_none", "kept", "", "dr", 0.03, 0.0, 0.1),
        ("low", "send_all", "kept", "", "snips", 0.02, 0.0, 0.1),
    ]
    evaluation = pd.DataFrame(rows, columns=columns)
    (found,) = forecasts_of(evaluation, "low", "send_all", "candidate", model_tag="tactful:1")
    assert (found.variant, found.metric, found.value, found.model_tag) == ("candidate", "kept", 0.01, "tactful:1")
    with pytest.raises(DataError, match=r"no rows with .*'high'.* it has policies \['low'\]"):
        forecasts_of(evaluation, "high", "send_all", "candidate")


def test_impossible_interval_is_refused():
    with pytest.raises(ValueError, match="must lie in its interval"):
        Forecast(variant="a", metric="b", value=2.0, ci_lower=0.0, ci_upper=1.0)
