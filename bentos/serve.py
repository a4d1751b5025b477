"""Run `bentoml serve` as a child process on a free port: for `tactful run`, tests and benchmarks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

from campaign import ROOT, TactfulError


@contextmanager
def serving(log: Path, *, environ: Mapping[str, str] | None = None, seconds: float = 120) -> Iterator[str]:
    """Start the service, yield its URL once it is ready, stop it afterwards (in-flight requests are answered).

    Args:
        log: file that takes the server's output.
        environ: environment variables on top of this process's.
        seconds: how long it may take to be ready.

    Raises: TactfulError: it was not ready in time, or ended; the message has the end of the log.
    """
    port = free_port()
    command = [str(Path(sys.executable).parent / "bentoml"), "serve", "--port", str(port)]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        server = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | dict(environ or {}), stdout=output, stderr=subprocess.STDOUT
        )
        try:
            wait_ready(server, f"http://127.0.0.1:{port}", log, seconds)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(timeout=60)


def wait_ready(server: subprocess.Popen[bytes], url: str, log: Path, seconds: float) -> None:
    """Return when /readyz answers 200 (TactfulError: it did not within `seconds`, or the server ended)."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.3)
    tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
    raise TactfulError(f"the service was not ready within {seconds:.0f} s; the end of {log}:\n{tail}")


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
