"""Train on Parquet that does not fit in memory: encoding, rules and checks from a sample, weights from every row.

Memory is a few blocks of rows, the sample, and the network. Each epoch reads the files once, row groups in a new order;
`models.optimise.whole` joins small ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from campaign import DataError
from models import encode as enc
from models.explain import background
from models.forward import NumpyModel
from models.optimise import BLOCK_ROWS, Progress, TrainingRows, optimise
from models.spec import FitSpec, columns_of, labels_of
from models.train import finish, fold_of, folds, fresh, standardise

SAMPLE_ROWS = 200_000


def fit_parquet(files: Sequence[Path | str], spec: FitSpec, *, progress: Progress | None = None) -> NumpyModel:
    """Train on every row of some Parquet files, in bounded memory.

    Args:
        files: Parquet files with the same columns; written in row groups of at most about a million rows, best of
            BLOCK_ROWS in random order: an epoch shuffles row groups, and the rows of a block.
        spec: as for `models.train.fit`; with 10 million rows one or two `epochs` do.
        progress: called as (steps done, steps in all).

    Returns: the model; its out-of-fold predictions are not kept.

    Raises: DataError: as `models.train.fit`; the sample is checked before training starts, each block as it is read.
    """
    groups, n = _groups(files)
    if not n:
        raise DataError(f"no rows in {len(files)} Parquet files; give at least one file with rows")
    names = _names(spec)
    sample = _sample(groups, names, spec.unit, n, spec.seed)
    labels, columns = labels_of(sample, spec), columns_of(sample, spec.features)
    fold = folds(sample, spec) if spec.unit else _folds(sample, spec)
    outcome, units = standardise(labels.outcome, [o.kind for o in spec.outcomes])
    start = fresh(columns, labels, outcome, fold, spec)
    rows = TrainingRows(
        enc.encode(columns, start.features, start.tensors), labels.arm, outcome, labels.propensity, fold
    )
    limits = outcome.min(axis=0), outcome.max(axis=0)
    shares = np.bincount(labels.arm, minlength=len(spec.arms)) / len(labels.arm)

    def block(frame: pd.DataFrame) -> TrainingRows:
        """Rows as the network takes them.

        Outcomes beyond the caps that `standardise` found in the sample are set to them, as in memory those beyond the
        caps of all rows are: a handful of extreme rows would steer squared error.
        """
        part = labels_of(frame, spec, shares)
        y = np.clip((part.outcome - units["outcome.mean"]) / units["outcome.scale"], *limits).astype(np.float32)
        inputs = enc.encode(columns_of(frame, spec.features), start.features, start.tensors)
        return TrainingRows(inputs, part.arm, y, part.propensity, _folds(frame, spec))

    def blocks(rng: np.random.Generator) -> Iterator[TrainingRows]:
        for group in _order(groups, rng):
            yield from map(block, _frames(group, names, spec.unit))

    tensors = start.tensors | units | optimise(rows, start.tensors, spec, progress, blocks, n)
    model, _ = finish(rows, labels.outcome, tensors, start.features, spec, n)
    return NumpyModel(model.spec, model.tensors | background(model, columns, spec.seed))


def _names(spec: FitSpec) -> list[str]:
    optional = [name for name in (spec.propensity, spec.unit) if name]
    return list(
        dict.fromkeys([*spec.features, spec.arm, *(spec.outcome_prefix + o.name for o in spec.outcomes), *optional])
    )


class _Group(NamedTuple):
    """A row group: its file and that one's footer, its number there, its first row's number in all files."""

    file: Path
    footer: pq.FileMetaData
    number: int
    first: int


def _groups(files: Sequence[Path | str]) -> tuple[list[_Group], int]:
    """All row groups, and how many rows they have together."""
    groups, n = [], 0
    for file in map(Path, files):
        footer = pq.read_metadata(file)
        for number in range(footer.num_row_groups):
            groups.append(_Group(file, footer, number, n))
            n += footer.row_group(number).num_rows
    return groups, n


def _order(groups: list[_Group], rng: np.random.Generator) -> list[_Group]:
    """The order of an epoch."""
    return [groups[g] for g in rng.permutation(len(groups))]


def _folds(frame: pd.DataFrame, spec: FitSpec) -> np.ndarray:
    """By unit, else by number of the row: the same in every epoch, in the sample, and in row groups of any size."""
    return fold_of(frame[spec.unit] if spec.unit else frame.index.to_series(), spec.members)


def _frames(group: _Group, names: list[str], unit: str | None) -> Iterator[pd.DataFrame]:
    """At most BLOCK_ROWS rows each, with their numbers as index.

    Units as text: pandas would make floats of whole numbers in the row groups that have a null, so other units.
    """
    file, footer, number, first = group
    reader = pq.ParquetFile(file, metadata=footer)
    missing = [name for name in names if name not in reader.schema_arrow.names]
    if missing:
        raise DataError(f"{file}: columns {missing} are missing; it has {reader.schema_arrow.names}")
    if unit and pa.types.is_floating(reader.schema_arrow.field(unit).type):
        raise DataError(f"{file}: unit {unit!r} is {reader.schema_arrow.field(unit).type}, must be strings or integers")
    for batch in reader.iter_batches(BLOCK_ROWS, row_groups=[number], columns=names):
        frame = batch.to_pandas()
        if unit:
            frame[unit] = batch[unit].cast(pa.string()).to_pandas().to_numpy()
        yield frame.set_axis(range(first, first + batch.num_rows))
        first += batch.num_rows


def _sample(groups: list[_Group], names: list[str], unit: str | None, n: int, seed: int) -> pd.DataFrame:
    """At most about SAMPLE_ROWS rows, each with the same probability."""
    rng, share = np.random.default_rng(seed), min(1.0, SAMPLE_ROWS / n)
    return pd.concat(frame[rng.random(len(frame)) < share] for group in groups for frame in _frames(group, names, unit))
