"""The page for the Monday meeting: verdict, reasons in words, three plots, and the figures behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from campaign import Campaign
from models.page import stylesheet
from monitoring.decide import VERDICTS, Decision, Statistics, week_name
from monitoring.plots import decile_plot, drift_plot, weeks_plot

WEEKS_SHOWN = 12


def summary_html(
    decision: Decision, statistics: Statistics, history: Sequence[Mapping[str, Any]], campaign: Campaign
) -> str:
    """The whole page, self-contained.

    Args:
        decision: of the week, with its record.
        statistics: of the week.
        history: earlier decision.json contents, oldest first.
        campaign: names and thresholds.
    """
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in decision.in_words())
    plots = "".join(
        f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>"
        for title, svg in _plots(decision, statistics, history, campaign)
    )
    tables = "".join(
        f'<h2>{escape(title)}</h2><div class="scroll" tabindex="0" role="region" aria-label="{escape(title)}">'
        f"{html_table(head, rows)}</div>"
        for title, head, rows in _tables(statistics, campaign.currency)
        if rows
    )
    links = '<a href="report.html">Evidently report</a> · ' if decision.record.get("report") else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(_title(decision, campaign))}</title><style>{stylesheet()}</style></head><body><main>
<h1>{escape(_title(decision, campaign))}</h1>
<p class="lead">Champion {escape(decision.champion or "none")} · data until {decision.record["decided_at"][:10]}</p>
<div class="verdict {decision.action}">
<strong>{escape(_verdict(decision))}</strong><ul>{reasons}</ul></div>
<div class="plots">{plots}</div>
{tables}
<p class="note">{escape(_note(decision, statistics, campaign.currency))}</p>
<p class="note">{links}<a href="decision.json">decision.json</a> · <a href="stats.json">stats.json</a> ·
all weeks: <code>make ui</code></p>
</main></body></html>
"""


def summary_markdown(decision: Decision, statistics: Statistics, campaign: Campaign) -> str:
    """The same without plots, for a chat or a mail."""
    lines = [f"# {_title(decision, campaign)}", "", f"**{_verdict(decision)}**", ""]
    lines += [f"- {markdown_text(reason)}" for reason in decision.in_words()]
    for title, head, rows in _tables(statistics, campaign.currency):
        if rows:
            lines += ["", f"## {title}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
            lines += ["| " + " | ".join(map(markdown_text, row)) + " |" for row in rows]
    return "\n".join([*lines, "", _note(decision, statistics, campaign.currency), ""])


def markdown_text(text: str) -> str:
    """Text as it is, in a list or a table: a category may hold bars, HTML or line breaks."""
    return " ".join(escape(text, quote=False).replace("|", "\\|").split())


def _title(decision: Decision, campaign: Campaign) -> str:
    return f"{campaign.name}: week {week_name(decision.week)}"


def _verdict(decision: Decision) -> str:
    verdict = VERDICTS[decision.action]
    return verdict[0].upper() + verdict[1:] + (". Fall back now" if decision.fallback else "") + "."


def _plots(
    decision: Decision, statistics: Statistics, history: Sequence[Mapping[str, Any]], campaign: Campaign
) -> list[tuple[str, str]]:
    weeks = [*history, decision.as_dict()][-WEEKS_SHOWN:]
    money = f"{campaign.currency} per user"
    plots = [(f"Weeks at a glance: uplift, {money} (dash promised, dot realised)", weeks_plot(weeks))]
    if statistics.realised:
        title = f"Uplift by decile, {money} (line predicted, dot realised)"
        plots.append((title, decile_plot(statistics.realised.deciles, money)))
    if statistics.drift:
        columns = sorted(statistics.drift.columns, key=lambda c: -c.effect)
        plots.append(("What moved most since training", drift_plot(columns, campaign.monitoring.drift_effect)))
    return plots


Table = tuple[str, list[str], list[list[str]]]


def _tables(statistics: Statistics, currency: str) -> list[Table]:
    """Title, head and rows of each table."""
    failed = [[check.name, check.detail] for check in statistics.failed]
    tables: list[Table] = [("Failed data checks", ["check", "what was found"], failed)]
    if statistics.realised:
        head = ["uplift of", "promised", "realised", "± 95%", "slope", "± 95%", "p", "would find half"]
        tables.append((f"Realised uplift of {statistics.realised.n:,} matured decisions", head, _tests(statistics)))
        head = ["segment", "decisions", "predicted", "realised", "± 95%"]
        rows = [
            [
                f"{s['segment']} ({s['arm']})",
                f"{s['n']:,}",
                f"{s['predicted']:+.3f}",
                f"{s['realised']:+.3f}",
                f"{1.96 * s['se']:.3f}",
            ]
            for s in statistics.realised.segments
        ]
        tables.append((f"By segment, {currency} per user", head, rows))
    if statistics.drift:
        moved = [c for c in sorted(statistics.drift.columns, key=lambda c: -c.effect) if c.warn or c.new]
        rows = [
            [c.name, f"{c.effect:.2f}", f"{c.shift:+.2f}" if c.shift else "", f"{c.psi:.3f}", _news(c.new) or c.role]
            for c in moved[:12]
        ]
        tables.append(("Moved since training", ["column", "effect, sd", "mean, sd", "PSI", "note"], rows))
    return tables


def _tests(statistics: Statistics) -> list[list[str]]:
    tests = statistics.realised.tests if statistics.realised else ()
    return [
        [
            f"{t.arm} on {t.outcome}",
            f"{t.predicted:+.4f}",
            f"{t.realised:+.4f}",
            f"{1.96 * t.se:.4f}",
            f"{t.slope:.2f}",
            f"{1.96 * t.slope_se:.2f}",
            f"{t.p:.2g}",
            f"{t.power_half:.0%}",
        ]
        for t in tests
    ]


def _news(new: Mapping[str, float]) -> str:
    return ", ".join(f"new: {name} {share:.1%}" for name, share in list(new.items())[:3])


def _note(decision: Decision, statistics: Statistics, currency: str) -> str:
    if statistics.failed:
        return (
            "No drift or uplift is judged on broken data, and nothing is trained on it. Mend the data, then run "
            f"`tactful monitor --week {decision.week}`; where the change is real, docs/monitoring.md says how it "
            "becomes the reference."
        )
    realised, drift = statistics.realised, statistics.drift
    words = []
    if realised:
        interval = f"{realised.gain:+.3f} ± {1.96 * realised.gain_se:.3f}"
        weeks = f"{realised.weeks[0]} to {realised.weeks[-1]}"
        words.append("Promised: what the champion predicts, corrected by what it was off by at training.")
        words.append(
            f"Matured decisions of {weeks}: the policy is worth {interval} {currency} per user over sending nothing."
        )
    else:
        words.append("Too few matured decisions to say what the messages did.")
    if drift:
        words.append(f"Eligible: {drift.share_eligible:.1%} of users, {drift.share_reference:.1%} at training.")
    return " ".join(words)


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Head and rows as an escaped HTML table."""
    cells = "".join(f'<th scope="col">{escape(h)}</th>' for h in head)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def _cell(text: str) -> str:
    long = ' class="long"' if len(text) > 40 else ""
    return f"<td{long}>{escape(text)}</td>"
