"""The raw logs as they are now: tables mapped by logs.toml brought in first, then their first and last day."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from campaign import data_dir, load_campaign
from monitoring.terminal import bar, err


def bring() -> None:
    """data/logs follows the tables that logs.toml maps; where it maps none, nothing happens."""
    from feature_repo.log_map import load_log_map
    from feature_repo.own_logs import bring_logs

    log_map = load_log_map()
    if not log_map.tables:
        return
    with bar("reading your logs") as progress:
        count = bring_logs(data_dir(), log_map, load_campaign().arm_names, progress)
    if count:
        err.print(f"logs.toml: {count} new or changed files read", style="dim")


def first_and_last() -> tuple[date, date]:
    """First and last day of raw logs (DataError: there are none)."""
    from feature_repo.contracts import LOGS
    from feature_repo.log_files import log_days

    bring()
    return log_days(data_dir() / "logs", LOGS)


def end() -> datetime:
    """Midnight UTC after the last day of raw logs: everything in them was known by then."""
    return datetime.combine(first_and_last()[1] + timedelta(days=1), datetime.min.time(), UTC)
