"""The BentoML service: `bentoml serve` from the root. Thin; what it does is in worker, decider and security.

BentoML's own metrics, access log and tracing are off: its metrics use the raw path as a label before any check, its
tracing costs more than the decision. Ours are in bentos.metrics.
"""

from __future__ import annotations

import os

os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread per worker: two on a busy core are slower

import bentoml
from bentoml._internal.utils.analytics import usage_stats

from bentos.ops import ops_app
from bentos.schemas import DecideRequest, DecideResponse, described
from bentos.security import Gate
from bentos.settings import Settings
from bentos.worker import Worker

# `bentoml serve` asks and caches before it imports this file
usage_stats.do_not_track.cache_clear()

worker = Worker()


@bentoml.asgi_app(ops_app(worker), path="/ops")
@bentoml.service(
    workers=Settings.from_environ().workers,
    http={"host": "127.0.0.1", "port": 3000},
    traffic={"timeout": 30.0},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": ".*"},
    metrics={"enabled": False},
)
class TactfulService:
    """Who is eligible for a message now, and why."""

    @bentoml.on_startup  # type: ignore[untyped-decorator]
    async def start(self) -> None:
        """Open this process's log, features and model."""
        await worker.start()

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    async def stop(self) -> None:
        """Close the log."""
        await worker.stop()

    @bentoml.api  # type: ignore[untyped-decorator]
    async def decide(self, request: DecideRequest, /) -> DecideResponse:
        """Decide about users: one decision per id, in order. Over HTTP the gate answers in this method's place."""
        return DecideResponse.model_validate(await worker.decider.decide(request))


TactfulService.add_asgi_middleware(  # type: ignore[attr-defined]
    Gate,
    worker=worker,
    describe=lambda: described(TactfulService.openapi_spec.asdict()),  # type: ignore[attr-defined]
)
