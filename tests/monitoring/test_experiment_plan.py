"""PLAN.toml: what it may say, and the message for what it may not."""

from pathlib import Path

import pytest

from campaign import CampaignError, load_campaign
from monitoring.experiment.plan import ExperimentPlan, Metric, plan_of_campaign

GOOD = """
unit = "user_id"
variant = "group"
control = "send_all"
treatment = "candidate"
shares = [0.4, 0.4]
segments = ["plan"]
alpha = 0.05
looks = 5

[[metric]]
name = "subscription"
kind = "binary"
role = "success"

[[metric]]
name = "churn"
kind = "binary"
role = "guardrail"
direction = "lower is better"
margin = 0.01
covariate = "churn_before"
"""


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "PLAN.toml"
    file.write_text(text)
    return file


def test_from_toml_reads_every_key(tmp_path):
    plan = ExperimentPlan.from_toml(write(tmp_path, GOOD))
    assert plan.variants == ("send_all", "candidate")
    assert plan.variant_shares == (0.4, 0.4)
    assert plan.fractions == pytest.approx((0.2, 0.4, 0.6, 0.8, 1.0))
    churn = plan.metric[1]
    assert (churn.direction, churn.sign, churn.tolerance(""), churn.tolerance("plan=free")) == ("lower", -1, 0.01, 0.01)


def test_defaults_are_one_look_and_equal_shares(tmp_path):
    plan = ExperimentPlan.from_toml(write(tmp_path, '[[metric]]\nname = "y"\nkind = "binary"\nrole = "success"\n'))
    assert plan.variants == ("control", "treatment")
    assert plan.variant_shares == (0.5, 0.5)
    assert plan.fractions == (1.0,)


def test_shares_by_name_and_looks_by_users(tmp_path):
    text = GOOD.replace("[0.4, 0.4]", "{candidate = 0.1, send_all = 0.8}").replace("looks = 5", "looks = [1000, 4000]")
    plan = ExperimentPlan.from_toml(write(tmp_path, text))
    assert plan.variant_shares == (0.8, 0.1)
    assert plan.last_users == 4000
    assert plan.fractions == (0.25, 1.0)


BAD = [
    ("margin = 0.01", "margn = 0.01", r"metric\[1\].margn: unknown key; did you mean 'margin'"),
    ("[0.4, 0.4]", "[0.6, 0.5]", r"shares sum == 1.1, must be <= 1"),
    ("[0.4, 0.4]", "[0.4, 0.3, 0.3]", r"len\(shares\) == 3, must be 2"),
    ("[0.4, 0.4]", "[0.4, 0.0]", r"each must be > 0"),
    ("[0.4, 0.4]", "{a = 0.4, b = 0.4}", r"shares of variants == \['a', 'b'\], must be of"),
    ("looks = 5", "looks = 0", r"looks == 0, must be between 1 and 100"),
    ("looks = 5", "looks = [0.5, 0.4, 1]", r"must increase from above 0"),
    ("looks = 5", "looks = [4000, 1000]", r"looks == \[4000.0, 1000.0\], must increase from above 0"),
    ("looks = 5", "looks = [0.5, nan]", r"looks: got \[0.5, nan\]; expected a number of readings"),
    ("looks = 5", 'looks = "weekly"', r"looks: got 'weekly'; expected a number of readings, or a list"),
    ("looks = 5", "looks = 2.5", r"looks: got 2.5; expected a number of readings"),
    ("looks = 5", "looks = true", r"looks: got True; expected a number of readings"),
    ("[0.4, 0.4]", "[nan, 0.4]", r"shares: got \[nan, 0.4\]; expected numbers"),
    ("[0.4, 0.4]", "0.4", r"shares: got 0.4; expected numbers, control's first"),
    ("[0.4, 0.4]", "[50, 50]", r"shares sum == 100, must be <= 1"),
    ("alpha = 0.05", "alpha = 0.0", r"alpha: .*greater than 0"),
    ("alpha = 0.05", "alpha = nan", r"alpha: "),
    ("alpha = 0.05", 'alpha = "5%"', r"alpha: .*valid number .got '5%'"),
    ("margin = 0.01", "margin = -0.01", r"metric\[1\].margin: .*greater than or equal to 0 .got -0.01"),
    ("margin = 0.01", "margin = inf", r"metric\[1\].margin: .*finite number"),
    ('"lower is better"', '"down"', r"metric\[1\].direction: .*'higher' or 'lower' .got 'down'"),
    ('treatment = "candidate"', "treatment = []", r"control and every treatment must have its own name"),
    ('treatment = "candidate"', 'treatment = ""', r"control and every treatment must have its own name"),
    ("looks = 5", "looks = [0.5, 0.9]", r"shares that end in 1"),
    ("alpha = 0.05", "alpha = 0.7", r"alpha: .*less than 0.5"),
    ('treatment = "candidate"', 'treatment = "send_all"', r"must have its own name"),
    ('role = "success"', 'role = "succes"', r"metric\[0\].role"),
    ("margin = 0.01\n", "", r"margin == None with role == 'guardrail'"),
    ('role = "success"', 'role = "success"\nmargin = 0.1', r"margin == 0.1 with role == 'success'"),
    ('name = "churn"', 'name = "subscription"', r"must be unique"),
    ('role = "success"', 'role = "guardrail"\nmargin = 0.1', r"at least one metric must be a success"),
    ('kind = "binary"\nrole = "success"', 'kind = "count"\nrole = "success"', r"metric\[0\].kind"),
    ('["plan"]', '["churn"]', r"segments == 'churn', which is also metric churn"),
    ('["plan"]', '["plan", "plan"]', r"segments == 'plan', which is also segments"),
    (
        '"churn_before"',
        '"subscription"',
        r"covariate == 'subscription', which is also metric",
    ),
    ("[[metric]]", "[[metrics]]", r"metrics: unknown key; did you mean 'metric'"),
    ("looks = 5", "looks = 5 5", r"not valid TOML"),
]


@pytest.mark.parametrize(("old", "new", "message"), BAD)
def test_bad_plan_is_refused_with_file_and_key(tmp_path, old, new, message):
    assert old in GOOD
    file = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(CampaignError, match=message) as caught:
        ExperimentPlan.from_toml(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(("metric", "n"), [('name = "a"\nkind = "binary"\nrole = "succes"', 1), ("", 3)])
def test_a_broken_metric_gives_no_second_message(tmp_path, metric, n):
    with pytest.raises(CampaignError) as caught:
        ExperimentPlan.from_toml(write(tmp_path, f"[[metric]]\n{metric}"))
    assert len(str(caught.value).splitlines()) == n
    assert "Tuple" not in str(caught.value)


def test_lists_are_as_good_as_tuples():
    metric = Metric(name="y", kind="binary", role="success")
    lists = {"treatment": ["a", "b"], "segments": ["plan"], "shares": [0.2, 0.3, 0.4], "looks": [0.5, 1]}
    tuples = {key: tuple(value) for key, value in lists.items()}
    assert ExperimentPlan(metric=[metric], **lists) == ExperimentPlan(metric=(metric,), **tuples)


def test_missing_file_is_said(tmp_path):
    with pytest.raises(CampaignError, match="no such file"):
        ExperimentPlan.from_toml(tmp_path / "none.toml")


def test_plan_of_campaign_takes_metrics_margins_and_segments():
    campaign = load_campaign(Path(__file__).parents[2] / "campaign.toml")
    plan = plan_of_campaign(campaign, "send_all", ["low", "high"], looks=3, planned_users=9000)
    assert plan.variants == ("send_all", "low", "high")
    assert plan.segments == campaign.segments.columns
    retention = next(m for m in plan.metric if m.name == "retention")
    assert (retention.role, retention.tolerance(""), retention.tolerance("plan=free")) == ("guardrail", 0.02, 0.06)
    assert retention.covariate == "retention_before"
