"""The point-in-time join on Spark: the expressions of offline.py, and Spark's way to find the newest row.

Feast's own Spark store wants sources of another kind, so the definitions would change with the profile, and joins every
view anew. Ibis writes Spark's SQL; only the ASOF join, which Spark has not, is written here: a row is the newest from
`known` until the next one is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import ibis
import pandas as pd
import pyarrow as pa
from feast import FeatureStore, FeatureView, FileSource, RepoConfig
from feast.infra.offline_stores.ibis import IbisRetrievalJob
from feast.infra.offline_stores.offline_store import RetrievalJob
from feast.infra.offline_stores.offline_utils import infer_event_timestamp_from_entity_df
from feast.infra.registry.base_registry import BaseRegistry
from ibis.expr.types import Table

from campaign import StoreError
from feature_repo.offline import (
    Asked,
    AsofDuckDBOfflineStore,
    AsofDuckDBOfflineStoreConfig,
    Engine,
    asked_of,
    is_parquet,
    join,
)
from feature_repo.online import UNKNOWN_HOUR, UNKNOWN_SURFACE
from feature_repo.spark import read_files, session
from feature_repo.store import feature_schema

if TYPE_CHECKING:
    from pyspark.sql import DataFrame  # type: ignore[import-not-found]


class AsofSparkOfflineStoreConfig(AsofDuckDBOfflineStoreConfig):
    """`offline_store` of feature_store.spark.yaml."""

    type: Literal["feature_repo.spark_join.AsofSparkOfflineStore"] = "feature_repo.spark_join.AsofSparkOfflineStore"  # type: ignore[assignment]


class AsofSparkOfflineStore(AsofDuckDBOfflineStore):
    """Point-in-time joins on Spark; what reads one source alone stays with DuckDB."""

    @staticmethod
    def get_historical_features(  # type: ignore[override]  # as in AsofDuckDBOfflineStore
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
        others = [view.name for view in feature_views if not is_parquet(view.batch_source)]
        if others:
            raise StoreError(f"views {others} are not of Parquet files; the Spark profile reads those alone")
        flags = (full_feature_names, filter_by_created_timestamp)
        job: Any = AsofDuckDBOfflineStore.get_historical_features(
            config, feature_views, feature_refs, entity_df, registry, project, *flags
        )
        views = [asked_of(view, feature_refs, full_feature_names) for view in feature_views]
        # Feast has by now parsed text timestamps in place.
        when = infer_event_timestamp_from_entity_df(dict(zip(entity_df.columns, entity_df.dtypes, strict=True)))
        entities = session().createDataFrame(pa.Table.from_pandas(entity_df, preserve_index=False))
        job.__class__ = SparkRetrievalJob
        job.table = _joined(entities, when, views, filter_by_created_timestamp)
        return job  # type: ignore[no-any-return]


class SparkRetrievalJob(IbisRetrievalJob):
    """Feast's job over a Spark frame; Ibis would give times without their zone."""

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        return self.table.toArrow()

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        found: pd.DataFrame = self._to_arrow_internal().to_pandas()
        return found


def historical_features(store: FeatureStore, entities: DataFrame, service: str = "uplift_v1") -> DataFrame:
    """`retrieval.historical_features` for rows on Spark: nothing passes through this process.

    Args:
        store: an applied feature store, of any profile.
        entities: user_id, event_timestamp, and hour and surface of the request, null where unknown; others are kept.
        service: name of the feature service.

    Returns: the columns given, then one for each feature of the service; the order of rows is Spark's.
    """
    schema = feature_schema(store, service)
    refs = [f"{view}:{name}" for name, view in schema.views.items()]
    views = [asked_of(store.get_feature_view(view), refs, False) for view in dict.fromkeys(schema.views.values())]
    request = (
        f"coalesce(CAST(hour AS BIGINT), {UNKNOWN_HOUR}) AS __hour",
        f"coalesce(surface, '{UNKNOWN_SURFACE}') AS __surface",
    )
    joined = _joined(entities.selectExpr("*", *request), "event_timestamp", views, True)
    types = {"numeric": "DOUBLE", "string": "STRING"}
    from_request = {name: schema.types[name] for name in schema.names if name not in schema.views}
    added = (f"CAST(NULL AS {types[kind]}) AS {name}" for name, kind in from_request.items())
    udfs = _request_functions(store, set(from_request))
    found = joined.mapInArrow(
        lambda batches: _with_request(batches, udfs, from_request), joined.selectExpr("*", *added).schema
    )
    typed = (f"CAST({name} AS {types[schema.types[name]]}) AS {name}" for name in schema.names)
    return found.selectExpr(*entities.columns, *typed)


def _request_functions(store: FeatureStore, names: set[str]) -> list[Callable[[Any], Any]]:
    """The functions of the on-demand views that give these features."""
    views: list[Any] = store.list_on_demand_feature_views()
    return [view.feature_transformation.udf for view in views if names & {field.name for field in view.features}]


def _with_request(
    batches: Iterator[pa.RecordBatch], udfs: list[Callable[[Any], Any]], kinds: dict[str, str]
) -> Iterator[pa.RecordBatch]:
    """Append the features computed from the request, as Feast's on-demand views do."""
    for batch in batches:
        asked = {"hour": batch["__hour"].to_pylist(), "surface": batch["__surface"].to_pylist()}
        answers: dict[str, Any] = {}
        for udf in udfs:
            answers |= udf(asked)
        for name, kind in kinds.items():
            values = pa.array(answers[name], pa.string() if kind == "string" else pa.float64())
            batch = batch.append_column(name, values)
        yield batch


def _joined(entities: DataFrame, when: str, views: list[Asked], created_filter: bool) -> DataFrame:
    spark = entities.sparkSession
    tables: Any = ibis.pyspark.connect(spark)

    def read(source: FileSource) -> Table:
        read_files(spark, source.path).createOrReplaceTempView(f"source_{source.name}")
        return tables.table(f"source_{source.name}")

    entities.createOrReplaceTempView("entities")
    plan = join(tables.table("entities"), when, views, created_filter, Engine(read, _newest))
    return spark.sql(tables.compile(plan))


def _newest(entities: Table, history: Table, keys: dict[str, str], when: str, known: str) -> Table:
    until = f"{known}_until"
    window = ibis.window(group_by=list(keys.values()), order_by=known)
    history = history.mutate(**{until: history[known].lead().over(window)})
    same = [entities[entity] == history[key] for entity, key in keys.items()]
    current = history[until].isnull() | (entities[when] < history[until])
    return entities.left_join(history, [*same, entities[when] >= history[known], current])
