"""One report for all tests here: importing and running Evidently takes seconds."""

import json
import re
import shutil
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest
from monitored import MONDAY, campaign, make_frame, make_inputs

from monitoring.evidently_report import SAMPLE_ROWS, sample
from monitoring.weekly import run_week

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # evidently, litestar and numpy.core at import
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


KRONER = campaign().model_copy(update={"currency": "kr"})


@pytest.fixture(scope="module")
def out(tmp_path_factory, profile, quiet_week, matured):
    folder = tmp_path_factory.mktemp("monitoring")
    reference = make_frame(np.random.default_rng(40), 3_000, service=False).assign(n04=np.nan)
    run_week(make_inputs(profile, quiet_week.head(5_000), matured, reference_sample=reference, campaign=KRONER), folder)
    return folder


def test_report_is_self_contained_and_small(out):
    page = (out / "2026-W06" / "report.html").read_text()
    assert len(page) < 10e6
    assert re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=[\"']https?:", page) == []
    assert "Weighted uplift by decile of the score, kr per user" in page


def test_pages_print_the_currency_of_the_campaign(out):
    for name in ("summary.html", "summary.md"):
        page = (out / "2026-W06" / name).read_text()
        assert "kr per user" in page
        assert "EUR" not in page


def test_workspace_holds_one_run_and_the_dashboard(out):
    (project,) = [p for p in (out / "workspace").iterdir() if (p / "metadata.json").exists()]
    assert len(list((project / "snapshots").iterdir())) == 1
    panels = json.loads((project / "dashboard.json").read_text())["panels"]
    assert {p["title"] for p in panels} >= {"Realised uplift, kr per user", "Share of users eligible"}


def test_workspace_rerun_replaces(out):
    from evidently.ui.workspace import Workspace

    from monitoring.evidently_report import update_workspace

    (project,) = [p for p in (out / "workspace").iterdir() if (p / "metadata.json").exists()]
    (snapshot,) = (project / "snapshots").iterdir()
    workspace = Workspace.create(str(out / "workspace"))
    dashboard = (project / "dashboard.json").read_text()

    class Run:
        def to_snapshot_model(self):
            return workspace.get_run(project.name, snapshot.stem)

    inputs = make_inputs(None, None, None, campaign=KRONER)
    update_workspace(out / "workspace", Run(), inputs.monday, inputs.campaign)
    assert list((project / "snapshots").iterdir()) == [snapshot]
    assert (project / "dashboard.json").read_text() == dashboard


def test_own_metrics_carry_the_full_data_values(out):
    (snapshot,) = (out / "workspace").glob("*/snapshots/*.json")
    text = snapshot.read_text()
    decision = json.loads((out / "2026-W06" / "decision.json").read_text())
    for value in (decision["drift"]["share_eligible"], decision["realised"]["tests"][0]["realised"]):
        assert repr(value) in text


def test_workspace_shows_a_week_of_broken_data_by_its_verdict_alone(out, tmp_path, profile, quiet_week, matured):
    shutil.copytree(out, tmp_path / "monitoring")
    out, monday = tmp_path / "monitoring", MONDAY + timedelta(weeks=1)
    broken = quiet_week.head(3_000).assign(l03=0.0, decided_at=quiet_week["decided_at"] + pd.Timedelta(weeks=1))
    reference = make_frame(np.random.default_rng(40), 3_000, service=False)
    run_week(make_inputs(profile, broken, matured, monday, reference_sample=reference), out)
    assert not (out / "2026-W07" / "report.html").exists()
    second, _ = sorted((p.read_text() for p in (out / "workspace").glob("*/snapshots/*.json")), key=len)
    assert '"value": 20.0' in second or '"value":20.0' in second
    assert "uplift" not in second


def test_sample_is_seeded_and_bounded():
    frame = make_frame(np.random.default_rng(41), 500)
    assert sample(frame) is frame
    assert sample(frame, 100).equals(sample(frame, 100))
    assert len(sample(frame, 100)) == 100
    assert SAMPLE_ROWS == 20_000
