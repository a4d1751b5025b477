"""DuckDB connections that print nothing.

DuckDB draws a bar of its own into standard output, terminal or not, in every process whose main module is no file when
DuckDB is imported: `python -c`, a notebook, a spawned worker (it imports its module first). Bars are the command's.
"""

import os
from pathlib import Path
from typing import Any

import duckdb

QUIET = "SET enable_progress_bar = false"  # no setting of duckdb.connect's `config`: DuckDB refuses it there


def connect(database: Path | str = ":memory:", **config: Any) -> duckdb.DuckDBPyConnection:
    """A connection to a database, in memory if not in a file, with these settings."""
    connection = duckdb.connect(database, config=config)
    connection.execute(QUIET)
    return connection


def ran_out_of(error: Exception) -> str | None:
    """What a query failed for want of: "disk", "memory", or neither (None)."""
    told = str(error)
    if "No space left on device" in told or "failed to offload" in told:  # the latter DuckDB calls out of memory
        return "disk"
    return "memory" if isinstance(error, duckdb.OutOfMemoryException) else None


def ample_memory() -> str:
    """A `memory_limit` for one large step: 4 GB, or half of the machine's memory where that is less."""
    megabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2_000_000
    return f"{min(4000, megabytes)}MB"
