import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monitored import FEATURES, campaign, make_frame

from campaign import DataError
from monitoring.profile import build_profile, count_column, count_rows, reference_counts


def plain(counts):
    columns = {
        name: (c.bins if isinstance(c.bins, dict) else list(map(int, c.bins)), c.missing, c.zeros, c.far)
        for name, c in counts.columns.items()
    }
    return counts.n, counts.eligible, columns


def test_build_profile_is_json(profile):
    assert json.loads(json.dumps(profile, allow_nan=False)) == profile
    assert profile["rows_per_week"] == 6000
    assert set(FEATURES) < set(profile["columns"])


def test_build_profile_counts_its_own_rows(profile):
    frame = make_frame(np.random.default_rng(1), 12_000, service=False)
    assert plain(count_rows(profile, frame))[:2] == plain(reference_counts(profile))[:2]
    for name, column in count_rows(profile, frame).columns.items():
        assert (
            np.array_equal(column.bins, profile["columns"][name]["bins"])
            or column.bins == profile["columns"][name]["bins"]
        )


@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(0, 6000), max_size=4))
def test_counts_of_parts_add_up_to_the_whole(profile, quiet_week, cuts):
    edges = [0, *sorted(cuts), len(quiet_week)]
    parts = [count_rows(profile, quiet_week.iloc[a:b]) for a, b in pairwise(edges)]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    assert plain(total) == plain(count_rows(profile, quiet_week))


def test_counts_do_not_depend_on_row_order(profile, quiet_week):
    assert plain(count_rows(profile, quiet_week.sample(frac=1, random_state=0))) == plain(
        count_rows(profile, quiet_week)
    )


def test_count_column_brute_force():
    rng = np.random.default_rng(0)
    edges = [0.0, 1.0, 2.5, 2.6]
    values = np.r_[rng.normal(1, 3, 500), edges, np.nan, np.inf, -np.inf]
    counts = count_column({"kind": "numeric", "edges": edges, "sd": 1.0}, values)
    seen = values[~np.isnan(values)]
    by_hand = [sum(seen <= 0)] + [sum((seen > a) & (seen <= b)) for a, b in pairwise(edges)] + [sum(seen > 2.6)]
    assert counts.bins.tolist() == by_hand
    assert counts.missing == 1
    assert counts.zeros == 1
    assert counts.far == sum((seen > 5.2) | (seen < -2.6))


def test_count_column_constant_reference_sees_both_sides(quiet_week):
    frame = quiet_week.assign(split="evaluate", n00=4.0)
    column = build_profile(frame, FEATURES, campaign(), weeks=1)["columns"]["n00"]
    counts = count_column(column, np.array([3.0, 4.0, 5.0, 5.0]))
    assert counts.bins.tolist() == [1, 1, 2]


@pytest.mark.parametrize("constant", [0.1, 0.0, -7.0, np.nan])
def test_count_column_of_a_constant_only_infinities_are_far(quiet_week, constant):
    frame = quiet_week.assign(split="evaluate", n00=constant)
    column = build_profile(frame, FEATURES, campaign(), weeks=1)["columns"]["n00"]
    assert column["sd"] == 0
    assert count_column(column, np.array([-1e9, constant, 2.0, 1e300])).far == 0
    assert count_column(column, np.array([-np.inf, 2.0, np.inf, np.nan])).far == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="n03"), r"columns missing: \['n03'\]"),
        (lambda f: f.drop(columns="split"), r"columns missing: \['split'\]"),
        (lambda f: f.iloc[:0], "0 rows over 1 weeks"),
    ],
)
def test_build_profile_bad_input(quiet_week, change, message):
    with pytest.raises(DataError, match=message):
        build_profile(change(quiet_week.assign(split="evaluate")), FEATURES, campaign(), weeks=1)


def test_build_profile_takes_lines_from_rows_the_network_did_not_see(quiet_week):
    frame = quiet_week.assign(split=np.where(np.arange(len(quiet_week)) < 2000, "train", "evaluate"))
    lines = build_profile(frame, FEATURES, campaign(), weeks=1)["lines"]
    assert {line["n"] for line in lines} == {4000}


def test_count_rows_missing_column(profile, quiet_week):
    with pytest.raises(DataError, match=r"columns \['l05'\] are in the reference profile"):
        count_rows(profile, quiet_week.drop(columns="l05"))
