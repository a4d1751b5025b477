"""The closed loop against the simulated platform: decide, log, monitor, retrain, promote, week after week."""

from rehearsal.loop import rehearse
from rehearsal.script import Result, Script, Week

__all__ = ["Result", "Script", "Week", "rehearse"]
