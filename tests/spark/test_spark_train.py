"""What a challenger is worth to every `evaluate` user, from one pass on Spark, is what one machine says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from test_report import world as small_world
from test_streamed import NAMES, SCHEMA

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
    keys = ["policy", "baseline", "outcome", "segment", "estimator"]
    wanted, got = (table.set_index(keys).sort_index() for table in (local, found))
    assert wanted.index.equals(got.index)
    for name in ("n_obs", "n_events", "status"):
        assert got[name].tolist() == wanted[name].tolist(), name
    for name in ("value", "se", "ci_lower", "ci_upper"):
        # predictions are of float32, and depend on the batch in the eighth digit
        np.testing.assert_allclose(got[name], wanted[name], rtol=1e-5, atol=1e-6, err_msg=name)
    assert {path.name for path in tmp_path.iterdir()} == {"frame"}
