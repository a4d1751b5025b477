"""The weekly verdicts where the monitor leaves them: a folder for each week, `decision.json` in it.

They lie below the monitor that writes them, for the service's page shows the last one, and training leaves out weeks
whose data was found broken.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from campaign import DataError
from feature_repo.atomic import write_json

ANSWERED = "retrained.json"
KEYS = {"action", "champion", "data", "drift_weeks", "fallback", "monday", "reasons", "week"}


def week_folders(monitoring_dir: Path) -> list[Path]:
    """Folders of the weeks, oldest first; what a killed monitor left begins with a dot and is none."""
    return sorted(monitoring_dir.glob("[0-9][0-9][0-9][0-9]-W[0-9][0-9]"))


def read_verdict(folder: Path) -> dict[str, Any]:
    """Content of a week's decision.json.

    Raises: DataError: it is torn, or not a decision of schema 1.
    """
    file = folder / "decision.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _unreadable(folder, f"no JSON: {error}") from None
    if not isinstance(found, dict):
        raise _unreadable(folder, f"a JSON {type(found).__name__}, expected an object")
    if found.get("schema") != 1:
        raise _unreadable(folder, f"schema == {found.get('schema')!r}, expected 1")
    if absent := sorted(KEYS - found.keys()):
        raise _unreadable(folder, f"without {', '.join(absent)}")
    monday, data = _monday(folder), found["data"]
    if monday is None or found["monday"] != monday.isoformat():
        raise _unreadable(folder, f"monday == {found['monday']!r}, expected {monday or 'a week that exists'}")
    if not isinstance(data, dict) or not isinstance(data.get("n"), int):
        raise _unreadable(folder, f"data == {data!r}, expected an object with n, the number of decisions")
    return found


def _monday(folder: Path) -> date | None:
    """Monday of a week's folder; None where the year has no such week, as 2026-W54."""
    try:
        return date.fromisoformat(f"{folder.name}-1")
    except ValueError:
        return None


def _unreadable(folder: Path, why: str) -> DataError:
    monday = _monday(folder)
    again = f", then run `tactful monitor --week {monday}` again" if monday else ""
    return DataError(f"{folder / 'decision.json'}: {why}; move the folder {folder.name} away{again}")


def read_verdicts(monitoring_dir: Path) -> list[dict[str, Any]]:
    """Every week's decision.json, oldest first (DataError: as `read_verdict`)."""
    return [read_verdict(folder) for folder in week_folders(monitoring_dir) if (folder / "decision.json").exists()]


def last_verdict(monitoring_dir: Path) -> dict[str, Any] | None:
    """The newest week's decision.json; None: there is none (DataError: as `read_verdict`)."""
    decided = [folder for folder in week_folders(monitoring_dir) if (folder / "decision.json").exists()]
    return read_verdict(decided[-1]) if decided else None


def answered(monitoring_dir: Path) -> dict[str, str]:
    """Weeks whose call for a retraining was answered: ISO week -> tag of the challenger that went through the gate.

    Raises: DataError: the file is torn.
    """
    file = monitoring_dir / ANSWERED
    try:
        found: dict[str, str] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except ValueError as error:
        raise DataError(f"{file}: no JSON ({error}); remove it: the last week is then retrained once more") from None
    return found


def answer(monitoring_dir: Path, week: str, tag: str) -> None:
    """Keep that a week's call for a retraining was answered by a challenger."""
    write_json(monitoring_dir / ANSWERED, answered(monitoring_dir) | {week: tag})


def forget_answers(monitoring_dir: Path, since: str) -> None:
    """Forget the answers to an ISO week and all later ones."""
    if (monitoring_dir / ANSWERED).exists():
        kept = {week: tag for week, tag in answered(monitoring_dir).items() if week < since}
        write_json(monitoring_dir / ANSWERED, kept)


def broken_weeks(monitoring_dir: Path) -> dict[date, str]:
    """Weeks whose last verdict is that the data is broken: Monday -> which week and how many decisions, in words.

    Nothing is trained on their decisions, and no policy is judged on them, until the verdict is another.
    """
    stopped = [found for found in read_verdicts(monitoring_dir) if found["action"] == "stop"]
    return {date.fromisoformat(v["monday"]): f"{v['week']}, {v['data']['n']:,} decisions" for v in stopped}


def told(broken: Mapping[date, str]) -> list[str]:
    """A sentence about decisions that were left out; none where there are none."""
    if not broken:
        return []
    return [
        f"left out, as its data was found broken: {'; '.join(broken.values())}; to take a week back, mend its data and "
        f"judge it again, as by `tactful monitor --week {min(broken)}`"
    ]


def in_weeks(decided_at: pd.Series, mondays: Collection[date]) -> np.ndarray:
    """Which of the decisions were made in one of the weeks; shape (n,), bool."""
    days = decided_at.to_numpy(dtype="datetime64[D]").astype(np.int64)
    weeks = np.array([np.datetime64(monday, "D").astype(np.int64) for monday in mondays], dtype=np.int64)
    return np.isin(days - (days + 3) % 7, weeks)  # 1970-01-01 was a Thursday
