"""The closed loop over several seeds and drifts: what it is worth beside policies that never change.

    .venv/bin/python benchmarks/loop.py [KIND@WEEK|none ...] [--seeds 1 2 3] [--weeks 16] [--users 10000]

Plays what is not played yet (`tactful rehearse`, minutes each), and writes the section `rehearsal` of
docs/benchmarks.md from everything played so far. Values are true ones; differences are paired by seed, SE over seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from experiment import write_section  # noqa: E402

import pipeline  # noqa: E402  # sets the environment before any library is imported
from campaign import data_dir, load_campaign  # noqa: E402
from rehearsal import Result, Script, rehearse  # noqa: E402
from rehearsal.loop import environment  # noqa: E402

STORE = ROOT / "data" / "benchmarks" / "rehearsal.json"
RIVALS = ("send_all", "send_none", "frozen")
MONTH = 3  # weeks after the alarm in which the retrained policy must have recovered


def play(script: Script) -> dict[str, object]:
    """One rehearsal: gains over each rival, what the loop did, and how well it recovered."""
    campaign = load_campaign()
    result = rehearse(script, campaign, data_dir(), finish=lambda *parts: pipeline._finish(campaign, *parts))
    found = {"script": script.name, "kind": script.drift or "none", "gain": {r: result.gain(r) for r in RIVALS}}
    found["oracle"] = -result.gain("oracle")
    found |= {key: result.summary()[f"{key}_weeks"] for key in ("retrain", "promoted", "fallback", "stop")}
    alarms = [w.week for w in result.weeks if w.action == "retrain" and w.week >= script.drift_week]
    later = [week for week in found["promoted"] + found["fallback"] if script.drift and week >= script.drift_week]
    return found | {"alarm": alarms[:1], "recovery": recovery(script, result, min(later)) if later else None}


def recovery(script: Script, result: Result, week: int) -> list[float] | None:
    """Value, and gain over sending nothing, in the weeks after a promotion: shares of a model's of the new world alone.

    That model is trained on as many decisions from after the drift as the promoted one had, by the end of the world.
    """
    weeks = [w for w in result.weeks if week < w.week <= week + MONTH]
    if not weeks:
        return None
    campaign, folder = load_campaign(), Path(result.folder)
    with environment(folder):
        from feature_repo.store import feature_schema, open_store
        from models.challenger import fit_spec
        from models.forward import NumpyModel
        from models.frame import decision_features, read_decisions, training_frame
        from models.predictions import policy_arm, scores
        from models.registry import model_path
        from models.train import fit

        data, store, decisions = folder / "data", open_store(), read_decisions(folder / "data" / "decisions")
        start, end = (pd.Timestamp(script.monday(k), tz="UTC") for k in (script.drift_week, script.weeks + 1))
        frame = training_frame(store, decisions, campaign, data / "logs", end.to_pydatetime())
        n = NumpyModel.load(model_path(weeks[0].champion)).spec.extra["data_window"]["n"]
        frame = frame[frame["decided_at"] >= start]
        frame = frame.sample(min(n, len(frame)), random_state=script.seed).reset_index(drop=True)
        best = fit(frame, fit_spec(campaign, feature_schema(store)))
        gains, values = [], []
        for w in weeks:
            day = pd.Timestamp(script.monday(w.week), tz="UTC")
            rows = decisions[decisions["decided_at"].dt.floor("D") == day].reset_index(drop=True)
            arm = policy_arm(
                scores(best.predict(decision_features(store, rows)), campaign.weights, campaign.costs), 0.0
            )
            value = true_value(
                data / "truth" / f"{script.monday(w.week)}-part-00000000.parquet", rows["user_id"], campaign
            )
            taken = value[np.arange(len(arm)), arm]
            gains.append((taken - value[:, 0]).mean())
            values.append(taken.mean())
    gained = np.mean([w.value_policy - w.value_send_none for w in weeks])
    return [float(np.mean([w.value_policy for w in weeks]) / np.mean(values)), float(gained / np.mean(gains))]


def true_value(file: Path, users: pd.Series, campaign: object) -> np.ndarray:
    """True value of each user under each arm, costs taken off; shape (n, n_arms), EUR."""
    truth = pd.read_parquet(file)
    value = truth[[o.measure for o in campaign.outcome]].to_numpy() @ np.asarray(campaign.weights)
    table = truth.assign(value=value - np.asarray(campaign.costs)[truth["arm"]])
    return table.pivot_table(index="user_id", columns="arm", values="value").loc[users].to_numpy()


def section(played: Sequence[dict]) -> str:
    """The section of docs/benchmarks.md."""
    lines = ["## Rehearsal of the closed loop", ""]
    lines += ["`python benchmarks/loop.py`; true values, EUR per user and window; policy minus each rival, mean over"]
    lines += ["all decisions of a rehearsal, paired by seed (SE over seeds).", ""]
    lines += ["| rehearsals | over frozen | over send-all | over send-none | alarms | promoted | recovery |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    groups: dict[str, list[dict]] = {}
    for p in played:
        groups.setdefault(str(p["script"]).rpartition("-seed")[0], []).append(p)
    for name, of in sorted(groups.items()):
        gains = [mean_and_se([p["gain"][r] for p in of]) for r in ("frozen", "send_all", "send_none")]
        seeds = ", ".join(str(p["script"]).rpartition("-seed")[2] for p in of)
        told = [" / ".join(_weeks(p[key]) for p in of) for key in ("retrain", "promoted")]
        back = " / ".join("-" if p["recovery"] is None else "{:.2f} ({:.2f})".format(*p["recovery"]) for p in of)
        lines.append(f"| {name}, seeds {seeds} | {' | '.join(gains)} | {' | '.join(told)} | {back} |")
    lines += [
        "",
        "Alarms and promotions: weeks, by seed. Recovery: value (in brackets: gain over sending nothing) in the three",
    ]
    lines += [
        "weeks after the first promotion since the drift, as a share of that of a model trained on as many decisions of"
    ]
    lines += ["the new world alone."]
    return "\n".join(lines)


def _weeks(weeks: Sequence[int]) -> str:
    return ",".join(map(str, weeks)) or "none"


def mean_and_se(values: Sequence[float]) -> str:
    """Mean, and its standard error where there is more than one value."""
    if len(values) == 1:
        return f"{values[0]:+.4f}"
    return f"{np.mean(values):+.4f} (SE {np.std(values, ddof=1) / np.sqrt(len(values)):.4f})"


def main(drifts: Sequence[str], seeds: Sequence[int], weeks: int, users: int) -> None:
    """Play what is asked for, and write the section."""
    kept = json.loads(STORE.read_text()) if STORE.exists() else {}
    for seed in seeds:
        for drift in drifts:
            script = Script.parse(weeks=weeks, drift=drift, users=users, seed=seed)
            if script.name not in kept:
                kept[script.name] = play(script)
                STORE.parent.mkdir(parents=True, exist_ok=True)
                STORE.write_text(json.dumps(kept, indent=1))
                print(json.dumps(kept[script.name]), flush=True)
    text = section(list(kept.values()))
    write_section(ROOT / "docs" / "benchmarks.md", "rehearsal", text)
    print(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("drifts", nargs="*", default=["none", "price@2", "market@2", "fatigue@2"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--weeks", type=int, default=26)
    parser.add_argument("--users", type=int, default=20_000)
    options = parser.parse_args()
    main(options.drifts, options.seeds, options.weeks, options.users)
