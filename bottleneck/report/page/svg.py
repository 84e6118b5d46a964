"""Charts as SVG of the page: its colours and fonts are the style sheet's, so that they follow light and dark.

Lengths are in units of the drawing, `WIDTH` wide, which the page scales.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from markupsafe import Markup, escape

from bottleneck.report.page.blocks import Chart, Series

WIDTH, HEIGHT = 560.0, 330.0
LEFT, RIGHT, TOP, BOTTOM = 64.0, 14.0, 16.0, 50.0
MOST_TICKS = 6
DASHES = ("", "7 4", "2 4", "9 3 2 3", "12 4", "4 2", "1 3", "8 2 2 2 2 2")  # told apart without colours
MARKERS = ("circle", "square", "diamond", "triangle")


def chart_svg(chart: Chart) -> Markup:
    """Return the drawing of a chart; its title and legend are the page's."""
    scale_x, ticks_x = _axis([x for s in chart.series for x in s.x], LEFT, WIDTH - RIGHT, chart.logarithmic)
    ends = [y for s in chart.series for part in (s.y, s.low, s.high) if part is not None for y in part]
    ends = [*chart.y_range] if chart.y_range else ends
    scale_y, ticks_y = _axis(ends, HEIGHT - BOTTOM, TOP, False, pad=chart.y_range is None)
    parts = [Markup('<g class="grid">')]
    for value, text in ticks_y:
        y = scale_y(value)
        parts.append(_line(LEFT, y, WIDTH - RIGHT, y))
        parts.append(_text(LEFT - 8, y + 5, text, "end"))
    for value, text in ticks_x:
        x = scale_x(value)
        parts.append(_line(x, HEIGHT - BOTTOM, x, HEIGHT - BOTTOM + 5))
        parts.append(_text(x, HEIGHT - BOTTOM + 20, text, "middle"))
    parts.append(Markup("</g>"))
    for value, text in chart.marks:
        x = scale_x(value)
        parts.append(Markup('<g class="mark">') + _line(x, TOP, x, HEIGHT - BOTTOM))
        side = "end" if x > WIDTH / 2 else "start"
        parts.append(
            _text(x + (-6 if side == "end" else 6), HEIGHT - BOTTOM - 8, text, side) + Markup("</g>")
        )
    for number, series in enumerate(chart.series):
        parts.append(_series(series, number, scale_x, scale_y))
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(Markup('<g class="axis">') + _text(middle, HEIGHT - 8, chart.x_label, "middle"))
    at = f"translate(13 {(TOP + HEIGHT - BOTTOM) / 2:.1f}) rotate(-90)"
    parts.append(Markup('<text text-anchor="middle" transform="{}">{}</text></g>').format(at, chart.y_label))
    head = Markup('<svg viewBox="0 0 {:g} {:g}" role="img" aria-label="{}" focusable="false">').format(
        WIDTH,
        HEIGHT,
        f"{chart.caption}. {chart.y_label} by {chart.x_label}; the numbers are in the table below.",
    )
    return head + Markup("").join(parts) + Markup("</svg>")


def legend_svg(number: int, series: Series) -> Markup:
    """Return the swatch of a series: its line with its marker."""
    body = _mark(number, 14, 7) if series.drawn in ("line", "points") else Markup("")
    line = Markup("") if series.drawn == "points" else _stroke(number, series, "M1 7H27")
    return Markup(
        '<svg class="swatch" viewBox="0 0 28 14" aria-hidden="true"><g class="{}">{}{}</g></svg>'
    ).format(_class(number, series), line, body)


def interval_svg(value: float, low: float, high: float) -> Markup:
    """Return a share of 0 … 1 with its interval as a small bar."""
    return Markup(
        '<svg class="interval" viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" x="0" y="5" width="100" height="2"/>'
        '<rect class="range" x="{:.1f}" y="3" width="{:.1f}" height="6"/>'
        '<rect class="value" x="{:.1f}" y="0" width="2" height="12"/></svg>'
    ).format(100 * low, max(0.5, 100 * (high - low)), min(98.0, max(0.0, 100 * value - 1)))


def bar_svg(share: float) -> Markup:
    """Return a bar of a share of 0 … 1 of the width."""
    return Markup(
        '<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        '<rect x="0" y="0" width="{:.1f}" height="8"/></svg>'
    ).format(max(0.8 if share > 0 else 0, 100 * share))


Scale = Callable[[float], float]


def _axis(
    values: Sequence[float], start: float, stop: float, logarithmic: bool, pad: bool = False
) -> tuple[Scale, list[tuple[float, str]]]:
    """Return the function from values to places, and ticks with their texts."""
    finite = [float(v) for v in values if math.isfinite(v) and (v > 0 or not logarithmic)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if logarithmic:
        a, b = math.log10(low), math.log10(high)
        a, b = (a - 0.5, b + 0.5) if b - a < 1e-9 else (a - 0.02 * (b - a), b + 0.02 * (b - a))
        ticks = _decades(finite, a, b)
        return lambda v: start + (stop - start) * (math.log10(max(v, 1e-300)) - a) / (b - a), ticks
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5
    elif pad:
        low, high = low - 0.05 * (high - low), high + 0.05 * (high - low)
    ticks = [(v, f"{v:.6g}") for v in _round_steps(low, high)]
    return lambda v: start + (stop - start) * (v - low) / (high - low), ticks


def _decades(values: Sequence[float], a: float, b: float) -> list[tuple[float, str]]:
    """Return ticks of a logarithmic axis: the values themselves where they are few, else whole decades."""
    distinct = sorted(set(values))
    if len(distinct) <= MOST_TICKS + 2 and max(distinct) < 1e5 and min(distinct) >= 1:
        return [(v, f"{v:g}") for v in distinct]
    decades = range(math.ceil(a), math.floor(b) + 1)
    step = max(1, math.ceil(len(decades) / MOST_TICKS))
    return [(10.0**k, f"{10.0**k:g}" if -4 < k < 5 else f"1e{k}") for k in decades[::step]]


def _round_steps(low: float, high: float) -> list[float]:
    """Return about `MOST_TICKS` round values between two."""
    raw = (high - low) / MOST_TICKS
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _series(series: Series, number: int, x: Scale, y: Scale) -> Markup:
    points = [(x(a), y(b)) for a, b in zip(series.x, series.y, strict=True) if np.isfinite([a, b]).all()]
    if not points:
        return Markup("")
    parts = [Markup('<g class="{}">').format(_class(number, series))]
    if series.low is not None and series.high is not None:
        parts.append(_band(series, x, y))
    if series.drawn != "points":
        parts.append(_stroke(number, series, "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points)))
    if series.drawn == "points":
        parts += [Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="2.5"/>').format(*p) for p in points]
    elif series.drawn == "line" and len(points) <= 40:
        parts += [_mark(number, *point) for point in points]
    return Markup("").join(parts) + Markup("</g>")


def _class(number: int, series: Series) -> str:
    return "ref" if series.drawn == "reference" else f"c{number % 8}"


def _band(series: Series, x: Scale, y: Scale) -> Markup:
    assert series.low is not None
    assert series.high is not None
    above = [(x(a), y(b)) for a, b in zip(series.x, series.high, strict=True)]
    below = [(x(a), y(b)) for a, b in zip(series.x, series.low, strict=True)]
    outline = "L".join(f"{a:.1f} {b:.1f}" for a, b in (*above, *reversed(below)))
    return Markup('<path class="band" d="M{}Z"/>').format(outline)


def _stroke(number: int, series: Series, path: str) -> Markup:
    dash = "5 5" if series.drawn in ("dashes", "reference") else DASHES[number % len(DASHES)]
    attribute = Markup(' stroke-dasharray="{}"').format(dash) if dash else Markup("")
    return Markup('<path class="line" d="{}"{}/>').format(path, attribute)


def _mark(number: int, a: float, b: float) -> Markup:
    shapes = {
        "circle": "M{0:.1f} {1:.1f}m-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0",
        "square": "M{0:.1f} {1:.1f}m-3 -3h6v6h-6z",
        "diamond": "M{0:.1f} {1:.1f}m0 -4.5l4.5 4.5l-4.5 4.5l-4.5 -4.5z",
        "triangle": "M{0:.1f} {1:.1f}m0 -4.5l4.5 8h-9z",
    }
    return Markup('<path class="dot" d="{}"/>').format(shapes[MARKERS[number % len(MARKERS)]].format(a, b))


def _line(x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(x1, y1, x2, y2)


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, escape(text))
