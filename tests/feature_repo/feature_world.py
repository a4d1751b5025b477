"""The small world of these tests: its days, its outage, and a feature store's folder driven by Feast's command line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

from feature_logs import START

ROOT = Path(__file__).parents[2]
DAYS = 60
LAST = START + timedelta(days=DAYS)  # the last snapshot
OUTAGE = {START + timedelta(days=d) for d in (20, 21, 22, 23, 24, *range(40, 56))}  # no snapshot, no corrections
ONLY_CORRECTIONS = {START + timedelta(days=d) for d in (30, 31)}


@dataclass(frozen=True)
class Repo:
    """A feature store of its own: folder, data root and the users in it."""

    path: Path
    data: Path
    profile: str = "local"

    def feast(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run Feast's own command line from the root of the checkout, as a user does."""
        command = [str(Path(sys.executable).parent / "feast"), "-c", str(self.path)]
        if self.profile != "local":
            command += ["-f", str(self.path / f"feature_store.{self.profile}.yaml")]
        env = os.environ | {"TACTFUL_DATA": str(self.data)} | environment
        return subprocess.run([*command, *words], cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def copy_repo(target: Path) -> Path:
    shutil.copytree(ROOT / "feature_repo", target, ignore=shutil.ignore_patterns("data", "__pycache__"))
    return target


def day_range(first: date, last: date) -> list[date]:
    return [first + timedelta(days=d) for d in range((last - first).days + 1)]
