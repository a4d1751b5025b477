"""What the service is compared with: a FastAPI no-op, a BentoML no-op, and a service as one would first write it."""

from __future__ import annotations

import os

import bentoml
from fastapi import FastAPI
from pydantic import BaseModel


class Request(BaseModel):
    """The body of /decide."""

    user_ids: list[str]
    context: dict[str, int | str] | None = None


class Decision(BaseModel):
    """One user's answer."""

    user_id: str
    eligible: bool
    score: float


class Response(BaseModel):
    """All answers of a request."""

    decisions: list[Decision]


app = FastAPI()


@app.post("/decide")
async def decide(request: Request) -> Response:
    """Answer without looking at anything."""
    return Response(decisions=[Decision(user_id=u, eligible=False, score=0.0) for u in request.user_ids])


@bentoml.service(http={"host": "127.0.0.1"})
class Noop:
    """BentoML as it comes: access log, metrics, tracing, a dict out."""

    @bentoml.api
    async def decide(self, user_ids: list[str], context: dict[str, int | str]) -> dict:
        """Answer without looking at anything."""
        return {"decisions": [{"user_id": u, "eligible": False, "score": 0.0} for u in user_ids]}


@bentoml.service(http={"host": "127.0.0.1"})
class Naive:
    """BentoML as it comes, get_online_features for every request, a torch network of the usual size."""

    def __init__(self):
        import torch

        from feature_repo.retrieval import feature_schema, open_store

        torch.set_num_threads(1)
        self.torch = torch
        self.store = open_store(os.environ["TACTFUL_FEATURE_REPO"])
        # asked for once: Feast builds a service, and everything it refers to, anew on each call (15 ms a request)
        self.service = self.store.get_feature_service("uplift_v1")
        self.names = [n for n, kind in feature_schema(self.store).types.items() if kind == "numeric"]
        layers = [torch.nn.Linear(len(self.names), 64), torch.nn.ReLU(), torch.nn.Linear(64, 32), torch.nn.ReLU()]
        self.net = torch.nn.Sequential(*layers, torch.nn.Linear(32, 6)).eval()

    @bentoml.api
    async def decide(self, user_ids: list[str], context: dict[str, int | str]) -> dict:
        """Read, predict, answer."""
        n = len(user_ids)
        rows = {"user_id": user_ids, "hour": [context["hour"]] * n, "surface": [context["surface"]] * n}
        found = self.store.get_online_features(self.service, rows).to_dict()
        columns = [[0.0 if v is None else v for v in found[name]] for name in self.names]
        with self.torch.inference_mode():
            score = self.net(self.torch.tensor(columns).T).sum(dim=1).tolist()
        return {
            "decisions": [{"user_id": u, "eligible": s > 0, "score": s} for u, s in zip(user_ids, score, strict=True)]
        }
