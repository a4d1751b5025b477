"""Experiment files and the assignment that follows from them."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from campaign import CampaignError, load_campaign
from models.splits import hash_unit
from monitoring.experiment.assign import Scored, arms_of, experiment_propensities, experiment_variant
from monitoring.experiment.design import new_experiment
from monitoring.experiment.file import (
    Experiment,
    Forecast,
    Variant,
    change_state,
    read_experiment_file,
    read_experiments,
    write_experiment,
)
from monitoring.experiment.plan import plan_of_campaign

CAMPAIGN = load_campaign(Path(__file__).parents[2] / "campaign.toml")
START = datetime(2026, 3, 2, tzinfo=UTC)
IDS = [f"user-{i}" for i in range(20_000)]
VARIANTS = (
    Variant(name="send_all", policy="send_all", share=0.5),
    Variant(name="candidate", policy="threshold", share=0.5, threshold=0.1),
)
PLAN = plan_of_campaign(CAMPAIGN, "send_all", ["candidate"], planned_users=9000, looks=3)


def made(folder, name="one", share=0.5, **keys) -> Experiment:
    return new_experiment(folder, CAMPAIGN, name, VARIANTS, PLAN, share=share, starts_at=START, **keys)


def test_file_reads_back_what_was_written(tmp_path):
    forecast = Forecast(variant="candidate", metric="retention", value=0.01, ci_lower=-0.01, ci_upper=0.03)
    experiment = made(tmp_path, forecast=[forecast])
    file = write_experiment(tmp_path, experiment)
    assert read_experiment_file(file) == experiment
    assert json.loads(file.read_text())["hash"] == experiment.hash
    assert [p.name for p in tmp_path.iterdir()] == ["one.json"]  # nothing is left aside


def test_writing_twice_changes_nothing(tmp_path):
    first = write_experiment(tmp_path, made(tmp_path)).read_bytes()
    assert write_experiment(tmp_path, made(tmp_path)).read_bytes() == first


def test_variants_have_their_shares_and_are_independent_of_slots(tmp_path):
    experiment = made(tmp_path, share=0.4)
    variant = experiment_variant(experiment, IDS)
    inside = variant >= 0
    assert inside.mean() == pytest.approx(0.4, abs=0.015)
    assert stats.binomtest(int(variant[inside].sum()), int(inside.sum())).pvalue > 0.001
    # whoever was in the holdout is as likely as anybody to be in either variant
    holdout = hash_unit(CAMPAIGN.assignment.holdout_salt, IDS) < 0.1
    table = [[int(((variant == v) & (holdout == h)).sum()) for v in (0, 1)] for h in (False, True)]
    assert stats.chi2_contingency(table).pvalue > 0.001


def test_ramp_up_never_reassigns(tmp_path):
    write_experiment(tmp_path, made(tmp_path, share=0.8, ramp=0.05))
    before = experiment_variant(read_experiment_file(tmp_path / "one.json"), IDS)
    for ramp in (0.2, 0.5, 1.0):
        after = experiment_variant(change_state(tmp_path, "one", START, ramp=ramp), IDS)
        assert (after[before >= 0] == before[before >= 0]).all()
        assert (after >= 0).mean() == pytest.approx(0.8 * ramp, abs=0.02)
        before = after


def test_stop_takes_everybody_out_at_once_and_back_gives_the_same_variants(tmp_path):
    write_experiment(tmp_path, made(tmp_path))
    before = experiment_variant(read_experiment_file(tmp_path / "one.json"), IDS)
    assert (experiment_variant(change_state(tmp_path, "one", START, state="stopped"), IDS) == -1).all()
    back = change_state(tmp_path, "one", START + timedelta(days=1), state="running")
    assert (experiment_variant(back, IDS) == before).all()
    assert [c.state for c in back.history] == ["running", "stopped", "running"]


def test_experiments_exclude_each_other_and_have_their_own_draw(tmp_path):
    write_experiment(tmp_path, made(tmp_path, "one", 0.5))
    write_experiment(tmp_path, made(tmp_path, "two", 0.5))
    one, two = (experiment_variant(e, IDS) for e in read_experiments(tmp_path))
    assert not ((one >= 0) & (two >= 0)).any()
    assert ((one >= 0) | (two >= 0)).all()
    # a later experiment on the same users draws anew
    change_state(tmp_path, "one", START, state="ended")
    three = experiment_variant(made(tmp_path, "three", 0.5), IDS)
    assert ((three >= 0) == (one >= 0)).all()
    same = (three == one)[one >= 0]
    assert stats.binomtest(int(same.sum()), len(same)).pvalue > 0.001


def test_nobody_is_enrolled_before_the_start(tmp_path):
    experiment = made(tmp_path)
    assert not experiment.is_on(START - timedelta(seconds=1))
    assert experiment.is_on(START)


def changed(experiment: Experiment, **update) -> Experiment:
    return Experiment.model_validate_json(json.dumps({**experiment.model_dump(mode="json"), **update}))


@pytest.mark.parametrize(
    ("update", "message"),
    [
        (
            {"salt": "other"},
            "salt == 'other', was 'premium-nudge/experiment/one' when it started; it cannot change mid-f",
        ),
        ({"slots": [0.1, 0.5]}, "slots == .* cannot change mid-flight"),
        ({"starts_at": "2026-04-01T00:00:00Z"}, "starts_at == .* cannot change mid-flight"),
        ({"ramp": 0.2}, "ramp == 0.2, is 0.5 now; a ramp only goes up"),
    ],
)
def test_a_started_design_cannot_change(tmp_path, update, message):
    experiment = made(tmp_path, ramp=0.5)
    write_experiment(tmp_path, experiment)
    with pytest.raises(CampaignError, match=message):
        write_experiment(tmp_path, changed(experiment, **update))


def test_an_ended_experiment_does_not_come_back(tmp_path):
    write_experiment(tmp_path, made(tmp_path))
    change_state(tmp_path, "one", START, state="ended")
    with pytest.raises(CampaignError, match="has ended and its slots are free"):
        change_state(tmp_path, "one", START, state="running")


def test_overlapping_experiments_are_refused(tmp_path):
    experiment = made(tmp_path)
    write_experiment(tmp_path, experiment)
    other = changed(experiment, name="two", salt="two", slots=[0.3, 0.6])
    with pytest.raises(CampaignError, match=r"one and two: overlap in slots 0.3 to 0.5.*end one"):
        write_experiment(tmp_path, other)
    with pytest.raises(CampaignError, match="all experiments of a campaign share one slot_salt"):
        write_experiment(tmp_path, changed(other, slots=[0.6, 0.9], slot_salt="elsewhere"))


@pytest.mark.parametrize("share", [0.0, 1.2])
def test_a_share_outside_one_is_refused(tmp_path, share):
    with pytest.raises(CampaignError, match="it is a share of users"):
        made(tmp_path, share=share)


def test_shares_over_one_are_refused_with_who_holds_them(tmp_path):
    write_experiment(tmp_path, made(tmp_path, share=0.7))
    with pytest.raises(CampaignError, match=r"shares sum to over 1.*one holds 0 to 0.7"):
        made(tmp_path, "two", share=0.4)


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"slots": [0.5, 1.2]}, r"slots == \[0.5, 1.2\], must be an interval in \[0, 1\]"),
        ({"salt": "same", "slot_salt": "same"}, "one salt per draw"),
        ({"starts_at": "2026-03-02T00:00:00"}, "must have a time zone"),
        ({"variants": [{"name": "send_all", "policy": "send_all", "share": 0.9}] * 2}, "variant shares sum == 1.8"),
        ({"variants": [v.model_dump() for v in VARIANTS[::-1]]}, "must be those of the plan"),
        (
            {"forecast": [{"variant": "candidate", "metric": "x", "value": 0, "ci_lower": -1, "ci_upper": 1}]},
            "metric == 'x', must be a treatment",
        ),
    ],
)
def test_impossible_design_is_refused(tmp_path, update, message):
    with pytest.raises(ValueError, match=message):
        changed(made(tmp_path), **update)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"policy": "threshold"}, "threshold == None with policy == 'threshold'"),
        ({"policy": "send_all", "threshold": 0.1}, "only that policy has one"),
        ({"policy": "rule"}, "only a rule policy has a rule"),
        ({"policy": "champion", "weights": (1.0,)}, "must be policy 'threshold'"),
    ],
)
def test_impossible_variant_is_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        Variant(name="a", share=0.5, **keys)


def test_an_edited_file_is_refused(tmp_path):
    file = write_experiment(tmp_path, made(tmp_path))
    file.write_text(file.read_text().replace("premium-nudge/experiment/one", "premium-nudge/experiment/two"))
    with pytest.raises(CampaignError, match="salts, slots, variants or plan were edited after the start"):
        read_experiment_file(file)


def test_a_missing_or_torn_file_is_said(tmp_path):
    with pytest.raises(CampaignError, match="no such experiment; experiments there: none"):
        read_experiment_file(tmp_path / "one.json")
    (tmp_path / "one.json").write_text('{"name": ')
    with pytest.raises(CampaignError, match="not valid JSON"):
        read_experiments(tmp_path)


@pytest.mark.parametrize("text", ["[]", "null", "3", '"one"'])
def test_json_that_is_no_object_is_said(tmp_path, text):
    (tmp_path / "one.json").write_text(text)
    with pytest.raises(CampaignError, match="expected an object as `tactful experiment plan` writes it"):
        read_experiments(tmp_path)


def test_a_folder_in_place_of_a_file_is_said(tmp_path):
    (tmp_path / "one.json").mkdir()
    with pytest.raises(CampaignError, match="cannot be read: Is a directory"):
        read_experiments(tmp_path)


def five_variants(tmp_path) -> Experiment:
    variants = [
        Variant(name="none", policy="send_none", share=0.2),
        Variant(name="all", policy="send_all", share=0.2),
        Variant(name="trial", policy="rule", share=0.2, rule={"plan": ("trial",)}),
        Variant(name="champion", policy="champion", share=0.2),
        Variant(name="weights", policy="threshold", share=0.2, threshold=0.0, weights=(0.0, 1.0, 0.0)),
    ]
    plan = plan_of_campaign(CAMPAIGN, "none", [v.name for v in variants[1:]])
    return new_experiment(tmp_path, CAMPAIGN, "five", variants, plan, share=0.5, starts_at=START)


UPLIFT = np.array([[[0.10, -0.10, 0.0]], [[0.0, 0.20, 0.0]], [[np.nan] * 3]])


def test_every_variant_decides_for_every_user_with_features(tmp_path):
    experiment = five_variants(tmp_path)
    segments = {"plan": np.array(["free", "trial", None], dtype=object)}
    weights, costs = np.array(CAMPAIGN.weights), np.array(CAMPAIGN.costs[1:])
    arms = arms_of(experiment.variants, Scored(np.array([1, 0, 0]), UPLIFT, weights, costs, segments))
    #                       none all trial champion weights
    assert arms.tolist() == [[0, 1, 0, 1, 0], [0, 1, 1, 0, 1], [0, 0, 0, 0, 0]]


def test_a_rule_on_an_unknown_segment_is_refused(tmp_path):
    users = Scored(np.zeros(3, int), UPLIFT, np.zeros(3), np.zeros(1), {"device": np.array([])})
    with pytest.raises(CampaignError, match="rule on 'plan', known segments"):
        arms_of(five_variants(tmp_path).variants, users)


def test_propensities_are_the_frequencies_of_the_draw(tmp_path):
    experiment = made(tmp_path, share=0.6)
    arms, champion = np.array([[1, 0]]), np.array([0])
    chance = experiment_propensities(experiment, arms, champion, 2)
    assert chance == pytest.approx(np.array([[0.7, 0.3]]))
    variant = experiment_variant(experiment, IDS)
    drawn = np.where(variant < 0, champion[0], arms[0][variant])
    assert drawn.mean() == pytest.approx(0.3, abs=0.01)
