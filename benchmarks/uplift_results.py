"""Results of the uplift benchmark: one csv row per part, cell, seed and method, and the tables made from them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd

RESULTS = Path(__file__).with_name("uplift.csv")
COLUMNS = ["part", "kind", "control", "seed", "method", "policy", "pehe", "cpu", "constant", "coverage"]
NETWORK = "network"


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


def keep(row: dict[str, object]) -> None:
    """Print a result and append it to the csv."""
    print(row, flush=True)
    line = pd.DataFrame([row], columns=COLUMNS)
    line.to_csv(RESULTS, mode="a", header=not RESULTS.exists(), index=False)


def mean_and_error(values: pd.Series, digits: int = 1) -> str:
    """Mean and standard error over seeds; of one seed the value alone."""
    if len(values) == 1:
        return f"{values.iloc[0]:.{digits}f}"
    return f"{values.mean():.{digits}f} ± {values.std() / np.sqrt(len(values)):.{digits}f}"


def coverage_lines(results: pd.DataFrame) -> list[str]:
    """Coverage of the network's intervals, mean, SE and lowest seed of each cell; nothing where none was measured."""
    held = results[results.method == NETWORK].dropna(subset="coverage").groupby(["kind", "control"]).coverage
    cells = [
        f"{kind} {control:.0%} {mean_and_error(v, 3)} ({len(v)} seeds, lowest {v.min():.2f})"
        for (kind, control), v in held
    ]
    mean = held.mean().mean()
    told = f"Coverage of the network's 90% score intervals: {', '.join(cells)}; mean of these {mean:.3f}."
    return ["", told] if cells else []


def accuracy_table(results: pd.DataFrame) -> str:
    """Policy / PEHE of every method and cell, and the network's paired differences to each peer."""
    wide = results.pivot_table(index=["kind", "control", "seed"], columns="method", values=["policy", "pehe", "cpu"])
    cells = list(dict.fromkeys(zip(results.kind, results.control, strict=True)))
    names = [NETWORK, *(m for m in dict.fromkeys(results.method) if m != NETWORK)]
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


def coverage_table(results: pd.DataFrame) -> str:
    """Share of users whose true score the interval holds, by world: mean over seeds, and the lowest and highest."""
    lines = ["| world | coverage | lowest, highest seed | policy, % of oracle | PEHE | CPU-s |", "|---" * 6 + "|"]
    for (kind, control), rows in results.groupby(["kind", "control"], sort=False):
        held = rows.coverage
        shown = f"{mean_and_error(held, 3)} | {held.min():.2f}, {held.max():.2f} | {mean_and_error(rows.policy)}"
        lines.append(f"| {kind} {control:.0%} | {shown} | {rows.pehe.mean():.3f} | {rows.cpu.median():.1f} |")
    mean = results.groupby(["kind", "control"]).coverage.mean().mean()
    return "\n".join([*lines, "", f"Coverage, mean of these {mean:.3f}."])


def paired_table(results: pd.DataFrame, one: str, other: str) -> str:
    """Policy of two methods, and the paired difference."""
    wide = results.pivot_table(index=["kind", "control", "seed"], columns="method", values="policy").dropna()
    lines = [f"| world | {one} | {other} | difference, points |", "|---" * 4 + "|"]
    for (kind, control), rows in wide.groupby(level=[0, 1]):
        shown = (rows[one], rows[other], rows[one] - rows[other])
        lines.append(f"| {kind} {control:.0%} | " + " | ".join(mean_and_error(v) for v in shown) + " |")
    return "\n".join(lines)


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


def peers_table(results: pd.DataFrame) -> str:
    """The network's paired distance to each peer: policy points and PEHE, on the seeds that both have."""
    values = results.pivot_table(index=["kind", "control", "seed"], columns="method", values=["policy", "pehe"])
    cells = list(dict.fromkeys(zip(results.kind, results.control, strict=True)))
    head = "| network minus | " + " | ".join(f"{kind} {control:.0%}" for kind, control in cells) + " | CPU-s |"
    lines = [head, "|---" * (len(cells) + 2) + "|"]
    for name in (m for m in dict.fromkeys(results.method) if m != NETWORK):
        shown = []
        for cell in cells:
            both = values.loc[cell, [(m, who) for m in ("policy", "pehe") for who in (NETWORK, name)]].dropna()
            policy, pehe = (both[m, NETWORK] - both[m, name] for m in ("policy", "pehe"))
            many = f"{len(both)} seed{'s' * (len(both) > 1)}"
            fewer = f" ({many})" if 0 < len(both) < len(values.loc[cell]) else ""
            shown.append(f"{mean_and_error(policy)}, {mean_and_error(pehe, 3)}{fewer}" if len(both) else "not run")
        cpu = results[results.method == name].cpu.median()
        lines.append(f"| {name} | " + " | ".join(shown) + f" | {cpu:.1f} |")
    return "\n".join(lines)
