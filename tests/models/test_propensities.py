"""The holdout persists and messages leave traces: propensities must be those given what a user's history tells."""

import json
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bentos import assignment as assign
from campaign import DataError, load_campaign
from models import Outcome, evaluate
from models.frame import sieve
from models.log_checks import check_log
from models.propensities import drawn_shares, given_history, outside_holdout
from models.splits import draw_window

ASSIGNMENT = load_campaign().assignment
DAY = date(2026, 1, 5)
Y = [Outcome("y", "continuous")]


def mean_outcome(messages, arm):
    """A first message helps, a repeated one harms, and being messaged before lowers the level."""
    return 0.5 - 0.2 * (messages > 0) + arm * np.where(messages > 0, -0.1, 0.3)


def decision_rows(user, layer, arm, propensities, window, salts="{}"):
    day = pd.Timestamp(DAY, tz="UTC") + pd.Timedelta(days=28 * window)
    chance = np.asarray(propensities, dtype=float)
    return pd.DataFrame(
        {
            "decision_id": [f"{window}-{u}" for u in user],
            "user_id": user,
            "decided_at": day,
            "layer": layer,
            "arm": arm,
            "propensity": chance[np.arange(len(user)), arm],
            "propensities": list(chance),
            "salts": salts,
        }
    )


def exact_log():
    """40 users, two windows, every draw in exactly its expected proportion: sample means are expectations.

    4 users are in the holdout; of the other 36, half get the message in each window, whatever they got before.
    """
    user, held = np.arange(40), np.arange(40) < 4
    first = np.where(held, 0, user % 2)
    second = np.where(held, 0, user // 2 % 2)
    layer = np.where(held, "holdout", "exploration")
    marginal = np.tile([0.55, 0.45], (40, 1))
    log = pd.concat(
        [
            decision_rows(user, layer, first, marginal, 0).assign(messages=0),
            decision_rows(user, layer, second, marginal, 1).assign(messages=first),
        ],
        ignore_index=True,
    )
    return log.assign(y=mean_outcome(log["messages"], log["arm"]))


# message whoever had one / had none / everybody: arm probabilities by message history
POLICIES = {"had one": lambda m: (m > 0) * 1.0, "had none": lambda m: (m == 0) * 1.0, "mixed": lambda m: 0.2 + 0.6 * m}


def true_value(policy):
    """40 first decisions without history, and 36 later ones of users outside the holdout, half of them with a message.

    By hand; the reference of the closed form.
    """

    def value(m):
        return policy(m) * mean_outcome(m, 1) + (1 - policy(m)) * mean_outcome(m, 0)

    return float((40 * value(np.float64(0)) + 18 * value(np.float64(0)) + 18 * value(np.float64(1))) / 76)


@pytest.mark.parametrize("estimator", ["ips", "snips", "dr"])
@pytest.mark.parametrize("name", POLICIES)
def test_given_history_gives_exact_values_in_a_world_without_noise(name, estimator):
    log = given_history(exact_log(), ASSIGNMENT).reset_index(drop=True)
    assert len(log) == 76
    policies = {"it": POLICIES[name](log["messages"].to_numpy(dtype=float))}
    table = evaluate(log, policies, Y, estimators=[estimator])
    found = table[(table["policy"] == "it") & (table["baseline"] == "") & (table["outcome"] == "y")]["value"].item()
    assert found == pytest.approx(true_value(POLICIES[name]), abs=1e-12)


@pytest.mark.parametrize("estimator", ["ips", "dr"])
def test_marginal_propensities_are_wrong_in_the_same_world(estimator):
    """The deliberately wrong variant: whatever population one has in mind, its exact value is missed."""
    log, policy = exact_log(), POLICIES["had one"]
    m = log["messages"].to_numpy(dtype=float)
    table = evaluate(log, {"it": policy(m)}, Y, estimators=[estimator])
    found = table[(table["policy"] == "it") & (table["baseline"] == "") & (table["outcome"] == "y")]["value"].item()
    everybody = (policy(m) * mean_outcome(m, 1) + (1 - policy(m)) * mean_outcome(m, 0)).mean()
    assert abs(found - everybody) > 0.01
    assert abs(found - true_value(policy)) > 0.006


def served_log(seed, n=6000, windows=4, lasts=0):
    """Decisions of the service's own draws under a policy that messages where x > 0; what it did is a feature later.

    An experiment holds half of the users, half of these under send-all, the others under the policy. It lasts so many
    windows (0: there is none), then the next one has its slots and draws its own variants.
    """
    rng, salted = np.random.default_rng(seed), load_campaign().assignment
    a = salted.model_copy(update={"holdout_salt": f"h{seed}", "exploration_salt": f"e{seed}"})
    user = np.array([f"{seed}-{i}" for i in range(n)])
    x, messages, parts = rng.normal(size=n), np.zeros(n), []
    slot, *variants = np.random.default_rng([seed, 1]).random((1 + windows, n))
    salts = assign.salts_of(a)
    for window in range(windows):
        day = DAY + timedelta(days=28 * window)
        wish = (x > 0).astype(int)
        layer = assign.layers(user, a, day)
        arm = np.where(layer == assign.HOLDOUT, 0, wish)
        chance = assign.propensities(wish, a, 2)
        if lasts:
            name, variant = f"x{window // lasts}", variants[window // lasts]
            salts["experiments"] = {name: {"open_slots": [0.0, 0.5], "starts_at": f"{DAY}T00:00:00+00:00"}}
            enrolled = slot < 0.5
            own = np.where(enrolled & (variant < 0.5), 1, wish)
            layer = np.where(enrolled & (layer == assign.POLICY), assign.EXPERIMENT, layer)
            arm = np.where(layer == assign.EXPERIMENT, own, arm)
            chance = 0.75 * chance + 0.25 * assign.propensities(np.ones(n, dtype=int), a, 2)
        arm = np.where(layer == assign.EXPLORATION, assign.exploration_arms(user, a, 2, day), arm)
        rows = decision_rows(user, np.array(assign.LAYERS)[layer], arm, chance, window, json.dumps(salts))
        if lasts:
            arms = [{"all": 1, "champion": w} for w in wish.tolist()]
            names = np.where(variant < 0.5, "all", "champion").tolist()
            inside = [{"champion": e["champion"], "variant": v, "arms": e} for e, v in zip(arms, names, strict=True)]
            told = [i if e else {"champion": i["champion"]} for i, e in zip(inside, enrolled.tolist(), strict=True)]
            rows["experiment"] = [json.dumps(row) for row in told]
        parts.append(rows.assign(x=x, messages=messages))
        messages = messages + arm
    log = pd.concat(parts, ignore_index=True)
    noise = rng.normal(size=n)[log.index % n] + rng.normal(size=len(log))
    return log.assign(y=mean_outcome(log["messages"], log["arm"]) + 0.2 * noise)


def errors(log):
    """(estimate - truth) / standard error of DR for a policy that spares whoever had a message."""
    messages = log["messages"].to_numpy()
    policy = ((log["x"] > 0) & (messages == 0)).to_numpy(dtype=float)
    log, truth = log.reset_index(drop=True), mean_outcome(messages, policy).mean()
    table = evaluate(log, {"spare": policy}, Y, estimators=["ips", "snips", "dr"])
    row = table[(table["policy"] == "spare") & (table["baseline"] == "") & (table["outcome"] == "y")]
    return ((row["value"] - truth) / row["se"]).to_numpy()


def test_given_history_is_unbiased_on_the_services_own_draws():
    logs = [served_log(seed) for seed in range(12)]
    new = np.array([errors(given_history(log, ASSIGNMENT)) for log in logs])
    old = np.array([errors(log) for log in logs])
    # the mean of 12 standardised errors has a standard error of .29
    assert (np.abs(new.mean(axis=0)) < 3 / np.sqrt(12)).all(), new.mean(axis=0)
    assert (np.abs(old.mean(axis=0)) > 3).all(), old.mean(axis=0)


def without_experiments(log):
    """The deliberately wrong variant: later decisions as if nothing told the variant."""
    return given_history(log.assign(salts=served_log(0, 1, 1)["salts"].iloc[0]), ASSIGNMENT)


def test_given_history_is_unbiased_while_an_experiment_runs():
    logs = [served_log(seed, lasts=4) for seed in range(12)]
    kept = [given_history(log, ASSIGNMENT) for log in logs]
    assert min(len(rows) / len(log) for rows, log in zip(kept, logs, strict=True)) > 0.9
    new = np.array([errors(rows) for rows in kept])
    old = np.array([errors(without_experiments(log)) for log in logs])
    assert (np.abs(new.mean(axis=0)) < 3 / np.sqrt(12)).all(), new.mean(axis=0)
    assert (np.abs(old.mean(axis=0)) > 4 / np.sqrt(12)).all(), old.mean(axis=0)
    # an explored user's later decision needs the log's word on the variant: without it, it is left out
    silent = given_history(logs[0].drop(columns="experiment"), ASSIGNMENT)
    assert len(silent) == (logs[0]["decided_at"] == logs[0]["decided_at"].min()).sum()


def test_given_history_is_unbiased_when_an_experiment_takes_over_the_slots_of_another():
    logs = [served_log(seed, lasts=1) for seed in range(12)]
    new = np.array([errors(given_history(log, ASSIGNMENT)) for log in logs])
    # what each experiment's first decision got when it counted as a fresh draw; IPS is too noisy to show it here
    old = np.array([errors(without_experiments(log)) for log in logs])[:, 1:]
    assert (np.abs(new.mean(axis=0)) < 3 / np.sqrt(12)).all(), new.mean(axis=0)
    assert (np.abs(old.mean(axis=0)) > 3 / np.sqrt(12)).all(), old.mean(axis=0)


def test_check_log_holds_for_message_history_too():
    log = served_log(99)
    good = given_history(log, ASSIGNMENT)
    status = {
        name: check_log(frame, covariates=frame[["x", "messages"]]).set_index("check")["status"]
        for name, frame in {"old": log, "new": good}.items()
    }
    assert set(status["new"]) <= {"ok", "warn"}
    assert status["old"]["covariate balance of arm 1"] == "fail"


def one_by_one(log):
    """The rule by a plain loop over decisions in time."""
    seen, kept = set(), {}
    for row in log.sort_values(["decided_at", "decision_id"]).itertuples():
        salts = json.loads(row.salts)
        draws = [(row.user_id, "holdout", salts.get("holdout_salt", ""))]
        if "exploration_salt" in salts:
            window = int(draw_window([row.user_id], row.decided_at.date(), salts["window_days"])[0])
            draws.append((row.user_id, salts["exploration_salt"], window))
        for e in salts.get("experiments", {}).values():
            if e["open_slots"][0] < e["open_slots"][1] and row.decided_at >= pd.Timestamp(e["starts_at"]):
                draws.append((row.user_id, "experiment"))
        first, spent = draws[0] not in seen, any(draw in seen for draw in draws[1:])
        seen |= set(draws)
        if not spent and (first or row.layer != "holdout"):
            share = 0 if first else salts.get("holdout_share", ASSIGNMENT.holdout_share)
            kept[row.Index] = [(row.propensities[0] - share) / (1 - share), row.propensities[1] / (1 - share)]
    return dict(sorted(kept.items()))


def salted(holdout, experiment, name="x"):
    salts = {"holdout_salt": holdout, "holdout_share": 0.2, "exploration_salt": "e", "window_days": 28}
    if experiment:
        start = pd.Timestamp(DAY, tz="UTC") + pd.Timedelta(days=experiment)
        salts["experiments"] = {name: {"salt": name, "open_slots": [0.0, 0.5], "starts_at": start.isoformat()}}
    return json.dumps(salts)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.integers(0, 100),
            st.sampled_from(["holdout", "exploration", "policy"]),
            st.sampled_from(["{}", salted("a", 0), salted("b", 0), salted("a", 40), salted("b", 60, "y")]),
        ),
        min_size=1,
        max_size=40,
    )
)
def test_given_history_equals_a_plain_loop(rows):
    user, days, layer, salts = zip(*rows, strict=True)
    log = decision_rows(
        [f"u{u}" for u in user], list(layer), np.zeros(len(rows), dtype=int), [[0.6, 0.4]] * len(rows), 0
    )
    log["salts"], log["decision_id"] = list(salts), [f"d{k:03d}" for k in range(len(rows))]
    log["decided_at"] = log["decided_at"] + pd.to_timedelta(days, unit="D")
    found, expected = given_history(log, ASSIGNMENT), one_by_one(log)
    assert found.index.tolist() == list(expected)
    np.testing.assert_allclose(found["propensities"].tolist(), list(expected.values()), atol=1e-12)
    np.testing.assert_allclose(found["propensity"], [chance[0] for chance in expected.values()], atol=1e-12)


def test_outside_holdout_refuses_a_share_that_cannot_be():
    with pytest.raises(DataError, match=r"control has 0.05 in 1 rows \(first: row 1\), less than the holdout's share"):
        outside_holdout(np.array([[0.5, 0.5], [0.05, 0.95]]), 0.1)


def test_given_history_of_no_rows_has_none():
    log = exact_log()
    found = given_history(log[:0], ASSIGNMENT)
    assert found.empty
    assert found.columns.tolist() == log.columns.tolist()


def test_sieve_counts_a_log_of_certain_arms():
    rows = decision_rows(np.arange(3), "exploration", np.ones(3, int), np.tile([0.0, 1.0], (3, 1)), 0)
    kept, dropped = sieve(rows, load_campaign(), datetime(2026, 6, 1, tzinfo=UTC))
    assert kept.empty
    assert dropped.pop("with a certain arm") == 3
    assert sum(dropped.values()) == 0


def test_given_history_refuses_salts_that_name_no_window():
    log = exact_log().assign(salts='{"exploration_salt": "e"}')
    with pytest.raises(DataError, match=r"80 decisions \(first: 0-0\) name exploration_salt but not window_days"):
        given_history(log, ASSIGNMENT)


def test_drawn_shares_are_those_of_the_salts_and_else_the_campaigns():
    rows = exact_log().head(6)[["decision_id"]]
    rows["salts"] = [None, "", "{}", '{"holdout_share": 0}', '{"holdout_share": 0.3}', '{"exploration_share": 0.25}']
    found = drawn_shares(rows.set_index(rows.index[::-1]), ASSIGNMENT)
    assert found["holdout"].tolist() == [0.1, 0.1, 0.1, 0.0, 0.3, 0.1]
    assert found["exploration"].tolist() == [0.1, 0.1, 0.1, 0.1, 0.1, 0.25]
    assert found.index.tolist() == [5, 4, 3, 2, 1, 0]


BAD_SALTS = ["holdout_share=0.1", "null", "[0.1]", '{"holdout_share": "0.1"}', '{"holdout_share": NaN}']
BAD_SALTS += ['{"holdout_share": 10}', '{"holdout_share": 1.0}', '{"exploration_share": -0.1}']


@pytest.mark.parametrize("salts", BAD_SALTS)
def test_salts_that_cannot_be_are_named(salts):
    log = exact_log()
    log.loc[3:4, "salts"] = salts
    expected = r"salts of 2 decisions \(first: 0-3\) are .*; expected JSON as {\"holdout_share\": 0.1}"
    with pytest.raises(DataError, match=expected):
        given_history(log, ASSIGNMENT)
