"""Faults against the real server with two workers on Redis: every one of them fails safe, and passes."""

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from datetime import timedelta

import httpx
import numpy as np
import psutil
import pytest
from conftest import redis_server
from serving_world import NOW, world_env
from test_serving_server import fuzz, wait_for

from bentos import serve
from bentos.decision_log import read_decisions

pytestmark = [pytest.mark.slow, pytest.mark.redis]


@pytest.fixture(scope="module")
def faulty(redis_world):
    """(process, address, world, Redis port) of a server with two workers."""
    world, port = redis_world
    environ = world_env(world, TACTFUL_STORE="redis", TACTFUL_WORKERS="2", TACTFUL_FEATURE_SECONDS="0.3")
    process, url = serve.start(world / "faults.log", environ)
    try:
        serve.wait_until(process, f"{url}/readyz", world / "faults.log", 300)
        yield process, url, world, port
    finally:
        serve.stop(process)


@pytest.fixture
def users(redis_world):
    return [str(u) for u in np.load(redis_world[0] / "expected.npz")["users"]]


class Load:
    """Clients that ask all the time; statuses and decisions in the order they came back."""

    def __init__(self, url, users, clients=4):
        self.url, self.users, self.stop = url, users, threading.Event()
        self.answers, self.errors = [], []
        self.threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(clients)]

    def _ask(self, i):
        body = {"user_ids": self.users[i * 20 : i * 20 + 20], "context": {"hour": 20}}
        while not self.stop.is_set():
            try:
                # a new connection each time: both workers get their share
                response = httpx.post(f"{self.url}/decide", json=body, timeout=10)
                self.answers.append((time.monotonic(), response.status_code, response.json()))
            except httpx.TransportError as error:
                self.errors.append(error)
                time.sleep(0.05)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def reasons(self, since=0.0):
        return {d["reason"] for at, _, answer in list(self.answers) if at > since for d in answer["decisions"]}


def usable(url, users):
    return "feature_store_error" not in {d["reason"] for d in decide(url, users)["decisions"]}


def decide(url, users):
    return httpx.post(f"{url}/decide", json={"user_ids": users[:5], "context": {"hour": 20}}, timeout=10).json()


def workers(process):
    return [
        p for p in psutil.Process(process.pid).children() if "_bentoml_impl.worker.service" in " ".join(p.cmdline())
    ]


def redis_process(port):
    """The Redis on a port; its title is "redis-server 127.0.0.1:PORT"."""
    (found,) = [
        p for p in psutil.process_iter(["cmdline"]) if f"redis-server 127.0.0.1:{port}" in str(p.info["cmdline"])
    ]
    return found


def test_faults_redis_slow_is_cut_off_and_fails_safe(faulty, users):
    _, url, _, port = faulty
    redis = redis_process(port)
    redis.suspend()
    try:
        started = time.monotonic()
        answer = decide(url, users)
        assert time.monotonic() - started < 3
        assert {d["reason"] for d in answer["decisions"]} == {"feature_store_error"}
        assert not any(d["eligible"] for d in answer["decisions"])
    finally:
        redis.resume()
    wait_for(lambda: usable(url, users), 2)


def test_faults_redis_stopped_and_started_again(faulty, users):
    _, url, world, port = faulty
    with Load(url, users) as load:
        time.sleep(1)
        redis = redis_process(port)
        redis.terminate()
        redis.wait(10)
        gone = time.monotonic()
        time.sleep(1)
        assert load.reasons(since=gone + 0.5) == {"feature_store_error"}
        wait_for(lambda: httpx.get(f"{url}/readyz").status_code == 503, 5)
        with redis_server(world, port):
            back = time.monotonic()
            time.sleep(2)
            assert "feature_store_error" not in load.reasons(since=back + 2)
            time.sleep(0.5)
            load.stop.set()
            restarted = [a for a in load.answers if a[0] > back + 2]
            assert restarted
            assert not load.errors
            assert {status for _, status, _ in load.answers} == {200}


@pytest.fixture
def redis_again(faulty):
    """The Redis that the test before stopped."""
    with redis_server(*faulty[2:]):
        yield


@pytest.mark.usefixtures("redis_again")
def test_faults_full_disk_is_never_an_unlogged_decision(faulty, users):
    """A file size limit on the workers stands in for a full disk: their writes are refused in the same way."""
    process, url, world, _ = faulty
    wait_for(lambda: usable(url, users), 5)
    before = [(w, w.rlimit(psutil.RLIMIT_FSIZE)) for w in workers(process)]
    try:
        for worker, (_, hard) in before:
            worker.rlimit(psutil.RLIMIT_FSIZE, (1, hard))
        response = httpx.post(f"{url}/decide", json={"user_ids": users[:5]})
        assert response.status_code == 503
        assert not any(d["eligible"] for d in response.json()["decisions"])
        wait_for(lambda: httpx.get(f"{url}/readyz").status_code == 503, 5)
    finally:
        for worker, limit in before:
            worker.rlimit(psutil.RLIMIT_FSIZE, limit)
    wait_for(lambda: httpx.get(f"{url}/readyz").status_code == 200, 5)
    answer = decide(url, users)
    rows = [r for f in (world / "data/decision_log").glob("*.log") for r in read_decisions(f)]
    assert answer["request_id"] in {r["request_id"] for r in rows}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system")
def test_faults_full_file_system_is_never_an_unlogged_decision(world, users, tmp_path):
    """The log on a file system of 256 kB: full, then larger again."""
    folder, home = world / "data/decision_log", tmp_path / "home"
    shutil.copytree(world / "bentoml", home)
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], check=True)
    try:
        with serve.serving(tmp_path / "full.log", world_env(world, BENTOML_HOME=str(home))) as url:
            answers = [httpx.post(f"{url}/decide", json={"user_ids": users[:50]}, timeout=10) for _ in range(40)]
            statuses = [answer.status_code for answer in answers]
            refused = statuses.index(503)
            assert refused > 3
            assert set(statuses[refused:]) == {503}
            assert not any(d["eligible"] for answer in answers[refused:] for d in answer.json()["decisions"])
            wait_for(lambda: httpx.get(f"{url}/readyz").status_code == 503, 5)
            subprocess.run(["mount", "-o", "remount,size=8m", str(folder)], check=True)
            wait_for(lambda: httpx.get(f"{url}/readyz").status_code == 200, 5)
            answers.append(httpx.post(f"{url}/decide", json={"user_ids": users[:50]}, timeout=10))
        rows = [row for file in folder.glob("*.log") for row in read_decisions(file)]
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    logged = {(row["request_id"], row["user_id"]) for row in rows}
    for answer in answers:
        if answer.status_code == 200:
            assert {(answer.json()["request_id"], user) for user in users[:50]} <= logged
    assert answers[-1].status_code == 200


@pytest.mark.usefixtures("redis_again")
def test_faults_two_workers_swap_each_answer_names_its_model(faulty, users):
    _, url, world, _ = faulty
    first, second = json.loads((world / "models.json").read_text())
    pointer = world / "data/registry/champion.json"
    text = pointer.read_text()
    with Load(url, users[:80]) as load:
        for tag in (second, first, second):
            aside = pointer.with_suffix(".tmp")
            aside.write_text(json.dumps({**json.loads(text), "champion": tag}))
            os.replace(aside, pointer)
            time.sleep(2)
    pointer.write_text(text)
    assert {answer["model"] for _, _, answer in load.answers} == {first, second}
    assert not load.errors
    by_model = {first: {}, second: {}}
    for _, _, answer in load.answers:
        for d in answer["decisions"]:
            by_model[answer["model"]].setdefault(d["user_id"], set()).add(d["score"])
    for tag, scores in by_model.items():
        assert scores, tag
        assert all(len(values) == 1 for values in scores.values()), "one model, one user, one score"


@pytest.mark.usefixtures("redis_again")
def test_faults_fuzzed_requests_never_decide_nor_break_the_server(faulty):
    _, url, world, _ = faulty
    fuzz(url, world / "faults.log", 10_000)


CLOCK = """
import os, pathlib, threading, time
def follow(path=pathlib.Path(os.environ["CLOCK_FILE"])):
    while True:
        os.environ["TACTFUL_NOW"] = path.read_text() or os.environ["TACTFUL_NOW"]
        time.sleep(0.02)
threading.Thread(target=follow, daemon=True).start()
"""


def test_faults_clock_jumps(world, users, tmp_path):
    """A server whose clock follows a file: a month ahead, a month behind, and back."""
    (tmp_path / "sitecustomize.py").write_text(CLOCK)
    clock, home = tmp_path / "now", tmp_path / "home"
    clock.write_text(NOW.isoformat())
    shutil.copytree(world / "bentoml", home)
    environ = world_env(world, BENTOML_HOME=str(home), CLOCK_FILE=str(clock))
    environ["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{environ['PYTHONPATH']}"
    with serve.serving(tmp_path / "clock.log", environ) as url:
        answers = []
        for days in (0, 30, -30, 0):
            moment = NOW + timedelta(days=days)
            clock.with_suffix(".new").write_text(moment.isoformat())
            os.replace(clock.with_suffix(".new"), clock)
            time.sleep(0.5)
            answers.append(decide(url, users))
            assert httpx.get(f"{url}/readyz").status_code == 200
    first, ahead, behind, back = (answer["decisions"] for answer in answers)
    assert {d["reason"] for d in ahead} == {"stale_features"}
    assert not any(d["eligible"] for d in ahead)
    assert [d["uplift"] for d in behind] == [d["uplift"] for d in first]
    assert back == first
    rows = [row for file in (world / "data/decision_log").glob("*.log") for row in read_decisions(file)]
    at = {row["request_id"]: row["decided_at"] for row in rows}
    for answer, days in zip(answers, (0, 30, -30, 0), strict=True):
        assert at[answer["request_id"]].date() == (NOW + timedelta(days=days)).date()


@pytest.mark.usefixtures("redis_again")
def test_faults_terminated_under_load_answers_what_it_took(faulty, users):
    process, url, world, _ = faulty
    with Load(url, users) as load:
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    rows = [r for f in (world / "data/decision_log").glob("*.log") for r in read_decisions(f)]
    logged = {(r["request_id"], r["user_id"]) for r in rows}
    answered = {(a["request_id"], d["user_id"]) for _, _, a in load.answers for d in a["decisions"]}
    assert len(answered) > 50
    assert answered <= logged
    assert {status for _, status, _ in load.answers} == {200}
