"""Fixtures of the evaluation's tests."""

import pandas as pd
import pytest
from known_truth import World


@pytest.fixture
def log() -> pd.DataFrame:
    """5,000 decisions, 10% holdout, a 0/1 outcome `y` at 20% and a continuous one, `hours`."""
    frame, _ = World(5_000, 0.2).draw()
    return frame.assign(hours=frame["y"] * 2 + frame["x"], decision_id=[f"d{i}" for i in range(len(frame))])
