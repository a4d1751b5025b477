"""A self-contained HTML page: sections of text, plotly figures and tables, no external resource."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

TEMPLATES = Path(__file__).resolve().parent / "templates"
# Okabe-Ito: distinguishable with every common colour-vision deficiency
BLUE, VERMILION, GREEN, GREY, ORANGE = "#0072B2", "#D55E00", "#009E73", "#7F7F7F", "#E69F00"


@dataclass(frozen=True)
class Section:
    """One section: what it shows (`text`), HTML of figures and tables, and the small print (`note`)."""

    title: str
    text: str = ""
    plots: Sequence[str] = ()
    tables: Sequence[str] = ()
    note: str = ""
    pre: str = ""


def render_page(
    title: str,
    subtitle: str,
    verdict: str,
    explanation: str,
    certified: bool,
    sections: Sequence[Section],
    facts: Mapping[str, Any],
) -> str:
    """The whole page as one HTML string; plotly's script is inlined once."""
    from jinja2 import Environment, FileSystemLoader
    from plotly.offline import get_plotlyjs

    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True)
    return environment.get_template("report.html").render(
        title=title,
        subtitle=subtitle,
        verdict=verdict,
        explanation=explanation,
        certified=certified,
        sections=sections,
        facts=facts,
        plotly_js=get_plotlyjs(),
    )


def figure_html(figure: Any, name: str) -> str:
    """A plotly figure as a div: house fonts, no tool bar, as wide as its column. `name` makes its id stable."""
    figure.update_layout(
        template="simple_white",
        font={"family": "system-ui, DejaVu Sans, sans-serif", "size": 13},
        margin={"l": 60, "r": 20, "t": 40, "b": 50},
        height=figure.layout.height or 340,
        legend={"orientation": "h", "y": 1.12, "x": 0},
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
    if value in ("pass", "fail"):
        return f' class="text {value}"'
    return ' class="text"' if is_text else ""


def _cell(value: Any, template: str | None) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return "–"
    return escape(template.format(value) if template and not isinstance(value, str) else str(value))
