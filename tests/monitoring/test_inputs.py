from datetime import UTC, date, datetime

from monitoring.inputs import moving_features

NAMES = ["country", "minutes_7d", "minutes_90d", "days_since_session", "subscribed_ever", "account_age_days"]


def test_moving_features_grow_while_logs_are_young():
    """Sums over 90 days and recencies move by themselves until there are 90 days of logs; some features always do."""
    first, always = datetime(2026, 6, 1, tzinfo=UTC), ["subscribed_ever", "account_age_days"]
    young = moving_features(NAMES, first, date(2026, 5, 1))
    assert young == [*always, "minutes_90d", "days_since_session"]
    assert moving_features(NAMES, first, date(2026, 1, 1)) == always
