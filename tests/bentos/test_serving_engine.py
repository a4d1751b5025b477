import json
import math
from contextlib import nullcontext
from dataclasses import replace
from datetime import date
from typing import get_args

import numpy as np
import pytest
from linear_model import make_bundle, make_rows

from bentos import assignment as assign
from bentos import schemas
from bentos.bundle import CODE, OK, REASONS, Rows, load_bundle
from bentos.champion import Champion
from bentos.engine import decide, decide_without_model
from campaign import ModelError
from feature_repo import contracts

USERS = [f"u{i}" for i in range(3000)]
DAY = date(2026, 3, 2)


def test_reasons_are_those_of_the_log_contract():
    assert get_args(schemas.Reason) == contracts.REASONS
    assert assign.LAYERS == contracts.LAYERS


def test_decide_follows_the_rule_by_hand(campaign, bundle):
    """score = x * (1 + 2 + 3) - 0.25 for the one message arm; eligible when > 0.5."""
    x = np.linspace(-1, 1, len(USERS))
    found = decide(USERS, make_rows(x), bundle, campaign.assignment, DAY)
    np.testing.assert_allclose(found.score, 6 * x - 0.25, atol=1e-12)
    np.testing.assert_allclose(found.uplift[:, 0], x[:, None] * [1, 2, 3], atol=1e-12)
    policy = found.layer == assign.POLICY
    np.testing.assert_array_equal(found.arm[policy], (6 * x - 0.25 > 0.5)[policy])
    expected = np.where(6 * x - 0.25 > 0.5, CODE["eligible"], CODE["below_threshold"])
    np.testing.assert_array_equal(found.reason[policy], expected[policy])


def test_decide_holdout_gets_control_and_its_uplift(campaign, bundle):
    found = decide(USERS, make_rows(np.ones(len(USERS))), bundle, campaign.assignment, DAY)
    held = found.layer == assign.HOLDOUT
    assert held.any()
    assert (found.arm[held] == 0).all()
    assert (found.reason[held] == CODE["holdout"]).all()
    assert np.isfinite(found.uplift[held]).all()


def test_decide_exploration_gets_every_arm_whatever_the_score(two_messages):
    found = decide(USERS, make_rows(np.full(len(USERS), -1.0)), make_bundle(two_messages), two_messages.assignment, DAY)
    explored = found.layer == assign.EXPLORATION
    assert set(found.arm[explored]) == {0, 1, 2}
    assert (found.reason[explored] == CODE["exploration"]).all()
    assert (found.arm[found.layer == assign.POLICY] == 0).all()


def test_decide_picks_the_best_of_two_messages(two_messages):
    found = decide(USERS, make_rows(np.ones(len(USERS))), make_bundle(two_messages), two_messages.assignment, DAY)
    assert (found.arm[found.layer == assign.POLICY] == 2).all()


@pytest.mark.parametrize("reason", ["unknown_user", "stale_features", "feature_store_error"])
def test_decide_without_usable_features_is_certain_control(campaign, bundle, reason):
    status = np.full(len(USERS), OK)
    status[::2] = CODE[reason]
    found = decide(USERS, make_rows(np.ones(len(USERS)), status), bundle, campaign.assignment, DAY)
    assert (found.arm[::2] == 0).all()
    assert (found.reason[::2] == CODE[reason]).all()
    assert (found.propensities[::2] == [1, 0]).all()
    assert np.isnan(found.uplift[::2]).all()
    assert np.isnan(found.score[::2]).all()
    np.testing.assert_array_equal(
        found.arm[1::2], decide(USERS[1::2], make_rows(np.ones(1500)), bundle, campaign.assignment, DAY).arm
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_decide_never_acts_on_a_prediction_that_is_not_finite(campaign, bundle, bad):
    x = np.ones(len(USERS))
    x[7] = bad
    found = decide(USERS, make_rows(x), bundle, campaign.assignment, DAY)
    assert REASONS[found.reason[7]] == "model_unavailable"
    assert found.arm[7] == 0
    assert (found.propensities[7] == [1, 0]).all()


def test_decide_without_model_is_control_for_everybody(campaign):
    found = decide_without_model(USERS, campaign, DAY)
    assert (found.arm == 0).all()
    assert {REASONS[r] for r in found.reason} == {"model_unavailable"}


def test_decide_the_row_order_does_not_matter(campaign, bundle):
    x = np.random.default_rng(0).normal(size=len(USERS))
    order = np.random.default_rng(1).permutation(len(USERS))
    straight = decide(USERS, make_rows(x), bundle, campaign.assignment, DAY)
    shuffled = decide([USERS[i] for i in order], make_rows(x[order]), bundle, campaign.assignment, DAY)
    for name in ("layer", "arm", "reason", "score", "propensities"):
        np.testing.assert_array_equal(getattr(straight, name)[order], getattr(shuffled, name))


def test_decide_one_user_is_decided_as_among_many(two_messages):
    """The way without arrays against the one with: every layer, both sides of the threshold, unusable rows."""
    bundle, rows = make_bundle(two_messages), make_rows(np.random.default_rng(2).normal(size=len(USERS)))
    rows.status[::7] = CODE["stale_features"]
    rows.numeric[::11] = np.inf
    together = decide(USERS, rows, bundle, two_messages.assignment, DAY)
    assert set(together.layer) == {assign.HOLDOUT, assign.EXPLORATION, assign.POLICY}
    for i, user in enumerate(USERS):
        one = Rows(*(getattr(rows, name)[i : i + 1] for name in Rows.__dataclass_fields__))
        alone = decide([user], one, bundle, two_messages.assignment, DAY)
        for name in ("layer", "arm", "reason", "uplift", "score", "propensities"):
            value, expected = getattr(alone, name), getattr(together, name)[i : i + 1]
            assert value.dtype == expected.dtype, name
            np.testing.assert_array_equal(value, expected)


def test_decide_sends_nothing_at_the_threshold_itself(campaign, bundle):
    rows = make_rows([0.125, 0.125])  # 0.125 * 6 - 0.25 is 0.5, the threshold, without rounding
    users = [user for user in USERS if assign.layer(user, campaign.assignment, DAY) == assign.POLICY][:2]
    together = decide(users, rows, bundle, campaign.assignment, DAY)
    assert together.score.tolist() == [bundle.threshold] * 2
    assert together.arm.tolist() == [0, 0]
    assert decide(users[:1], make_rows([0.125]), bundle, campaign.assignment, DAY).arm.tolist() == [0]


def test_load_bundle_refuses_a_folder_without_model(tmp_path, campaign):
    with pytest.raises(ModelError, match=r"model\.json"):
        load_bundle("tactful:none", tmp_path, campaign)


def test_load_bundle_refuses_a_model_of_another_campaign(tmp_path, campaign, monkeypatch):
    from models.forward import NumpyModel

    other = campaign.model_copy(update={"arm": (campaign.arm[0], campaign.arm[1].model_copy(update={"name": "x"}))})
    monkeypatch.setattr(NumpyModel, "load", classmethod(lambda cls, folder: make_bundle(other).model))
    with pytest.raises(ModelError, match="has arms"):
        load_bundle("tactful:other", tmp_path, campaign)


def test_load_bundle_refuses_a_model_without_policy(tmp_path, campaign, monkeypatch):
    from models.forward import NumpyModel

    monkeypatch.setattr(NumpyModel, "load", classmethod(lambda cls, folder: make_bundle(campaign).model))
    with pytest.raises(ModelError, match="policy"):
        load_bundle("tactful:bare", tmp_path, campaign)


def test_probe_refuses_a_model_that_answers_otherwise(tmp_path, campaign):
    from bentos.bundle import probe, write_probe

    bundle = make_bundle(campaign)
    columns = {"x": np.array([1.0, np.nan]), "plan": np.array(["free", None], dtype=object)}
    write_probe(tmp_path, bundle.model, {**columns, "x": np.array([1.0, 2.0])})
    probe(bundle, tmp_path / "probe.json")
    raw = json.loads((tmp_path / "probe.json").read_text())
    raw["mu_hat"][0][1][0] += 1e-3
    (tmp_path / "probe.json").write_text(json.dumps(raw))
    with pytest.raises(ModelError, match="differ from those stored"):
        probe(bundle, tmp_path / "probe.json")


@pytest.mark.parametrize(("off", "refused"), [(2e-4, False), (2e-2, True)])
def test_probe_tolerance_is_of_the_outcomes_size(tmp_path, campaign, off, refused):
    """Float32 sums of hundreds of tracks differ by 1e-5 with the number of rows asked together."""
    from bentos.bundle import probe, write_probe

    class Large:
        def predict(self, columns):
            return 500 + real.predict(columns)

    class Few:
        def predict(self, numeric, strings):
            return Large().predict({"x": numeric[:, 0]}) + off

    bundle = make_bundle(campaign)
    real = bundle.model
    columns = {"x": np.array([1.0, 2.0]), "plan": np.array(["free", None], dtype=object)}
    write_probe(tmp_path, real, columns)
    raw = json.loads((tmp_path / "probe.json").read_text())
    raw["mu_hat"] = (np.array(raw["mu_hat"]) + 500).tolist()
    (tmp_path / "probe.json").write_text(json.dumps(raw))
    large = Large()
    large.spec = real.spec
    large_bundle = replace(bundle, model=large, small=Few())
    with pytest.raises(ModelError, match="differ from those stored") if refused else nullcontext():
        probe(large_bundle, tmp_path / "probe.json")


def test_probe_asks_a_few_users_as_they_are_answered(tmp_path, campaign):
    from bentos.bundle import probe, write_probe

    class Off:
        def predict(self, numeric, strings):
            return bundle.model.predict({"x": numeric[:, 0]}) + 1e-3

    bundle = make_bundle(campaign)
    write_probe(tmp_path, bundle.model, {"x": np.array([1.0, 2.0]), "plan": np.array(["free", None], dtype=object)})
    probe(bundle, tmp_path / "probe.json")
    with pytest.raises(ModelError, match="differ from those stored"):
        probe(replace(bundle, small=Off()), tmp_path / "probe.json")


KEYS = {"feature_service": "uplift_v1", "feature_schema_hash": "schema", "campaign_hash": "campaign"}


@pytest.mark.parametrize(
    ("change", "threshold", "message"),
    [
        ({"costs": (0.0,)}, 0.0, "a cost for each of"),
        ({"costs": (0.0, math.nan)}, 0.0, "must be numbers"),
        ({}, math.nan, "threshold == nan"),
        ({}, 0.0, "is not what this version saves"),  # it has no tensors
    ],
)
def test_load_bundle_refuses_what_cannot_decide(tmp_path, campaign, monkeypatch, change, threshold, message):
    from models.forward import NumpyModel

    model = make_bundle(campaign).model
    spec = replace(model.spec, extra={**KEYS, "policy": {"threshold": threshold}}, **change)
    monkeypatch.setattr(NumpyModel, "load", classmethod(lambda cls, folder: replace(model, spec=spec)))
    with pytest.raises(ModelError, match=message):
        load_bundle("tactful:odd", tmp_path, campaign)


def test_champion_serves_on_whatever_a_model_raises(tmp_path, campaign, monkeypatch):
    asked = []

    def odd(tag):
        asked.append(tag)
        raise RuntimeError("not foreseen")

    monkeypatch.setenv("TACTFUL_DATA", str(tmp_path))
    monkeypatch.setattr("bentos.champion.champion_tag", lambda: "tactful:odd")
    monkeypatch.setattr("bentos.champion.model_path", odd)
    champion = Champion(campaign, lambda bundle: None)
    assert [champion.follow(clock) for clock in (0.0, 5.0, 11.0)] == [False] * 3
    assert asked == ["tactful:odd"] * 2  # not again before ten seconds
    assert "not foreseen" in champion.error
