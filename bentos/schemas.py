"""What `POST /decide` takes and gives: strict, nothing extra, everything bounded."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_USERS = 1000

UserId = Annotated[str, Field(min_length=1, max_length=128)]
Reason = Literal[
    "eligible",
    "below_threshold",
    "holdout",
    "exploration",
    "baseline_arm",
    "unknown_user",
    "stale_features",
    "feature_store_error",
    "model_unavailable",
    "over_budget",
]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


class Context(_Strict):
    """Where and when the message would be shown; what is not known may be left out."""

    hour: int | None = Field(default=None, ge=0, le=23, description="hour of the day, UTC")
    surface: str | None = Field(default=None, min_length=1, max_length=32, description="home, search, playlist, radio")


class DecideRequest(_Strict):
    """Users to decide about, all in one context."""

    user_ids: list[UserId] = Field(min_length=1, max_length=MAX_USERS)
    context: Context | None = None


class Decision(_Strict):
    """One user's decision; `uplift` is by message arm and outcome, `score` in money per user and window."""

    user_id: str
    eligible: bool
    arm: str
    uplift: dict[str, dict[str, float]] | None
    score: float | None
    reason: Reason


class DecideResponse(_Strict):
    """One decision per user id, in the order of the request; `model` is empty while no model is loaded."""

    model: str
    request_id: str
    decisions: list[Decision]


class Refusal(_Strict):
    """Why a request was not answered; `detail` says which fields of a body are wrong, never their values."""

    error: str
    detail: list[dict[str, Any]] = []


REFUSALS = {
    "400": "The body is not what the schema says",
    "401": "A valid token is needed",
    "405": "Only POST",
    "413": "The body is too large",
    "415": "The body is not plain JSON",
    "429": "Too many users are waiting",
}


def described(spec: dict[str, Any]) -> dict[str, Any]:
    """BentoML's OpenAPI description, with what the gate really takes and answers."""
    post = spec["paths"]["/decide"]["post"]
    responses = {str(status): value for status, value in post["responses"].items()}
    schema = {"application/json": {"schema": Refusal.model_json_schema()}}
    answers = {status: {"description": text, "content": schema} for status, text in REFUSALS.items()}
    answers["200"] = responses["200"]
    answers["503"] = {**responses["200"], "description": "Could not be logged: nobody eligible, and no decision"}
    post["responses"] = dict(sorted(answers.items()))
    # by name: BentoML's own copy of the schema has lost that the context may be null
    body = {"$ref": "#/components/schemas/DecideRequestIODescriptor"}
    post["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    spec["paths"]["/readyz"]["get"]["responses"]["503"] = {"description": "Not ready; the body says why"}
    spec["paths"]["/metrics"]["get"]["responses"]["401"] = {"description": REFUSALS["401"]}
    info = {"title": "Tactful", "version": "1", "description": "Who is eligible for a message now, and why."}
    # pydantic's schemas are those of 3.1: null is a type
    return {**spec, "openapi": "3.1.0", "info": info}
