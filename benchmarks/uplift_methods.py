"""The methods that the uplift benchmark compares: (train, test) -> score of each message for each test user.

EconML and causalml take one outcome, so they get the weighted value, and one-hot strings. Their forests' smallest
leaf was chosen among 20, 50 and 200 on seed 0 (smooth, 20,000 users). causalml's X-learner gives EconML's scores to
four digits with the same trees, so only one is run.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.peers import fit_lightgbm_t
from benchmarks.uplift_results import NETWORK
from benchmarks.worlds import OUTCOMES, WEIGHTS, World
from models.baselines import fit_lightgbm_s, fit_linear_t
from models.decision_log import Outcome
from models.spec import FitSpec, columns_of
from models.train import fit

Method = Callable[[World, World], np.ndarray]

PEER = Path(__file__).with_name("uplift_peer.py")

coverage: dict[str, float] = {}  # of the network's 90% score intervals in the run at hand
spent_elsewhere: dict[str, float] = {}  # CPU-s of the fit alone: starting Python and reading files is not the learner's


def spec_of(world: World, **changes: object) -> FitSpec:
    """The default configuration for a world."""
    arms = ("none", *(f"message{i}" for i in range(1, world.mu.shape[1])))
    outcomes = tuple(Outcome(*outcome) for outcome in OUTCOMES)
    return FitSpec(world.features, arms, outcomes, **changes)  # type: ignore[arg-type]


def uplift_score(mu_hat: np.ndarray) -> np.ndarray:
    """Score of each message, (n, n_messages)."""
    return np.asarray((mu_hat[:, 1:] - mu_hat[:, :1]) @ WEIGHTS)


def ours(fit_one: Callable, **changes: object) -> Method:
    """Train with `fit_one` on one world's frame, score another's."""

    def method(train: World, test: World) -> np.ndarray:
        return uplift_score(fit_one(train.frame, spec_of(train, **changes)).predict(test.frame))

    return method


def network(train: World, test: World) -> np.ndarray:
    """The default configuration; also notes how often its 90% intervals hold the true score."""
    fitted = fit(train.frame, spec_of(train))
    columns = columns_of(test.frame, test.features)
    lower, upper = (limit[..., -1] for limit in fitted.model.interval(columns))
    coverage[NETWORK] = round(float(((lower <= test.value) & (test.value <= upper)).mean()), 3)
    return uplift_score(fitted.model.predict(columns))


def separate_models(train: World, test: World) -> np.ndarray:
    """One binary network per message, each on control and that message only."""
    scores = []
    for arm in range(1, train.mu.shape[1]):
        rows = train.frame["arm"].isin([0, arm]).to_numpy()
        frame = train.frame[rows].assign(arm=(train.frame.loc[rows, "arm"] == arm).astype(int))
        scores.append(network(World(frame, train.features, train.mu[rows][:, [0, arm]]), test)[:, 0])
    return np.column_stack(scores)


def plain_network(train: World, test: World) -> np.ndarray:
    """The plain net: trunk 64-32, a linear head per arm, factual loss, nothing else."""
    import torch
    from torch import nn

    from models import encode as enc
    from models.optimise import one_thread

    columns = columns_of(train.frame, train.features)
    features = enc.fit_features(columns)
    state = enc.fit_encoding(columns, features)

    def inputs(world: World) -> torch.Tensor:
        dense = enc.dense_inputs(columns_of(world.frame, world.features), features, state)
        return torch.from_numpy(dense)

    names = [name for name, _, _ in OUTCOMES]
    y = train.frame[names].to_numpy(dtype=np.float32)
    center, scale = np.array([0, 0, y[:, 2].mean()]), np.array([1, 1, y[:, 2].std()])
    target = torch.from_numpy(((y - center) / scale).astype(np.float32))
    arm, n_arms = torch.from_numpy(train.frame["arm"].to_numpy()), train.mu.shape[1]
    torch.manual_seed(0)
    with one_thread():
        x = inputs(train)
        net = nn.Sequential(
            nn.Linear(x.shape[1], 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, n_arms * 3)
        )
        epochs, batch = 12, 1024
        adam = torch.optim.AdamW(net.parameters(), lr=2e-3, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, epochs * -(-len(x) // batch))
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(batch):
                z = net(x[rows]).view(-1, n_arms, 3)[torch.arange(len(rows)), arm[rows]]
                binary = nn.functional.binary_cross_entropy_with_logits(z[:, :2], target[rows, :2])
                loss = 2 * binary + 0.5 * nn.functional.mse_loss(z[:, 2], target[rows, 2])
                adam.zero_grad()
                loss.backward()
                adam.step()
                schedule.step()
        with torch.no_grad():
            z = net(inputs(test)).view(-1, n_arms, 3).numpy().astype(float)
    return uplift_score(np.concatenate([1 / (1 + np.exp(-z[..., :2])), z[..., 2:] * scale[2] + center[2]], axis=2))


def elsewhere(learner: str) -> Method:
    """A learner of EconML or causalml on the weighted value (they take one outcome), one-hot strings."""

    def method(train: World, test: World) -> np.ndarray:
        python = os.environ[f"TACTFUL_{learner.split()[0].upper()}_PYTHON"]
        both = pd.get_dummies(pd.concat([train.frame, test.frame])[list(train.features)], dtype=float).fillna(-9.0)
        parts = {"train": both[: len(train.frame)], "test": both[len(train.frame) :]}
        with tempfile.TemporaryDirectory() as folder:
            for (name, part), world in zip(parts.items(), (train, test), strict=True):
                value = world.frame[[o[0] for o in OUTCOMES]].to_numpy() @ WEIGHTS
                part.assign(arm=world.frame["arm"].to_numpy(), value=value).to_parquet(f"{folder}/{name}.parquet")
            paths = (f"{folder}/train.parquet", f"{folder}/test.parquet")
            subprocess.run([python, PEER, *paths, learner, f"{folder}/out.npz"], check=True, capture_output=True)
            found = np.load(f"{folder}/out.npz")
            spent_elsewhere[learner] = float(found["cpu"])
            return np.asarray(found["score"]).reshape(-1, 1)

    return method


METHODS: dict[str, Method] = {
    NETWORK: network,
    "plain network": plain_network,
    "separate networks": separate_models,
    "linear T-learner": ours(fit_linear_t),
    "LightGBM S-learner": ours(fit_lightgbm_s),
    "LightGBM T-learner": ours(fit_lightgbm_t),
}


ELSEWHERE = {
    "EconML X-learner": "econml x",
    "EconML linear DR-learner": "econml dr",
    "EconML causal forest": "econml forest",
    "causalml R-learner": "causalml r",
    "causalml causal forest": "causalml forest",
}
METHODS |= {name: elsewhere(learner) for name, learner in ELSEWHERE.items()}
