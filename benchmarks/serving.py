"""CPU and latency of a decision, against a bare no-op and against a service as one would first write it.

    .venv/bin/python benchmarks/serving.py [--world FOLDER] [--rounds N] [--soak SECONDS]

All servers run at once and are asked in turn, so that whatever else the machine does meets them alike. The figure to
trust is CPU per request (user + system time of the server's processes); latency depends on the machine's load. Writes
the section `serving` of docs/benchmarks.md. `--soak` instead keeps our server at half of its capacity for that long and
reports errors and the slope of its memory. Needs redis-server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "bentos")]

import serving_world  # noqa: E402

from bentos import serve  # noqa: E402
from feature_repo.atomic import write_text  # noqa: E402

DOCS = ROOT / "docs" / "benchmarks.md"
LOADS = [(1, 1, 200), (16, 1, 160), (64, 1, 320), (1, 100, 5), (16, 100, 16)]  # clients, users a request, requests
NAMES = {
    "fastapi": "(a) FastAPI no-op",
    "noop": "(b) BentoML default no-op",
    "naive-redis": "(c) naive, Redis",
    "naive-sqlite": "(c) naive, SQLite",
    "ours-redis": "(d) Tactful, Redis",
    "ours-sqlite": "(d) Tactful, SQLite",
}


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def prepare(folder: Path) -> None:
    """The world of the service's tests with models of full size, built once per folder."""
    if not (folder / "models.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _world(folder, "2000", "full")


def _world(folder: Path, *arguments: str) -> None:
    command = [sys.executable, serving_world.__file__, str(folder), *arguments]
    subprocess.run(command, env=serving_world.world_env(folder), check=True, capture_output=True)


def start_all(folder: Path, wanted: list[str], stack: ExitStack) -> dict[str, tuple[psutil.Process, int]]:
    """Start Redis and the wanted servers; returns process and port of each, ready."""
    redis_port = free_port()
    redis = subprocess.Popen(
        ["redis-server", "--port", str(redis_port), "--bind", "127.0.0.1", "--save", ""], stdout=subprocess.DEVNULL
    )
    stack.callback(redis.wait)
    stack.callback(redis.terminate)
    _world(folder, "redis", str(redis_port))
    started = {}
    for name in wanted:
        port = free_port()
        home = folder / f"home-{name}"  # servers with one home empty each other's metrics folder
        shutil.copytree(folder / "bentoml", home, dirs_exist_ok=True)
        profile = "redis" if name.endswith("redis") else "local"
        environ = serving_world.world_env(folder, BENTOML_HOME=str(home), TACTFUL_STORE=profile, OMP_NUM_THREADS="1")
        environ |= {"BENTOML_DO_NOT_TRACK": "True", "TACTFUL_FEATURE_SECONDS": "10"}
        environ["PYTHONPATH"] += os.pathsep + str(ROOT / "benchmarks")
        log = (folder / f"{name}.log").open("wb")
        process = subprocess.Popen(
            _command(name, port), cwd=ROOT, env=environ, stdout=log, stderr=log, start_new_session=True
        )
        stack.callback(serve.stop, process)
        started[name] = (process, port)
    for name, (process, port) in started.items():
        page = {"fastapi": "docs", "ours-redis": "readyz", "ours-sqlite": "readyz"}.get(name, "livez")
        serve.wait_until(process, f"http://127.0.0.1:{port}/{page}", folder / f"{name}.log", 600)
    return {name: (psutil.Process(process.pid), port) for name, (process, port) in started.items()}


def _command(name: str, port: int) -> list[str]:
    scripts = Path(sys.executable).parent
    if name == "fastapi":
        options = ["--port", str(port), "--log-level", "warning", "--no-access-log"]
        return [sys.executable, "-m", "uvicorn", "serving_rivals:app", *options]
    rival = {"noop": ["serving_rivals:Noop"], "naive": ["serving_rivals:Naive"]}.get(name.split("-")[0], [])
    return [str(scripts / "bentoml"), "serve", *rival, "--port", str(port)]


def cpu_seconds(process: psutil.Process) -> float:
    """Time on a processor of all threads of a process and its children so far; the system counts it in nanoseconds."""
    threads = [
        task for p in (process, *process.children(recursive=True)) for task in Path(f"/proc/{p.pid}/task").iterdir()
    ]
    return sum(int((task / "schedstat").read_text().split()[0]) for task in threads) / 1e9


async def fire(port: int, bodies: list[bytes], clients: int) -> list[float]:
    """Send requests over `clients` kept connections; returns the seconds each took (RuntimeError: not a 200)."""
    waiting, took = iter(bodies), []

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for body in waiting:
            head = b"POST /decide HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
            started = time.perf_counter()
            writer.write(head % len(body) + body)
            top = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(top.split(b"content-length: ")[1].split(b"\r\n")[0])
            content = await reader.readexactly(length)
            if b" 200 " not in top[:16]:
                raise RuntimeError(f"answered {top[:40]!r} {content[:300]!r}")
            took.append(time.perf_counter() - started)
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return took


def bodies(users: list[str], per_request: int, count: int) -> list[bytes]:
    """Requests about users drawn at random."""
    rng = np.random.default_rng(count)
    draws = rng.choice(users, size=(count, per_request))
    context = {"hour": 20, "surface": "home"}
    return [json.dumps({"user_ids": draw.tolist(), "context": context}).encode() for draw in draws]


def measure(folder: Path, rounds: int) -> str:
    """All servers, interleaved; the section's table."""
    users = [str(u) for u in np.load(folder / "expected.npz")["users"]]
    cpu: dict[tuple[str, int], list[float]] = {}
    latency: dict[tuple[str, int], list[float]] = {}
    with ExitStack() as stack:
        servers = start_all(folder, list(NAMES), stack)
        for name, (_, port) in servers.items():
            asyncio.run(fire(port, bodies(users, 1, 50), 4))
            print(f"{name} warm", flush=True)
        for _ in range(rounds):
            for load, (clients, per_request, count) in enumerate(LOADS):
                for name, (process, port) in servers.items():
                    batch = bodies(users, per_request, count)
                    before = cpu_seconds(process)
                    took = asyncio.run(fire(port, batch, clients))
                    cpu.setdefault((name, load), []).append((cpu_seconds(process) - before) / count * 1000)
                    latency.setdefault((name, load), []).extend(took)
            print(f"round: load average {os.getloadavg()[0]:.1f}", flush=True)
    return _table(cpu, latency)


def _table(cpu: dict[tuple[str, int], list[float]], latency: dict[tuple[str, int], list[float]]) -> str:
    lines = []
    for load, (clients, per_request, _) in enumerate(LOADS):
        lines += [f"\n{clients} at a time, {per_request} user{'s' * (per_request > 1)} a request:\n"]
        lines += ["| | CPU, ms a request | times (a), (SE) | of (c), (SE) | p50, ms | p99, ms |"]
        lines += ["|---|---:|---:|---:|---:|---:|"]
        for name, label in NAMES.items():
            base, naive = cpu["fastapi", load], cpu.get((name.replace("ours", "naive"), load), [])
            times = _ratio(cpu[name, load], base, ".1f") if name != "fastapi" else "1"
            share = _ratio(cpu[name, load], naive, ".0%") if name.startswith("ours") else ""
            p50, p99 = np.quantile(latency[name, load], [0.5, 0.99]) * 1000
            lines.append(f"| {label} | {np.median(cpu[name, load]):.2f} | {times} | {share} | {p50:.1f} | {p99:.1f} |")
    return "\n".join(lines)


def _ratio(cpu: list[float], base: list[float], form: str) -> str:
    """Median over the rounds of the ratio within a round, and its standard error by 1,000 bootstrap samples."""
    ratios = np.array(cpu) / np.array(base)
    draws = np.random.default_rng(0).choice(ratios, (1000, len(ratios)))
    return f"{np.median(ratios):{form}} ({np.median(draws, axis=1).std():{form}})"


def soak(folder: Path, seconds: float) -> str:
    """Our server at half of its capacity, its model swapped every minute: errors, and the slope of its memory."""
    users = [str(u) for u in np.load(folder / "expected.npz")["users"]]
    tags = json.loads((folder / "models.json").read_text())
    with ExitStack() as stack:
        process, port = start_all(folder, ["ours-redis"], stack)["ours-redis"]
        worker = max(process.children(recursive=True), key=lambda p: p.memory_info().rss)
        started, before = time.perf_counter(), cpu_seconds(process)
        asyncio.run(fire(port, bodies(users, 1, 4000), 8))
        each, cpu = (time.perf_counter() - started) / 4000, (cpu_seconds(process) - before) / 4000
        begin, count, points = time.perf_counter(), 0, []
        while (now := time.perf_counter()) < begin + seconds:
            minute = int((now - begin) / 60)
            point_at(folder, tags[minute % 2])
            asyncio.run(fire(port, bodies(users, 1 + 19 * (count % 4000 == 0), 400), 8))
            count += 400
            points.append((now - begin, worker.memory_info().rss / 2**20))
            forget_logs(folder)
            time.sleep(max(0.0, now + 2 * 400 * each - time.perf_counter()))
    at, mb = np.array(points).T
    late = at > seconds / 5  # caches are filled by then
    (slope, _), covariance = np.polyfit(at[late] / 3600, mb[late], 1, cov=True)
    return (
        f"\n{count:,} requests in {seconds / 60:.0f} minutes, {count / seconds:.0f} a second; aimed at half of the "
        f"{1 / each:.0f} a second that 8 clients got before ({cpu * 1000:.2f} ms of CPU each). {minute} model swaps. "
        f"No error. Memory of the worker: {mb[0]:.0f} MB at the start, {mb[late][0]:.0f} MB after a fifth, "
        f"{mb[-1]:.0f} MB at the end; then slope "
        f"{slope:+.1f} MB an hour (SE {covariance[0, 0] ** 0.5:.1f})."
    )


def point_at(folder: Path, tag: str) -> None:
    """Make a model the champion, as `tactful promote` does it."""
    pointer = folder / "data" / "registry" / "champion.json"
    value = json.loads(pointer.read_text())
    if value["champion"] != tag:
        write_text(pointer, json.dumps({**value, "champion": tag}))


def forget_logs(folder: Path) -> None:
    """Remove all files of the decision log but the newest: half an hour would fill the disk."""
    files = sorted((folder / "data" / "decision_log").glob("*.log"), key=lambda path: path.stat().st_mtime)
    for path in files[:-1]:
        path.unlink()


def write_section(name: str, text: str) -> None:
    """Replace a section of docs/benchmarks.md, or append it."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    page = DOCS.read_text(encoding="utf-8") if DOCS.exists() else "# Benchmarks\n"
    before, _, rest = page.partition(start)
    after = rest.partition(end)[2] or "\n"
    write_text(DOCS, f"{before.rstrip()}\n\n{start}\n{text}\n{end}{after}")


def main() -> None:
    """Run what was asked for and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, help="folder of a world to build or reuse")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--soak", type=float, help="seconds")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # stop the servers also when this is stopped
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.world or Path(scratch)).resolve()
        prepare(folder)
        if options.soak:
            text = soak(folder, options.soak)
            write_section("serving soak", f"## Serving: soak\n{text}\n")
        else:
            text = measure(folder, options.rounds)
            head = (
                f"## Serving\n\nOne worker each, {psutil.cpu_count()} cores shared with all clients and whatever else "
                f"runs, load average {os.getloadavg()[0]:.0f}; {options.rounds} interleaved rounds: medians of the CPU "
                f"and of its ratio to (a), and to (c) on the same store, in the same round. Python "
                f"{platform.python_version()}, BentoML {version('bentoml')}, "
                f"Feast {version('feast')}, {datetime.now(UTC).date()}; a network of full size.\n"
            )
            write_section("serving", head + text + "\n")
    print(text)


if __name__ == "__main__":
    main()
