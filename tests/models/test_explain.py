"""Explanations: they add up, they agree with brute force, and they point where the score goes."""

from dataclasses import replace
from itertools import pairwise, permutations

import numpy as np
import pandas as pd
import pytest

from benchmarks.worlds import KINDS, OUTCOMES, make_world
from campaign import ModelError
from models.decision_log import Outcome
from models.drivers import drivers
from models.encode import allowed_codes, code_counts, codes, dense_owner, encode
from models.explain import BACKGROUND, background, explain
from models.forward import NumpyModel
from models.predictions import scores
from models.spec import FitSpec, columns_of
from models.train import fit


def fit_world(kind, n, seed, members=3, messages=1, **more):
    world = make_world(kind, n, seed, 0.2, messages=messages)
    arms = ("none", "offer", "other")[: messages + 1]
    spec = FitSpec(world.features, arms, tuple(Outcome(*o) for o in OUTCOMES), members=members, **more)
    fitted = fit(world.frame, spec)
    test = make_world(kind, 60, seed, 0.2, part=1, messages=messages)
    return fitted.model, columns_of(world.frame, world.features), columns_of(test.frame, world.features)


@pytest.fixture(scope="module")
def steps():
    """A model with strings, missing values and interactions."""
    return fit_world("steps", 6000, 3, messages=2, rules=40, epochs=4)


def score_of(model, columns, arm):
    score = scores(model.predict(columns), model.spec.weights.tolist(), model.spec.costs)
    return score[np.arange(len(score)), arm - 1]


def compared(model, training):
    """The background as raw columns: rows of the training frame with the same inputs."""
    inputs, code = model.encode(training), codes(training, model.spec.features, model.tensors)
    rows = []
    for dense, own in zip(model.tensors["explain.dense"], model.tensors["explain.codes"], strict=True):
        rows.append(int(np.flatnonzero((inputs.dense == dense).all(axis=1) & (code == own).all(axis=1))[0]))
    return {name: column[rows] for name, column in training.items()}


def replaced(columns, row, name, others):
    """Copies of one user, with one feature of each other user."""
    return {
        key: others[key] if key == name else np.repeat(column[[row]], BACKGROUND) for key, column in columns.items()
    }


def sign_agreement(model, training, test, top):
    """Share of the top features whose contribution has the sign of: score less score with others' values."""
    explained, others = explain(model, test), compared(model, training)
    same = []
    for row in range(len(explained.score)):
        arm = np.full(BACKGROUND, explained.arm[row])
        for name, part in explained.top(row, top):
            without = score_of(model, replaced(test, row, name, others), arm).mean()
            same.append(np.sign(part) == np.sign(explained.score[row] - without))
    return float(np.mean(same))


def assert_adds_up(explained):
    limit = 0.01 * np.minimum(np.abs(explained.score), np.abs(explained.score - explained.baseline))
    assert (np.abs(explained.residual) <= limit).all(), np.max(np.abs(explained.residual) / limit)


def test_explain_adds_up_to_the_score_within_one_percent(steps):
    model, training, test = steps
    for arm in (None, np.full(60, 1), np.full(60, 2)):
        explained = explain(model, test, arm)
        assert_adds_up(explained)
        assert np.allclose(explained.score, score_of(model, test, explained.arm))
    # the baseline is what the message is worth to the users compared with
    assert np.isclose(
        explained.baseline[0], score_of(model, compared(model, training), np.full(64, 2)).mean(), atol=1e-6
    )


def test_explain_top_features_agree_in_sign_with_finite_differences(steps):
    model, training, test = steps
    assert sign_agreement(model, training, test, top=3) >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [21, 22])
def test_explain_full_size_adds_up_and_agrees_in_sign(kind, seed):
    model, training, test = fit_world(kind, 20_000, seed, members=5)
    assert_adds_up(explain(model, test))
    assert sign_agreement(model, training, test, top=5) >= 0.95


def test_explain_a_linear_model_is_exactly_weight_times_difference():
    world = make_world("smooth", 1500, 5, 0.2)
    spec = FitSpec(
        world.features, ("none", "offer"), (Outcome("hours", "continuous", 2.0),), members=2, rules=0, epochs=2
    )
    model = fit(world.frame, spec).model
    t = dict(model.tensors)
    t["head.weight"], t["rules.weight"] = np.zeros_like(t["head.weight"]), np.zeros_like(t["rules.weight"])
    linear, columns = NumpyModel(model.spec, t), columns_of(world.frame.head(20), world.features)
    slope = t["skip.weight"].mean(axis=0) @ np.array([-1, 1]) * t["outcome.scale"] * t["shrink.factor"] * 2.0
    away = model.encode(columns).dense - t["explain.dense"].mean(axis=0)
    owner = dense_owner(model.spec.features, t)
    expected = np.stack([np.bincount(owner, row) for row in away * slope])
    assert np.allclose(explain(linear, columns).contributions, expected, rtol=1e-3, atol=1e-6)


def test_explain_splits_a_rule_by_shapley_values(steps):
    """One rule and nothing else: brute force over all orders of its features."""
    model, _, test = steps
    t = dict(model.tensors)
    for name in ("head.weight", "skip.weight", "rules.weight"):
        t[name] = np.zeros_like(t[name])
    widths = (~allowed_codes(t)).any(axis=1)  # some rule forbids this code
    assert widths.any()
    allowed, offsets = allowed_codes(t), np.r_[0, np.cumsum(code_counts(model.spec.features))]
    used = np.stack([~allowed[a:b].all(axis=0) for a, b in pairwise(offsets)])
    rule = int(used.sum(axis=0).argmax())  # the one with most features
    t["rules.weight"][:, rule, -1] = 1.0  # hours under the last message
    only = replace(model, tensors=t)
    explained = explain(only, test, np.full(60, 2))
    size = t["outcome.scale"][-1] * t["shrink.factor"][1] * OUTCOMES[-1][2]
    mine, others = codes(test, model.spec.features, t), t["explain.codes"].astype(int)
    features = np.flatnonzero(used[:, rule])
    orders = list(permutations(features))
    for row in range(0, 60, 20):
        expected = np.zeros(len(used))
        for other in others:
            for order in orders:
                code = other.copy()
                before = allowed[offsets[:-1] + code, rule].all()
                for feature in order:
                    code[feature] = mine[row, feature]
                    after = allowed[offsets[:-1] + code, rule].all()
                    expected[feature] += (float(after) - float(before)) / len(orders) / len(others)
                    before = after
        assert np.allclose(explained.contributions[row], size * expected, atol=1e-6)


def test_explain_a_message_whose_score_is_the_same_for_all_moves_nothing(steps):
    model, _, test = steps
    flat = replace(model, tensors=model.tensors | {"shrink.factor": np.array([0.0, 1.0])})
    explained = explain(flat, test, np.full(60, 1))
    assert np.abs(explained.contributions).max() < 1e-12
    assert np.abs(explained.residual).max() < 1e-12


def test_explain_gives_nothing_to_a_feature_without_any_weight(steps):
    model, _, test = steps
    t = dict(model.tensors)
    silent = 4
    owner, offsets = dense_owner(model.spec.features, t), np.r_[0, np.cumsum(code_counts(model.spec.features))]
    using = ~allowed_codes(t)[offsets[silent] : offsets[silent + 1]].all(axis=0)
    for name, rows in (("trunk.0.weight", owner == silent), ("skip.weight", owner == silent), ("rules.weight", using)):
        t[name] = np.where(rows[None, :, None], 0, t[name])
    explained = explain(replace(model, tensors=t), test)
    assert np.abs(explained.contributions[:, silent]).max() == 0
    assert np.abs(explained.contributions).max() > 0


def test_explain_names_a_model_without_background(steps):
    model, _, test = steps
    bare = replace(model, tensors={k: v for k, v in model.tensors.items() if not k.startswith("explain.")})
    with pytest.raises(ModelError, match="keeps no users to compare with; train it again"):
        explain(bare, test)


def test_background_is_spread_over_the_score(steps):
    model, training, _ = steps
    every = scores(model.predict(training), model.spec.weights.tolist(), model.spec.costs).max(axis=1)
    kept = scores(model.predict(compared(model, training)), model.spec.weights.tolist(), model.spec.costs).max(axis=1)
    # SAMPLE of the rows: medians and averages agree within the sampling error of 4,096 rows
    assert abs(kept.mean() - every.mean()) < 4 * every.std() / np.sqrt(4096) + 0.01 * every.std()
    assert (np.diff(kept) >= -1e-9).all()
    again = background(model, training, 0)
    assert np.array_equal(again["explain.codes"], model.tensors["explain.codes"])


def test_dense_owner_names_the_columns_that_a_feature_moves(steps):
    model, training, _ = steps
    owner = dense_owner(model.spec.features, model.tensors)
    rows = {name: column[:200] for name, column in training.items()}
    before = encode(rows, model.spec.features, model.tensors).dense
    assert len(owner) == before.shape[1]
    for j, feature in enumerate(model.spec.features):
        moved = encode(rows | {feature.name: rows[feature.name][::-1]}, model.spec.features, model.tensors).dense
        changed = (moved != before).any(axis=0)
        assert changed.any()
        assert (owner[changed] == j).all()


def test_drivers_tell_size_and_direction():
    rng = np.random.default_rng(0)
    columns = {"up": rng.normal(size=300), "plan": np.array(["free", None, "paid"] * 100, dtype=object)}
    columns["up"][:30] = np.nan
    parts = np.column_stack([np.nan_to_num(columns["up"]), np.where(columns["plan"] == "free", 0.1, -0.1)])
    from models.explain import Explanation

    told = drivers(Explanation(("up", "plan"), np.ones(300), parts.sum(axis=1), np.zeros(300), parts), columns)
    assert told["feature"].drop_duplicates().tolist() == ["up", "plan"]
    by = told.set_index(["feature", "group"])["contribution"]
    assert by["up", "low"] < by["up", "middle"] < by["up", "high"]
    assert by["up", "not known"] == 0
    assert by["plan", "free"] == pytest.approx(0.1)
    assert by["plan", "not known"] == pytest.approx(-0.1)
    assert told.groupby("feature")["users"].sum().tolist() == [300, 300]
    assert told["size"].iloc[-1] == pytest.approx(0.1)
    assert isinstance(told, pd.DataFrame)
