"""Randomised message logs with known truth, for tests and benchmarks of the evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

SEND_ABOVE = 0.66  # of `x`: the policy under test messages about a third of users


@dataclass(frozen=True)
class World:
    """Users with one trait x in [0, 1); the first message helps where x > 0.45, further ones where x < 0.45.

    `holdout` is the share without message; with `varying` it depends on x. Each user has `decisions` decisions and
    one draw for all of them (a persistent holdout); outcomes of a user are correlated.
    """

    n: int = 20_000
    rate: float = 0.02
    holdout: float = 0.1
    varying: bool = False
    decisions: int = 1
    n_arms: int = 2
    seed: int = 0

    def draw(self, repetition: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
        """A log and its true mean outcomes, shape (n, n_arms)."""
        rng = np.random.default_rng([self.seed, repetition])
        user = np.repeat(np.arange(self.n // self.decisions), self.decisions)
        x, trait, unit = rng.random(len(user))[user], rng.normal(size=len(user))[user], rng.random(len(user))[user]
        send = 1 - self.holdout * (0.5 + x) if self.varying else np.full(len(user), 1 - self.holdout)
        arm = np.where(unit < send, rng.integers(1, self.n_arms, len(user)), 0)
        base = self.rate * np.exp(0.5 * trait - 0.125) * (0.6 + 0.8 * x)
        slope = np.r_[0.0, 1.2, np.full(self.n_arms - 2, -0.6)]
        mean = np.clip(base[:, None] * (1 + slope * (x[:, None] - 0.45)), 0, 1)
        log = pd.DataFrame(
            {
                "user_id": user,
                "arm": arm,
                "propensity": np.where(arm > 0, send / (self.n_arms - 1), 1 - send),
                "y": (rng.random(len(user)) < mean[np.arange(len(user)), arm]).astype(float),
                "x": x,
                "segment": np.where(x + rng.normal(size=len(user)) > 0.5, "b", "a"),
            }
        )
        return log, mean

    def score(self, log: pd.DataFrame) -> np.ndarray:
        """Score whose threshold 0 gives the policy under test: the first message above SEND_ABOVE, else none."""
        first = log["x"].to_numpy() - SEND_ABOVE
        return first if self.n_arms == 2 else np.column_stack([first] + [first - 1] * (self.n_arms - 2))

    def truth(self) -> dict[str, float]:
        """True values of the policy under test, send_all and send_none, from two million users."""
        log, mean = World(2_000_000, self.rate, 0.1, False, 1, self.n_arms, seed=99).draw()
        send = log["x"].to_numpy() > SEND_ABOVE
        return {
            "test": float(np.where(send, mean[:, 1], mean[:, 0]).mean()),
            "send_all": float(mean[:, 1:].mean()),
            "send_none": float(mean[:, 0].mean()),
        }


def guarded_log(n: int, harm: float, seed: int, segment_harm: float = 0.0) -> pd.DataFrame:
    """Half the users benefit (x > 0.5); a message costs `harm` of retention, in segment b `segment_harm` more."""
    rng = np.random.default_rng(seed)
    x, b = rng.random(n), rng.random(n) < 0.3
    arm = (rng.random(n) < 0.7).astype(int)
    kept = 0.8 - arm * (harm + segment_harm * b)
    return pd.DataFrame(
        {
            "user_id": np.arange(n),
            "arm": arm,
            "propensity": np.where(arm == 1, 0.7, 0.3),
            "y": (rng.random(n) < 0.1 + 0.1 * arm * (x - 0.5)).astype(float),
            "kept": (rng.random(n) < kept).astype(float),
            "x": x - 0.5,
            "segment": np.where(b, "b", "a"),
            "split": rng.choice(["train", "select", "evaluate"], n),
        }
    )


def guarded_gain(threshold: float) -> float:
    """True weighted gain per user (10 per y) of messaging where x > threshold in `guarded_log`."""
    t = float(np.clip(threshold, -0.5, 0.5))
    return 0.5 * (0.25 - t * t)
