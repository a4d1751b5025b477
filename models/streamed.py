"""Training on more decisions than memory holds: the network from every row, all the rest from a sample of the users.

The frame lies in a folder of Parquet files, by split. The network reads the files of `train` in blocks; policy, checks,
simpler models and report are those of a sample of whole users, about IN_MEMORY_ROWS rows. On Spark the values are those
of every `evaluate` user.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from campaign import Campaign
from feature_repo.atomic import replacing
from feature_repo.snapshots import on_spark
from feature_repo.store import FeatureSchema
from models.challenger import Challenger, Progress, Whole, fit_and_report, fit_spec
from models.choice import Choice
from models.forward import NumpyModel
from models.frame import countable, read_decisions, training_frame
from models.optimise import BLOCK_ROWS
from models.parallel import fit_parallel
from models.policy import Policy, Threshold
from models.predictions import predict_frame, prediction_columns, scores
from models.splits import SPLITS, hash_unit, split_of
from models.stream import fit_parquet
from models.verdicts import broken_weeks
from models.worth import RESPONSE, evaluation_outcomes, policy_of

if TYPE_CHECKING:
    from models.baselines import Baseline

IN_MEMORY_ROWS = 1_000_000  # decisions; about 2 GB with everything that is computed from them
SAMPLE_SALT = "tactful/sample"


def frame_in_memory(store: Any, campaign: Campaign, data: Path, as_of: datetime) -> pd.DataFrame | None:
    """The frame with its `split`, made where $TACTFUL_ENGINE says; None: too large, it lies in the folder `frame`."""
    folder, asked, broken = data / "frame", (campaign, data / "logs", as_of), broken_weeks(data / "monitoring")
    if on_spark():
        from models.spark_frame import read_frame, write_training_frame  # only here: most machines have no PySpark

        n = write_training_frame(store, data / "decisions", *asked, folder, broken=broken)
        return read_frame(folder) if n <= IN_MEMORY_ROWS else None
    frame = training_frame(store, countable(read_decisions(data / "decisions"), campaign, as_of, broken), *asked)
    frame["split"] = split_of(frame["user_id"], campaign.splits)
    if len(frame) <= IN_MEMORY_ROWS:
        return frame
    write_frame(frame, folder)
    return None


def write_frame(frame: pd.DataFrame, folder: Path) -> None:
    """Write a frame with its `split` as files that training streams: rows in random order, row groups of one block."""
    with replacing(folder) as aside:
        for split in SPLITS:
            rows = np.random.default_rng(0).permutation(np.flatnonzero(frame["split"].to_numpy() == split))
            path = aside / f"split={split}" / "part-00000.parquet"
            path.parent.mkdir(parents=True)
            schema = pa.Schema.from_pandas(frame.drop(columns="split"), preserve_index=False)
            with pq.ParquetWriter(path, schema) as writer:
                for start in range(0, len(rows), BLOCK_ROWS):
                    block = frame.iloc[rows[start : start + BLOCK_ROWS]].drop(columns="split")
                    writer.write_table(pa.Table.from_pandas(block, schema, preserve_index=False))


def sample_of_users(folder: Path, n: int) -> pd.DataFrame:
    """All decisions of some users, about IN_MEMORY_ROWS of `n`, in the order of `models.frame.training_frame`."""
    share = min(1.0, IN_MEMORY_ROWS / n)
    parts = []
    for batch in _batches(ds.dataset(folder, partitioning="hive")):
        rows = batch.to_pandas()
        parts.append(rows if share == 1 else rows[hash_unit(SAMPLE_SALT, rows["user_id"]) < share])
    frame: pd.DataFrame = pd.concat(parts).sort_values(["decided_at", "decision_id"], ignore_index=True)
    return frame.assign(split=frame["split"].astype(object))


def _batches(table: ds.Dataset, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Batches that are not empty, few of them in memory."""
    found = table.to_batches(columns=columns, batch_size=BLOCK_ROWS, batch_readahead=1, fragment_readahead=1)
    yield from (batch for batch in found if batch.num_rows)


def train_streamed(
    campaign: Campaign,
    folder: Path,
    schema: FeatureSchema,
    data: Path,
    *,
    progress: Progress | None = None,
    keep: NumpyModel | None = None,
    processes: int = 1,
    **options: Any,
) -> Challenger:
    """`models.challenger.train_challenger` from a frame in a folder, by split.

    Args:
        campaign: arms, outcomes, guardrails.
        folder: files `split=<train|select|evaluate>/*.parquet`.
        schema: of the feature service.
        data: folder for the reports.
        progress: called with (steps done, steps in all) while the network trains.
        keep: train nothing: this network.
        processes: that train the network together.
        options: of `fit_and_report`. The network always starts from scratch.
    """
    table = ds.dataset(folder, partitioning="hive")
    files, spec = sorted(folder.glob("split=train/*.parquet")), fit_spec(campaign, schema)
    if keep is None and processes > 1:
        model = fit_parallel(files, spec, processes)
    else:
        model = keep or fit_parquet(files, spec, progress=progress)
    n = table.count_rows()
    frame = sample_of_users(folder, n)
    ends = [pc.min_max(batch["decided_at"]).as_py() for batch in _batches(table, ["decided_at"])]
    first, last = min(end["min"] for end in ends), max(end["max"] for end in ends)
    window = {"from": str(pd.Timestamp(first)), "to": str(pd.Timestamp(last)), "n": n, "sampled": len(frame) / n}
    everybody = partial(values_of_everybody, campaign, folder) if on_spark() else None
    whole = Whole("kept" if keep else "streamed", window, everybody)
    return fit_and_report(campaign, frame, schema, data, keep=model, whole=whole, **options)


def values_of_everybody(
    campaign: Campaign, folder: Path, model: NumpyModel, rivals: Mapping[str, Baseline], choice: Choice
) -> pd.DataFrame:
    """The values of `choose_and_evaluate` on every `evaluate` user of a frame that lies in a folder, by Spark.

    Args:
        campaign: arms, outcomes, segments.
        folder: of the frame.
        model: the network; it saw none of these users.
        rivals: the simpler models, by name.
        choice: the chosen threshold.
    """
    from feature_repo import spark as engine  # only here: most machines have no PySpark
    from models.spark_frame import written
    from models.spark_values import evaluate_on_spark

    log = engine.session().read.parquet(engine.uri(folder / "split=evaluate"))
    names, steps = ["uplift policy", *rivals], folder.with_name(f".{folder.name}.values")
    columns = {name: [f"score_{k}_{arm}" for arm in campaign.arm_names[1:]] for k, name in enumerate(names)}
    mu = [f"mu_{campaign.arm_names[0]}_{outcome}" for outcome in campaign.outcome_names]
    uplift = [f"uplift_{arm}_{outcome}" for arm in campaign.arm_names[1:] for outcome in campaign.outcome_names]

    def predict(rows: pd.DataFrame) -> pd.DataFrame:
        mu_hat = {name: rival.predict(rows) for name, rival in rivals.items()} | {names[0]: predict_frame(model, rows)}
        weights = dict(zip(campaign.outcome_names, campaign.weights, strict=True))
        found = prediction_columns(mu_hat[names[0]], campaign.arm_names, weights, campaign.costs, choice.threshold)
        score = {name: scores(of, campaign.weights, campaign.costs) for name, of in mu_hat.items()}
        score[RESPONSE] = mu_hat[RESPONSE][:, 1:, 0]
        return found.assign(**{c: score[name][:, a] for name in names for a, c in enumerate(columns[name])})

    try:
        added = dict.fromkeys([*mu, *uplift, *(c for of in columns.values() for c in of)], "DOUBLE")
        log = written(engine.appended(log, added, predict), steps)
        share = _messaged(log, columns[names[0]], choice.threshold)
        policies: dict[str, Policy] = {name: Threshold(columns[name], 0.0) for name in names}
        policies[names[0]] = policy_of(choice, columns[names[0]])
        policies[RESPONSE] = Threshold(columns[RESPONSE], _cut(log, columns[RESPONSE], share))
        return evaluate_on_spark(
            log.withColumnsRenamed({f"y_{outcome}": outcome for outcome in campaign.outcome_names}),
            policies,
            evaluation_outcomes(campaign),
            campaign.arm_names,
            segments=campaign.segments.columns,
            costs=campaign.costs,
        )
    finally:
        shutil.rmtree(steps, ignore_errors=True)


def _messaged(log: Any, columns: list[str], threshold: float) -> float:
    """Share of the rows whose best score is above the threshold."""
    return float(log.where(f"{_best(columns)} > CAST('{threshold!r}' AS DOUBLE)").count() / log.count())


def _cut(log: Any, columns: list[str], share: float) -> float:
    """The best score that a share of the rows exceeds; exact up to 10,000 rows, one in 10,000 off beyond."""
    (cut,) = log.selectExpr(f"{_best(columns)} AS best").approxQuantile("best", [1 - share], 1e-4)
    return float(cut)


def _best(columns: list[str]) -> str:
    return f"greatest({', '.join(columns)})" if len(columns) > 1 else columns[0]
