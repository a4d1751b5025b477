"""The uplift network against its peers, on simulated experiments with known effects.

    python benchmarks/uplift.py accuracy               # six cells; appends to benchmarks/uplift.csv
    python benchmarks/uplift.py small rare messages    # other parts, the keys of PARTS
    python benchmarks/uplift.py report                 # only writes docs/benchmarks.md from the csv

Seeds, written here before any of them was run: SEEDS (200-203) where nothing else is said, SMALL_SEEDS (300-307) for
5,000 users, UNSEEN_SEEDS (400-407) for intervals once their constants stood. Options, of the peers and of the
intervals too, were chosen on seeds 0-5 and 12. Policy: value of messaging
where the predicted score is above 0, in percent of the oracle's. PEHE: root mean squared error of the score over its
sd. EconML and causalml run from Pythons of their own, which $TACTFUL_ECONML_PYTHON and $TACTFUL_CAUSALML_PYTHON name.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.uplift_hillstrom import run_hillstrom, run_hillstrom_arms
from benchmarks.uplift_methods import ELSEWHERE, METHODS, coverage, spec_of, spent_elsewhere
from benchmarks.uplift_parts import REDUCED
from benchmarks.uplift_results import (
    NETWORK,
    RESULTS,
    accuracy_table,
    constant_table,
    coverage_table,
    cpu_seconds,
    finished,
    fold_table,
    keep,
    paired_table,
    peers_table,
)
from benchmarks.worlds import KINDS, OUTCOMES, World, make_world
from models.decision_log import Outcome
from models.train import fit

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
SEEDS, SMALL_SEEDS, UNSEEN_SEEDS = (200, 201, 202, 203), tuple(range(300, 308)), tuple(range(400, 408))
CELLS = [(kind, control) for kind in KINDS for control in (0.07, 0.5)]


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
                policy, pehe = grade((METHODS | REDUCED)[method](train, test), test)
                cpu = spent_elsewhere.pop(ELSEWHERE.get(method, ""), cpu_seconds() - start)
                row = {"part": part, "kind": kind, "control": control, "seed": seed, "method": method}
                row |= {"policy": round(policy, 2), "pehe": round(pehe, 4), "cpu": round(cpu, 1)}
                row |= {"constant": round(constant_policy(test), 2), "coverage": coverage.get(NETWORK)}
                keep(row)


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
            SMALL_SEEDS,
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
    "parts": (
        "What each part is worth, 40,000 users: the network less the same without that part",
        lambda: run("parts", list(REDUCED), SEEDS[:2], CELLS, 40_000),
        peers_table,
    ),
    "elsewhere": (
        "EconML and causalml on the weighted value, 40,000 users: the worlds and seeds of the first table",
        lambda: run("elsewhere", [name for name in ELSEWHERE if "forest" not in name], SEEDS, CELLS, 40_000),
        peers_table,
    ),
    "forests": (
        "Causal forests of EconML and causalml on the weighted value, 40,000 users",
        lambda: run("forests", [name for name in ELSEWHERE if "forest" in name], SEEDS[:1], CELLS, 40_000),
        peers_table,
    ),
    "large": (
        "1,000,000 users, 10% control, one seed",
        lambda: run("large", [NETWORK], SEEDS[:1], [(k, 0.1) for k in KINDS], 1_000_000),
        constant_table,
    ),
    "intervals": (
        "Intervals on worlds never used before: coverage at a nominal 90%, 40,000 users",
        lambda: run("intervals", [NETWORK], UNSEEN_SEEDS[:4], CELLS, 40_000),
        coverage_table,
    ),
    "intervals small": (
        "Intervals on worlds never used before: 5,000 users, 10% control",
        lambda: run("intervals small", [NETWORK], UNSEEN_SEEDS, [(k, 0.1) for k in KINDS], 5_000),
        coverage_table,
    ),
    "intervals large": (
        "Intervals on worlds never used before: 200,000 users, 10% control, one seed",
        lambda: run("intervals large", [NETWORK], UNSEEN_SEEDS[:1], [(k, 0.1) for k in KINDS], 200_000),
        coverage_table,
    ),
}


def report() -> None:
    """Write this benchmark's section of docs/benchmarks.md, between its markers."""
    results = pd.read_csv(RESULTS, dtype={"seed": str})
    parts, network = [], results.method == NETWORK
    for name, (title, _, table) in PARTS.items():
        # the network's rows stand beside those of other parts that have its worlds and seeds
        theirs = (results.part == "accuracy") & network & (name in ("parts", "elsewhere", "forests"))
        rows = results[(results.part == name) | theirs]
        if (results.part == name).any():
            seeds = ", ".join(sorted(results[results.part == name].seed.unique()))
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
    PAGE.write_text(f"{before.rstrip()}\n\n{body}\n\n{after.lstrip()}", encoding="utf-8")
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
