import numpy as np
import pandas as pd
import pytest
from known_truth import World

from campaign import DataError
from models.log_checks import check_log, require_valid

DAY = pd.Timestamp("2026-01-01", tz="UTC")


def full_log(**arguments) -> pd.DataFrame:
    frame, _ = World(**{"n": 10_000, "rate": 0.2, "varying": True, **arguments}).draw()
    return frame.assign(
        decision_id=np.arange(len(frame)), decided_at=DAY, feature_timestamp=DAY - pd.Timedelta(hours=3)
    )


def status(checks: pd.DataFrame) -> dict[str, str]:
    return dict(zip(checks["check"], checks["status"], strict=True))


@pytest.mark.parametrize("arguments", [{}, {"decisions": 5}, {"n_arms": 3, "varying": False}])
def test_check_log_passes_a_log_drawn_as_it_says(arguments):
    log = full_log(**arguments)
    if "n_arms" in arguments:
        log["propensities"] = [[0.1, 0.45, 0.45]] * len(log)
    checks = check_log(log, covariates=log[["x", "segment"]], segments=["segment"])
    assert set(checks["status"]) == {"ok"}
    expected = {"propensity", "unique decisions", "features before decisions", "mean weight of arm 0", "sample ratio"}
    assert expected <= set(status(checks))
    require_valid(checks)


@pytest.mark.parametrize(
    ("break_it", "check", "message"),
    [
        (lambda log: log.assign(propensity=1.0), "propensity", "10000 rows have no propensity in"),
        (lambda log: log.assign(propensity=log["propensity"] * 0.9), "mean weight of arm 1", r"1\.1.*, expected 1"),
        (lambda log: log[(log["arm"] == 0) | (log["user_id"] % 2 == 0)], "sample ratio", "message arms is off"),
        (lambda log: log[(log["arm"] == 0) | (log["x"] > 0.3)], "covariate balance of arm 1", r"largest .* \(x\)"),
        (lambda log: log.assign(decision_id=0), "unique decisions", "9999 of 10000 rows repeat a decision_id"),
        (
            lambda log: log.assign(feature_timestamp=log["decided_at"] + pd.Timedelta(seconds=1)),
            "features before decisions",
            "10000 of 10000 decisions used a feature from after",
        ),
    ],
)
def test_check_log_finds_what_is_broken(break_it, check, message):
    log = break_it(full_log())
    checks = check_log(log, covariates=log[["x"]])
    assert status(checks)[check] == "fail"
    with pytest.raises(DataError, match=f"{check}.*{message}"):
        require_valid(checks)


def test_check_log_finds_a_broken_segment():
    log = full_log()
    drop = (log["segment"] == "a") & (log["arm"] == 0) & (log["user_id"] % 2 == 0)
    found = status(check_log(log[~drop], segments=["segment"]))
    assert found["sample ratio segment=a"] == "fail"
    assert found["sample ratio segment=b"] == "ok"


def test_check_log_reports_young_decisions():
    now = (DAY + pd.Timedelta(days=20)).to_pydatetime()
    assert status(check_log(full_log(), as_of=now, matured_after_days=30))["matured"] == "fail"
    assert status(check_log(full_log(), as_of=now, matured_after_days=16))["matured"] == "ok"


def test_check_log_does_not_pass_decisions_without_a_time():
    log = full_log()
    log.loc[log.index[:3], "decided_at"] = pd.NaT
    now = (DAY + pd.Timedelta(days=60)).to_pydatetime()
    checks = check_log(log, as_of=now, matured_after_days=16).set_index("check")
    for check in ("features before decisions", "matured"):
        assert (checks.loc[check, "status"], checks.loc[check, "observed"]) == ("fail", 3)


def test_check_log_warns_of_tiny_propensities():
    log = full_log(holdout=0.009, varying=False)
    assert status(check_log(log))["propensity"] == "warn"


def test_check_log_alarms_at_its_nominal_rate():
    """A persistent holdout: one draw per user and five decisions. Errors by row would alarm far too often."""
    alarms = {"user_id": 0, None: 0}
    for r in range(150):
        log, _ = World(1_500, 0.2, decisions=5, seed=5).draw(r)
        for cluster in alarms:
            checks = check_log(log, cluster=cluster)
            alarms[cluster] += (checks["p_value"] < 0.003).any()
    assert alarms["user_id"] <= 5
    assert alarms[None] >= 15


@pytest.mark.parametrize(("more", "verdict"), [(70, "ok"), (80, "fail")])
def test_check_log_share_fails_beyond_four_standard_errors(more, verdict):
    """400 users at 1/2: a standard error is 10 users, so 35 and 40 too many are 3.5 and 4 of them."""
    arm = np.repeat([1, 0], [200 + more // 2, 200 - more // 2])
    log = pd.DataFrame({"user_id": np.arange(400), "arm": arm, "propensity": 0.5})
    assert status(check_log(log))["share of arm 1"] == verdict


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"propensity": "a"}, {}, "propensity has dtype object, for example 'a'; expected numbers"),
        ({"propensity": 1j}, {}, "propensity has dtype complex128"),
        ({"decision_id": [[1]] * 10_000}, {}, r"decision_id holds \[1\]; expected single values"),
        ({"decided_at": "yesterday"}, {}, "decided_at has dtype object, for example 'yesterday'; expected times"),
        ({"propensities": [[1.0]] * 10_000}, {}, r"propensities holds '\[1.0\]'; expected a list of 2 probabilities"),
        ({"propensities": [[1.0], [0.5, 0.5]] * 5_000}, {}, "propensities is .*; expected a list of probabilities"),
        ({}, {"segments": "segment"}, "segments == 'segment', must be a list of names"),
        ({}, {"covariates": np.zeros((10_000, 1))}, "features is a ndarray; expected a DataFrame"),
        ({}, {"covariates": pd.DataFrame({"a": [1.0]})}, "features has 1 rows, the log has 10000"),
        ({}, {"as_of": "x", "matured_after_days": 3}, "as_of has dtype object, for example 'x'; expected times"),
        ({}, {"as_of": DAY, "matured_after_days": "3"}, "matured_after_days == '3', must be a number >= 0"),
    ],
)
def test_check_log_says_what_is_wrong(columns, options, message):
    with pytest.raises(DataError, match=message):
        check_log(full_log().assign(**columns), **options)


def test_check_log_takes_what_is_odd_but_clear():
    """Times without a zone, mixed segment values, features that never vary, an arm that was never drawn."""
    log = full_log()
    mixed = np.where(log["segment"] == "a", 1, log["segment"].to_numpy(dtype=object))
    odd = log.assign(segment=mixed, decided_at=DAY.tz_localize(None))
    message = np.where(log["arm"] == 1, log["propensity"], 1 - log["propensity"])
    odd["propensities"] = [[1 - p, p, 0.0] for p in message]
    checks = check_log(odd, segments=["segment"], covariates=pd.DataFrame({"a": np.zeros(len(log))}, index=log.index))
    assert {"sample ratio segment=1", "sample ratio segment=b", "covariate balance of arm 1"} <= set(checks["check"])
    assert set(checks["status"]) == {"ok"}
