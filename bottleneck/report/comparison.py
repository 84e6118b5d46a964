"""The picture of a comparison: accuracy by how much is unfrozen, and by the number of samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from bottleneck.report.figures import drawable, picture
from bottleneck.training.compare import Comparison, Row

COLOURS = {"head": "tab:blue", "random": "tab:orange"}
ASIDE = 0.12  # so that bars of two starts do not lie on each other
LABELS = {"head": "from the head", "random": "random last layer"}


def comparison(result: Comparison, path: str | Path) -> Path:
    """Draw to a PNG. Points are single runs, lines their means, bars 95 % intervals."""
    several = len({row.shots for row in result.rows}) > 1
    with picture(path, 6.5 + 8.5 * several, 4.5, columns=1 + several) as axes:
        _by_depth(axes[0], result)
        if several:
            _by_shots(axes[1], result)
    return Path(path)


def _by_depth(axes: Axes, result: Comparison) -> None:
    """Accuracy by the number of unfrozen blocks, with the most samples."""
    rows = [row for row in result.rows if row.shots == result.chosen.shots]
    depths = list(dict.fromkeys(row.unfreeze for row in rows if not row.depth))
    place = {
        (depth, init): number + (ASIDE if init == "random" else 0.0)
        for number, depth in enumerate(depths)
        for init in COLOURS
    }
    for init in COLOURS:
        mine = [row for row in rows if not row.depth and row.init == init]
        _line(axes, [place[row.unfreeze, init] for row in mine], mine, COLOURS[init], LABELS[init])
    for run in result.runs:
        if run.shots == result.chosen.shots and not run.depth:
            accuracy = run.accuracy[result.measured_on]
            axes.plot(
                place[run.unfreeze, run.init] + ASIDE / 3, accuracy, ".", color=COLOURS[run.init], alpha=0.5
            )
    if not result.chosen.depth:
        chosen = place[result.chosen.unfreeze, result.chosen.init]
        level = result.chosen.accuracy[result.measured_on]
        axes.plot(
            chosen, level, "o", color="none", markeredgecolor="black", markersize=13, label="chosen on val"
        )
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
    """Accuracy by train samples per class, a line for each thing that was tried."""
    shots = sorted({row.shots for row in result.rows}, key=lambda k: float("inf") if k == "all" else k)
    names = list(dict.fromkeys(row.name for row in result.rows))
    depths = list(dict.fromkeys((row.unfreeze, row.depth) for row in result.rows))
    for number, name in enumerate(names):
        mine = sorted(
            (row for row in result.rows if row.name == name), key=lambda row: shots.index(row.shots)
        )
        aside = ASIDE * (number / len(names) - 0.5)
        colour = f"C{depths.index((mine[0].unfreeze, mine[0].depth))}"
        line = "--" if mine[0].init == "random" and not mine[0].depth else "-"
        _line(axes, [shots.index(row.shots) + aside for row in mine], mine, colour, name, line)
    axes.set_xticks(range(len(shots)), [str(k) for k in shots])
    axes.set(
        xlabel="train samples per class",
        ylabel=f"accuracy on {result.measured_on}",
        title="By number of images",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, markerscale=0.7, loc="upper left", bbox_to_anchor=(1.01, 1))


def _line(
    axes: Axes, x: Sequence[int], rows: Sequence[Row], colour: str, label: str, line: str = "-"
) -> None:
    """Means with their intervals."""
    if not rows:
        return
    split = "test" if "test" in rows[0].accuracy else "val"
    means = [row.accuracy[split] for row in rows]
    below = [max(0.0, mean - row.interval[0]) for mean, row in zip(means, rows, strict=True)]
    above = [max(0.0, row.interval[1] - mean) for mean, row in zip(means, rows, strict=True)]
    axes.errorbar(
        x, means, yerr=[below, above], color=colour, linestyle=line, marker="o", capsize=3, label=label
    )
