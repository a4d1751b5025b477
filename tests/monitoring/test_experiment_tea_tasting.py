"""The same numbers as tea-tasting 1.14, where the two overlap; Tactful needs it for these tests only."""

import numpy as np
import pandas as pd
import pytest
import tea_tasting as tt

from monitoring.experiment.plan import ExperimentPlan, Metric
from monitoring.experiment.power import plan_experiment
from monitoring.experiment.read import read_experiment

PLAN = ExperimentPlan(
    metric=(
        Metric(name="plain", kind="continuous", role="success"),
        Metric(name="cuped", kind="continuous", role="success", covariate="before"),
        Metric(name="clicked", kind="binary", role="success", covariate="before"),
    ),
    shares=(0.6, 0.4),
)


def table(n=5000, seed=1):
    rng = np.random.default_rng(seed)
    treated = rng.random(n) < 0.4
    before = rng.gamma(2.0, 1.0, n)
    y = before + rng.gamma(2.0, 1.0, n) + 0.05 * treated
    clicked = (rng.random(n) < 0.1 + 0.05 * np.tanh(before) + 0.01 * treated).astype(float)
    variant = np.where(treated, "treatment", "control")
    return pd.DataFrame(
        {"user_id": np.arange(n), "variant": variant, "plain": y, "cuped": y, "clicked": clicked, "before": before}
    )


def theirs(frame):
    experiment = tt.Experiment(
        srm=tt.SampleRatio({"control": 0.6, "treatment": 0.4}, method="norm", correction=False),
        plain=tt.Mean("plain", use_t=True, equal_var=False),
        cuped=tt.Mean("cuped", covariate="before", use_t=True, equal_var=False),
        clicked=tt.Mean("clicked", covariate="before", use_t=True, equal_var=False),
    )
    return experiment.analyze(frame, control="control")


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_effects_intervals_and_p_values_are_equal(seed):
    frame = table(seed=seed)
    ours, result = read_experiment(frame, PLAN), theirs(frame)
    for _, row in ours.table.iterrows():
        other = result[row["metric"]]
        mine = [row[k] for k in ("mean_control", "mean_treatment", "effect_size", "ci_lower", "ci_upper", "pvalue")]
        expected = (
            other.control,
            other.treatment,
            other.effect_size,
            other.effect_size_ci_lower,
            other.effect_size_ci_upper,
            other.pvalue,
        )
        assert mine == pytest.approx(expected, abs=1e-8)


def test_sample_ratio_is_equal():
    frame = table()
    p = read_experiment(frame, PLAN).checks["pvalue"].iloc[0]
    assert p == pytest.approx(theirs(frame)["srm"].pvalue, abs=1e-8)  # a two-sided z test is the chi-square test


def test_planned_users_agree():
    frame = table()
    metric = Metric(name="cuped", kind="continuous", role="success", covariate="before")
    ours = plan_experiment(frame, ExperimentPlan(metric=(metric,)), {"cuped": 0.1}).table["users_alone"].iloc[0]
    mean = tt.Mean("cuped", covariate="before", effect_size=0.1, rel_effect_size=None)
    other = mean.solve_power(frame, "n_obs")[0].n_obs
    assert ours == pytest.approx(other, rel=2e-3)  # normal against t quantiles
