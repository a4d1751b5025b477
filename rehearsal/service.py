"""The service's own parts without a server: champion, decider and decision log, reading the day's snapshot."""

from __future__ import annotations

import asyncio
import io
import shutil
import time
from contextlib import redirect_stdout
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bentos.bundle import OK, Bundle, Rows
from bentos.champion import Champion
from bentos.decider import Decider
from bentos.decision_log import compact
from bentos.features import Ask
from bentos.raw_log import DecisionLog
from bentos.schemas import Context, DecideRequest
from bentos.settings import Settings
from bentos.snapshot_reader import SnapshotReader
from campaign import Campaign, ModelError
from feature_repo.retrieval import feature_schema, open_store
from models.predictions import policy_arm, scores
from rehearsal.platform import requests_of
from simulator import Due

if TYPE_CHECKING:
    from feast import FeatureStore


class InProcessService:
    """Decides as the server would: same pointer, same experiments, same code, same log; only the socket is missing."""

    def __init__(self, campaign: Campaign, data: Path) -> None:
        self.campaign, self.data = campaign, data
        self.settings = Settings.from_environ()
        self.store: FeatureStore = open_store()
        self.champion = Champion(campaign, self._open_reader)
        self._at = datetime.now(UTC)
        self._readers: dict[str, SnapshotReader] = {}

    def open_day(self, day: date) -> Bundle:
        """Follow the champion pointer, and read the day's snapshot; returns the model that serves.

        Raises: ModelError: the champion cannot serve.
        """
        self.champion.follow(time.monotonic())
        serving = self.champion.serving
        if self.champion.error or serving.bundle is None:
            raise ModelError(f"the service has no model: {self.champion.error}")
        self._readers[serving.bundle.tag].open(day)
        return serving.bundle

    def decide(self, due: Due) -> np.ndarray:
        """Ask for every user who is due, compact the log; returns each one's arm, shape (n,)."""
        log = DecisionLog(self.data / "decision_log", int(self.settings.log_file_mb * 2**20))
        try:
            arms = asyncio.run(self._ask_all(due, log))
        finally:
            log.close()
        compact(self.data / "decision_log", self.data / "decisions")
        return arms

    async def _ask_all(self, due: Due, log: DecisionLog) -> np.ndarray:
        decider = Decider(self.campaign, self.settings, self.champion, log, lambda: self._at)
        number = {name: k for k, name in enumerate(self.campaign.arm_names)}
        arms = np.zeros(len(due.user_ids), dtype=np.int64)
        for at, hour, surface, rows in requests_of(due):
            self._at = datetime.fromtimestamp(int(at.astype("datetime64[us]").astype(np.int64)) / 1e6, UTC)
            users = [str(user) for user in due.user_ids[rows]]
            answer = await decider.decide(DecideRequest(user_ids=users, context=Context(hour=hour, surface=surface)))
            arms[rows] = [number[decision["arm"]] for decision in answer["decisions"]]
        return arms

    def rows(self, due: Due) -> Rows:
        """Features of every user who is due, in their order, as the decider reads them."""
        asks = [
            Ask("", [str(user)], int(hour), str(surface))
            for user, hour, surface in zip(due.user_ids, due.hour, due.surface, strict=True)
        ]
        return self._readers[self.champion.tag].read_now(asks)

    def _open_reader(self, bundle: Bundle) -> SnapshotReader:
        schema = feature_schema(self.store, bundle.feature_service)
        if schema.hash != bundle.schema_hash:
            raise ModelError(f"{bundle.tag}: trained on schema {bundle.schema_hash}, the store has {schema.hash}")
        self._readers = {bundle.tag: SnapshotReader(self.store, schema, bundle)}
        return self._readers[bundle.tag]


def arms_of(bundle: Bundle, rows: Rows) -> np.ndarray:
    """The arm a model's policy takes for each user, random layers aside; control without features. Shape (n,)."""
    model = bundle.model.spec
    arm = policy_arm(scores(bundle.mu_hat(rows), model.weights.tolist(), model.costs), bundle.threshold)
    return np.where(rows.status == OK, arm, 0)


def apply_features(repo: Path) -> None:
    """A feature store of its own for the rehearsal's data, with the definitions of feature_repo."""
    from feast import FeatureStore

    from feature_repo import entities, on_demand, services, sources, store, views

    (repo / "data").mkdir(parents=True, exist_ok=True)
    shutil.copy(store.REPO / "feature_store.yaml", repo)
    opened = FeatureStore(repo_path=str(repo))
    tables = [view for view in vars(views).values() if type(view).__name__ == "FeatureView"]
    with redirect_stdout(io.StringIO()):  # Feast's progress is about views
        opened.apply([entities.user, sources.snapshots, *tables, on_demand.request_context, services.uplift_v1])
