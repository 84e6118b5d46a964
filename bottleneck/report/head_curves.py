"""Curves of fitted heads: accuracy by node of the network (where to cut it), and by images per class.

Shapes: N nodes, G numbers of shots, R repeats.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bottleneck.fitting.fit_heads import FitResult
from bottleneck.report.figures import drawable, error_bars, picture


def head_curves(result: FitResult) -> dict[str, str]:
    """Draw each curve of `result` beside its table. Return the paths by name of the curve."""
    drawn: dict[str, str] = {}
    for name, draw in (("probe_curve", _probe_curve), ("shot_curve", _shot_curve)):
        table = result.files.get(f"{name}_table")
        if table is not None:
            path = Path(table).with_suffix(".png")
            draw(result.curves, path, path.stem.removesuffix("--" + name.replace("_", "-")))
            drawn[name] = str(path)
    return drawn


def _probe_curve(curves: dict[str, Any], path: Path, stem: str) -> None:
    """A line for each series of N scores, of which some are None; with 95 % intervals if there are any."""
    nodes, series, intervals = (curves["probe"][name] for name in ("nodes", "series", "intervals"))
    with picture(path, max(5.0, 0.7 * len(nodes) + 2), 4.2) as (axes,):
        for name, values in series.items():
            known = [i for i, value in enumerate(values) if value is not None]
            y = [values[i] for i in known]
            bars = error_bars(y, [intervals[name][i] for i in known]) if name in intervals else None
            axes.errorbar(known, y, bars, marker="o", capsize=3, label=drawable(name))
        names = [drawable(node, 32) for node in nodes]
        axes.set_xticks(range(len(nodes)), names, rotation=35, ha="right", rotation_mode="anchor")
        axes.set(ylabel="accuracy", title=drawable(f"{stem}: one head per node", 80))
        axes.grid(axis="y", alpha=0.3)
        axes.legend(frameon=False)


def _shot_curve(curves: dict[str, Any], path: Path, stem: str) -> None:
    """Mean accuracy by images per class, with the range of 95 % of the repeats; accuracies are (G, R)."""
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
