"""Simulated message experiments with known effects; the structure of a world varies with its seed.

Three kinds, three outcomes each (a rare binary, a common binary, a skewed continuous one), worth 3, 1 and .15:

- **smooth**: 24 numeric features; effects are smooth on the logit scale; about half of the users have a negative value.
- **steps**: 30 features, 18 of them noise, 3 strings with 12, 4 and 3 levels, heavy-tailed counts and missing values;
  effects are steps of two or three features at once.
- **additive**: 20 correlated features; effects on the probability scale, small against their mean: send-all is nearly
  the best there is.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit

KINDS = ("smooth", "steps", "additive")
OUTCOMES = (("bought", "binary", 3.0), ("stayed", "binary", 1.0), ("hours", "continuous", 0.15))
REFERENCE = 4000
WEIGHTS = np.array([weight for _, _, weight in OUTCOMES])


class World(NamedTuple):
    """One sample: `frame` has the features, `arm`, `propensity` and outcomes; `mu` (n, n_arms, 3) is the truth."""

    frame: pd.DataFrame
    features: dict[str, str]
    mu: np.ndarray

    @property
    def value(self) -> np.ndarray:
        """True score of each message; (n, n_messages)."""
        return np.asarray((self.mu[:, 1:] - self.mu[:, :1]) @ WEIGHTS)


def make_world(
    kind: str, n: int, seed: int, control: float, *, part: int = 0, messages: int = 1, rare: float = 0.04
) -> World:
    """Draw n users of a world.

    Args:
        kind: one of KINDS.
        n: users.
        seed: fixes the world: who reacts, and how.
        control: share of users without a message.
        part: another number draws other users of the same world (train 0, test 1).
        messages: message arms, equally likely.
        rare: base rate of the rare outcome, about.
    """
    structure = [seed, KINDS.index(kind)]
    frame, inputs = _FEATURES[kind](n, np.random.default_rng(structure), np.random.default_rng([*structure, 1, part]))
    # functions are standardised on the same reference users in every part
    world = np.random.default_rng(structure)
    _, reference = _FEATURES[kind](REFERENCE, world, np.random.default_rng([*structure, 2]))
    mu = _means(kind, np.vstack([reference, inputs]), world, messages, rare)[REFERENCE:]
    users = np.random.default_rng([*structure, 3, part])
    propensities = np.array([control] + [(1 - control) / messages] * messages)
    arm = users.choice(messages + 1, size=n, p=propensities)
    taken = mu[np.arange(n), arm]
    frame = frame.assign(
        arm=arm,
        propensity=propensities[arm],
        bought=(users.random(n) < taken[:, 0]).astype(float),
        stayed=(users.random(n) < taken[:, 1]).astype(float),
        # gamma with shape .8: skewed, sd a little above the mean
        hours=users.gamma(0.8, taken[:, 2] / 0.8),
    )
    features = {
        name: "string" if frame[name].dtype == object else "numeric" for name in frame.columns[: inputs.shape[1]]
    }
    return World(frame, features, mu)


def _smooth_features(n: int, world: np.random.Generator, users: np.random.Generator) -> tuple[pd.DataFrame, np.ndarray]:
    mix = np.eye(24) + 0.25 * world.normal(size=(24, 24)) / np.sqrt(24)
    latent = users.normal(size=(n, 24)) @ mix
    observed = latent.copy()
    observed[:, :6] = np.exp(observed[:, :6])  # as counts and minutes are: skewed
    observed[:, 20:] = observed[:, 20:] > 0.5
    frame = pd.DataFrame(observed, columns=[f"x{i}" for i in range(24)])
    return frame, np.where(np.arange(24) < 20, latent, observed)


def _steps_features(n: int, world: np.random.Generator, users: np.random.Generator) -> tuple[pd.DataFrame, np.ndarray]:
    latent = users.normal(size=(n, 30))
    latent[:, 1:9] += 0.4 * latent[:, [0]]
    frame = pd.DataFrame(latent.copy(), columns=[f"x{i}" for i in range(30)])
    for i in range(3, 9):
        frame[f"x{i}"] = np.floor(np.exp(1 + 0.9 * latent[:, i]))  # heavy-tailed counts
    for i in (3, 12):
        frame.loc[users.random(n) < 0.08, f"x{i}"] = np.nan
    for i, levels in enumerate((12, 4, 3)):
        share = world.dirichlet(np.full(levels, 3.0))
        latent[:, i] = users.choice(levels, size=n, p=share)
        frame[f"x{i}"] = np.array([f"level{j}" for j in range(levels)], dtype=object)[latent[:, i].astype(int)]
    return frame, latent


def _additive_features(
    n: int, world: np.random.Generator, users: np.random.Generator
) -> tuple[pd.DataFrame, np.ndarray]:
    factors = world.normal(size=(4, 20))
    latent = users.normal(size=(n, 4)) @ factors * 0.5 + 0.7 * users.normal(size=(n, 20))
    latent /= np.sqrt((factors**2).sum(axis=0) * 0.25 + 0.49)
    frame = pd.DataFrame(latent.copy(), columns=[f"x{i}" for i in range(20)])
    frame.iloc[:, 10:15] = np.exp(latent[:, 10:15])
    return frame, latent


_FEATURES = {"smooth": _smooth_features, "steps": _steps_features, "additive": _additive_features}


def _standard(x: np.ndarray) -> np.ndarray:
    return np.asarray((x - x[:REFERENCE].mean()) / x[:REFERENCE].std())


def _smooth_function(x: np.ndarray, world: np.random.Generator) -> np.ndarray:
    """Six linear terms, three bends, two products."""
    out = x[:, world.choice(24, 6, replace=False)] @ (world.normal(size=6) * 0.5)
    for _ in range(3):
        a, b = world.choice(20, 2, replace=False)
        out = out + world.normal() * np.tanh(1.5 * x[:, a] + x[:, b])
    for _ in range(2):
        a, b = world.choice(20, 2, replace=False)
        out = out + 0.4 * world.normal() * x[:, a] * x[:, b]
    return _standard(out)


def _step_function(x: np.ndarray, world: np.random.Generator) -> np.ndarray:
    """Five steps, each where two or three conditions hold at once; only features 0-11 matter."""
    out = np.zeros(len(x))
    for _ in range(5):
        holds = np.ones(len(x), dtype=bool)
        for feature in world.choice(12, world.integers(2, 4), replace=False):
            holds &= _condition(x[:, feature], feature, world)
        out += world.choice((-1, 1)) * world.uniform(0.6, 1.4) * holds
    return _standard(out)


def _condition(column: np.ndarray, feature: int, world: np.random.Generator) -> np.ndarray:
    """A string column in a set of levels, or a numeric one above or below a threshold; about half of the users."""
    if feature < 3:
        levels = (12, 4, 3)[feature]
        return np.isin(column, world.choice(levels, max(1, levels // 2), replace=False))
    threshold = np.quantile(column[:REFERENCE], world.uniform(0.3, 0.7))
    return np.asarray((column > threshold) if world.random() < 0.5 else (column <= threshold))


def _linear_function(x: np.ndarray, world: np.random.Generator) -> np.ndarray:
    """Eight linear terms."""
    return _standard(np.asarray(x[:, world.choice(20, 8, replace=False)] @ world.normal(size=8)))


_FUNCTIONS = {"smooth": _smooth_function, "steps": _step_function, "additive": _linear_function}


def _means(kind: str, x: np.ndarray, world: np.random.Generator, messages: int, rare: float) -> np.ndarray:
    """Expected outcomes under every arm; (n, n_arms, 3)."""

    def draw() -> np.ndarray:
        return _FUNCTIONS[kind](x, world)

    base = [np.log(rare / (1 - rare)) + 0.7 * draw(), 1.3 + 0.6 * draw(), 1.2 + 0.4 * draw()]
    arms = [np.column_stack([expit(base[0]), expit(base[1]), np.exp(base[2])])]
    for _ in range(messages):
        shared = draw()  # who likes messages is partly the same for all outcomes
        effect = [0.6 * shared + 0.8 * draw() for _ in range(3)]
        arms.append(_additive_arm(arms[0], effect, rare) if kind == "additive" else _logit_arm(base, effect))
    return np.stack(arms, axis=1)


def _logit_arm(base: list[np.ndarray], effect: list[np.ndarray]) -> np.ndarray:
    """Effects on the logit (log for the continuous outcome)."""
    return np.column_stack(
        [expit(base[0] + 0.8 * effect[0]), expit(base[1] + 0.55 * effect[1]), np.exp(base[2] + 0.2 * effect[2])]
    )


def _additive_arm(control: np.ndarray, effect: list[np.ndarray], rare: float) -> np.ndarray:
    """Effects on the outcome's own scale, all positive on average, sd of the value about .6 of its mean."""
    moved = control + np.array([0.5 * rare, 0.05, 0.5]) * (1 + 0.9 * np.column_stack(effect))
    return np.asarray(np.clip(moved, [0.0005, 0.01, 0.1], [0.6, 0.99, np.inf]))
