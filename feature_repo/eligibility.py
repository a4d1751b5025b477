"""The eligibility table in the online store: `tactful score --push` fills it, a client looks users up with Feast alone.

A LabelView, Feast's name for what is pushed and never materialized: `feast materialize-incremental` passes it by.
"""

from __future__ import annotations

from datetime import timedelta

from feast import Field, FileSource, PushSource
from feast.labeling.label_view import LabelView
from feast.types import Bool, Float64, String

from campaign import data_dir
from feature_repo.entities import user

table = FileSource(
    name="eligibility_table",
    path=str(data_dir() / "eligibility" / "*" / "*.parquet"),
    timestamp_field="event_timestamp",
    description="Eligibility of every user, written by `tactful score`.",
)

pushed = PushSource(name="eligibility_push", batch_source=table)

eligibility = LabelView(
    name="eligibility",
    entities=[user],
    source=pushed,
    # Feast serves older values too: a client compares `eligible__ts` with this
    ttl=timedelta(days=3),
    schema=[
        Field(name="eligible", dtype=Bool),
        Field(name="arm", dtype=String),
        Field(name="reason", dtype=String),
        Field(name="score", dtype=Float64),
        Field(name="model_tag", dtype=String),
    ],
    labeler_field="model_tag",
    description="Who would be eligible, for planning; whoever acts asks the service, which logs the decision.",
)
