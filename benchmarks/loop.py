"""The closed loop over several seeds and drifts: what it is worth beside policies that never change.

    .venv/bin/python benchmarks/loop.py [KIND@WEEK|none ...] [--seeds 100 101] [--weeks 20] [--users 10000]

Plays what is not played yet (`tactful rehearse`, about 3 minutes of one core each at 10,000 users and 20 weeks), and
writes the section `rehearsal` of docs/benchmarks.md from everything played so far. Values are true ones; differences
are paired by seed, SE over seeds. Seeds below 100 are for choosing rules and are not reported.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from experiment import write_section  # noqa: E402

import pipeline  # noqa: E402  # sets the environment before any library is imported
from campaign import Campaign, data_dir, load_campaign  # noqa: E402
from feature_repo.atomic import write_json  # noqa: E402
from rehearsal import Result, Script, Week, rehearse  # noqa: E402
from rehearsal.loop import environment  # noqa: E402

STORE = ROOT / "data" / "benchmarks" / "rehearsal.json"
RIVALS = ("send_all", "send_none", "frozen")
SCALE = ("policy", "frozen", "send_none")
MONTH = 3  # weeks after the alarm in which the retrained policy must have recovered


def play(script: Script) -> dict[str, object]:
    """One rehearsal: gains over each rival, what the loop did, and how well it recovered."""
    campaign = load_campaign()
    result = rehearse(script, campaign, data_dir(), finish=lambda *parts: pipeline._finish(campaign, *parts))
    found = {"script": script.name, "kind": script.drift or "none", "gain": {r: result.gain(r) for r in RIVALS}}
    found["oracle"] = -result.gain("oracle")
    found |= {key: result.summary()[f"{key}_weeks"] for key in ("retrain", "promoted", "fallback", "stop")}
    if not script.drift:
        return found
    later = {key: [week for week in found[key] if week >= script.drift_week] for key in ("retrain", "promoted")}
    found |= {"alarm": later["retrain"][:1], "promoted_since": later["promoted"][:1]}
    return found | {"recovery": recovery(script, result, later["promoted"][0]) if later["promoted"] else None}


def recovery(script: Script, result: Result, week: int) -> dict[str, float] | None:
    """The policy in the weeks after a promotion, as shares of a model's that was trained on the new world alone.

    Returns: `shares` against a model with as many training decisions of the new world as had matured by then;
    `gain_all` against one with as many as the promoted model had in all, old world included.
    """
    weeks = [w for w in result.weeks if week < w.week <= week + MONTH]
    if not weeks:
        return None
    campaign, folder = load_campaign(), Path(result.folder)
    with environment(folder):
        from feature_repo.store import open_store
        from models.frame import countable, read_decisions, training_frame
        from models.splits import split_of

        data, store, decisions = folder / "data", open_store(), read_decisions(folder / "data" / "decisions")
        start, end = (pd.Timestamp(script.monday(k), tz="UTC") for k in (script.drift_week, script.weeks + 1))
        counted = countable(decisions, campaign, end.to_pydatetime())
        frame = training_frame(store, counted, campaign, data / "logs", end.to_pydatetime())
        matured = frame["decided_at"] < start + pd.Timedelta(
            weeks=week + 1 - script.drift_week, days=-campaign.matures_after_days
        )
        train = matured & (split_of(frame["user_id"], campaign.splits) == "train")
        new = frame[frame["decided_at"] >= start]
        sizes = (int((train & (frame["decided_at"] >= start)).sum()), int(train.sum()))
        best = [ideal(campaign, store, data, decisions, new, n, script, weeks) for n in sizes]
    found = shares(weeks, *best[0])
    return found | {"gain_all": found["gain"] * best[0][1] / best[1][1]}


def shares(weeks: Sequence[Week], value: float, gain: float) -> dict[str, float]:
    """Value of the policy, and gain over sending nothing, as shares of an ideal's `value` and `gain`.

    The frozen first model and sending nothing stand on the same scale: where they reach most of the ideal's value, so
    does any policy, and only the gain says whether it recovered. Sending nothing has a gain of 0.
    """
    policy, frozen, none = (float(np.mean([getattr(w, f"value_{name}") for w in weeks])) for name in SCALE)
    of_value = {"value": policy / value, "value_frozen": frozen / value, "value_send_none": none / value}
    return of_value | {"gain": (policy - none) / gain, "gain_frozen": (frozen - none) / gain}


def ideal(
    campaign: Campaign,
    store: Any,
    data: Path,
    decisions: pd.DataFrame,
    new: pd.DataFrame,
    n: int,
    script: Script,
    weeks: Sequence[Week],
) -> tuple[float, float]:
    """True value, and gain over sending nothing, of a model trained on n decisions of the new world."""
    from feature_repo.store import feature_schema
    from models.challenger import fit_spec
    from models.frame import decision_features
    from models.predictions import policy_arm, scores
    from models.train import fit

    frame = new.sample(min(n, len(new)), random_state=script.seed).reset_index(drop=True)
    best, found = fit(frame, fit_spec(campaign, feature_schema(store))), []
    for w in weeks:
        day = pd.Timestamp(script.monday(w.week), tz="UTC")
        rows = decisions[decisions["decided_at"].dt.floor("D") == day].reset_index(drop=True)
        arm = policy_arm(scores(best.predict(decision_features(store, rows)), campaign.weights, campaign.costs), 0.0)
        value = true_value(data / "truth" / f"{day:%Y-%m-%d}-part-00000000.parquet", rows["user_id"], campaign)
        taken = value[np.arange(len(arm)), arm]
        found.append([taken.mean(), (taken - value[:, 0]).mean()])
    value_and_gain = np.mean(found, axis=0)
    return float(value_and_gain[0]), float(value_and_gain[1])


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
    lines += [
        "| rehearsals | over frozen | over send-all | over send-none | retrain | promoted | fell back | stopped |"
    ]
    lines += ["| --- | --- | --- | --- | --- | --- | --- | --- |"]
    groups: dict[str, list[dict]] = {}
    for p in played:
        groups.setdefault(str(p["script"]).rpartition("-seed")[0], []).append(p)
    back = []
    for name, of in sorted(groups.items()):
        gains = [mean_and_se([p["gain"][r] for p in of]) for r in ("frozen", "send_all", "send_none")]
        seeds = ", ".join(str(p["script"]).rpartition("-seed")[2] for p in of)
        told = [" / ".join(_weeks(p[key]) for p in of) for key in ("retrain", "promoted", "fallback", "stop")]
        lines.append(f"| {name}, seeds {seeds} | {' | '.join(gains)} | {' | '.join(told)} |")
        if of[0]["kind"] in ("price", "market", "fatigue"):
            waits = ", ".join(
                str(p["promoted_since"][0] - p["alarm"][0]) if p["promoted_since"] else "never" for p in of
            )
            keys = ("value", "value_frozen", "value_send_none", "gain", "gain_frozen", "gain_all")
            told = [", ".join(_share(p["recovery"], key) for p in of) for key in keys]
            back.append(f"| {name} | {waits} | {' | '.join(told)} |")
    lines += ["", "Weeks, by seed. Recovery in the three weeks after the first promotion since the drift:", ""]
    lines += [
        "| rehearsals, by seed | weeks from alarm to promotion | value | of frozen | of send-none | gain | of frozen | "
        "gain, larger model |"
    ]
    lines += ["| --- | --- | --- | --- | --- | --- | --- | --- |", *back, ""]
    lines += [
        "Value, and gain over sending nothing, as shares of those of a model trained on the new world alone, on as"
    ]
    lines += [
        "many decisions of it as had matured; larger: as many as the promoted model was trained on, old world too.",
        "Beside it the frozen model and sending nothing in these weeks: 90% says little where they have it too.",
    ]
    return "\n".join(lines)


def _share(recovery: dict[str, float] | None, key: str) -> str:
    return f"{recovery[key]:.2f}" if recovery and key in recovery else "-"


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
            length = min(weeks, 4) if drift.startswith("tracking") else weeks  # it must end at once
            script = Script.parse(weeks=length, drift=drift, users=users, seed=seed)
            if script.name not in kept:
                # a process of its own: Feast's definitions hold the data folder they were imported for
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
                    kept[script.name] = alone.submit(play, script).result()
                write_json(STORE, kept)
                print(json.dumps(kept[script.name]), flush=True)
    text = section(list(kept.values()))
    write_section(ROOT / "docs" / "benchmarks.md", "rehearsal", text)
    print(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("drifts", nargs="*", default=["none", "price@2", "market@2", "fatigue@2", "tracking@2"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[100])
    parser.add_argument("--weeks", type=int, default=20)
    parser.add_argument("--users", type=int, default=10_000)
    options = parser.parse_args()
    main(options.drifts, options.seeds, options.weeks, options.users)
