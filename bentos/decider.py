"""From requests to answers: read features, decide, log, answer. One batch at a time, no answer before its log line.

What goes wrong is named per user: no model, no features, features too old. What cannot be logged is not decided at all.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from bentos import metrics
from bentos.bundle import Rows
from bentos.champion import Champion, Serving
from bentos.engine import Decisions, decide, decide_without_model
from bentos.experiments import with_experiments
from bentos.features import Ask, Coalescer, Reader, no_rows
from bentos.raw_log import DecisionLog, batch_line
from bentos.schemas import DecideRequest
from bentos.settings import Settings
from campaign import Campaign, StoreError
from feature_repo.contracts import REASONS

logger = logging.getLogger("tactful.decide")


class Decider:
    """Answers requests of one worker.

    Args:
        campaign: arms, outcomes, shares and salts.
        settings: limits.
        champion: what serves.
        log: where decisions go first.
        clock: the time of a decision.
    """

    def __init__(
        self,
        campaign: Campaign,
        settings: Settings,
        champion: Champion,
        log: DecisionLog,
        clock: Callable[[], datetime],
    ) -> None:
        self.campaign, self.settings, self.champion, self.log, self.clock = campaign, settings, champion, log, clock
        self.arms, self.outcomes = campaign.arm_names, campaign.outcome_names
        self.store_error: str | None = None
        self._reading = asyncio.Lock()
        self.batches: Coalescer[Ask, dict[str, Any]] = Coalescer(
            self._process, lambda ask: len(ask.user_ids), settings.batch_users, settings.queue_users
        )

    async def decide(self, request: DecideRequest) -> dict[str, Any]:
        """The answer to a request, as DecideResponse has it.

        Raises: LogError: it could not be logged. Busy: too many wait.
        """
        context = request.context
        ask = Ask(
            os.urandom(16).hex(),
            request.user_ids,
            context.hour if context else None,
            context.surface if context else None,
        )
        return await self.batches.submit(ask)

    def refusal(self, request: DecideRequest) -> dict[str, Any]:
        """Nobody eligible, for a request whose decision could not be logged; it is not a decision."""
        decisions = decide_without_model(request.user_ids, self.campaign, self.clock().date())
        return self._answer("", "", request.user_ids, decisions, 0)

    async def _process(self, asks: list[Ask]) -> list[dict[str, Any]]:
        serving, at = self.champion.serving, self.clock()
        user_ids = [user for ask in asks for user in ask.user_ids]
        rows, read_seconds = await self._read(serving, asks, at, len(user_ids))
        if serving.bundle is None or rows is None:
            decisions = decide_without_model(user_ids, self.campaign, at.date())
        else:
            decisions = decide(user_ids, rows, serving.bundle, self.campaign.assignment, at.date())
            if serving.live.experiments:
                chosen = (user_ids, rows, serving.bundle, self.campaign.assignment, decisions)
                decisions = with_experiments(*chosen, serving.live, at)
        heads = [(ask.request_id, len(ask.user_ids), ask.hour, ask.surface) for ask in asks]
        line = batch_line(serving.context, at, heads, user_ids, decisions, rows)
        started = time.perf_counter()
        self.log.append(serving.context, line, at.date().isoformat())
        if self.settings.log_fsync == "batch":
            await asyncio.get_running_loop().run_in_executor(None, self.log.sync)
        write_seconds, timestamp = time.perf_counter() - started, rows.timestamp if rows else None
        metrics.observe(metrics.Batch(decisions, self.arms, at.timestamp(), timestamp, read_seconds, write_seconds))
        tag, start, answers = serving.bundle.tag if serving.bundle else "", 0, []
        for ask in asks:
            answers.append(self._answer(tag, ask.request_id, ask.user_ids, decisions, start))
            start += len(ask.user_ids)
        return answers

    async def read(self, reader: Reader, asks: list[Ask], at: datetime) -> Rows:
        """One read at a time (StoreError, OSError: it failed, or was not in time)."""
        async with self._reading:
            return await reader.read(asks, at)

    async def _read(self, serving: Serving, asks: list[Ask], at: datetime, n: int) -> tuple[Rows | None, float | None]:
        """Features of a batch, and the seconds it took.

        Rows with their reason and no time when the store fails or is late; neither without a model.
        """
        if serving.bundle is None or serving.reader is None:
            return None, None
        started = time.perf_counter()
        try:
            rows = await self.read(serving.reader, asks, at)
        except (StoreError, OSError) as error:  # a time-out is an OSError
            self._not_read(str(error) or f"no answer within {self.settings.feature_seconds} s", n)
            return no_rows(n, len(serving.bundle.numeric), len(serving.bundle.strings), "feature_store_error"), None
        if self.store_error is not None:
            self.store_error = None
            logger.info("features are read again")
        return rows, time.perf_counter() - started

    def _not_read(self, error: str, n: int) -> None:
        """Count it, and log it once an outage: a line for each batch of one would fill the disk."""
        metrics.FEATURE_ERRORS.inc()
        if self.store_error is None:
            logger.warning("features not read", extra={"error": error, "users": n})
        self.store_error = error

    def _answer(
        self, tag: str, request_id: str, user_ids: list[str], decisions: Decisions, start: int
    ) -> dict[str, Any]:
        arms, outcomes = self.arms, self.outcomes
        stop = start + len(user_ids)
        columns = (
            user_ids,
            decisions.arm[start:stop].tolist(),
            decisions.reason[start:stop].tolist(),
            decisions.score[start:stop].tolist(),
            decisions.uplift[start:stop].tolist(),
        )
        answers = [
            {
                "user_id": user,
                "eligible": arm > 0,
                "arm": arms[arm],
                # NaN, the only value unequal to itself, marks what was not predicted
                "uplift": {a: dict(zip(outcomes, u, strict=True)) for a, u in zip(arms[1:], uplift, strict=True)}
                if score == score
                else None,
                "score": score if score == score else None,
                "reason": REASONS[reason],
            }
            for user, arm, reason, score, uplift in zip(*columns, strict=True)
        ]
        return {"model": tag, "request_id": request_id, "decisions": answers}
