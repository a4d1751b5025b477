import numpy as np
import pandas as pd
import pytest
from known_truth import World

import models
from models import LoggingPolicy, Outcome, RandomShare, SendAll, Threshold, TopShare, evaluate
from models.evaluation import COLUMNS

Y = [Outcome("y", "binary")]
BOTH = [Outcome("y", "binary", 12.0), Outcome("hours", "continuous", 0.5)]


def test_models_exports_the_public_api():
    assert models.evaluate is evaluate
    assert all(hasattr(models, name) for name in models.__all__)


def test_evaluate_returns_every_combination_once(log):
    table = evaluate(log, {"p": Threshold("x", 0.5)}, BOTH, segments=["segment"], estimators=["snips", "dr"])
    assert list(table.columns) == COLUMNS
    pairs = [(p, b) for p in ("p", "send_all", "send_none") for b in ("", "send_all", "send_none") if p != b]
    assert len(table) == len(pairs) * 3 * 3 * 2
    assert not table.duplicated(["policy", "baseline", "outcome", "segment", "estimator"]).any()
    assert set(zip(table["policy"], table["baseline"], strict=True)) == set(pairs)
    assert set(table["segment"]) == {"", "segment=a", "segment=b"}
    assert set(table["outcome"]) == {"y", "hours", "weighted"}
    assert (table["ci_upper"] > table["ci_lower"]).all()
    assert (table["n_obs"][table["segment"] == ""] == len(log)).all()


def test_evaluate_takes_arrays_and_policies_alike(log):
    send = (log["x"] > 0.5).to_numpy()
    table = evaluate(
        log, {"a": Threshold("x", 0.5), "b": send, "c": send.astype(float), "d": np.column_stack([~send, send])}, Y
    )
    first = table[table["policy"] == "a"].drop(columns="policy").reset_index(drop=True)
    for name in "bcd":
        other = table[table["policy"] == name].drop(columns="policy").reset_index(drop=True)
        pd.testing.assert_frame_equal(first, other)


def test_evaluate_difference_is_paired_and_antisymmetric(log):
    table = evaluate(log, {}, BOTH).set_index(["policy", "baseline", "outcome", "estimator"])
    there, back = table.loc[("send_all", "send_none")], table.loc[("send_none", "send_all")]
    np.testing.assert_allclose(there["value"], -back["value"], atol=1e-12)
    np.testing.assert_allclose(there["ci_lower"], -back["ci_upper"], atol=1e-12)
    np.testing.assert_allclose(there["se"], back["se"], atol=1e-12)


def test_evaluate_counts_events_of_the_weaker_side(log):
    table = evaluate(log, {"p": Threshold("x", 0.5)}, Y, estimators=["snips"]).set_index(
        ["policy", "baseline", "outcome"]
    )
    events, sent = log["y"] == 1, log["x"] > 0.5
    assert table.loc[("send_none", "", "y"), "n_events"] == (events & (log["arm"] == 0)).sum()
    assert table.loc[("p", "", "y"), "n_events"] == (events & (log["arm"] == sent)).sum()
    assert table.loc[("p", "send_none", "y"), "n_events"] == (events & (log["arm"] == 0) & sent).sum()


@pytest.mark.parametrize(("events", "status"), [(9, "insufficient"), (10, "ok")])
def test_evaluate_needs_ten_events(log, events, status):
    y = np.zeros(len(log))
    y[np.flatnonzero(log["arm"] == 0)[:events]] = 1
    y[np.flatnonzero(log["arm"] == 1)[:50]] = 1
    table = evaluate(log.assign(y=y), {}, Y, estimators=["dr"])
    assert set(table.loc[(table["policy"] == "send_none") & (table["outcome"] == "y"), "status"]) == {status}
    assert set(table.loc[(table["policy"] == "send_all") & (table["baseline"] == ""), "status"]) == {"ok"}


def test_evaluate_flags_too_few_events_and_never_gives_zero_width():
    log, _ = World(2_000, 0.2).draw()
    log["y"] = ((log["arm"] == 1) & (log["y"] == 1)).astype(float)  # no event in the holdout
    table = evaluate(log, {"p": Threshold("x", 0.5)}, Y, estimators=["ips", "snips", "dr"])
    binary = table[table["outcome"] == "y"]
    assert (binary["status"][binary["policy"] == "send_none"] == "insufficient").all()
    assert (binary["ci_upper"] > binary["ci_lower"]).all()
    none = binary[(binary["policy"] == "send_none") & (binary["baseline"] == "")]
    assert (none["ci_upper"] > 0.01).all()
    # a Wald interval would have no width: rather none
    weighted = table[(table["policy"] == "send_none") & (table["outcome"] == "weighted") & (table["baseline"] == "")]
    assert (weighted["se"] == 0).all()
    assert weighted[["ci_lower", "ci_upper"]].isna().all(axis=None)


def test_evaluate_says_nothing_of_a_segment_without_an_arm(log):
    plan = np.where((log["arm"] == 1) & (log.index < 200), "new", "old")
    policies = {"p": Threshold("x", 0.5)}
    table = evaluate(
        log.assign(plan=plan), policies, BOTH, segments=["plan"], estimators=["ips", "snips", "dr", "sndr"]
    )
    none = table[(table["segment"] == "plan=new") & (table["policy"] == "send_none")]
    assert none["value"].isna().all()
    assert none[["ci_lower", "ci_upper"]].isna().all(axis=None)
    assert (none["status"] == "insufficient").all()
    assert (table["status"][(table["segment"] == "plan=old") & (table["outcome"] == "y")] == "ok").all()


def test_evaluate_names_identical_policies(log):
    table = evaluate(log, {"nobody": np.zeros(len(log))}, Y)
    found = table[(table["policy"] == "nobody") & (table["baseline"] == "send_none")]
    assert (found["status"] == "identical").all()
    assert (found["value"] == 0).all()
    assert found[["ci_lower", "ci_upper"]].isna().all(axis=None)


def test_evaluate_several_message_arms():
    log, mean = World(20_000, 0.3, n_arms=3).draw()
    world = World(n_arms=3)
    table = evaluate(log, {"best": Threshold(world.score(log)), "some": RandomShare(0.4)}, Y, mu_hat=mean[:, :, None])
    assert list(table["policy"].unique()) == ["best", "some", "send_all", "send_none", "send_all_1", "send_all_2"]
    values = table[(table["baseline"] == "") & (table["estimator"] == "dr") & (table["outcome"] == "y")]
    values = values.set_index("policy")
    for name, truth in (
        ("send_all", mean[:, 1:].mean()),
        ("send_all_1", mean[:, 1].mean()),
        ("send_all_2", mean[:, 2].mean()),
        ("some", 0.6 * mean[:, 0].mean() + 0.4 * mean[:, 1:].mean()),
    ):
        assert abs(values.loc[name, "value"] - truth) < 4 * values.loc[name, "se"]


def test_evaluate_segments_use_only_their_rows(log):
    policy = {"p": TopShare("x", 0.3)}
    table = evaluate(log, policy, BOTH, segments=["segment"], estimators=["ips"])
    own = log["segment"] == "a"
    chosen = TopShare("x", 0.3).probabilities(log, 2)[:, 1]
    alone = evaluate(log[own], {"p": chosen[own]}, BOTH, estimators=["ips"])
    part = table[table["segment"] == "segment=a"].reset_index(drop=True).assign(segment="")
    pd.testing.assert_frame_equal(part, alone)


@pytest.mark.parametrize("n", [1, 60])
def test_evaluate_a_fully_stochastic_policy_in_a_segment_uses_only_its_rows(log, n):
    many = pd.concat([log.assign(user_id=log["user_id"] + k * len(log)) for k in range(n)], ignore_index=True)
    many = many.drop(columns="decision_id")
    send = np.random.default_rng(0).random(len(many))
    table = evaluate(many, {"p": send}, BOTH, segments=["segment"])
    own = (many["segment"] == "b").to_numpy()
    alone = evaluate(many[own], {"p": send[own]}, BOTH)
    part = table[(table["segment"] == "segment=b") & (table["estimator"] == "snips")]
    alone = alone[alone["estimator"] == "snips"]
    columns = ["value", "se", "ci_lower", "ci_upper"]
    np.testing.assert_allclose(part[columns], alone[columns], rtol=1e-9, atol=1e-12)


def test_evaluate_keeps_missing_segment_values_apart(log):
    table = evaluate(log.assign(segment=log["segment"].where(log["segment"] == "a")), {}, Y, segments=["segment"])
    assert set(table["segment"]) == {"", "segment=missing", "segment=a"}


BAD = [
    ({"propensity": 0.0}, {}, r"propensity has 0 in 5000 rows \(first rows \[0, 1, 2\]\); need 0 < propensity < 1"),
    ({"propensity": 1.0}, {}, "propensity has 1 in 5000 rows"),
    ({"propensity": np.nan}, {}, "propensity has nan in 5000 rows"),
    ({"y": np.nan}, {}, "outcome 'y' is NaN or infinite in 5000 rows.*evaluate matured decisions only"),
    ({"y": 0.5}, {}, "outcome 'y' is binary but has 0.5 in row 0"),
    ({"arm": "none"}, {}, "arm has dtype object; expected integers, 0 = control"),
    ({"arm": 1.0}, {}, "arm has dtype float64; expected integers"),
    ({"arm": -1}, {}, "arm has -1 in row 0"),
    ({"arm": 1}, {}, r"policy 'send_none' takes arm 0 for 100.0% of the decisions, but the log never took it"),
    ({"decision_id": "d"}, {}, "4999 duplicated decisions .first: row 1, decision_id 'd'"),
    ({"user_id": 1, "split": ["select", "train"] * 2500}, {}, r"1 clusters are in two splits \(first: 1 in"),
    ({}, {"policies": {"p": np.full(5000, 1.5)}}, r"policy 'p': 1.5 in row 0 is not a probability"),
    ({}, {"policies": {"p": np.zeros(10)}}, r"policy 'p' has shape \(10,\); expected \(5000,\) or \(5000, 2\)"),
    ({}, {"policies": {"p": np.tile([0.5, 0.2, 0.3], (5000, 1))}}, "takes arm 2 for 30.0% of the decisions"),
    ({}, {"policies": {"send_all": SendAll()}}, "policy name 'send_all' is taken"),
    ({}, {"mu_hat": np.zeros((5000, 2))}, r"mu_hat has shape \(5000, 2\); expected \(5000, 2, 1\)"),
    ({}, {"mu_hat": np.full((5000, 2, 1), np.nan)}, r"mu_hat is NaN or infinite \(first: row 0\)"),
    ({}, {"estimators": ["drr"]}, r"estimators == \['drr'\]; expected some of ips, snips"),
    ({}, {"cluster": "account"}, "the log has no column 'account'"),
    ({}, {"outcomes": [Outcome("z", "binary")]}, "the log has no column 'z'"),
    ({}, {"outcomes": []}, "expected at least one"),
    ({}, {"outcomes": [Outcome("y", "ordinal")]}, "kind == 'ordinal', must be 'binary' or 'continuous'"),
    ({}, {"segments": ["plan"]}, "the log has no column 'plan'"),
    ({}, {"features": ["tracks"]}, "the log has no column 'tracks'"),
    ({}, {"features": ["x", "y"]}, "feature 'y' is known only after the decision"),
    ({}, {"features": ["propensity"]}, "feature 'propensity' is known only after the decision"),
    ({}, {"costs": [0.0]}, r"costs == \[0.0\]; expected 2 finite numbers"),
    ({}, {"baselines": ["champion"]}, "baseline 'champion' is not a policy"),
    ({}, {"alpha": 1.2}, r"alpha == 1.2, must be in \(0, 1\)"),
    ({}, {"alpha": "0.05"}, r"alpha == '0.05', must be in \(0, 1\)"),
    ({"arm": 10**9}, {}, r"arm has 1000000000 in row 0; arms are counted .*, below 100: map ids of messages to those"),
    ({"arm": pd.array([None, *[1] * 4999], dtype="Int64")}, {}, r"arm is missing in 1 rows \(first: row 0\)"),
    ({"propensity": 1e-300}, {}, "propensity has 1e-300 in 5000 rows"),
    ({"propensity": "high"}, {}, "propensity has dtype object, for example 'high'; expected numbers"),
    ({"y": "yes"}, {}, "outcome 'y' has dtype object, for example 'yes'; expected numbers"),
    ({"y": pd.Timestamp("2026-01-01")}, {}, r"outcome 'y' has dtype datetime64.*; expected numbers"),
    ({"y": pd.array([None, *[1] * 4999], dtype="Int64")}, {}, "outcome 'y' is NaN or infinite in 1 rows"),
    ({"hours": 1e300}, {"outcomes": BOTH}, "outcome 'hours' is NaN or infinite in 5000 rows"),
    ({"segment": [[1]] * 5000}, {"segments": ["segment"]}, r"segment column 'segment' holds \[1\]"),
    ({"segment": ["missing", None] * 2500}, {"segments": ["segment"]}, "two segments read 'segment=missing'"),
    ({}, {"segments": "segment"}, r"segments == 'segment', must be a list of names: \['segment'\]"),
    ({}, {"estimators": "dr"}, "estimators == 'dr', must be a list of names"),
    ({}, {"policies": [np.zeros(5000)]}, "policies is a list; expected a dict"),
    ({}, {"policies": {"p": "send_all"}}, "policy 'p' is 'send_all'; expected a models.Policy, or an array"),
    ({}, {"policies": {"p": SendAll}}, "policy 'p' is .*SendAll.*; expected a models.Policy, or an array"),
    ({}, {"policies": {"p": [[1, 0], [1]]}}, "policy 'p' is .*; expected a models.Policy, or an array"),
    ({}, {"policies": {"p": Threshold("segment")}}, "score column 'segment' has dtype .*; expected numbers"),
    ({}, {"policies": {"p": Threshold("x", np.nan)}}, "threshold == nan, must be a number; infinity messages nobody"),
    ({}, {"mu_hat": 0.5}, r"mu_hat has shape \(\); expected \(5000, 2, 1\)"),
    ({}, {"mu_hat": np.full((5000, 2, 1), 1e200)}, r"mu_hat is NaN or infinite \(first: row 0\)"),
    ({}, {"outcomes": Y[0]}, "outcomes == Outcome.*, must be a list of models.Outcome"),
    ({}, {"outcomes": ["y"]}, r"outcomes == \['y'\], must be a list of models.Outcome"),
    ({"weighted": 1.0}, {"outcomes": [Outcome("weighted", "binary")]}, "outcome name 'weighted' is taken"),
    ({}, {"outcomes": [Outcome("y", "binary", np.nan)]}, "outcome 'y': weight == nan, must be a finite number"),
    ({"y": 1j}, {}, "outcome 'y' has dtype complex128, for example .*1j.*; expected numbers"),
    ({"arm": 1j}, {}, "arm has dtype complex128; expected integers"),
    ({"propensity": [[0.5]] * 5000}, {}, r"propensity has dtype object, for example \[0.5\]; expected numbers"),
    ({"user_id": [[1]] * 5000}, {}, r"user_id holds \[1\]; expected single values"),
    ({"user_id": None}, {}, "user_id is missing in 5000 rows; every row needs its unit"),
    ({}, {"policies": {"p": np.zeros(5000, complex)}}, "policy 'p' is .*; expected a models.Policy, or an array"),
    ({}, {"policies": {"p": np.full(5000, "a")}}, "policy 'p' is .*; expected a models.Policy, or an array"),
    ({}, {"policies": {"p": 0.5}}, r"policy 'p' has shape \(\); expected \(5000,\) or \(5000, 2\)"),
    ({}, {"costs": ["a", "b"]}, r"costs is .*; expected numbers, one per arm, control's first"),
    ({}, {"costs": [[0], [1, 2]]}, r"costs is .*; expected numbers, one per arm, control's first"),
    ({}, {"mu_hat": "a"}, "mu_hat is 'a'; expected an array of predictions, log rows x arms x outcomes"),
    ({}, {"outcomes": None}, "outcomes == None, must be a list of models.Outcome"),
    ({}, {"features": np.zeros((5000, 2))}, "features is a ndarray; expected a DataFrame, or names of log columns"),
    ({}, {"features": pd.DataFrame({"a": np.zeros(5000)}, index=range(5, 5005))}, "features has another index than"),
    ({}, {"segments": None}, "segments is a NoneType; expected a list of names"),
    ({}, {"baselines": [["a"]]}, r"baselines holds .*; expected names"),
    ({}, {"alpha": np.array([0.05, 0.1])}, r"alpha == array.*, must be in \(0, 1\)"),
    ({"user_id": [None, *range(4999)]}, {}, "user_id is missing in 1 rows; every row needs its unit"),
    ({"propensity": 0.9}, {}, r"propensity does not fit the arms: rows of arm .* \(of a message p, of control 1 - p\)"),
    ({}, {"cluster": ["user_id"]}, r"the log has no column \['user_id'\]"),
]


@pytest.mark.parametrize(("columns", "arguments", "message"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_evaluate_says_what_is_wrong(log, columns, arguments, message):
    arguments = {"policies": {}, "outcomes": Y, **arguments}
    with pytest.raises(ValueError, match=message):
        evaluate(log.assign(**columns), **arguments)


def test_evaluate_refuses_what_is_no_log(log):
    with pytest.raises(ValueError, match="the log has no rows"):
        evaluate(log.head(0), {}, Y)
    with pytest.raises(ValueError, match="the log is a NoneType; expected a pandas DataFrame"):
        evaluate(None, {}, Y)
    with pytest.raises(ValueError, match="the log is a dict; expected a pandas DataFrame"):
        evaluate(dict(log), {}, Y)
    for name in ("y", "arm", "segment", "user_id", "decision_id"):
        with pytest.raises(ValueError, match=f"the log has column '{name}' 2 times"):
            evaluate(pd.concat([log, log[[name]]], axis=1), {}, Y, segments=["segment"])


EQUIVALENT = {
    "index of text": lambda log: log.set_index(log["decision_id"]),
    "index of one value": lambda log: log.set_index(pd.Index([0] * len(log))),
    "arm as int8": lambda log: log.assign(arm=log["arm"].astype("int8")),
    "arm as bool": lambda log: log.assign(arm=log["arm"].astype(bool)),
    "arm as category": lambda log: log.assign(arm=log["arm"].astype("category")),
    "pandas' own types": lambda log: log.convert_dtypes(),
    "Arrow types": lambda log: log.convert_dtypes(dtype_backend="pyarrow"),
    "outcome as bool": lambda log: log.assign(y=log["y"].astype(bool)),
    "users as category": lambda log: log.assign(user_id=log["user_id"].astype("category")),
    "users as text": lambda log: log.assign(user_id=log["user_id"].astype(str)),
    "segment with a level nobody has": lambda log: log.assign(segment=pd.Categorical(log["segment"], ["a", "b", "c"])),
    "a column twice that is not used": lambda log: pd.concat([log, log[["hours"]]], axis=1),
}


@pytest.mark.parametrize("name", EQUIVALENT)
def test_evaluate_does_not_mind_types_and_index(log, name):
    policy = (log["x"] > 0.6).to_numpy(dtype=float)
    other = EQUIVALENT[name](log)
    options = {"segments": ["segment"], "features": ["x"]}
    pd.testing.assert_frame_equal(
        evaluate(other, {"p": policy.tolist()}, Y, **options), evaluate(log, {"p": policy}, Y, **options)
    )


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_evaluate_a_handful_of_rows_is_insufficient(log, rows):
    few = log.groupby("arm").head(rows)
    table = evaluate(few, {"p": np.ones(len(few))}, BOTH, features=["x"], segments=["segment"])
    assert set(table["status"]) <= {"insufficient", "identical"}
    assert not ((table["ci_upper"] - table["ci_lower"]) <= 0).any(), "never an interval of no width"


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_evaluate_an_outcome_that_never_varies_has_no_tight_interval(log, value):
    table = evaluate(log.assign(y=value, hours=3.0 * value), {"p": (log["x"] > 0.5).to_numpy(float)}, BOTH)
    assert set(table["status"]) == {"insufficient"}
    own = table[table["outcome"] == "y"]
    assert ((own["ci_upper"] - own["ci_lower"]) > 1e-4).all()
    assert own["ci_lower"].le(own["value"] + 1e-12).all()
    assert own["ci_upper"].ge(own["value"] - 1e-12).all()


def coverage(world: World, repetitions: int, estimators=("snips", "dr"), **arguments) -> pd.DataFrame:
    """Coverage and bias (in its Monte Carlo standard errors) of every value and difference."""
    truth, found = world.truth(), []
    for r in range(repetitions):
        log, _ = world.draw(r)
        table = evaluate(
            log, {"test": Threshold(world.score(log))}, Y, estimators=estimators, features=["x"], **arguments
        )
        found.append(table[(table["outcome"] == "y") & table["policy"].isin(list(truth))])
    rows = pd.concat(found, ignore_index=True)
    rows["truth"] = rows["policy"].map(truth) - rows["baseline"].map(truth).fillna(0)
    rows["covered"] = (rows["ci_lower"] <= rows["truth"]) & (rows["truth"] <= rows["ci_upper"])
    rows["error"] = rows["value"] - rows["truth"]
    by = rows.groupby(["policy", "baseline", "estimator"])
    bias = by["error"].mean() / (by["error"].std() / np.sqrt(repetitions))
    return pd.DataFrame({"coverage": by["covered"].mean(), "bias": bias}).reset_index()


@pytest.mark.parametrize(
    "world",
    [World(2_000, 0.02, seed=1), World(4_000, 0.2, varying=True, seed=2), World(5_000, 0.1, decisions=5, seed=3)],
    ids=["rare", "varying", "repeated"],
)
def test_intervals_cover_the_truth(world):
    """Small version; 500 repetitions of 20,000 rows are in benchmarks/evaluation.py."""
    table = coverage(world, 150, estimators=("snips",))
    # 3 Monte Carlo standard errors below 95%
    assert table["coverage"].min() >= 0.90
    assert table["bias"].abs().max() < 4


def test_errors_by_row_would_be_too_small_for_repeated_decisions():
    """The deliberately wrong variant: rows of a user taken as independent."""
    ratios = []
    for r in range(20):
        log, _ = World(5_000, 0.3, decisions=25, seed=4).draw(r)
        by_user, by_row = (
            evaluate(log, {}, Y, estimators=["snips"], cluster=c)
            .query("policy == 'send_none' and baseline == '' and outcome == 'y'")
            .iloc[0]["se"]
            for c in ("user_id", None)
        )
        ratios.append(by_user / by_row)
    assert np.mean(ratios) > 1.3


def test_logging_policy_with_several_arms_is_the_mean():
    log, _ = World(20_000, 0.2, n_arms=3).draw()
    log["propensities"] = [[0.1, 0.45, 0.45]] * len(log)
    table = evaluate(log, {"logging": LoggingPolicy()}, Y, estimators=["ips"])
    assert table.iloc[0]["value"] == pytest.approx(log["y"].mean())
