"""`simulate`: same arguments, same world; killed and rerun, the same world; other arguments, a clear refusal."""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from simulated_logs import END, decisions, files, truth

from campaign import DataError, load_campaign
from simulator import random_phase, simulate

SMALL = {"users": 300, "days": 33, "seed": 4, "end": END, "messages": ["offer"]}


def small(root: Path, **changes: object) -> dict[str, object]:
    return simulate(root, **(SMALL | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    small(root)
    return root


def test_simulate_is_deterministic(whole: Path, tmp_path: Path):
    small(tmp_path)
    assert files(tmp_path) == files(whole)


def test_simulate_seed_matters(whole: Path, tmp_path: Path):
    small(tmp_path, seed=5)
    assert files(tmp_path)["logs/world.json"] != files(whole)["logs/world.json"]
    assert not np.array_equal(truth(tmp_path)[:100], truth(whole)[:100])


def test_simulate_chunks_hold_the_same_rows(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(random_phase, "CHUNK_USERS", 128)
    small(tmp_path)
    assert len(list((tmp_path / "logs" / "sessions").glob("*/*.parquet"))) == 3 * 33
    a, b = decisions(whole), decisions(tmp_path)
    assert a.drop(columns="propensities").equals(b.drop(columns="propensities"))
    np.testing.assert_array_equal(truth(whole), truth(tmp_path))


def test_simulate_writes_world_json(whole: Path):
    said = json.loads((whole / "logs" / "world.json").read_text())
    assert said["start"] == str(END - timedelta(days=33))
    assert {"users": 300, "days": 33, "seed": 4, "end": str(END), "messages": ["offer"]}.items() <= said.items()
    assert sorted(p.name for p in whole.iterdir()) == ["decisions", "logs", "truth"]


def test_simulate_rerun_does_nothing(tmp_path: Path):
    said = small(tmp_path)
    before = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*")}
    assert small(tmp_path) == said
    assert small(tmp_path, end=END + timedelta(days=1)) == said  # the default end is today
    assert {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"users": 301}, r"another simulated world exists with users 300 \(asked: 301\); remove .* or .* TACTFUL_DATA"),
        ({"messages": ["gift"]}, r"messages \['offer'\] \(asked: \['gift'\]\)"),
        ({"seed": 9, "days": 41}, r"days 33 \(asked: 41\), seed 4 \(asked: 9\)"),
    ],
)
def test_simulate_another_world_raises(whole: Path, change: dict[str, object], match: str):
    before = files(whole)
    with pytest.raises(DataError, match=match):
        small(whole, **change)
    assert files(whole) == before


def test_simulate_into_real_logs_raises(tmp_path: Path):
    (tmp_path / "logs" / "sessions").mkdir(parents=True)
    with pytest.raises(DataError, match=r"found logs without logs/world.json, so not a whole simulated world; remove"):
        small(tmp_path)


@pytest.mark.parametrize("change", [{"users": 0}, {"days": 0}, {"seed": -1}, {"holdout_share": 1.0}])
def test_simulate_arguments_out_of_range_raise(tmp_path: Path, change: dict[str, object]):
    with pytest.raises(DataError, match=r"expected users and days >= 1, seed >= 0, holdout_share in \[0, 1\)"):
        small(tmp_path, **change)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("moves", [0, 1, 2])
def test_simulate_repairs_a_run_killed_while_moving(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int
):
    real, done = os.replace, []

    def replace(source: Path, target: Path) -> None:
        if Path(target).parent == tmp_path:
            if len(done) == moves:
                raise KeyboardInterrupt
            done.append(target)
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(random_phase.os, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            small(tmp_path)
    assert not (tmp_path / "logs").exists()
    small(tmp_path)
    assert files(tmp_path) == files(whole)


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_simulate_repairs_a_killed_run(whole: Path, tmp_path: Path, share: float):
    code = f"""
from datetime import date; from pathlib import Path; import os, signal; from simulator import simulate
stop = lambda done: os.kill(os.getpid(), signal.SIGKILL) if done > {share} else None
simulate(Path({str(tmp_path)!r}), 300, 33, 4, end=date.fromisoformat("{END}"), messages=["offer"], progress=stop)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=Path(random_phase.__file__).parents[1], check=False)
    assert run.returncode == -signal.SIGKILL
    assert not (tmp_path / "logs").exists()
    small(tmp_path)
    assert files(tmp_path) == files(whole)


def test_simulate_decisions_are_randomised(platform: Path):
    decided = decisions(platform)
    assert set(decided.groupby("arm")["propensity"].unique().map(tuple)) == {(0.1 + 0.3,), (0.9 / 3,)}
    np.testing.assert_allclose(np.stack(decided["propensities"].to_list()), [[0.4, 0.3, 0.3]] * len(decided))
    share = decided["arm"].value_counts(normalize=True).sort_index()
    np.testing.assert_allclose(share, [0.4, 0.3, 0.3], atol=0.014)  # 4 SE; holdout users repeat
    assert (decided["eligible"] == (decided["arm"] > 0)).all()
    assert decided["decision_id"].is_unique
    holdout = decided["layer"] == "holdout"
    assert (decided.loc[holdout, "arm"] == 0).all()
    by_user = holdout.groupby(decided["user_id"]).agg(["min", "max", "mean"])
    assert (by_user["min"] == by_user["max"]).all()
    assert by_user["mean"].mean() == pytest.approx(0.1, abs=0.011)
    assert decided["decided_at"].min() >= pd.Timestamp(END - timedelta(days=90 - 28), tz="UTC")


def test_simulate_arms_are_independent_of_the_truth(platform: Path):
    decided, mu = decisions(platform), truth(platform)
    explored = (decided["layer"] == "exploration").to_numpy()
    value = (mu @ np.array(load_campaign().weights))[explored, 0]
    arm = decided["arm"].to_numpy()[explored]
    means = [value[arm == k].mean() for k in range(3)]
    se = value.std() * np.sqrt(2 / min(np.bincount(arm)))
    assert np.ptp(means) < 4 * se


def test_simulate_reports_progress(tmp_path: Path):
    seen: list[float] = []
    small(tmp_path, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


@pytest.mark.slow
def test_simulate_twenty_thousand_users_under_twenty_seconds(tmp_path: Path):
    began = time.process_time()
    simulate(tmp_path, 20_000, 90, 1, end=date(2026, 1, 1), messages=["offer"])
    assert time.process_time() - began < 20
