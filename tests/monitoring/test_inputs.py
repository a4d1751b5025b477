import json
from datetime import UTC, date, datetime
from types import SimpleNamespace

import pandas as pd
import pytest

from campaign import DataError, ModelError, load_campaign
from models.forward import NumpyModel
from models.verdicts import forget_answers
from monitoring import inputs, promotion, retraining
from monitoring.decide import _in_cooldown
from monitoring.inputs import moving_features
from monitoring.weekly import read_history

NAMES = ["country", "minutes_7d", "minutes_90d", "days_since_session", "subscribed_ever", "account_age_days"]


def test_moving_features_grow_while_logs_are_young():
    """Sums over 90 days and recencies move by themselves until there are 90 days of logs; some features always do."""
    first, always = datetime(2026, 6, 1, tzinfo=UTC), ["subscribed_ever", "account_age_days"]
    young = moving_features(NAMES, first, date(2026, 5, 1))
    assert young == [*always, "minutes_90d", "days_since_session"]
    assert moving_features(NAMES, first, date(2026, 1, 1)) == always


def model(**features):
    spec = SimpleNamespace(features=[SimpleNamespace(name=n, kind=k) for n, k in features.items()], extra={})
    return SimpleNamespace(spec=spec)


@pytest.fixture
def changed_definitions(tmp_path, monkeypatch):
    """The champion needs a feature that is gone and one that became text; the challenger was trained without them."""
    kinds = {"minutes_7d": "numeric", "age_band": "string"}
    models = {"old": model(minutes_7d="numeric", rank="numeric", age_band="numeric"), "new": model(**kinds)}
    monkeypatch.setattr(NumpyModel, "load", lambda folder: models[folder.name])
    for module in (inputs, promotion, retraining):
        monkeypatch.setattr(module, "model_path", tmp_path.joinpath)
    for module in (inputs, retraining):
        monkeypatch.setattr(module, "open_store", lambda: None)
        monkeypatch.setattr(module, "feature_schema", lambda store: SimpleNamespace(types=kinds))
    monkeypatch.setattr(inputs, "required_champion", lambda: "old")
    monkeypatch.setattr(retraining, "champion_tag", lambda: "old")
    monkeypatch.setattr(retraining, "train_challenger", lambda *_, **__: pytest.fail("trained"))
    (tmp_path / "reports" / "new").mkdir(parents=True)
    pd.DataFrame({"decided_at": pd.to_datetime(["2026-01-05T00:00Z"])}).to_parquet(
        tmp_path / "reports" / "new" / "gate.parquet"
    )
    return tmp_path


def test_changed_feature_definitions_are_named_with_what_to_run(changed_definitions):
    data, campaign, when = changed_definitions, load_campaign(), datetime(2026, 2, 2, tzinfo=UTC)
    options = {"since": None, "page": False, "finish": None, "progress": None}
    for ask in (
        lambda: inputs.weekly_inputs(campaign, data, date(2026, 1, 26), when),
        lambda: promotion.run_gate(campaign, data, "new", "old"),
        lambda: retraining.train_against(campaign, data, as_of=when, **options),
    ):
        with pytest.raises(ModelError, match=r"no longer have: rank \(numeric\), age_band \(numeric\); bring") as told:
            ask()
        assert "run `tactful train`, read its report, then `tactful promote --force`" in str(told.value)


def test_a_week_that_is_not_over_is_refused_with_the_last_whole_one():
    monday, first = pd.Timestamp("2026-02-02", tz="UTC"), pd.Timestamp("2026-01-05", tz="UTC")
    inputs._check_in_logs(monday, first, datetime(2026, 2, 9, tzinfo=UTC))
    for day in (3, 8):
        with pytest.raises(DataError, match=r"2026-02-02 is not over: .* it ends before 2026-02-09") as told:
            inputs._check_in_logs(monday, first, datetime(2026, 2, day, tzinfo=UTC))
        assert str(told.value).endswith("the last whole week is `tactful monitor --week 2026-01-26`")


def test_features_that_were_added_do_no_harm():
    inputs.require_features("old", model(minutes_7d="numeric"), {"minutes_7d": "numeric", "rank": "numeric"})


@pytest.fixture
def alarm(tmp_path, monkeypatch):
    """One week that asks for a retraining; trainings are counted, the gate promotes each."""
    trained = []

    def train(*_, **__):
        trained.append(f"tactful:{len(trained)}")
        return SimpleNamespace(tag=trained[-1])

    monkeypatch.setattr(retraining, "train_against", train)
    monkeypatch.setattr(retraining, "champion_tag", lambda: "old")
    monkeypatch.setattr(retraining, "promote_challenger", lambda *a, **_: promotion.Promotion(a[2], a[2], True, None))
    write_verdict(tmp_path, "2026-W41", "retrain")
    return tmp_path, trained


def write_verdict(data, week, action):
    found = {"schema": 1, "week": week, "monday": date.fromisoformat(f"{week}-1").isoformat(), "action": action}
    found |= {"champion": "old", "data": {"n": 1}, "drift_weeks": 2, "fallback": False, "reasons": ["red_line:x"]}
    (data / "monitoring" / week).mkdir(parents=True, exist_ok=True)
    (data / "monitoring" / week / "decision.json").write_text(json.dumps(found))


def test_retrain_again_in_the_same_week_trains_nothing(alarm):
    data, trained = alarm
    campaign, now = load_campaign(), datetime(2026, 10, 12, tzinfo=UTC)
    again = [retraining.retrain(campaign, data, as_of=now, now=now) for _ in range(2)]
    assert trained == ["tactful:0"]
    assert again[1].text() == (
        "week 2026-W41: tactful:0 has answered its call already; --force trains another challenger"
    )
    assert again[1].summary() == {"action": "retrain", "trained": False, "answered": "tactful:0"}
    retraining.retrain(campaign, data, as_of=now, now=now, force=True)
    assert len(trained) == 2
    write_verdict(data, "2026-W42", "retrain")
    retraining.retrain(campaign, data, as_of=now, now=now)
    assert len(trained) == 3
    forget_answers(data / "monitoring", "2026-W42")  # a rehearsal that was killed in that week plays it again
    retraining.retrain(campaign, data, as_of=now, now=now)
    assert len(trained) == 4


def test_a_retraining_that_died_is_done_again(alarm, monkeypatch):
    data, trained = alarm
    campaign, now = load_campaign(), datetime(2026, 10, 12, tzinfo=UTC)
    with monkeypatch.context() as broken:
        broken.setattr(retraining, "promote_challenger", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            retraining.retrain(campaign, data, as_of=now, now=now)
    assert retraining.retrain(campaign, data, as_of=now, now=now).promotion.promoted
    assert len(trained) == 2


def test_the_cooldown_counts_a_week_that_was_judged_again_after_its_promotion(alarm):
    data, _ = alarm
    campaign, now = load_campaign(), datetime(2026, 10, 12, tzinfo=UTC)
    retraining.retrain(campaign, data, as_of=now, now=now)
    write_verdict(data, "2026-W41", "none")
    history = read_history(data / "monitoring", date(2026, 10, 12))
    assert _in_cooldown(date(2026, 10, 12), history, campaign)
    forget_answers(data / "monitoring", "2026-W01")
    assert not _in_cooldown(date(2026, 10, 12), read_history(data / "monitoring", date(2026, 10, 12)), campaign)
