from dataclasses import replace
from datetime import UTC, datetime, time, timedelta

import pytest
from monitored import MONDAY, campaign

from models.page import stylesheet
from monitoring.checks import Check
from monitoring.decide import Statistics, changed_since, decide, in_words, week_name
from monitoring.drift import ColumnDrift, Drift
from monitoring.plots import ACTION_COLOURS
from monitoring.realised import Realised, UpliftTest

SETUP = campaign()
OK = Check("rows", True, 1000, 2000, "")


def column(name, warn=False, red=False, role="feature"):
    return ColumnDrift(name, role, 1000, 0.2 if warn else 0.01, 0.0, 0.3 if red else 0.01, 0.0, 0.0, 0.0, {}, warn, red)


def drift(warn=(), red=(), predictions=(), features=20, eligible=0.5):
    names = [*warn, *red, *(f"quiet{i}" for i in range(features - len(warn) - len(red)))]
    columns = [column(n, n in warn or n in red, n in red) for n in names]
    return Drift((*columns, *(column(n, True, role="prediction") for n in predictions)), eligible, 0.5)


def realised(alarm=False, inverted=False, gain=0.1):
    test = UpliftTest("offer", "weighted", 0.2, 0.1, 0.02, 0.5, 0.1, 1e-4, 0.004, 0.5, 0.8, alarm, inverted)
    return Realised(1000, ("2026-W01",), (test,), (), (), gain, 0.02)


def verdict(statistics, history=(), week=MONDAY):
    return decide(week, "m1", statistics, history, SETUP)


def before(weeks, action="warn", drift_weeks=1, champion="m1", reasons=(), fallback=False):
    monday = (MONDAY - timedelta(weeks=weeks)).isoformat()
    return {
        "monday": monday,
        "action": action,
        "drift_weeks": drift_weeks,
        "champion": champion,
        "reasons": list(reasons),
        "fallback": fallback,
    }


def test_decide_nothing_moved():
    decision = verdict(Statistics((OK,), drift(), realised()))
    assert (decision.action, decision.exit_code, decision.reasons) == ("none", 0, ())


def test_decide_broken_data_stops_everything():
    bad = Check("missing", False, 0.3, 0.05, "minutes_7d")
    decision = verdict(Statistics((OK, bad), drift(red=["plan"]), realised(alarm=True, inverted=True)))
    assert (decision.action, decision.exit_code, decision.reasons) == ("stop", 20, ("data:missing",))
    assert not decision.fallback


def test_decide_realised_uplift_retrains_on_its_own():
    decision = verdict(Statistics((OK,), drift(), realised(alarm=True)))
    assert (decision.action, decision.exit_code) == ("retrain", 10)
    assert decision.reasons == ("realised_uplift:offer/weighted",)


def test_decide_answered_drift_asks_again_when_there_is_something_new():
    asked = before(3, action="retrain", drift_weeks=2, reasons=["feature_drift:device,plan", "red_line:country"])
    history = [asked, before(1, drift_weeks=3)]
    same = verdict(Statistics((OK,), drift(warn=["plan", "device"], red=["country"])), history)
    assert same.action == "retrain"  # country moved beyond the red line then, and counts as drifted now as well
    same = verdict(Statistics((OK,), drift(warn=["plan", "device"])), history)
    assert (same.action, same.reasons) == ("warn", ("feature_drift:device,plan",))
    assert verdict(Statistics((OK,), drift(red=["country"])), [asked]).reasons[0] == "red_line:country"
    more = verdict(Statistics((OK,), drift(warn=["plan", "age_band"])), history)
    assert more.action == "retrain"
    other = [asked | {"champion": "m0"}, before(1, drift_weeks=3)]
    assert verdict(Statistics((OK,), drift(warn=["plan", "device"])), other).action == "retrain"
    # 30 days until outcomes are known, and 4 weeks that are pooled
    long_ago = [before(9, action="retrain", reasons=asked["reasons"]), before(1, drift_weeks=3)]
    assert verdict(Statistics((OK,), drift(warn=["plan", "device"])), long_ago).action == "retrain"
    uplift = verdict(Statistics((OK,), drift(warn=["plan"]), realised(alarm=True)), history)
    assert uplift.action == "retrain"


def test_decide_red_line_retrains_at_once():
    assert verdict(Statistics((OK,), drift(red=["country"]))).action == "retrain"


@pytest.mark.parametrize(
    ("history", "action", "weeks"),
    [
        ([], "warn", 1),
        ([before(1)], "retrain", 2),
        ([before(2)], "retrain", 2),  # the week between was broken or is missing
        ([before(1, "stop", 0), before(2)], "retrain", 2),
        ([before(3)], "warn", 1),
        ([before(1, drift_weeks=0)], "warn", 1),
        ([before(1, champion="m0")], "warn", 1),  # another champion, another reference
        ([before(0)], "warn", 1),  # the week itself, run before
        ([before(-1)], "warn", 1),  # a later week
    ],
)
def test_decide_drift_must_last_two_weeks(history, action, weeks):
    decision = verdict(Statistics((OK,), drift(warn=["a", "b"])), history)
    assert (decision.action, decision.drift_weeks) == (action, weeks)


def test_decide_few_drifting_features_only_warn():
    decision = verdict(Statistics((OK,), drift(warn=["a"], features=20)), [before(1)])
    assert (decision.action, decision.drift_weeks) == ("warn", 0)


def test_decide_few_features_and_predictions_together_retrain_in_the_second_week():
    statistics = Statistics((OK,), drift(warn=["a"], predictions=["score"], features=20))
    assert verdict(statistics).action == "warn"
    assert verdict(statistics, [before(1)]).action == "retrain"


def test_decide_predictions_alone_only_warn():
    decision = verdict(Statistics((OK,), drift(eligible=0.7)), [before(1)])
    assert (decision.action, decision.reasons) == ("warn", ("prediction_drift:share_eligible",))


@pytest.mark.parametrize(("weeks", "action"), [(1, "warn"), (2, "warn"), (3, "retrain")])
def test_decide_cooldown(weeks, action):
    new = [before(weeks, "retrain", champion="m0")]  # the gate replaced m0
    decision = verdict(Statistics((OK,), drift(), realised(alarm=True)), new)
    assert decision.action == action
    assert ("cooldown" in decision.reasons) == (action == "warn")


@pytest.mark.parametrize("last", [before(1, "retrain"), before(1, "retrain", champion="m0", fallback=True)])
def test_decide_uplift_still_wrong_asks_every_week_until_a_challenger_is_promoted(last):
    assert verdict(Statistics((OK,), drift(), realised(alarm=True)), [last]).action == "retrain"
    assert verdict(Statistics((OK,), drift(red=["a"]), realised()), [last]).action == "warn"  # not for features


@pytest.mark.parametrize(
    ("alarm", "gain", "fallback"), [(True, -0.01, True), (True, 0.01, False), (False, -0.5, False)]
)
def test_decide_falls_back_from_a_policy_worse_than_nothing_if_its_promise_is_broken(alarm, gain, fallback):
    decision = verdict(
        Statistics((OK,), drift(), realised(alarm=alarm, gain=gain)), [before(1, "retrain", champion="m0")]
    )
    assert decision.fallback == fallback
    assert ("harmful:-0.010" in decision.reasons) == fallback
    assert decision.action == ("retrain" if fallback else "warn" if alarm else "none")


def monday(weeks):
    return datetime.combine(MONDAY + timedelta(weeks=weeks), time.min, UTC)


def test_changed_since_the_newest_matured_week_of_the_first_alarm_in_a_row():
    alarm = {"reasons": ["realised_uplift:offer/weighted"], "action": "warn"}
    weeks = [before(20) | alarm, before(3) | alarm, before(2), before(0) | alarm]  # 20 weeks ago: another change
    assert changed_since(weeks, SETUP) == monday(-3) - timedelta(days=30)
    assert changed_since(weeks[::-1], SETUP) == monday(-3) - timedelta(days=30)
    assert changed_since([*weeks, before(-1)], SETUP) is None


def test_changed_since_the_first_week_that_drifted():
    drifted = before(0, "retrain", drift_weeks=2, reasons=["feature_drift:country"])
    assert changed_since([before(1, reasons=["feature_drift:country"]), drifted], SETUP) == monday(-1)
    assert changed_since([before(0, reasons=["feature_drift:country"])], SETUP) is None  # seen once: a doubt


def test_decide_inverted_ranking_falls_back_even_in_cooldown():
    decision = verdict(Statistics((OK,), drift(), realised(alarm=True, inverted=True)), [before(1, "retrain")])
    assert decision.fallback
    assert decision.action == "retrain"
    assert "inverted:offer" in decision.reasons


def test_decision_text_says_reasons_in_words():
    text = verdict(Statistics((OK,), drift(red=["country"]))).text()
    assert text.startswith("week 2026-W06: retrain")
    assert "past the red line, for country" in text


@pytest.mark.parametrize(
    "code", ["data:rows", "realised_uplift:a/b,c/d", "inverted:a", "harmful:-0.010", "cooldown", "prediction_drift:x"]
)
def test_in_words_knows_every_code(code):
    assert in_words(code, "kr")


def test_in_words_says_money_in_the_currency_of_the_campaign():
    decision = replace(verdict(Statistics((OK,), drift())), reasons=("harmful:-0.010",), currency="kr")
    assert decision.in_words() == ["the policy gains -0.010 kr per user over sending nothing: fall back at once"]


def test_decision_json_says_the_verdict_in_words_and_pages_colour_it_alike():
    told = verdict(Statistics((OK,), drift(), realised(alarm=True))).as_dict()["in_words"]
    assert told["verdict"].startswith("retrain: ")
    assert told["reasons"]
    assert "uplift:" not in told["reasons"][0]
    style = stylesheet().lower()
    for action, colour in ACTION_COLOURS.items():
        assert f".verdict.{action} {{ border-color: {colour.lower()}; }}" in style


def test_week_name_is_iso():
    assert week_name(MONDAY) == "2026-W06"
    assert week_name(MONDAY.replace(year=2027, month=1, day=1)) == "2026-W53"
