"""Evidently's weekly report, and a workspace that shows the weeks at a glance (`make ui`).

Decisions never come from here: Evidently sees a sample and draws. Traps guarded against: an outlier in the reference
blinds its Wasserstein distance (values are clipped to the profile's range), a column without any value kills the whole
report (left out), columns it does not find are skipped silently (named explicitly), tests nobody chose (`include_tests`
stays off, ours are passed), and telemetry (DO_NOT_TRACK).
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from campaign import Campaign
from monitoring.decide import Decision, Statistics, week_name
from monitoring.profile import Profile, prediction_names

SAMPLE_ROWS = 20_000
NAMESPACE = uuid.UUID("8f2b6c1e-52a1-4c39-9d1c-7b6f0a3f5e11")  # ids made from names: a rerun replaces, never adds


def sample(frame: pd.DataFrame, rows: int = SAMPLE_ROWS, seed: int = 0) -> pd.DataFrame:
    """At most `rows` rows, drawn with a seed, in their order."""
    if len(frame) <= rows:
        return frame
    chosen = np.sort(np.random.default_rng(seed).choice(len(frame), rows, replace=False))
    return frame.iloc[chosen]


def build_report(
    decision: Decision,
    statistics: Statistics,
    week_frame: pd.DataFrame,
    reference: pd.DataFrame,
    profile: Profile,
    campaign: Campaign,
) -> Any:
    """Run Evidently on samples of the week and of the reference; returns its run.

    Args:
        decision: verdict of the week.
        statistics: drift must have been measured.
        week_frame: decisions of the week with features and predictions.
        reference: sample of the reference rows with the same columns.
        profile: gives each column's kind and the range values are clipped to.
        campaign: thresholds.
    """
    os.environ.setdefault("DO_NOT_TRACK", "1")
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    names = [*(n for n, c in profile["columns"].items() if c["role"] != "prediction"), *prediction_names(campaign)]
    sides = [_drawable(sample(frame), profile, names) for frame in (week_frame, reference)]
    names = [name for name in names if all(side[name].notna().any() for side in sides)]
    kinds = {kind: [n for n in names if profile["columns"][n]["kind"] == kind] for kind in ("numeric", "string")}
    definition = DataDefinition(numerical_columns=kinds["numeric"], categorical_columns=kinds["string"])
    current, past = (Dataset.from_pandas(side[names], data_definition=definition) for side in sides)
    limit = campaign.monitoring.drift_effect
    preset = DataDriftPreset(
        columns=names,
        drift_share=campaign.monitoring.drift_share,
        num_method="wasserstein",
        num_threshold=limit,
        cat_method="psi",
        cat_threshold=limit**2,  # sqrt(PSI) is our effect size of strings
        include_tests=False,
    )
    report = Report([*own_metrics(statistics, campaign), preset])
    beside = {"recorded": recorded(decision, statistics, week_frame, profile, campaign)}
    if statistics.realised:
        beside["deciles"] = pd.DataFrame([dict(row) for row in statistics.realised.deciles])
    return report.run(current, past, beside, timestamp=_midnight(decision.week), name=week_name(decision.week))


def stopped_report(decision: Decision) -> Any:
    """The run of a week whose data is broken: its verdict alone, so that the dashboard shows that week too."""
    from evidently import Dataset, Report

    from monitoring import evidently_metrics as m

    verdict = pd.DataFrame([("exit_code", decision.exit_code, np.nan)], columns=["key", "now", "reference"])
    run = Report([m.ExitCode()])
    beside = {"recorded": verdict}
    data = Dataset.from_pandas(verdict[["now"]])
    return run.run(data, None, beside, timestamp=_midnight(decision.week), name=week_name(decision.week))


def own_metrics(statistics: Statistics, campaign: Campaign) -> list[Any]:
    """Our metrics, most important first."""
    from evidently.tests import gte

    from monitoring import evidently_metrics as m

    tests = statistics.realised.tests if statistics.realised else ()
    found: list[Any] = [m.ExitCode(), *([m.RealisedByDecile(currency=campaign.currency)] if tests else [])]
    for test in tests:
        name = f"{test.arm}/{test.outcome}"
        found += [m.RealisedUplift(test=name), m.CalibrationP(test=name, tests=[gte(test.alpha)])]
    return [*found, m.ShareEligible(), *(m.MeanUplift(column=name) for name in prediction_names(campaign))]


def recorded(
    decision: Decision, statistics: Statistics, week_frame: pd.DataFrame, profile: Profile, campaign: Campaign
) -> pd.DataFrame:
    """Values of our metrics, measured on every row: columns key, now, reference (NaN where there is none)."""
    rows: list[tuple[str, float, float]] = [("exit_code", decision.exit_code, np.nan)]
    if statistics.drift:
        rows.append(("share_eligible", statistics.drift.share_eligible, statistics.drift.share_reference))
    for name in prediction_names(campaign):
        rows.append((name, float(week_frame[name].mean()), profile["columns"][name]["mean"]))
    for test in statistics.realised.tests if statistics.realised else ():
        name = f"{test.arm}/{test.outcome}"
        rows += [(f"uplift:{name}", test.realised, test.predicted), (f"p:{name}", test.p, np.nan)]
    return pd.DataFrame(rows, columns=["key", "now", "reference"])


def _drawable(frame: pd.DataFrame, profile: Profile, names: list[str]) -> pd.DataFrame:
    """Columns as Evidently needs them: numbers within the reference's clipped range, strings without None."""
    columns: dict[str, pd.Series] = {}
    for name in names:
        column: Mapping[str, Any] = profile["columns"][name]
        if column["kind"] == "numeric":
            columns[name] = frame[name].clip(column["edges"][0], column["edges"][-1])
        else:
            columns[name] = frame[name].astype(object).where(frame[name].notna(), "missing")
    return pd.DataFrame(columns)


def save_html(run: Any, path: Path) -> None:
    """Write the report as one self-contained page."""
    run.save_html(str(path))


def update_workspace(folder: Path, run: Any, week: date, campaign: Campaign) -> None:
    """Put the week's run and the dashboard into the workspace; doing it again replaces both."""
    from evidently.sdk.models import ProjectModel
    from evidently.ui.workspace import Workspace

    project_id = uuid.uuid5(NAMESPACE, campaign.name)
    workspace = Workspace.create(str(folder))
    if workspace.get_project(project_id) is None:
        about = "Weekly monitoring of uplift: what moved, and what the messages really did."
        workspace.add_project(ProjectModel(id=project_id, name=f"Tactful: {campaign.name}", description=about))
    # Workspace.add_run gives every run a new id; with an id made from the week a rerun replaces its run
    workspace.state.write_snapshot(project_id, uuid.uuid5(project_id, week_name(week)), run.to_snapshot_model())
    workspace.save_dashboard(project_id, dashboard(project_id, campaign))


def dashboard(project_id: uuid.UUID, campaign: Campaign) -> Any:
    """The panels, with ids made from their titles."""
    from evidently.sdk.models import DashboardModel, DashboardTabModel, PanelMetric
    from evidently.sdk.panels import line_plot_panel

    from monitoring import evidently_metrics as m

    def line(title: str, metric: str, series: Mapping[str, Mapping[str, str]], size: str = "half") -> Any:
        values = [PanelMetric(metric=metric, legend=legend, metric_labels=labels) for legend, labels in series.items()]
        panel = line_plot_panel(title=title, values=values, size=size)
        panel.id = uuid.uuid5(project_id, title)
        return panel

    arms, outcomes = campaign.arm_names[1:], campaign.outcome_names
    tests = {f"{arm}/{outcome}": {"test": f"{arm}/{outcome}"} for arm in arms for outcome in ("weighted", *outcomes)}
    weighted = {name: labels for name, labels in tests.items() if name.endswith("/weighted")}
    panels = [
        line("Verdict: 0 fine or look, 10 retrain, 20 data broken", m.ExitCode.__get_type__(), {"exit code": {}}),
        line(f"Realised uplift, {campaign.currency} per user", m.RealisedUplift.__get_type__(), weighted),
        line("Realised = promised: p value", m.CalibrationP.__get_type__(), tests),
        line("Share of users eligible", m.ShareEligible.__get_type__(), {"eligible": {}}),
        line("Share of columns that drift (sample)", "DriftedColumnsCount", {"share": {"value_type": "share"}}),
        line(f"Mean score, {campaign.currency} per user", m.MeanUplift.__get_type__(), {"score": {"column": "score"}}),
    ]
    for outcome in outcomes:
        series = {arm: {"column": f"uplift_{arm}_{outcome}"} for arm in arms}
        panels.append(line(f"Mean predicted uplift: {outcome}", m.MeanUplift.__get_type__(), series))
    tab = DashboardTabModel(
        id=uuid.uuid5(project_id, "tab"), title="Weeks at a glance", panels=[panel.id for panel in panels]
    )
    return DashboardModel(tabs=[tab], panels=panels)


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
