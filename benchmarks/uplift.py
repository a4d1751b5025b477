"""The uplift network against its peers, on simulated experiments with known effects.

    python benchmarks/uplift.py accuracy               # six cells, fresh seeds; appends to benchmarks/uplift.csv
    python benchmarks/uplift.py small rare messages    # other parts
    python benchmarks/uplift.py report                 # only writes docs/benchmarks.md from the csv

Seeds SEEDS were fixed before any of them was run; options were chosen on seeds 0-2. Policy: value of messaging where
the predicted score is above 0, in percent of the oracle's. PEHE: root mean squared error of the score over its sd.
EconML runs from a Python of its own: set $TACTFUL_ECONML_PYTHON.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.worlds import KINDS, OUTCOMES, WEIGHTS, World, make_world
from models.baselines import fit_lightgbm_s, fit_lightgbm_t, fit_linear_t
from models.decision_log import Outcome
from models.spec import FitSpec, columns_of
from models.train import fit

RESULTS = Path(__file__).with_suffix(".csv")
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
SEEDS = (100, 101, 102, 103)
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


ECONML = """
import sys, time, warnings
import numpy as np, pandas as pd
warnings.filterwarnings("ignore")
from econml.dr import DRLearner
from econml.metalearners import XLearner
from lightgbm import LGBMClassifier, LGBMRegressor
from sklearn.dummy import DummyClassifier
train, test, learner, out = sys.argv[1:]
a, b = pd.read_parquet(train), pd.read_parquet(test)
x = [c for c in a.columns if c not in ("arm", "value")]
settings = dict(n_estimators=150, num_leaves=7, learning_rate=.05, min_child_samples=100, n_jobs=1, verbose=-1)
reg = lambda: LGBMRegressor(**settings)
start = time.process_time()
if learner == "x":
    model = XLearner(models=reg(), cate_models=reg(), propensity_model=DummyClassifier())
else:
    model = DRLearner(model_propensity=DummyClassifier(), model_regression=reg(), model_final=reg(), cv=3)
model.fit(a["value"].to_numpy(), a["arm"].to_numpy(), X=a[x].to_numpy())
np.savez(out, score=model.effect(b[x].to_numpy()), cpu=time.process_time() - start)
"""


def econml(learner: str) -> Callable[[World, World], np.ndarray]:
    """EconML's X- or DR-learner on the weighted value (it takes one outcome), LightGBM inside, one-hot strings."""

    def method(train: World, test: World) -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            paths = []
            both = pd.get_dummies(pd.concat([train.frame, test.frame])[list(train.features)], dtype=float)
            for name, world, part in (
                ("train", train, both[: len(train.frame)]),
                ("test", test, both[len(train.frame) :]),
            ):
                value = world.frame[[o[0] for o in OUTCOMES]] @ WEIGHTS
                paths.append(f"{folder}/{name}.parquet")
                part.fillna(-9).assign(arm=world.frame["arm"].to_numpy(), value=value.to_numpy()).to_parquet(paths[-1])
            command = [os.environ["TACTFUL_ECONML_PYTHON"], "-c", ECONML, *paths, learner, f"{folder}/out.npz"]
            subprocess.run(command, check=True, capture_output=True)
            out = np.load(f"{folder}/out.npz")
            return np.asarray(out["score"]).reshape(-1, 1)

    return method


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


def run_weights() -> None:
    """For three weight vectors: oracle value of the default fit's policy, and of a fit made for those weights."""
    vectors = {"3, 1, .15": (3.0, 1.0, 0.15), "1, 4, 0": (1.0, 4.0, 0.0), "0, 0, 1": (0.0, 0.0, 1.0)}
    for seed in SEEDS[:2]:
        for kind, control in CELLS:
            train = make_world(kind, 40_000, seed, control)
            test = make_world(kind, 40_000, seed, control, part=1)
            mu_default = fit(train.frame, spec_of(train)).predict(test.frame)
            for name, weights in list(vectors.items())[1:]:
                outcomes = tuple(Outcome(o[0], o[1], w) for o, w in zip(OUTCOMES, weights, strict=True))  # type: ignore[arg-type]
                own = fit(train.frame, replace(spec_of(train), outcomes=outcomes)).predict(test.frame)
                truth = (test.mu[:, 1] - test.mu[:, 0]) @ weights
                for method, mu_hat in (("one fit for all weights", mu_default), ("fit for these weights", own)):
                    sent = (mu_hat[:, 1] - mu_hat[:, 0]) @ np.array(weights) > 0
                    policy = 100 * np.where(sent, truth, 0).mean() / np.maximum(truth, 0).mean()
                    keep(
                        {
                            "part": "weights",
                            "kind": f"{kind} ({name})",
                            "control": control,
                            "seed": seed,
                            "method": method,
                            "policy": round(float(policy), 2),
                        }
                    )


METHODS: dict[str, Callable[[World, World], np.ndarray]] = {
    NETWORK: network,
    "network without rules": ours(fit, rules=0),
    "plain network": plain_network,
    "separate networks": separate_models,
    "linear T-learner": ours(fit_linear_t),
    "LightGBM S-learner": ours(fit_lightgbm_s),
    "LightGBM T-learner": ours(fit_lightgbm_t),
}
if "TACTFUL_ECONML_PYTHON" in os.environ:
    METHODS |= {"EconML X-learner": econml("x"), "EconML DR-learner": econml("dr")}


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
    done = set()
    if RESULTS.exists():
        old = pd.read_csv(RESULTS)
        done = set(zip(old.part, old.kind, old.control, old.seed, old.method, strict=True))
    for seed in seeds:
        for kind, control in cells:
            train = make_world(kind, n, seed, control, **world)  # type: ignore[arg-type]
            test = make_world(kind, 40_000, seed, control, part=1, **world)  # type: ignore[arg-type]
            for method in methods:
                if (part, kind, control, seed, method) in done:
                    continue
                start = cpu_seconds()
                coverage.clear()
                policy, pehe = grade(METHODS[method](train, test), test)
                row = {"part": part, "kind": kind, "control": control, "seed": seed, "method": method}
                row |= {"policy": round(policy, 2), "pehe": round(pehe, 4), "cpu": round(cpu_seconds() - start, 1)}
                row |= {"constant": round(constant_policy(test), 2), "coverage": coverage.get(NETWORK)}
                keep(row)


def keep(row: dict[str, object]) -> None:
    """Print a result and append it to the csv."""
    print(row, flush=True)
    line = pd.DataFrame([row], columns=COLUMNS)
    line.to_csv(RESULTS, mode="a", header=not RESULTS.exists(), index=False)


def mean_and_error(values: pd.Series) -> str:
    """Mean and standard error over seeds."""
    return f"{values.mean():.1f} ± {values.std() / np.sqrt(len(values)):.1f}"


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
    held = results[results.method == NETWORK].dropna(subset="coverage").groupby(["kind", "control"]).coverage.mean()
    lines += [
        "",
        "Coverage of the network's 90% score intervals: "
        + ", ".join(f"{kind} {control:.0%} {share:.2f}" for (kind, control), share in held.items())
        + ".",
    ]
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
    return "\n".join(lines)


def weights_table(results: pd.DataFrame) -> str:
    """Policy of the one fit, of the fit for the weights, and what the first loses."""
    wide = results.pivot_table(index=["kind", "control", "seed"], columns="method", values="policy")
    one, own = wide["one fit for all weights"], wide["fit for these weights"]
    lines = ["| world (weights) | one fit | fit for these weights | loss, points |", "|---" * 4 + "|"]
    for (kind, control), rows in wide.groupby(level=[0, 1]):
        shown = (one[rows.index], own[rows.index], own[rows.index] - one[rows.index])
        lines.append(f"| {kind} {control:.0%} | " + " | ".join(mean_and_error(v) for v in shown) + " |")
    return "\n".join(lines)


PARTS: dict[str, tuple[str, Callable[[], None], Callable[[pd.DataFrame], str]]] = {
    "accuracy": (
        "40,000 users, 3 outcomes: policy in % of the oracle's (± SE over seeds) / PEHE over sd",
        lambda: run("accuracy", [m for m in METHODS if m != "separate networks"], SEEDS, CELLS, 40_000),
        accuracy_table,
    ),
    "small": (
        "5,000 users, 10% control",
        lambda: run(
            "small",
            [NETWORK, "LightGBM S-learner", "linear T-learner"],
            (*SEEDS, 104, 105),
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
            SEEDS,
            [(k, 0.07) for k in KINDS],
            40_000,
            rare=0.005,
        ),
        constant_table,
    ),
    "messages": (
        "Two messages, 40,000 users: best arm of one network, and of two binary networks",
        lambda: run("messages", [NETWORK, "separate networks"], SEEDS, CELLS, 40_000, messages=2),
        constant_table,
    ),
    "weights": ("Other weights without retraining: policy in % of the oracle's", run_weights, weights_table),
    "large": (
        "1,000,000 users, 10% control, one seed",
        lambda: run("large", [NETWORK], SEEDS[:1], [(k, 0.1) for k in KINDS], 1_000_000),
        constant_table,
    ),
}


def report() -> None:
    """Write this benchmark's section of docs/benchmarks.md, between its markers."""
    results = pd.read_csv(RESULTS)
    parts = []
    for name, (title, _, table) in PARTS.items():
        rows = results[results.part == name]
        if len(rows):
            seeds = ", ".join(str(seed) for seed in sorted(rows.seed.unique()))
            parts.append(f"### {title}\n\nSeeds {seeds}.\n\n{table(rows)}")
    body = "<!-- uplift -->\n## Uplift network\n\n" + "\n\n".join(parts) + "\n<!-- /uplift -->"
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
