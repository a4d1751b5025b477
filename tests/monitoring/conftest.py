"""One quiet platform for all tests here: its reference profile, a week, and the matured decisions before it."""

from datetime import timedelta

import numpy as np
import pandas as pd
import pytest
from monitored import MONDAY, make_frame, make_profile


@pytest.fixture(scope="session")
def profile():
    return make_profile(np.random.default_rng(1), 12_000, weeks=2.0)


@pytest.fixture(scope="session")
def quiet_week():
    return make_frame(np.random.default_rng(2), 6_000)


@pytest.fixture(scope="session")
def matured():
    rng = np.random.default_rng(3)
    weeks = [make_frame(rng, 5_000, monday=MONDAY - timedelta(weeks=5 + k)) for k in range(4)]
    return pd.concat(weeks, ignore_index=True)
