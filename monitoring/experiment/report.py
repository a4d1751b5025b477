"""The read-out for people: Markdown, and one HTML page without external resources, with a forest plot per metric."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from html import escape
from typing import Any

import pandas as pd

from models.page import stylesheet, table_html
from monitoring.experiment.decide import amount, amount_with_interval, level
from monitoring.experiment.read import Readout

WORDS = {"ship": "Ship", "hold": "Hold", "rollback": "Roll back"}
STATUS = {
    "improved": "improved",
    "worse": "significantly worse",
    "non_inferior": "non-inferior",
    "not_shown": "not shown",
    "insufficient": "insufficient data",
}


def markdown(readout: Readout, name: str, compared: pd.DataFrame | None = None) -> str:
    """The read-out as Markdown.

    Args:
        readout: from `read_experiment`.
        name: of the experiment.
        compared: forecast against outcome, from `forecast_against_outcome`; left out when None.
    """
    shipped = f" {readout.variant}" if readout.variant else ""
    lines = [f"# Experiment {name}: {WORDS[readout.decision].lower()}{shipped}", "", _progress(readout), ""]
    said = [*readout.reasons, *(f"note: {note}" for note in readout.notes)]
    lines += [f"- {' '.join(sentence.split())}" for sentence in said]  # a name may hold a line break
    lines += ["", "## Effects", "", *_markdown_table(_effects_for_people(readout.table))]
    lines += ["", "## Quality checks", "", *_markdown_table(_checks_for_people(readout.checks))]
    if compared is not None:
        lines += ["", "## Forecast against outcome", "", *_markdown_table(_compared_for_people(compared, readout))]
    return "\n".join(lines) + "\n"


def html_page(readout: Readout, name: str, compared: pd.DataFrame | None = None) -> str:
    """The read-out as one self-contained HTML page; arguments as for `markdown`."""
    shipped = f": {readout.variant}" if readout.variant else ""
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in readout.reasons)
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in readout.notes)
    sections = [
        f"<h1>Experiment {escape(name)}</h1>",
        f'<p class="lead">{escape(_progress(readout))}</p>',
        f'<div class="verdict {readout.decision}" role="status"><strong>{WORDS[readout.decision]}{escape(shipped)}'
        f"</strong><ul>{reasons}</ul></div>{notes}",
        "<h2>Effects by metric and segment</h2>",
        '<p class="note">Treatment minus control. Thick mark: estimate; line: the interval the decision is read from '
        "(success metrics two-sided, guardrails the interval whose bad end is the one-sided bound); solid line: no "
        "effect; dashed line: the guardrail's margin, which the interval must not cross.</p>",
        *(_forest(rows) for _, rows in readout.table.groupby(["variant", "metric"], sort=False)),
        "<h2>Quality checks</h2>",
        _scrolled(_checks_for_people(readout.checks), "One failed check, and nothing ships."),
    ]
    if compared is not None:
        told = _compared_for_people(compared, readout)
        sections += [
            "<h2>Forecast against outcome</h2>",
            _scrolled(told, "95% intervals; difference = live - forecast."),
        ]
    every = _scrolled(_effects_for_people(readout.table), "Means and effects are CUPED-adjusted where method is cuped.")
    sections.append(f"<h2>All numbers</h2><details><summary>Show the table</summary>{every}</details>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Experiment {escape(name)}</title><style>{stylesheet()}</style></head>\n<body><main>"
        + "\n".join(sections)
        + "</main></body></html>\n"
    )


def _progress(readout: Readout) -> str:
    look = readout.look
    of = f" of {look.planned_users:,} planned" if look.planned_users else ""
    at = f", look {look.number} of {look.looks}" if look.looks > 1 and look.number else ""
    shares = ", ".join(f"{v} {s:.0%}" for v, s in zip(readout.plan.variants, readout.plan.variant_shares, strict=True))
    return f"{look.users:,} users{of}{at}; variants {shares}; alpha {readout.plan.alpha:g}."


def _forest(rows: pd.DataFrame) -> str:
    """All segments of one metric and candidate on one scale."""
    first = rows.iloc[0]
    finite = rows[["ci_lower", "ci_upper"]].to_numpy(dtype=float)
    bad = -1 if first["direction"] == "higher" else 1
    margins = bad * rows["margin"].fillna(0.0)
    low = min(0.0, float(pd.Series(finite[:, 0]).min()), float(margins.min()))
    high = max(0.0, float(pd.Series(finite[:, 1]).max()), float(margins.max()))
    pad = 0.04 * (high - low) or 1.0
    low, high = low - pad, high + pad
    role = f"{first['role']}, {first['direction']} is better"
    title = f"<h3>{escape(str(first['metric']))} <small>{escape(str(first['variant']))}, {role}</small></h3>"
    body = "".join(_forest_row(row, low, high) for row in rows.to_dict("records"))
    ends = [amount(str(first["kind"]), end) for end in (low, high)]
    scale = f'<span class="axis"><span>{ends[0]}</span><span>{ends[1]}</span></span>'
    axis = f'<div class="row scale" aria-hidden="true"><span></span>{scale}<span></span></div>'
    return f"<section>{title}{axis}{body}</section>"


def _forest_row(row: Mapping[Hashable, Any], low: float, high: float) -> str:
    label = escape(row["segment"] or "everybody")
    kind = row["kind"]
    said = amount_with_interval(kind, row["effect_size"], row["ci_lower"], row["ci_upper"])
    status = _status(row)
    tone = "bad" if row["alarm"] or row["status"] == "worse" else ""
    tone = "good" if row["status"] in ("improved", "non_inferior") else tone
    note = f'<em class="{tone}">{status}</em>' if status else ""
    return (
        f'<div class="row{"" if row["segment"] else " all"}"><span>{label}</span>{_bar(row, low, high, label)}'
        f'<span class="said">{said}{note}</span></div>'
    )


def _status(row: Mapping[Hashable, Any]) -> str:
    if row["role"] == "success" and row["segment"] and row["status"] != "insufficient":
        return ""  # segments of success metrics are told, not tested
    return "deterioration alarm" if row["alarm"] else STATUS[row["status"]]


def _bar(row: Mapping[Hashable, Any], low: float, high: float, label: str) -> str:
    def line(kind: str, x1: float, x2: float, y1: int, y2: int) -> str:
        a, b = (100 * (x - low) / (high - low) for x in (x1, x2))
        return f'<line class="{kind}" x1="{a:.2f}" x2="{b:.2f}" y1="{y1}" y2="{y2}"/>'

    parts = [line("zero", 0.0, 0.0, 0, 20)]
    if row["role"] == "guardrail":
        edge = -row["margin"] if row["direction"] == "higher" else row["margin"]
        parts.append(line("margin", edge, edge, 0, 20))
    if row["ci_lower"] == row["ci_lower"]:
        parts.append(line("ci", row["ci_lower"], row["ci_upper"], 10, 10))
        parts.append(line("point", row["effect_size"], row["effect_size"], 5, 15))
    drawn = "".join(parts)
    return f'<svg viewBox="0 0 100 20" preserveAspectRatio="none" role="img" aria-label="{label}">{drawn}</svg>'


def _effects_for_people(table: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for row in table.to_dict("records"):
        kind = row["kind"]
        margin = amount(kind, row["margin"], signed=False) if row["role"] == "guardrail" else ""
        rows.append(
            {
                "variant": row["variant"],
                "metric": row["metric"],
                "segment": row["segment"] or "everybody",
                "control": _mean(kind, row["mean_control"], row["n_control"]),
                "treatment": _mean(kind, row["mean_treatment"], row["n_treatment"]),
                "effect": amount_with_interval(kind, row["effect_size"], row["ci_lower"], row["ci_upper"]),
                "level": level(row["ci_level"]),
                "margin": margin,
                "p": "" if row["pvalue"] != row["pvalue"] else f"{row['pvalue']:.2g}",
                "method": row["method"],
                "result": _status(row),
            }
        )
    return pd.DataFrame(rows)


def _mean(kind: str, mean: float, n: int) -> str:
    if mean != mean:
        return f"no users (n {n})"
    return f"{100 * mean:.2f}% (n {n})" if kind == "binary" else f"{mean:.4g} (n {n})"


def _checks_for_people(checks: pd.DataFrame) -> pd.DataFrame:
    result = ["pass" if passed else "fail" for passed in checks["passed"]]
    return pd.DataFrame(
        {
            "check": checks["check"].str.replace("_", " "),
            "scope": checks["scope"].replace("", "everybody"),
            "result": result,
            "detail": checks["detail"],
        }
    )


def _compared_for_people(compared: pd.DataFrame, readout: Readout) -> pd.DataFrame:
    kinds = {m.name: m.kind for m in readout.plan.metric}
    rows = []
    for row in compared.to_dict("records"):
        kind = kinds[row["metric"]]
        told = {"variant": row["variant"], "metric": row["metric"]}
        for key, low, high in (
            ("forecast", "forecast_lower", "forecast_upper"),
            ("live", "live_lower", "live_upper"),
            ("difference", "ci_lower", "ci_upper"),
        ):
            told[key] = amount_with_interval(kind, row[key], row[low], row[high])
        told["agree"] = "yes" if row["covered"] else "no"
        rows.append(told)
    return pd.DataFrame(rows)


def _scrolled(frame: pd.DataFrame, caption: str) -> str:
    region = f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
    return f"{region}{table_html(frame, caption)}</div>"


def _markdown_table(frame: pd.DataFrame) -> list[str]:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"

    rows = [line([str(value) for value in row]) for row in frame.itertuples(index=False)]
    return [line(list(map(str, frame.columns))), line(["---"] * len(frame.columns)), *rows]
