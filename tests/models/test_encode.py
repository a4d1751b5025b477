"""The encoding: what each kind of column becomes, and that codes and rules mean what they say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, rankdata

from models.encode import (
    BINS,
    allowed_codes,
    code_counts,
    codes,
    dense_inputs,
    encode,
    fit_encoding,
    fit_features,
    rule_bits,
    rule_tensors,
)
from models.spec import Feature

RNG = np.random.default_rng(0)
COLUMNS = {
    "skewed": np.exp(RNG.normal(size=2000)),
    "holes": np.where(RNG.random(2000) < 0.3, np.nan, RNG.normal(size=2000)),
    "gone": np.full(2000, np.nan),
    "same": np.full(2000, 5.0),
    "flag": (RNG.random(2000) < 0.2).astype(float),
    "plan": RNG.choice(np.array(["free", "paid", None], dtype=object), 2000, p=[0.6, 0.3, 0.1]),
}
FEATURES = fit_features(COLUMNS)
STATE = fit_encoding(COLUMNS, FEATURES)


def one(**changes):
    values = {"skewed": 1.0, "holes": 0.0, "gone": np.nan, "same": 5.0, "flag": 0.0, "plan": "free"} | changes
    return {k: np.array([v], dtype=object if k == "plan" else float) for k, v in values.items()}


def test_fit_features_keeps_order_and_categories():
    assert [f.name for f in FEATURES] == list(COLUMNS)
    assert FEATURES[-1].categories == ("free", "paid", None)


def test_dense_inputs_are_centred_finite_and_normal():
    dense = dense_inputs(COLUMNS, FEATURES, STATE)
    assert dense.dtype == np.float32
    assert np.isfinite(dense).all()
    assert np.abs(dense.mean(axis=0)).max() < 0.1
    expected = norm.ppf((rankdata(COLUMNS["skewed"]) - 0.5) / 2000)
    inner = np.abs(expected) < 2  # knots are .5% of the rows apart, and the ends are clipped
    assert np.abs(dense[inner, 0] - expected[inner]).max() < 0.05


def test_constant_and_all_missing_columns_say_nothing():
    dense = dense_inputs(one(gone=7.0, same=9.0), FEATURES, STATE)
    assert (dense[0] == dense_inputs(one(), FEATURES, STATE)[0]).all()


@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e308])
def test_dense_inputs_of_a_value_beyond_all_bounds_are_finite(value):
    dense = dense_inputs(one(skewed=value, gone=value, same=value), FEATURES, STATE)
    assert np.isfinite(dense).all()
    assert np.abs(dense[0, :2]).max() <= 4


def test_fit_encoding_of_a_spread_that_underflows_is_finite():
    columns = {"tiny": np.tile([0.0, 1e-200], 50)}
    features = fit_features(columns)
    state = fit_encoding(columns, features)
    assert np.isfinite(state["encode.scale"]).all()
    assert np.isfinite(dense_inputs(columns, features, state)).all()


def test_missing_value_is_the_average_user_with_an_indicator():
    known, unknown = (dense_inputs(one(holes=v), FEATURES, STATE)[0] for v in (0.5, np.nan))
    changed = np.flatnonzero(known != unknown)
    assert len(changed) == 3  # normal score, z-score, indicator
    assert unknown[changed[:2]].tolist() == [0, 0]


@pytest.mark.parametrize("value", ["martian", ""])
def test_unseen_category_is_the_average_user(value):
    assert (dense_inputs(one(plan=value), FEATURES, STATE)[0, -4:] == 0).all()


def test_missing_category_has_a_level_of_its_own():
    none, nan = (dense_inputs(one(plan=v), FEATURES, STATE)[0, -4:] for v in (None, np.nan))
    assert (none == nan).all()
    assert none[2] > 0


def test_rare_levels_are_one_level_with_the_unseen():
    column = np.array(["a"] * 990 + [f"rare{i}" for i in range(10)], dtype=object)
    features = fit_features({"c": column})
    assert features[0].categories == ("a",)
    state = fit_encoding({"c": column}, features)
    rows = [dense_inputs({"c": np.array([v], dtype=object)}, features, state)[0] for v in ("rare1", "new", "a")]
    assert (rows[0] == rows[1]).all()
    assert (rows[0] != rows[2]).any()


@settings(max_examples=50, deadline=None)
@given(value=st.floats(allow_nan=True, allow_infinity=True))
def test_codes_stay_in_range_and_order(value):
    code = codes(one(skewed=value), FEATURES, STATE)[0]
    assert (code >= 0).all()
    assert (code < code_counts(FEATURES)).all()
    assert (code[0] == BINS) == np.isnan(value)


def test_rule_bits_equal_a_plain_conjunction():
    """Random rules over all features, against a loop over rows and rules."""
    rng = np.random.default_rng(1)
    counts = code_counts(FEATURES)
    offsets = np.r_[0, np.cumsum(counts)]
    allowed = rng.random((offsets[-1], 21)) < 0.8
    code = codes(COLUMNS, FEATURES, STATE)[:200]
    state = STATE | rule_tensors(allowed)
    found = np.unpackbits(rule_bits(code, FEATURES, state), axis=1, count=21).astype(bool)
    expected = [[all(allowed[offsets[j] + row[j], r] for j in range(len(row))) for r in range(21)] for row in code]
    assert (found == np.array(expected)).all()
    assert (allowed_codes(state) == allowed).all()


def test_octile_steps_hold_for_the_right_share():
    bits = encode(COLUMNS, FEATURES, STATE).rules
    count = int(STATE["rules.count"][0])
    share = np.unpackbits(bits, axis=1, count=count).mean(axis=0)
    assert share[:7] == pytest.approx(1 - np.arange(1, 8) / 8, abs=0.01)
    missing = encode(one(skewed=np.nan), FEATURES, STATE).rules
    assert np.unpackbits(missing, axis=1, count=count)[0, :7].sum() == 0


def test_a_value_on_a_cut_lies_below_it():
    cuts = {"encode.cuts": np.array([[1.0, 2.0] + [np.inf] * (BINS - 3)])}
    found = codes({"x": np.array([0.5, 1.0, 1.5, 2.0, 2.5, np.nan])}, [Feature("x", "numeric")], cuts)
    assert found[:, 0].tolist() == [0, 0, 1, 1, 2, BINS]
