"""The picture of a comparison: accuracy by how much is unfrozen, and by the number of samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from bottleneck.report.figures import drawable, error_bars, picture
from bottleneck.training.compare import Comparison, Row

COLOURS = {"head": "tab:blue", "random": "tab:orange"}
SHIFT = 0.12  # between the bars of two starts, so that they do not overlap
LABELS = {"head": "from the head", "random": "random last layer"}


def comparison(result: Comparison, path: str | Path) -> Path:
    """Draw a comparison to a PNG. Points are single runs, lines their means, bars 95 % intervals."""
    several = len({row.shots for row in result.rows}) > 1
    with picture(path, 6.5 + 8.5 * several, 4.5, columns=1 + several) as axes:
        _by_depth(axes[0], result)
        if several:
            _by_shots(axes[1], result)
    return Path(path)


def _by_depth(axes: Axes, result: Comparison) -> None:
    """Accuracy by the number of unfrozen blocks, with the largest number of samples."""
    rows = [row for row in result.rows if row.shots == result.chosen.shots]
    depths = list(dict.fromkeys(row.unfreeze for row in rows if not row.depth))
    x = {
        (depth, init): number + (SHIFT if init == "random" else 0.0)
        for number, depth in enumerate(depths)
        for init in COLOURS
    }
    for init in COLOURS:
        same_start = [row for row in rows if not row.depth and row.init == init]
        at = [x[row.unfreeze, init] for row in same_start]
        _line(axes, at, same_start, color=COLOURS[init], label=LABELS[init])
    for run in result.runs:
        if run.shots == result.chosen.shots and not run.depth:
            shifted = x[run.unfreeze, run.init] + SHIFT / 3
            axes.plot(shifted, run.accuracy[result.measured_on], ".", color=COLOURS[run.init], alpha=0.5)
    if not result.chosen.depth:
        chosen = x[result.chosen.unfreeze, result.chosen.init]
        level = result.chosen.accuracy[result.measured_on]
        ring: dict[str, Any] = {"color": "none", "markeredgecolor": "black", "markersize": 13}
        axes.plot(chosen, level, "o", label="chosen on val", **ring)
    scratch = [row for row in rows if row.depth]
    if scratch:
        best = max(scratch, key=lambda row: row.accuracy["val"])
        level = best.accuracy[result.measured_on]
        axes.axhline(level, color="black", linestyle="--", linewidth=1, label=best.name)
    axes.set_xticks(range(len(depths)), [drawable(str(depth), 20) for depth in depths])
    axes.set_xlim(-0.5, len(depths) - 0.5)
    axes.set(
        xlabel="unfrozen blocks", ylabel=f"accuracy on {result.measured_on}", title="How deep to unfreeze"
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, markerscale=0.7)


def _by_shots(axes: Axes, result: Comparison) -> None:
    """Accuracy by train samples per class, with a line for each depth and start."""
    shots = sorted({row.shots for row in result.rows}, key=lambda k: float("inf") if k == "all" else k)
    names = list(dict.fromkeys(row.name for row in result.rows))
    depths = list(dict.fromkeys((row.unfreeze, row.depth) for row in result.rows))
    for number, name in enumerate(names):
        rows = sorted(
            (row for row in result.rows if row.name == name), key=lambda row: shots.index(row.shots)
        )
        at = [shots.index(row.shots) + SHIFT * (number / len(names) - 0.5) for row in rows]
        colour = f"C{depths.index((rows[0].unfreeze, rows[0].depth))}"
        line = "--" if rows[0].init == "random" and not rows[0].depth else "-"
        _line(axes, at, rows, color=colour, label=name, linestyle=line)
    axes.set_xticks(range(len(shots)), [str(k) for k in shots])
    axes.set(
        xlabel="train samples per class",
        ylabel=f"accuracy on {result.measured_on}",
        title="By number of images",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, markerscale=0.7, loc="upper left", bbox_to_anchor=(1.01, 1))


def _line(axes: Axes, x: Sequence[float], rows: Sequence[Row], **style: Any) -> None:
    """Means with their intervals."""
    if not rows:
        return
    split = "test" if "test" in rows[0].accuracy else "val"
    means = [row.accuracy[split] for row in rows]
    bars = error_bars(means, [row.interval for row in rows])
    axes.errorbar(x, means, yerr=bars, marker="o", capsize=3, **style)
