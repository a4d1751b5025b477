"""Bulk scoring against the engine alone, and the memory and resumption of two million users.

    .venv/bin/python benchmarks/serving_bulk.py [--world FOLDER] [--users N]

The engine alone is input preparation and forward pass on the same batches, in memory already. Scoring adds reading the
snapshot, layers, policy and writing the table. CPU time in one process, one thread. Users are those of the service's
test world, repeated under new ids. Writes the section `serving bulk` of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from serving import ROOT, prepare, serving_world, write_section

END, NOW = serving_world.END, serving_world.NOW


def enlarge(folder: Path, users: int) -> None:
    """Replace the newest snapshot by one of so many users."""
    path = folder / f"data/features/date={END}/snapshot.parquet"
    small = pq.read_table(path)
    at, aside = small.schema.get_field_index("user_id"), path.with_suffix(".big")
    with pq.ParquetWriter(aside, small.schema) as writer:
        for start in range(0, users, len(small)):
            n = min(len(small), users - start)
            ids = pa.array([f"b{i:09d}" for i in range(start, start + n)], small.schema.field("user_id").type)
            writer.write_table(small.slice(0, n).set_column(at, small.schema.field(at), ids))
    aside.replace(path)


def engine_alone(folder: Path) -> None:
    """CPU microseconds a row of preparation and forward pass, on batches in memory; prints JSON."""
    from bentos.bulk import BATCH_ROWS, rows_of
    from bentos.bundle import load_bundle
    from campaign import load_campaign
    from feature_repo.retrieval import latest_features, open_store
    from models.registry import champion_tag, model_path

    tag = champion_tag()
    bundle = load_bundle(tag, model_path(tag), load_campaign())
    store, batches = open_store(), []
    for batch in latest_features(store, END, bundle.feature_service, BATCH_ROWS):
        batches.append(batch)
        if len(batches) == 6:
            break
    took = []
    for batch in batches:  # the first one warms up
        started = time.process_time()
        bundle.mu_hat(rows_of(batch, bundle, stale=False))
        took.append((time.process_time() - started) / batch.num_rows)
    print(json.dumps(sorted(took[1:])[len(took[1:]) // 2] * 1e6))


def score(folder: Path) -> None:
    """Score everybody; prints CPU microseconds a row of the whole and the peak of memory as JSON."""
    from bentos.bulk import score_all
    from campaign import load_campaign

    parts = len(list((folder / f"data/eligibility/date={END}").glob("part-*.parquet")))
    marks: list[tuple[int, float]] = []
    score_all(
        folder / "data", load_campaign(), now=NOW, progress=lambda done, _: marks.append((done, time.process_time()))
    )
    # parts that were there were not computed again; the first batch warms up
    rows, seconds = (b - a for a, b in zip(marks[parts], marks[-1], strict=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"users": marks[-1][0], "us": seconds / rows * 1e6, "gb": peak}))


def _run(folder: Path, what: str) -> subprocess.Popen[str]:
    environ = serving_world.world_env(folder, OMP_NUM_THREADS="1", ARROW_IO_THREADS="1")
    environ["PYTHONPATH"] += os.pathsep + str(ROOT / "benchmarks")
    command = [sys.executable, __file__, "--world", str(folder), "--only", what]
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True)


def _answer(process: subprocess.Popen[str]) -> object:
    out, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"ended with {process.returncode}")
    return json.loads([line for line in out.splitlines() if line.strip()][-1])


def measure(folder: Path, users: int) -> str:
    """Engine alone, then scoring that is killed once and goes on, then its figures."""
    alone = _answer(_run(folder, "engine"))
    table = folder / f"data/eligibility/date={END}"
    shutil.rmtree(table, ignore_errors=True)
    first = _run(folder, "score")
    while len(list(table.glob("part-*.parquet"))) < 3:
        if first.poll() is not None:
            raise RuntimeError("scoring ended before it could be killed")
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = {part.name: part.stat().st_mtime_ns for part in table.glob("part-*.parquet")}
    done = _answer(_run(folder, "score"))
    same = all((table / name).stat().st_mtime_ns == at for name, at in kept.items())
    rows = sum(pq.ParquetFile(part).metadata.num_rows for part in table.glob("part-*.parquet"))
    if not same or rows != users:
        raise RuntimeError(f"after a kill: {rows} rows of {users}, parts kept: {same}")
    return (
        f"\n{users:,} users: {done['us']:.1f} us of CPU a user, the engine alone {alone:.1f}: "
        f"{alone / done['us']:.0%} of its rows per CPU-second. Peak memory {done['gb']:.2f} GB. Killed (-9) after "
        f"{len(kept)} parts, run again: these were kept, every user is there once."
    )


def main() -> None:
    """Run what was asked for and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, help="folder of a world to build or reuse")
    parser.add_argument("--users", type=int, default=2_000_000)
    parser.add_argument("--only", choices=["engine", "score"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        {"engine": engine_alone, "score": score}[options.only](options.world)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.world or Path(scratch)).resolve()
        prepare(folder)
        enlarge(folder, options.users)
        text = measure(folder, options.users)
        write_section("serving bulk", f"## Serving: everybody at once\n{text}\n")
    print(text)


if __name__ == "__main__":
    main()
