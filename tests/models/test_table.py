"""Bring your own table: what is fixed for users of `tactful fit / predict / evaluate`."""

import json
from decimal import Decimal
from functools import partial

import numpy as np
import pandas as pd
import pytest

from campaign import CampaignError, DataError, ModelError
from models.table import (
    arm_table,
    evaluate_table,
    fit_table,
    load_spec,
    parse_weights,
    predict_table,
    prepare,
    verdict,
)
from models.table_file import read_table

SPEC = """
unit = "user"
features = ["x", "plan", "flag"]
arm = "segment"
control = "No E-Mail"
seed = 7
[[outcome]]
name = "visit"
kind = "binary"
weight = 1.0
[[outcome]]
name = "spend"
kind = "continuous"
weight = 0.1
"""
ARMS = ["No E-Mail", "Mens", "Womens"]


def make_table(n=2400):
    rng = np.random.default_rng(1)
    arm, x = rng.integers(0, 3, n), rng.normal(size=n)
    visit = rng.random(n) < 0.2 + 0.1 * (arm == 1) + 0.1 * (arm == 2) * (x > 0)
    return pd.DataFrame(
        {
            "user": [f"u{i}" for i in range(n)],
            "x": x,
            "plan": rng.choice(["free", "paid"], n),
            "flag": rng.random(n) < 0.5,
            "segment": np.array(ARMS)[arm],
            "visit": visit.astype(int),
            "spend": visit * rng.gamma(1.0, 20.0, n),
        }
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    (folder / "spec.toml").write_text(SPEC)
    make_table().to_csv(folder / "table.csv", index=False)
    make_table().to_parquet(folder / "table.parquet")
    fit_table(folder / "table.csv", folder / "spec.toml", folder / "model")
    return folder


def test_fit_table_writes_model_folder_and_report(files):
    assert {p.name for p in (files / "model").iterdir()} == {"model.json", "weights.safetensors", "report.json"}
    report = json.loads((files / "model" / "report.json").read_text())
    assert report["arms"] == ARMS
    assert report["rows"] == 2400
    frame = make_table()
    plain = frame.groupby("segment")["visit"].mean()
    row = next(r for r in report["table"] if (r["arm"], r["outcome"]) == ("Mens", "visit"))
    assert row["uplift"] == pytest.approx(plain["Mens"] - plain["No E-Mail"], abs=1e-9)
    assert row["ci_lower"] < row["uplift"] < row["ci_upper"]


def test_predict_table_columns_order_and_best_arm(files):
    table = predict_table(files / "model", files / "table.parquet", files / "out.parquet")
    pd.testing.assert_frame_equal(table, pd.read_parquet(files / "out.parquet"))
    expected = ["user", *(f"mu_{a}_{o}" for a in ARMS for o in ("visit", "spend"))]
    expected += [f"uplift_{a}_{o}" for a in ARMS[1:] for o in ("visit", "spend")]
    assert list(table.columns) == [*expected, "score_Mens", "score_Womens", "best_arm"]
    assert table["user"].tolist() == make_table()["user"].tolist()
    score = table[["score_Mens", "score_Womens"]].to_numpy()
    assert score[:, 0] == pytest.approx(table["uplift_Mens_visit"] + 0.1 * table["uplift_Mens_spend"])
    best = np.where(score.max(axis=1) > 0, np.array(ARMS[1:])[score.argmax(axis=1)], "No E-Mail")
    assert (table["best_arm"] == best).all()


def test_predict_table_csv_and_parquet_agree(files):
    from_csv = predict_table(files / "model", files / "table.csv", files / "a.parquet")
    pd.testing.assert_frame_equal(
        from_csv, predict_table(files / "model", files / "table.parquet", files / "b.parquet")
    )


def test_evaluate_table_has_every_policy_and_difference(files):
    table = evaluate_table(files / "table.parquet", files / "spec.toml")
    assert {"uplift", "response", "send_none", "send_all", "send_all_1", "send_all_2"} <= set(table["policy"])
    assert set(table["outcome"]) == {"visit", "spend", "weighted"}
    difference = table.query("policy == 'uplift' and baseline == 'send_none' and outcome == 'visit'")
    assert (difference["ci_lower"] > 0).all()  # both messages help: +.1 for all, +.1 for half
    told = verdict(table).splitlines()
    assert [line.split(":")[0].removeprefix("uplift policy minus ") for line in told] == [
        "send_all",
        "send_none",
        "linear T-learner",
        "LightGBM S-learner",
        "response",
        "random",
    ]
    assert told[1].endswith(")")
    assert told[2].endswith("not significantly different")  # effects are steps of one feature: linear models do as well


def test_predict_table_with_other_weights_moves_scores_only(files, tmp_path):
    asked = (files / "model", files / "table.csv", tmp_path / "a.parquet")
    fitted, other = predict_table(*asked), predict_table(*asked, parse_weights(["spend=-2"]))
    same = [c for c in fitted if not c.startswith(("score_", "best_"))]
    pd.testing.assert_frame_equal(fitted[same], other[same])
    expected = other["uplift_Mens_visit"] - 2 * other["uplift_Mens_spend"]
    assert other["score_Mens"].to_numpy() == pytest.approx(expected.to_numpy())


@pytest.mark.parametrize(
    ("weights", "message"),
    [(["visit"], "weight 'visit': expected OUTCOME=WORTH"), (["visits=1"], r"weights for .*'visits'.*predicts")],
)
def test_predict_table_refuses_weights_it_cannot_use(files, tmp_path, weights, message):
    with pytest.raises((DataError, ModelError), match=message):
        predict_table(files / "model", files / "table.csv", tmp_path / "a.parquet", parse_weights(weights))


def test_fit_table_without_unit_numbers_the_rows(tmp_path, files):
    (tmp_path / "spec.toml").write_text(SPEC.replace('unit = "user"\n', ""))
    fit_table(files / "table.csv", tmp_path / "spec.toml", tmp_path / "model")
    table = predict_table(tmp_path / "model", files / "table.csv", tmp_path / "out.parquet")
    assert table["row"].tolist() == list(range(2400))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seed = 7", "sed = 7"), "sed: unknown key; did you mean 'seed'"),
        (('arm = "segment"', ""), "arm: missing; add it"),
        (('"binary"', '"yes"'), r"outcome\[0\].kind"),
        (('["x", "plan", "flag"]', "[]"), "features"),
        (('["x", "plan", "flag"]', '["x", "visit"]'), r"features == \['visit'\] are also arm, propensity or outcome"),
        (('["x", "plan", "flag"]', '["x", "x"]'), r"features == \['x'\] are named twice"),
        (("seed = 7", "seed = "), "not valid TOML"),
    ],
)
def test_load_spec_names_the_key(tmp_path, change, message):
    (tmp_path / "spec.toml").write_text(SPEC.replace(*change))
    with pytest.raises(CampaignError, match=message):
        load_spec(tmp_path / "spec.toml")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: f.drop(columns="plan"), r"columns \['plan'\] are missing; the file has: user, x"),
        (lambda f: f.drop(columns="segment"), r"columns \['segment'\] are missing"),
        (lambda f: f.drop(columns=["user", "visit"]), r"columns \['visit', 'user'\] are missing"),
        (lambda f: f.assign(user=f["user"].where(f["x"] > -1)), r"unit column 'user' is empty in \d+ rows .first: row"),
        (lambda f: f.assign(segment="Mens"), "control == 'No E-Mail' is no value of column 'segment'"),
        (lambda f: f.assign(segment="No E-Mail"), "every row has arm 'No E-Mail'"),
        (lambda f: f.assign(segment=f["segment"].where(f["x"] > 0)), "arm column 'segment' is empty in"),
    ],
)
def test_prepare_says_what_is_wrong(tmp_path, spoil, message):
    (tmp_path / "spec.toml").write_text(SPEC)
    with pytest.raises(DataError, match=message):
        prepare(spoil(make_table()), load_spec(tmp_path / "spec.toml"))


def test_read_table_says_what_is_wrong(tmp_path):
    with pytest.raises(DataError, match=r"ends in '.xlsx', expected .csv or .parquet"):
        read_table(tmp_path / "t.xlsx")
    with pytest.raises(DataError, match=r"t\.csv: no such file"):
        read_table(tmp_path / "t.csv")
    (tmp_path / "t.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match=r"t\.parquet: not readable as parquet"):
        read_table(tmp_path / "t.parquet")
    (tmp_path / "t.csv").write_text("a,b\n")
    with pytest.raises(DataError, match=r"t\.csv: no rows"):
        read_table(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("a;b\n1;2\n")
    with pytest.raises(DataError, match=r"t\.csv: one column, 'a;b'; expected columns separated by commas"):
        read_table(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_bytes("country\nÖsterreich\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"t\.csv: not UTF-8 text .*; save it as UTF-8"):
        read_table(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("a,b\n1,2\n1,2,3\n")
    with pytest.raises(DataError, match=r"t\.csv: not readable as csv: .*Expected 2 fields in line 3, saw 3$"):
        read_table(tmp_path / "t.csv")


def test_read_table_keeps_names_as_they_are_written(tmp_path):
    (tmp_path / "t.csv").write_text("user,arm,zip,id\n007,None,1,10\n008,NA,2,11\n")
    frame = read_table(tmp_path / "t.csv", as_written=["user", "arm", "id"], text=["zip"])
    assert frame.to_dict("list") == {"user": ["007", "008"], "arm": ["None", "NA"], "zip": ["1", "2"], "id": [10, 11]}


def test_fit_table_takes_booleans_with_gaps_and_decimals(tmp_path, files):
    """And predict takes text that happens to be all digits in another file."""
    gaps = make_table()
    gaps["flag"] = gaps["flag"].astype(object).where(gaps["x"] > -1)
    gaps["x"] = [Decimal(f"{x:.3f}") for x in gaps["x"]]
    gaps["plan"] = gaps["plan"].map({"free": "1", "paid": "1b"})
    gaps.to_parquet(tmp_path / "gaps.parquet")
    gaps.to_csv(tmp_path / "gaps.csv", index=False)
    for name in ("gaps.parquet", "gaps.csv"):
        fit_table(tmp_path / name, files / "spec.toml", tmp_path / "model")
        assert {
            f["name"]: f["kind"] for f in json.loads((tmp_path / "model" / "model.json").read_text())["features"]
        } == {
            "x": "numeric",
            "plan": "string",
            "flag": "numeric",
        }
    digits = gaps[gaps["plan"] == "1"]
    digits.to_csv(tmp_path / "digits.csv", index=False)
    found = predict_table(tmp_path / "model", tmp_path / "digits.csv", tmp_path / "a.parquet").set_index("user")
    whole = predict_table(tmp_path / "model", tmp_path / "gaps.csv", tmp_path / "b.parquet").set_index("user")
    pd.testing.assert_frame_equal(found, whole.loc[found.index])


def test_fit_table_warns_of_text_that_is_no_category(tmp_path, files):
    make_table().assign(plan=[f"{i}x" for i in range(2400)]).to_csv(tmp_path / "ids.csv", index=False)
    with pytest.warns(UserWarning, match="feature 'plan' is text with 2,400 different values in 2,400 rows"):
        fit_table(tmp_path / "ids.csv", files / "spec.toml", tmp_path / "model")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: f.drop(columns="plan"), r"bad\.parquet: columns \['plan'\] are missing"),
        (lambda f: f.assign(visit=2), r"bad\.parquet: outcome 'visit': 2400 of 2400 rows are wrong"),
        (
            lambda f: f.assign(plan=[[1]] * len(f)),
            r"bad\.parquet: feature 'plan' holds ndarray values .*, expected",
        ),
    ],
)
def test_fit_and_evaluate_table_name_the_file(tmp_path, files, spoil, message):
    spoil(make_table()).to_parquet(tmp_path / "bad.parquet")
    for command in (partial(fit_table, out_dir=tmp_path / "model"), evaluate_table):
        with pytest.raises(DataError, match=message):
            command(tmp_path / "bad.parquet", files / "spec.toml")
    assert [p.name for p in tmp_path.iterdir()] == ["bad.parquet"]


def test_nothing_but_a_model_is_ever_replaced(tmp_path, files, monkeypatch):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="exists and holds no model; it would be replaced"):
        fit_table(files / "table.csv", files / "spec.toml", tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"\.: exists and holds no model"):
        fit_table(files / "table.csv", files / "spec.toml", ".")
    with pytest.raises(DataError, match="is a folder; name the Parquet file to write"):
        predict_table(files / "model", files / "table.csv", tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_failed_fit_leaves_nothing(tmp_path, files):
    make_table().assign(visit=np.nan).to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(DataError, match="outcome 'visit'"):
        fit_table(tmp_path / "bad.csv", files / "spec.toml", tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["bad.csv"]


HILLSTROM_SPEC = """
features = ["recency", "history_segment", "history", "mens", "womens", "zip_code", "newbie", "channel"]
arm = "treatment"
control = "No E-Mail"
seed = 7
[[outcome]]
name = "visit"
kind = "binary"
weight = 1.0
[[outcome]]
name = "conversion"
kind = "binary"
weight = 10.0
[[outcome]]
name = "spend"
kind = "continuous"
weight = 0.1
"""


@pytest.mark.hillstrom
def test_hillstrom_arm_uplift_is_the_difference_of_means(hillstrom, tmp_path):
    (tmp_path / "spec.toml").write_text(HILLSTROM_SPEC)
    spec = load_spec(tmp_path / "spec.toml")
    frame, fit_spec = prepare(read_table(hillstrom), spec)
    table = arm_table(frame, spec, fit_spec, np.zeros((len(frame), 3, 3)))
    plain = frame.groupby("treatment")["visit"].mean()
    uplift = table[table["outcome"] == "visit"]["uplift"].tolist()
    assert uplift == pytest.approx([plain[1] - plain[0], plain[2] - plain[0]], abs=1e-9)


@pytest.mark.slow
@pytest.mark.hillstrom
def test_hillstrom_fit_and_predict_three_arms(hillstrom, tmp_path):
    (tmp_path / "spec.toml").write_text(HILLSTROM_SPEC)
    table = fit_table(hillstrom, tmp_path / "spec.toml", tmp_path / "model")
    predicted = predict_table(tmp_path / "model", hillstrom, tmp_path / "out.parquet")
    assert len(predicted) == 64000
    uplift = table[table["outcome"] == "visit"].set_index("arm")["uplift"]
    # predictions average to the experiment's own difference, within about four standard errors of .3 points
    assert predicted["uplift_Mens E-Mail_visit"].mean() == pytest.approx(uplift["Mens E-Mail"], abs=0.012)


def test_names_like_na_stay_names_in_a_csv_where_asked(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text("id,variant,country,x\n007,None,NA,1\n7,null,,NA\n")
    frame = read_table(file, as_written=["id", "variant", "country"])
    assert frame["id"].tolist() == ["007", "7"]
    assert frame["variant"].tolist() == ["None", "null"]
    assert frame["country"].tolist()[0] == "NA"
    assert frame.isna().sum().to_dict() == {"id": 0, "variant": 0, "country": 1, "x": 1}
