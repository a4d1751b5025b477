import json
import re
import shutil
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest
from monitored import MONDAY, Truth, make_frame, make_inputs

from campaign import DataError
from models.verdicts import KEYS
from monitoring.calibrate import read_stats
from monitoring.promotion import last_decision
from monitoring.weekly import expected_rows, read_history, run_week

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:pandera.*")
DOCS = Path(__file__).resolve().parents[2] / "docs" / "monitoring.md"
FILES = ["decision.json", "stats.json", "summary.html", "summary.md"]


def test_run_week_writes_everything_and_again_the_same(tmp_path, profile, quiet_week, matured):
    inputs = make_inputs(profile, quiet_week, matured)
    decision = run_week(inputs, tmp_path)
    folder = tmp_path / "2026-W06"
    assert sorted(p.name for p in folder.iterdir()) == FILES
    first = {name: (folder / name).read_bytes() for name in FILES}
    assert run_week(inputs, tmp_path) == decision
    assert {name: (folder / name).read_bytes() for name in FILES} == first
    assert [p.name for p in tmp_path.iterdir()] == ["2026-W06"]


def test_decision_json_is_documented(tmp_path, profile, quiet_week, matured):
    """Every key of decision.json stands in docs/monitoring.md."""
    run_week(make_inputs(profile, quiet_week, matured), tmp_path)
    decision = json.loads((tmp_path / "2026-W06" / "decision.json").read_text())
    text = DOCS.read_text(encoding="utf-8")
    keys = set(decision) | set(decision["data"]) | set(decision["drift"]) | set(decision["realised"])
    keys |= set(decision["realised"]["tests"][0]) | set(decision["reference"])
    assert [key for key in sorted(keys) if f"`{key}`" not in text] == []
    assert (decision["schema"], decision["exit_code"], decision["action"]) == (1, 0, "none")


def test_run_week_broken_data_measures_nothing_else(tmp_path, profile, quiet_week, matured):
    decision = run_week(make_inputs(profile, quiet_week.drop(columns="l03"), matured), tmp_path)
    found = json.loads((tmp_path / "2026-W06" / "decision.json").read_text())
    assert decision.exit_code == 20
    assert found["drift"] is None
    assert found["realised"] is None
    assert "l03" in found["data"]["failed"][0]["detail"]
    assert "Stop: the data is broken" in (tmp_path / "2026-W06" / "summary.md").read_text()


def test_run_week_broken_data_says_where_and_what_to_run(tmp_path, profile, quiet_week, matured):
    run_week(make_inputs(profile, quiet_week.assign(l03=quiet_week["l03"] * 1000), matured), tmp_path)
    for name in ("summary.html", "summary.md"):
        text = (tmp_path / "2026-W06" / name).read_text(encoding="utf-8")
        assert re.search("failed: l03: 0.[0-9]{3} of the rows are far outside the reference range", text)
        assert "`tactful monitor --week 2026-02-02`" in text


def test_run_week_markdown_keeps_a_category_with_bars_html_and_a_line_break(tmp_path, profile, quiet_week, matured):
    new = np.random.default_rng(3).random(len(quiet_week)) < 0.2
    odd = quiet_week.assign(country=quiet_week["country"].mask(new, "a|<b>\nc"))
    assert run_week(make_inputs(profile, odd, matured), tmp_path).action != "stop"
    text = (tmp_path / "2026-W06" / "summary.md").read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith("| country |"))
    assert re.search(r"new: a\\\|&lt;b&gt; c [12]\d\.\d% \|$", row)


def test_run_week_without_a_decision_is_broken_data(tmp_path, profile, quiet_week, matured):
    """The service was down all week: a verdict, no crash."""
    decision = run_week(make_inputs(profile, quiet_week.head(0), matured), tmp_path)
    assert decision.exit_code == 20
    assert "0 rows; 3000 to 12000 expected" in (tmp_path / "2026-W06" / "summary.md").read_text()


def test_run_week_reads_history_and_needs_two_weeks(tmp_path, profile, matured):
    actions = []
    for week in range(3):
        monday = MONDAY + timedelta(weeks=week)
        moved = Truth(shift=dict.fromkeys(("n05", "n06", "n07", "n08", "n09"), 0.3))
        frame = make_frame(np.random.default_rng(30 + week), 6_000, moved, monday=monday)
        actions.append(run_week(make_inputs(profile, frame, matured.head(0), monday), tmp_path).action)
    assert actions == ["warn", "retrain", "warn"]  # the third is in the cooldown


def test_run_week_any_day_names_its_monday(tmp_path, profile, quiet_week, matured):
    decision = run_week(make_inputs(profile, quiet_week, matured, week=MONDAY + timedelta(days=4)), tmp_path)
    assert decision.week == MONDAY


def test_run_week_leaves_the_old_week_whole_when_it_dies(tmp_path, profile, quiet_week, matured, monkeypatch):
    inputs = make_inputs(profile, quiet_week, matured)
    run_week(inputs, tmp_path)
    before = (tmp_path / "2026-W06" / "decision.json").read_bytes()
    monkeypatch.setattr("monitoring.weekly.summary_markdown", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_week(inputs, tmp_path)
    assert (tmp_path / "2026-W06" / "decision.json").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["2026-W06"]


def test_summary_is_self_contained_and_says_the_verdict(tmp_path, profile, quiet_week, matured):
    run_week(make_inputs(profile, quiet_week, matured), tmp_path)
    page = (tmp_path / "2026-W06" / "summary.html").read_text()
    assert "Fine: nothing to do." in page
    assert page.count("<svg") == 3
    assert "http" not in re.sub(r"https?://www\.w3\.org", "", page)
    assert "<script" not in page


def test_expected_rows_is_the_median_of_the_last_whole_weeks(profile):
    history = [
        {"monday": f"2026-01-0{i}", "action": "none", "data": {"n": n}} for i, n in enumerate([9, 1, 2, 3, 40], 1)
    ]
    broken = {"monday": "2026-01-09", "action": "stop", "data": {"n": 10_000}}
    assert expected_rows([*history, broken], profile) == 2.5
    assert expected_rows([broken], profile) == profile["rows_per_week"]


def test_only_the_measured_table_is_between_the_markers_that_a_benchmark_replaces():
    text = DOCS.with_name("benchmarks.md").read_text(encoding="utf-8")
    table = text.split("<!-- monitoring -->")[1].split("<!-- /monitoring -->")[0].strip()
    assert all(line.startswith("|") for line in table.splitlines())


def write_week(folder, name="2026-W40", **values):
    (folder / name).mkdir()
    monday = date.fromisoformat(f"{name}-1").isoformat()
    found = dict.fromkeys(KEYS) | {"schema": 1, "week": name, "monday": monday, "data": {"n": 0}} | values
    (folder / name / "decision.json").write_text(json.dumps(found))
    return found


def test_read_history_knows_no_week_of_a_killed_run(tmp_path):
    found = write_week(tmp_path)
    for name in (".2026-W40.deadbeef.tmp", ".2026-W40.old", "workspace"):
        shutil.copytree(tmp_path / "2026-W40", tmp_path / name)
    assert read_history(tmp_path, date(2026, 10, 26)) == [found | {"retrained": False}]
    assert read_history(tmp_path, date(2026, 9, 28)) == []


UNREADABLE = {
    '{"schema": 9}': "schema == 9, expected 1",
    '{"schema": 1, "week"': "no JSON: ",
    "[]": "a JSON list, expected an object",
    "": "no JSON: ",
    '{"schema": 1, "week": "2026-W01"}': "without action, champion, data, drift_weeks, fallback, monday, reasons;",
}


@pytest.mark.parametrize("text", UNREADABLE)
def test_an_unreadable_decision_is_named_with_what_to_do(tmp_path, text):
    write_week(tmp_path, "2026-W01")
    (tmp_path / "2026-W01" / "decision.json").write_text(text)
    asked = f"2026-W01/decision.json: {UNREADABLE[text]}"
    for read in (lambda: read_history(tmp_path, MONDAY), lambda: last_decision(tmp_path), lambda: read_stats(tmp_path)):
        (tmp_path / "2026-W01" / "stats.json").write_text("{}")
        with pytest.raises(DataError, match=re.escape(asked)) as told:
            read()
        assert str(told.value).endswith(
            "; move the folder 2026-W01 away, then run `tactful monitor --week 2025-12-29` again"
        )


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        (
            "2026-W40",
            {"data": None},
            "data == None, expected an object with n, the number of decisions; move the folder",
        ),
        ("2026-W40", {"data": {}}, "data == {}, expected an object with n"),
        ("2026-W40", {"monday": None}, "monday == None, expected 2026-09-28; move the folder 2026-W40 away, then run"),
        ("2026-W40", {"monday": "2026-10-05"}, "monday == '2026-10-05', expected 2026-09-28"),
        ("2026-W54", {"monday": "2026-12-28"}, "expected a week that exists; move the folder 2026-W54 away"),
    ],
)
def test_an_impossible_decision_is_named(tmp_path, name, values, message):
    write_week(tmp_path)
    (tmp_path / "2026-W40").rename(tmp_path / name)
    file = tmp_path / name / "decision.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    with pytest.raises(DataError, match=re.escape(f"{name}/decision.json: ") + ".*" + re.escape(message)):
        read_history(tmp_path, MONDAY)
