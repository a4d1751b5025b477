"""The whole chain in a copy of the checkout: once undisturbed, once killed at five moments; both end the same."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest

from campaign import ROOT

FOLDERS = ("bentos", "feature_repo", "models", "monitoring", "rehearsal", "simulator")
FILES = ("bentofile.yaml", "campaign.py", "campaign.toml", "pipeline.py", "pyproject.toml")
RUN = ("run", "--users", "5000", "--days", "90", "--seed", "3", "--end", "2026-11-23")
# a file that appears while the step is at work, and seconds to wait before the kill
MOMENTS = (
    ("simulate", "data/.logs*|data/logs*", 0.5),
    ("features", "data/features/date=*/*.parquet", 0.5),
    ("materialize", "feature_repo/data/online.db", 0.3),
    ("train", "data/reports/*/frame.parquet", 0.0),
    ("serve", "data/decision_log/*", 0.2),
)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """Makes copies of the checkout: Feast keeps its registry beside its definitions."""

    def make(name):
        root = tmp_path_factory.mktemp(name)
        for folder in FOLDERS:
            shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("data", "__pycache__"))
        for file in FILES:
            shutil.copy(ROOT / file, root / file)
        return root

    return make


def start(root, *words):
    environ = {k: v for k, v in os.environ.items() if k not in ("TACTFUL_DATA", "PYTHONPATH")}
    environ |= {"PYTHONPATH": str(root), "BENTOML_HOME": str(root / "bentoml"), "COLUMNS": "200"}
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", *words],
        cwd=root,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(root, *words):
    process = start(root, *words)
    printed, _ = process.communicate(timeout=900)
    assert process.returncode == 0, printed[-4000:]
    return printed


def artefacts(root):
    """What a run leaves behind, without clock times and file names that hold them."""
    data = root / "data"
    champion = json.loads((data / "registry" / "champion.json").read_text())
    report = data / "reports" / champion["champion"].replace(":", "-")
    decisions = pd.concat(map(pd.read_parquet, sorted((data / "decisions").glob("date=*/service-*.parquet"))))
    decided = decisions.sort_values("decided_at").drop_duplicates("user_id").sort_values("user_id")
    return {
        "champion": champion["champion"],
        "history": [(entry["action"], entry["tag"]) for entry in champion["history"]],
        "frame": pd.read_parquet(report / "frame.parquet"),
        "values": (report / "values.csv").read_text(),
        "decided": decided[["user_id", "arm", "propensity", "reason", "score"]].reset_index(drop=True),
        "verdicts": [file.read_text() for file in sorted((data / "monitoring").glob("*-W*/decision.json"))],
        "eligibility": pd.concat(map(pd.read_parquet, sorted((data / "eligibility").rglob("*.parquet")))),
    }


@pytest.fixture(scope="module")
def undisturbed(checkout):
    root = checkout("undisturbed")
    return root, finish(root, *RUN)


@pytest.mark.timeout(1800)
def test_run_ends_with_values_and_reports(undisturbed):
    root, printed = undisturbed
    for words in ("send_none", "send_all", "uplift policy", "oracle", "model report:", "weekly reports:"):
        assert words in printed
    assert (root / "data" / "monitoring").is_dir()


@pytest.mark.timeout(1800)
def test_run_repeats_only_what_is_needed(undisturbed):
    root, _ = undisturbed
    before = artefacts(root)
    began = time.time()
    printed = finish(root, *RUN)
    assert printed.count("up to date") == 6
    assert "nothing missing" in printed
    touched = [p for p in (root / "data").rglob("*.parquet") if p.stat().st_mtime > began]
    assert touched == []
    assert artefacts(root)["verdicts"] == before["verdicts"]


@pytest.mark.timeout(3000)
def test_run_killed_at_five_moments_ends_the_same(undisturbed, checkout):
    root = checkout("killed")
    for moment, pattern, wait in MOMENTS:
        kill_at(root, moment, pattern, wait)
    finish(root, *RUN)
    left, expected = artefacts(root), artefacts(undisturbed[0])
    for name, value in expected.items():
        if isinstance(value, pd.DataFrame):
            pd.testing.assert_frame_equal(left[name], value)
        else:
            assert left[name] == value, name


def kill_at(root: Path, moment: str, pattern: str, wait: float) -> None:
    """Start a run and kill its whole process group once a file of the pattern is there that was not before."""
    patterns = pattern.split("|")
    before = {p for one in patterns for p in root.glob(one)}
    process = start(root, *RUN)
    deadline = time.monotonic() + 600
    while not {p for one in patterns for p in root.glob(one)} - before:
        assert process.poll() is None, (
            f"{moment}: the run ended before it could be killed: {process.stdout.read()[-3000:]}"
        )
        assert time.monotonic() < deadline, f"{moment}: {pattern} never appeared"
        time.sleep(0.02)
    time.sleep(wait)
    # everything that works in this copy at once, the service and its workers too
    for other in psutil.process_iter(["cwd"]):
        if str(other.info["cwd"]).startswith(str(root)):
            with contextlib.suppress(psutil.NoSuchProcess):
                other.kill()
    process.communicate()


@pytest.mark.timeout(900)
def test_run_where_nothing_is_certified_shows_what_was_found_and_what_to_do(undisturbed):
    """Last of this file: it changes the world of the others. No margin of a hundredth of a point can be shown kept."""
    root, _ = undisturbed
    campaign = root / "campaign.toml"
    text = campaign.read_text()
    strict = text.replace("margin = 0.02 ", "margin = 0.0001 ").replace("margin = 0.06 ", "margin = 0.0001 ")
    assert strict != text
    campaign.write_text(strict)
    (root / "data" / "registry" / "champion.json").unlink()
    process = start(root, *RUN)
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 3, printed
    assert "Traceback" not in printed
    assert "decisions to tell: retention of " in printed
    assert "it sends no messages" in printed
    assert "oracle" in printed, "the values are shown all the same"
    assert "`tactful promote --force`" in printed
    report = Path(printed.partition("model report:")[2].split()[0])
    assert "Do not send it." in report.read_text()
