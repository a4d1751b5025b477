"""A platform of another shape, whose random phase holds nobody out, gets to a first decision and a first weekly report
by editing logs.toml, campaign.toml and feature definitions, and nothing else."""

import json
import os
import re
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

import httpx
import pytest
from own_platform import export

from bentos.serve import start, stop, wait_until
from campaign import ROOT

END = date(2026, 11, 24)
FOLDERS = ("bentos", "feature_repo", "models", "monitoring")
FILES = ("bentofile.yaml", "campaign.py", "campaign.toml", "pipeline.py", "pyproject.toml")


def without_sessions(root):
    """The two outcomes measured from sessions leave campaign.toml, the views made of them the feature service."""
    file = root / "campaign.toml"
    text = file.read_text()
    for name in ("retention", "listening"):
        text = re.sub(rf'\[\[outcome\]\]\nname = "{name}".*?(?=\n\[)', "", text, flags=re.S)
    file.write_text(text)
    file = root / "feature_repo" / "services.py"
    edited = file.read_text().replace("activity_7d, activity_28d, ", "")
    assert edited.count("activity") == 0
    file.write_text(edited)


@pytest.fixture
def platform(tmp_path):
    """A checkout with the exports of the other platform in it."""
    root = tmp_path / "checkout"
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("data", "__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, root / name)
    return root


def environ(root):
    return os.environ | {
        "TACTFUL_DATA": str(root / "data"),
        "PYTHONPATH": str(root),
        "BENTOML_HOME": str(root / "bentoml"),
        "TACTFUL_NOW": f"{END}T12:00:00+00:00",
        "COLUMNS": "200",
    }


def tactful(root, *words, codes=(0,), program=(sys.executable, "-m", "pipeline")):
    command = [*program, *words]
    done = subprocess.run(command, cwd=root, env=environ(root), capture_output=True, text=True, check=False)
    assert done.returncode in codes, done.stdout + done.stderr
    return done.stdout


def feast(root, *words):
    program = Path(sys.executable).parent / "feast"
    return tactful(root, "-c", "feature_repo", *words, program=(str(program),))


def decide(root, *users):
    process, url = start(root / "service.log", environ(root), folder=root)
    try:
        wait_until(process, f"{url}/readyz", root / "service.log")
        return httpx.post(f"{url}/decide", json={"user_ids": users}, timeout=30).json()["decisions"]
    finally:
        stop(process)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_other_shape_reaches_a_decision_and_a_weekly_report(platform):
    export(platform, 8_000, 90, 5, END, holdout_share=0.0)
    told = {f["part"]: f for f in json.loads(tactful(platform, "check", "--json", codes=(3,)))}
    assert [part for part, f in told.items() if f["verdict"] == "mend"] == ["sessions"]
    assert "take retention, listening out of campaign.toml" in told["sessions"]["fix"]
    without_sessions(platform)
    told = {f["part"]: f for f in json.loads(tactful(platform, "check", "--json"))}
    assert {f["verdict"] for part, f in told.items() if part != "sessions"} == {"ok"}

    tactful(platform, "features")
    feast(platform, "apply")
    feast(platform, "materialize-incremental", f"{END}T00:00:00")
    tactful(platform, "train")
    tactful(platform, "promote", "--force")
    decisions = decide(platform, "17", "1999", "u0000017")
    assert {d["reason"] for d in decisions[:2]} <= {"eligible", "below_threshold", "holdout", "exploration"}
    assert decisions[2]["reason"] == "unknown_user"
    tactful(platform, "compact")
    tactful(platform, "monitor", codes=(0, 10))
    assert list((platform / "data" / "monitoring").glob("*-W*/summary.html"))
