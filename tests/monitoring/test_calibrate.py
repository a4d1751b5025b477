import json

import numpy as np
import pytest
from monitored import campaign

from campaign import DataError
from monitoring.calibrate import FLOORS, calibrate, prediction_bound, read_stats


def week(rng, effect=0.04):
    columns = [
        {"role": "feature", "effect": e, "psi": e**2, "missing": 0.01 + rng.normal(0, 0.002), "missing_ref": 0.01}
        for e in effect * np.exp(rng.normal(0, 0.2, 20))
    ]
    ignored = {"role": "ignored", "effect": 9.0, "psi": 9.0, "missing": 0.9, "missing_ref": 0.0}
    rows = {"name": "rows", "value": float(rng.integers(9_000, 11_000))}
    return {"checks": [rows], "drift": {"columns": [*columns, ignored]}}


def stats(weeks, effect=0.04, seed=0):
    rng = np.random.default_rng(seed)
    return {f"2026-W{10 + i}": week(rng, effect) for i in range(weeks)}


def test_calibrate_exceeds_every_quiet_week():
    found = calibrate(stats(12), campaign())
    weekly = [
        sorted(c["effect"] for c in s["drift"]["columns"] if c["role"] == "feature")[-2] for s in stats(12).values()
    ]
    assert found.proposed["drift_effect"] > max(weekly)
    assert found.proposed["drift_effect"] < 4 * max(weekly)
    assert "drift_effect = " in found.text()
    assert "12 quiet weeks" in found.text()


def test_calibrate_more_wobble_gives_wider_thresholds():
    calm, restless = (calibrate(stats(12, effect), campaign()).proposed for effect in (0.05, 0.15))
    assert restless["drift_effect"] > 2 * calm["drift_effect"]


def test_calibrate_covers_one_feature_that_moves_with_the_predictions():
    alone, together = stats(12), stats(12)
    for quiet, prediction in ((alone, 0.0), (together, 9.0)):
        for s in quiet.values():
            s["drift"]["columns"][0]["effect"] = 0.4  # a single feature is fewer than `drift_share`
            s["drift"]["columns"].append({"role": "prediction", "effect": prediction})
    assert calibrate(alone, campaign()).proposed["drift_effect"] < 0.3
    assert calibrate(together, campaign()).proposed["drift_effect"] == pytest.approx(0.4, abs=0.01)


def test_calibrate_keeps_floors():
    assert calibrate(stats(30, 0.001), campaign()).proposed["drift_effect"] == FLOORS["drift_effect"]


def test_calibrate_new_weeks_stay_below():
    """The bound is for the next week: over 300 calibrations on 8 weeks, a ninth is above it at its rate at most."""
    rng = np.random.default_rng(1)
    draws = rng.normal(size=(4000, 9))
    above = np.mean([row[8] > prediction_bound(row[:8], 0.05) for row in draws])
    assert above == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 / 4000))


def test_calibrate_too_few_weeks():
    with pytest.raises(DataError, match=r"3 quiet weeks with statistics .*at least 6 needed"):
        calibrate(stats(3) | {"2026-W30": {"drift": None}}, campaign())


def test_read_stats(tmp_path):
    for name, action in (("2026-W06", "retrain"), ("2026-W07", "none"), ("2026-W08", "warn")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "stats.json").write_text(json.dumps({"drift": None}))
        (tmp_path / name / "decision.json").write_text(json.dumps({"action": action}))
    assert list(read_stats(tmp_path)) == ["2026-W07", "2026-W08"]
    assert list(read_stats(tmp_path, ["2026-W08"])) == ["2026-W08"]
    with pytest.raises(DataError, match=r"no stats\.json of 2026-W09; weeks there are: 2026-W06, 2026-W07, 2026-W08"):
        read_stats(tmp_path, ["2026-W09"])
