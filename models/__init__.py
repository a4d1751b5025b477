"""Models of uplift, and the evaluation that says what a policy is worth.

Importing this package needs numpy, pandas and scipy only; torch and lightgbm are imported where a model is trained.
"""

from models.certification import Guardrail
from models.choice import Choice, choose_policy
from models.decision_log import Outcome
from models.evaluation import evaluate
from models.policy import (
    LoggingPolicy,
    Policy,
    RandomShare,
    SendAll,
    SendNone,
    Threshold,
    TopShare,
    response_baseline,
)

__all__ = [
    "Choice",
    "Guardrail",
    "LoggingPolicy",
    "Outcome",
    "Policy",
    "RandomShare",
    "SendAll",
    "SendNone",
    "Threshold",
    "TopShare",
    "choose_policy",
    "evaluate",
    "response_baseline",
]
