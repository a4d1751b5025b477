"""A fast stand-in for a platform: frames of decisions as the weekly step gets them, with a known truth.

15 normal, 10 lognormal and 5 count features share latent factors; 5 strings. Uplift is linear in three of the latents;
its size, and the base rates, are about those of the simulator (subscription 8% + 1.2 points on average, sd 7 points).
A real platform's weeks are never equal: `wobble` moves every feature's mean and the base rates a little each week.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import cache

import numpy as np
import pandas as pd

from campaign import Campaign, load_campaign
from monitoring.profile import build_profile
from monitoring.weekly import WeekInputs

NUMBERS = [f"n{i:02d}" for i in range(15)] + [f"l{i:02d}" for i in range(10)] + [f"c{i:02d}" for i in range(5)]
STRINGS = {
    "plan": (("free", "premium", "trial"), (0.6, 0.3, 0.1)),
    "device": (("android", "ios", "web"), (0.5, 0.35, 0.15)),
    "country": (("BR", "DE", "FR", "GB", "JP", "MX", "SE", "US"), (0.12, 0.1, 0.1, 0.12, 0.06, 0.1, 0.05, 0.35)),
    "age_band": (("18-24", "25-34", "35-44", "45-54", "55+"), (0.2, 0.3, 0.2, 0.15, 0.15)),
    "surface_seen": (("home", "playlist", "radio", "search"), (0.4, 0.3, 0.1, 0.2)),
}
FEATURES = dict.fromkeys(NUMBERS, "numeric") | dict.fromkeys(STRINGS, "string")
MONDAY = date(2026, 2, 2)
LOADINGS = np.random.default_rng(5).normal(0, 0.6, (6, len(NUMBERS)))


@dataclass(frozen=True)
class Truth:
    """How the platform behaves in a week. `effect` multiplies every outcome's uplift, `sub_effect` subscription's."""

    wobble: float = 0.0
    effect: float = 1.0
    sub_effect: float = 1.0
    invert: bool = False
    shift: dict[str, float] = field(default_factory=dict)  # feature -> move of its mean, sd of its latent
    new_market: float = 0.0  # share of users in a country the reference does not know


@cache
def campaign() -> Campaign:
    return load_campaign()


def make_frame(
    rng: np.random.Generator,
    n: int,
    truth: Truth = Truth(),
    *,
    monday: date = MONDAY,
    service: bool = True,
    policy: Callable[[np.ndarray], np.ndarray] | None = None,
    users: int | None = None,
    randomised: tuple[float, float] | None = None,
) -> pd.DataFrame:
    """Decisions of one week with features, predictions (of a model that knows the truth of Truth()) and outcomes.

    `service`: decided by holdout, exploration and policy (`policy`: arms of scores; or the score's), else at random.
    `users`: draw the users among so many, so that some come back; else every row has its own.
    `randomised`: shares of the holdout and of exploration; default the campaign's.
    """
    factors = rng.normal(size=(n, 6))
    moves = rng.normal(0, truth.wobble, len(NUMBERS)) if truth.wobble else np.zeros(len(NUMBERS))
    moves += [truth.shift.get(name, 0.0) for name in NUMBERS]
    latent = (factors @ LOADINGS + rng.normal(size=(n, len(NUMBERS)))) / np.sqrt(1 + (LOADINGS**2).sum(axis=0)) + moves
    columns: dict[str, np.ndarray] = {}
    for i, name in enumerate(NUMBERS):
        x = latent[:, i]
        columns[name] = x if name[0] == "n" else np.exp(x) if name[0] == "l" else np.floor(np.exp(1 + 0.7 * x))
    columns["n03"] = np.where(rng.random(n) < 0.1, np.nan, columns["n03"])
    for name, (values, shares) in STRINGS.items():
        p = np.log(shares) + (rng.normal(0, truth.wobble, len(shares)) if truth.wobble else 0)
        p = np.exp(p) / np.exp(p).sum()
        columns[name] = np.array(values, dtype=object)[np.searchsorted(np.cumsum(p)[:-1], rng.random(n))]
    if truth.new_market:
        columns["country"] = np.where(rng.random(n) < truth.new_market, "IN", columns["country"])
    a, b, c = latent[:, 0], latent[:, 1], latent[:, 2]
    predicted = {"subscription": 0.012 + 0.07 * a, "retention": 0.012 + 0.12 * b, "listening": -0.5 + 2.5 * c}
    base = {  # so that every outcome's mean stays possible under both arms
        "subscription": 0.05 + 0.07 * np.maximum(-a, 0),
        "retention": 0.78 - 0.12 * np.maximum(b, 0),
        "listening": 9.0 + 5.0 * np.abs(c),
    }
    return pd.DataFrame(
        columns | _decisions(columns, rng, predicted, base, truth, monday, service, policy, users, randomised)
    )


def _decisions(features, rng, predicted, base, truth, monday, service, policy, users, randomised):
    n, setup = len(features["country"]), campaign()
    arm_name = setup.arm_names[1]
    weights = dict(zip(setup.outcome_names, setup.weights, strict=True))
    score = sum(weights[o] * predicted[o] for o in weights) - setup.costs[1]
    policy_arm = (score > 0).astype(np.int64) if policy is None else policy(score)
    h, e = randomised or (setup.assignment.holdout_share, setup.assignment.exploration_share)
    u, v = rng.random(n), rng.integers(0, 2, n)
    if service:
        layer = np.where(u < h, "holdout", np.where(u < h + e, "exploration", "policy"))
        arm = np.where(layer == "holdout", 0, np.where(layer == "exploration", v, policy_arm))
        p_message = e / 2 + (1 - h - e) * policy_arm
    else:
        layer = np.where(u < h, "holdout", "exploration")
        arm = np.where(layer == "holdout", 0, v)
        p_message = np.full(n, (1 - h) / 2)
    start = pd.Timestamp(monday, tz="UTC")
    decided = (start + pd.to_timedelta(np.sort(rng.random(n)) * 7 * 86_400, unit="s")).as_unit("us")
    day = f"{monday:%y%m%d}-"
    frame = {"decision_id": [f"{day}{i}" for i in range(n)]}
    number = np.arange(n) if users is None else rng.integers(0, users, n)
    prefix = day if users is None else ""
    frame["user_id"] = [f"{prefix}u{i}" for i in number]
    frame["decided_at"] = decided
    frame["feature_timestamp"] = decided.floor("D")
    frame["layer"], frame["arm"], frame["policy_arm"] = layer.astype(object), arm, policy_arm
    frame["propensity"] = np.where(arm == 1, p_message, 1 - p_message)
    frame["propensities"] = list(np.column_stack([1 - p_message, p_message]))
    frame["salts"] = json.dumps({"holdout_share": h} | ({"exploration_share": e} if service else {}))
    frame["reason"] = "eligible"
    frame["model_tag"] = "tactful:0123456789ab" if service else ""
    frame["score"], frame["eligible_by_policy"] = score, policy_arm > 0
    market = features["country"] == "IN" if truth.new_market else np.zeros(n, dtype=bool)
    level = np.exp(rng.normal(0, truth.wobble)) if truth.wobble else 1.0
    strength = truth.effect * (1 + (rng.normal(0, truth.wobble) if truth.wobble else 0.0))
    for o in weights:
        tau = predicted[o] * strength * (truth.sub_effect if o == "subscription" else 1.0)
        tau = 2 * tau.mean() - tau if truth.invert else tau
        tau = np.where(market, -tau, tau)
        mean = base[o] * level + arm * tau
        y = mean * rng.exponential(size=n) if o == "listening" else (rng.random(n) < mean).astype(float)
        frame[f"uplift_{arm_name}_{o}"] = predicted[o]
        frame[f"mu_none_{o}"] = base[o]
        frame[f"y_{o}"] = y
    return frame


def make_profile(rng: np.random.Generator, n: int = 20_000, weeks: float = 2.0) -> dict:
    """Reference profile of a quiet random phase, with the lines of its predictions."""
    frame = make_frame(rng, n, service=False).assign(split="evaluate")
    return build_profile(frame, FEATURES, campaign(), weeks=weeks)


def make_inputs(profile, week_frame, matured_frame, monday: date = MONDAY, **changes) -> WeekInputs:
    values = {
        "week": monday,
        "as_of": datetime.combine(monday + timedelta(days=7), datetime.min.time(), tzinfo=UTC),
        "campaign": campaign(),
        "champion": "tactful:0123456789ab",
        "features": FEATURES,
        "week_frame": week_frame,
        "matured_frame": matured_frame,
        "profile": profile,
    }
    return WeekInputs(**(values | changes))
