import asyncio
import base64
import io
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware

from bentos.logs import JsonLines
from bentos.security import Gate, Refused, require_json
from bentos.settings import Settings
from campaign import ROOT, CampaignError, now


class Quiet:
    """A worker that must not be asked for anything but its settings."""

    settings = Settings(decide_token="decide-secret", ops_token="ops-secret")


def call(path, token=None, method="GET", basic=False):
    reached = []

    async def app(scope, receive, send):
        reached.append(scope["path"])

    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        raise AssertionError("the body was read")

    headers = []
    if token:
        value = b"Basic " + base64.b64encode(b"me:" + token.encode()) if basic else b"Bearer " + token.encode()
        headers = [(b"authorization", value)]
    scope = {"type": "http", "path": path, "method": method, "headers": headers}
    asyncio.run(Gate(app, Quiet(), dict)(scope, receive, send))
    return sent[0]["status"] if sent else 0, reached


@pytest.mark.parametrize("token", [None, "ops-secret", "decide-secre", "decide-secret2", "", "é"])
def test_gate_asks_for_the_right_token_to_decide(token):
    assert call("/decide", token, "POST") == (401, [])


@pytest.mark.parametrize("path", ["/metrics", "/docs.json", "/schema.json", "/ops/", "/", "/ops"])
@pytest.mark.parametrize("token", [None, "decide-secret"])
def test_gate_asks_for_the_right_token_of_operators(path, token):
    assert call(path, token) == (401, [])


def test_gate_lets_the_right_token_through():
    assert call("/decide", "decide-secret", "GET")[0] == 405
    assert call("/decide", "decide-secret", "POST")[0] == 415
    assert call("/docs.json", "ops-secret") == (200, [])
    assert call("/ops/", "ops-secret") == (0, ["/ops/"])
    assert call("/ops/", "ops-secret", basic=True) == (0, ["/ops/"])
    assert call("/ops/", "wrong", basic=True)[0] == 401


@pytest.mark.parametrize("path", ["/metrics", "/docs.json", "/schema.json", "/", "/ops"])
@pytest.mark.parametrize("method", ["POST", "TRACE", "DELETE"])
def test_gate_takes_no_method_that_a_page_does_not_have(path, method):
    assert call(path, "ops-secret", method) == (405, [])
    assert call("/readyz", method=method) == (405, [])


def test_gate_surrounds_what_bentoml_puts_around_it():
    reached = []

    class Outer:
        """Stands for BentoML's tracing and time limit, which it puts around every middleware of ours."""

        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            reached.append((scope["type"], scope.get("path")))
            await self.app(scope, receive, send)

    app = Starlette(middleware=[Middleware(Outer), Middleware(Gate, worker=Quiet(), describe=dict)])
    sent = []

    async def send(message):
        sent.append(message)

    async def ask(path):
        await app({"type": "http", "path": path, "method": "GET", "headers": []}, None, send)
        return next(m["status"] for m in reversed(sent) if "status" in m)

    async def main():
        messages = asyncio.Queue()
        messages.put_nowait({"type": "lifespan.startup"})
        messages.put_nowait({"type": "lifespan.shutdown"})
        await app({"type": "lifespan"}, messages.get, send)
        assert await ask("/decide") == 401
        assert await ask("/junk") == 404
        assert reached == [("lifespan", None)]
        assert await ask("/livez") == 404  # there is no such route in this app, but it was asked
        assert reached[1:] == [("http", "/livez")]

    asyncio.run(main())


@pytest.mark.parametrize("path", ["/livez", "/healthz"])
def test_gate_leaves_health_open(path):
    assert call(path) == (0, [path])


@pytest.mark.parametrize("path", ["/x", "/decide/x", "/metricsx", "", "/OPS/", "/static_content/a.js"])
def test_gate_knows_no_other_path(path):
    assert call(path, "ops-secret") == (404, [])


def test_logs_never_quote_a_request():
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logger = logging.Logger("tactful.test")
    logger.addHandler(handler)
    try:
        raise ValueError("user u-secret is odd")
    except ValueError:
        logger.exception("decision failed", extra={"users": 3})
    line = json.loads(stream.getvalue())
    assert "u-secret" not in stream.getvalue()
    assert (line["exception"], line["users"], line["message"]) == ("ValueError", 3, "decision failed")
    assert line["where"][0].startswith("test_serving_security.py:")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("TACTFUL_WORKERS", "two", "must be a int"),
        ("TACTFUL_WORKERS", "0", "must be > 0"),
        ("TACTFUL_FEATURE_SECONDS", "-1", "must be > 0"),
        ("TACTFUL_FEATURE_SECONDS", "nan", "must be > 0 and finite"),
        ("TACTFUL_LOG_FILE_MB", "inf", "must be > 0 and finite"),
        ("TACTFUL_LOG_FSYNC", "always", "'none' or 'batch'"),
        ("TACTFUL_DECIDE_TOKEN", "", "is empty"),
        ("TACTFUL_OPS_TOKEN", "", "is empty"),
    ],
)
def test_settings_name_the_variable_that_is_wrong(monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(CampaignError, match=f"{name}.*{message}"):
        Settings.from_environ()


def test_now_can_be_overridden(monkeypatch):
    monkeypatch.setenv("TACTFUL_NOW", "2026-06-01T14:00:00+02:00")
    assert now().isoformat() == "2026-06-01T12:00:00+00:00"
    monkeypatch.setenv("TACTFUL_NOW", "yesterday")
    with pytest.raises(CampaignError, match="ISO 8601"):
        now()


def test_service_import_turns_telemetry_off():
    environ = {k: v for k, v in os.environ.items() if "TRACK" not in k}
    script = (
        "from bentoml._internal.utils.analytics import usage_stats as u\n"
        "u.do_not_track()\nimport bentos.service\nassert u.do_not_track()"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_page_about_security_names_only_tests_that_exist():
    text = (ROOT / "docs" / "security.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", text))
    written = {
        name
        for file in Path(__file__).parent.glob("test_*.py")
        for name in re.findall(r"def (test_\w+)", file.read_text())
    }
    assert len(named) > 8
    assert named <= written
    assert "..." not in text, "a shortened name cannot be checked"


def test_gate_refuses_a_websocket():
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(Gate(None, Quiet(), dict)({"type": "websocket", "path": "/decide"}, None, send))
    assert sent == [{"type": "websocket.close"}]


@pytest.mark.parametrize("encoding", [b"gzip", b"br", b"identity, gzip"])
def test_gate_refuses_an_encoded_body(encoding):
    headers = {b"content-type": b"application/json"}
    require_json({**headers, b"content-encoding": b"Identity"})
    with pytest.raises(Refused, match="content-encoding is not supported"):
        require_json({**headers, b"content-encoding": encoding})
