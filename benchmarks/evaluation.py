"""What evaluation and policy choice promise, measured on logs with known truth.

    .venv/bin/python benchmarks/evaluation.py [coverage] [guardrails] [choice] [speed] [memory]

Writes the section `evaluation` of docs/benchmarks.md; parts that are not named keep their last figures. One process
and thread; about 15 minutes in all. Small versions of the same checks run in the tests.

Speed is compared with obp 0.5.7 and the Qini coefficient with scikit-uplift 0.5.1 when $TACTFUL_OBP_PYTHON names a
Python that can import both and this project (obp is no dependency: it needs Python < 3.11 and is forced onto 3.11 by
`pip install --no-deps --ignore-requires-python obp==0.5.7`).
"""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs" / "benchmarks.md"
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "models")]

from known_truth import World, guarded_gain, guarded_log  # noqa: E402

from benchmarks.peers import sklift_qini  # noqa: E402
from feature_repo.atomic import write_text  # noqa: E402
from models import Guardrail, Outcome, Threshold, choose_policy, evaluate  # noqa: E402

Y = [Outcome("y", "binary")]
KEY = ["estimator", "policy", "baseline"]
WORLDS = {
    "20k rows, 2%, constant propensity": World(20_000, 0.02, seed=11),
    "20k rows, 2%, varying propensity": World(20_000, 0.02, varying=True, seed=12),
    "20k rows, 20%, constant propensity": World(20_000, 0.2, seed=13),
    "20k rows, 20%, varying propensity": World(20_000, 0.2, varying=True, seed=14),
    "20k rows, 2%, 5 decisions per user": World(20_000, 0.02, decisions=5, seed=15),
    "20k rows, 20%, 5 decisions per user": World(20_000, 0.2, decisions=5, seed=16),
    "20k rows, 2%, two message arms": World(20_000, 0.02, n_arms=3, seed=17),
    "20k rows, 20%, two message arms": World(20_000, 0.2, n_arms=3, seed=18),
    "2k rows, 2%, constant propensity": World(2_000, 0.02, seed=19),
    "2k rows, 2%, varying propensity": World(2_000, 0.02, varying=True, seed=20),
}


def covered(world: World, repetitions: int) -> pd.DataFrame:
    """Coverage of 95% intervals of the value of a threshold policy, send-all, send-none, and their differences."""
    truth, parts = world.truth(), []
    for r in range(repetitions):
        log, _ = world.draw(r)
        table = evaluate(
            log, {"test": Threshold(world.score(log))}, Y, features=["x"], estimators=("ips", "snips", "dr")
        )
        parts.append(table[(table["outcome"] == "y") & table["policy"].isin(list(truth))])
    rows = pd.concat(parts, ignore_index=True)
    rows = rows[~((rows["policy"] == "send_none") & (rows["baseline"] == "send_all"))]  # mirror of all - none
    target = rows["policy"].map(truth) - rows["baseline"].map(truth).fillna(0)
    rows["hit"] = (rows["ci_lower"] <= target) & (target <= rows["ci_upper"])
    rows["wald"] = (rows["value"] - target).abs() <= 1.96 * rows["se"]
    rows["error"] = rows["value"] - target
    by = rows.groupby(KEY)
    bias = by["error"].mean() / by["error"].std() * np.sqrt(repetitions)
    return pd.DataFrame({"coverage": by["hit"].mean(), "wald": by["wald"].mean(), "bias": bias}).reset_index()


def coverage(repetitions: int = 500) -> list[str]:
    """Coverage table: one line per world and estimator."""
    lines = [
        f"Coverage of 95% intervals in {repetitions} simulations (Monte Carlo SE .010), 10% holdout: values V and "
        "differences of a policy that messages 34%, send-all and send-none. In brackets: a Wald interval on the same "
        "scores. Bias: largest of the six, in Monte Carlo SE.",
        "",
        "| log | estimator | V(policy) | V(all) | V(none) | policy - all | policy - none | all - none | bias |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    order = [("test", ""), ("send_all", ""), ("send_none", "")]
    order += [("test", "send_all"), ("test", "send_none"), ("send_all", "send_none")]
    again: list[str] = []
    for name, world in WORLDS.items():
        table = covered(world, repetitions)
        for estimator, own in table.groupby("estimator"):
            own = own.set_index(["policy", "baseline"])
            cells = [f"{own.loc[key, 'coverage']:.3f} ({own.loc[key, 'wald']:.3f})" for key in order]
            lines.append(f"| {name} | {estimator} | {' | '.join(cells)} | {own['bias'].abs().max():.1f} |")
            print(lines[-1], flush=True)
        again += out_of_range(name, world, table)
    return [*lines, "", *(again or ["No cell is outside its target (.93 to .97 at 20k rows, .92 at 2k)."])]


def out_of_range(name: str, world: World, table: pd.DataFrame, repetitions: int = 2_000) -> list[str]:
    """Every cell outside its target, measured again on fresh seeds: of 180 cells some are outside by chance."""
    least, most = (0.93, 0.97) if world.n >= 20_000 else (0.92, 1.0)
    outside = table[(table["coverage"] < least) | (table["coverage"] > most)].set_index(KEY)
    if outside.empty:
        return []
    fresh = covered(replace(world, seed=1_000 + world.seed), repetitions).set_index(KEY)
    return [
        f"{name}, {key[0]}, {key[1]}{' - ' if key[2] else ''}{key[2]}: {outside.loc[key, 'coverage']:.3f}, and on "
        f"fresh seeds with {repetitions:,} simulations {fresh.loc[key, 'coverage']:.4f} (Monte Carlo SE "
        f"{np.sqrt(0.05 * 0.95 / repetitions):.4f}).  "
        for key in outside.index
    ]


def guardrails(repetitions: int = 1000) -> list[str]:
    """Violations where a candidate's true effect is exactly the margin, and the honesty of the reported value."""
    outcomes = [Outcome("y", "binary", 10.0), Outcome("kept", "binary", 0.0)]
    limit = 0.05 + 3 * np.sqrt(0.05 * 0.95 / repetitions)
    lines = [
        f"Fixed-sequence choice, {repetitions} simulations, 6,000 users: a third selects, a third evaluates; "
        "every message costs retention, and at 50% of users messaged the loss is exactly the margin. A violation is a "
        "certified candidate at or past that volume.",
        "",
        f"| guardrail | certified past the margin (at most {limit:.3f}) | chosen past it | sent nothing | value "
        "reported less true, per user (Monte Carlo SE) | same, on the data that chose |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, segment, harm in (("overall", False, 0.06), ("in a segment (30% of users)", True, 0.12)):
        certified, chosen, nothing = 0, 0, 0
        honest, naive = [], []
        for r in range(repetitions):
            log = guarded_log(6_000, 0.0 if segment else harm, 10_000 + r, segment_harm=harm if segment else 0.0)
            guardrail = Guardrail("kept", 1.0 if segment else harm / 2, harm / 2 if segment else None)
            choice = choose_policy(
                log,
                "x",
                outcomes,
                guardrails=[guardrail],
                segments=["segment"] if segment else (),
                shares=np.arange(0.1, 1.01, 0.1),
            )
            passed = choice.candidates["status"] == "certified"
            # thresholds are sample quantiles: the volume counts as they were meant, or chance would halve the rate
            past = choice.candidates["share"] >= 0.5 - 1e-3
            certified += bool((passed & past).any())
            chosen += bool((choice.candidates["chosen"] & past).any())
            if choice.threshold == np.inf:
                nothing += 1
                continue
            value = choice.value.query(
                "policy == 'chosen' and baseline == 'send_none' and outcome == 'weighted' and segment == '' "
                "and estimator == 'dr'"
            )["value"].item()
            truth = guarded_gain(choice.threshold)
            honest.append(value - truth)
            naive.append(choice.candidates.loc[choice.candidates["chosen"], "gain"].item() - truth)
        bias = [f"{np.mean(e):+.4f} ({np.std(e) / np.sqrt(len(e)):.4f})" for e in (honest, naive)]
        lines.append(
            f"| {name} | {certified / repetitions:.3f} | {chosen / repetitions:.3f} | {nothing / repetitions:.3f} | "
            f"{bias[0]} | {bias[1]} |"
        )
        print(lines[-1], flush=True)
    return lines


def choice(repetitions: int = 100, n: int = 2_000) -> list[str]:
    """Regret of two rules among the same certified candidates: the own cut unless clearly beaten, and the highest."""
    outcomes = [Outcome("y", "binary", 10.0), Outcome("kept", "binary", 0.0)]
    best = guarded_gain(0.0)
    lines = [
        f"Which certified candidate to choose, {repetitions} simulations each: regret (true gain of the best threshold "
        "less that of the chosen one, over the former; Monte Carlo SE in brackets) and the share of users messaged "
        "(standard deviation), where half of them should be. A score whose zero is wrong messages 30% or 70% at 0.",
        "",
        "| users who select | score | regret, own cut unless beaten by 1 SE | regret, highest gain | messaged, own cut "
        "| messaged, highest gain |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, offset in (("zero is right", 0.0), ("zero too high", -0.2), ("zero too low", 0.2)):
        cuts = np.array([_two_rules(3 * n, offset, 20_000 + r, outcomes) for r in range(repetitions)])
        gains = np.vectorize(guarded_gain)(cuts - offset)
        regret = 1 - gains / best
        cells = [f"{r.mean():.1%} ({r.std() / np.sqrt(repetitions):.1%})" for r in regret.T]
        sent = np.clip(0.5 - (cuts - offset), 0, 1)
        cells += [f"{share.mean():.0%} ({share.std():.0%})" for share in sent.T]
        lines.append(f"| {n:,} | {name} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    return lines


def _two_rules(n: int, offset: float, seed: int, outcomes: list[Outcome]) -> tuple[float, float]:
    """Thresholds that the rule in use and the highest gain choose; infinite for nobody."""
    log = guarded_log(n, 0.0, seed)
    found = choose_policy(log.assign(x=log["x"] + offset), "x", outcomes, guardrails=[Guardrail("kept", 0.2)])
    certified = found.candidates[found.candidates["status"] == "certified"]
    top = certified.loc[certified["gain"].idxmax()] if len(certified) else None
    return found.threshold, float(top["threshold"]) if top is not None and top["gain"] > 0 else np.inf


def speed_log(n: int) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """A log of n users, a deterministic policy and predictions, as arrays."""
    rng = np.random.default_rng(21)
    x, treated = rng.random(n), rng.random(n) < 0.9
    y = (rng.random(n) < 0.02 + 0.02 * treated * (x - 0.3)).astype(float)
    mu_hat = np.stack([np.full(n, 0.02), 0.02 + 0.02 * (x - 0.3)], axis=1)[:, :, None]
    frame = {
        "user_id": np.arange(n),
        "arm": treated.astype(np.int64),
        "propensity": np.where(treated, 0.9, 0.1),
        "y": y,
    }
    return pd.DataFrame(frame), (x > 0.66).astype(float), mu_hat


def seconds(run: Callable[[], object], repetitions: int = 5) -> float:
    """Median CPU seconds."""
    times = []
    for _ in range(repetitions):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return float(np.median(times))


def speed(n: int = 1_000_000) -> list[str]:
    """IPS, SNIPS and DR with intervals on n rows: against one bare numpy pass, and against obp where it is at hand."""
    log, policy, mu_hat = speed_log(n)
    arm, propensity, y = (log[name].to_numpy() for name in ("arm", "propensity", "y"))

    def bare() -> tuple[float, float]:
        z = np.where(arm == 1, policy, 1 - policy) / propensity * y
        return float(z.mean()), float(z.std())

    estimators = ("ips", "snips", "dr")
    text = log.assign(user_id=np.char.add("u", np.arange(n).astype(str)).astype(object))
    text_ids = seconds(lambda: evaluate(text, {"p": policy}, Y, estimators=estimators, mu_hat=mu_hat), 3)
    ours = seconds(lambda: evaluate(log, {"p": policy}, Y, estimators=estimators, mu_hat=mu_hat))
    limit = seconds(bare)
    lines = [
        f"{n:,} rows, one outcome, IPS + SNIPS + DR, CPU seconds (median of 5). `evaluate` also gives send-all, "
        "send-none and every paired difference: 9 estimates (policy x estimator) and 18 differences with intervals.",
        "",
        "| what | CPU s | per estimate |",
        "| --- | --- | --- |",
        f"| one bare numpy pass (weight, product, mean, sd) | {limit:.3f} | 1 |",
        f"| `models.evaluate`, clustered by user, integer user_id | {ours:.3f} | {ours / 9 / limit:.2f} passes |",
        f"| the same, user_id as text (unique ids are hashed) | {text_ids:.3f} | {text_ids / 9 / limit:.2f} passes |",
    ]
    anchor = os.environ.get("TACTFUL_OBP_PYTHON")
    if anchor:
        command = [anchor, "-W", "ignore", __file__, "--anchor", str(n)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        lines += [
            f"| obp 0.5.7, values of one policy only | {found['obp_point']:.3f} | |",
            f"| obp 0.5.7, bootstrap intervals of one policy, B = 100 | {found['obp_interval']:.2f} | |",
            f"| obp 0.5.7, the same three policies that `evaluate` takes | {found['obp_three']:.2f} | |",
            f"| `models.evaluate` in that process | {found['ours']:.3f} | |",
            "",
            f"In one process, obp's intervals of three policies take {found['obp_three'] / found['ours']:.0f} times as "
            "long as `evaluate` of the same three, whose differences obp does not give; its intervals of one policy "
            f"alone take {found['obp_interval'] / found['ours']:.0f} times as long as `evaluate` of all three. Largest "
            f"difference to obp's values: {found['difference']:.1e}; to scikit-uplift 0.5.1's `qini_auc_score`: "
            f"{found['qini']:.1e}.",
        ]
    return lines


def anchor(n: int) -> dict[str, float]:
    """In an environment with obp and scikit-uplift: times and values of both, on the same arrays."""
    from obp.ope import DoublyRobust, InverseProbabilityWeighting, OffPolicyEvaluation
    from obp.ope import SelfNormalizedInverseProbabilityWeighting as SelfNormalized
    from sklift.metrics import qini_auc_score

    log, policy, mu_hat = speed_log(n)
    feedback = {
        "n_rounds": n,
        "n_actions": 2,
        "action": log["arm"].to_numpy(),
        "reward": log["y"].to_numpy(),
        "pscore": log["propensity"].to_numpy(),
        "position": None,
        "context": np.zeros((n, 1)),
    }
    dist, mu = np.stack([1 - policy, policy], axis=1)[:, :, None], mu_hat[:, :, 0][:, :, None]
    names = {"ips": InverseProbabilityWeighting(), "snips": SelfNormalized(), "dr": DoublyRobust()}
    ope = OffPolicyEvaluation(bandit_feedback=feedback, ope_estimators=list(names.values()))

    def theirs() -> dict[str, float]:
        values = ope.estimate_policy_values(action_dist=dist, estimated_rewards_by_reg_model=mu)
        return {name: values[e.estimator_name] for name, e in names.items()}

    def intervals(send: np.ndarray) -> object:
        return ope.estimate_intervals(
            action_dist=np.stack([1 - send, send], axis=1)[:, :, None],
            estimated_rewards_by_reg_model=mu,
            n_bootstrap_samples=100,
            random_state=1,
        )

    def ours() -> pd.DataFrame:
        return evaluate(log, {"p": policy}, Y, estimators=tuple(names), mu_hat=mu_hat)

    table = ours()
    own = table[(table["policy"] == "p") & (table["baseline"] == "") & (table["outcome"] == "y")]
    values = theirs()
    difference = max(abs(values[r["estimator"]] - r["value"]) for r in own.to_dict("records"))
    one, send_all, send_none = (
        seconds(lambda send=send: intervals(send), 1) for send in (policy, np.ones(n), np.zeros(n))
    )
    few = slice(0, 20_000)
    score = np.round(mu_hat[few, 1, 0] * 3_000)
    qini = [f(feedback["reward"][few], score, feedback["action"][few]) for f in (qini_auc_score, sklift_qini)]
    return {
        "ours": seconds(ours),
        "obp_point": seconds(theirs, 3),
        "obp_interval": one,
        "obp_three": one + send_all + send_none,
        "difference": difference,
        "qini": abs(qini[0] - qini[1]),
    }


def memory(n: int = 10_000_000) -> list[str]:
    """Peak memory of evaluating n rows in a fresh process, the log included."""
    command = [sys.executable, __file__, "--memory", str(n)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    return [
        f"{n:,} rows, two outcomes (0/1 and continuous), one segment column of three values, IPS + SNIPS + DR with "
        f"`mu_hat`: peak memory of the process {found['peak']:.2f} GB, of which {found['before']:.2f} GB are there "
        f"before `evaluate` (the log, the policy, `mu_hat`); {found['seconds']:.1f} CPU s.",
    ]


def measure_memory(n: int) -> dict[str, float]:
    """Run in its own process: peak resident memory is per process."""
    log, policy, mu_hat = speed_log(n)
    log["hours"] = log["y"] * 2 + 1
    log["plan"] = pd.Categorical.from_codes(np.arange(n) % 3, ["free", "premium", "trial"])
    mu_hat = np.concatenate([mu_hat, mu_hat], axis=2)
    outcomes = [*Y, Outcome("hours", "continuous", 0.05)]
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    evaluate(log, {"p": policy}, outcomes, estimators=("ips", "snips", "dr"), mu_hat=mu_hat, segments=["plan"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"before": before / 1e6, "peak": peak / 1e6, "seconds": time.process_time() - start}


PARTS: dict[str, Callable[[], list[str]]] = {
    "coverage": coverage,
    "guardrails": guardrails,
    "choice": choice,
    "speed": speed,
    "memory": memory,
}


def write_section(parts: dict[str, list[str]]) -> None:
    """Replace the parts that were measured; everything else in the file stays as it is."""
    start, end = "<!-- evaluation -->", "<!-- /evaluation -->"
    old = DOCS.read_text(encoding="utf-8") if DOCS.exists() else "# Benchmarks\n"
    known = re.search(f"{start}(.*?){end}", old, re.DOTALL)
    section = [
        start,
        "## Evaluation and policy choice",
        "",
        "`python benchmarks/evaluation.py`; seeds are in that file.",
        "",
    ]
    for name in PARTS:
        kept = re.search(rf"### {name.capitalize()}\n.*?(?=\n### |\Z)", known[1], re.DOTALL) if known else None
        if name in parts:
            day, python = time.strftime("%Y-%m-%d", time.gmtime()), platform.python_version()
            stamp = f"{day}, Python {python}, numpy {np.__version__}"
            section += [f"### {name.capitalize()}", "", *parts[name], "", f"({stamp})", ""]
        elif kept:
            section += [kept[0].rstrip(), ""]
    text = "\n".join([*section, end])
    new = old.replace(known[0], text) if known else f"{old.rstrip()}\n\n{text}\n"
    write_text(DOCS, new)


def main(names: list[str]) -> None:
    """Measure the named parts, each written as soon as it is known."""
    for name in names or list(PARTS):
        write_section({name: PARTS[name]()})
    print(DOCS.read_text(encoding="utf-8"))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--anchor"]:
        print(json.dumps(anchor(int(sys.argv[2]))))
    elif sys.argv[1:2] == ["--memory"]:
        print(json.dumps(measure_memory(int(sys.argv[2]))))
    else:
        main(sys.argv[1:])
