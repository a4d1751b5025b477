"""The weekly verdicts where the monitor leaves them: a folder for each week, `decision.json` in it.

They lie below the monitor that writes them, for the service's page shows the last one, and training leaves out weeks
whose data was found broken.
"""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

from campaign import DataError

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
    return found


def _unreadable(folder: Path, why: str) -> DataError:
    monday = date.fromisoformat(f"{folder.name}-1")
    return DataError(
        f"{folder / 'decision.json'}: {why}; move the folder {folder.name} away, then run "
        f"`tactful monitor --week {monday}` again"
    )


def read_verdicts(monitoring_dir: Path) -> list[dict[str, Any]]:
    """Every week's decision.json, oldest first (DataError: as `read_verdict`)."""
    return [read_verdict(folder) for folder in week_folders(monitoring_dir) if (folder / "decision.json").exists()]
