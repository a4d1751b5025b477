"""The network end to end: what it learns, what it refuses, and that what is saved is what serves."""

import json

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from campaign import DataError, ModelError
from models import train
from models.decision_log import Outcome
from models.forward import NumpyModel, shrink, unpack
from models.losses import effective_rows
from models.network import UpliftNet
from models.shrinkage import MISSING_ROWS, error_covariance, shrinkage
from models.spec import FitSpec, columns_of
from models.train import fit, folds

ARMS = ("none", "banner", "popup")
OUTCOMES = (Outcome("visit", "binary", 1.0), Outcome("spend", "continuous", 0.1))
FEATURES = {"x": "numeric", "z": "numeric", "gone": "numeric", "same": "numeric", "plan": "string"}


def make_frame(n=3000, seed=0):
    """`banner` raises visits where x > 0 and lowers them elsewhere; `popup` does nothing."""
    rng = np.random.default_rng(seed)
    x, arm = rng.normal(size=n), rng.integers(0, 3, size=n)
    rate = 0.3 + 0.2 * np.sign(x) * (arm == 1)
    return pd.DataFrame(
        {
            "user": [f"u{i // 2}" for i in range(n)],
            "x": x,
            "z": np.where(rng.random(n) < 0.2, np.nan, np.exp(rng.normal(size=n))),
            "gone": np.nan,
            "same": 1.0,
            "plan": rng.choice(np.array(["free", "trial", None], dtype=object), size=n),
            "arm": arm,
            "p": 1 / 3,
            "visit": (rng.random(n) < rate).astype(float),
            "spend": rng.gamma(1.0, 5.0, size=n),
        }
    )


def make_spec(**changes):
    values = {"features": FEATURES, "arms": ARMS, "outcomes": OUTCOMES, "unit": "user", "members": 3, "epochs": 4}
    return FitSpec(**{**values, **changes})


@pytest.fixture(scope="module")
def fitted():
    return fit(make_frame(), make_spec(rules=20))


def test_fit_finds_who_is_helped_and_who_is_harmed():
    test = make_frame(2000, seed=9)
    mu_hat = fit(make_frame(6000), make_spec(epochs=10)).predict(test)
    helped = mu_hat[:, 1, 0] - mu_hat[:, 0, 0]
    # true uplift is +-.2; shrinkage and noise leave at least half of it
    assert helped[test["x"] > 0.3].mean() > 0.1
    assert helped[test["x"] < -0.3].mean() < -0.1
    assert abs((mu_hat[:, 2, 0] - mu_hat[:, 0, 0]).mean()) < 0.05


def test_fit_out_of_fold_rows_come_from_the_member_that_left_them_out(fitted):
    frame = make_frame()
    columns = columns_of(frame, FEATURES)
    row = int(np.flatnonzero(fitted.fold == 1)[0])
    member = fitted.model.members({name: values[[row]] for name, values in columns.items()})[1, 0]
    control = member[0]
    assert np.allclose(fitted.out_of_fold[row, 0], control, atol=1e-6)


def test_fit_out_of_fold_rows_are_shrunk_like_what_serves(fitted):
    members = fitted.model.members(columns_of(make_frame(), FEATURES))
    left_out = members[fitted.fold, np.arange(len(fitted.fold))]
    shrunk = shrink(left_out, fitted.model.tensors, fitted.model.spec)
    assert np.abs(shrunk - left_out).max() > 1e-4
    np.testing.assert_allclose(fitted.out_of_fold, shrunk, atol=1e-6)


def test_fit_saves_the_interval_of_its_linear_share_and_its_rows(monkeypatch):
    monkeypatch.setattr(train, "linear_share", lambda *_: 1.0)
    frame = make_frame(1500)
    model = fit(frame, make_spec(rules=20)).model
    members, counts = model.members(columns_of(frame, FEATURES)), np.bincount(frame["arm"])
    expected = error_covariance(members, 1.0, effective_rows(counts))
    np.testing.assert_allclose(model.tensors["interval.covariance"], expected, rtol=1e-4)


def test_fit_out_of_fold_ignores_the_outcomes_of_its_own_fold(monkeypatch):
    # one number that all members share is measured on all rows: how much of the linear part is mixed in
    monkeypatch.setattr(train, "linear_share", lambda *_: 0.4)
    frame, spec = make_frame(1500), make_spec(rules=20)
    changed = frame.copy()
    own = folds(frame, spec) == 0
    # shuffled by arm, so that base rates (shared by all members) stay as they are
    for arm in range(3):
        rows = own & (frame["arm"] == arm)
        changed.loc[rows, "visit"] = np.random.default_rng(0).permutation(frame.loc[rows, "visit"])
    before, after = fit(frame, spec), fit(changed, spec)
    columns = columns_of(frame[own], FEATURES)
    moved = np.abs(before.model.members(columns) - after.model.members(columns))[..., 0].max(axis=(1, 2))
    # member 0 never saw these rows: only rounding moves it (other members' rules join the same sums)
    assert moved[0] < 1e-4 < moved[1:].min()


def test_folds_keep_a_unit_together():
    frame = make_frame(1000)
    fold = folds(frame, make_spec())
    assert (pd.Series(fold).groupby(frame["user"]).nunique() == 1).all()
    assert set(fold) == {0, 1, 2}


def test_fit_same_seed_gives_same_bytes(tmp_path, fitted):
    fitted.save(tmp_path / "a", extra={"campaign_hash": "h"})
    fit(make_frame(), make_spec(rules=20)).save(tmp_path / "b", extra={"campaign_hash": "h"})
    for name in ("weights.safetensors", "model.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    other = fit(make_frame(), make_spec(rules=20, seed=1))
    assert not np.array_equal(other.out_of_fold, fitted.out_of_fold)


def test_save_then_load_predicts_the_same_bits(tmp_path, fitted):
    fitted.save(tmp_path / "m", extra={"feature_service": "uplift_v1"})
    model, test = NumpyModel.load(tmp_path / "m"), make_frame(100, seed=3)
    assert np.array_equal(model.predict(columns_of(test, FEATURES)), fitted.predict(test))
    assert model.spec.extra["feature_service"] == "uplift_v1"
    assert json.loads((tmp_path / "m" / "model.json").read_text())["arms"] == list(ARMS)


def test_load_names_a_changed_file(tmp_path, fitted):
    fitted.save(tmp_path / "m")
    (tmp_path / "m" / "sha256.json").write_text(json.dumps({"model.json": "0" * 64, "weights.safetensors": "0" * 64}))
    with pytest.raises(ModelError, match=r"model\.json: sha256 is .* the file changed"):
        NumpyModel.load(tmp_path / "m")


def test_load_names_a_missing_or_broken_folder(tmp_path, fitted):
    with pytest.raises(ModelError, match=r"model.json: No such file"):
        NumpyModel.load(tmp_path / "nothing")
    fitted.save(tmp_path / "m")
    weights = tmp_path / "m" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match="not a readable model folder"):
        NumpyModel.load(tmp_path / "m")


def _without_bias(folder):
    tensors = safetensors.numpy.load_file(folder / "weights.safetensors")
    del tensors["head.bias"]
    safetensors.numpy.save_file(tensors, folder / "weights.safetensors")


def _with_keys(**changes):
    def spoil(folder):
        values = json.loads((folder / "model.json").read_text()) | changes
        (folder / "model.json").write_text(json.dumps(values))

    return spoil


SPOILED = {
    "a list": (lambda folder: (folder / "model.json").write_text("[]"), "model.json: schema == None"),
    "a tensor less": (_without_bias, r"weights.safetensors lacks \['head.bias'\]"),
    "another model's": (_with_keys(members=9), r"head.bias has shape \(3, 1, 6\), model.json asks for \(9, 1, 6\)"),
    "an unknown kind": (_with_keys(features=[{"name": "x", "kind": "date"}]), r"features of kind \['date'\]"),
    "broken hashes": (lambda folder: (folder / "sha256.json").write_text("{"), "sha256.json: no table of hashes"),
    "no hashes": (lambda folder: (folder / "sha256.json").write_text("[1]"), "sha256.json: no table of hashes"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_load_names_what_does_not_belong_together(tmp_path, fitted, case):
    spoil, message = SPOILED[case]
    fitted.save(tmp_path / "m")
    spoil(tmp_path / "m")
    with pytest.raises(ModelError, match=message):
        NumpyModel.load(tmp_path / "m")


def test_numpy_forward_equals_torch_forward(fitted):
    """The torch module with the saved weights gives the numpy answer to 1e-6 (float32 sums in another order)."""
    model, inputs = fitted.model, fitted.model.encode(columns_of(make_frame(500, seed=5), FEATURES))
    tensors = model.tensors
    net = UpliftNet(
        inputs.dense.shape[1],
        tensors["rules.mask"],
        unpack(inputs.rules, tensors).mean(axis=0),
        np.zeros((len(ARMS), 2)),
        np.random.default_rng(0),
    )
    net.load(tensors)
    with torch.no_grad():
        logits = net(torch.from_numpy(inputs.dense), torch.from_numpy(unpack(inputs.rules, tensors))).double().numpy()
    visit, spend = np.moveaxis(model.members(columns_of(make_frame(500, seed=5), FEATURES)), -1, 0)
    assert np.abs(1 / (1 + np.exp(-logits[..., 0])) - visit).max() < 1e-6
    # of spend in standard deviations, the unit that the network works in
    assert np.abs(logits[..., 1] - (spend - tensors["outcome.mean"][1]) / tensors["outcome.scale"][1]).max() < 1e-6


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(12)), padding=st.integers(0, 40))
def test_predict_row_order_and_padding_do_not_matter(fitted, order, padding):
    test, filler = make_frame(12, seed=4), make_frame(padding + 1, seed=8)[:padding]
    alone = fitted.predict(test)
    mixed = fitted.predict(pd.concat([test.iloc[list(order)], filler], ignore_index=True))
    # BLAS may sum blocks of another size in another order: float32 rounding
    assert np.allclose(mixed[:12], alone[list(order)], atol=2e-6)


@pytest.mark.parametrize("n", [0, 1])
def test_predict_empty_and_one_row(fitted, n):
    assert fitted.predict(make_frame(10)[:n]).shape == (n, 3, 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"x": "float32", "same": "int8"},
        {"x": "Float64", "z": "Float64", "same": "Int64"},
        {"gone": "object", "same": "bool"},
        {"plan": "category"},
        {"plan": "string"},
    ],
)
def test_predict_types_of_columns_do_not_matter(fitted, changes):
    test = make_frame(40, seed=7)
    test["x"] = test["x"].astype(np.float32).astype(np.float64)
    mu_hat = fitted.predict(test.astype(changes))
    assert mu_hat.dtype == np.float64
    assert np.array_equal(mu_hat, fitted.predict(test))


def test_predict_unseen_level_missing_and_infinite_values(fitted):
    beyond = [np.nan, np.inf, -np.inf, 0.0]
    test = make_frame(4, seed=2).assign(plan=["martian", None, "free", np.nan], x=beyond, gone=beyond, same=beyond)
    mu_hat = fitted.predict(test)
    assert np.isfinite(mu_hat).all()
    assert ((mu_hat[..., 0] >= 0) & (mu_hat[..., 0] <= 1)).all()


def test_warm_start_continues_and_refuses_another_question(fitted):
    again = fit(make_frame(seed=1), make_spec(epochs=1), warm_start=fitted.model)
    assert np.corrcoef(again.predict(make_frame())[:, 1, 0], fitted.predict(make_frame())[:, 1, 0])[0, 1] > 0.8
    with pytest.raises(ModelError, match="warm start: the model has arms"):
        fit(make_frame(), make_spec(arms=("none", "banner", "other")), warm_start=fitted.model)


def test_fit_arm_with_three_rows_warns_and_works():
    frame = make_frame(1200)
    rare = frame.index[frame["arm"] == 2][3:]
    frame.loc[rare, "arm"] = 1
    with pytest.warns(UserWarning, match="arm 'popup' has 3 rows"):
        mu_hat = fit(frame, make_spec()).predict(frame)
    assert np.isfinite(mu_hat).all()


@pytest.mark.parametrize("n", [6, 30])
@pytest.mark.filterwarnings("ignore:arm .* rows:UserWarning")
def test_fit_tiny_frame_works(n):
    frame = make_frame(n).assign(arm=np.arange(n) % 3)
    assert np.isfinite(fit(frame, make_spec(members=5, rules=10)).predict(frame)).all()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_fit_constant_outcome_has_no_uplift(value):
    frame = make_frame(1500).assign(visit=value, spend=3.0)
    mu_hat = fit(frame, make_spec()).predict(frame)
    assert np.abs(mu_hat[:, 1:] - mu_hat[:, :1]).max() < 1e-2
    assert np.abs(mu_hat[..., 0] - value).max() < 1e-2


BAD = {
    "empty frame": ({}, lambda f: f[:0], "training frame is empty"),
    "missing feature": ({}, lambda f: f.drop(columns="z"), r"feature columns \['z'\] are missing; the frame has: user"),
    "string in numeric": ({}, lambda f: f.assign(x="a"), "feature 'x' has dtype object .*'a'.* expected numbers"),
    "number in string": ({}, lambda f: f.assign(plan=1), "feature 'plan' holds int values .*expected strings"),
    "infinite feature": (
        {},
        lambda f: f.assign(x=np.inf),
        "feature 'x': 3000 values are infinite or beyond 1e.100 .first: row 0, inf",
    ),
    "overflowing feature": ({}, lambda f: f.assign(x=1.7e308), "feature 'x': 3000 values are infinite or beyond"),
    "unknown arm": (
        {},
        lambda f: f.assign(arm=7),
        r"arm column 'arm': 3000 rows hold no known arm .* 7\); expected 0..2",
    ),
    "missing arm": ({}, lambda f: f.drop(columns="arm"), "arm column 'arm' is missing"),
    "one arm": ({}, lambda f: f.assign(arm=1), "every arm needs rows, found none: 0, banner: 3000, popup: 0"),
    "NaN outcome": ({}, lambda f: f.assign(visit=np.nan), "outcome 'visit': 3000 of 3000 rows are wrong .*nan"),
    "infinite outcome": ({}, lambda f: f.assign(spend=np.inf), "outcome 'spend': .*row 0, inf.* finite numbers"),
    "overflowing outcome": ({}, lambda f: f.assign(spend=1e80), "outcome 'spend': 3000 .*finite numbers up to 1e.50"),
    "one unit": ({}, lambda f: f.assign(user="u"), "unit column 'user' has 1 distinct values .first: 'u'., all in one"),
    "not binary": ({}, lambda f: f.assign(visit=2.0), "outcome 'visit': .*expected 0 or 1"),
    "text outcome": ({}, lambda f: f.assign(visit="yes"), "outcome 'visit' has dtype object .*'yes'.*need numbers"),
    "missing outcome": ({}, lambda f: f.drop(columns="spend"), "outcome column 'spend' is missing"),
    "propensity 0": ({"propensity": "p"}, lambda f: f.assign(p=0.0), "propensity 'p': 3000 .*expected 0 < p < 1"),
    "propensity 1": ({"propensity": "p"}, lambda f: f.assign(p=1.0), "propensity 'p': 3000 .*expected 0 < p < 1"),
    "no propensity": ({"propensity": "q"}, lambda f: f, "propensity column 'q' is missing"),
    "no unit": ({"unit": "q"}, lambda f: f, "unit column 'q' is missing"),
}


@pytest.mark.parametrize("case", BAD)
def test_fit_bad_input_says_what_is_wrong(case):
    changes, spoil, message = BAD[case]
    with pytest.raises(DataError, match=message):
        fit(spoil(make_frame()), make_spec(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": {}}, "features is empty"),
        ({"arms": ("none",)}, "must name control and at least one message"),
        ({"outcomes": ()}, "outcomes is empty"),
        ({"costs": (0.0,)}, "costs has 1 values for 3 arms"),
        ({"costs": (0.0, np.nan, 0.0)}, r"costs == \[0.0, nan, 0.0\], must be finite"),
        ({"outcomes": (Outcome("v", "binary", np.inf),)}, r"weights == \[inf\].* must be finite"),
        ({"members": 1}, "members == 1, must be >= 2"),
        ({"seed": -1}, "seed == -1, must be a whole number >= 0"),
        ({"rules": -1}, "rules == -1, must be a whole number >= 0"),
        ({"epochs": 0}, "epochs == 0, must be a whole number >= 1"),
        ({"batch_rows": 0.5}, "batch_rows == 0.5, must be a whole number >= 1"),
        ({"learning_rate": np.nan}, "learning_rate == nan, must be a finite number > 0"),
        ({"outcomes": (Outcome("v", "count", 1.0),)}, "kind == 'count', must be 'binary' or 'continuous'"),
    ],
)
def test_fit_spec_rejects(changes, message):
    with pytest.raises(DataError, match=message):
        make_spec(**changes)


def shrink_factor(signal, member_noise, n=200_000):
    """Shrinkage where every member predicts truth * 1 + noise of its own, the truth having sd `signal`."""
    rng = np.random.default_rng(0)
    truth, arm = signal * rng.normal(size=n), rng.integers(0, 2, n)
    uplift = truth + member_noise * rng.normal(size=(5, n))
    members = np.stack([np.zeros((5, n)), uplift], axis=2)[..., None]
    outcome = (arm * truth + rng.normal(size=n))[:, None]
    found = shrinkage(members, members[0], outcome, arm, np.full(n, 0.5), np.ones(1))
    return float(found["shrink.factor"][0])


def test_shrinkage_keeps_signal_and_drops_noise():
    assert shrink_factor(signal=0.5, member_noise=0.0) > 0.9
    assert shrink_factor(signal=0.0, member_noise=0.5) < 0.1
    # half of the ensemble's variance is noise: slope .5
    assert shrink_factor(signal=0.3, member_noise=0.3 * np.sqrt(5)) == pytest.approx(0.5, abs=0.2)


def test_shrinkage_takes_what_control_rows_say_with_their_sign():
    rng = np.random.default_rng(1)
    truth, arm = rng.normal(size=20_000), rng.integers(0, 2, 20_000)
    members = np.stack([np.zeros(20_000), truth], axis=1)[None, ..., None].repeat(5, axis=0)
    # everybody fares as predicted under the message, control too: nobody is helped, which only control rows tell
    found = shrinkage(members, members[0], truth[:, None], arm, np.full(20_000, 0.5), np.ones(1))
    assert found["shrink.factor"][0] < 0.1


def test_interval_of_a_score_is_two_sided_and_takes_off_the_message_cost(fitted):
    costly = fitted.model.reweighted({"visit": 1.0, "spend": 0.1}, costs=(0.0, 0.5, 2.0))
    columns = columns_of(make_frame(20, seed=6), FEATURES)
    before, after = (np.mean(model.interval(columns), axis=0)[..., 2] for model in (fitted.model, costly))
    np.testing.assert_allclose(before - after, np.broadcast_to([0.5, 2.0], (20, 2)), atol=1e-9)
    visit_sd = np.sqrt(fitted.model.tensors["interval.covariance"][:, 0, 0])
    np.testing.assert_allclose(fitted.model.half_width(0.1)[:, 0], 1.644854 * visit_sd, rtol=1e-5)


def test_interval_holds_the_prediction_and_widens_with_confidence(fitted):
    columns = columns_of(make_frame(50, seed=6), FEATURES)
    mu_hat = fitted.model.predict(columns)
    (lower, upper), (wider, _) = fitted.model.interval(columns), fitted.model.interval(columns, alpha=0.01)
    assert lower.shape == (50, 2, 3)
    uplift = mu_hat[:, 1:] - mu_hat[:, :1]
    assert (lower + upper)[..., :2] / 2 == pytest.approx(uplift)
    assert (lower + upper)[..., 2] / 2 == pytest.approx(uplift @ [1.0, 0.1])
    assert (wider < lower).all()
    with pytest.raises(DataError, match=r"alpha == 1.5, must be in \(0, 1\)"):
        fitted.model.interval(columns, alpha=1.5)


def test_reweighted_refuses_what_is_no_number(fitted):
    with pytest.raises(ModelError, match=r"weights == {'visit': nan, 'spend': 1.0}.* must be finite"):
        fitted.model.reweighted({"visit": np.nan, "spend": 1.0})


def test_error_covariance_is_the_members_jackknife_and_shrinks_with_rows():
    rng = np.random.default_rng(0)
    members = rng.normal(size=(5, 300, 2, 2))
    uplift = members[:, :, 1] - members[:, :, 0]
    apart, spread = uplift - uplift.mean(axis=0), uplift.mean(axis=0) - uplift.mean(axis=(0, 1))
    jackknife = 4 / 5 * sum(a.T @ a for a in apart) / 300
    found = [error_covariance(members, 0.0, n_eff)[0] for n_eff in (MISSING_ROWS, 1e12)]
    np.testing.assert_allclose(found[1], jackknife, rtol=1e-6)
    np.testing.assert_allclose(found[0], jackknife + spread.T @ spread / 300, rtol=1e-6)
    assert error_covariance(members, 1.0, MISSING_ROWS)[0, 0, 0] < found[0][0, 0]


def test_interval_of_a_model_saved_before_intervals_says_so(fitted):
    tensors = {name: value for name, value in fitted.model.tensors.items() if name != "interval.covariance"}
    columns = columns_of(make_frame(5), FEATURES)
    with pytest.raises(ModelError, match=r"no tensor 'interval.covariance'.*train again"):
        NumpyModel(fitted.spec, tensors).interval(columns)


@pytest.mark.parametrize("rules", [0, 10])
@pytest.mark.parametrize("features", [{"plan": "string"}, {"same": "numeric", "gone": "numeric"}])
def test_fit_without_any_rule_works(features, rules):
    """One string, or columns without steps: no rule can be made of them."""
    fitted = fit(make_frame(600), make_spec(features=features, rules=rules))
    assert np.isfinite(fitted.predict(make_frame(20, seed=3))).all()
    assert np.isfinite(fitted.out_of_fold).all()


def test_fit_caps_a_handful_of_extreme_outcomes():
    frame, test = make_frame(4000), make_frame(1000, seed=9)
    wild = frame.copy()
    wild.loc[wild.index[:2], "spend"] = 1e6
    tame, wild_fit = fit(frame, make_spec()).predict(test), fit(wild, make_spec()).predict(test)
    assert np.abs(wild_fit[..., 1] - tame[..., 1]).max() < 5  # uncapped: hundreds
