"""The plain table: types that do not matter, segments, and what is refused."""

from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from experiment_tables import LISTENING, PLAN, RETENTION, SUBSCRIPTION, users

from campaign import DataError
from monitoring.experiment.plan import ExperimentPlan, Metric
from monitoring.experiment.read import read_experiment


def test_a_segment_without_users_in_one_variant_holds_and_names_it():
    frame = users(lift=0.04)
    frame = frame[(frame["plan"] != "trial") | (frame["variant"] == "control")]
    frame = pd.concat([frame[frame["plan"] != "trial"], frame[frame["plan"] == "trial"].iloc[:5]])
    readout = read_experiment(frame, PLAN)
    assert readout.decision == "hold"
    assert any("insufficient data in segment plan=trial: 5 users in control, 0" in reason for reason in readout.reasons)


def test_a_guardrail_that_never_varies_says_so_and_not_to_wait():
    minutes = Metric(name="minutes", kind="continuous", role="guardrail", margin=1.0)
    frame = users().assign(minutes=lambda f: np.where(f["plan"] == "free", 0.0, f["listening"]))
    (reason,) = [
        r
        for r in read_experiment(frame, PLAN.model_copy(update={"metric": (SUBSCRIPTION, minutes)})).reasons
        if r.startswith("guardrail")
    ]
    assert reason.startswith("guardrail minutes: the same for every user in segment plan=free")


def test_an_unused_category_is_a_segment_with_no_users():
    frame = users(lift=0.04)
    frame["plan"] = pd.Categorical(frame["plan"], categories=["free", "trial", "premium", "student"])
    readout = read_experiment(frame, PLAN)
    assert any("plan=student: 0 users in control" in reason for reason in readout.reasons)


def test_users_without_a_segment_are_a_segment():
    frame = users()
    frame.loc[:200, "plan"] = None
    assert "plan=(missing)" in set(read_experiment(frame, PLAN).table["segment"])


@pytest.mark.parametrize("kind", ["bool", "Int64", "object", "category", "numbers as objects", "decimals", "instants"])
def test_column_types_do_not_matter(kind):
    frame = users(lift=0.02)
    expected = read_experiment(frame, PLAN).table["effect_size"].tolist()
    if kind in ("bool", "Int64"):
        frame = frame.astype({"subscription": kind, "retention": kind})
    elif kind == "numbers as objects":
        frame = frame.astype({"subscription": bool, "retention": int}).astype(
            {"subscription": object, "retention": object}
        )
    elif kind == "decimals":
        frame["retention"] = frame["retention"].map(lambda value: Decimal(int(value)))
    elif kind == "instants":
        frame["day"] = pd.Timestamp("2026-03-02", tz="UTC") + pd.to_timedelta(np.arange(len(frame)) * 60, unit="s")
        checks = read_experiment(frame, PLAN).checks
        assert set(checks["scope"].str.partition("=")[0]) == {"", "day", "plan"}
        assert checks.query("scope.str.startswith('day')")["threshold"].iloc[0] == pytest.approx(0.001 / 5)  # days
    else:
        frame = frame.astype({"variant": kind, "plan": kind})
    assert read_experiment(frame, PLAN).table["effect_size"].tolist() == pytest.approx(expected, abs=1e-12)


def test_integer_variants():
    plan = PLAN.model_copy(update={"control": 0, "treatment": 1})
    frame = users(lift=0.04)
    frame["variant"] = (frame["variant"] == "treatment").astype(float)
    assert read_experiment(frame, plan).decision == "ship"
    named = ExperimentPlan.model_validate({**PLAN.model_dump(), "control": False, "treatment": True})
    assert read_experiment(frame.astype({"variant": bool}), named).decision == "ship"


def duplicated(frame):
    return pd.concat([frame, frame.iloc[:2]])


def crossed(frame):
    return pd.concat([frame, frame.iloc[:2].assign(variant=["treatment", "control"])]).drop_duplicates(
        ["user_id", "variant"]
    )


BAD = [
    (lambda f: f.drop(columns="variant"), "column 'variant': the plan names it and the table has no such column"),
    (lambda f: f.rename(columns={"retention": "retentoin"}), "'retention'.*did you mean 'retentoin'"),
    (lambda f: pd.concat([f, f[["plan"]]], axis=1), "column 'plan': the table has it 2 times; keep one"),
    (lambda f: f.iloc[:0], "no rows: no outcome has matured yet"),
    (lambda f: f.assign(retention=np.nan), "'retention': all 50 values are null: no outcome has matured yet"),
    (lambda f: f.assign(retention=f["retention"].mask(f.index == 7)), "1 of 50 values are null .first: user_id 'u7'"),
    (lambda f: f.assign(retention=0.5), "50 of 50 values are neither 0 nor 1 .first: 0.5."),
    (lambda f: f.assign(retention=np.inf), "50 infinite values"),
    (lambda f: f.assign(retention="yes"), "'retention': expected numbers, found text .first: 'yes'.; write true as 1"),
    (
        lambda f: f.assign(retention="true"),
        "'retention': expected numbers, found text .first: 'true'.; write true as 1",
    ),
    (lambda f: f.assign(retention="0"), "'retention': expected numbers, found text .first: '0'."),
    (lambda f: f.assign(listening=1j), "'listening': expected numbers, found complex"),
    (lambda f: f.assign(listening=pd.Timestamp("2026-01-01")), "'listening': expected numbers, found Timestamp"),
    (lambda f: f.assign(listening=1e200), "'listening': values up to 1e.200, beyond 1e.100"),
    (lambda f: f.assign(listening_before="many"), "'listening_before': expected numbers, found text"),
    (lambda f: f.drop(columns="listening_before"), "'listening_before': the plan names it.*mean 'listening'"),
    (lambda f: f.assign(listening_before=np.inf), "'listening_before': 50 infinite values"),
    (
        lambda f: f.assign(plan=np.arange(50.0)),
        "segment column 'plan': 50 values among 50 users, so an id or a quantity",
    ),
    (lambda f: f.assign(variant=f["variant"] + " "), "50 of 50 rows .*not in the plan .first: '.* '.; expected"),
    (lambda f: f[[]], "'user_id': the plan names it .*the table has no columns"),
    (lambda f: f.to_dict(), "got dict and ExperimentPlan; expected a pandas DataFrame and an ExperimentPlan"),
    (lambda f: f.assign(variant=f["variant"].mask(f.index == 3, "b")), "1 of 50 rows .*not in the plan .first: 'b'"),
    (
        lambda f: f.assign(variant=f["variant"].mask(f.index == 3)),
        "1 of 50 rows have a variant that is not in the plan",
    ),
    (lambda f: f[f["variant"] == "control"], r"no user has variant \['treatment'\]"),
    (duplicated, "2 duplicate rows .first: 'u0'.; expected one row per user"),
    (crossed, "2 users are in more than one variant .first: 'u0'"),
    (lambda f: f.assign(user_id=f["user_id"].mask(f.index == 3)), "'user_id': 1 rows are null"),
    (lambda f: f.assign(plan=None), "segment column 'plan': no user has a value"),
    (lambda f: f.assign(listening_before=np.nan), "'listening_before': all values are null"),
    (lambda f: f.assign(received="other"), "50 rows received 'other', no variant of the plan"),
    (lambda f: f.assign(differs=False), "'differs': no user is triggered"),
    (lambda f: f.assign(differs=2), "'differs': 50 of 50 values are something else; the trigger must be true or false"),
    (lambda f: f.assign(differs=[None, *[True] * 49]), "'differs': 1 of 50 values are null; the trigger must be true"),
    (lambda f: f.assign(retention=[None, *[True] * 49]), "'retention': 1 of 50 values are null .first: user_id 'u0'"),
]


@pytest.mark.parametrize(("broken", "message"), BAD)
def test_bad_table_is_refused_with_what_to_do(broken, message):
    metrics = (SUBSCRIPTION, LISTENING, RETENTION)
    plan = PLAN.model_copy(update={"metric": metrics, "exposure": "received", "trigger": "differs"})
    frame = users(n=50)
    frame = frame.assign(received=frame["variant"], differs=True)
    # row 0 and 1 in different variants, so that `crossed` crosses both
    frame.loc[0, ["variant", "received"]] = "control"
    frame.loc[1, ["variant", "received"]] = "treatment"
    with pytest.raises(DataError, match=message):
        read_experiment(broken(frame), plan)
