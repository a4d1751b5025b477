"""Is it still true, and better than not doing it? Data checks, drift, realised uplift, the weekly decision."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monitoring.experiment.plan import ExperimentPlan
    from monitoring.experiment.read import Readout, read_experiment

__all__ = ["ExperimentPlan", "Readout", "read_experiment"]

_HOMES = {"ExperimentPlan": "plan", "Readout": "read", "read_experiment": "read"}


def __getattr__(name: str) -> Any:
    """Import what is asked for, and nothing else: this package stays light."""
    if name not in _HOMES:
        raise AttributeError(f"module 'monitoring' has no attribute {name!r}")
    return getattr(import_module(f"monitoring.experiment.{_HOMES[name]}"), name)
