"""What an operator may set, all through the environment."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from campaign import CampaignError, data_dir


@dataclass(frozen=True)
class Settings:
    """Settings of one worker; the environment variable of each is its name in capitals behind TACTFUL_.

    Args:
        workers: server processes.
        feature_seconds: a read of features that takes longer fails safe.
        queue_users: users that may wait for a decision; a request beyond that is refused (429).
        batch_users: users in one coalesced read, unless a single request has more.
        log_fsync: "none" survives a killed process, "batch" also a power cut (fsync before each answer).
        log_file_mb: size at which a decision log file is closed and a new one begun.
        decide_token, ops_token: bearer tokens; empty means no check.
        feature_repo: folder of feature_store.yaml; empty means this repository's.
    """

    workers: int = 1
    feature_seconds: float = 1.0
    queue_users: int = 20_000
    batch_users: int = 1_000
    log_fsync: str = "none"
    log_file_mb: float = 32.0
    decide_token: str = ""
    ops_token: str = ""
    feature_repo: str = ""

    @classmethod
    def from_environ(cls) -> Settings:
        """Read the environment (CampaignError: a value is not of its type or out of range)."""
        values = {}
        for name, default in cls().__dict__.items():
            variable = f"TACTFUL_{name.upper()}"
            text = os.environ.get(variable)
            if text is None:
                continue
            try:
                values[name] = type(default)(text)
            except ValueError:
                raise CampaignError(f"${variable} == {text!r}, must be a {type(default).__name__}") from None
            if not isinstance(default, str) and not 0 < values[name] < math.inf:
                raise CampaignError(f"${variable} == {text}, must be > 0 and finite")
            if name.endswith("_token") and not text:
                # a secret that was not found must not open the service
                raise CampaignError(f"${variable} is empty; set a token, or unset the variable if none is asked for")
        settings = cls(**values)
        if settings.log_fsync not in ("none", "batch"):
            raise CampaignError(f"$TACTFUL_LOG_FSYNC == {settings.log_fsync!r}, must be 'none' or 'batch'")
        return settings

    @property
    def log_dir(self) -> Path:
        """Folder of the raw decision log."""
        return data_dir() / "decision_log"
