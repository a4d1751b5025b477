"""A model small enough to check by hand: one message arm or two, uplift linear in the first feature."""

from dataclasses import dataclass

import numpy as np

from bentos.bundle import OK, Bundle, Rows
from models.decision_log import Outcome
from models.spec import Feature, ModelSpec


@dataclass(frozen=True)
class Linear:
    """mu_hat[arm a, outcome o] = a * x * (o + 1), with x the numeric feature."""

    spec: ModelSpec

    def predict(self, columns):
        x = columns["x"][:, None, None]
        arms, outcomes = np.arange(len(self.spec.arms)), np.arange(1, len(self.spec.outcomes) + 1)
        with np.errstate(invalid="ignore"):
            return x * arms[None, :, None] * outcomes[None, None, :]


def make_bundle(campaign, threshold=0.5, tag="tactful:test"):
    targets = tuple(Outcome(o.name, o.kind, 1.0) for o in campaign.outcome)
    costs = tuple(0.25 if a else 0.0 for a in range(len(campaign.arm)))
    features = (Feature("x", "numeric"), Feature("plan", "string", ("free", None)))
    spec = ModelSpec(features, campaign.arm_names, targets, costs, 1)
    return Bundle(tag, Linear(spec), threshold, "uplift_v1", "schema", campaign.hash, "policy")


def make_rows(x, status=None):
    x = np.asarray(x, dtype=float)
    codes = np.full(len(x), OK) if status is None else np.asarray(status)
    strings = np.full((len(x), 1), "free", dtype=object)
    return Rows(x[:, None], strings, codes, np.full(len(x), 1_780_000_000_000_000))
