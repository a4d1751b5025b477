"""The report's figures: frames of numbers in, HTML of a plotly figure out. Units stand on every axis."""

from __future__ import annotations

from typing import Any

import pandas as pd

from models.page import BLUE, GREEN, GREY, VERMILION, figure_html

POLICY_NAMES = {"send_none": "send none", "send_all": "send all"}


def values_figure(rows: pd.DataFrame, currency: str) -> str:
    """Value of each policy with its interval; `rows` of `models.evaluate`, best known first."""
    import plotly.graph_objects as go

    own = rows.iloc[::-1]
    colours = [BLUE if name == "uplift policy" else GREY for name in own["policy"]]
    names = [POLICY_NAMES.get(name, name) for name in own["policy"]]
    figure = go.Figure(
        go.Scatter(x=own["value"], y=names, mode="markers", marker={"color": colours, "size": 10}, error_x=_bars(own))
    )
    figure.update_layout(xaxis_title=f"{currency} per user and window (95%)", height=90 + 40 * len(own))
    return figure_html(figure, "values")


def gain_figure(curve: pd.DataFrame, share: float, currency: str) -> str:
    """Gain over sending none by share of users messaged, with the band that holds for the whole curve.

    Args:
        curve: `models.curves.gain_curve`, money per user.
        share: that the chosen policy messages.
        currency: as it is to be printed.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    band = {"x": curve["share"], "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
    figure.add_scatter(**band, y=curve["band_upper"], showlegend=False)
    figure.add_scatter(**band, y=curve["band_lower"], fill="tonexty", fillcolor="rgba(0,114,178,.18)", name="95% band")
    figure.add_scatter(x=curve["share"], y=curve["gain"], name="by score", line={"color": BLUE})
    figure.add_scatter(x=curve["share"], y=curve["random"], name="at random", line={"color": GREY, "dash": "dot"})
    figure.add_vline(
        x=share, line_color=VERMILION, line_width=1, annotation_text="chosen", annotation_position="bottom right"
    )
    figure.update_layout(
        xaxis_title="share of users messaged", yaxis_title=f"gain, {currency} per user", xaxis_tickformat=".0%"
    )
    return figure_html(figure, "gain")


def calibration_figure(deciles: pd.DataFrame, currency: str) -> str:
    """Realised against predicted score by decile of the prediction; `models.curves.calibration`, money per user."""
    import plotly.graph_objects as go

    low = float(min(deciles["predicted"].min(), deciles["ci_lower"].min()))
    high = float(max(deciles["predicted"].max(), deciles["ci_upper"].max()))
    figure = go.Figure()
    figure.add_scatter(
        x=[low, high], y=[low, high], mode="lines", name="as predicted", line={"color": GREY, "dash": "dot"}
    )
    bars = _bars(deciles.rename(columns={"realised": "value"}))
    figure.add_scatter(
        x=deciles["predicted"],
        y=deciles["realised"],
        mode="markers",
        name="realised, 95% interval",
        marker={"color": GREEN, "size": 9},
        error_y=bars,
    )
    figure.update_layout(
        xaxis_title=f"predicted score, {currency} per user", yaxis_title=f"realised, {currency} per user"
    )
    return figure_html(figure, "calibration")


def segments_figure(rows: pd.DataFrame, currency: str) -> str:
    """Send-all and the uplift policy against sending none, by segment."""
    import plotly.graph_objects as go

    figure = go.Figure()
    names = rows["segment"].drop_duplicates().tolist()[::-1]
    for policy, colour, offset in (("send_all", VERMILION, 0.12), ("uplift policy", BLUE, -0.12)):
        part = rows[rows["policy"] == policy]
        figure.add_scatter(
            x=part["value"],
            y=[names.index(segment) + offset for segment in part["segment"]],
            mode="markers",
            name=POLICY_NAMES.get(policy, policy),
            marker={"color": colour, "size": 9},
            error_x=_bars(part),
        )
    figure.add_vline(x=0, line_color=GREY, line_width=1)
    figure.update_layout(
        xaxis_title=f"{currency} per user against none (95%)",
        yaxis={"tickvals": list(range(len(names))), "ticktext": names, "range": [-0.5, len(names) - 0.5]},
        height=140 + 45 * len(names),
    )
    return figure_html(figure, "segments")


def drivers_figure(rows: pd.DataFrame, currency: str) -> str:
    """Mean contribution of each feature by group of users; `rows` of `models.explain.drivers`, few features."""
    import plotly.graph_objects as go

    names = rows["feature"].drop_duplicates().tolist()[::-1]
    looks = {"low": (BLUE, "circle-open"), "middle": (GREY, "line-ns-open"), "high": (VERMILION, "diamond")}
    figure = go.Figure()
    by_look = rows.assign(look=rows["group"].where(rows["group"].isin(looks), "a category"))
    for look, part in by_look.groupby("look", sort=False):
        colour, symbol = looks.get(str(look), (GREEN, "square"))
        figure.add_scatter(
            x=part["contribution"],
            y=part["feature"],
            mode="markers",
            name={"low": "lowest third", "middle": "middle", "high": "highest third"}.get(str(look), str(look)),
            marker={"color": colour, "symbol": symbol, "size": 10, "line": {"width": 2, "color": colour}},
            text=part["value"] + ": " + part["users"].astype(str) + " users",
            hovertemplate="%{text}, %{x:+.4f} " + currency + "<extra></extra>",
        )
    figure.add_vline(x=0, line_color=GREY, line_width=1)
    figure.update_layout(
        xaxis_title=f"contribution to the score, {currency} per user",
        yaxis={"categoryorder": "array", "categoryarray": names},
        height=140 + 30 * len(names),
    )
    return figure_html(figure, "drivers")


def _bars(rows: pd.DataFrame) -> dict[str, Any]:
    up, down = rows["ci_upper"] - rows["value"], rows["value"] - rows["ci_lower"]
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down}
