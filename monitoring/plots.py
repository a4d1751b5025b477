"""Three small plots as inline SVG: no script, no external resource, sharp in a mail and readable on a phone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from monitoring.drift import ColumnDrift

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 14, 34
# Okabe-Ito: distinguishable with every common colour-vision deficiency
BLUE, VERMILION, GREEN, ORANGE, GREY, PURPLE = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#7F7F7F", "#CC79A7"
ACTION_COLOURS = {"none": GREEN, "warn": ORANGE, "retrain": VERMILION, "stop": PURPLE}
LINE_COLOURS = (GREY, ORANGE, "#56B4E9", GREEN, BLUE)
ARM_COLOURS = (VERMILION, GREEN, PURPLE, ORANGE)


def decile_plot(deciles: Sequence[Mapping[str, Any]], unit: str) -> str:
    """Promised (line) and realised (dot, 95% interval) weighted uplift by decile of each arm's predicted uplift."""
    low = min(min(d["predicted"], d["realised"] - 1.96 * d["se"]) for d in deciles)
    high = max(max(d["predicted"], d["realised"] + 1.96 * d["se"]) for d in deciles)
    x, y = _Scale(0.5, 10.5, LEFT, WIDTH - RIGHT), _Scale(min(low, 0), max(high, 0), HEIGHT - BOTTOM, TOP)
    parts = [*_y_axis(min(low, 0), max(high, 0), y), *(_text(x(k), HEIGHT - 18, str(k)) for k in range(1, 11))]
    arms = list(dict.fromkeys(d["arm"] for d in deciles))
    for i, arm in enumerate(arms):
        rows = [d for d in deciles if d["arm"] == arm]
        move, colour = 5 * (i - (len(arms) - 1) / 2), ARM_COLOURS[i % len(ARM_COLOURS)]
        parts.append(_path([(x(d["decile"]), y(d["predicted"])) for d in rows], colour if len(arms) > 1 else BLUE))
        if len(arms) > 1:
            parts.append(_text(LEFT + 10 + (WIDTH - LEFT - RIGHT) / len(arms) * i, TOP + 8, arm, "start", colour))
        for d in rows:
            ends = y(d["realised"] - 1.96 * d["se"]), y(d["realised"] + 1.96 * d["se"])
            parts += _whisker(x(d["decile"]) + move, ends, y(d["realised"]), colour)
    parts.append(_text(WIDTH / 2, HEIGHT - 4, "decile of predicted uplift (10 = highest)"))
    return _svg(parts, f"Promised and realised uplift by decile, {unit}")


def drift_plot(columns: Sequence[ColumnDrift], limit: float) -> str:
    """Effect size of the most drifted columns, the threshold as a line."""
    shown = list(columns)[:9]
    left = 170
    top = max([c.effect for c in shown] + [limit]) * 1.1
    x, step = _Scale(0, top, left, WIDTH - RIGHT), (HEIGHT - TOP - BOTTOM) / max(len(shown), 1)
    parts = []
    for i, c in enumerate(shown):
        middle = TOP + (i + 0.5) * step
        colour = GREY if c.role == "ignored" else VERMILION if c.warn else BLUE
        parts.append(_text(left - 6, middle + 4, c.name if len(c.name) <= 24 else c.name[:23] + "…", anchor="end"))
        size = f'width="{x(c.effect) - left:.1f}" height="{0.7 * step:.1f}"'
        parts.append(f'<rect x="{left}" y="{middle - 0.35 * step:.1f}" {size} fill="{colour}"/>')
    parts.append(_rule(x(limit), TOP, x(limit), HEIGHT - BOTTOM, "4 3"))
    parts.append(_text(x(limit), HEIGHT - 18, f"threshold {limit:g}", "end"))
    parts.append(_text(WIDTH / 2, HEIGHT - 4, "shift since training, reference sd (grey: not counted)"))
    return _svg(parts, "Most drifted columns")


def weeks_plot(weeks: Sequence[Mapping[str, Any]]) -> str:
    """Realised weighted uplift (dot, 95% interval) and promise (dash) of each week; the verdict as a coloured square.

    Args:
        weeks: decision.json contents, oldest first; the first message arm is drawn.
    """
    n = len(weeks)
    tests = [_weighted(week) for week in weeks]
    known = [t for t in tests if t]
    low = min([t["realised"] - 1.96 * t["se"] for t in known] + [t["predicted"] for t in known] + [0.0])
    high = max([t["realised"] + 1.96 * t["se"] for t in known] + [t["predicted"] for t in known] + [0.0])
    bottom = HEIGHT - BOTTOM - 18
    x, y = _Scale(-0.5, n - 0.5, LEFT, WIDTH - RIGHT), _Scale(low, high, bottom, TOP)
    parts = _y_axis(low, high, y) if known else [_text(WIDTH / 2, HEIGHT / 2, "no matured decisions yet")]
    for i, (week, test) in enumerate(zip(weeks, tests, strict=True)):
        colour = ACTION_COLOURS[week["action"]]
        parts.append(f'<rect x="{x(i) - 7:.1f}" y="{bottom + 6}" width="14" height="12" rx="2" fill="{colour}"/>')
        parts.append(_text(x(i), HEIGHT - 20, str(week["week"])[-3:]) if n <= 8 or (n - 1 - i) % 2 == 0 else "")
        if test:
            ends = y(test["realised"] - 1.96 * test["se"]), y(test["realised"] + 1.96 * test["se"])
            promise = y(test["predicted"])
            parts.append(f'<path d="M{x(i) - 9:.1f} {promise:.1f}h18" stroke="{BLUE}" stroke-width="2.5"/>')
            parts += _whisker(x(i), ends, y(test["realised"]), VERMILION)
    parts.append(_text(WIDTH / 2, HEIGHT - 4, "squares: green fine, orange look, red retrain, purple stop"))
    return _svg(parts, "Weeks at a glance: realised uplift and verdict")


def values_plot(
    values: Mapping[str, Sequence[float]], squares: Sequence[str], stars: Sequence[int], rule: int, unit: str
) -> str:
    """Lines of weekly values; the verdicts as coloured squares below, a star where a new champion follows.

    Args:
        values: name -> one value per week; the last name is drawn on top.
        squares: action of each week.
        stars: places (from 0) of weeks that end with a new champion.
        rule: place of the week before which a rule is drawn; below 0 for none.
        unit: of the values, for who does not see them.
    """
    n, bottom = len(squares), HEIGHT - BOTTOM - 18
    everything = [v for line in values.values() for v in line]
    low, high = min(everything), max(everything)
    x, y = _Scale(-0.5, n - 0.5, LEFT, WIDTH - RIGHT), _Scale(low, high, bottom, TOP + 18)
    parts = _y_axis(low, high, y)
    parts += [_rule(x(rule - 0.5), TOP + 12, x(rule - 0.5), bottom, "4 3")] if rule >= 0 else []
    for i, (name, line) in enumerate(values.items()):
        colour = LINE_COLOURS[i % len(LINE_COLOURS)]
        parts.append(_path([(x(k), y(v)) for k, v in enumerate(line)], colour))
        parts.append(f'<g fill="{colour}">{_text(LEFT + (i + 0.5) * (WIDTH - LEFT) / len(values), TOP, name)}</g>')
    width = min(14.0, 0.8 * (WIDTH - LEFT) / n)
    for k, action in enumerate(squares):
        box = f'x="{x(k) - width / 2:.1f}" y="{bottom + 6}" width="{width:.1f}" height="12" rx="2"'
        parts.append(f'<rect {box} fill="{ACTION_COLOURS[action]}"/>')
        parts.append(_text(x(k), bottom + 2, "*") if k in stars else "")
        parts.append(_text(x(k), HEIGHT - 20, str(k + 1)) if n <= 12 or k % 5 == 4 else "")
    parts.append(_text(WIDTH / 2, HEIGHT - 4, "week (square: its verdict, *: a new champion follows)"))
    return _svg(parts, f"True value of each policy by week, {unit}")


def _weighted(week: Mapping[str, Any]) -> Mapping[str, Any] | None:
    realised = week.get("realised")
    return realised["tests"][0] if realised else None


class _Scale:
    """Linear map of [low, high] onto [start, end] in pixels."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.start = low, start
        self.factor = (end - start) / ((high - low) or 1.0)

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) * self.factor


def _y_axis(low: float, high: float, y: _Scale) -> list[str]:
    parts = []
    for tick in _ticks(low, high):
        style = "" if abs(tick) < 1e-12 else "1 3"
        parts += [_rule(LEFT, y(tick), WIDTH - RIGHT, y(tick), style), _text(LEFT - 5, y(tick) + 4, f"{tick:g}", "end")]
    return parts


def _ticks(low: float, high: float) -> list[float]:
    """At most six round numbers within [low, high]."""
    span = (high - low) or 1.0
    step = 10.0 ** np.floor(np.log10(span))
    step = next(s for s in (step / 5, step / 2, step, 2 * step) if span / s <= 5)
    return [round(float(t), 10) + 0.0 for t in np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step]


def _whisker(x: float, ends: tuple[float, float], middle: float, colour: str) -> list[str]:
    line = f'<path d="M{x:.1f} {ends[0]:.1f}V{ends[1]:.1f}" stroke="{colour}" stroke-width="1.6"/>'
    return [line, f'<circle cx="{x:.1f}" cy="{middle:.1f}" r="3.4" fill="{colour}"/>']


def _path(points: Sequence[tuple[float, float]], colour: str) -> str:
    route = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path d="M{route}" fill="none" stroke="{colour}" stroke-width="2"/>'


def _rule(x1: float, y1: float, x2: float, y2: float, dashes: str) -> str:
    style = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="currentColor" stroke-opacity="0.5"{style}/>'


def _text(x: float, y: float, text: str, anchor: str = "middle", colour: str = "") -> str:
    fill = f' fill="{colour}"' if colour else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{fill}>{escape(text)}</text>'


def _svg(parts: Sequence[str], title: str) -> str:
    label = f'role="img" aria-label="{escape(title)}"'
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" {label} font-size="12" fill="currentColor">{"".join(parts)}</svg>'
