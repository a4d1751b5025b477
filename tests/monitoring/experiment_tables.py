"""A made experiment that the tests of its read-out share."""

import numpy as np
import pandas as pd

from monitoring.experiment.plan import ExperimentPlan, Metric

SUBSCRIPTION = Metric(name="subscription", kind="binary", role="success")
LISTENING = Metric(name="listening", kind="continuous", role="success", covariate="listening_before")
RETENTION = Metric(name="retention", kind="binary", role="guardrail", margin=0.03, segment_margin=0.08)
PLAN = ExperimentPlan(segments=("plan",), metric=(SUBSCRIPTION, RETENTION))


def users(n=6000, lift=0.0, harm=0.0, harmed="free", share=0.5, seed=1):
    """A made experiment: subscription moves by `lift`, retention by `harm` in one segment."""
    rng = np.random.default_rng(seed)
    treated = rng.random(n) < share
    plan = rng.choice(["free", "trial", "premium"], n, p=[0.5, 0.2, 0.3])
    before = rng.gamma(2.0, 2.0, n)
    return pd.DataFrame(
        {
            "user_id": [f"u{i}" for i in range(n)],
            "variant": np.where(treated, "treatment", "control"),
            "plan": plan,
            "subscription": (rng.random(n) < 0.10 + lift * treated).astype(float),
            "retention": (rng.random(n) < 0.80 + harm * (treated & (plan == harmed))).astype(float),
            "listening": 0.8 * before + rng.gamma(2.0, 1.0, n),
            "listening_before": before,
        }
    )
