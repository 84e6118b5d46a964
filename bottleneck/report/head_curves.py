"""The curves that heads draw: accuracy over a network's nodes (where to cut it), and over images per class.

Shapes: N nodes, G numbers of shots, R repeats.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bottleneck.fitting.fit_heads import FitResult
from bottleneck.report.figures import drawable, picture


def head_curves(result: FitResult) -> dict[str, str]:
    """Draw each curve of `result` beside its table; paths by name."""
    drawn: dict[str, str] = {}
    for name, draw in (("probe_curve", _probe_curve), ("shot_curve", _shot_curve)):
        table = result.files.get(f"{name}_table")
        if table is not None:
            path = Path(table).with_suffix(".png")
            draw(result.curves, path, path.stem.removesuffix("--" + name.replace("_", "-")))
            drawn[name] = str(path)
    return drawn


def _probe_curve(curves: dict[str, Any], path: Path, stem: str) -> None:
    """A line for each series of N scores, some of them None; 95 % intervals where a series has them."""
    nodes, series, intervals = (curves["probe"][name] for name in ("nodes", "series", "intervals"))
    place = np.arange(len(nodes))
    with picture(path, max(5.0, 0.7 * len(nodes) + 2), 4.2) as (axes,):
        for name, values in series.items():
            there = [i for i, value in enumerate(values) if value is not None]
            y = np.array([values[i] for i in there], float)
            error = None
            if name in intervals:
                low, high = np.array([intervals[name][i] for i in there], float).T
                error = np.maximum([y - low, high - y], 0)
            axes.errorbar(place[there], y, error, marker="o", capsize=3, label=drawable(name))
        axes.set_xticks(
            place, [drawable(node, 32) for node in nodes], rotation=35, ha="right", rotation_mode="anchor"
        )
        axes.set(ylabel="accuracy", title=drawable(f"{stem}: one head per node", 80))
        axes.grid(axis="y", alpha=0.3)
        axes.legend(frameon=False)


def _shot_curve(curves: dict[str, Any], path: Path, stem: str) -> None:
    """Mean accuracy over images per class, with what 95 % of the repeats reach; accuracies are (G, R)."""
    shots = curves["shots"][0]["shots"]
    with picture(path, 6.0, 4.2) as (axes,):
        for record in curves["shots"]:
            values = np.array(record["accuracy"])
            name = drawable(f"{record['target']}, {record['node']}")
            line = axes.plot(shots, values.mean(axis=1), marker="o", label=name)[0]
            low, high = np.quantile(values, (0.025, 0.975), axis=1)
            axes.fill_between(shots, low, high, alpha=0.2, color=line.get_color(), linewidth=0)
        axes.set_xscale("log")
        axes.set_xticks(shots, [str(count) for count in shots])
        axes.minorticks_off()
        title = drawable(f"{stem}: accuracy on samples not drawn", 80)
        axes.set(xlabel="images per class", ylabel="accuracy, and 95 % of the draws", title=title)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
