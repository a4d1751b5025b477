"""The operator page at /ops/: what serves, what was decided, how it was judged, and one user's latest decision.

Plain HTML from the server, no script, nothing from elsewhere. A user is looked up by POST, so that ids do not end up in
addresses and their logs.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from bentos.advice import advice, unknown_id
from bentos.decision_log import decided_on, read_decisions
from bentos.explain import explain_logged, told
from bentos.raw_log import SUFFIX
from bentos.worker import Worker
from campaign import DataError, ModelError, StoreError, data_dir, now
from models.forward import NumpyModel
from models.registry import model_path, read_pointer
from models.verdicts import last_verdict

HERE = Path(__file__).resolve().parent
# the stylesheet is that of the reports
TEMPLATES = Environment(
    loader=FileSystemLoader([HERE / "templates", HERE.parent / "models" / "templates"]), autoescape=True
)
TEMPLATES.filters["told"] = told
TEMPLATES.filters["broken"] = lambda name: escape(name).replace("_", Markup("_<wbr>"))  # a name may break there
HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
MAX_FORM = 2048


def ops_app(worker: Worker) -> Starlette:
    """The page as an app of its own, mounted at /ops by the service."""

    async def page(request: Request) -> Response:
        return await _render(worker, None)

    async def look_up(request: Request) -> Response:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > MAX_FORM:
                return HTMLResponse("the form is too long", status_code=413, headers=HEADERS)
        try:
            form = parse_qs(body.decode(), max_num_fields=4)
        except ValueError:
            return HTMLResponse("not a form", status_code=400, headers=HEADERS)
        return await _render(worker, form.get("user_id", [""])[0][:128])

    return Starlette(routes=[Route("/", page, methods=["GET"]), Route("/", look_up, methods=["POST"])])


async def _render(worker: Worker, user_id: str | None) -> Response:
    problems = await worker.problems()
    facts = await asyncio.to_thread(page_facts, worker, user_id)
    html = TEMPLATES.get_template("ops.html").render(problems=problems, **facts)
    return HTMLResponse(html, headers=HEADERS)


def page_facts(worker: Worker, user_id: str | None) -> dict[str, Any]:
    """Everything the page shows; what cannot be read shows its error in place of its value."""
    champion = worker.decider.champion
    found = latest_decision(user_id) if user_id else None
    return {
        "now": f"{now():%Y-%m-%d %H:%M} UTC",
        "campaign": worker.decider.campaign.name,
        "currency": worker.decider.campaign.currency,
        "arms": worker.decider.campaign.arm_names,
        "serving": champion.tag,
        "load_error": champion.error,
        "pointer": _or_error(read_pointer),
        "model": _or_error(lambda: _model_facts(champion.tag)) if champion.tag else {},
        "week": _or_error(_last_week),
        "today": decided_on(now().date(), worker.settings.log_dir, data_dir() / "decisions").most_common(),
        "user_id": user_id,
        "found": found,
        "advice": _advice(user_id, found) if user_id else "",
        "moved": _or_error(lambda: _moved(worker, found)) if found and found["score"] is not None else {},
    }


def _or_error(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (OSError, ValueError, KeyError, DataError, ModelError) as error:
        return {"error": str(error)}


def _model_facts(tag: str) -> dict[str, Any]:
    """Policy values with 95% intervals, and what the model was trained on, from its model.json."""
    raw = json.loads((model_path(tag) / "model.json").read_text(encoding="utf-8"))
    values = [
        {"policy": name, "value": m["value"], "low": m["value"] - 1.96 * m["se"], "high": m["value"] + 1.96 * m["se"]}
        for name, m in sorted(raw.get("metrics", {}).items(), key=lambda item: -item[1]["value"])
    ]
    window = raw.get("data_window", {})
    trained_to = window.get("to", "")
    age = (now() - datetime.fromisoformat(trained_to).replace(tzinfo=UTC)).days if trained_to else None
    return {"values": values, "window": window, "age_days": age, "threshold": raw["policy"]["threshold"]}


def _last_week() -> dict[str, Any]:
    return last_verdict(data_dir() / "monitoring") or {}


def latest_decision(user_id: str) -> dict[str, Any] | None:
    """The newest logged decision about a user, compacted or not; None when there is none."""
    rows = [row for path in (data_dir() / "decision_log").glob(f"*{SUFFIX}") for row in _rows(path, user_id)]
    import pyarrow.dataset as ds  # half a second that no server need wait for

    files = sorted((data_dir() / "decisions").glob("date=*/*.parquet"))
    if files:
        data = ds.dataset([str(file) for file in files], format="parquet")
        rows += data.to_table(filter=ds.field("user_id") == user_id).to_pylist()
    if not rows:
        return None
    row = max(rows, key=lambda row: row["decided_at"])
    parsed = {name: json.loads(row[name]) if row[name] else {} for name in ("features", "uplift", "salts")}
    return {**row, **parsed}


def _advice(user_id: str, found: dict[str, Any] | None) -> str:
    if found:
        return advice(user_id, found["reason"], now())
    try:
        return unknown_id(user_id)
    except StoreError:  # where the service runs there need be no snapshots
        return ""


def _moved(worker: Worker, found: dict[str, Any]) -> dict[str, Any]:
    """Which of the logged features moved the score: by the model that decided, also after it was replaced."""
    bundle, tag = worker.decider.champion.serving.bundle, found["model_tag"]
    model = bundle.model if bundle is not None and bundle.tag == tag else NumpyModel.load(model_path(tag))
    features, baseline, arm = explain_logged(model, found["features"])
    return {"features": features, "baseline": baseline, "arm": arm}


def _rows(path: Path, user_id: str) -> list[dict[str, Any]]:
    """A user's rows of a raw file; none of one that is damaged, or that compaction has removed."""
    try:
        return list(read_decisions(path, user_id))
    except (DataError, FileNotFoundError):
        return []
