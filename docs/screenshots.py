"""Pictures of every page in headless Chromium: wide and phone, light and dark; and what axe-core says of each.

    python docs/screenshots.py FOLDER                   # pictures of all pages of data/, and of a service it starts
    python docs/screenshots.py FOLDER --axe axe.min.js  # also the accessibility check (`npm install axe-core`)
    python docs/screenshots.py --readme                 # only docs/report.webp and docs/operator.webp, for the README

Needs `tactful run` before, and chromium on the PATH.
"""

from __future__ import annotations

import argparse
import base64
import itertools
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from websockets.sync.client import connect

from bentos.serve import serving
from campaign import ROOT, data_dir
from models.registry import read_pointer

WIDTHS = (1400, 390)
SCHEMES = ("light", "dark")
TALLEST = 6000  # pixels; what is below is left out of a picture
README = {"report": (1000, 850), "operator": (1000, 850)}  # width and height


class Tab:
    """One tab of Chromium, over its DevTools protocol."""

    def __init__(self, socket: Any) -> None:
        self.socket, self.number = socket, itertools.count(1)
        self.call("Page.enable")
        self.call("Page.setBypassCSP", enabled=True)  # axe-core is not ours; the pages allow no other script

    def call(self, method: str, **params: Any) -> Any:
        """One method; what else arrives meanwhile is left unread (RuntimeError: the method failed)."""
        number = next(self.number)
        self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv(timeout=300))
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                return message["result"]

    def run(self, expression: str) -> Any:
        """Value of an expression in the page; a promise is waited for."""
        told = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        return told["result"].get("value")

    def open(self, url: str, width: int, height: int, scheme: str) -> None:
        """Load a page in a window of this size and scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=url)
        self.run(
            "new Promise(done => setTimeout(() => document.readyState == 'complete' ? done() : (onload = done), 400))"
        )
        self.run("new Promise(done => setTimeout(done, 600))")

    def look_up(self, user: str) -> None:
        """Fill in and send the operator page's form."""
        self.run(
            f"asked = 1; document.querySelector('#user_id').value = {json.dumps(user)}; "
            "document.querySelector('form').submit()"
        )
        deadline = time.monotonic() + 120
        # the page is another one when it has forgotten; while it changes there is none to ask
        while self.run("typeof asked + document.readyState") != "undefinedcomplete":
            if time.monotonic() > deadline:
                raise TimeoutError("the operator page did not answer within two minutes")
            time.sleep(0.2)

    def picture(self, file: Path, width: int, height: int | None) -> None:
        """Write the page as it is; without a height, all of it."""
        tall = height or min(int(self.run("document.documentElement.scrollHeight")), TALLEST)
        clip = {"x": 0, "y": 0, "width": width, "height": tall, "scale": 1}
        kind = file.suffix[1:]
        quality = {"quality": 80} if kind == "webp" else {}
        shot = self.call("Page.captureScreenshot", format=kind, clip=clip, captureBeyondViewport=True, **quality)
        file.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def chromium() -> Iterator[Tab]:
    """A tab of a browser of its own."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"]
    with tempfile.TemporaryDirectory() as folder:
        command = ["chromium", *options, "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"]
        browser = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            line = next(line for line in browser.stderr or () if "DevTools listening on" in line)
            with connect(line.split()[-1], max_size=None) as socket:
                pages = _first_page(socket)
            with connect(pages, max_size=None) as socket:
                yield Tab(socket)
        finally:
            browser.terminate()
            browser.wait()
            shutil.rmtree(folder, ignore_errors=True)


def _first_page(socket: Any) -> str:
    socket.send(json.dumps({"id": 1, "method": "Target.getTargets"}))
    while True:
        message = json.loads(socket.recv(timeout=30))
        if message.get("id") == 1:
            target = next(t for t in message["result"]["targetInfos"] if t["type"] == "page")
            host = socket.remote_address
            return f"ws://{host[0]}:{host[1]}/devtools/page/{target['targetId']}"


def pages(data: Path) -> dict[str, str]:
    """Name and address of the pages that lie under data/: the champion's report, the newest of each other kind."""
    champion = (read_pointer().champion or "*").replace(":", "-")
    kinds = {
        "report": f"reports/{champion}/report.html",
        "weekly": "monitoring/*/summary.html",
        "rehearsal": "rehearsals/*/rehearsal.html",
        "experiment": "reports/experiments/*/readout.html",
    }
    found = {}
    for name, pattern in kinds.items():
        files = sorted(data.glob(pattern), key=lambda file: file.stat().st_mtime)
        if files:
            found[name] = files[-1].as_uri()
    return found


def last_decision(data: Path) -> tuple[str, str]:
    """Day of the service's newest decisions, and one of its users: who got a message, if anybody did."""
    file = max(data.glob("decisions/date=*/service-*.parquet"))
    log = pd.read_parquet(file)
    first = (log["reason"] != "eligible").sort_values(kind="stable").index[0]
    return file.parent.name.removeprefix("date="), str(log["user_id"][first])


def accessibility(tab: Tab, axe: Path) -> list[str]:
    """Violations that axe-core calls serious or critical, one line each."""
    tab.run(axe.read_text(encoding="utf-8") + "; 0")
    told = json.loads(tab.run("axe.run(document).then(found => JSON.stringify(found.violations))"))
    return [
        f"{v['impact']}: {v['id']}: {v['help']}: {len(v['nodes'])} places, first {v['nodes'][0]['html'][:120]}"
        for v in told
        if v["impact"] in ("serious", "critical")
    ]


def main() -> int:
    """Exit code 1 when axe-core found something."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "docs")
    parser.add_argument("--axe", type=Path)
    parser.add_argument("--readme", action="store_true")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    faults = 0
    day, user = last_decision(data_dir())
    clock = {"TACTFUL_NOW": f"{day}T12:30:00+00:00"}  # so that the decisions of that day are today's
    with serving(data_dir() / "service.log", clock) as url, chromium() as tab:
        wanted = pages(data_dir()) | {"operator": f"{url}/ops/"}
        if asked.readme:
            for name, (width, height) in README.items():
                tab.open(wanted[name], width, height, "light")
                if name == "operator":
                    tab.look_up(user)
                tab.picture(asked.folder / f"{name}.webp", width, height)
            return 0
        for (name, address), width, scheme in itertools.product(wanted.items(), WIDTHS, SCHEMES):
            tab.open(address, width, 1000, scheme)
            if name == "operator":
                tab.look_up(user)
            tab.picture(asked.folder / f"{name}-{width}-{scheme}.png", width, None)
            overflow = tab.run("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            print(f"{name} {width} {scheme}" + (f": {overflow} px too wide" if overflow else ""))
            for fault in accessibility(tab, asked.axe) if asked.axe else ():
                faults += 1
                print(f"  {fault}")
    return int(faults > 0)


if __name__ == "__main__":
    raise SystemExit(main())
