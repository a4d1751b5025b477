"""Features computed at the moment of the request, the same offline and online.

Python mode: pandas mode costs about 10 ms more per request.
"""

import warnings
from typing import Any

from feast import Field
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, String

from feature_repo.sources import request

# Feast says so at every apply; what it says about scale is about pandas mode.
warnings.filterwarnings("ignore", "On demand feature view is an experimental feature")


@on_demand_feature_view(
    sources=[request],
    schema=[
        Field(name="hour_sin", dtype=Float64),
        Field(name="hour_cos", dtype=Float64),
        Field(name="is_evening", dtype=Float64),
        Field(name="surface_seen", dtype=String),
    ],
    mode="python",
)  # type: ignore[untyped-decorator]  # Feast has no types
def request_context(inputs: dict[str, Any]) -> dict[str, Any]:
    """Hour on the circle, evening (from 18:00 UTC), surface; null where the request did not say (-1, '')."""
    import math  # Feast stores this function by itself: it must carry what it needs

    hours = [h if h is not None and 0 <= h <= 23 else None for h in inputs["hour"]]
    return {
        "hour_sin": [None if h is None else math.sin(h * math.pi / 12) for h in hours],
        "hour_cos": [None if h is None else math.cos(h * math.pi / 12) for h in hours],
        "is_evening": [None if h is None else float(h >= 18) for h in hours],
        "surface_seen": [s or None for s in inputs["surface"]],
    }
