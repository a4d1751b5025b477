"""Feast's DuckDB offline store, without the pages of warnings that Feast 0.67 prints around it.

Feast imports this module wherever it opens the store, so what is set here holds for its own commands too.
"""

import atexit
import warnings
from typing import Literal

import ibis
from feast.infra.offline_stores.duckdb import DuckDBOfflineStore, DuckDBOfflineStoreConfig


class QuietDuckDBOfflineStoreConfig(DuckDBOfflineStoreConfig):
    """`offline_store` of feature_store.yaml."""

    type: Literal["feature_repo.offline.QuietDuckDBOfflineStore"] = "feature_repo.offline.QuietDuckDBOfflineStore"


class QuietDuckDBOfflineStore(DuckDBOfflineStore):
    """The very same store."""


def _close() -> None:
    """Let go of DuckDB before Python does, or it lists every object it thinks was leaked."""
    if ibis.options.default_backend is not None:
        ibis.options.default_backend.disconnect()
        ibis.options.default_backend = None


atexit.register(_close)
warnings.filterwarnings("ignore", "fetch_arrow_table", DeprecationWarning)  # ibis 12 with DuckDB 2
