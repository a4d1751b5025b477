"""Hillstrom's e-mail experiment: ranking of one message against none, and the best of two messages."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pandas as pd

from benchmarks.peers import fit_lightgbm_t, sklift_qini
from benchmarks.uplift_results import NETWORK, cpu_seconds, finished, keep
from models.baselines import fit_lightgbm_s, fit_linear_t
from models.decision_log import Outcome
from models.spec import FitSpec
from models.train import fit

HILLSTROM_FEATURES = {
    "recency": "numeric",
    "history": "numeric",
    "mens": "numeric",
    "womens": "numeric",
    "newbie": "numeric",
    "zip_code": "string",
    "channel": "string",
    "history_segment": "string",
}
HILLSTROM_ARMS = ("No E-Mail", "Womens E-Mail", "Mens E-Mail")
HILLSTROM_METHODS: dict[str, Callable] = {
    NETWORK: fit,
    "linear T-learner": fit_linear_t,
    "LightGBM S-learner": fit_lightgbm_s,
    "LightGBM T-learner": fit_lightgbm_t,
}


def hillstrom(arms: tuple[str, ...]) -> tuple[pd.DataFrame, FitSpec]:
    """Rows of these arms, `arm` as index; the file is the user's own ($TACTFUL_HILLSTROM)."""
    frame = pd.read_csv(os.environ["TACTFUL_HILLSTROM"])
    frame = frame[frame["treatment"].isin(arms)].reset_index(drop=True)
    frame = frame.assign(arm=frame["treatment"].map({name: i for i, name in enumerate(arms)}).astype(int))
    return frame, FitSpec(HILLSTROM_FEATURES, arms, (Outcome("visit", "binary", 1.0),))  # type: ignore[arg-type]


def folds_of(n: int, repeats: int, share: int = 5) -> Iterator[tuple[str, np.ndarray]]:
    """Test rows of repeated cross-validation, with a name."""
    for repeat in range(repeats):
        fold = np.random.default_rng(repeat).permutation(n) % share
        for k in range(share):
            yield f"{repeat}.{k}", fold == k


def run_hillstrom() -> None:
    """scikit-uplift's Qini of visits, women's e-mail against none, of every fold and method."""
    frame, spec = hillstrom(HILLSTROM_ARMS[:2])
    done = finished()
    for name, test in folds_of(len(frame), repeats=2):
        held_out = frame[test]
        for method, fit_one in HILLSTROM_METHODS.items():
            if ("hillstrom", "visit", 0.5, name, method) in done:
                continue
            start = cpu_seconds()
            mu_hat = fit_one(frame[~test], spec).predict(held_out)
            score = mu_hat[:, 1, 0] - mu_hat[:, 0, 0]
            qini = sklift_qini(held_out["visit"].to_numpy(float), score, held_out["arm"].to_numpy())
            row = {"part": "hillstrom", "kind": "visit", "control": 0.5, "seed": name, "method": method}
            keep(row | {"policy": round(qini, 4), "cpu": round(cpu_seconds() - start, 1)})


def run_hillstrom_arms() -> None:
    """Visits per user of the best-arm policy, men's, women's or no e-mail, by inverse propensity on held-out folds.

    An e-mail costs .05 visits here: without a cost nearly everybody should get one, and nothing could be told apart.
    """
    frame, spec = hillstrom(HILLSTROM_ARMS)
    done = finished()
    for name, test in folds_of(len(frame), repeats=1):
        held_out, training = frame[test], frame[~test]
        arm, visit = held_out["arm"].to_numpy(), held_out["visit"].to_numpy(float)

        def one_model(training: pd.DataFrame = training, held_out: pd.DataFrame = held_out) -> np.ndarray:
            mu_hat = fit(training, spec).predict(held_out)[..., 0]
            return np.asarray(mu_hat[:, 1:] - mu_hat[:, :1])

        def two_models(training: pd.DataFrame = training, held_out: pd.DataFrame = held_out) -> np.ndarray:
            scores = []
            for message in (1, 2):
                rows = training[training["arm"].isin([0, message])]
                two = replace(spec, arms=("none", "message"))
                mu_hat = fit(rows.assign(arm=(rows["arm"] > 0).astype(int)), two).predict(held_out)[..., 0]
                scores.append(mu_hat[:, 1] - mu_hat[:, 0])
            return np.column_stack(scores)

        for method, scores_of in ((NETWORK, one_model), ("separate networks", two_models)):
            if ("hillstrom arms", "visit", 0.33, name, method) in done:
                continue
            score = scores_of() - 0.05
            chosen = np.where(score.max(axis=1) > 0, score.argmax(axis=1) + 1, 0)
            matched = chosen == arm
            value = ((visit - 0.05 * (arm > 0)) * matched).sum() / matched.sum()
            row = {"part": "hillstrom arms", "kind": "visit", "control": 0.33, "seed": name, "method": method}
            keep(row | {"policy": round(100 * value, 3)})
