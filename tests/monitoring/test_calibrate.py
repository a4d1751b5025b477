import json
from datetime import date

import numpy as np
import pytest
from monitored import campaign

from campaign import DataError
from models.verdicts import KEYS
from monitoring.calibrate import FLOORS, RED_LINE_CEILING, calibrate, persisting_factor, prediction_bound, read_stats
from monitoring.drift import psi_and_p


def week(rng, effect=0.04):
    columns = [
        {"role": "feature", "effect": e, "psi": e**2, "missing": 0.01 + rng.normal(0, 0.002), "missing_ref": 0.01}
        for e in effect * np.exp(rng.normal(0, 0.2, 20))
    ]
    ignored = {"role": "ignored", "effect": 9.0, "psi": 9.0, "missing": 0.9, "missing_ref": 0.0}
    rows = {"name": "rows", "value": float(rng.integers(9_000, 11_000))}
    drift = {"columns": [*columns, ignored], "share_eligible": 0.5, "share_reference": 0.5}
    return {"checks": [rows], "drift": drift}


def column(effect, role):
    return {"role": role, "effect": effect, "psi": effect**2, "missing": 0.01, "missing_ref": 0.01}


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
    alone, together, eligible = stats(12), stats(12), stats(12)
    for quiet, prediction, share in ((alone, 0.0, 0.5), (together, 9.0, 0.5), (eligible, 0.0, 0.7)):
        for s in quiet.values():
            s["drift"]["columns"][0]["effect"] = 0.4  # a single feature is fewer than `drift_share`
            s["drift"]["columns"].append({"role": "prediction", "effect": prediction})
            s["drift"]["share_eligible"] = share
    assert calibrate(alone, campaign()).proposed["drift_effect"] < 0.3
    for moved in (together, eligible):
        assert calibrate(moved, campaign()).proposed["drift_effect"] == pytest.approx(0.4, abs=0.01)


def test_calibrate_keeps_floors():
    assert calibrate(stats(30, 0.001), campaign()).proposed["drift_effect"] == FLOORS["drift_effect"]


def test_calibrate_holds_the_red_line_where_a_new_market_still_passes_it():
    """Six weeks bound it by whatever; a tenth of the users in an unknown category must still be past it."""
    wild = stats(6)
    for s, psi in zip(wild.values(), (0.01, 0.1, 0.02, 0.3, 0.05, 0.2), strict=True):
        s["drift"]["columns"][0]["psi"] = psi
    found = calibrate(wild, campaign())
    assert found.red_line_wanted > 3
    assert (
        found.proposed["psi_red_line"] == RED_LINE_CEILING < psi_and_p(np.array([20_000, 0]), np.array([4_500, 500]))[0]
    )
    assert f"# psi_red_line: 6 weeks bound it by {found.red_line_wanted:.2g} only" in found.text()
    assert "held at 0.5; calibrate again on more weeks" in found.text()
    wild["2026-W11"]["drift"]["columns"][0]["psi"] = 0.8  # that was a quiet week too
    assert calibrate(wild, campaign()).proposed["psi_red_line"] == 0.8
    calm = calibrate(stats(12), campaign())
    assert calm.red_line_wanted is None
    assert "psi_red_line: " not in calm.text()


def test_calibrate_new_weeks_stay_below():
    """The bound is for the next week: over 300 calibrations on 8 weeks, a ninth is above it at its rate at most."""
    rng = np.random.default_rng(1)
    draws = rng.normal(size=(4000, 9))
    above = np.mean([row[8] > prediction_bound(row[:8], 0.05) for row in draws])
    assert above == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 / 4000))


@pytest.mark.parametrize("weeks", [6, 12, 40])
def test_persisting_factor_is_exceeded_twice_in_a_row_at_its_rate(weeks):
    draws = np.random.default_rng(2).normal(size=(40_000, weeks + 2))
    bound = draws[:, :weeks].mean(axis=1) + persisting_factor(weeks, 0.02) * draws[:, :weeks].std(axis=1, ddof=1)
    above = draws[:, weeks:].min(axis=1) > bound
    assert np.mean(above) == pytest.approx(0.02, abs=4 * np.sqrt(0.02 * 0.98 / 40_000))


def test_calibrate_on_a_strong_wobble_ends_the_false_alarms():
    """Effects of a platform whose features and predictions move by .05 sd a week: two weeks in a row, by the rule."""
    rng = np.random.default_rng(3)
    over = {name: [] for name in ("calibrated", "default")}
    for _ in range(30):
        moves = np.abs(rng.normal(0, 0.05, (12 + 52, 33)))
        quiet = stats(12)
        for s, move in zip(quiet.values(), moves, strict=False):
            s["drift"]["columns"] = [column(e, "feature") for e in move[:30]] + [
                column(e, "prediction") for e in move[30:]
            ]
        effects = np.sort(moves[12:, :30], axis=1)
        drifts_at = np.maximum(effects[:, -3], np.minimum(effects[:, -1], moves[12:, 30:].max(axis=1)))
        for name, limit in (("calibrated", calibrate(quiet, campaign()).proposed["drift_effect"]), ("default", 0.1)):
            drifts = drifts_at >= limit
            over[name].append((drifts[1:] & drifts[:-1]).sum())
    assert np.mean(over["default"]) > 0.8
    assert np.mean(over["calibrated"]) < 0.1


def test_calibrate_too_few_weeks():
    with pytest.raises(DataError, match=r"3 quiet weeks with statistics .*at least 6 needed"):
        calibrate(stats(3) | {"2026-W30": {"drift": None}}, campaign())


def verdict(week, action):
    found = {"schema": 1, "week": week, "monday": date.fromisoformat(f"{week}-1").isoformat(), "data": {"n": 0}}
    return dict.fromkeys(KEYS) | found | {"action": action, "reasons": [], "drift_weeks": 0}


def test_read_stats(tmp_path):
    for name, action in (("2026-W06", "retrain"), ("2026-W07", "none"), ("2026-W08", "warn")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "stats.json").write_text(json.dumps({"drift": None}))
        (tmp_path / name / "decision.json").write_text(json.dumps(verdict(name, action)))
    assert list(read_stats(tmp_path)) == ["2026-W07", "2026-W08"]
    assert list(read_stats(tmp_path, ["2026-W08"])) == ["2026-W08"]
    # weeks after an alarm, which is answered or waits, are not quiet
    for reasons, weeks, quiet in (
        (["prediction_drift:score"], 1, True),
        (["feature_drift:plan"], 2, False),
        (["red_line:country"], 1, False),
        (["feature_drift:plan", "cooldown"], 1, False),
    ):
        told = verdict("2026-W08", "warn") | {"reasons": reasons, "drift_weeks": weeks}
        (tmp_path / "2026-W08" / "decision.json").write_text(json.dumps(told))
        assert ("2026-W08" in read_stats(tmp_path)) == quiet
    with pytest.raises(DataError, match=r"no stats\.json of 2026-W09; weeks there are: 2026-W06, 2026-W07, 2026-W08"):
        read_stats(tmp_path, ["2026-W09"])
