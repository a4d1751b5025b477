"""The operator page in a real browser: headless Chromium, driven over its DevTools protocol."""

import base64
import itertools
import json
import os
import re
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from serving_world import world_env
from websockets.sync.client import connect

from bentos import serve
from campaign import ROOT

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed"),
]
SHOTS = os.environ.get("TACTFUL_SCREENSHOTS")  # a folder to keep the pictures in


@pytest.fixture(scope="module")
def server(world):
    own = world / "kroner.toml"
    own.write_text((ROOT / "campaign.toml").read_text().replace('currency = "EUR"', 'currency = "kr"'))
    with serve.serving(world / "page.log", world_env(world, TACTFUL_CAMPAIGN=str(own))) as url:
        yield url


@pytest.fixture(scope="module")
def user(world, server):
    """A user about whom something has been decided."""
    users = [str(u) for u in np.load(world / "expected.npz")["users"][:50]]
    httpx.post(f"{server}/decide", json={"user_ids": users, "context": {"hour": 20}}, timeout=20).raise_for_status()
    return users[0]


def test_page_prints_the_currency_of_the_campaign(server, user):
    page = httpx.post(f"{server}/ops/", data={"user_id": user}).text
    assert "Money in kr per user" in page
    assert page.count(" kr") >= 2
    assert "EUR" not in page


class Page:
    """One tab: `call` a DevTools method, `run` an expression in the page, `open` an address."""

    def __init__(self, socket):
        self.socket, self.events, self.last = socket, [], 0
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        self.last += 1
        self.socket.send(json.dumps({"id": self.last, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv(timeout=30))
            if message.get("id") == self.last:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def run(self, expression):
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def open(self, url):
        self.events.clear()
        self.call("Page.navigate", url=url)
        self.wait_for_load()

    def wait_for_load(self):
        while not any(e["method"] == "Page.loadEventFired" for e in self.events):
            self.events.append(json.loads(self.socket.recv(timeout=30)))

    def look(self, width, scheme):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def picture(self, name):
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        if SHOTS:
            (Path(SHOTS) / name).write_bytes(base64.b64decode(data))

    def requested(self):
        return {e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"}

    def complaints(self):
        return [e["params"] for e in self.events if e["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")]


@contextmanager
def chromium(folder):
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    command = ["chromium", *options, "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            for line in process.stderr:
                if found := re.search(r"ws://127.0.0.1:(\d+)/", line):
                    break
            (tab,) = [t for t in httpx.get(f"http://127.0.0.1:{found[1]}/json").json() if t["type"] == "page"]
            with connect(tab["webSocketDebuggerUrl"], max_size=None) as socket:
                yield Page(socket)
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
def test_page_fits_and_asks_nobody_else(page, server, user, width, scheme):
    page.look(width, scheme)
    page.open(f"{server}/ops/")
    assert "Ready." in page.run("document.body.innerText")
    assert page.run("document.documentElement.scrollWidth") <= width
    assert all(url.startswith(server) for url in page.requested())
    assert page.complaints() == []
    red, green, blue = map(int, re.findall(r"\d+", page.run("getComputedStyle(document.body).backgroundColor"))[:3])
    assert (red + green + blue < 150) == (scheme == "dark")
    page.picture(f"ops-{width}-{scheme}.png")


@pytest.mark.parametrize("width", [1400, 390])
def test_page_looks_a_user_up_by_its_form(page, server, user, width):
    page.look(width, "light")
    page.open(f"{server}/ops/")
    page.events.clear()
    page.run(f"document.querySelector('#user_id').value = {json.dumps(user)}")
    page.run("document.querySelector('form button').click()")
    page.wait_for_load()
    text = page.run("document.body.innerText")
    assert "features as of" in text
    assert "minutes_28d" in text
    assert user not in page.run("location.href")
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.complaints() == []
    page.picture(f"ops-user-{width}.png")


def test_page_is_readable_without_sight_of_its_style(page, server):
    """Headings in order, every form field labelled, every table with column headers, one language."""
    page.open(f"{server}/ops/")
    assert page.run("document.documentElement.lang") == "en"
    levels = page.run("[...document.querySelectorAll('h1,h2,h3')].map(h => +h.tagName[1])")
    assert levels[0] == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    assert page.run("[...document.querySelectorAll('input')].every(i => i.labels.length == 1)")
    assert page.run("[...document.querySelectorAll('table')].every(t => t.querySelector('th[scope=col]'))")
