"""A kept network: other weights and costs, the same predictions, and none of a training row by who trained on it."""

import numpy as np
import pandas as pd
import pytest

from campaign import ModelError, load_campaign
from models.spec import FitSpec
from models.starts import keep_network
from models.train import fit

CAMPAIGN = load_campaign()


def make_frame(n=2000):
    rng = np.random.default_rng(0)
    arm, x = rng.integers(0, len(CAMPAIGN.arm), n), rng.normal(size=n)
    frame = {"user_id": [f"u{i}" for i in range(n)], "x": x, "arm": arm, "split": np.where(x > 1, "evaluate", "train")}
    for outcome in CAMPAIGN.outcome:
        drawn = rng.random(n) < 0.3 + 0.2 * (arm > 0) * (x > 0)
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
