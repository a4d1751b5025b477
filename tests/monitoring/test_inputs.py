from datetime import UTC, date, datetime
from types import SimpleNamespace

import pandas as pd
import pytest

from campaign import ModelError, load_campaign
from models.forward import NumpyModel
from monitoring import inputs, promotion, retraining
from monitoring.inputs import moving_features

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


def test_features_that_were_added_do_no_harm():
    inputs.require_features("old", model(minutes_7d="numeric"), {"minutes_7d": "numeric", "rank": "numeric"})
