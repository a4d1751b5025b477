"""The uplift network against its peers, on simulated experiments with known effects.

    python benchmarks/uplift.py accuracy               # six cells, fresh seeds; appends to benchmarks/uplift.csv
    python benchmarks/uplift.py small rare messages    # other parts, the keys of PARTS
    python benchmarks/uplift.py report                 # only writes docs/benchmarks.md from the csv

Seeds SEEDS were fixed before any of them was run; options, of the peers too, were chosen on seeds 0-5. Policy: value
of messaging where the predicted score is above 0, in percent of the oracle's. PEHE: root mean squared error of the
score over its sd. EconML and causalml run from Pythons of their own, which $TACTFUL_ECONML_PYTHON and
$TACTFUL_CAUSALML_PYTHON name.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.worlds import KINDS, OUTCOMES, WEIGHTS, World, make_world
from models.baselines import fit_lightgbm_s, fit_lightgbm_t, fit_linear_t
from models.curves import sklift_qini
from models.decision_log import Outcome
from models.spec import FitSpec, columns_of
from models.train import fit

RESULTS = Path(__file__).with_suffix(".csv")
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
SEEDS = (200, 201, 202, 203)
CELLS = [(kind, control) for kind in KINDS for control in (0.07, 0.5)]
NETWORK = "network"
COLUMNS = ["part", "kind", "control", "seed", "method", "policy", "pehe", "cpu", "constant", "coverage"]


def spec_of(world: World, **changes: object) -> FitSpec:
    """The default configuration for a world."""
    arms = ("none", *(f"message{i}" for i in range(1, world.mu.shape[1])))
    outcomes = tuple(Outcome(*outcome) for outcome in OUTCOMES)
    return FitSpec(world.features, arms, outcomes, **changes)  # type: ignore[arg-type]


def uplift_score(mu_hat: np.ndarray) -> np.ndarray:
    """Score of each message, (n, n_messages)."""
    return np.asarray((mu_hat[:, 1:] - mu_hat[:, :1]) @ WEIGHTS)


def ours(fit_one: Callable, **changes: object) -> Callable[[World, World], np.ndarray]:
    """Train with `fit_one` on one world's frame, score another's."""

    def method(train: World, test: World) -> np.ndarray:
        return uplift_score(fit_one(train.frame, spec_of(train, **changes)).predict(test.frame))

    return method


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


PEER = """
import sys, time, warnings
import numpy as np, pandas as pd
warnings.filterwarnings("ignore")
from lightgbm import LGBMRegressor
from sklearn.dummy import DummyClassifier
train, test, learner, out = sys.argv[1:]
a, b = pd.read_parquet(train), pd.read_parquet(test)
names = [c for c in a.columns if c not in ("arm", "value")]
x, new, arm, y = a[names].to_numpy(), b[names].to_numpy(), a["arm"].to_numpy(), a["value"].to_numpy()
settings = dict(n_estimators=150, num_leaves=7, learning_rate=.05, min_child_samples=100, n_jobs=1, verbose=-1)
reg = lambda: LGBMRegressor(**settings)
start = time.process_time()
if learner == "econml x":
    from econml.metalearners import XLearner
    model = XLearner(models=reg(), cate_models=reg(), propensity_model=DummyClassifier()).fit(y, arm, X=x)
    score = model.effect(new)
elif learner == "econml dr":
    from econml.dr import LinearDRLearner
    model = LinearDRLearner(model_propensity=DummyClassifier(), model_regression=reg(), cv=3).fit(y, arm, X=x)
    score = model.effect(new)
elif learner == "econml forest":
    from econml.dml import CausalForestDML
    model = CausalForestDML(model_y=reg(), model_t=DummyClassifier(), discrete_treatment=True, n_estimators=200,
                            min_samples_leaf=50, cv=3, n_jobs=1, random_state=0).fit(y, arm, X=x)
    score = model.effect(new)
elif learner == "causalml x":
    from causalml.inference.meta import BaseXRegressor
    share = (arm == 1).mean()
    model = BaseXRegressor(learner=reg())
    model.fit(x, arm, y, p=np.full(len(y), share))
    score = model.predict(new, p=np.full(len(new), share))
else:
    from causalml.inference.tree import CausalRandomForestRegressor
    model = CausalRandomForestRegressor(n_estimators=100, min_samples_leaf=50, control_name=0, n_jobs=1, random_state=0)
    model.fit(X=x, treatment=arm, y=y)
    score = model.predict(new)
np.savez(out, score=np.ravel(score), cpu=time.process_time() - start)
"""


def elsewhere(learner: str) -> Callable[[World, World], np.ndarray]:
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
            subprocess.run([python, "-c", PEER, *paths, learner, f"{folder}/out.npz"], check=True, capture_output=True)
            found = np.load(f"{folder}/out.npz")
            spent_elsewhere[learner] = float(found["cpu"])
            return np.asarray(found["score"]).reshape(-1, 1)

    return method


spent_elsewhere: dict[str, float] = {}  # CPU-s of the fit alone: starting Python and reading files is not the learner's
coverage: dict[str, float] = {}  # of the network's 90% score intervals in the run at hand


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


WEIGHT_VECTORS = {
    "3, 1, .15": (3.0, 1.0, 0.15),
    "1, 0, 0": (1.0, 0.0, 0.0),
    "1, 4, 0": (1.0, 4.0, 0.0),
    "0, 0, 1": (0.0, 0.0, 1.0),
}


def run_weights() -> None:
    """For other weights: oracle value of the policy from the default fit, and from a fit made for those weights."""
    done = finished()
    for seed, kind in product(SEEDS, KINDS):
        train, test = (make_world(kind, n, seed, 0.1, part=i) for i, n in enumerate((20_000, 40_000)))
        fits: dict[str, np.ndarray] = {}
        for name, weights in list(WEIGHT_VECTORS.items())[1:]:
            for method in ("one fit for all weights", "fit for these weights"):
                label = f"{kind} ({name})"
                if ("weights", label, 0.1, str(seed), method) in done:
                    continue
                key = name if method == "fit for these weights" else next(iter(WEIGHT_VECTORS))
                if key not in fits:
                    outcomes = tuple(Outcome(o[0], o[1], w) for o, w in zip(OUTCOMES, WEIGHT_VECTORS[key], strict=True))  # type: ignore[arg-type]
                    fits[key] = fit(train.frame, replace(spec_of(train), outcomes=outcomes)).predict(test.frame)
                truth, score = ((mu[:, 1] - mu[:, 0]) @ weights for mu in (test.mu, fits[key]))
                policy = 100 * np.where(score > 0, truth, 0).mean() / np.maximum(truth, 0).mean()
                row = {"part": "weights", "kind": label, "control": 0.1, "seed": seed, "method": method}
                keep(row | {"policy": round(float(policy), 2)})


METHODS: dict[str, Callable[[World, World], np.ndarray]] = {
    NETWORK: network,
    "network without rules": ours(fit, rules=0),
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
    "causalml X-learner": "causalml x",
    "causalml causal forest": "causalml forest",
}
METHODS |= {name: elsewhere(learner) for name, learner in ELSEWHERE.items()}


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
    """Rows of these arms, `arm` as index; the file is the user's own ($TACTFUL_HILLSTROM), see the README."""
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


def fold_table(results: pd.DataFrame) -> str:
    """Mean of every method over folds, and the network's paired difference to it."""
    wide = results.pivot_table(index="seed", columns="method", values="policy")
    lines = ["| method | mean ± SE over folds | network minus it, paired |", "|---|---|---|"]
    for name in dict.fromkeys(results.method):
        apart = wide[NETWORK] - wide[name]
        error = apart.std() / np.sqrt(len(apart))
        paired = "" if name == NETWORK else f"{apart.mean():+.4f} ± {error:.4f}"
        mean = f"{wide[name].mean():.4f} ± {wide[name].std() / np.sqrt(len(wide)):.4f}"
        lines.append(f"| {name} | {mean} | {paired} |")
    return "\n".join(lines)


def finished() -> set[tuple[object, ...]]:
    """What the csv has: (part, kind, control, seed, method)."""
    if not RESULTS.exists():
        return set()
    old = pd.read_csv(RESULTS, dtype={"seed": str})
    return set(zip(old.part, old.kind, old.control, old.seed, old.method, strict=True))


def cpu_seconds() -> float:
    """CPU time of this process and of finished children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def grade(score: np.ndarray, test: World) -> tuple[float, float]:
    """Policy value in percent of the oracle's, and PEHE over sd."""
    truth = test.value
    best = score.argmax(axis=1)
    reached = np.where(score.max(axis=1) > 0, truth[np.arange(len(truth)), best], 0).mean()
    oracle = np.maximum(truth.max(axis=1), 0).mean()
    return 100 * reached / oracle, float(np.sqrt(((score - truth) ** 2).mean()) / truth.std())


def constant_policy(test: World) -> float:
    """The better of send-none and the best send-all, in percent of the oracle's."""
    return float(100 * max(test.value.mean(axis=0).max(), 0) / np.maximum(test.value.max(axis=1), 0).mean())


def run(part: str, methods: list[str], seeds: tuple[int, ...], cells: list[tuple[str, float]], n: int, **world: float):
    """One part: every method on every cell and seed; results are kept as they come, so it can be cut short."""
    done = finished()
    for seed in seeds:
        for kind, control in cells:
            if all((part, kind, control, str(seed), method) in done for method in methods):
                continue
            train = make_world(kind, n, seed, control, **world)  # type: ignore[arg-type]
            test = make_world(kind, 40_000, seed, control, part=1, **world)  # type: ignore[arg-type]
            for method in methods:
                if (part, kind, control, str(seed), method) in done:
                    continue
                start = cpu_seconds()
                coverage.clear()
                policy, pehe = grade(METHODS[method](train, test), test)
                cpu = spent_elsewhere.pop(ELSEWHERE.get(method, ""), cpu_seconds() - start)
                row = {"part": part, "kind": kind, "control": control, "seed": seed, "method": method}
                row |= {"policy": round(policy, 2), "pehe": round(pehe, 4), "cpu": round(cpu, 1)}
                row |= {"constant": round(constant_policy(test), 2), "coverage": coverage.get(NETWORK)}
                keep(row)


def keep(row: dict[str, object]) -> None:
    """Print a result and append it to the csv."""
    print(row, flush=True)
    line = pd.DataFrame([row], columns=COLUMNS)
    line.to_csv(RESULTS, mode="a", header=not RESULTS.exists(), index=False)


def mean_and_error(values: pd.Series) -> str:
    """Mean and standard error over seeds; of one seed the value alone."""
    if len(values) == 1:
        return f"{values.iloc[0]:.1f}"
    return f"{values.mean():.1f} ± {values.std() / np.sqrt(len(values)):.1f}"


def coverage_lines(results: pd.DataFrame) -> list[str]:
    """Coverage of the network's intervals, mean and lowest seed of each cell; nothing where none was measured."""
    held = results[results.method == NETWORK].dropna(subset="coverage").groupby(["kind", "control"]).coverage
    cells = [f"{kind} {control:.0%} {v.mean():.3f} (lowest seed {v.min():.2f})" for (kind, control), v in held]
    return ["", f"Coverage of the network's 90% score intervals: {', '.join(cells)}."] if cells else []


def accuracy_table(results: pd.DataFrame) -> str:
    """Policy / PEHE of every method and cell, and the network's paired differences to each peer."""
    wide = results.pivot_table(index=["kind", "control", "seed"], columns="method", values=["policy", "pehe", "cpu"])
    cells = list(dict.fromkeys(zip(results.kind, results.control, strict=True)))
    names = [m for m in METHODS if m in set(results.method)]
    head = "| | " + " | ".join(f"{kind} {control:.0%}" for kind, control in cells) + " | CPU-s |"
    lines = [head, "|---" * (len(cells) + 2) + "|"]
    for name in names:
        shown = [
            f"{mean_and_error(wide.loc[cell, ('policy', name)])} / {wide.loc[cell, ('pehe', name)].mean():.3f}"
            for cell in cells
        ]
        lines.append(f"| {name} | " + " | ".join(shown) + f" | {wide['cpu', name].median():.1f} |")
    lines += coverage_lines(results)
    lines += ["", "Network minus peer, paired by seed: policy points, PEHE.", "", head.replace(" CPU-s |", "")]
    lines.append("|---" * (len(cells) + 1) + "|")
    for name in names[1:]:
        shown = []
        for cell in cells:
            policy, pehe = (wide.loc[cell, (m, NETWORK)] - wide.loc[cell, (m, name)] for m in ("policy", "pehe"))
            error = pehe.std() / np.sqrt(len(pehe))
            shown.append(
                f"{policy.mean():+.1f} ± {policy.std() / np.sqrt(len(policy)):.1f}, {pehe.mean():+.3f} ± {error:.3f}"
            )
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def constant_table(results: pd.DataFrame) -> str:
    """Policy of each method, and its distance to the better constant policy."""
    lines = [
        "| world | method | policy, % of oracle | minus better of send-all, send-none | PEHE | CPU-s |",
        "|---" * 6 + "|",
    ]
    for (kind, control, method), rows in results.groupby(["kind", "control", "method"], sort=False):
        cell, over = mean_and_error(rows.policy), mean_and_error(rows.policy - rows.constant)
        lines.append(
            f"| {kind} {control:.0%} | {method} | {cell} | {over} | {rows.pehe.mean():.3f} | {rows.cpu.median():.1f} |"
        )
    return "\n".join(lines + coverage_lines(results))


def paired_table(results: pd.DataFrame, one: str, other: str) -> str:
    """Policy of two methods, and the paired difference."""
    wide = results.pivot_table(index=["kind", "control", "seed"], columns="method", values="policy").dropna()
    lines = [f"| world | {one} | {other} | difference, points |", "|---" * 4 + "|"]
    for (kind, control), rows in wide.groupby(level=[0, 1]):
        shown = (rows[one], rows[other], rows[one] - rows[other])
        lines.append(f"| {kind} {control:.0%} | " + " | ".join(mean_and_error(v) for v in shown) + " |")
    return "\n".join(lines)


PARTS: dict[str, tuple[str, Callable[[], None], Callable[[pd.DataFrame], str]]] = {
    "accuracy": (
        "40,000 users, 3 outcomes: policy in % of the oracle's (± SE over seeds) / PEHE over sd",
        lambda: run(
            "accuracy",
            [NETWORK, "linear T-learner", "LightGBM T-learner", "plain network", "LightGBM S-learner"],
            SEEDS,
            CELLS,
            40_000,
        ),
        accuracy_table,
    ),
    "small": (
        "5,000 users, 10% control",
        lambda: run(
            "small",
            [NETWORK, "LightGBM S-learner", "linear T-learner"],
            (*SEEDS, 204, 205),
            [(k, 0.1) for k in KINDS],
            5_000,
        ),
        constant_table,
    ),
    "rare": (
        "40,000 users, 7% control, rare outcome at .5%",
        lambda: run(
            "rare",
            [NETWORK, "LightGBM S-learner", "linear T-learner"],
            SEEDS[:2],
            [(k, 0.07) for k in KINDS],
            40_000,
            rare=0.005,
        ),
        constant_table,
    ),
    "messages": (
        "Two messages, 20,000 users, 10% control: best arm of one network, and of two binary networks",
        lambda: run("messages", [NETWORK, "separate networks"], SEEDS, [(k, 0.1) for k in KINDS], 20_000, messages=2),
        lambda results: paired_table(results, NETWORK, "separate networks"),
    ),
    "weights": (
        "Other weights without retraining, 20,000 users, 10% control: policy in % of the oracle's",
        run_weights,
        lambda results: paired_table(results, "one fit for all weights", "fit for these weights"),
    ),
    "hillstrom": (
        "Hillstrom, visits, women's e-mail against none: scikit-uplift's Qini, 5 folds twice",
        run_hillstrom,
        fold_table,
    ),
    "hillstrom arms": (
        "Hillstrom, both e-mails at once, .05 visits each: visits less cost per 100 users, best arm, 5 folds",
        run_hillstrom_arms,
        fold_table,
    ),
    "elsewhere": (
        "EconML and causalml on the weighted value, 40,000 users, 7% control; causal forests: fewer seeds",
        lambda: run("elsewhere", list(ELSEWHERE), SEEDS[:2], [(k, 0.07) for k in KINDS], 40_000),
        constant_table,
    ),
    "large": (
        "1,000,000 users, 10% control, one seed",
        lambda: run("large", [NETWORK], SEEDS[:1], [(k, 0.1) for k in KINDS], 1_000_000),
        constant_table,
    ),
}


def report() -> None:
    """Write this benchmark's section of docs/benchmarks.md, between its markers."""
    results = pd.read_csv(RESULTS, dtype={"seed": str})
    parts = []
    for name, (title, _, table) in PARTS.items():
        rows = results[results.part == name]
        if len(rows):
            seeds = ", ".join(str(seed) for seed in sorted(rows.seed.unique()))
            which = "Repeat.fold" if name.startswith("hillstrom") else "Seeds"
            parts.append(f"### {title}\n\n{which} {seeds}.\n\n{table(rows)}")
    made = f"{datetime.now(tz=UTC):%Y-%m-%d}, Python {platform.python_version()}, " + ", ".join(
        f"{name} {version(name)}" for name in ("torch", "numpy", "lightgbm")
    )
    head = f"`python benchmarks/uplift.py [PART ...]`; ± is one standard error over seeds or folds. ({made})\n\n"
    body = "<!-- uplift -->\n## Uplift network\n\n" + head + "\n\n".join(parts) + "\n<!-- /uplift -->"
    page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else "# Benchmarks\n"
    before, _, rest = page.partition("<!-- uplift -->")
    after = rest.partition("<!-- /uplift -->")[2]
    PAGE.write_text(f"{before.rstrip()}\n\n{body}\n{after}", encoding="utf-8")
    print(body)


def main() -> None:
    """Run the parts named on the command line (default: all), then write the page."""
    names = [name for name in sys.argv[1:] if name != "report"] or ([] if "report" in sys.argv[1:] else list(PARTS))
    for name in names:
        started = time.time()
        PARTS[name][1]()
        print(f"{name}: {time.time() - started:.0f} s", flush=True)
    report()


if __name__ == "__main__":
    main()
