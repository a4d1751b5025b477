"""Read-outs from plain tables: the decision rule, its table, what it refuses, and what must not matter."""

import json

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from campaign import DataError
from monitoring.experiment.decide import current_look
from monitoring.experiment.plan import ExperimentPlan, Metric
from monitoring.experiment.read import read_experiment

SUBSCRIPTION = Metric(name="subscription", kind="binary", role="success")
LISTENING = Metric(name="listening", kind="continuous", role="success", covariate="listening_before")
RETENTION = Metric(name="retention", kind="binary", role="guardrail", margin=0.03, segment_margin=0.08)
PLAN = ExperimentPlan(segments=("plan",), metric=(SUBSCRIPTION, RETENTION))


def users(n=6000, lift=0.0, harm=0.0, harmed="free", share=0.5, seed=1):
    """A made experiment: subscription moves by `lift`, retention by `harm` in one segment."""
    rng = np.random.default_rng(seed)
    treated = rng.random(n) < share
    plan = rng.choice(["free", "trial", "premium"], n, p=[0.5, 0.2, 0.3])
    before = rng.gamma(2.0, 2.0, n)
    return pd.DataFrame(
        {
            "user_id": [f"u{i}" for i in range(n)],
            "variant": np.where(treated, "treatment", "control"),
            "plan": plan,
            "subscription": (rng.random(n) < 0.10 + lift * treated).astype(float),
            "retention": (rng.random(n) < 0.80 + harm * (treated & (plan == harmed))).astype(float),
            "listening": 0.8 * before + rng.gamma(2.0, 1.0, n),
            "listening_before": before,
        }
    )


def test_good_candidate_ships():
    readout = read_experiment(users(lift=0.04), PLAN)
    assert (readout.decision, readout.variant) == ("ship", "treatment")
    assert "subscription" in readout.reasons[0]
    assert "improved" in readout.reasons[0]


def test_no_effect_holds_and_says_what_is_missing():
    readout = read_experiment(users(), PLAN)
    assert readout.decision == "hold"
    assert "no success metric is shown to improve" in readout.reasons[0]


def test_harm_in_one_segment_rolls_back_although_everybody_looks_better():
    readout = read_experiment(users(n=12_000, lift=0.04, harm=-0.25, harmed="trial"), PLAN)
    assert readout.decision == "rollback"
    assert any("deterioration alarm: retention in plan=trial" in reason for reason in readout.reasons)


def test_a_loss_shown_to_lie_within_the_margin_ships_and_is_told():
    readout = read_experiment(users(n=60_000, lift=0.04, harm=-0.03, harmed="free"), PLAN)
    assert readout.decision == "ship"
    assert any("worse, within its margin" in reason for reason in readout.reasons)


def test_sample_ratio_mismatch_never_ships():
    readout = read_experiment(users(lift=0.04, share=0.54), PLAN)
    assert readout.decision == "hold"
    assert "sample ratio mismatch (SRM)" in readout.reasons[0]


@pytest.mark.parametrize("column", ["plan", "day"])
def test_sample_ratio_is_checked_by_segment_and_day(column):
    frame = users(lift=0.04, n=20_000).assign(day="2026-01-01")
    # a broken day or segment, made up for elsewhere so that the overall ratio is right
    frame.loc[:3000, column] = "broken"
    drop = frame.index[(frame[column] == "broken") & (frame["variant"] == "control")][:300]
    other = frame.index[(frame[column] != "broken") & (frame["variant"] == "treatment")][:300]
    readout = read_experiment(frame.drop(index=[*drop, *other]), PLAN)
    assert readout.checks.query("scope == ''")["passed"].all()
    assert readout.decision == "hold"
    assert f"{column}=broken" in readout.reasons[0]


def test_direction_lower_is_better_mirrors_higher():
    frame = users(lift=0.04, harm=-0.02)
    mirrored = frame.assign(subscription=1 - frame["subscription"], retention=1 - frame["retention"])
    lower = tuple(m.model_copy(update={"direction": "lower"}) for m in PLAN.metric)
    ours, theirs = read_experiment(frame, PLAN), read_experiment(mirrored, PLAN.model_copy(update={"metric": lower}))
    assert ours.decision == theirs.decision
    assert ours.table["effect_size"].to_numpy() == pytest.approx(-theirs.table["effect_size"].to_numpy(), abs=1e-12)
    assert ours.table["ci_lower"].to_numpy() == pytest.approx(-theirs.table["ci_upper"].to_numpy(), abs=1e-12)
    assert ours.table["pvalue"].to_numpy() == pytest.approx(theirs.table["pvalue"].to_numpy(), abs=1e-9)


def test_table_equals_statsmodels_in_every_segment():
    plan = PLAN.model_copy(
        update={"metric": (SUBSCRIPTION, LISTENING.model_copy(update={"covariate": None}), RETENTION)}
    )
    frame = users(lift=0.01)
    for _, row in read_experiment(frame, plan).table.iterrows():
        part = frame if row["segment"] == "" else frame[frame["plan"] == row["segment"].removeprefix("plan=")]
        y1, y0 = (part.loc[part["variant"] == v, row["metric"]] for v in ("treatment", "control"))
        alpha = 1 - row["ci_level"]
        if row["kind"] == "binary":
            expected = confint_proportions_2indep(
                y1.sum(), len(y1), y0.sum(), len(y0), method="newcomb", compare="diff", alpha=alpha
            )
        else:
            expected = CompareMeans(DescrStatsW(y1), DescrStatsW(y0)).tconfint_diff(alpha, usevar="unequal")
        assert (row["ci_lower"], row["ci_upper"]) == pytest.approx(expected, abs=1e-8)
        assert row["ci_level"] == pytest.approx(0.9 if row["role"] == "guardrail" else 0.95)


def test_covariate_narrows_the_interval_and_is_reported():
    with_covariate = PLAN.model_copy(update={"metric": (LISTENING,), "segments": ()})
    without = PLAN.model_copy(update={"metric": (LISTENING.model_copy(update={"covariate": None}),), "segments": ()})
    frame = users()
    narrow, wide = (read_experiment(frame, plan).table.iloc[0] for plan in (with_covariate, without))
    correlation = np.corrcoef(frame["listening"], frame["listening_before"])[0, 1]
    assert narrow["variance_ratio"] == pytest.approx(1 - correlation**2, abs=1e-3)
    ratio = (narrow["ci_upper"] - narrow["ci_lower"]) / (wide["ci_upper"] - wide["ci_lower"])
    assert ratio == pytest.approx(np.sqrt(1 - correlation**2), rel=0.03)
    assert narrow["method"] == "cuped"


def test_missing_covariate_is_filled_with_the_mean_and_noted():
    plan = PLAN.model_copy(update={"metric": (LISTENING,)})
    frame = users()
    frame.loc[:499, "listening_before"] = np.nan
    readout = read_experiment(frame, plan)
    assert any("listening_before: 500 of 6000 users had none" in note for note in readout.notes)
    filled = frame.fillna({"listening_before": frame["listening_before"].mean()})
    assert read_experiment(filled, plan).table["effect_size"].tolist() == readout.table["effect_size"].tolist()


def test_rare_events_do_not_use_a_normal_interval_and_are_insufficient():
    frame = users(n=400).assign(subscription=0.0, subscription_before=0.0)
    frame.loc[:3, "subscription"] = 1.0
    metric = SUBSCRIPTION.model_copy(update={"covariate": "subscription_before"})
    readout = read_experiment(frame, PLAN.model_copy(update={"metric": (metric,), "segments": ()}))
    row = readout.table.iloc[0]
    assert (row["method"], row["status"], readout.decision) == ("newcombe", "insufficient", "hold")
    assert "insufficient data" in readout.reasons[0]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_binary_outcome_has_an_interval(value):
    row = read_experiment(users().assign(retention=value), PLAN).table.query("metric == 'retention'").iloc[0]
    assert row["effect_size"] == 0
    assert row["ci_lower"] < 0 < row["ci_upper"]
    assert row["status"] == "non_inferior"


def test_a_constant_covariate_changes_nothing_and_is_noted():
    frame = users().assign(listening_before=1.0)
    plan = PLAN.model_copy(update={"metric": (LISTENING,)})
    without = plan.model_copy(update={"metric": (LISTENING.model_copy(update={"covariate": None}),)})
    readout = read_experiment(frame, plan)
    assert readout.table["effect_size"].tolist() == read_experiment(frame, without).table["effect_size"].tolist()
    assert readout.notes == ["listening_before: the same for everybody, so it narrows nothing"]


def test_constant_continuous_outcome_is_insufficient_without_interval():
    plan = PLAN.model_copy(update={"metric": (LISTENING,)})
    row = read_experiment(users().assign(listening=3.5), plan).table.iloc[0]
    assert row["status"] == "insufficient"
    assert np.isnan(row["ci_lower"])


def test_a_segment_without_users_in_one_variant_holds_and_names_it():
    frame = users(lift=0.04)
    frame = frame[(frame["plan"] != "trial") | (frame["variant"] == "control")]
    frame = pd.concat([frame[frame["plan"] != "trial"], frame[frame["plan"] == "trial"].iloc[:5]])
    readout = read_experiment(frame, PLAN)
    assert readout.decision == "hold"
    assert any("insufficient data in segment plan=trial: 5 users in control, 0" in reason for reason in readout.reasons)


def test_an_unused_category_is_a_segment_with_no_users():
    frame = users(lift=0.04)
    frame["plan"] = pd.Categorical(frame["plan"], categories=["free", "trial", "premium", "student"])
    readout = read_experiment(frame, PLAN)
    assert any("plan=student: 0 users in control" in reason for reason in readout.reasons)


def test_users_without_a_segment_are_a_segment():
    frame = users()
    frame.loc[:200, "plan"] = None
    assert "plan=(missing)" in set(read_experiment(frame, PLAN).table["segment"])


@pytest.mark.parametrize("kind", ["bool", "Int64", "object", "category", "numbers as objects", "instants"])
def test_column_types_do_not_matter(kind):
    frame = users(lift=0.02)
    expected = read_experiment(frame, PLAN).table["effect_size"].tolist()
    if kind in ("bool", "Int64"):
        frame = frame.astype({"subscription": kind, "retention": kind})
    elif kind == "numbers as objects":
        frame = frame.astype({"subscription": bool, "retention": int}).astype(
            {"subscription": object, "retention": object}
        )
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


def test_a_covariate_measured_after_the_start_never_ships():
    frame = users(lift=0.04)
    frame["listening_before"] += 0.4 * (frame["variant"] == "treatment")
    readout = read_experiment(frame, PLAN.model_copy(update={"metric": (SUBSCRIPTION, LISTENING)}))
    assert readout.decision != "ship"
    assert any("variants differ before the experiment in listening" in reason for reason in readout.reasons)


def test_row_order_and_index_do_not_matter():
    frame = users(lift=0.02).assign(day="x")
    shuffled = frame.sample(frac=1, random_state=1)
    ours, theirs = read_experiment(frame, PLAN), read_experiment(shuffled, PLAN)
    pd.testing.assert_frame_equal(ours.table, theirs.table, rtol=1e-9)
    assert ours.reasons == theirs.reasons


def test_swapping_variants_flips_effects():
    frame = users(lift=0.02)
    swapped = read_experiment(frame, PLAN.model_copy(update={"control": "treatment", "treatment": "control"}))
    ours = read_experiment(frame, PLAN)
    assert swapped.table["effect_size"].tolist() == pytest.approx((-ours.table["effect_size"]).tolist(), abs=1e-12)


def test_scaling_a_continuous_metric_scales_its_row():
    plan = PLAN.model_copy(update={"metric": (LISTENING,), "segments": ()})
    frame = users()
    one, hundred = (
        read_experiment(frame.assign(listening=frame["listening"] * k), plan).table.iloc[0] for k in (1, 100)
    )
    assert hundred["ci_upper"] == pytest.approx(100 * one["ci_upper"], rel=1e-9)
    assert hundred["pvalue"] == pytest.approx(one["pvalue"], rel=1e-9)


def test_looks_widen_early_intervals_and_the_table_size_says_which_look():
    plan = PLAN.model_copy(update={"looks": 5, "planned_users": 6000, "segments": ()})
    frame = users(lift=0.04)
    first, last = read_experiment(frame.iloc[:1200], plan), read_experiment(frame, plan)
    assert (first.look.number, last.look.number) == (1, 5)
    assert first.look.critical(0.025) == pytest.approx(4.8769, abs=1e-3)
    assert last.look.critical(0.025) == pytest.approx(2.0310, abs=1e-3)
    assert last.decision == "ship"


def test_looks_without_planned_users_share_alpha_equally():
    look = current_look(PLAN.model_copy(update={"looks": 5}), 1000)
    assert look.critical(0.025) == pytest.approx(2.5758, abs=1e-4)


def test_earlier_readings_are_paid_for():
    plan = PLAN.model_copy(update={"looks": 2, "planned_users": 1000})
    planned, often = current_look(plan, 1000), current_look(plan, 1000, previous=[0.2, 0.4, 0.5, 0.6, 0.8, 0.9])
    assert often.critical(0.025) > planned.critical(0.025) > current_look(plan, 1000, previous=[]).critical(0.025)
    # reading the same data again is not another look
    assert current_look(plan, 500, previous=[0.5]) == current_look(plan, 500, previous=[])


def test_several_candidates_share_the_error_and_the_best_ships():
    rng = np.random.default_rng(4)
    arm = rng.integers(0, 3, 15_000)
    frame = users(n=15_000).assign(variant=np.array(["none", "low", "high"])[arm])
    frame["subscription"] = (rng.random(15_000) < np.array([0.10, 0.13, 0.16])[arm]).astype(float)
    plan = PLAN.model_copy(update={"control": "none", "treatment": ("low", "high")})
    readout = read_experiment(frame, plan)
    assert (readout.decision, readout.variant) == ("ship", "high")
    assert readout.table.query("role == 'guardrail'")["ci_level"].iloc[0] == pytest.approx(0.95)


def test_a_candidate_that_harms_is_stopped_while_the_other_ships():
    rng = np.random.default_rng(4)
    arm = rng.integers(0, 3, 15_000)
    frame = users(n=15_000).assign(variant=np.array(["none", "low", "high"])[arm])
    frame["subscription"] = (rng.random(15_000) < np.array([0.10, 0.14, 0.20])[arm]).astype(float)
    frame["retention"] = (rng.random(15_000) < np.array([0.80, 0.80, 0.60])[arm]).astype(float)
    readout = read_experiment(frame, PLAN.model_copy(update={"control": "none", "treatment": ("low", "high")}))
    assert (readout.decision, readout.variant) == ("ship", "low")
    assert "stop high" in readout.reasons


def test_triggered_analysis_agrees_and_is_narrower():
    frame = users(n=20_000).assign(differs=np.arange(20_000) % 5 == 0)
    rng = np.random.default_rng(2)
    lifted = frame["differs"] & (frame["variant"] == "treatment")
    frame["subscription"] = (rng.random(20_000) < 0.1 + 0.1 * lifted).astype(float)
    plain = read_experiment(frame, PLAN).table.iloc[0]
    triggered = read_experiment(frame, PLAN.model_copy(update={"trigger": "differs"}))
    row = triggered.table.iloc[0]
    width, plain_width = row["ci_upper"] - row["ci_lower"], plain["ci_upper"] - plain["ci_lower"]
    assert row["effect_size"] == pytest.approx(plain["effect_size"], abs=plain_width)
    assert width < 0.6 * plain_width
    everybody = frame.loc[frame["variant"] == "control", "subscription"].mean()
    assert row["rel_effect_size"] == pytest.approx(row["effect_size"] / everybody)
    assert any("20.0% of users" in note and "5 times smaller" in note for note in triggered.notes)


def test_a_trigger_that_depends_on_the_variant_never_ships():
    frame = users(lift=0.04)
    frame["differs"] = (frame["variant"] == "treatment") | (np.arange(len(frame)) % 3 == 0)
    readout = read_experiment(frame, PLAN.model_copy(update={"trigger": "differs"}))
    assert readout.decision == "hold"
    assert "the trigger depends on the variant" in readout.reasons[0]


def test_crossed_delivery_and_unequal_reach_never_ship():
    frame = users(lift=0.04)
    plan = PLAN.model_copy(update={"exposure": "received"})
    crossed = frame["variant"].where(np.arange(len(frame)) % 20 > 0, "control")
    readout = read_experiment(frame.assign(received=crossed), plan)
    assert readout.decision == "hold"
    assert "delivery check failed" in readout.reasons[0]
    reached = frame["variant"].where((frame["variant"] == "control") | (np.arange(len(frame)) % 4 > 0), None)
    assert "exposure differs" in read_experiment(frame.assign(received=reached), plan).reasons[0]
    assert read_experiment(frame.assign(received=frame["variant"]), plan).decision == "ship"


def test_the_package_offers_it():
    import monitoring

    assert monitoring.read_experiment is read_experiment
    assert monitoring.ExperimentPlan is ExperimentPlan
    assert isinstance(read_experiment(users(n=300), PLAN), monitoring.Readout)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = monitoring.nothing


def test_readout_is_json():
    frame = users(n=300)
    text = json.dumps(read_experiment(frame, PLAN).to_dict(), allow_nan=False)
    assert json.loads(text)["decision"] == "hold"


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
    (lambda f: f.assign(differs=2), "the trigger must be true or false for every user"),
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


@pytest.mark.parametrize(("direction", "end"), [("higher", 0), ("lower", 1)])
@pytest.mark.parametrize("kind", ["binary", "continuous"])
def test_a_guardrail_passes_exactly_where_its_bad_bound_clears_the_margin(direction, end, kind):
    frame = users(n=4000, seed=5)
    treated = frame["variant"] == "treatment"
    if kind == "binary":
        frame["kept"] = frame["retention"]
        counts = [f(frame["kept"][rows]) for rows in (treated, ~treated) for f in (np.sum, len)]
        bounds = confint_proportions_2indep(*counts, method="newcomb", alpha=0.1)
    else:
        frame["kept"] = frame["listening"]
        groups = (DescrStatsW(frame["kept"][rows]) for rows in (treated, ~treated))
        bounds = CompareMeans(*groups).tconfint_diff(alpha=0.1, usevar="unequal")
    loss = -bounds[0] if end == 0 else bounds[1]  # the largest loss that the one-sided 95% bound leaves open
    assert loss > 0
    for margin, status in ((1.001 * loss, "non_inferior"), (0.999 * loss, "not_shown")):
        guardrail = Metric(name="kept", kind=kind, role="guardrail", direction=direction, margin=margin)
        row = read_experiment(frame, ExperimentPlan(metric=(SUBSCRIPTION, guardrail))).table.iloc[1]
        assert row["status"] == status


def test_reading_on_past_the_planned_users_is_said():
    plan = PLAN.model_copy(update={"planned_users": 3000, "looks": 3})
    readout = read_experiment(users(lift=0.04), plan)
    assert readout.decision == "ship"
    assert any("6000 users, planned were 3000" in note for note in readout.notes)
    exact = read_experiment(users(lift=0.04), plan.model_copy(update={"planned_users": 6000}))
    assert not any("planned were" in note for note in exact.notes)


def test_success_metrics_are_judged_by_holm():
    rng = np.random.default_rng(8)
    n = 4000
    treated = np.arange(n) % 2 == 1
    plan = ExperimentPlan(metric=tuple(Metric(name=m, kind="continuous", role="success") for m in "abc"))
    noise = rng.standard_normal((3, n))
    for rows in (treated, ~treated):
        noise[:, rows] -= noise[:, rows].mean(axis=1, keepdims=True)
    for shifts in ((0.120, 0.072, 0.065), (0.120, 0.065, 0.040), (0.070, 0.070, 0.070)):
        frame = pd.DataFrame({"user_id": np.arange(n), "variant": np.where(treated, "treatment", "control")})
        for name, row, shift in zip("abc", noise, shifts, strict=True):
            frame[name] = row + shift * treated
        table = read_experiment(frame, plan).table
        expected = multipletests(table["pvalue"], 0.05, "holm")[0]
        assert (table["status"] == "improved").tolist() == expected.tolist()


@pytest.mark.parametrize(("treated", "passed"), [(5164, True), (5166, False)])  # chi-square 10.76 and 11.02; 10.83
def test_the_sample_ratio_is_judged_at_one_in_a_thousand(treated, passed):
    frame = pd.DataFrame({"user_id": np.arange(10_000), "subscription": np.arange(10_000) % 2})
    frame["variant"] = np.where(np.arange(10_000) < treated, "treatment", "control")
    check = read_experiment(frame, ExperimentPlan(metric=(SUBSCRIPTION,))).checks.iloc[0]
    assert (check["check"], check["passed"]) == ("sample_ratio", passed)
