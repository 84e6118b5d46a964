"""Curves of heads: over nodes (where to cut the network) and over images per class.

Shapes: N nodes, G numbers of shots, R repeats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bottleneck.report.figures import picture
from bottleneck.report.fonts import drawable


def probe_curve(
    nodes: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    path: str | Path,
    intervals: Mapping[str, Sequence[tuple[float, float] | None]] | None = None,
    title: str = "",
) -> Path:
    """Draw one line per entry of `series` over N nodes, in their order.

    series : N scores by name, None where there is none; intervals : 95 % intervals by the same names.
    """
    place = np.arange(len(nodes))
    with picture(path, max(5.0, 0.7 * len(nodes) + 2), 4.2) as (axes,):
        for name, values in series.items():
            there = [i for i, value in enumerate(values) if value is not None]
            y = np.array([values[i] for i in there], float)
            error = None
            if intervals and name in intervals:
                low, high = np.array([intervals[name][i] for i in there], float).T
                error = np.maximum([y - low, high - y], 0)
            axes.errorbar(place[there], y, error, marker="o", capsize=3, label=drawable(name))
        axes.set_xticks(
            place, [drawable(node, 32) for node in nodes], rotation=35, ha="right", rotation_mode="anchor"
        )
        axes.set(ylabel="accuracy", title=drawable(title, 80))
        axes.grid(axis="y", alpha=0.3)
        axes.legend(frameon=False)
    return Path(path)


def shot_curve(
    shots: Sequence[int], scores: Mapping[str, np.ndarray], path: str | Path, title: str = ""
) -> Path:
    """Draw mean accuracy over images per class, with what 95 % of the repeats reach, one line per entry.

    scores : (G, R) accuracies by name.
    """
    with picture(path, 6.0, 4.2) as (axes,):
        for name, values in scores.items():
            values = np.asarray(values)
            line = axes.plot(shots, values.mean(axis=1), marker="o", label=drawable(name))[0]
            low, high = np.quantile(values, (0.025, 0.975), axis=1)
            axes.fill_between(shots, low, high, alpha=0.2, color=line.get_color(), linewidth=0)
        axes.set_xscale("log")
        axes.set_xticks(shots, [str(count) for count in shots])
        axes.minorticks_off()
        axes.set(
            xlabel="images per class", ylabel="accuracy, and 95 % of the draws", title=drawable(title, 80)
        )
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    return Path(path)
