"""Where Feast reads: the daily snapshots, and what a request brings along."""

import logging

from feast import Field, FileSource, RequestSource
from feast.types import Int64, String

from campaign import data_dir

# Feast looks for a file named with the asterisks, and warns five times that there is none.
logging.getLogger("feast.infra.offline_stores.file_source").addFilter(lambda record: "/*/*" not in record.getMessage())

snapshots = FileSource(
    name="snapshots",
    # Absolute: with DuckDB a relative path would be read from the folder a command happens to run in.
    path=str(data_dir() / "features" / "*" / "*.parquet"),
    timestamp_field="event_timestamp",
    created_timestamp_column="created_timestamp",
    description="Daily snapshots of every user and their corrections, written by `tactful features`.",
)

request = RequestSource(
    name="request",
    schema=[Field(name="hour", dtype=Int64), Field(name="surface", dtype=String)],
    description="Hour of the day, 0-23 UTC (-1: unknown), and the surface the user is on ('': unknown).",
)
