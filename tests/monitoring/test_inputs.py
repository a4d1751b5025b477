from datetime import UTC, date, datetime

from monitoring.inputs import moving_features

NAMES = ["plan", "minutes_7d", "minutes_90d", "days_since_session", "subscribed_ever", "account_age_days"]


def test_moving_features_grow_while_logs_are_young():
    """What counts over 90 days or over all time moves by itself until there are 90 days of logs."""
    first = datetime(2026, 6, 1, tzinfo=UTC)
    assert moving_features(NAMES, first, date(2026, 5, 1)) == [
        "account_age_days",
        "minutes_90d",
        "days_since_session",
        "subscribed_ever",
    ]
    assert moving_features(NAMES, first, date(2026, 1, 1)) == ["account_age_days"]
