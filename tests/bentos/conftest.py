"""Fixtures of the service's tests."""

import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import serving_world
from linear_model import make_bundle

from campaign import load_campaign


@pytest.fixture(scope="session")
def campaign():
    return load_campaign()


@pytest.fixture(scope="session")
def two_messages(campaign):
    return campaign.model_copy(update={"arm": (*campaign.arm, campaign.arm[1].model_copy(update={"name": "other"}))})


@pytest.fixture
def bundle(campaign):
    return make_bundle(campaign)


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Folder of a small world: logs, features, an applied SQLite store, two packed models, the first promoted."""
    folder = tmp_path_factory.mktemp("world")
    run_world(folder)
    return folder


def run_world(folder, *arguments):
    command = [sys.executable, serving_world.__file__, str(folder), *arguments]
    done = subprocess.run(
        command, env=serving_world.world_env(folder), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


@contextmanager
def redis_server(folder, port):
    """A Redis of its own on `port`, its data kept in `folder` when it is stopped."""
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "3600 1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            wait_for_port(port)
            yield process
        finally:
            process.terminate()


def wait_for_port(port, seconds=10.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise AssertionError(f"nothing listens on {port}")


@pytest.fixture(scope="session")
def redis_world(world):
    """(world, port): the world with its features in a Redis too; the profile is TACTFUL_STORE=redis."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with redis_server(world, port):
        run_world(world, "redis", str(port))
        yield world, port
