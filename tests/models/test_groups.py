import numpy as np
import pandas as pd
import pytest

from models.groups import score_groups


def world(n=4_000, seed=0):
    """The message helps where a > 0.5, harms where a <= 0.5 and b > 0.7; the score knows it."""
    rng = np.random.default_rng(seed)
    features = pd.DataFrame({"a": rng.random(n), "b": rng.random(n), "noise": rng.random(n)})
    truth = np.where(features["a"] > 0.5, 1.0, np.where(features["b"] > 0.7, -1.0, 0.0))
    return features, truth, truth + rng.normal(size=n)


def test_score_groups_finds_the_rules_and_measures_them_by_hand():
    features, truth, effect = world()
    found = score_groups(features, truth, effect, depth=2)
    assert found.explained == pytest.approx(1.0, abs=0.02)
    top = found.table.iloc[0]
    assert top["rule"].startswith("a > 0.5")
    inside = features["a"] > 0.5
    own = found.table[found.table["rule"].str.startswith("a > 0.5")]
    assert (own["measured"] * own["n_obs"]).sum() / own["n_obs"].sum() == pytest.approx(effect[inside].mean())
    harmed = found.table[found.table["rule"] == "a <= 0.5, b > 0.7"].iloc[0]
    chosen = effect[(features["a"] <= 0.5) & (features["b"] > 0.7)]
    assert harmed["n_obs"] == pytest.approx(len(chosen), abs=5)  # the cut lies between two rows
    assert harmed["measured"] == pytest.approx(chosen.mean(), abs=0.02)
    assert harmed["se"] == pytest.approx(chosen.std() / np.sqrt(len(chosen)), rel=0.02)
    assert harmed["ci_upper"] < 0


def test_score_groups_hold_every_row_once_and_take_missing_values():
    features, truth, effect = world(500)
    features.loc[:99, "a"] = np.nan
    features["never"] = np.nan
    table = score_groups(features, truth, effect, cluster=np.arange(500) // 2).table
    assert table["n_obs"].sum() == 500
    assert table["share"].sum() == pytest.approx(1.0)
    assert table["predicted"].is_monotonic_decreasing
    assert table["rule"].is_unique


def test_score_groups_of_a_constant_score_are_everybody():
    features, _, effect = world(200)
    found = score_groups(features, np.ones(200), effect)
    assert found.table["rule"].tolist() == ["everybody"]
    assert found.table["measured"].item() == pytest.approx(effect.mean())
