"""The features, as SQL: raw logs -> daily aggregates per user -> features of (user, day) as known at a moment.

Written for DuckDB. Each log is read and added up once; what is late or repeated is looked at apart from the rest.

Days are UTC dates. An event of `day` that had `arrived` belongs to the features of day D as known at K when day < D and
arrived < K. The snapshot of day D is K = D; a correction is the same query with a later K.

    target                one row per (user, D, K) wanted, with the version of the profile known then
    daily_<log>         one row per user, day and arrival day
    features            the rows of target, with the values of COLUMNS

Windows of W days are [D - W, D). Sums are taken over whole numbers (minutes in 1e-6), so they are the same in any order
of addition, on any engine and in any chunk of days; as doubles, for DuckDB keeps twice as much for a sum of BIGINT.
"""

LOOKBACK_DAYS = 90
"""Sessions and messages older than this are forgotten: counts and recencies read no further back."""

CORRECTION_DAYS = 3
"""A late event corrects the snapshots of the day it arrived on and of this many days before."""

EVENING_HOUR = 18
"""Evening is [18:00, 24:00) UTC."""


def first_copies(table: str, key: str) -> str:
    """Rows of a log, each event once: at-least-once delivery, and of the copies the first that arrived counts.

    Only rows whose key is met twice (or shares its hash with another) are sorted: a third of the time of sorting all.
    """
    return f"""(
    WITH repeated AS MATERIALIZED (SELECT hash({key}) AS h FROM {table} GROUP BY h HAVING count(*) > 1)
    SELECT * FROM {table} ANTI JOIN repeated ON hash({key}) = repeated.h
    UNION ALL
    SELECT * FROM {table} SEMI JOIN repeated ON hash({key}) = repeated.h
    QUALIFY row_number() OVER (PARTITION BY {key} ORDER BY created_timestamp, event_timestamp) = 1)"""


def _date(moment: str) -> str:
    """UTC date of an instant, by whole numbers: casting a timestamp with a time zone takes seven times as long."""
    return f"(DATE '1970-01-01' + (epoch_us({moment}) // 86400000000)::INTEGER)"


# A clock that runs ahead may date an event after its arrival; it is known only once both are past.
_DAYS = f"{_date('event_timestamp')} AS day, {_date('greatest(event_timestamp, created_timestamp)')} AS arrived"

USERS = """
CREATE TABLE codes AS
SELECT user_id, row_number() OVER (ORDER BY user_id)::INTEGER AS code FROM (SELECT DISTINCT user_id FROM raw_users)
"""

PROFILES = f"""
CREATE TABLE profiles AS
SELECT code, row_number() OVER (PARTITION BY code ORDER BY event_timestamp)::INTEGER AS version, {_DAYS},
       plan, country, device, age_band, epoch_us(signup_at) AS signup_us
FROM {first_copies("raw_users", "user_id, event_timestamp")} JOIN codes USING (user_id)
"""

DAILY_SESSIONS = f"""
CREATE TABLE daily_sessions AS
WITH daily AS MATERIALIZED (
    SELECT code, {_DAYS}, count(*)::DOUBLE AS sessions, sum(round(minutes * 1e6)) AS minutes_e6,
           sum(tracks::DOUBLE) AS tracks, sum(skips::DOUBLE) AS skips, sum(ads::DOUBLE) AS ads,
           (count(*) FILTER (WHERE epoch_us(event_timestamp) // 3600000000 % 24 >= {EVENING_HOUR}))::DOUBLE AS evening,
           (count(*) FILTER (WHERE (epoch_us(event_timestamp) // 86400000000 + 3) % 7 >= 5))::DOUBLE AS weekend,
           max(epoch_us(event_timestamp)) AS last_us
    FROM {first_copies("raw_sessions", "session_id")} JOIN codes USING (user_id)
    GROUP BY code, day, arrived),
late AS (  -- what arrives on its own day is the first of it; only the other days must be looked at
    SELECT code, day, min(arrived) AS first_arrived
    FROM daily SEMI JOIN (FROM daily WHERE day < arrived) AS waited USING (code, day) GROUP BY code, day)
SELECT daily.*, coalesce(arrived = first_arrived, true)::INTEGER::DOUBLE AS first_of_day
FROM daily LEFT JOIN late USING (code, day)
"""

DAILY_MESSAGES = f"""
CREATE TABLE daily_messages AS
SELECT code, {_DAYS}, count(*)::DOUBLE AS messages,
       (count(*) FILTER (WHERE action = 'clicked'))::DOUBLE AS clicks,
       (count(*) FILTER (WHERE action = 'dismissed'))::DOUBLE AS dismissals,
       max(epoch_us(event_timestamp)) AS last_us,
       max(epoch_us(event_timestamp)) FILTER (WHERE action = 'dismissed') AS last_dismissal_us
FROM {first_copies("raw_messages", "message_id")} JOIN codes USING (user_id)
GROUP BY code, day, arrived
"""

DAILY_SUBSCRIPTIONS = f"""
CREATE TABLE daily_subscriptions AS
SELECT code, {_DAYS},
       (count(*) FILTER (WHERE event = 'start'))::DOUBLE AS starts,
       (count(*) FILTER (WHERE event = 'cancel'))::DOUBLE AS cancels,
       max(epoch_us(event_timestamp)) AS last_us
FROM {first_copies("raw_subscriptions", "subscription_event_id")} JOIN codes USING (user_id)
GROUP BY code, day, arrived
"""

# Snapshots of the days $first..$last, and the corrections made at the end of the day before each of them.
ASOF = f"""
CREATE OR REPLACE TABLE target AS
WITH late AS (
    SELECT code, day, arrived FROM daily_sessions WHERE day < arrived
    UNION ALL SELECT code, day, arrived FROM daily_messages WHERE day < arrived
    UNION ALL SELECT code, day, arrived FROM daily_subscriptions WHERE day < arrived
    UNION ALL SELECT code, day, arrived FROM profiles WHERE day < arrived),
wanted AS (
    SELECT code, day, day AS known
    FROM codes, (SELECT unnest(generate_series($first::DATE, $last::DATE, INTERVAL 1 DAY))::DATE AS day)
    UNION ALL
    SELECT DISTINCT code, arrived - back AS day, arrived + 1 AS known
    FROM late, (SELECT unnest(range({CORRECTION_DAYS + 1}))::INTEGER AS back)
    WHERE arrived BETWEEN $first::DATE - 1 AND $last::DATE - 1
      AND late.day < arrived - back AND arrived - back >= $first_ever::DATE)
SELECT row_number() OVER (ORDER BY known, wanted.day, code)::INTEGER AS row, code, wanted.day, known,
       max(version) AS version
FROM wanted JOIN profiles USING (code)
WHERE profiles.day < wanted.day AND profiles.arrived < known
GROUP BY code, wanted.day, known
"""


def _totals(log: str, days: int | None, totals: str) -> str:
    """Totals per row of target over the last `days` days (None: over all time)."""
    window = f"AND e.day >= target.day - {days}" if days else ""
    return f"""(SELECT row, {totals} FROM target JOIN daily_{log} AS e
    ON e.code = target.code AND e.day < target.day AND e.arrived < target.known {window} GROUP BY row)"""


# One query per window, without FILTER: 2.5 times faster than all windows in one.
_TOTALS = (
    _totals(
        "sessions",
        7,
        "sum(sessions) AS sessions_7, sum(minutes_e6) AS minutes_7, sum(tracks) AS tracks_7, sum(skips) AS skips_7, "
        "sum(ads) AS ads_7, sum(first_of_day) AS active_7",
    ),
    _totals(
        "sessions",
        28,
        "sum(sessions) AS sessions_28, sum(minutes_e6) AS minutes_28, sum(tracks) AS tracks_28, "
        "sum(skips) AS skips_28, sum(ads) AS ads_28, sum(first_of_day) AS active_28, "
        "sum(evening) AS evening_28, sum(weekend) AS weekend_28",
    ),
    _totals("sessions", LOOKBACK_DAYS, "sum(minutes_e6) AS minutes_90, max(last_us) AS session_us"),
    _totals("messages", 7, "sum(messages) AS messages_7"),
    _totals("messages", 28, "sum(messages) AS messages_28, sum(clicks) AS clicks_28, sum(dismissals) AS dismissals_28"),
    _totals(
        "messages",
        LOOKBACK_DAYS,
        "sum(messages) AS messages_90, sum(dismissals) AS dismissals_90, max(last_us) AS message_us, "
        "max(last_dismissal_us) AS dismissal_us",
    ),
    _totals("subscriptions", LOOKBACK_DAYS, "sum(starts) AS starts_90, sum(cancels) AS cancels_90"),
    _totals("subscriptions", None, "sum(starts) AS starts, max(last_us) AS subscription_us"),
)


def _count(value: str) -> str:
    """A sum over no rows is 0."""
    return f"coalesce({value}, 0)"


def _share(part: str, whole: str) -> str:
    """A share, rate or trend over no rows is null."""
    return f"{part} / nullif({whole}, 0)"


def _days_since(value_us: str) -> str:
    """Days from an instant to the snapshot's midnight; null when there is no such instant."""
    return f"(epoch_us(target.day::TIMESTAMP) - {value_us})::DOUBLE / 86400e6"


COLUMNS: dict[str, str] = {
    "plan": "plan",
    "country": "country",
    "device": "device",
    "age_band": "age_band",
    "account_age_days": _days_since("signup_us"),
    "sessions_7d": _count("sessions_7"),
    "minutes_7d": f"{_count('minutes_7')} / 1e6",
    "tracks_7d": _count("tracks_7"),
    "ads_7d": _count("ads_7"),
    "active_days_7d": _count("active_7"),
    "skip_rate_7d": _share("skips_7", "tracks_7"),
    "sessions_28d": _count("sessions_28"),
    "minutes_28d": f"{_count('minutes_28')} / 1e6",
    "ads_28d": _count("ads_28"),
    "active_days_28d": _count("active_28"),
    "skip_rate_28d": _share("skips_28", "tracks_28"),
    "evening_share_28d": _share("evening_28", "sessions_28"),
    "weekend_share_28d": _share("weekend_28", "sessions_28"),
    "days_since_session": _days_since("session_us"),
    "minutes_trend": _share("coalesce(minutes_7, 0) * 4", "minutes_28"),
    "minutes_90d": f"{_count('minutes_90')} / 1e6",
    "subscribed_ever": "(coalesce(starts, 0) > 0)::DOUBLE",
    "starts_90d": _count("starts_90"),
    "cancels_90d": _count("cancels_90"),
    "days_since_subscription_event": _days_since("subscription_us"),
    "messages_7d": _count("messages_7"),
    "messages_28d": _count("messages_28"),
    "messages_90d": _count("messages_90"),
    "clicks_28d": _count("clicks_28"),
    "dismissals_28d": _count("dismissals_28"),
    "dismissal_rate_90d": _share("dismissals_90", "messages_90"),
    "days_since_message": _days_since("message_us"),
    "days_since_dismissal": _days_since("dismissal_us"),
}
"""Each column of a snapshot and its definition; counts, rates and days are Float64, the rest strings."""

FEATURES = f"""
CREATE OR REPLACE TABLE features AS
SELECT user_id, target.day::TIMESTAMP AT TIME ZONE 'UTC' AS event_timestamp,
       known::TIMESTAMP AT TIME ZONE 'UTC' AS created_timestamp,
       {", ".join(f"{expression} AS {name}" for name, expression in COLUMNS.items())}, row, target.day, known
FROM target JOIN codes USING (code) JOIN profiles ON profiles.code = target.code AND profiles.version = target.version
{"".join(f"LEFT JOIN {totals} USING (row) " for totals in _TOTALS)}
"""
