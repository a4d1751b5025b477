"""Models of uplift, and the evaluation that says what a policy is worth.

A name is imported when it is asked for: a command, or a server's worker, loads only the libraries that it needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_HOMES = {
    "Choice": "choice",
    "Guardrail": "certification",
    "Outcome": "decision_log",
    "choose_policy": "choice",
    "evaluate": "evaluation",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for, and nothing else: this package stays light."""
    if name not in __all__:
        raise AttributeError(f"module 'models' has no attribute {name!r}")
    return getattr(import_module(f"models.{_HOMES.get(name, 'policy')}"), name)
