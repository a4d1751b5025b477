"""What a challenger is worth to every `evaluate` user, from one pass on Spark, is what one machine says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from test_report import world as small_world
from test_streamed import NAMES, SCHEMA
from value_tables import assert_same_values

from campaign import load_campaign
from models import streamed
from models.challenger import fit_spec
from models.spec import FitSpec
from models.train import fit
from models.worth import choose_and_evaluate, fit_rivals


@pytest.mark.filterwarnings("ignore:arm .* has .* rows")
def test_values_of_everybody_equal_local(tmp_path: Path) -> None:
    frame, _ = small_world(6_000)
    frame["user_id"] = [f"u{i % 4000}" for i in range(len(frame))]
    campaign = load_campaign()
    frame = frame.assign(device="web", country="DE", split=streamed.split_of(frame["user_id"], campaign.splits))
    spec: FitSpec = dataclasses.replace(fit_spec(campaign, SCHEMA), epochs=3, rules=0, members=2)
    model, rivals = fit(frame[frame["split"] == "train"], spec).model, fit_rivals(frame, spec)
    mu_hat = model.predict({name: frame[name].to_numpy() for name in NAMES})
    predicted = {name: rival.predict(frame) for name, rival in rivals.items()}
    choice, local = choose_and_evaluate(campaign, frame, mu_hat, predicted, own_cut=True)
    streamed.write_frame(frame, tmp_path / "frame")
    found = streamed.values_of_everybody(campaign, tmp_path / "frame", model, rivals, choice)
    assert np.isfinite(choice.threshold)
    # predictions are of float32, and depend on the batch in the eighth digit
    assert_same_values(found, local, rtol=1e-5, atol=1e-6)
    assert {path.name for path in tmp_path.iterdir()} == {"frame"}
