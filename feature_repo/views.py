"""Feature views: what is known of a user, in groups that expire together. Definitions of the values: aggregates.py.

A user has a row every day, so a value older than `ttl` means that the snapshots stopped: it is then null, not stale.
"""

from datetime import timedelta

from feast import FeatureView, Field
from feast.types import Float64, PrimitiveFeastType, String

from feature_repo.entities import user
from feature_repo.sources import snapshots


def _fields(dtype: PrimitiveFeastType, *names: str) -> list[Field]:
    return [Field(name=name, dtype=dtype) for name in names]


user_profile = FeatureView(
    name="user_profile",
    entities=[user],
    source=snapshots,
    ttl=timedelta(days=14),
    schema=[
        *_fields(String, "plan", "country", "device", "age_band"),
        *_fields(Float64, "account_age_days"),
    ],
)

activity_7d = FeatureView(
    name="activity_7d",
    entities=[user],
    source=snapshots,
    ttl=timedelta(days=3),
    schema=_fields(
        Float64,
        "sessions_7d",
        "minutes_7d",
        "tracks_7d",
        "ads_7d",
        "active_days_7d",
        "skip_rate_7d",
    ),
)

activity_28d = FeatureView(
    name="activity_28d",
    entities=[user],
    source=snapshots,
    ttl=timedelta(days=3),
    schema=_fields(
        Float64,
        "sessions_28d",
        "minutes_28d",
        "ads_28d",
        "active_days_28d",
        "skip_rate_28d",
        "evening_share_28d",
        "weekend_share_28d",
        "days_since_session",
        "minutes_trend",
        "minutes_90d",
    ),
)

subscription_history = FeatureView(
    name="subscription_history",
    entities=[user],
    source=snapshots,
    ttl=timedelta(days=3),
    schema=_fields(
        Float64,
        "subscribed_ever",
        "starts_90d",
        "cancels_90d",
        "days_since_subscription_event",
    ),
)

message_history = FeatureView(
    name="message_history",
    entities=[user],
    source=snapshots,
    ttl=timedelta(days=3),
    schema=_fields(
        Float64,
        "messages_7d",
        "messages_28d",
        "messages_90d",
        "clicks_28d",
        "dismissals_28d",
        "dismissal_rate_90d",
        "days_since_message",
        "days_since_dismissal",
    ),
)
