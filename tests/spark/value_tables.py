"""Tables of values from two engines, held against each other."""

from __future__ import annotations

import numpy as np
import pandas as pd

KEYS = ["policy", "baseline", "outcome", "segment", "estimator"]


def assert_same_values(found: pd.DataFrame, local: pd.DataFrame, *, rtol: float, atol: float) -> None:
    """The same rows in any order: counts and status equal, values and intervals within the tolerance."""
    wanted, got = (table.set_index(KEYS).sort_index() for table in (local, found))
    assert wanted.index.equals(got.index)
    for name in ("n_obs", "n_events", "status"):
        assert got[name].tolist() == wanted[name].tolist(), name
    for name in ("value", "se", "ci_lower", "ci_upper"):
        np.testing.assert_allclose(got[name], wanted[name], rtol=rtol, atol=atol, err_msg=name)
