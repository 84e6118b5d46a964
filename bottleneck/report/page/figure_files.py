"""Every figure of a page as a PNG and an SVG file, drawn by matplotlib from the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps

from bottleneck.report.figures import confusion_matrix, drawable, picture
from bottleneck.report.page.blocks import Chart, Confusion, Map, Section

SUFFIXES = (".png", ".svg")
LINES = ("-", "--", ":", "-.")
MARKERS = "osD^vPX*"
MOST_IN_LEGEND = 24


def write_figures(sections: Sequence[Section], folder: Path) -> list[str]:
    """Write charts, confusion matrix and maps into a folder, which is made. Return their paths."""
    written: list[str] = []
    for block in (block for section in sections for block in section.blocks):
        for suffix in SUFFIXES:
            path = folder / f"{block.name}{suffix}"
            if isinstance(block, Chart):
                _chart(block, path)
            elif isinstance(block, Confusion):
                confusion_matrix(np.array(block.counts), block.classes, path, block.caption)
            elif isinstance(block, Map):
                _map(block, path)
            else:
                continue
            written.append(str(path))
    return written


def _chart(chart: Chart, path: Path) -> None:
    with picture(path, 6.6, 4.4) as (axes,):
        for number, series in enumerate(chart.series):
            x, y = np.asarray(series.x, float), np.asarray(series.y, float)
            label = drawable(series.name, 60)
            if series.drawn == "points":
                axes.plot(x, y, ".", color=f"C{number}", label=label)
                continue
            dashed = series.drawn in ("dashes", "reference")
            colour = "grey" if series.drawn == "reference" else f"C{number}"
            style = "--" if dashed else LINES[number % len(LINES)]
            marker = None if dashed else MARKERS[number % len(MARKERS)]
            axes.plot(x, y, style, marker=marker, markersize=4, color=colour, label=label)
            if series.low is not None and series.high is not None:
                axes.fill_between(x, series.low, series.high, color=f"C{number}", alpha=0.18, linewidth=0)
        for value, text in chart.marks:
            axes.axvline(value, color="grey", linewidth=1, linestyle=":", label=drawable(text))
        if chart.logarithmic:
            axes.set_xscale("log")
        if chart.y_range:
            axes.set_ylim(*chart.y_range)
        axes.set(xlabel=drawable(chart.x_label, 80), ylabel=drawable(chart.y_label, 80))
        axes.set_title(drawable(chart.caption, 80))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)


def _map(block: Map, path: Path) -> None:
    """Draw the positions by each method below each other; classes differ by marker and by brightness."""
    code, predicted = np.asarray(block.colour), np.asarray(block.predicted)
    wrong = (predicted >= 0) & (code >= 0) & (predicted != code)
    size = float(np.clip(9000 / max(1, len(code)), 5, 36))
    colours = colormaps["cividis"](np.linspace(0, 0.9, max(1, len(block.classes))))
    rows = len(block.positions)
    with picture(path, 6.6, 6.2 * rows, rows=rows) as every:
        for axes, (name, positions) in zip(every, block.positions.items(), strict=True):
            x, y = np.asarray(positions).T
            for k in np.unique(code):
                here = code == k
                label = drawable(block.classes[k], 24) if k >= 0 else "no label"
                colour = colours[k] if k >= 0 else "silver"
                marker = MARKERS[k % len(MARKERS)]
                axes.scatter(x[here], y[here], s=size, marker=marker, color=colour, label=label, linewidths=0)
            ring: dict[str, Any] = {"facecolors": "none", "edgecolors": "black", "linewidths": 0.8}
            axes.scatter(x[wrong], y[wrong], s=4 * size, label="mistake" if wrong.any() else None, **ring)
            axes.set(title=name, xticks=[], yticks=[], xlabel="no unit; near points are alike")
            axes.set_aspect("equal")
        if len(block.classes) <= MOST_IN_LEGEND:
            every[0].legend(fontsize=9, markerscale=1.5, loc="best", framealpha=0.8)
