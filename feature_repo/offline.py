"""Feast's DuckDB offline store with one ASOF join per source instead of one inequality join per feature view.

Feast 0.67 joins every view by inequality and numbers the rows that match (docs/benchmarks.md compares). The views of
one source differ only in which columns they take and how long these are good, so here a source is read and joined once:
by keys and times alone, and the features of the rows that were found are fetched afterwards, so that no feature is
sorted or kept in memory for nothing. What is returned is what Feast's own store returns, and what this join does not
cover is left to it.
"""

import atexit
import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import ibis
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureView, FileSource, RepoConfig
from feast.data_format import ParquetFormat
from feast.infra.offline_stores.duckdb import DuckDBOfflineStore, DuckDBOfflineStoreConfig, _read_data_source
from feast.infra.offline_stores.offline_store import RetrievalJob
from feast.infra.offline_stores.offline_utils import infer_event_timestamp_from_entity_df
from feast.infra.registry.base_registry import BaseRegistry
from ibis.expr.types import Table, Value

from feature_repo.duck import QUIET

ROW = "__row"


class AsofDuckDBOfflineStoreConfig(DuckDBOfflineStoreConfig):
    """`offline_store` of feature_store.yaml."""

    type: Literal["feature_repo.offline.AsofDuckDBOfflineStore"] = "feature_repo.offline.AsofDuckDBOfflineStore"
    memory_limit: str = "2GB"
    """Of DuckDB; what does not fit is spilled to the temporary folder."""


class AsofDuckDBOfflineStore(DuckDBOfflineStore):
    """Point-in-time joins by ASOF join; everything else is Feast's DuckDB store."""

    @staticmethod
    def get_historical_features(  # type: ignore[override]  # Feast's own DuckDB store narrows it the same way
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
    ) -> RetrievalJob:
        """Features as known at each row's event timestamp; executed when the job is asked for its rows."""
        ibis.get_backend().raw_sql(QUIET)  # Feast's rows come through Ibis' default
        ours = all(is_parquet(view.batch_source) for view in feature_views)
        asked = (config, [] if ours else feature_views, feature_refs, entity_df, registry, project)
        flags = (full_feature_names, filter_by_created_timestamp)
        job: Any = DuckDBOfflineStore.get_historical_features(*asked, *flags)  # of no view: its join takes a second
        if ours:
            views = [asked_of(view, feature_refs, full_feature_names) for view in feature_views]
            # Feast has by now parsed text timestamps in place.
            when = infer_event_timestamp_from_entity_df(dict(zip(entity_df.columns, entity_df.dtypes, strict=True)))
            _limit_memory(getattr(config.offline_store, "memory_limit", "2GB"))
            engine = Engine(lambda source: _read(source, str(config.repo_path)), _asof)
            entities, reach = ibis.memtable(entity_df), _reach(entity_df, when, views)
            job.table = join(entities, when, views, filter_by_created_timestamp, engine, reach)
        return job  # type: ignore[no-any-return]


def _limit_memory(limit: str) -> None:
    con: Any = ibis.get_backend()
    con.raw_sql(f"SET memory_limit = '{limit}'")
    if con.raw_sql("SELECT current_setting('temp_directory')").fetchone() == (".tmp",):  # DuckDB's own, in any folder
        spill = f"{tempfile.gettempdir()}/tactful-duckdb-{os.getpid()}".replace("'", "''")
        con.raw_sql(f"SET temp_directory = '{spill}'")


def _read(source: FileSource, repo_path: str) -> Table:
    """The rows of a source, with a number of their own where the files are here."""
    if "://" in source.path:
        return _read_data_source(source, repo_path)
    path = str(Path(repo_path, source.path)).replace("'", "''")
    name, con = f"rows_{hashlib.sha256(path.encode()).hexdigest()[:16]}", cast(Any, ibis.get_backend())
    numbered = f"SELECT *, (file_index::BIGINT << 40) + file_row_number AS {ROW} FROM read_parquet('{path}')"
    con.raw_sql(f"CREATE OR REPLACE TEMP VIEW {name} AS {numbered}")
    return cast(Table, con.table(name))


class Asked(NamedTuple):
    """What is wanted of one view: `keys` source -> entity column, `columns` source column -> name in the answer."""

    source: FileSource
    keys: dict[str, str]
    columns: dict[str, str]
    ttl: timedelta | None


class Reach(NamedTuple):
    """First and last time of the entity rows, and of their keys that are text: what lies outside need not be read.

    Snapshots are ordered by user, so of a range of users Parquet's own limits leave few row groups.
    """

    times: tuple[datetime, datetime]
    keys: dict[str, tuple[str, str]]


def _reach(entities: pd.DataFrame, when: str, views: list[Asked]) -> Reach | None:
    times = pd.to_datetime(entities[when].dropna(), utc=True)
    if times.empty:
        return None
    keys = {}
    for name in {entity for view in views for entity in view.keys.values()} & {*entities.columns}:
        values = pa.array(entities[name], from_pandas=True)
        if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
            limits = pc.min_max(values)
            keys[name] = (limits["min"].as_py(), limits["max"].as_py())
    return Reach((times.min().to_pydatetime(), times.max().to_pydatetime()), keys)


class Engine(NamedTuple):
    """What engines do in their own way.

    `read` gives the rows of a source; where they have a column ROW that is another number for each, the same in every
    query, features are fetched by it after the join. `newest` joins to each row of the first table the newest of the
    second with the same keys (column of the first -> of the second) whose last argument's column is not after the
    fourth's.
    """

    read: Callable[[FileSource], Table]
    newest: Callable[[Table, Table, dict[str, str], str, str], Table]


def is_parquet(source: Any) -> bool:
    """Whether a source is Parquet files, which DuckDB reads itself."""
    return isinstance(source, FileSource) and (
        isinstance(source.file_format, ParquetFormat)
        or (source.file_format is None and source.path.endswith(".parquet"))
    )


def asked_of(view: Any, refs: Sequence[str], full_names: bool) -> Asked:
    """What the references ask of one view."""
    prefix = f"{view.projection.name_to_use()}:"
    names = [ref.removeprefix(prefix) for ref in refs if ref.startswith(prefix)]
    label = f"{view.projection.name_alias or view.name}__" if full_names else ""
    keys = view.projection.join_key_map or {column.name: column.name for column in view.entity_columns}
    return Asked(view.batch_source, keys, {name: label + name for name in names}, view.ttl or None)


def join(
    entities: Table, when: str, views: list[Asked], created_filter: bool, engine: Engine, reach: Reach | None = None
) -> Table:
    """Entity rows with the columns asked for, in Feast's order: those of the entities, then view by view.

    What is not in `reach` is not read.
    """
    groups: list[list[Asked]] = []  # views answered by one join
    for view in views:
        group = next((g for g in groups if (g[0].source, g[0].keys) == (view.source, view.keys)), [])
        if not group:
            groups.append(group)
        group.append(view)
    ours = "__"  # begins the columns of this join, and none that was given
    while any(name.startswith(ours) for name in entities.columns):
        ours += "_"
    joined, fetched, good_for = entities, [], {}
    for number, group in enumerate(groups):
        prefix, view = f"{ours}{number}_", group[0]
        columns = sorted({column for view in group for column in view.columns})
        rows = _known(engine.read(view.source), view, columns, created_filter, prefix)
        keys = {entity: prefix + key for key, entity in view.keys.items()}
        longest = _longest(group)
        rows = _within(rows, reach, longest, keys, prefix) if reach else rows
        if prefix + ROW in rows.columns:
            fetched.append((prefix + ROW, rows.select(prefix + ROW, *(prefix + column for column in columns))))
            rows = rows.drop(*(prefix + column for column in columns))
            good_for[prefix] = longest
        joined = engine.newest(joined, _ever_newest(rows, list(keys.values()), prefix), keys, when, f"{prefix}known")
    if fetched:  # first all joins of keys, then the features of the rows that are good for one view at least
        joined = joined.mutate(
            **{p + ROW: _while_good(joined[p + ROW], joined, when, p, ttl) for p, ttl in good_for.items()}
        )
    for row, features in fetched:
        joined = joined.left_join(features, [(row, row)], rname="{name}_again")
    prefix_of = {id(view): f"{ours}{number}_" for number, group in enumerate(groups) for view in group}
    features = []
    for view in views:
        prefix = prefix_of[id(view)]
        ttl = None if good_for.get(prefix) == view.ttl else view.ttl
        for column, name in view.columns.items():
            features.append(_while_good(joined[prefix + column], joined, when, prefix, ttl).name(name))
    return joined.select([joined[name] for name in entities.columns] + features)


def _longest(group: list[Asked]) -> timedelta | None:
    ttls = [view.ttl for view in group if view.ttl]
    return max(ttls) if len(ttls) == len(group) else None


def _while_good(value: Value, joined: Table, when: str, prefix: str, ttl: timedelta | None) -> Value:
    """Null where the newest row has expired, for then so have all before it."""
    return ibis.ifelse(joined[f"{prefix}ts"] + _fixed(ttl) >= joined[when], value, None) if ttl else value


def _fixed(ttl: timedelta) -> Value:
    """A span of microseconds: of days, DuckDB asks a calendar row by row, and Ibis takes no days with hours."""
    return ibis.interval(microseconds=ttl // timedelta(microseconds=1))


def _asof(entities: Table, history: Table, keys: dict[str, str], when: str, known: str) -> Table:
    same = [entities[entity] == history[key] for entity, key in keys.items()]
    return entities.asof_join(history, on=entities[when] >= history[known], predicates=same)


def _known(table: Table, view: Asked, columns: list[str], created_filter: bool, prefix: str) -> Table:
    """Rows of a source, each `known` from some moment on: with the created filter once it is past and created."""
    source = view.source
    table = table.rename({new: old for old, new in source.field_mapping.items() if old in table.columns})
    ts = table[source.timestamp_field].cast("timestamp('UTC')")
    created = table[source.created_timestamp_column].cast("timestamp('UTC')") if source.created_timestamp_column else ts
    numbered = [ROW] if ROW in table.columns else []
    table = table.select(
        **{prefix + name: table[name] for name in [*view.keys, *columns, *numbered]},
        **{
            f"{prefix}ts": ts,
            f"{prefix}created": created,
            f"{prefix}known": ibis.greatest(ts, created) if created_filter else ts,
        },
    )
    return table.drop_null([f"{prefix}ts", *([f"{prefix}created"] if created_filter else [])], how="any")


def _within(rows: Table, reach: Reach, longest: timedelta | None, keys: dict[str, str], prefix: str) -> Table:
    """Rows that are good for somebody at some time: one that has expired hides nothing but others that have."""
    ts, (first, last) = rows[f"{prefix}ts"], reach.times
    inside = [ts <= ibis.literal(last)]
    if longest:
        inside.append(ts >= ibis.literal(first - longest))
    for entity, key in keys.items():
        if entity in reach.keys and rows[key].type().is_string():
            inside.append(rows[key].between(*reach.keys[entity]))
    return rows.filter(inside)


def _ever_newest(rows: Table, keys: list[str], prefix: str) -> Table:
    """Rows that were at some time the newest known of their key.

    A row that comes late, when a later event is known already, never becomes the newest; of rows with one event time
    the last created one does.
    """
    ts, created, known = (rows[prefix + name] for name in ("ts", "created", "known"))
    order = {"group_by": keys, "order_by": [known, ts, created.asc(nulls_first=True)]}
    newest, following = prefix + "newest", prefix + "next"
    # named first: in a filter they would become QUALIFY, which is not translated well for Spark
    rows = rows.mutate(
        **{
            newest: ts.max().over(ibis.window(**order, following=0)),
            following: known.lead().over(ibis.window(**order)),
        }
    )
    last_of_its_moment = rows[following].isnull() | (rows[following] != rows[f"{prefix}known"])
    kept = rows.filter((rows[f"{prefix}ts"] == rows[newest]) & last_of_its_moment)
    return kept.drop(f"{prefix}created", newest, following)


def _close() -> None:
    """Let go of DuckDB before Python does, or it lists every object it thinks was leaked."""
    if ibis.options.default_backend is not None:
        ibis.options.default_backend.disconnect()
        ibis.options.default_backend = None


atexit.register(_close)
warnings.filterwarnings("ignore", "fetch_arrow_table", DeprecationWarning)  # ibis 12 with DuckDB 2
