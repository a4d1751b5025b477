"""The point-in-time join on Spark is Feast's, on the tables of the local join's tests."""

from __future__ import annotations

import pytest
from feast import FeatureStore
from test_feature_asof import ask, entity_rows, make_store

SPARK = "feature_repo.spark_join.AsofSparkOfflineStore"


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[FeatureStore, FeatureStore]:
    folder = tmp_path_factory.mktemp("asof")
    return make_store(folder / "feast", "duckdb", 1), make_store(folder / "spark", SPARK, 1)


CHANGES = {
    "created": lambda rows: rows,
    "zone": lambda rows: rows.assign(event_timestamp=rows["event_timestamp"].dt.tz_convert("Europe/Berlin")),
    "naive": lambda rows: rows.assign(event_timestamp=rows["event_timestamp"].dt.tz_localize(None)),
    "no key": lambda rows: rows.assign(user=rows["user"].where(rows["row"] % 9 > 0, None)),
}


@pytest.mark.parametrize(("change", "created_filter"), [("created", False), *((name, True) for name in CHANGES)])
def test_spark_join_equals_feast(stores: tuple[FeatureStore, FeatureStore], change: str, created_filter: bool) -> None:
    entities = CHANGES[change](entity_rows(1))
    expected, found = (ask(store, entities.copy(), created_filter) for store in stores)
    assert found.schema == expected.schema
    assert found.num_rows == len(entities)
    for name in expected.column_names:
        assert found[name].to_pylist() == expected[name].to_pylist(), name
    assert 50 < found["long__n"].null_count < 450


def test_spark_join_as_a_frame_of_pandas(stores: tuple[FeatureStore, FeatureStore]) -> None:
    jobs = (store.get_historical_features(entity_rows(1), ["long:n", "pair:x"]) for store in stores)
    local, spark = (job.to_df().sort_values("row", ignore_index=True) for job in jobs)
    assert spark["event_timestamp"].dt.tz is not None
    for name in local.columns:
        assert spark[name].isna().tolist() == local[name].isna().tolist(), name
        assert spark[name].dropna().tolist() == local[name].dropna().tolist(), name
