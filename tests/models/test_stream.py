"""Training from Parquet learns what training in memory learns."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from campaign import DataError
from models import optimise, stream, train
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
    for module in (stream, optimise):
        monkeypatch.setattr(module, "BLOCK_ROWS", 1000)
    monkeypatch.setattr(stream, "SAMPLE_ROWS", 4000)
    frame, test = make_frame(), columns_of(make_frame(1000, 1), SPEC.features)
    for i in range(2):
        frame[i::2].to_parquet(tmp_path / f"{i}.parquet", row_group_size=1500)
    files = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
    one, two = stream.fit_parquet(files, SPEC).predict(test), fit(frame, SPEC).model.predict(test)
    assert np.corrcoef(one[:, 1, 0] - one[:, 0, 0], two[:, 1, 0] - two[:, 0, 0])[0, 1] > 0.95
    assert (stream.fit_parquet(files, SPEC).predict(test) == one).all()


def test_fit_parquet_keeps_a_unit_of_numbers_in_one_fold(tmp_path):
    """A null makes pandas read the whole numbers of its row group as floats."""
    user = pd.array(np.arange(2000) % 500, dtype="Int64")
    user[3] = None
    make_frame(2000).assign(user=user).to_parquet(tmp_path / "a.parquet", row_group_size=500)
    groups, n = stream._groups([tmp_path / "a.parquet"])
    frames = pd.concat(frame for group in groups for frame in stream._frames(group, ["user", "x"], "user"))
    fold = pd.Series(stream._folds(frames, SPEC), frames.index)
    assert fold.groupby(frames["user"]).nunique().max() == 1
    sample = stream._sample(groups, ["user", "x"], "user", n, 0)
    assert (train.folds(sample, SPEC) == fold[sample.index]).all()
    make_frame(10).assign(user=1.0).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"unit 'user' is double, must be strings or integers"):
        stream.fit_parquet([tmp_path / "b.parquet"], SPEC)


@pytest.mark.parametrize("unit", ["user", None])
@pytest.mark.parametrize("block_rows", [1000, 65_536])
def test_fit_parquet_takes_the_planned_steps_in_row_groups_of_any_size(tmp_path, monkeypatch, block_rows, unit):
    """In the order of the files the weights are the same ones; 8,001 rows are 21 batches of at most 400."""
    for module in (stream, optimise):
        monkeypatch.setattr(module, "BLOCK_ROWS", block_rows)
    monkeypatch.setattr(stream, "_order", lambda groups, rng: groups)
    found = []
    for size in (65_536, 100):
        file, steps = tmp_path / f"{size}.parquet", []
        make_frame(8001).to_parquet(file, row_group_size=size)
        spec = dataclasses.replace(SPEC, unit=unit)
        found.append(stream.fit_parquet([file], spec, progress=lambda *step, steps=steps: steps.append(step)))
        assert steps == [(done, 84) for done in range(1, 85)]
    for name, values in found[0].tensors.items():
        np.testing.assert_array_equal(found[1].tensors[name], values, err_msg=name)


def test_fit_parquet_learns_in_every_step_from_row_groups_of_a_hundred(tmp_path):
    """The rate is 0 after the steps that were planned."""
    frame, test = make_frame(), make_frame(1000, 1)
    frame.to_parquet(tmp_path / "0.parquet", row_group_size=100)
    mu_hat = stream.fit_parquet([tmp_path / "0.parquet"], SPEC).predict(columns_of(test, SPEC.features))
    other = fit(frame, SPEC).model.predict(columns_of(test, SPEC.features))
    assert np.corrcoef(mu_hat[:, 1, 0] - mu_hat[:, 0, 0], other[:, 1, 0] - other[:, 0, 0])[0, 1] > 0.95


def test_fit_parquet_leaves_each_row_out_of_one_member_for_good(tmp_path, monkeypatch):
    """Without a unit: rows come in another order in each epoch, and keep their folds, in the sample too."""
    seen, frame = {}, make_frame(2000)
    frame.to_parquet(tmp_path / "0.parquet", row_group_size=150)
    spec = dataclasses.replace(SPEC, unit=None)
    kept = optimise.optimise

    def watched(rows, start, spec, progress, blocks, n):
        for block in [rows, *blocks(np.random.default_rng(1)), *blocks(np.random.default_rng(2))]:
            for values, fold in zip(block.inputs.dense.tolist(), block.fold.tolist(), strict=True):
                seen.setdefault(tuple(values), set()).add(fold)
        return kept(rows, start, spec, progress, blocks, n)

    monkeypatch.setattr(stream, "optimise", watched)
    stream.fit_parquet([tmp_path / "0.parquet"], spec)
    assert len(seen) == 2000  # rows are told apart by x
    assert {len(folds) for folds in seen.values()} == {1}
    assert np.bincount([*map(min, seen.values())], minlength=spec.members).min() > 0.7 * 2000 / spec.members


def test_fit_parquet_with_a_row_group_of_one_user(tmp_path):
    make_frame(501).to_parquet(tmp_path / "0.parquet", row_group_size=500)
    assert stream.fit_parquet([tmp_path / "0.parquet"], SPEC).spec.arms == SPEC.arms


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
