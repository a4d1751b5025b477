"""What raw logs and decision logs must look like, and letting new log files in.

    logs/<table>/date=YYYY-MM-DD/*.parquet    `date` is the UTC date of arrival, so a closed day never changes

`ingest` checks each file once. A bad file is moved to the quarantine, beside a .txt that says why; what stays under
logs/ is whole and checked.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from campaign import DataError
from feature_repo import checks
from feature_repo.atomic import write_json, write_text
from feature_repo.checks import Column, Contract, check_file
from feature_repo.log_files import log_files, stamp_of

__all__ = ["DECISIONS", "LOGS", "Column", "Contract", "Quarantined", "check_file", "ingest"]

LAYERS = ("holdout", "exploration", "experiment", "policy")
# every reason of a decision, and what it says
MEANING = {
    "eligible": "the score exceeds the threshold",
    "below_threshold": "the score does not exceed the threshold",
    "holdout": "in the persistent random control, never messaged whatever the score",
    "exploration": "a random arm, whatever the score",
    "baseline_arm": "in the control variant of a live experiment",
    "unknown_user": "no features of this user in the online store",
    "stale_features": "the newest features are older than their ttl",
    "feature_store_error": "the feature store did not answer in time",
    "model_unavailable": "no model could be asked",
    "over_budget": "reserved: the budget is kept by the threshold",
}
REASONS = tuple(MEANING)

_STRING = Column("string")
_TIME = Column("timestamp")
_COUNT = Column("integer", minimum=0)
_OPTIONAL = Column("string", nullable=True)


def _log(name: str, key: tuple[str, ...], **columns: Column) -> Contract:
    """A raw log: every row says whose it is, when it happened and when it arrived."""
    common = {"user_id": _STRING, "event_timestamp": _TIME, "created_timestamp": _TIME}
    return Contract(name, common | columns, key, rules=(_not_from_the_future,))


def _not_from_the_future(table: pa.Table) -> tuple[str, Any, str]:
    """A clock may run ahead by a day at most, or the windows of the features would miss the row."""
    ahead = pc.subtract(table["event_timestamp"], table["created_timestamp"])
    bad = pc.greater(ahead, pa.scalar(timedelta(days=1)))
    return "event_timestamp", bad, "must not be more than a day after created_timestamp"


def _arm_has_a_propensity(table: pa.Table) -> tuple[str, Any, str]:
    bad = pc.greater_equal(table["arm"], pc.list_value_length(table["propensities"]))
    return "arm", bad, "must be the index of one of the propensities"


def _propensities_sum_to_one(table: pa.Table) -> tuple[str, Any, str]:
    lists = table["propensities"].combine_chunks()
    total = np.bincount(pc.list_parent_indices(lists), pc.list_flatten(lists), minlength=len(lists))
    return "propensities", pa.array(np.abs(total - 1) > 1e-6), "must sum to 1"


def _propensity_is_of_the_arm(table: pa.Table) -> tuple[str, Any, str]:
    lists, arms = table["propensities"].to_pylist(), table["arm"].to_pylist()
    of_arm = [p[a] if p and a is not None and 0 <= a < len(p) else None for p, a in zip(lists, arms, strict=True)]
    bad = pc.greater(pc.abs(pc.subtract(table["propensity"], pa.array(of_arm, pa.float64()))), 1e-6)
    return "propensity", bad, "must be the propensity of the arm"


LOGS: dict[str, Contract] = {
    "users": _log(
        "users",
        ("user_id", "event_timestamp"),
        plan=_STRING,
        country=_STRING,
        device=_STRING,
        age_band=_OPTIONAL,
        signup_at=_TIME,
    ),
    "sessions": _log(
        "sessions",
        ("session_id",),
        session_id=_STRING,
        minutes=Column("float", above=0, maximum=7 * 24 * 60),
        tracks=_COUNT,
        skips=_COUNT,
        ads=_COUNT,
        surface=_STRING,
    ),
    "messages": _log(
        "messages",
        ("message_id",),
        message_id=_STRING,
        arm=_STRING,
        format=_STRING,
        action=Column("string", categories=("none", "clicked", "dismissed")),
    ),
    "subscriptions": _log(
        "subscriptions",
        ("subscription_event_id",),
        subscription_event_id=_STRING,
        event=Column("string", categories=("start", "renew", "cancel")),
        price=Column("float", minimum=0),
    ),
}

DECISIONS = Contract(
    "decisions",
    {
        "decision_id": _STRING,
        "request_id": _STRING,
        "user_id": _STRING,
        "decided_at": _TIME,
        "campaign_hash": _STRING,
        "policy_hash": _STRING,
        "model_tag": _STRING,
        "feature_service": _STRING,
        "schema_hash": _STRING,
        "features": _OPTIONAL,
        "feature_timestamp": Column("timestamp", nullable=True),
        "uplift": _OPTIONAL,
        "score": Column("float", nullable=True),
        "threshold": Column("float", nullable=True),
        "layer": Column("string", categories=LAYERS),
        "salts": _STRING,
        "arm": _COUNT,
        "propensity": Column("float", above=0, maximum=1),
        "propensities": Column("list<float>"),
        "reason": Column("string", categories=REASONS),
        "eligible": Column("boolean"),
        "hour": Column("integer", nullable=True, minimum=0, maximum=23),
        "surface": _OPTIONAL,
        "segments": _OPTIONAL,
        "experiment": _OPTIONAL,
        "cluster_id": _STRING,
    },
    ("decision_id",),
    partition_by="decided_at",
    rules=(_arm_has_a_propensity, _propensities_sum_to_one, _propensity_is_of_the_arm),
)


@dataclass(frozen=True)
class Quarantined:
    """A bad file: where it lies now, and why."""

    path: Path
    reason: str


def ingest(logs_dir: Path, quarantine_dir: Path) -> list[Quarantined]:
    """Check every log file that is new or changed since the last call; move the bad ones to the quarantine.

    Safe to kill: the reason is written before the file is moved, and what is not yet remembered is checked again.

    Returns:
        The files moved by this call, in the order of their paths.
    """
    seen = _read_seen(logs_dir)
    checked, quarantined = {}, []
    for name, contract in LOGS.items():
        for path in log_files(logs_dir / name):
            key, stamp = path.relative_to(logs_dir).as_posix(), stamp_of(path)
            try:
                if seen.get(key) != stamp:
                    check_file(path, contract)
                    _note(quarantine_dir / key).unlink(missing_ok=True)  # of one that was refused and is mended
                checked[key] = stamp
            except DataError as error:
                quarantined.append(_quarantine(path, quarantine_dir / key, str(error)))
    if checked != seen:
        write_json(_seen_file(logs_dir), {"contracts": _HASH, "checked": checked})
    return quarantined


def _seen_file(logs_dir: Path) -> Path:
    return logs_dir / "checked.json"


def _read_seen(logs_dir: Path) -> dict[str, list[int]]:
    """Size and modification time of each file already checked against these very contracts."""
    try:
        seen = json.loads(_seen_file(logs_dir).read_text())
        checked: dict[str, list[int]] = seen["checked"] if seen["contracts"] == _HASH else {}
    except (FileNotFoundError, ValueError, KeyError):  # none yet, or damaged: checking again is always right
        return {}
    return checked


def _note(target: Path) -> Path:
    return target.with_name(target.name + ".txt")


def _quarantine(path: Path, target: Path, reason: str) -> Quarantined:
    write_text(_note(target), reason + "\n")
    path.replace(target)
    return Quarantined(target, reason)


# A file is checked again when the contracts or the checks change.
_HASH = hashlib.sha256(b"".join(Path(f).read_bytes() for f in (__file__, checks.__file__))).hexdigest()[:16]
