"""The real server, `bentoml serve` in a process of its own, on a SQLite online store that Feast filled."""

import json
import os
import shutil
import signal
import string
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import UTC, datetime

import httpx
import numpy as np
import pandas as pd
import psutil
import pytest
import serving_world
from serving_world import world_env

from bentos import serve
from bentos.decision_log import compact, read_decisions
from bentos.schemas import DecideResponse, Refusal
from campaign import load_campaign
from feature_repo.contracts import DECISIONS, check_file

CONTEXT = {"hour": 20, "surface": "home"}


@pytest.fixture(scope="module")
def server(world):
    """Address of a running server of the world."""
    with serve.serving(world / "server.log", world_env(world)) as url:
        yield url


@pytest.fixture(scope="module")
def expected(world):
    return dict(np.load(world / "expected.npz"))


def ask(url, users, **context):
    return httpx.post(f"{url}/decide", json={"user_ids": list(users), "context": context or CONTEXT}, timeout=20)


def requested(world, answer):
    """The logged decisions of one answer."""
    files = sorted((world / "data" / "decision_log").glob("*.log"))
    rows = [row for file in files for row in read_decisions(file) if row["request_id"] == answer["request_id"]]
    return pd.DataFrame(rows)


def wait_for(condition, seconds=15.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s")


def uplifts(answer):
    rows = [[list(u.values()) for u in d["uplift"].values()] for d in answer["decisions"]]
    return np.array(rows)


def test_server_uplift_is_the_networks_on_offline_features(server, expected):
    answer = ask(server, expected["users"]).json()
    mu_hat = expected["mu_hat"][0]
    # float32 sums in another order: about 1e-7
    np.testing.assert_allclose(uplifts(answer), mu_hat[:, 1:] - mu_hat[:, :1], rtol=0, atol=1e-6)
    alone = [ask(server, [user]).json()["decisions"][0] for user in expected["users"][:20]]
    scores = [d["score"] for d in answer["decisions"][:20]]  # EUR, of outcomes times weights: 1e-7 of each term
    np.testing.assert_allclose([d["score"] for d in alone], scores, rtol=1e-6, atol=1e-6)


def test_server_answers_by_its_schema_in_order(server, expected):
    users = [*expected["users"][:50], "nobody", *expected["users"][:3]]
    response = ask(server, users)
    answer = DecideResponse.model_validate_json(response.content)
    assert [d.user_id for d in answer.decisions] == users
    assert answer.decisions[50].reason == "unknown_user"
    assert not answer.decisions[50].eligible
    assert response.headers["x-request-id"] == answer.request_id
    assert [d.arm for d in answer.decisions[51:]] == [d.arm for d in answer.decisions[:3]]


def test_server_follows_the_policy(server, expected):
    campaign = load_campaign()
    decisions = ask(server, expected["users"]).json()["decisions"]
    reasons = {d["reason"] for d in decisions}
    assert {"holdout", "exploration", "eligible", "below_threshold"} <= reasons
    for d in decisions:
        score = sum(
            w * d["uplift"]["premium_offer"][o.name] for o, w in zip(campaign.outcome, campaign.weights, strict=True)
        )
        assert d["score"] == pytest.approx(score - campaign.costs[1], abs=1e-9)
        if d["reason"] in ("eligible", "below_threshold"):
            assert d["eligible"] == (d["score"] > 0) == (d["reason"] == "eligible")
        if d["reason"] == "holdout":
            assert d["arm"] == "none"
            assert not d["eligible"]


def test_server_logs_before_it_answers(server, world, expected):
    answer = ask(server, [*expected["users"][:5], "nobody"], hour=7).json()
    rows = requested(world, answer)
    assert rows["user_id"].tolist() == [d["user_id"] for d in answer["decisions"]]
    assert rows["reason"].tolist() == [d["reason"] for d in answer["decisions"]]
    assert rows["hour"].tolist() == [7] * 6
    assert json.loads(rows["uplift"].iloc[0]) == answer["decisions"][0]["uplift"]
    assert rows["model_tag"].unique().tolist() == [answer["model"]]
    (features,) = {tuple(json.loads(f)) for f in rows["features"].dropna()}
    assert "minutes_28d" in features


def test_server_counts_what_it_decided(server, expected):
    def counts():
        lines = [line.rsplit(" ", 1) for line in httpx.get(f"{server}/metrics").text.splitlines() if line[0] != "#"]
        return {name: float(value) for name, value in lines}

    before, users = counts(), [*expected["users"][:5], "nobody"]
    answers = [ask(server, users).json() for _ in range(40)]
    assert httpx.post(f"{server}/decide", json={}).status_code == 400
    after = counts()
    grown = {name: value - before.get(name, 0) for name, value in after.items() if value != before.get(name, 0)}
    expected_counts = Counter((d["reason"], d["arm"]) for answer in answers for d in answer["decisions"])
    for (reason, arm), count in expected_counts.items():
        assert grown.pop(f'tactful_decisions_total{{arm="{arm}",reason="{reason}"}}') == count
    assert not [name for name in grown if name.startswith("tactful_decisions")]
    assert grown['tactful_requests_total{status="200"}'] == 40
    assert grown['tactful_requests_total{status="400"}'] == 1
    assert grown["tactful_batch_users_count"] == 40
    assert grown["tactful_batch_users_sum"] == 240
    assert grown["tactful_feature_read_seconds_count"] == grown["tactful_log_write_seconds_count"] == 40
    assert grown["tactful_score_count"] == 40 * 5


def test_server_features_are_the_offline_ones(server, world, expected):
    answer = ask(server, expected["users"]).json()
    rows = requested(world, answer)
    frame = pd.DataFrame([json.loads(text) for text in rows["features"]])
    numeric = [name for name in expected if name not in ("users", "mu_hat")]
    assert len(numeric) > 25
    np.testing.assert_allclose(frame[numeric].astype(float), np.stack([expected[n] for n in numeric], 1), rtol=1e-12)


BAD_BODIES = {
    "not json": (b"{", 400),
    "empty": (b"", 400),
    "no ids": (b'{"user_ids": []}', 400),
    "missing ids": (b"{}", 400),
    "number as id": (b'{"user_ids": [1]}', 400),
    "empty id": (b'{"user_ids": [""]}', 400),
    "long id": (json.dumps({"user_ids": ["x" * 129]}).encode(), 400),
    "too many ids": (json.dumps({"user_ids": ["x"] * 1001}).encode(), 400),
    "extra field": (b'{"user_ids": ["a"], "treshold": 0}', 400),
    "hour 24": (b'{"user_ids": ["a"], "context": {"hour": 24}}', 400),
    "hour as text": (b'{"user_ids": ["a"], "context": {"hour": "7"}}', 400),
    "NaN": (b'{"user_ids": ["a"], "context": {"hour": NaN}}', 400),
    "huge number": (b'{"user_ids": ["a"], "context": {"hour": 1e999}}', 400),
    "not utf-8": (b'{"user_ids": ["\xff"]}', 400),
    "half a surrogate": (b'{"user_ids": ["\\ud800"]}', 400),
    "deep": (b"[" * 100_000, 400),
    "too large": (b" " * (1 << 20) + b" ", 413),
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_server_refuses_a_bad_body(server, name):
    body, status = BAD_BODIES[name]
    response = httpx.post(f"{server}/decide", content=body, headers={"content-type": "application/json"})
    assert response.status_code == status
    assert response.json()["error"]
    assert "Traceback" not in response.text
    assert len(response.content) < 10_000


def test_server_refuses_a_chunked_body_that_is_too_large(server):
    headers = {"content-type": "application/json"}
    response = httpx.post(f"{server}/decide", content=(b" " * 65536 for _ in range(20)), headers=headers)
    assert response.status_code == 413


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/vnd.bentoml+pickle", ""]
)
def test_server_refuses_what_is_not_json(server, kind):
    response = httpx.post(f"{server}/decide", content=b'{"user_ids": ["a"]}', headers={"content-type": kind})
    assert response.status_code == 415


@pytest.mark.parametrize("path", ["/", "/metrics", "/docs.json", "/ops/", "/livez", "/readyz", "/healthz"])
def test_server_known_pages_answer(server, path):
    response = httpx.get(server + path, follow_redirects=True)
    assert response.status_code == 200
    assert "googletagmanager" not in response.text


@pytest.mark.parametrize(
    "path", ["/decide/", "/x", "/static_content/main.js", "/ops/../etc", "/schema.json/x", "//decide"]
)
def test_server_unknown_paths_do_not_exist(server, path):
    assert httpx.get(server + path).status_code in (404, 405)


def fuzz(url, log, n):
    """Generated bad requests: no 5xx, nobody eligible, no traceback, no id in the log, metrics bounded."""
    rng = np.random.default_rng(0)
    before = len(httpx.get(f"{url}/metrics").content)
    alphabet = np.array([*string.printable, "é", "ü", "\u4e2d", "\x00"])
    seeds = [b'{"user_ids": ["zz-secret"], "context": {"hour": 1, "surface": "home"}}', b'{"user_ids": []}', b"[]"]
    statuses = set()
    with httpx.Client(timeout=20) as client:
        for i in range(n):
            body = bytearray(seeds[i % len(seeds)])
            for _ in range(rng.integers(1, 6)):
                body[rng.integers(len(body))] = rng.integers(256)
            if i % 3 == 2:
                body = "".join(rng.choice(alphabet, rng.integers(1, 200))).encode()
            path = "/decide" if i % 10 else "/" + "".join(rng.choice(list(string.ascii_letters), 8))
            kind = {"content-type": "application/json" if i % 7 else "text/x"}
            response = client.post(url + path, content=bytes(body), headers=kind)
            statuses.add(response.status_code)
            assert response.status_code < 500, body
            assert b"Traceback" not in response.content
            assert b'"eligible":true' not in response.content
    assert {400, 404, 415} <= statuses
    assert len(httpx.get(f"{url}/metrics").content) < before + 10_000
    assert "zz-secret" not in log.read_text()


def test_server_fuzzed_requests_never_decide_nor_break_it(server, world):
    fuzz(server, world / "server.log", 400)


def test_server_describes_decide(server):
    spec = httpx.get(f"{server}/docs.json").json()
    assert spec["openapi"] == "3.1.0", "null is no type before"
    assert spec["paths"]["/decide"]["post"]["requestBody"]["required"]
    context = spec["components"]["schemas"]["DecideRequestIODescriptor"]["properties"]["context"]
    assert {"type": "null"} in context["anyOf"]
    assert httpx.post(f"{server}/decide", json={"user_ids": ["a"], "context": None}).status_code == 200
    refused = httpx.delete(f"{server}/decide")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    responses = spec["paths"]["/decide"]["post"]["responses"]
    assert set(responses) == {"200", "400", "401", "405", "413", "415", "429", "503"}
    bad = httpx.post(f"{server}/decide", json={"user_ids": ["a"], "x": 1})
    Refusal.model_validate(bad.json())
    assert set(bad.json()) <= set(
        responses[str(bad.status_code)]["content"]["application/json"]["schema"]["properties"]
    )


def test_server_swaps_and_keeps_the_old_model_when_the_new_is_bad(server, world, expected):
    first, second = json.loads((world / "models.json").read_text())
    pointer = world / "data" / "registry" / "champion.json"

    def point_at(tag):
        value = {**json.loads(pointer.read_text()), "champion": tag}
        aside = pointer.with_suffix(".tmp")
        aside.write_text(json.dumps(value))
        os.replace(aside, pointer)

    def model():
        return ask(server, expected["users"][:1]).json()["model"]

    assert model() == first
    point_at(second)
    wait_for(lambda: model() == second)
    answer, mu_hat = ask(server, expected["users"]).json(), expected["mu_hat"][1]
    np.testing.assert_allclose(uplifts(answer), mu_hat[:, 1:] - mu_hat[:, :1], rtol=0, atol=1e-6)

    stored = world / "bentoml" / "models" / "tactful"
    broken = stored / "broken"
    shutil.copytree(stored / first.split(":")[1], broken)
    (broken / "weights.safetensors").write_bytes((broken / "weights.safetensors").read_bytes()[:-4])
    point_at("tactful:broken")
    wait_for(lambda: "was not loaded" in httpx.get(f"{server}/ops/").text)
    assert model() == second
    ready = httpx.get(f"{server}/readyz")
    assert (ready.status_code, ready.json()["ready"]) == (200, True)
    assert ready.json()["warnings"] == ["the champion was not loaded, another model serves"]
    assert "tactful_model_pending 1.0" in httpx.get(f"{server}/metrics").text
    assert "champion not loaded" in (world / "server.log").read_text()
    point_at(first)
    wait_for(lambda: model() == first)
    assert "was not loaded" not in httpx.get(f"{server}/ops/").text
    assert httpx.get(f"{server}/readyz").json()["warnings"] == []
    metrics = httpx.get(f"{server}/metrics").text
    assert "tactful_model_pending 0.0" in metrics
    (until,) = (
        line.split()[1] for line in metrics.splitlines() if line.startswith("tactful_model_data_until_seconds ")
    )
    assert datetime.fromtimestamp(float(until), UTC).date() == serving_world.END


def test_server_ops_page_looks_a_user_up(server, expected):
    user = str(expected["users"][150])  # one that no other test decides about
    ask(server, [user])
    page = httpx.post(f"{server}/ops/", data={"user_id": user}).text
    assert "uplift" in page
    assert "minutes_<wbr>28d" in page
    assert "moved the score" in page
    assert "No decision" in httpx.post(f"{server}/ops/", data={"user_id": "<b>nobody</b>"}).text
    assert "<b>nobody" not in httpx.post(f"{server}/ops/", data={"user_id": "<b>nobody</b>"}).text


def test_explain_says_what_the_service_answers(server, world, expected):
    """`tactful explain`: same answer and score; its contributions lead from the baseline to the score."""
    users = [str(user) for user in expected["users"][100:103]]
    answers = ask(server, users).json()["decisions"]
    answers.append({"user_id": "nobody", "reason": "unknown_user", "eligible": False, "score": None})
    code = "import pipeline, sys\nfor user in sys.argv[1:]: pipeline.explain(user, 20, 'home', as_json=True)"
    command = [sys.executable, "-c", code, *(answer["user_id"] for answer in answers)]
    done = subprocess.run(command, env=world_env(world), capture_output=True, text=True, timeout=240, check=True)
    for answer, line in zip(answers, done.stdout.splitlines(), strict=True):
        told = json.loads(line)
        assert (told["eligible"], told["reason"]) == (answer["eligible"], answer["reason"])
        if answer["score"] is None:
            assert (told["score"], told["features"]) == (None, [])
            continue
        # single precision, and one user is summed in another order than a batch
        assert told["score"] == pytest.approx(answer["score"], rel=1e-6, abs=1e-6)
        if told["interval"] is not None:  # the world's model may be older than intervals
            lower, upper = told["interval"]
            assert lower < told["score"] < upper
        assert told["currency"] == "EUR"
        moved = told["score"] - told["baseline"]
        assert sum(f["contribution"] for f in told["features"]) == pytest.approx(moved, rel=0.01)


def test_server_killed_under_load_has_logged_every_answer(world, expected):
    """kill -9 of the worker while clients ask: what was answered is in the log, the rest got a connection error."""
    environ = world_env(world)
    process, url = serve.start(world / "kill.log", environ)
    answered, errors, stop = [], [], threading.Event()

    def client(i):
        with httpx.Client(timeout=20) as session:
            while not stop.is_set():
                try:
                    users = [str(u) for u in expected["users"][i : i + 20]]
                    body = session.post(f"{url}/decide", json={"user_ids": users}).json()
                    answered.extend((body["request_id"], d["user_id"]) for d in body["decisions"])
                except httpx.TransportError as error:
                    errors.append(error)
                    time.sleep(0.05)

    try:
        serve.wait_until(process, f"{url}/readyz", world / "kill.log")
        threads = [threading.Thread(target=client, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(1.5)
        for worker in psutil.Process(process.pid).children():
            worker.send_signal(signal.SIGKILL)
        time.sleep(0.5)
        stop.set()
        for thread in threads:
            thread.join()
    finally:
        serve.stop(process)
    assert errors, "the clients noticed"
    assert len(answered) > 100
    done = compact(world / "data" / "decision_log", world / "decisions-kill")
    assert done.damaged == ()
    files = list((world / "decisions-kill").glob("date=*/*.parquet"))
    for file in files:
        check_file(file, DECISIONS)
    frame = pd.concat([pd.read_parquet(file) for file in files])
    assert frame["decision_id"].is_unique
    assert set(answered) <= set(zip(frame["request_id"], frame["user_id"], strict=True))
