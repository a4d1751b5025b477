import re
from pathlib import Path

import pytest

from campaign import ROOT, CampaignError, data_dir, load_campaign

TOML = (ROOT / "campaign.toml").read_text()


def write(folder: Path, text: str) -> Path:
    path = folder / "campaign.toml"
    path.write_text(text)
    return path


def test_load_campaign_reads_the_shipped_file():
    campaign = load_campaign()
    assert campaign.arm_names == ("none", "premium_offer")
    assert campaign.outcome_names == ("subscription", "retention", "listening")
    assert campaign.costs == (0.0, 0.05)
    assert campaign.matures_after_days == 30


BAD = [
    ("holdout_share", "holdot_share", r"assignment\.holdot_share: unknown key; did you mean 'holdout_share'"),
    (
        'name = "subscription"',
        'nmae = "subscription"',
        r"^\S+: outcome\[0\]\.nmae: unknown key; did you mean 'name'\?$",
    ),
    ("alpha = 0.05", 'alpha = "small"', r"policy\.alpha: Input should be a valid number \(got 'small'\)"),
    ("alpha = 0.05", "alpha = 0.7", r"policy\.alpha: Input should be less than 0\.5 \(got 0\.7\)"),
    ("holdout_share = 0.10", "holdout_share = 0.95", r"holdout_share \+ exploration_share == 1\.05, must be <= 1"),
    ("margin = 0.02", "# margin = 0.02", r"outcome\[1\]: margin == None with role == 'guardrail'"),
    ("train = 0.55", "train = 0.65", r"splits: train \+ select \+ evaluate == 1\.1, must be 1"),
    (
        'name = "premium_offer"',
        'name = "none"',
        r"toml: arm\[1\]\.name == 'none', as arm\[0\]\.name is; must be unique$",
    ),
    ('name = "none"', 'name = "none"\ncost = 1.0', r"is control: its cost == 1, must be 0"),
    ("first_day = 14", "first_day = 40", r"first_day == 40, must be < window_days == 28"),
    ('measure = "retained"', 'measure = "returned"', r"outcome\[1\]\.measure: Input should be"),
    (
        'measure = "retained"',
        'mesure = "retained"',
        r"^\S+: outcome\[1\]\.mesure: unknown key; did you mean 'measure'\?$",
    ),
    ('measure = "retained"', "", r"^\S+: outcome\[1\]\.measure: missing; add it$"),
    ("[segments]", "[[segments]]", r"segments: Input should be an object \(got a list\)$"),
    ("exploration/1", "holdout/1", r"must differ: one salt per draw"),
    ("window_days = 14", "window_days = 14.5", r"outcome\[0\]\.window_days: Input should be a valid integer"),
    ("[segments]", "[segments", r"not valid TOML"),
    ('currency = "EUR"', 'currency = "<b>"', r"currency: must be 1 to 12 letters or currency signs, .* \(got '<b>'\)"),
    ('currency = "EUR"', 'currency = ""', r"currency: must be 1 to 12 letters or currency signs"),
]


@pytest.mark.parametrize(("old", "new", "message"), BAD, ids=[new[:24] for _, new, _ in BAD])
def test_load_campaign_names_the_key_when_wrong(tmp_path, old, new, message):
    assert old in TOML
    with pytest.raises(CampaignError, match=message):
        load_campaign(write(tmp_path, TOML.replace(old, new, 1)))


def test_load_campaign_lists_every_problem_at_once(tmp_path):
    text = TOML.replace("alpha = 0.05", "alpha = 7.0").replace("psi_red_line", "psi_line")
    with pytest.raises(CampaignError) as error:
        load_campaign(write(tmp_path, text))
    named = [re.search(r"toml: ([a-z_.]+):", line)[1] for line in str(error.value).splitlines()]
    assert sorted(named) == ["monitoring.psi_line", "policy.alpha"]  # the missing psi_red_line is the first of them


def test_load_campaign_missing_file(tmp_path):
    with pytest.raises(CampaignError, match="no such file; put it there"):
        load_campaign(tmp_path / "nowhere.toml")
    with pytest.raises(CampaignError, match="is a folder, or lies in a file; name a TOML file"):
        load_campaign(tmp_path)


def test_campaign_hash_ignores_comments_and_order_but_not_values(tmp_path):
    first = load_campaign().hash
    commented = TOML.replace("name = ", "# a comment\nname = ", 1).replace(
        "train = 0.55\nselect = 0.20", "select = 0.20\ntrain = 0.55"
    )
    assert load_campaign(write(tmp_path, commented)).hash == first
    assert load_campaign(write(tmp_path, TOML.replace("weight = 12.0", "weight = 12.5"))).hash != first


@pytest.mark.parametrize("line", ["", 'currency = "kr."', 'currency = "R$"', 'currency = "Kč"', 'currency = "₹"'])
def test_campaign_currency_is_printed_and_changes_no_hash(tmp_path, line):
    """A running experiment keeps to its campaign's hash, and a file from before the key is the same campaign."""
    found = load_campaign(write(tmp_path, TOML.replace('currency = "EUR"', line, 1)))
    assert found.currency == (line.partition('"')[2].rstrip('"') or "EUR")
    assert found.hash == load_campaign().hash


def test_campaign_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load_campaign().policy.alpha = 0.1


def test_data_dir_empty_variable_is_none(monkeypatch):
    monkeypatch.setenv("TACTFUL_DATA", "")
    assert data_dir() == ROOT / "data"
