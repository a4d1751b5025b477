"""Every user -> eligibility table: the newest snapshot through the same engine and policy as the service.

The table says who would be eligible, for planning and for look-ups; it is not a decision. Whoever acts on a user asks
the service, which logs the decision.

    eligibility/date=YYYY-MM-DD/part-00000.parquet ...   one part per batch of users, in the order of the snapshot
    eligibility/date=YYYY-MM-DD/run.json                 what the parts were computed from; "done" once all are there
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bentos.assignment import LAYERS
from bentos.bundle import CODE, OK, Bundle, Rows, load_bundle
from bentos.engine import Decisions, decide
from campaign import Campaign, ModelError, StoreError
from feature_repo.atomic import replacing, write_json
from feature_repo.contracts import REASONS
from feature_repo.retrieval import FeatureSchema, feature_schema, latest_features, open_store
from feature_repo.snapshots import on_spark
from feature_repo.store import answering, import_feast, newest_snapshot, snapshot_file
from models.registry import model_path, required_champion

BATCH_ROWS = 32_768
PUSHED = ["user_id", "eligible", "arm", "reason", "score", "model_tag"]  # the view feature_repo.eligibility


def score_all(
    data: Path,
    campaign: Campaign,
    *,
    now: datetime,
    batch_rows: int = BATCH_ROWS,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Score every user of the newest snapshot with the champion. Resumes where a killed run stopped.

    Args:
        data: data folder; reads features/, writes eligibility/.
        campaign: arms, shares and salts.
        now: features older than their ttl by then are stale.
        batch_rows: users in memory at once.
        progress: called with (users done, users in all).

    Returns: the folder of the table.
    Raises: StoreError: there is no snapshot. ModelError: there is no champion, or it does not fit the features.
    """
    tag = required_champion()
    bundle, store = load_bundle(tag, model_path(tag), campaign), open_store()
    schema = feature_schema(store, bundle.feature_service)
    if schema.hash != bundle.schema_hash:
        raise ModelError(
            f"{tag}: trained on schema {bundle.schema_hash}, the feature store has {schema.hash}; run "
            "`feast -c feature_repo apply`, or train again with `tactful train`"
        )
    day = newest_snapshot(data / "features")
    folder = data / "eligibility" / f"date={day}"
    file = snapshot_file(store, day, schema.views)
    users = pq.read_metadata(file).num_rows
    run = {"day": str(day), "users": users, "batch_rows": batch_rows, "model": tag, "campaign": campaign.hash}
    run["stale"] = bool(schema.ttl_days) and now - _midnight(day) > timedelta(days=min(schema.ttl_days.values()))
    if on_spark():
        from bentos.spark_bulk import score_snapshot  # only here: most machines have no PySpark

        run["engine"] = "spark"
        if not is_done(folder, run):
            score_snapshot(file, folder, run, (bundle, schema, campaign, day))
        return folder
    if not _begin(folder, run):
        return folder
    done = 0
    for number, batch in enumerate(latest_features(store, day, bundle.feature_service, batch_rows)):
        part = folder / f"part-{number:05d}.parquet"
        if not part.exists():
            table = score_batch(batch, bundle, schema, campaign, day, stale=bool(run["stale"]))
            with replacing(part) as aside:
                pq.write_table(table, aside)
        done += batch.num_rows
        if progress:
            progress(done, users)
    write_json(folder / "run.json", {**run, "done": True})
    return folder


def push(folder: Path, now: datetime, progress: Callable[[int, int], None] | None = None) -> int:
    """Write a finished table to the online view `eligibility`. Goes on where a killed run stopped; once per table.

    Args:
        folder: from `score_all`.
        now: event time of what is written; Redis keeps what it has unless the time is later.
        progress: called with (users done, users in all).

    Returns: number of users written by this call.
    Raises: StoreError: the online store does not answer, or the view is not applied.
    """
    import_feast()
    from feast.errors import FeastError

    store, marker = open_store(), folder / "pushed.json"
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    before = json.loads(marker.read_text(encoding="utf-8")) if marker.exists() else {}
    parts = sorted(folder.glob("part-*.parquet"))
    state = {"run": run, "profile": os.environ.get("TACTFUL_STORE", "local"), "users": 0, "parts": 0}
    if {**before, "users": 0, "parts": 0} == state:
        state = before
    start = int(state["users"])
    for number, part in enumerate(parts[state["parts"] :], start=state["parts"]):
        frame = pq.read_table(part, columns=PUSHED).to_pandas()
        frame.insert(1, "event_timestamp", pd.Timestamp(now).as_unit("us"))
        try:
            with answering():
                store.push("eligibility_push", frame)
        except FeastError as error:
            raise StoreError(f"eligibility: {error}; run `feast -c feature_repo apply`") from error
        state = {**state, "users": state["users"] + len(frame), "parts": number + 1}
        write_json(marker, state)
        if progress:
            progress(state["users"], run["users"])
    return int(state["users"]) - start


def score_batch(
    batch: pa.RecordBatch, bundle: Bundle, schema: FeatureSchema, campaign: Campaign, day: date, *, stale: bool
) -> pa.Table:
    """One batch of features -> one row per user of the eligibility table, as the service would answer on `day`."""
    user_ids: list[str] = batch["user_id"].to_pylist()
    rows = rows_of(batch, bundle, stale=stale)
    decisions = decide(user_ids, rows, bundle, campaign.assignment, day)
    return _table(user_ids, batch["event_timestamp"], decisions, bundle)


def rows_of(batch: pa.RecordBatch, bundle: Bundle, *, stale: bool) -> Rows:
    """Features of a batch in the model's order."""
    n = batch.num_rows
    numeric = np.empty((n, len(bundle.numeric)), order="F")
    for j, name in enumerate(bundle.numeric):
        numeric[:, j] = batch[name].to_numpy(zero_copy_only=False)
    strings = np.empty((n, len(bundle.strings)), dtype=object, order="F")
    for j, name in enumerate(bundle.strings):
        strings[:, j] = _decoded(batch[name])
    at = batch["event_timestamp"].cast(pa.int64()).to_numpy(zero_copy_only=False)
    return Rows(numeric, strings, np.full(n, CODE["stale_features"] if stale else OK), at)


def _decoded(column: pa.Array) -> np.ndarray:
    """Strings as objects with None; each distinct value becomes one Python object."""
    coded = column.dictionary_encode()
    values = np.array([*coded.dictionary.to_pylist(), None], dtype=object)
    return np.asarray(values[coded.indices.fill_null(len(values) - 1).to_numpy()])


def _table(user_ids: list[str], at: pa.Array, decisions: Decisions, bundle: Bundle) -> pa.Table:
    spec = bundle.model.spec
    known = np.isfinite(decisions.score)
    columns: dict[str, Any] = {
        "user_id": pa.array(user_ids, pa.string()),
        "event_timestamp": at,
        "eligible": pa.array(decisions.arm > 0),
        "arm": _named(spec.arms, decisions.arm),
        "reason": _named(REASONS, decisions.reason),
        "layer": _named(LAYERS, decisions.layer),
        "score": pa.array(decisions.score, mask=~known),
        "propensity": pa.array(decisions.propensities[np.arange(len(known)), decisions.arm]),
    }
    for a, arm in enumerate(spec.arms[1:]):
        for o, outcome in enumerate(spec.outcomes):
            columns[f"uplift_{arm}_{outcome.name}"] = pa.array(decisions.uplift[:, a, o], mask=~known)
    columns["model_tag"] = pa.array([bundle.tag] * len(known), pa.string())
    return pa.table(columns)


def _named(names: tuple[str, ...], codes: np.ndarray) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), pa.array(names)).cast(pa.string())


def _begin(folder: Path, run: dict[str, Any]) -> bool:
    """Make the folder ready for this run; False when it was done before. Parts of another run are removed."""
    if is_done(folder, run):
        return False
    if _before(folder) != run:
        if folder.exists():
            shutil.rmtree(folder)
        write_json(folder / "run.json", run)
    return True


def is_done(folder: Path, run: dict[str, Any]) -> bool:
    """Whether the folder holds the whole table of this run."""
    return bool(_before(folder) == {**run, "done": True})


def _before(folder: Path) -> Any:
    manifest = folder / "run.json"
    return json.loads(manifest.read_text(encoding="utf-8")) if manifest.exists() else {}


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
