"""Start `bentoml serve` for a while: what the pipeline, the tests and the benchmarks talk to over HTTP."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import httpx

from campaign import ROOT, StoreError

START_SECONDS = 120.0
STOP_SECONDS = 30.0


@contextmanager
def serving(log_file: Path, environ: Mapping[str, str] | None = None, *, ready: bool = True) -> Iterator[str]:
    """Run the service on a free port of 127.0.0.1 until the block ends; yields its address.

    Args:
        log_file: where the server's output goes.
        environ: added to this process's environment.
        ready: wait until it can decide; otherwise only until it answers.

    Raises: StoreError: it did not start, or it is not ready in time; the message quotes the end of its output.
    """
    process, url = start(log_file, environ)
    try:
        wait_until(process, f"{url}/{'readyz' if ready else 'livez'}", log_file)
        yield url
    finally:
        stop(process)


def ask_over_http(users: Sequence[str], day: date, log_file: Path) -> Counter[str]:
    """Serve for a while, and ask about these users at the first moment of a day, as a client of the platform would.

    Returns: how many users got each reason.
    """
    reasons: Counter[str] = Counter()
    # a patient client: 500 users a request on a machine that may be busy
    environ = {"TACTFUL_NOW": f"{day}T00:00:00+00:00", "TACTFUL_FEATURE_SECONDS": "20"}
    with serving(log_file, environ) as url:
        for first in range(0, len(users), 500):
            body = {"user_ids": users[first : first + 500], "context": {"hour": 12, "surface": "home"}}
            answer = httpx.post(f"{url}/decide", json=body, timeout=30).raise_for_status().json()
            reasons.update(decision["reason"] for decision in answer["decisions"])
    return reasons


def start(
    log_file: Path, environ: Mapping[str, str] | None = None, arguments: Sequence[str] = (), folder: Path = ROOT
) -> tuple[subprocess.Popen[bytes], str]:
    """Start the server in a process group of its own; returns the process and its address.

    Args:
        log_file: where its output goes.
        environ: added to this process's environment.
        arguments: of `bentoml serve`, such as the tag of a bento; none serves the service of `folder`.
        folder: where the command runs.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).parent / "bentoml"), "serve", *arguments, "--port", str(port)]
    environment = {**os.environ, "BENTOML_DO_NOT_TRACK": "True", **(environ or {})}
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("ab") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    return process, f"http://127.0.0.1:{port}"


def wait_until(process: subprocess.Popen[bytes], url: str, log_file: Path, seconds: float = START_SECONDS) -> None:
    """Wait until a page answers 200 (StoreError: it does not in time, or the process ends)."""
    deadline, answer = time.monotonic() + seconds, "no answer"
    while time.monotonic() < deadline and process.poll() is None:
        try:
            response = httpx.get(url, timeout=5)
            if response.status_code == 200:
                return
            answer = response.text[:500]
        except httpx.HTTPError as error:
            answer = type(error).__name__
        time.sleep(0.2)
    output = log_file.read_text(encoding="utf-8", errors="replace")[-2000:]
    raise StoreError(f"the service is not ready after {seconds:.0f} s ({answer}); end of {log_file}:\n{output}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the server to finish what it has begun, then to end; kill what is left of its group after a while."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
