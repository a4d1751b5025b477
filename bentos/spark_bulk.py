"""Bulk scoring on Spark: `bulk.score_batch` wherever the workers are, and a table that appears whole.

A task that dies is run again and its first output thrown away, so every user has one row; the rows are counted before
the folder is put in place. The package must be installed where the workers are (.venv-spark).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bentos.bulk import score_batch
from bentos.bundle import Bundle
from campaign import Campaign, StoreError
from feature_repo import spark as engine
from feature_repo.atomic import replacing, write_json
from feature_repo.store import FeatureSchema

Scored = tuple[Bundle, FeatureSchema, Campaign, date]


def score_snapshot(snapshot: Path, folder: Path, run: dict[str, Any], scored: Scored) -> None:
    """Write the eligibility table of a snapshot, with its run.json.

    Args:
        snapshot: features of every user, on a file system that all workers share.
        folder: replaced when every user has been scored.
        run: what the table is computed from; `users` is the number of rows of the snapshot.
        scored: the champion, its features, the campaign and the day of the snapshot.

    Raises: DataError: Spark could not score. StoreError: it wrote another number of rows than there are users.
    """
    from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_schema  # type: ignore[import-not-found]

    spark = engine.session()
    bundle, schema, campaign, day = scored

    def score(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield from score_batch(batch, bundle, schema, campaign, day, stale=bool(run["stale"])).to_batches()

    with replacing(folder) as aside, engine.failing(f"{folder}: Spark could not score"):
        rows = _features(spark.read.parquet(engine.uri(snapshot)), schema)
        nobody = pa.RecordBatch.from_pylist([], to_arrow_schema(rows.schema, timezone="UTC"))
        # the path for a handful of users asks for one at least
        table = score_batch(nobody, replace(bundle, small=None), schema, campaign, day, stale=False)
        rows.mapInArrow(score, from_arrow_schema(table.schema)).write.parquet(engine.uri(aside))
        written = sum(pq.read_metadata(part).num_rows for part in aside.glob("part-*.parquet"))
        if written != run["users"]:
            raise StoreError(f"{folder}: Spark wrote {written} rows for {run['users']} users; score again")
        write_json(aside / "run.json", {**run, "done": True})


def _features(snapshot: Any, schema: FeatureSchema) -> Any:
    """user_id, event_timestamp and the features of the service, as `retrieval.latest_features` gives them."""
    types = {"numeric": "DOUBLE", "string": "STRING"}
    columns = (
        f"CAST({name if name in snapshot.columns else 'NULL'} AS {types[schema.types[name]]}) AS {name}"
        for name in schema.names
    )
    return snapshot.selectExpr("user_id", "event_timestamp", *columns)
