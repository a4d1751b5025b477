"""One page about a rehearsal: true values week by week, and what the loop did."""

from __future__ import annotations

from html import escape

from models.page import stylesheet
from monitoring.decide import in_words
from monitoring.plots import values_plot
from monitoring.summary import html_table
from rehearsal.script import POLICIES, Result, Week, experiment_lines, experiment_rows, words

NAMES = {"send_all": "all", "send_none": "none", "frozen": "frozen", "oracle": "oracle", "policy": "policy"}

_STYLE = (
    "svg { display: block; margin: auto; max-width: 760px; } td:nth-child(2), th:nth-child(2) { text-align: left; }"
)


def page(result: Result) -> str:
    """The page, self-contained: plot, table, and the reasons of every alarm."""
    script, title = result.script, f"Rehearsal: {result.script.name}"
    values = {name: [getattr(w, f"value_{key}") for w in result.weeks] for key, name in NAMES.items()}
    places = [k for k, w in enumerate(result.weeks) if w.promoted or w.fallback]
    plot = values_plot(
        values, [w.action for w in result.weeks], places, script.drift_week - 1, f"{result.currency} per user"
    )
    gains = ", ".join(f"{result.gain(key):+.3f} over {NAMES[key]}" for key in POLICIES[1:])
    begins = f"Drift {script.drift} begins in week {script.drift_week} (dashed)." if script.drift else "No drift."
    table = html_table(["week", "what happened", *NAMES.values()], [_row(w) for w in result.weeks])
    reasons = "".join(
        f"<li>week {w.week}: {escape('; '.join(in_words(reason, result.currency) for reason in w.alarm))}</li>"
        for w in result.weeks
        if w.action in ("retrain", "stop") or w.fallback
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{stylesheet()}{_STYLE}</style></head><body><main>
<h1>{escape(title)}</h1>
<p class="lead">{sum(w.n for w in result.weeks):,} decisions. {escape(begins)} Policy, mean over all: {gains}.</p>
<figure><figcaption>True value, {escape(result.currency)} per user and window. Squares: green fine, orange look,
red retrain, purple stop</figcaption>{plot}</figure>
<h2>Week by week</h2><div class="scroll" tabindex="0" role="region" aria-label="Week by week">{table}</div>
{_experiment(result)}
<h2>Why</h2><ul>{reasons or "<li>no alarm</li>"}</ul>
<p class="note">True values come from the simulator: each week's users, in the state they reached under the service's
own decisions. Policy: the champion that served; frozen: the first model; all and none: everybody or nobody gets a
message; oracle: whoever gains.</p>
</main></body></html>
"""


def _experiment(result: Result) -> str:
    lines = experiment_lines(result.experiment)
    if not lines:
        return ""
    rows = experiment_rows(result.experiment)
    table = html_table(["metric", "forecast", "live", "true effect"], rows) if rows else ""
    said = "".join(f"<li>{escape(line)}</li>" for line in lines[1:])
    return f"""<h2>Experiment</h2><p>{escape(lines[0])}</p><ul>{said}</ul>
<div class="scroll" tabindex="0" role="region" aria-label="Effects of the experiment">{table}</div>"""


def _row(week: Week) -> list[str]:
    return [str(week.week), words(week), *(f"{getattr(week, f'value_{key}'):.3f}" for key in NAMES)]
