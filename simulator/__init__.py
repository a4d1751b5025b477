"""A stand-in streaming platform: writes raw logs as a real one would, reads decisions, knows their true effect."""

from simulator.effects import DRIFTS, OUTCOMES
from simulator.random_phase import simulate
from simulator.world import Drift, Due, World

__all__ = ["DRIFTS", "OUTCOMES", "Drift", "Due", "World", "simulate"]
