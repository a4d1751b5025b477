"""Train on Parquet that does not fit in memory: encoding, rules and checks from a sample, weights from every row.

Memory is one block of rows, the sample, and the network. Each epoch reads the files once, row groups in a new order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from campaign import DataError
from models import encode as enc
from models.explain import background
from models.forward import NumpyModel
from models.optimise import Progress, TrainingRows, optimise
from models.spec import FitSpec, columns_of, labels_of
from models.train import finish, folds, fresh, standardise

SAMPLE_ROWS = 200_000
BLOCK_ROWS = 65_536


def fit_parquet(files: Sequence[Path | str], spec: FitSpec, *, progress: Progress | None = None) -> NumpyModel:
    """Train on every row of some Parquet files, in bounded memory.

    Args:
        files: Parquet files with the same columns; written in row groups of at most about a million rows.
        spec: as for `models.train.fit`; with 10 million rows one or two `epochs` do.
        progress: called as (steps done, steps in all).

    Returns: the model; its out-of-fold predictions are not kept.

    Raises: DataError: as `models.train.fit`; the sample is checked before training starts, each block as it is read.
    """
    groups = [(Path(file), i) for file in files for i in range(pq.ParquetFile(file).num_row_groups)]
    if not groups:
        raise DataError(f"no rows in {len(files)} Parquet files; give at least one file with a row group")
    names = _names(spec)
    n = sum(pq.ParquetFile(file).metadata.num_rows for file in files)
    sample = _sample(groups, names, n, spec.seed)
    labels, columns, fold = labels_of(sample, spec), columns_of(sample, spec.features), folds(sample, spec)
    outcome, units = standardise(labels.outcome, [o.kind for o in spec.outcomes])
    start = fresh(columns, labels, outcome, fold, spec)
    rows = TrainingRows(
        enc.encode(columns, start.features, start.tensors), labels.arm, outcome, labels.propensity, fold
    )
    limits = outcome.min(axis=0), outcome.max(axis=0)
    shares = np.bincount(labels.arm, minlength=len(spec.arms)) / len(labels.arm)

    def block(file: Path, group: int, index: int, frame: pd.DataFrame) -> TrainingRows:
        part = labels_of(frame, spec, shares)
        y = np.clip((part.outcome - units["outcome.mean"]) / units["outcome.scale"], *limits).astype(np.float32)
        inputs = enc.encode(columns_of(frame, spec.features), start.features, start.tensors)
        own = [spec.seed, groups.index((file, group)), index]  # without a unit a row keeps its fold in every epoch
        in_fold = folds(frame, spec) if spec.unit else np.random.default_rng(own).integers(0, spec.members, len(frame))
        return TrainingRows(inputs, part.arm, y, part.propensity, in_fold)

    def blocks(rng: np.random.Generator) -> Iterator[TrainingRows]:
        for g in rng.permutation(len(groups)):
            file, group = groups[g]
            for index, frame in enumerate(_frames(file, group, names)):
                yield block(file, group, index, frame)

    tensors = start.tensors | units | optimise(rows, start.tensors, spec, progress, blocks, n)
    model, _ = finish(rows, labels.outcome, tensors, start.features, spec, n)
    return NumpyModel(model.spec, model.tensors | background(model, columns, spec.seed))


def _names(spec: FitSpec) -> list[str]:
    optional = [name for name in (spec.propensity, spec.unit) if name]
    return list(
        dict.fromkeys([*spec.features, spec.arm, *(spec.outcome_prefix + o.name for o in spec.outcomes), *optional])
    )


def _frames(file: Path, group: int, names: list[str]) -> Iterator[pd.DataFrame]:
    reader = pq.ParquetFile(file)
    missing = [name for name in names if name not in reader.schema_arrow.names]
    if missing:
        raise DataError(f"{file}: columns {missing} are missing; it has {reader.schema_arrow.names}")
    for batch in reader.iter_batches(BLOCK_ROWS, row_groups=[group], columns=names):
        yield batch.to_pandas()


def _sample(groups: list[tuple[Path, int]], names: list[str], n: int, seed: int) -> pd.DataFrame:
    """At most about SAMPLE_ROWS rows, each with the same probability."""
    rng, share = np.random.default_rng(seed), min(1.0, SAMPLE_ROWS / n)
    parts = (frame[rng.random(len(frame)) < share] for file, group in groups for frame in _frames(file, group, names))
    return pd.concat(parts, ignore_index=True)
