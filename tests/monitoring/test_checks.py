import json
import re
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest
from monitored import FEATURES, Truth, campaign, make_frame, make_profile
from scipy.stats import chisquare, kstest, norm

from monitoring.checks import _cells, _turned, check_schema, check_week
from monitoring.profile import _edges, build_profile, count_column
from monitoring.week_sums import sum_week

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:pandera.*")


def failed(profile, frame, **changes):
    """Name and detail of every failed check, as the weekly step runs them."""
    sums = sum_week(frame, FEATURES, profile, campaign())
    checks = check_schema(sums)
    if all(c.ok for c in checks):
        options = {"expected_rows": profile["rows_per_week"]} | changes
        checks += check_week(sums, profile, campaign(), **options)
    return {c.name: c.detail for c in checks if not c.ok}


def test_check_week_quiet(profile, quiet_week):
    assert failed(profile, quiet_week) == {}


def some(frame, share, seed=0):
    return np.random.default_rng(seed).random(len(frame)) < share


def to(frame, share, column, value):
    """The frame with `value` in a share of one column's rows."""
    return frame.assign(**{column: frame[column].mask(some(frame, share), value)})


def without(frame, rows):
    return frame[~rows]


def in_holdout(frame):
    return frame["layer"] == "holdout"


BROKEN = {
    "column gone": (lambda f: f.drop(columns="l03"), "schema", "column 'l03' is missing"),
    "number became text": (lambda f: f.assign(n02=f["n02"].astype(str)), "schema", "n02: dtype"),
    "text became number": (lambda f: f.assign(plan=1), "schema", "plan: dtype"),
    "mixed text": (lambda f: to(f, 0.01, "plan", 3), "schema", "plan: _is_text"),
    "naive time": (lambda f: f.assign(decided_at=f["decided_at"].dt.tz_localize(None)), "schema", "decided_at: dtype"),
    "unknown layer": (lambda f: f.assign(layer="holdup"), "schema", "layer: isin"),
    "unknown arm": (lambda f: f.assign(arm=7), "schema", "arm: in_range"),
    "propensity 0": (lambda f: f.assign(propensity=0.0), "schema", "propensity: in_range"),
    "prediction missing": (lambda f: f.assign(score=np.nan), "schema", "score: not_nullable"),
    "repeated decisions": (lambda f: pd.concat([f, f.head(20)]), "duplicates", "decision_id: 20 repeated values"),
    "too many rows": (lambda f: _copies(f, 3), "rows", "18000 rows; 3000 to 12000 expected"),
    "too few rows": (lambda f: f.head(2500), "rows", "2500 rows; 3000 to 12000 expected"),
    "values missing": (lambda f: to(f, 0.07, "n05", np.nan), "missing", "n05: share of rows without a value rose"),
    "text missing": (lambda f: to(f, 0.5, "plan", None), "missing", "plan: share of rows"),
    "milliseconds": (lambda f: f.assign(l03=f["l03"] * 1000), "range", "l03: .* far outside"),
    "infinite": (lambda f: to(f, 0.02, "n01", np.inf), "range", "n01: .* far outside"),
    "turned to zero": (lambda f: to(f, 0.8, "l03", 0.0), "zeros", "l03: share of zeros rose by 0."),
    "renamed": (lambda f: f.assign(device=f["device"].replace("ios", "iOS")), "renamed", "device: 0.3"),
    "stuck at the median": (
        lambda f: f.assign(l03=f["l03"].median()),
        "stuck",
        "l03: 1.000 of the rows turned to one value or its neighbours, above 1.0.* up to 1.0",
    ),
    "most rows at the median": (lambda f: to(f, 0.5, "n07", f["n07"].median()), "stuck", "n07: 0.5"),
    "minutes as hours": (lambda f: f.assign(l03=f["l03"] / 60), "stuck", "l03: 0.8"),
    "hours as minutes": (lambda f: f.assign(l03=f["l03"] * 20), "stuck", "l03: 0.4"),
    "-1 for no value": (lambda f: to(f, 0.8, "c01", -1.0), "stuck", "c01: 0.[78]"),
    "one category": (
        lambda f: to(f, 0.8, "device", "android"),
        "one_category",
        "device: 0.[78].* turned to one category, 'android'",
    ),
    "a new default": (lambda f: to(f, 0.8, "country", "unset"), "one_category", "country: 0.[78]"),
    "blank after a category": (lambda f: f.assign(plan=f["plan"] + " "), "renamed", "plan: 1.000 of the rows have a"),
    "case of one category in some rows": (
        lambda f: f.assign(device=_half(f["device"], "iOS")),
        "renamed",
        "device: 0.1",
    ),
    "nothing as text": (lambda f: to(f, 0.8, "age_band", ""), "renamed", "age_band: 0.[78]"),
    "nan as text": (lambda f: to(f, 0.8, "age_band", "nan"), "renamed", "age_band: 0.[78]"),
    "None as text": (lambda f: to(f, 0.8, "age_band", "None"), "renamed", "age_band: 0.[78]"),
    "null as text": (lambda f: to(f, 0.8, "age_band", "null"), "renamed", "age_band: 0.[78]"),
    "NA as text": (lambda f: to(f, 0.8, "age_band", "NA"), "one_category", "age_band: 0.[78]"),
    "old features": (
        lambda f: f.assign(feature_timestamp=f["decided_at"] - timedelta(days=9)),
        "feature_age",
        "1.000 of the features were older than 3 days",
    ),
    "features of the future": (
        lambda f: f.assign(feature_timestamp=f["decided_at"] + timedelta(hours=1)),
        "feature_future",
        "days old",
    ),
    "no features": (lambda f: to(f, 0.2, "reason", "feature_store_error"), "failures", "feature_store_error"),
    "holdout lost": (lambda f: without(f, in_holdout(f) & some(f, 0.3)), "sample_ratio", "all: holdout 0.07"),
    "holdout lost in a segment": (
        lambda f: without(f, in_holdout(f) & (f["plan"] == "premium") & some(f, 0.6)),
        "sample_ratio_segment",
        "plan=premium: holdout 0.0",
    ),
    "message in the holdout": (
        lambda f: f.assign(arm=f["arm"].mask(in_holdout(f), 1)),
        "holdout_arm",
        "holdout decisions with a message",
    ),
    "propensity of another arm": (lambda f: f.assign(propensity=1 - f["propensity"]), "propensity", "rows whose"),
    "arms not as logged": (
        lambda f: f.assign(propensities=[np.array([0.5, 0.5])] * len(f), propensity=0.5),
        "calibration",
        "mean propensity 0.5556",  # 0.5 / 0.9: outside the holdout
    ),
    "NaN among the propensities": (
        lambda f: f.assign(propensities=[np.array([np.nan, 0.5]), *f["propensities"].tolist()[1:]]),
        "propensity",
        "^1 rows whose propensities do not sum to 1",
    ),
    "ragged propensities": (
        lambda f: f.assign(propensities=[np.array([0.2, 0.3, 0.5]), *f["propensities"].tolist()[1:]]),
        "schema",
        "propensities: one_of_every_arm fails in 1 of 6000 rows, first value ",
    ),
    "text for propensities": (
        lambda f: f.assign(propensities=[["a", "b"], [None, 0.5], *f["propensities"].tolist()[2:]]),
        "schema",
        "propensities: one_of_every_arm fails in 2 of 6000 rows, first value ",
    ),
    "no list of propensities": (
        lambda f: f.assign(propensities=[None, None, *f["propensities"].tolist()[2:]]),
        "schema",
        "propensities: .* 2 of 6000 rows, first value None",
    ),
    "propensities without the holdout": (
        lambda f: f.assign(
            propensities=[np.array([0.05, 0.95])] * len(f), propensity=np.where(f["arm"] == 1, 0.95, 0.05)
        ),
        "propensity",
        "rows whose propensities",
    ),
}


def _half(values, name):
    """The values with half of "ios" written as `name`."""
    return values.mask((values == "ios") & (np.arange(len(values)) % 2 == 0), name)


def _copies(frame, times):
    return pd.concat([frame.assign(decision_id=frame["decision_id"] + f"-{i}") for i in range(times)])


@pytest.mark.parametrize("case", BROKEN)
def test_broken_data_is_named(profile, quiet_week, case):
    change, name, message = BROKEN[case]
    found = failed(profile, change(quiet_week.copy()))
    assert name in found
    assert pd.Series([found[name]]).str.contains(message).all(), found[name]


def test_refused_log_files_stop(profile, quiet_week):
    found = failed(profile, quiet_week, quarantined=["sessions/date=2026-02-03/a.parquet: minutes == 0"])
    assert found == {"quarantine": "sessions/date=2026-02-03/a.parquet: minutes == 0"}


def test_a_new_market_is_not_broken_data(profile):
    assert failed(profile, make_frame(np.random.default_rng(9), 6_000, Truth(new_market=0.25))) == {}


NAMIBIA = "NA"
REAL_CHANGES = {
    "a new market floods in": lambda f: to(f, 0.45, "country", "IN"),
    "one with a name like no value": lambda f: to(f, 0.4, "country", NAMIBIA),
    "a known country floods in": lambda f: to(f, 0.45, "country", "BR"),
    "everybody listens twice as long": lambda f: f.assign(**{name: f[name] * 2 for name in ("l00", "l01", "l02")}),
    "one feature moved by two sds": lambda f: f.assign(n07=f["n07"] + 2),
    "a tenth stopped": lambda f: to(f, 0.1, "l03", 0.0),
    "all requests at eight from the home page": lambda f: f.assign(hour_sin=-0.87, is_evening=0.0, surface_seen="home"),
}


@pytest.mark.parametrize("case", REAL_CHANGES)
def test_real_changes_are_not_broken_data(profile, quiet_week, case):
    rng = np.random.default_rng(5)
    columns = dict(profile["columns"])
    for name, values in {"hour_sin": rng.normal(size=9_000), "is_evening": rng.random(9_000) < 0.5}.items():
        column = {"kind": "numeric", "role": "feature"} | _edges(name, values.astype(float))
        counts = count_column(column, values.astype(float))
        columns[name] = column | {"bins": counts.bins.tolist(), "missing": 0, "zeros": counts.zeros}
    week = quiet_week.assign(hour_sin=rng.normal(size=6_000), is_evening=(rng.random(6_000) < 0.5).astype(float))
    assert failed(profile | {"columns": columns}, REAL_CHANGES[case](week)) == {}


def one_number(values, week, role="feature"):
    """Share that turned to one value of a column of `values`, seen as `week`."""
    column = {"kind": "numeric", "role": role} | _edges("minutes", np.asarray(values, dtype=float))
    cells = [_cells(column, count_column(column, np.asarray(rows, dtype=float))) for rows in (values, week)]
    return _turned(*cells)[0]


def test_stuck_tells_what_turned_from_what_was_there():
    """Much mass at one value, or at zero, is no news; nor is what a week of 100 happens to have."""
    rng = np.random.default_rng(6)
    draw = rng.exponential(size=20_000)
    idle = np.where(rng.random(20_000) < 0.7, 0.0, draw)  # most users have 0 minutes
    assert one_number(idle[:10_000], idle[10_000:]) == 0
    assert one_number(idle[:10_000], np.where(rng.random(10_000) < 0.8, -1.0, idle[10_000:])) == pytest.approx(
        0.8, abs=0.02
    )
    usual = np.where(rng.random(20_000) < 0.9, 5.0, draw)
    assert one_number(usual[:10_000], np.r_[usual[10_000:19_500], np.full(500, 5.0)]) == 0  # rose by 0.005
    half = np.where(rng.random(20_000) < 0.5, 5.0, draw)
    assert one_number(half[:10_000], np.full(5_000, 5.0)) == pytest.approx(1.0)
    assert one_number(draw[:10_000], np.full(100, 1.0)) == 0


def in_experiment(frame, *, obeyed=True):
    """Half of the users are in an experiment since long: who is in control has a low score, for its messages are fewer.

    The logged propensities are marginal over the variants, as the service logs them.
    """
    h, e = 0.10, 0.10
    control = (frame["score"] < frame["score"].median()).to_numpy()
    champion = np.ones(len(frame), dtype=np.int64)  # a champion that messages everybody
    told = [json.dumps({"variant": "b" if c else "a", "arms": {"b": 0, "a": 1}, "champion": 1}) for c in control]
    given = np.where(control & obeyed, 0, champion)
    policy = (frame["layer"] == "policy").to_numpy()
    arm = np.where(policy, given, frame["arm"])
    message = e / 2 + (1 - h - e) * 0.5
    return frame.assign(
        experiment=told,
        arm=arm,
        layer=frame["layer"].replace("policy", "experiment"),
        propensities=list(np.tile([1 - message, message], (len(frame), 1))),
        propensity=np.where(arm == 1, message, 1 - message),
        eligible_by_policy=frame["score"] > 0,
    )


def test_an_experiment_whose_variants_show_in_the_features_is_not_broken_data(profile, quiet_week):
    assert failed(profile, in_experiment(quiet_week)) == {}
    assert set(failed(profile, in_experiment(quiet_week, obeyed=False))) == {"calibration"}


SHARES = [(False, 0.1), (False, 0.0), (False, 0.3), (True, 0.1), (True, 0.05)]


@pytest.mark.parametrize(("service", "holdout"), SHARES)
def test_layers_have_the_shares_that_their_salts_name(profile, service, holdout):
    frame = make_frame(np.random.default_rng(9), 6_000, service=service, randomised=(holdout, 0.2))
    assert failed(profile, frame) == {}
    for wrong in (0.0, holdout + 0.05):
        if wrong != holdout:
            salts = json.dumps(json.loads(frame["salts"][0]) | {"holdout_share": wrong})
            assert f"(expected {wrong:.4f})" in failed(profile, frame.assign(salts=salts))["sample_ratio"]


def test_shares_of_campaign_toml_count_where_salts_name_none(profile):
    service = make_frame(np.random.default_rng(9), 6_000)
    for salts in (None, "", "{}", '{"window_days": 28}'):
        assert failed(profile, service.assign(salts=salts)) == {}
    other = make_frame(np.random.default_rng(9), 6_000, randomised=(0.1, 0.2)).assign(salts=None)
    assert "exploration 0.2015 (expected 0.1000)" in failed(profile, other)["sample_ratio"]


def test_shares_may_change_within_a_week(profile):
    """A random phase without a holdout, the service after it, then with other shares: three shares in one week."""
    rng, drawn = np.random.default_rng(9), [(False, (0.0, 0.0)), (True, (0.1, 0.1)), (True, (0.05, 0.2))]
    parts = [make_frame(rng, 2_000, service=service, randomised=shares) for service, shares in drawn]
    parts = [part.assign(decision_id=f"{k}-" + part["decision_id"]) for k, part in enumerate(parts)]
    assert failed(profile, pd.concat(parts, ignore_index=True)) == {}
    stale = [*parts[:2], parts[2].assign(salts=parts[1]["salts"])]  # the change was made and not logged
    assert "(expected 0.1000)" in failed(profile, pd.concat(stale, ignore_index=True))["sample_ratio"]
    held = parts[0].assign(layer=parts[0]["layer"].where(parts[0].index > 0, "holdout"), arm=0)
    found = failed(profile, pd.concat([held, *parts[1:]], ignore_index=True))
    assert "holdout 0.0005 (expected 0.0000) of 2000 rows, p = 0" in found["sample_ratio"]


def p_values(profile, frame):
    """The data checks' p values; calibration's of control, over the threshold and below it."""
    sums = sum_week(frame, FEATURES, profile, campaign())
    found = check_week(sums, profile, campaign(), expected_rows=len(frame))
    wanted = {"sample_ratio": "all", "calibration": "arm none"}
    return [c.value for c in found if c.detail.startswith(wanted.get(c.name, "?"))]


def half_held_out(rng, frame):
    """The frame with layers and arms of a random phase drawn anew: no holdout in one half, a fifth in the other."""
    share = np.where(np.arange(len(frame)) % 2, 0.2, 0.0)
    held = rng.random(len(frame)) < share
    arm = np.where(held, 0, rng.integers(0, 2, len(frame)))
    control = share + (1 - share) / 2
    return frame.assign(
        salts=[json.dumps({"holdout_share": s}) for s in share.tolist()],
        layer=np.where(held, "holdout", "exploration").astype(object),
        arm=arm,
        propensity=np.where(arm == 1, 1 - control, control),
        propensities=list(np.column_stack([control, 1 - control])),
    )


def test_sample_ratio_is_pearson_s_of_one_share_and_the_normal_test_of_two(profile, quiet_week):
    counts = quiet_week["layer"].value_counts()[["holdout", "exploration", "policy"]]
    assert p_values(profile, quiet_week)[0] == pytest.approx(chisquare(counts, [600, 600, 4_800]).pvalue, rel=1e-9)
    frame = half_held_out(np.random.default_rng(4), make_frame(np.random.default_rng(2), 2_000, service=False))
    gap = in_holdout(frame).sum() - 1_000 * 0.2
    assert p_values(profile, frame)[0] == pytest.approx(2 * norm.sf(abs(gap) / np.sqrt(1_000 * 0.2 * 0.8)), rel=1e-9)


@pytest.mark.parametrize("weeks", [60, pytest.param(1_500, marks=pytest.mark.slow)])
def test_p_values_of_shares_and_arms_are_uniform_where_half_has_no_holdout(profile, weeks):
    """Else alarms were more, or fewer, than `srm_p` says; of what is right the test fails once in 300 seeds."""
    rng, frame = np.random.default_rng(11), make_frame(np.random.default_rng(2), 2_000, service=False)
    found = np.array([p_values(profile, half_held_out(rng, frame)) for _ in range(weeks)])
    assert found.shape == (weeks, 3)
    assert (kstest(found, "uniform", axis=0).pvalue > 0.001).all()


def test_ignored_features_break_only_when_gone(profile, quiet_week):
    columns = profile["columns"] | {"n05": profile["columns"]["n05"] | {"role": "ignored"}}
    mine = profile | {"columns": columns}
    assert failed(mine, quiet_week.assign(n05=quiet_week["n05"].mask(some(quiet_week, 0.3)))) == {}
    assert "missing" in failed(mine, quiet_week.assign(n05=np.nan))


def test_a_pause_of_the_campaign_is_not_broken_data(profile, quiet_week):
    """Our own messages become history: all zeros without them. The words of a column that moves are still judged."""
    roles = {"c01": "ignored", "l03": "ignored", "plan": "ignored"}
    columns = profile["columns"] | {name: profile["columns"][name] | {"role": role} for name, role in roles.items()}
    mine = profile | {"columns": columns}
    assert failed(mine, quiet_week.assign(c01=0.0, l03=quiet_week["l03"].median(), plan="free")) == {}
    assert "plan: 1.000 of the rows have a renamed" in failed(mine, quiet_week.assign(plan="Free"))["renamed"]


@pytest.mark.parametrize("weeks", [8, pytest.param(200, marks=pytest.mark.slow)])
def test_check_week_does_not_stop_quiet_weeks(weeks):
    """Ordinary wobble is not broken data; the slow version would see a rate of 2% with probability .95."""
    rng = np.random.default_rng(10)
    profile = make_profile(rng, 8_000, weeks=2.0)
    assert [failed(profile, make_frame(rng, 4_000, Truth(wobble=0.03))) for _ in range(weeks)] == [{}] * weeks


def test_check_week_a_flood_of_newcomers_is_not_broken_data(profile, quiet_week):
    new = some(quiet_week, 0.3)
    gaps = quiet_week.assign(n05=quiet_week["n05"].mask(new), account_age_days=np.where(new, 3.0, 400.0))
    assert failed(profile, gaps) == {}
    everybody = gaps.assign(account_age_days=400.0)
    assert "n05: share of rows without a value rose" in failed(profile, everybody)["missing"]
    old_too = gaps.assign(n05=gaps["n05"].mask(some(gaps, 0.2, seed=1)))
    assert "missing" in failed(profile, old_too)


def other_name(frame, rows):
    return frame.assign(device=frame["device"].mask(rows & (frame["device"] == "ios"), "iPhone"))


def more_web(frame, rows):
    """Of these rows 79% on the web instead of 15%."""
    return frame.assign(device=frame["device"].mask(rows & some(frame, 0.75, seed=2), "web"))


def more_ones(frame, rows):
    return frame.assign(n07=(some(frame, 0.3, seed=3) | (rows & some(frame, 0.36, seed=4))).astype(float))


@pytest.mark.parametrize(
    ("change", "name", "share"),
    [(other_name, "renamed", 0.01), (more_web, "one_category", 0.7), (more_ones, "stuck", 0.3)],
)
def test_check_week_a_real_change_is_the_reference_once_it_is_in_the_profile(change, name, share):
    """What docs/monitoring.md says under "When the change is real", of a share of the training rows."""
    rng = np.random.default_rng(12)
    reference, week = make_frame(rng, 20_000, service=False).assign(split="evaluate"), make_frame(rng, 6_000)
    nobody, everybody = np.zeros(len(reference), dtype=bool), np.ones(len(week), dtype=bool)
    profiles = (
        build_profile(change(reference, rows), FEATURES, campaign(), weeks=20 / 6)
        for rows in (nobody, some(reference, share))
    )
    before, after = (failed(profile, change(week, everybody)) for profile in profiles)
    assert set(before) == {name}
    assert after == {}


def test_check_week_a_column_that_was_constant_has_no_range(quiet_week):
    """A feature that was switched on after the training; without a number it is broken all the same."""
    off = make_frame(np.random.default_rng(1), 12_000, service=False).assign(split="evaluate", n07=0.0)
    profile = build_profile(off, FEATURES, campaign(), weeks=2)
    week = quiet_week.assign(n07=np.where(some(quiet_week, 0.25), quiet_week["n07"].abs(), 0.0))
    assert failed(profile, week) == {}
    assert failed(profile, to(week, 0.02, "n07", np.inf)).keys() == {"range"}


OF_NEWCOMERS = {
    "no country": ("country", None, "missing", "country: share of rows without a value rose by {:.3f}"),
    "nothing for a country": ("country", "", "renamed", "country: {:.3f}"),
    "another case": ("device", "IOS", "renamed", "device: {:.3f}"),
    "infinite": ("n01", np.inf, "range", "n01: {:.3f}"),
}


@pytest.mark.parametrize("case", OF_NEWCOMERS)
def test_check_week_a_fault_of_the_sign_up_is_broken_data(profile, quiet_week, case):
    """Accounts of less than 28 days are few, and the only ones that show it."""
    column, value, name, message = OF_NEWCOMERS[case]
    new = some(quiet_week, 0.3)
    week = quiet_week.assign(account_age_days=np.where(new, 3.0, 400.0))
    assert failed(profile, week) == {}
    week[column] = week[column].mask(new, value)
    found = failed(profile, week)
    assert set(found) == {name}
    assert found[name].startswith(message.format(new.mean()))


PARTS = """column gone, number became text, unknown arm, repeated decisions, values missing, infinite, renamed, \
features of the future, no features, arms not as logged"""


@pytest.mark.parametrize("case", ["nothing", "three shares", *PARTS.split(", ")])
def test_parts_of_a_week_add_up_to_the_whole(profile, quiet_week, case):
    frame = BROKEN[case][0](quiet_week.copy()) if case in BROKEN else quiet_week
    if case == "three shares":
        frame = frame.assign(salts=[json.dumps({"holdout_share": 0.05 * (k % 3)}) for k in range(len(frame))])
    whole = sum_week(frame, FEATURES, profile, campaign())
    part = np.digitize(pd.factorize(frame["decision_id"])[0], [0, 1, 700, 705])  # a repetition beside its original
    parts = [sum_week(frame[part == k], FEATURES, profile, campaign()) for k in range(5)]
    total = sum(parts[1:], start=parts[0])
    assert total.n == whole.n == len(frame)
    assert {key: fault.rows for key, fault in total.faults.items()} == {k: f.rows for k, f in whole.faults.items()}
    judged = [[*check_schema(s), *check_week(s, profile, campaign(), expected_rows=6000)] for s in (total, whole)]
    for found, wanted in zip(*judged, strict=True):
        assert (found.name, found.ok) == (wanted.name, wanted.ok)
        assert found.value == pytest.approx(wanted.value, rel=1e-9)  # p values of a small difference
        assert re.sub("first value .*", "", found.detail) == re.sub("first value .*", "", wanted.detail)
