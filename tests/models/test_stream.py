"""Training from Parquet learns what training in memory learns."""

import numpy as np
import pandas as pd
import pytest

from campaign import DataError
from models import stream, train
from models.decision_log import Outcome
from models.losses import effective_rows
from models.shrinkage import error_covariance
from models.spec import FitSpec, columns_of
from models.train import fit

SPEC = FitSpec(
    {"x": "numeric", "plan": "string"},
    ("none", "a"),
    (Outcome("visit", "binary", 1.0),),
    unit="user",
    rules=0,
    epochs=4,
)


def make_frame(n=8000, seed=0):
    rng = np.random.default_rng(seed)
    x, arm = rng.normal(size=n), rng.integers(0, 2, n)
    return pd.DataFrame(
        {
            "user": [f"u{i}" for i in range(n)],
            "x": x,
            "plan": rng.choice(["free", "paid"], n),
            "arm": arm,
            "visit": (rng.random(n) < 0.3 + 0.2 * arm * np.sign(x)).astype(float),
        }
    )


def test_fit_parquet_agrees_with_fit_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "BLOCK_ROWS", 1000)
    monkeypatch.setattr(stream, "SAMPLE_ROWS", 4000)
    frame, test = make_frame(), columns_of(make_frame(1000, 1), SPEC.features)
    for i in range(2):
        frame[i::2].to_parquet(tmp_path / f"{i}.parquet", row_group_size=1500)
    files = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
    one, two = stream.fit_parquet(files, SPEC).predict(test), fit(frame, SPEC).model.predict(test)
    assert np.corrcoef(one[:, 1, 0] - one[:, 0, 0], two[:, 1, 0] - two[:, 0, 0])[0, 1] > 0.95
    assert (stream.fit_parquet(files, SPEC).predict(test) == one).all()


def test_fit_parquet_counts_all_rows_in_the_interval_not_its_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "SAMPLE_ROWS", 1000)
    asked = []
    monkeypatch.setattr(train, "error_covariance", lambda *a: asked.append(a[2]) or error_covariance(*a))
    frame = make_frame(4000)
    frame.to_parquet(tmp_path / "0.parquet")
    stream.fit_parquet([tmp_path / "0.parquet"], SPEC)
    assert asked == pytest.approx([effective_rows(np.bincount(frame["arm"]))], rel=0.1)


def test_fit_parquet_says_what_is_wrong(tmp_path):
    with pytest.raises(DataError, match="no rows in 0 Parquet files"):
        stream.fit_parquet([], SPEC)
    make_frame(500).drop(columns="plan").to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: columns \['plan'\] are missing"):
        stream.fit_parquet([tmp_path / "a.parquet"], SPEC)
    frame = make_frame(500)
    frame.loc[3, "visit"] = np.nan
    frame.to_parquet(tmp_path / "b.parquet")
    with pytest.raises(DataError, match="outcome 'visit': 1 of 500 rows are wrong"):
        stream.fit_parquet([tmp_path / "b.parquet"], SPEC)
