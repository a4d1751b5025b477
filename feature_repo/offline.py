"""Feast's DuckDB offline store, with its connection in UTC.

DuckDB takes its time zone from the machine, and Feast compares local times when it materializes: outside UTC the day's
rows would be missed without a word.
"""

import atexit
import warnings
from typing import Literal

import ibis
from feast.infra.offline_stores.duckdb import DuckDBOfflineStore, DuckDBOfflineStoreConfig


class UtcDuckDBOfflineStoreConfig(DuckDBOfflineStoreConfig):
    """`offline_store` of feature_store.yaml."""

    type: Literal["feature_repo.offline.UtcDuckDBOfflineStore"] = "feature_repo.offline.UtcDuckDBOfflineStore"


class UtcDuckDBOfflineStore(DuckDBOfflineStore):
    """The very same store; this module prepares the connection that it uses."""


def _close() -> None:
    """Let go of DuckDB before Python does, or it prints a page about leaked objects."""
    ibis.get_backend().disconnect()
    ibis.options.default_backend = None


ibis.get_backend().raw_sql("SET TimeZone = 'UTC'")
atexit.register(_close)
warnings.filterwarnings("ignore", "fetch_arrow_table", DeprecationWarning)  # ibis 12 with DuckDB 2
