"""The gate in front of everything: known paths only, tokens, JSON only, bounded bodies; and `POST /decide` itself.

`/decide` is answered here rather than behind BentoML's own request handling: that costs several times the decision,
logs a traceback with the caller's input for every bad request, and accepts form bodies. BentoML still describes the
endpoint (/docs.json), starts and stops the workers, and serves its health paths.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import to_json
from starlette.applications import Starlette

from bentos import metrics
from bentos.features import Busy
from bentos.raw_log import LogError
from bentos.schemas import DecideRequest
from bentos.worker import Worker

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Header = tuple[bytes, bytes]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_BODY = 1 << 20  # 1000 ids of 128 characters, escaped, are 0.8 MB
SHOWN_ERRORS = 20
OPEN_PATHS = {"/livez", "/healthz", "/readyz"}
OPS_PATHS = {"/", "/metrics", "/docs.json", "/schema.json", "/ops"}

logger = logging.getLogger("tactful.gate")

_JSON = (b"content-type", b"application/json")


class Refused(Exception):
    """A request that goes no further: status, a sentence, and headers that the status asks for."""

    def __init__(self, status: int, message: str, detail: Any = None, headers: Sequence[Header] = ()) -> None:
        super().__init__(message)
        self.status, self.message, self.detail, self.headers = status, message, detail, headers


class Gate:
    """ASGI middleware: what it refuses reaches no metric label, no queue and no handler.

    BentoML puts middleware of ours inside its own (tracing, time limit: a task and a timer for every request). When the
    server starts, a second gate is put around them all; the inner one stays and is what holds if that ever fails.
    """

    def __init__(self, app: App, worker: Worker, describe: Callable[[], dict[str, Any]]) -> None:
        self.app, self.worker, self.describe = app, worker, describe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, refuse, or let through."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                self._surround(scope["app"])
                await self.app(scope, receive, send)
            else:
                await send({"type": "websocket.close"})  # before it was accepted: 403
            return
        try:
            await self._route(scope, receive, send)
        except Refused as refused:
            body = {"error": refused.message} | ({"detail": refused.detail} if refused.detail else {})
            await answer(send, refused.status, body, refused.headers)

    def _surround(self, app: Starlette) -> None:
        if app.middleware_stack is not None and not isinstance(app.middleware_stack, Gate):
            app.middleware_stack = Gate(app.middleware_stack, self.worker, self.describe)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, headers = scope["path"], dict(scope["headers"])
        if path == "/decide":
            authorise(headers, self.worker.settings.decide_token)
            try:
                status = await self._decide(scope, headers, receive, send)
            except Refused as refused:
                metrics.answered(refused.status)
                raise
            metrics.answered(status)
        elif path == "/readyz":
            allow(scope, "GET", "HEAD")
            problems, warnings = await self.worker.problems(), self.worker.warnings()
            body = {"ready": not problems, "problems": problems, "warnings": warnings}
            await answer(send, 503 if problems else 200, body)
        elif path in OPEN_PATHS:
            await self.app(scope, receive, send)
        elif path in OPS_PATHS or path.startswith("/ops/"):
            authorise(headers, self.worker.settings.ops_token)
            if path != "/ops/":
                allow(scope, "GET", "HEAD")
            if path == "/metrics":
                metrics.flush()
                content = await asyncio.to_thread(metrics.exposition)
                await send_body(send, 200, content, [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")])
            elif path == "/docs.json":
                await answer(send, 200, self.describe())
            elif path in ("/", "/ops"):
                await answer(send, 307, {"see": "/ops/"}, [(b"location", b"/ops/")])
            else:
                await self.app(scope, receive, send)
        else:
            raise Refused(404, "no such path")

    async def _decide(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send) -> int:
        """Decide and answer; returns the status."""
        allow(scope, "POST")
        require_json(headers)
        request = parse(await read_body(headers, receive))
        try:
            found = await self.worker.decider.decide(request)
        except Busy:
            raise Refused(429, "too many users are waiting for a decision; try again") from None
        except LogError as error:
            logger.error("decision not logged", extra={"error": str(error)})
            await answer(send, 503, self.worker.decider.refusal(request))
            return 503
        except Exception:
            logger.exception("decision failed")
            await answer(send, 503, self.worker.decider.refusal(request))
            return 503
        await answer(send, 200, found, [(b"x-request-id", found["request_id"].encode())])
        return 200


async def answer(send: Send, status: int, body: dict[str, Any], headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
    """Send a JSON answer."""
    await send_body(send, status, to_json(body), [_JSON, *headers])


async def send_body(send: Send, status: int, content: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    """Send a whole response."""
    length = (b"content-length", b"%d" % len(content))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": content})


def allow(scope: Scope, *methods: str) -> None:
    """Refuse other methods (405)."""
    if scope["method"] not in methods:
        raise Refused(405, f"use {methods[0]}", headers=[(b"allow", ", ".join(methods).encode())])


def authorise(headers: dict[bytes, bytes], token: str) -> None:
    """Check the caller's token, as `Bearer TOKEN` or as the password of Basic (browsers); compared in constant time.

    Raises: Refused: 401. An empty `token` means that none is asked for.
    """
    if not token:
        return
    kind, _, value = headers.get(b"authorization", b"").partition(b" ")
    if kind.lower() == b"basic":
        try:
            value = base64.b64decode(value, validate=True).partition(b":")[2]
        except binascii.Error:
            value = b""
    elif kind.lower() != b"bearer":
        value = b""
    if not hmac.compare_digest(value, token.encode()):
        ask = (b"www-authenticate", b'Basic realm="tactful", Bearer')
        raise Refused(401, "a valid token is needed", headers=[ask])


def require_json(headers: dict[bytes, bytes]) -> None:
    """Refuse bodies that are not plain JSON (415)."""
    kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    if kind != b"application/json":
        raise Refused(415, "content-type must be application/json")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise Refused(415, "content-encoding is not supported")


async def read_body(headers: dict[bytes, bytes], receive: Receive) -> bytes:
    """The whole body, up to MAX_BODY bytes, declared or chunked (Refused: 413, or 400 when the client left)."""
    declared = headers.get(b"content-length", b"0")
    if not declared.isdigit() or int(declared) > MAX_BODY:
        raise Refused(413, f"the body may have {MAX_BODY} bytes")
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "the body ended early")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY:
            raise Refused(413, f"the body may have {MAX_BODY} bytes")
        if not message.get("more_body"):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def parse(body: bytes) -> DecideRequest:
    """The request of a body (Refused: 400, which fields and why, without the values)."""
    try:
        return DecideRequest.model_validate_json(body)
    except ValidationError as error:
        detail = [
            {"loc": [str(part)[:64] for part in e["loc"]], "msg": e["msg"][:200], "type": e["type"]}
            for e in error.errors(include_url=False, include_context=False, include_input=False)[:SHOWN_ERRORS]
        ]
        raise Refused(400, "the request is not valid", json.loads(json.dumps(detail))) from None
