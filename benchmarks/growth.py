"""How the cost of each step grows with users, and the memory it takes: every step in a process of its own.

    .venv/bin/python benchmarks/growth.py run --users 10000 [--steps features frame ...] [--repeats 3]
    .venv/bin/python benchmarks/growth.py table

`run` makes the logs of a platform of 90 days (0.9 events a user and day, as the simulator has), runs each step on them
and adds lines to benchmarks/growth.csv: CPU and wall seconds of the step without the start of Python and what is only
preparation, and the peak of memory of its processes (VmHWM of all of them added up, from the start). `table` writes
the section `growth` of docs/benchmarks.md: per step the slope of log CPU on log users with its 95% interval, and the
slope between the two largest sizes alone. From 2M users on only a snapshot is made, for the steps that read nothing
else.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from scipy import stats

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
from experiment import write_section  # noqa: E402  # after its folder is known
from features import make_snapshot, materialize, redis_server  # noqa: E402
from platform_logs import FIRST_DAY, connect, make_decisions, make_logs  # noqa: E402

DOCS, RESULTS = ROOT / "docs" / "benchmarks.md", ROOT / "benchmarks" / "growth.csv"
DAYS = 90
EVENTS = 0.9  # sessions and messages of a user and day, as in the simulator
MESSAGES = 0.17  # of these
LAST = FIRST_DAY + timedelta(days=DAYS)
AS_OF = datetime(LAST.year, LAST.month, LAST.day, tzinfo=UTC)
LOGS_UP_TO = 2_000_000
FIELDS = ["step", "users", "cpu_s", "wall_s", "peak_gb", "redis_gb", "redis_cpu_s", "date"]
Work = Callable[[], Any]


def world_env(world: Path, **more: str) -> dict[str, str]:
    """Environment of a process that lives in one world; all worlds share the champion."""
    folders = {"TACTFUL_DATA": world / "data", "TACTFUL_FEATURE_REPO": world / "repo"}
    folders["BENTOML_HOME"] = world.parent / "bentoml"
    quiet = {"PYTHONWARNINGS": "ignore", "DO_NOT_TRACK": "1", "BENTOML_DO_NOT_TRACK": "True"}
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ARROW_IO_THREADS"), "1")
    return {**os.environ, **quiet, **one, **{k: str(v) for k, v in folders.items()}, **more} | {
        "TACTFUL_NOW": (AS_OF + timedelta(hours=12)).isoformat(),
        "PYTHONPATH": str(ROOT),
        "OMP_WAIT_POLICY": "PASSIVE",
    }


# What is prepared before the clock starts, and the step itself.


def inputs(world: Path, users: int) -> Work:
    """Logs, decisions and an applied store; only a snapshot where logs would not fit on a disk."""
    from campaign import load_campaign

    data = world / "data"
    if users > LOGS_UP_TO:
        snapshot = data / "features" / f"date={LAST}" / "snapshot.parquet"
        snapshot.parent.mkdir(parents=True)
        make_snapshot(snapshot, users, AS_OF)
    else:
        make_logs(data / "logs", round(EVENTS * DAYS * users), users, DAYS, MESSAGES)
        make_decisions(data / "decisions", users, DAYS, load_campaign().assignment.holdout_share)
    (world / "repo" / "data").mkdir(parents=True)
    return lambda: apply(world / "repo", "feature_store.yaml")


def apply(repo: Path, name: str, redis: str = "") -> Any:
    """The definitions of this repository, registered in a folder of their own."""
    from feature_repo.store import import_feast

    import_feast()
    from feast import FeatureStore

    from feature_repo import entities, on_demand, services, sources, views

    text = (ROOT / "feature_repo" / name).read_text(encoding="utf-8")
    (repo / name).write_text(text.replace("127.0.0.1:6379", redis), encoding="utf-8")
    store = FeatureStore(repo_path=str(repo), fs_yaml_file=repo / name)
    tables = [v for v in vars(views).values() if type(v).__name__ == "FeatureView"]
    store.apply([entities.user, sources.snapshots, *tables, on_demand.request_context, services.uplift_v1])
    return store


def features(world: Path, engine: str = "duckdb") -> Work:
    """The snapshot of one day from 90 days of logs."""
    from feature_repo.snapshots import build_snapshots

    scratch = world / "one-day"
    shutil.rmtree(scratch, ignore_errors=True)
    return lambda: build_snapshots(world / "data/logs", scratch, LAST, only={LAST}, engine=engine)


def features_spark(world: Path) -> Work:
    """The same on Spark, its start included (run by .venv-spark/bin/python)."""
    return features(world, "spark")


def days(world: Path) -> Work:
    """The snapshots of all 90 days; later steps read them."""
    from feature_repo.snapshots import build_snapshots

    shutil.rmtree(world / "data/features", ignore_errors=True)
    return lambda: build_snapshots(world / "data/logs", world / "data/features", LAST)


def copies(world: Path) -> Work:
    """In place of `days`, which takes hours of a million users: one generated snapshot, dated as each of the days."""
    users = int(world.name.removeprefix("users-"))

    def work() -> None:
        whole = world / "snapshot.parquet"
        make_snapshot(whole, users, AS_OF)
        for day in (FIRST_DAY + timedelta(days=n) for n in range(1, DAYS + 1)):
            folder = world / "data/features" / f"date={day}"
            folder.mkdir(parents=True)
            dated = ", ".join(f"TIMESTAMPTZ '{day}' AS {kind}_timestamp" for kind in ("event", "created"))
            connect().execute(f"""COPY (SELECT * REPLACE ({dated}) FROM '{whole}')
                TO '{folder}/snapshot.parquet' (ROW_GROUP_SIZE 65536)""")

    return work


def frame(world: Path) -> Work:
    """The training frame of all matured decisions."""
    from campaign import load_campaign
    from feature_repo.store import open_store
    from models.frame import countable, read_decisions, training_frame
    from models.splits import split_of

    data, store, campaign = world / "data", open_store(), load_campaign()

    def work() -> None:
        counted = countable(read_decisions(data / "decisions"), campaign, AS_OF)
        made = training_frame(store, counted, campaign, data / "logs", AS_OF)
        made["split"] = split_of(made["user_id"], campaign.splits)
        for split, rows in made.groupby("split"):
            rows.to_parquet(world / f"frame-{split}.parquet", index=False, row_group_size=65_536)

    return work


def _spec() -> Any:
    from campaign import load_campaign
    from feature_repo.store import feature_schema, open_store
    from models.challenger import fit_spec

    return fit_spec(load_campaign(), feature_schema(open_store()))


def train(world: Path) -> Work:
    """The network on the rows of the split `train`, in memory, as `tactful train` does."""
    import pandas as pd

    from models.train import fit

    rows, spec = pd.read_parquet(world / "frame-train.parquet"), _spec()
    fit(rows.head(500), spec)  # what torch loads at first use is no cost of the rows
    return lambda: fit(rows, spec)


def stream(world: Path) -> Work:
    """The same rows from the file, in bounded memory."""
    import pandas as pd

    from models.stream import fit_parquet
    from models.train import fit

    spec = _spec()
    fit(pd.read_parquet(world / "frame-select.parquet").head(500), spec)  # as above
    return lambda: fit_parquet([world / "frame-train.parquet"], spec)


def challenger(world: Path) -> Work:
    """All of `tactful train` after the frame: rivals, policy, values and report, without packing a champion."""
    import pandas as pd

    from campaign import load_campaign
    from feature_repo.store import feature_schema, open_store
    from models.challenger import fit_and_report

    rows = pd.concat([pd.read_parquet(path) for path in sorted(world.glob("frame-*.parquet"))], ignore_index=True)
    store = open_store()
    return lambda: fit_and_report(load_campaign(), rows, feature_schema(store), world / "data")


def champion(world: Path) -> Work:
    """A model of this world for those that score; the first world makes it."""
    import pandas as pd

    from bentos.bundle import write_probe
    from campaign import load_campaign
    from feature_repo.store import feature_schema, open_store
    from models import registry
    from models.spec import columns_of
    from models.train import fit

    campaign, schema, spec = load_campaign(), feature_schema(open_store()), _spec()
    rows = pd.read_parquet(world / "frame-train.parquet")

    def work() -> None:
        fitted, folder = fit(rows, spec), world / "model"
        extra: dict[str, Any] = {"campaign_hash": campaign.hash, "feature_service": schema.service, "metrics": {}}
        extra |= {"feature_schema_hash": schema.hash, "policy": {"threshold": 0.0}}
        extra["data_window"] = {"from": str(FIRST_DAY), "to": str(LAST), "n": len(rows)}
        fitted.save(folder, extra)
        write_probe(folder, fitted.model, columns_of(rows.head(16), schema.types))
        registry.promote(registry.pack(folder), "benchmark", at=AS_OF.isoformat())

    return work


def score(world: Path) -> Work:
    """The table of who is eligible."""
    from bentos.bulk import score_all
    from campaign import load_campaign
    from feature_repo.store import open_store

    open_store()  # imports Feast
    shutil.rmtree(world / "data/eligibility", ignore_errors=True)
    return lambda: score_all(world / "data", load_campaign(), now=AS_OF)


def score_spark(world: Path) -> Work:
    """The same on Spark, its start included (run by .venv-spark/bin/python)."""
    os.environ["TACTFUL_ENGINE"] = "spark"
    return score(world)


def sqlite(world: Path) -> Work:
    """The newest snapshot into an empty SQLite store."""
    return _online(world, "sqlite")


def redis(world: Path) -> Work:
    """The newest snapshot into a Redis, which holds it already after the first run."""
    return _online(world, "redis")


def _online(world: Path, kind: str) -> Work:
    name = "feature_store.yaml" if kind == "sqlite" else "feature_store.redis.yaml"
    repo = world / kind
    shutil.rmtree(repo, ignore_errors=True)
    (repo / "data").mkdir(parents=True)
    store = apply(repo, name, os.environ.get("BENCH_REDIS", ""))
    return lambda: materialize(store, AS_OF)


def _predicted(world: Path) -> Any:
    """The frame with the champion's predictions."""
    import pandas as pd

    from campaign import load_campaign
    from models.forward import NumpyModel
    from models.predictions import prediction_columns
    from models.registry import champion_tag, model_path
    from models.spec import columns_of

    campaign = load_campaign()
    model = NumpyModel.load(model_path(champion_tag()))
    parts = []
    for path in sorted(world.glob("frame-*.parquet")):
        rows = pd.read_parquet(path)
        mu_hat = model.predict(columns_of(rows, {f.name: f.kind for f in model.spec.features}))
        weights = dict(zip(campaign.outcome_names, campaign.weights, strict=True))
        parts.append(
            pd.concat([rows, prediction_columns(mu_hat, campaign.arm_names, weights, campaign.costs, 0.0)], axis=1)
        )
    return pd.concat(parts, ignore_index=True)


def drift(world: Path) -> Work:
    """The counts that drift is judged by, of every decision of the frame."""
    from campaign import load_campaign
    from models.forward import NumpyModel
    from models.registry import champion_tag, model_path
    from monitoring.profile import build_profile, count_rows

    rows = _predicted(world)
    kinds = {f.name: f.kind for f in NumpyModel.load(model_path(champion_tag())).spec.features}
    profile = build_profile(rows.head(50_000), kinds, load_campaign(), weeks=4)
    return lambda: count_rows(profile, rows)


def values(world: Path) -> Work:
    """Policy values of every decision of the frame, clustered by user, by segment."""
    from campaign import load_campaign
    from models import Threshold, evaluate
    from models.predictions import mu_hat_of
    from models.worth import evaluation_log, evaluation_outcomes

    campaign = load_campaign()
    log = evaluation_log(campaign, _predicted(world))
    mu_hat = mu_hat_of(log, campaign.arm_names, campaign.outcome_names)
    given: dict[str, Any] = {"mu_hat": mu_hat, "segments": ["plan"], "costs": campaign.costs}
    policy = Threshold(log["score"].to_numpy()[:, None], 0.0)
    return lambda: evaluate(log, {"uplift policy": policy}, evaluation_outcomes(campaign), **given)


STEPS: dict[str, Callable[[Path], Work]] = {
    "features": features,
    "features_spark": features_spark,
    "days": days,
    "copies": copies,
    "frame": frame,
    "champion": champion,
    "train": train,
    "stream": stream,
    "challenger": challenger,
    "score": score,
    "score_spark": score_spark,
    "sqlite": sqlite,
    "redis": redis,
    "drift": drift,
    "values": values,
}
ONCE = ("days", "copies", "frame", "champion")  # whose results later steps read


def one(step: str, world: Path, users: int, repeats: int) -> None:
    """Run one step so many times, and once before if more than once, and print what each took as JSON."""
    taken: list[dict[str, float]] = []
    for _ in range(repeats + (repeats > 1)):
        work = inputs(world, users) if step == "inputs" else STEPS[step](world)
        cpu, wall = cpu_seconds(), time.perf_counter()
        work()
        taken.append(
            {"cpu_s": cpu_seconds() - cpu, "wall_s": time.perf_counter() - wall, "peak_gb": peak_gb(os.getpid())}
        )
    print(json.dumps(taken[-repeats:]))


def cpu_seconds() -> float:
    """CPU of this process, of its children that live, and of those they have buried."""
    children = (child.cpu_times() for child in psutil.Process().children(recursive=True))
    return time.process_time() + float(sum(sum(times[:4]) for times in children))


def peak_gb(root: int) -> float:
    """Peak resident memory of a process and its children so far, each at its own worst."""
    total = 0
    for process in [psutil.Process(root), *psutil.Process(root).children(recursive=True)]:
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        total += next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0)
    return total / 2**20


def measure(step: str, world: Path, users: int, repeats: int = 1) -> list[dict[str, Any]]:
    """One process of one step: the lines of the table."""
    with redis_server(world) if step == "redis" else nullcontext("") as address:
        command = [sys.executable, __file__, "one", step, str(world), str(users), str(repeats)]
        process = subprocess.Popen(
            command, env=world_env(world, BENCH_REDIS=address), stdout=subprocess.PIPE, text=True
        )
        peak = 0.0
        while process.poll() is None:
            with suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):  # ended while it was looked at
                peak = max(peak, peak_gb(process.pid))
            time.sleep(1)
        if process.returncode:
            raise SystemExit(f"{step} of {users:,} users ended with {process.returncode}")
        found = json.loads((process.stdout.read() if process.stdout else "").splitlines()[-1])
        same = {"step": step, "users": users, "peak_gb": peak, "date": f"{datetime.now(UTC):%Y-%m-%d}"}
        same |= _redis(address, repeats) if address else {}
        return [same | run | {"peak_gb": max(peak, run["peak_gb"])} for run in found]


def _redis(address: str, repeats: int) -> dict[str, float]:
    """Memory of the server after a step that was run so many times, and its CPU each time."""
    from redis import Redis

    host, port = address.split(":")
    told: Any = Redis(host, int(port)).info()
    return {
        "redis_gb": told["used_memory_rss"] / 2**30,
        "redis_cpu_s": (told["used_cpu_user"] + told["used_cpu_sys"]) / (repeats + (repeats > 1)),
    }


def run(root: Path, users: int, steps: list[str], repeats: int) -> None:
    """Measure the steps of one world; each line is written down at once."""
    world = root / f"users-{users}"
    if not world.exists():
        world.mkdir(parents=True)
        print(f"inputs of {users:,} users", measure("inputs", world, users), flush=True)
    for step in steps:
        made = next(root.glob("*/data/registry"), None)
        if step == "champion" and made:  # the first world's
            shutil.copytree(made, world / "data/registry", dirs_exist_ok=True)
            continue
        for found in measure(step, world, users, 1 if step in ONCE else repeats):
            print(found, flush=True)
            save(found)


def save(found: dict[str, Any]) -> None:
    """Append a line."""
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, restval="", lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow({k: round(v, 4) if isinstance(v, float) else v for k, v in found.items()})


# What was measured, read.

INTRO = """## Growth and memory

`python benchmarks/growth.py run --users N` for each size, then `python benchmarks/growth.py table`; every run is a line
of `benchmarks/growth.csv`. One thread a step, two shared cores: CPU seconds (median of the runs), since wall time here
is mostly the neighbours'. Exponent: slope of log CPU on log users over all runs. What costs the same at any size
presses it below 1, so the slope between the two largest sizes stands beside it. Peak: of the step's whole process, with
Python and its libraries. The 90 snapshots that the frame reads are one generated snapshot with 90 dates; what has no
interval worth the name, or a wide one, was run once a size."""


Costs = dict[str, dict[int, list[dict[str, float]]]]  # by step and users


def read_results(file: Path = RESULTS) -> Costs:
    """The lines of the table, as numbers; those of processes that make inputs are left out."""
    found: Costs = {}
    with file.open(newline="", encoding="utf-8") as lines:
        for line in csv.DictReader(lines):
            numbers = {name: float(value) for name, value in line.items() if name.endswith(("_s", "_gb")) and value}
            if line["step"] not in ("inputs", "copies", "champion"):
                found.setdefault(line["step"], {}).setdefault(int(line["users"]), []).append(numbers)
    return found


def median(runs: list[dict[str, float]], what: str) -> float:
    """Median over the runs of one size."""
    return float(np.median([run[what] for run in runs]))


def exponent(sizes: dict[int, list[dict[str, float]]]) -> tuple[float, float]:
    """Slope of log CPU seconds on log users over all runs, and half its 95% interval."""
    points = [(np.log(users), np.log(run["cpu_s"])) for users, runs in sizes.items() for run in runs]
    fit = stats.linregress(*zip(*points, strict=True))
    return float(fit.slope), float(stats.t.ppf(0.975, len(points) - 2) * fit.stderr)


def marginal(sizes: dict[int, list[dict[str, float]]]) -> float:
    """Slope between the medians of the two largest sizes: what fixed costs no longer hide."""
    low, high = sorted(sizes)[-2:]
    rise = np.log(median(sizes[high], "cpu_s") / median(sizes[low], "cpu_s"))
    return float(rise / np.log(high / low))


def table(costs: Costs) -> str:
    """The section of docs/benchmarks.md."""
    lines = [
        "| step | CPU s by users | exponent (95%) | between the two largest | us a user at the largest | peak there |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for step in (name for name in STEPS if name in costs):
        sizes = costs[step]
        told = "; ".join(f"{users:,}: {median(runs, 'cpu_s'):.3g}" for users, runs in sorted(sizes.items()))
        cells = ["", ""]
        if len(sizes) > 1:
            slope, half = exponent(sizes)
            told_half = f"{slope - half:.2f} to {slope + half:.2f}" if np.isfinite(half) else "one run a size"
            cells = [f"{slope:.2f} ({told_half})", f"{marginal(sizes):.2f}"]
        largest = max(sizes)
        each = f"{median(sizes[largest], 'cpu_s') / largest * 1e6:,.1f}"
        peak = f"{max(run['peak_gb'] for run in sizes[largest]):.2f} GB"
        what = (STEPS[step].__doc__ or "").splitlines()[0].rstrip(".")
        lines.append(f"| `{step}`: {what} | {' | '.join([told, *cells, each, peak])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1] == "one":
        one(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
        sys.exit()
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--steps", nargs="*", default=[step for step in STEPS if "spark" not in step])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "tactful-growth")
    asked = parser.parse_args()
    if asked.what == "run":
        run(asked.folder, asked.users, asked.steps, asked.repeats)
    else:
        write_section(DOCS, "growth", f"{INTRO}\n\n{table(read_results())}")
