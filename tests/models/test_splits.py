import hashlib

import numpy as np
import pytest
from scipy.stats import kstest, pearsonr

from campaign import Splits
from models.splits import check_disjoint, hash_unit, split_of

SPLITS = Splits(salt="s", train=0.6, select=0.15, evaluate=0.25)
USERS = [f"u{i}" for i in range(20_000)]


def test_hash_unit_is_the_documented_hash():
    expected = int.from_bytes(hashlib.sha256(b"salt:u1").digest()[:8], "big") / 2**64
    assert hash_unit("salt", ["u1"]).tolist() == [expected]


def test_hash_unit_is_uniform_and_salts_are_independent():
    first, second = hash_unit("a", USERS), hash_unit("b", USERS)
    assert kstest(first, "uniform").pvalue > 0.001
    assert abs(pearsonr(first, second).statistic) < 0.03
    assert first.min() >= 0
    assert first.max() < 1


def test_split_of_gives_each_user_one_set_with_the_wanted_shares():
    split = split_of(USERS * 2, SPLITS)
    assert (split[:20_000] == split[20_000:]).all()
    for name, share in (("train", 0.6), ("select", 0.15), ("evaluate", 0.25)):
        assert (split[:20_000] == name).mean() == pytest.approx(share, abs=0.015)


def test_split_of_keeps_its_order_when_users_are_added():
    assert (split_of(USERS[:100], SPLITS) == split_of(USERS, SPLITS)[:100]).all()


def test_check_disjoint_names_the_user():
    check_disjoint(np.array(["a", "a", "b"]), np.array(["train", "train", "select"]))
    with pytest.raises(ValueError, match=r"1 clusters are in two splits \(first: a in \['train', 'select'\]\)"):
        check_disjoint(np.array(["a", "a", "b"]), np.array(["train", "select", "select"]))
