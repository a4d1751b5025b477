"""A self-contained HTML page: sections of text, plotly figures and tables, no external resource."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

TEMPLATES = Path(__file__).resolve().parent / "templates"
LONG = 36  # characters of a cell from which its text is wrapped
LOUD = {"pass": "pass", "helps": "pass", "fail": "fail", "harms": "fail", "underpowered": "unsure", "chosen": "pass"}
# Okabe-Ito: distinguishable with every common colour-vision deficiency
BLUE, VERMILION, GREEN, GREY, ORANGE = "#0072B2", "#D55E00", "#009E73", "#7F7F7F", "#E69F00"


@dataclass(frozen=True)
class Section:
    """One section: what it shows (`text`), HTML of figures and tables, the small print (`note`).

    `folded` is shown when asked for: titles and HTML.
    """

    title: str
    text: str = ""
    plots: Sequence[str] = ()
    tables: Sequence[str] = ()
    note: str = ""
    folded: Sequence[tuple[str, str]] = ()


def render_page(
    title: str,
    subtitle: str,
    verdict: str,
    points: Sequence[str],
    certified: bool,
    sections: Sequence[Section],
    facts: Mapping[str, Any],
    definitions: Mapping[str, str],
) -> str:
    """The whole page as one HTML string; plotly's script is inlined once."""
    from jinja2 import Environment, FileSystemLoader
    from plotly.offline import get_plotlyjs

    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True)
    return environment.get_template("report.html").render(
        title=title,
        subtitle=subtitle,
        verdict=verdict,
        points=points,
        certified=certified,
        sections=sections,
        facts=facts,
        definitions=definitions,
        plotly_js=get_plotlyjs(),
    )


def stylesheet() -> str:
    """The one stylesheet of every page."""
    return (TEMPLATES / "style.css").read_text(encoding="utf-8")


def figure_html(figure: Any, name: str) -> str:
    """A plotly figure as a div: house fonts, no tool bar, as wide as its column. `name` makes its id stable."""
    figure.update_layout(
        template="simple_white",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, DejaVu Sans, sans-serif", "size": 13},
        margin={"l": 60, "r": 20, "t": 40, "b": 50},
        height=figure.layout.height or 340,
        xaxis_title_font_size=12,
        yaxis_title_font_size=12,
        legend={"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0},  # on a phone it grows upwards, off the plot
    )
    options = {"displayModeBar": False, "responsive": True}
    return str(figure.to_html(full_html=False, include_plotlyjs=False, config=options, div_id=name))


def table_html(frame: pd.DataFrame, caption: str = "", formats: Mapping[str, str] | None = None) -> str:
    """A frame as an HTML table: escaped, numbers in the format of their column, text aligned left."""
    formats = formats or {}
    text = {c for c in frame.columns if not pd.api.types.is_numeric_dtype(frame[c])}
    head = "".join(f'<th scope="col"{_left(c in text)}>{escape(str(c))}</th>' for c in frame.columns)
    rows = [
        "".join(f"<td{_left(c in text, value)}>{_cell(value, formats.get(str(c)))}</td>" for c, value in row.items())
        for _, row in frame.iterrows()
    ]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _left(is_text: bool, value: Any = "") -> str:
    if str(value) in LOUD:
        return f' class="text {LOUD[str(value)]}"'
    if is_text:
        return ' class="text long"' if len(str(value)) > LONG else ' class="text"'
    return ""


def _cell(value: Any, template: str | None) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return "–"
    return escape(template.format(value) if template and not isinstance(value, str) else str(value))
