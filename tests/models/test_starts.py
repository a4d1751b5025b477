"""A kept network: other weights and costs, the same predictions, and none of a training row by who trained on it."""

import numpy as np
import pandas as pd
import pytest

from campaign import ModelError, load_campaign
from models.spec import FitSpec
from models.starts import MIN_SINCE, fit_starts, keep_network, of_the_change
from models.train import fit

CAMPAIGN = load_campaign()


def make_frame(n=2000, effect=0.2):
    rng = np.random.default_rng(0)
    arm, x = rng.integers(0, len(CAMPAIGN.arm), n), rng.normal(size=n)
    frame = {"user_id": [f"u{i}" for i in range(n)], "x": x, "arm": arm, "split": np.where(x > 1, "evaluate", "train")}
    for outcome in CAMPAIGN.outcome:
        drawn = rng.random(n) < 0.3 + effect * (arm > 0) * (x > 0)
        frame[f"y_{outcome.name}"] = drawn.astype(float) if outcome.kind == "binary" else 5 * drawn + rng.normal(size=n)
    return pd.DataFrame(frame)


def make_spec(**changes):
    values = {"features": {"x": "numeric"}, "arms": CAMPAIGN.arm_names, "outcomes": CAMPAIGN.outcome}
    return FitSpec(**{**values, "outcome_prefix": "y_", "unit": "user_id", "rules": 0, "epochs": 2, **changes})


def test_keep_network_changes_the_worth_and_nothing_else():
    frame, spec = make_frame(), make_spec()
    train = (frame["split"] == "train").to_numpy()
    before = fit(frame[train].reset_index(drop=True), spec)
    worth = [o.model_copy(update={"weight": 2 * o.weight}) for o in CAMPAIGN.outcome]
    campaign = CAMPAIGN.model_copy(update={"outcome": tuple(worth)})
    start, after, honest = keep_network(campaign, frame, spec, before.model)
    assert start == "kept"
    assert [o.weight for o in after.spec.outcomes] == [2 * o.weight for o in CAMPAIGN.outcome]
    assert after.spec.costs == tuple(CAMPAIGN.costs)
    assert (after.predict(frame) == before.predict(frame)).all()
    assert honest.rows.all()
    assert honest.mu_hat[train] == pytest.approx(before.out_of_fold)
    assert (honest.mu_hat[~train] == before.predict(frame)[~train]).all()


def test_keep_network_refuses_another_question():
    frame, spec = make_frame(), make_spec(epochs=1)
    model = fit(frame, spec).model
    with pytest.raises(ModelError, match=r"the model has arms, features, members .* train a new network"):
        keep_network(CAMPAIGN, frame, make_spec(members=3), model)


def changed_frame(n=4000, late=1600):
    """The last rows are of a world in which the message does the opposite; random arms."""
    frame = pd.concat([make_frame(n - late), make_frame(late, effect=-0.2)], ignore_index=True)
    frame["user_id"] = [f"u{i}" for i in range(n)]
    days = np.where(np.arange(n) < n - late, 0, 21)
    frame["decided_at"] = pd.Timestamp("2026-03-02", tz="UTC") + pd.to_timedelta(days, unit="D")
    frame["split"] = np.array(["train", "select", "evaluate"])[np.random.default_rng(1).integers(0, 3, n)]
    return frame.assign(propensity=1 / len(CAMPAIGN.arm))


def test_of_the_change_waits_for_enough_decisions():
    frame, change = changed_frame(), pd.Timestamp("2026-03-20", tz="UTC").to_pydatetime()
    assert of_the_change(frame, None) is None
    rows = of_the_change(frame, change)
    assert rows.sum() == 1600
    assert (frame["decided_at"][rows] > pd.Timestamp(change)).all()
    few = frame.drop(index=frame.index[(frame["split"] == "select") & rows][MIN_SINCE - 1 :]).reset_index(drop=True)
    assert of_the_change(few, change) is None


def test_fit_starts_judges_on_decisions_since_the_change_alone():
    frame = changed_frame()
    since = of_the_change(frame, pd.Timestamp("2026-03-20", tz="UTC").to_pydatetime())
    champion = fit(frame[(frame["split"] == "train") & ~since].reset_index(drop=True), make_spec()).model
    start, fitted, honest = fit_starts(CAMPAIGN, frame, make_spec(epochs=20), champion, since)
    assert start == "warm"  # from scratch most rows are of the old world
    assert not honest.rows[~since].any()
    assert (frame["split"][honest.rows] != "select").all()
    uplift = np.diff(fitted.predict(frame)[:, :2, 0], axis=1)[:, 0]
    before = np.diff(champion.predict({"x": frame["x"].to_numpy()})[:, :2, 0], axis=1)[:, 0]
    assert uplift.mean() < before.mean() - 0.1
