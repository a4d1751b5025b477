import numpy as np
import pytest

from bentos.forward import SMALL, SmallBatch
from models.forward import NumpyModel
from models.spec import FitSpec
from models.train import fit


@pytest.fixture(scope="module")
def trained(campaign, tmp_path_factory):
    """A small trained network: missing values, ties, a constant column, strings with and without None."""
    import pandas as pd

    rng = np.random.default_rng(0)
    n = 400
    frame = pd.DataFrame({"a": rng.normal(size=n), "b": rng.integers(0, 3, n).astype(float), "c": np.ones(n)})
    frame["d"] = np.where(rng.random(n) < 0.3, np.nan, rng.exponential(size=n))
    frame["s"] = rng.choice(["x", "y", "z"], n)
    frame["t"] = rng.choice(np.array(["u", "v", None], dtype=object), n)
    frame["arm"] = rng.integers(0, 2, n)
    for o in campaign.outcome:
        value = frame["arm"] * frame["a"] + rng.normal(size=n)
        frame[o.name] = (value > 0).astype(float) if o.kind == "binary" else value
    kinds = dict.fromkeys("abcd", "numeric") | {"s": "string", "t": "string"}
    spec = FitSpec(kinds, campaign.arm_names, campaign.outcome, seed=1, members=3, rules=0, epochs=2)
    folder = tmp_path_factory.mktemp("small") / "model"
    fit(frame, spec).save(folder)
    return NumpyModel.load(folder)


def odd_rows(trained):
    """Rows at every knot, cut and clip, a hair beside them, missing, huge and infinite."""
    t = trained.tensors
    clips = t["encode.mean"] + np.outer([-4, 4], 1 / np.maximum(t["encode.scale"], 1e-9))
    cuts = t["encode.cuts"]
    points = np.concatenate([t["encode.knots"].T, np.where(np.isfinite(cuts), cuts, 0).T, clips])
    beside = [np.nextafter(points, -np.inf), points, np.nextafter(points, np.inf)]
    mixed = [[np.nan, 1, np.nan, 0], [np.inf, -np.inf, 1e300, -1e200]]
    return np.concatenate([*beside, np.full((1, 4), np.nan), mixed])


@pytest.mark.parametrize("n", [1, 2, SMALL - 1, 1000])
def test_small_batch_equals_the_model(trained, n):
    rng = np.random.default_rng(n)
    numeric = np.concatenate([rng.normal(scale=3, size=(n, 4)), odd_rows(trained)])
    strings = rng.choice(np.array(["x", "z", "unseen", None, "u"], dtype=object), (len(numeric), 2))
    numeric, strings = numeric[-n:], strings[-n:]
    columns = {name: numeric[:, j] for j, name in enumerate("abcd")} | {"s": strings[:, 0], "t": strings[:, 1]}
    # the same float32 products, summed in another order
    np.testing.assert_allclose(SmallBatch(trained).predict(numeric, strings), trained.predict(columns), atol=1e-6)
