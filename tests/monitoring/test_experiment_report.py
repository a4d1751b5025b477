"""The read-out for people: complete, escaped, and without external resources."""

import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from monitoring.experiment.decide import amount, amount_with_interval
from monitoring.experiment.file import Forecast
from monitoring.experiment.forecast import forecast_against_outcome
from monitoring.experiment.plan import ExperimentPlan, Metric
from monitoring.experiment.read import read_experiment
from monitoring.experiment.report import html_page, markdown

PLAN = ExperimentPlan(
    segments=("plan",),
    metric=(
        Metric(name="kept", kind="binary", role="guardrail", margin=0.05),
        Metric(name="hours", kind="continuous", role="success"),
    ),
)


@pytest.fixture(scope="module")
def readout_and_comparison():
    rng = np.random.default_rng(1)
    n = 2000
    frame = pd.DataFrame({"user_id": np.arange(n), "variant": np.where(rng.random(n) < 0.5, "treatment", "control")})
    frame["plan"] = np.where(np.arange(n) < 3, "<b>|tiny", "free")
    frame["kept"], frame["hours"] = rng.random(n) < 0.9, rng.normal(size=n)
    forecast = Forecast(variant="treatment", metric="hours", value=0.0, ci_lower=-0.1, ci_upper=0.1)
    return read_experiment(frame, PLAN), forecast_against_outcome([forecast], frame, PLAN)


class Checker(HTMLParser):
    """Collects tags; every opened tag must be closed in order."""

    VOID = ("meta", "line", "br")

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_page_is_whole_and_loads_nothing(readout_and_comparison):
    page = html_page(*readout_and_comparison[:1], "one", readout_and_comparison[1])
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert not [tag for tag, attrs in checker.seen if "src" in attrs or "href" in attrs or tag in ("script", "link")]
    assert not re.search(r"url\(|@import|https?:", page)
    bars = [attrs for tag, attrs in checker.seen if tag == "svg"]
    assert len(bars) == len(readout_and_comparison[0].table)
    assert all(attrs["aria-label"] for attrs in bars)


def test_page_says_decision_reasons_and_escapes_names(readout_and_comparison):
    readout, compared = readout_and_comparison
    page = html_page(readout, "a<b", compared)
    assert "Hold" in page
    assert "a&lt;b" in page
    assert "<b>|tiny" not in page
    assert "insufficient data" in page
    assert "Forecast against outcome" in page
    assert "Forecast against outcome" not in html_page(readout, "one")


def test_markdown_has_the_same_and_keeps_its_columns(readout_and_comparison):
    readout, compared = readout_and_comparison
    text = markdown(readout, "one", compared)
    assert text.startswith("# Experiment one: hold\n")
    assert all(reason in text for reason in readout.reasons)
    tables = [line for line in text.splitlines() if line.startswith("| ")]
    effects = [line for line in tables if line.startswith("| treatment") and "plan=" in line]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in effects}) == 1
    assert "## Quality checks" in text


def test_a_line_break_in_a_segment_keeps_the_markdown_table_whole(readout_and_comparison):
    readout, _ = readout_and_comparison
    table = readout.table.assign(segment=readout.table["segment"].str.replace("plan=", "plan=\n"))
    broken = dataclasses.replace(readout, table=table, reasons=["one\ntwo"])
    lines = markdown(broken, "one").splitlines()
    assert "- one two" in lines
    assert len([x for x in lines if x.startswith("| treatment")]) == len(table)


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        ("binary", 0.01234, "+1.23 pp"),
        ("binary", -0.5, "-50.00 pp"),
        ("continuous", 0.01234, "+0.0123"),
        ("continuous", 12345.6, "+12,346"),
        ("continuous", float("nan"), "unknown"),
    ],
)
def test_amounts_for_people(kind, value, words):
    assert amount(kind, value) == words


def test_interval_for_people():
    assert amount_with_interval("binary", 0.01, -0.002, 0.022) == "+1.00 [-0.20, +2.20] pp"
    assert amount_with_interval("continuous", 1.0, float("nan"), float("nan")) == "+1"
