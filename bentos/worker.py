"""One server process: opens what it needs, follows the champion, and knows whether it can decide."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import time
from typing import TYPE_CHECKING

from bentos import logs, metrics
from bentos.bundle import Bundle
from bentos.champion import Champion
from bentos.decider import Decider
from bentos.features import Ask, Reader
from bentos.raw_log import DecisionLog
from bentos.settings import Settings
from bentos.stores import open_reader
from campaign import ModelError, StoreError, load_campaign, now
from feature_repo.retrieval import feature_schema, open_store
from feature_repo.store import import_feast

if TYPE_CHECKING:
    from feast import FeatureStore

logger = logging.getLogger("tactful.worker")

FOLLOW_SECONDS = 0.5  # how soon a promotion is seen, and what was decided is counted
RETIRE_SECONDS = 10.0  # batches that still use a replaced model's reader have ended by then
PROBE_SECONDS = 1.0  # how long an answer about readiness holds


class Worker:
    """Everything of one process that outlives a request. Nothing is opened before `start`."""

    settings: Settings
    decider: Decider

    def __init__(self) -> None:
        self._store: FeatureStore | None = None
        self._following: asyncio.Task[None] | None = None
        self._probed_at = -PROBE_SECONDS
        self._store_answers = False

    async def start(self) -> None:
        """Open the log, load the champion if there is one, and go on looking for a better one."""
        logs.configure()
        self.settings = Settings.from_environ()
        campaign = load_campaign()
        log = DecisionLog(self.settings.log_dir, int(self.settings.log_file_mb * 2**20))
        champion = Champion(campaign, self.open_reader)
        self.decider = Decider(campaign, self.settings, champion, log, now)
        await asyncio.to_thread(champion.follow, time.monotonic())
        gc.collect()
        gc.freeze()  # what was imported stays: the collector need not look through it while somebody waits
        self._following = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        """Finish the log file; requests have been answered by now."""
        metrics.flush()
        if self._following is not None:
            self._following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._following
        self.decider.log.close()
        if self.decider.champion.serving.reader is not None:
            self.decider.champion.serving.reader.close()

    async def problems(self) -> list[str]:
        """Why this worker cannot decide now; empty when it is ready."""
        decider = self.decider
        found = []
        if decider.champion.serving.bundle is None:
            found.append("no champion model is loaded")
        elif not await self._answers():
            found.append("the feature store does not answer")
        if not decider.log.check(decider.champion.serving.context, now().date().isoformat()):
            found.append("the decision log cannot be written")
        return found

    def warnings(self) -> list[str]:
        """What is wrong although this worker can decide; no tag and no path, for everybody may ask."""
        champion = self.decider.champion
        return ["the champion was not loaded, another model serves"] if champion.tag and champion.error else []

    def open_reader(self, bundle: Bundle) -> Reader:
        """The reader of a model's features.

        Raises: StoreError: the store cannot be opened. ModelError: the model was trained on another feature service.
        """
        import_feast()
        from feast.errors import FeastError

        try:
            if self._store is None:
                self._store = open_store(self.settings.feature_repo or None)
            self._store.refresh_registry()  # type: ignore[no-untyped-call]
            schema = feature_schema(self._store, bundle.feature_service)
        except FeastError as error:
            raise StoreError(f"feature store: {error}; run `feast -c feature_repo apply`") from error
        missing = [name for name in (*bundle.numeric, *bundle.strings) if name not in schema.types]
        if schema.hash != bundle.schema_hash or missing:
            raise ModelError(
                f"{bundle.tag}: trained on service {bundle.feature_service!r} with schema {bundle.schema_hash}, "
                f"the feature store has {schema.hash} (missing: {missing}); apply the service again, or retrain"
            )
        return open_reader(self._store, schema, bundle.numeric, bundle.strings, self.settings.feature_seconds)

    async def _answers(self) -> bool:
        """Whether the store answers about a user who does not exist; asked at most once a second."""
        reader, clock = self.decider.champion.serving.reader, time.monotonic()
        if reader is not None and clock - self._probed_at >= PROBE_SECONDS:
            try:
                await self.decider.read(reader, [Ask("", ["ready?"])], now())
                self._store_answers = True
            except (StoreError, OSError):
                self._store_answers = False
            self._probed_at = clock
        return self._store_answers

    async def _follow(self) -> None:
        champion, loop = self.decider.champion, asyncio.get_running_loop()
        while True:
            await asyncio.sleep(FOLLOW_SECONDS)
            metrics.flush()
            try:
                await asyncio.to_thread(champion.follow, time.monotonic())
            except Exception:
                # whatever is wrong with a new model, the old one serves on and the next look may find a good one
                logger.exception("following the champion failed")
            while champion.retired:
                loop.call_later(RETIRE_SECONDS, champion.retired.pop().close)
