"""Tactful's own metrics inside Evidently: computed by us on every row, drawn and kept over the weeks by Evidently.

The values travel beside the data, in two tables of `additional_data`: `recorded` (key, now, reference) and `deciles`.
They are not the metrics' parameters, because a dashboard draws one line per distinct set of parameters.

Imported only by `monitoring.evidently_report`: importing Evidently takes seconds. Its `core` and `legacy` modules are
not a stable surface; pyproject.toml pins the minor version.
"""

# mypy: disable-error-code="misc"
# (Evidently is untyped, so every base class here is Any)
from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go
from evidently.core.metric_types import (
    DataframeCalculation,
    DataframeMetric,
    SingleValueCalculation,
    SingleValueMetric,
)
from evidently.legacy.renderers.html_widgets import plotly_figure

BLUE, VERMILION = "#0072B2", "#D55E00"


class ExitCode(SingleValueMetric):
    """The verdict: 0 fine or look, 10 retrain, 20 the data is broken."""


class ShareEligible(SingleValueMetric):
    """Share of users whose score exceeds the policy's threshold."""


class MeanUplift(SingleValueMetric):
    """Mean predicted uplift of one arm and outcome, or of the score (`column`)."""

    column: str


class RealisedUplift(SingleValueMetric):
    """Mean uplift measured on matured decisions; the reference is what was promised for the same users."""

    test: str


class CalibrationP(SingleValueMetric):
    """P value of realised against promised uplift.

    Its test is passed as `tests=`: Evidently ignores a metric's default test where there is a reference.
    """

    test: str


class RealisedByDecile(DataframeMetric):
    """Promised and realised uplift by decile of the score."""

    currency: str = "EUR"


def _recorded(calculation: Any, context: Any, key: str) -> Any:
    """Current and reference value of one key, as Evidently's results."""
    row = context.additional_data["recorded"].as_dataframe().set_index("key").loc[key]
    result = calculation.result
    return result(float(row["now"])), None if pd.isna(row["reference"]) else result(float(row["reference"]))


class ExitCodeCalculation(SingleValueCalculation[ExitCode]):
    """Looks the recorded value up."""

    def calculate(self, context: Any, current_data: Any, reference_data: Any) -> Any:
        """The exit code; there is no reference."""
        return _recorded(self, context, "exit_code")

    def display_name(self) -> str:
        """Title of the widget."""
        return "Verdict: 0 fine or look, 10 retrain, 20 data broken"


class ShareEligibleCalculation(SingleValueCalculation[ShareEligible]):
    """Looks the recorded values up."""

    def calculate(self, context: Any, current_data: Any, reference_data: Any) -> Any:
        """Share of the week and of the reference."""
        return _recorded(self, context, "share_eligible")

    def display_name(self) -> str:
        """Title of the widget."""
        return "Share eligible"


class MeanUpliftCalculation(SingleValueCalculation[MeanUplift]):
    """Looks the recorded values up."""

    def calculate(self, context: Any, current_data: Any, reference_data: Any) -> Any:
        """Mean of the week and of the reference."""
        return _recorded(self, context, self.metric.column)

    def display_name(self) -> str:
        """Title of the widget."""
        return f"Mean of {self.metric.column}"


class RealisedUpliftCalculation(SingleValueCalculation[RealisedUplift]):
    """Looks the recorded values up."""

    def calculate(self, context: Any, current_data: Any, reference_data: Any) -> Any:
        """Realised and promised uplift."""
        return _recorded(self, context, f"uplift:{self.metric.test}")

    def display_name(self) -> str:
        """Title of the widget."""
        return f"Uplift of {self.metric.test}: current is realised, reference is promised"


class CalibrationPCalculation(SingleValueCalculation[CalibrationP]):
    """Looks the recorded value up."""

    def calculate(self, context: Any, current_data: Any, reference_data: Any) -> Any:
        """The p value; there is no reference."""
        return _recorded(self, context, f"p:{self.metric.test}")

    def display_name(self) -> str:
        """Title of the widget."""
        return f"p value that realised = promised, {self.metric.test}"


class RealisedByDecileCalculation(DataframeCalculation[RealisedByDecile]):
    """Table and plot of predicted and realised uplift by decile."""

    def calculate(self, context: Any, current_data: Any, reference_data: Any) -> Any:
        """The table, with its plot as widget."""
        table = context.additional_data["deciles"].as_dataframe()
        result = self.result(table)
        result.widget = [plotly_figure(title=self.display_name(), figure=_decile_figure(table, self.metric.currency))]
        return result, None

    def display_name(self) -> str:
        """Title of the widget."""
        return f"Weighted uplift by decile of the score, {self.metric.currency} per user"


def _decile_figure(table: pd.DataFrame, currency: str) -> go.Figure:
    """Promised uplift as a line, realised with 95% intervals."""
    figure = go.Figure()
    for arm, rows in table.groupby("arm", sort=False):
        figure.add_scatter(x=rows["decile"], y=rows["predicted"], name=f"{arm}: predicted", line_color=BLUE)
        error = {"type": "data", "array": 1.96 * rows["se"]}
        style = {"mode": "markers", "marker_color": VERMILION, "error_y": error}
        figure.add_scatter(x=rows["decile"], y=rows["realised"], name=f"{arm}: realised, 95% interval", **style)
    unit = f"{currency} per user"
    figure.update_layout(xaxis_title="decile of predicted uplift", yaxis_title=unit, template="simple_white")
    return figure
