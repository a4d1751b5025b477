"""The training report on a small world with known effects: what it says must be what was measured."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from campaign import load_campaign
from models.definitions import DEFINITIONS
from models.log_checks import check_log
from models.method import COVERAGE, certainty_section, deciding_constraints, shortfall
from models.predictions import prediction_columns
from models.report import training_report, weighted_rows
from models.splits import split_of
from models.worth import choose_and_evaluate

CAMPAIGN = load_campaign()
HALF_WIDTH = np.array([0.3])


def world(n=9_000, seed=0):
    """Random arms; a message brings subscriptions where x > 0 and costs them where x < 0; predictions are the truth."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    arm = (rng.random(n) < 0.5).astype(int)
    effect = 0.05 * np.tanh(2 * x)
    mu = np.zeros((n, 2, 3))
    mu[:, :, 0], mu[:, :, 1], mu[:, :, 2] = 0.1, 0.8, 5.0
    mu[:, 1, 0] += effect
    frame = pd.DataFrame(
        {
            "decision_id": np.arange(n).astype(str),
            "user_id": [f"u{i}" for i in range(n)],
            "decided_at": pd.Timestamp("2026-03-02", tz="UTC"),
            "layer": "exploration",
            "arm": arm,
            "propensity": 0.5,
            "x": x,
            "minutes_28d": rng.exponential(size=n),
            "plan": rng.choice(["free", "<b>premium</b>"], n),
            "y_subscription": (rng.random(n) < mu[np.arange(n), arm, 0]).astype(float),
            "y_retention": (rng.random(n) < 0.8).astype(float),
            "y_listening": rng.exponential(5, n),
        }
    )
    frame["split"] = split_of(frame["user_id"], CAMPAIGN.splits)
    return frame, mu


def report(campaign, frame, mu, **options):
    choice, values = choose_and_evaluate(campaign, frame, mu, {"response model": mu}, **options)
    weights = dict(zip(campaign.outcome_names, campaign.weights, strict=True))
    predicted = prediction_columns(mu, campaign.arm_names, weights, campaign.costs, choice.threshold)
    drivers = pd.DataFrame(
        [["x", "low", "up to -0.4", 50, -0.3, 0.3], ["x", "high", "above 0.4", 50, 0.3, 0.3]],
        columns=["feature", "group", "value", "users", "contribution", "size"],
    )
    checks = check_log(frame, covariates=frame[["x"]], segments=["plan"])
    both = pd.concat([frame, predicted], axis=1)
    return training_report(campaign, "tactful:1", both, mu, choice, values, checks, drivers, HALF_WIDTH), choice, values


@pytest.fixture(scope="module")
def made():
    frame, mu = world()
    return report(CAMPAIGN, frame, mu)


def text(html):
    """What a reader sees: no scripts, no styles, no tags."""
    html = re.sub(r"<(script|style).*?</\1>", " ", html, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def test_report_after_a_change_claims_no_certified_sequence(made):
    html, choice, _ = report(CAMPAIGN, *world(), own_cut=True)
    seen, usual = text(html), text(made[0])
    assert choice.own_cut
    assert choice.threshold == 0
    for said in ("once it is through the gate", "The world has changed", "the gate tests the guardrails"):
        assert said in seen
        assert said not in usual
    for claim in ("Candidates were tested from the smallest message volume", "Of those certified"):
        assert claim in usual
        assert claim not in seen


def test_report_says_first_what_to_do_and_what_it_gains(made):
    html, choice, values = made
    seen = text(html)
    assert re.search(r"Send it to \d\d% of users\.", seen)
    gain = weighted_rows(values, "send_none").set_index("policy").loc["uplift policy"]
    assert f"Gain over sending it to nobody: {gain['value']:+.3f} EUR per user and window (95%: " in seen
    assert f"{1000 * gain['value']:+,.0f} EUR per 1,000 users" in seen
    overall = deciding_constraints(choice).iloc[0]
    assert f"Guardrail retention: {100 * overall['estimate']:+.2f} points, at worst" in seen
    assert f": {overall['status']}; by segment:" in seen


def test_report_prints_the_currency_of_the_campaign(made):
    from plotly.offline import get_plotlyjs

    page = report(CAMPAIGN.model_copy(update={"currency": "Kč"}), *world())[0].replace(get_plotlyjs(), "")
    usual = made[0].replace(get_plotlyjs(), "")
    assert "EUR" not in page
    assert usual.count("EUR") == page.count("Kč") + page.count("K\\u010d") >= 12  # in figures as JSON has it


def test_report_has_every_part_and_every_definition(made):
    html, choice, _ = made
    seen = text(html)
    for title in (
        "What each policy is worth",
        "Does it harm what must not be harmed?",
        "How many to message",
        "Who is helped, who is harmed",
        "Do users gain what was predicted?",
        "What changes, outcome by outcome",
        "How the threshold was chosen",
        "Was the draw random?",
        "How this was made",
        "What the words mean",
    ):
        assert title in seen
    for figure in ("values", "gain", "segments", "calibration", "drivers"):
        assert f'id="{figure}"' in html
    for word in DEFINITIONS:
        assert f"<dt>{word}</dt>" in html
    assert "salt &#39;premium-nudge/split/1&#39;" in html
    assert f"{len(choice.candidates)} " in seen or choice.reason in seen


def test_report_groups_show_who_is_helped_and_who_is_harmed(made):
    html, *_ = made
    rows = re.findall(r"<tr><td[^>]*>(x [^<]*)</td><td[^>]*>(\w+)</td>", html)
    assert {"helps", "harms"} <= {verdict for _, verdict in rows}
    assert all("&gt;" in rule for rule, verdict in rows if verdict == "helps"), "it helps where x is high"


def test_report_needs_nothing_from_outside_and_escapes_values(made):
    html, *_ = made
    body = re.sub(r"<script>.*?</script>", "", html, flags=re.S)
    assert not re.search(r'(src|href)="?https?:', body)
    assert "<b>premium" not in body
    assert "plan=&lt;b&gt;premium" in body


def test_report_of_a_policy_that_is_not_certified_says_do_not_send():
    frame, mu = world(seed=1)
    strict = tuple(
        o.model_copy(update={"margin": 1e-4, "segment_margin": 1e-4}) if o.role == "guardrail" else o
        for o in CAMPAIGN.outcome
    )
    html, choice, _ = report(CAMPAIGN.model_copy(update={"outcome": strict}), frame, mu)
    assert choice.threshold == np.inf
    seen = text(html)
    assert "Do not send it." in seen
    assert "Gain over sending it to nobody" not in seen
    assert "Guardrails of the smallest policy, which ended the test" in seen
    assert re.search(r"The sequence ended at retention, [^:]*: (fail|underpowered)", seen)
    assert "Too few decisions to tell: retention of everybody changes by" in seen
    assert re.search(r"would pass with about [\d,.]+ times as many", seen)


def test_shortfall_says_how_many_decisions_a_harmless_message_needs(made):
    """Detectable 3 points where 1 is allowed: nine times the decisions. A likely harm is said to be one."""
    _, choice, _ = made
    assert shortfall(CAMPAIGN, choice) == []
    row = choice.table.iloc[:1].assign(segment="plan=trial", margin=0.01, min_detectable_margin=0.03, lower_bound=-0.02)
    nothing = replace(choice, threshold=np.inf, table=row.assign(status="underpowered"))
    (told,) = shortfall(CAMPAIGN, nothing)
    assert "retention of plan=trial" in told
    assert "about 9.0 times as many" in told
    assert "set a wider segment_margin" in told
    (told,) = shortfall(CAMPAIGN, replace(nothing, table=row.assign(status="fail")))
    assert told.startswith("Harm is not excluded")
    (told,) = shortfall(CAMPAIGN, replace(nothing, table=row.assign(status="underpowered", margin=0.05)))
    assert told.startswith("Too few events")


def test_own_cut_is_taken_whatever_the_guardrails_say_within_the_budget():
    frame, mu = world(2_000)  # so few that no threshold is certified
    assert choose_and_evaluate(CAMPAIGN, frame, mu, {})[0].threshold == np.inf
    choice, values = choose_and_evaluate(CAMPAIGN, frame, mu, {}, own_cut=True)
    assert choice.threshold == 0
    assert "the gate tests the guardrails" in choice.reason
    assert set(choice.table["status"]) >= {"underpowered"}
    assert values["policy"].eq("uplift policy").any()
    everybody = mu.copy()
    everybody[:, 1, 2] += np.linspace(10, 20, len(mu))  # a score above 0 for all: the budget cuts
    choice, _ = choose_and_evaluate(CAMPAIGN, frame, everybody, {}, own_cut=True)
    assert choice.candidates["share"][choice.candidates["chosen"]].item() == pytest.approx(0.9, abs=0.01)


def test_certainty_section_counts_users_on_either_side_and_within():
    score, best = np.array([0.5, 0.1, -0.1, -0.5, 0.25]), np.array([0, 0, 0, 0, 1])
    section = certainty_section(score, best, half=np.array([0.3, 0.2]), n_train=12_345, currency="EUR")
    assert [int(share) for share in re.findall(r"(\d+)%", section.tables[0])] == [40, 20, 40]
    assert "12,345 decisions were at hand" in section.note


def test_coverage_told_in_the_report_is_the_one_measured():
    page = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    told = re.findall(r"0?(\.\d{3})", COVERAGE)
    assert len(told) == 2
    assert all(f"mean of these 0{share}" in page for share in told)
