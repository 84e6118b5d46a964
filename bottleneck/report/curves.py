"""Curves of fitted heads, of a training and of a comparison, as PNG files.

Shapes: N nodes, G numbers of shots, R repeats.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from bottleneck.report.figures import drawable, error_bars, picture

if TYPE_CHECKING:
    from bottleneck.fitting.fit_heads import FitResult
    from bottleneck.studies.compare.compare import Comparison, Row
    from bottleneck.training.finetune import FoundRate
    from bottleneck.training.loop import EpochRecord

COLOURS, MARKERS = {"head": "C0", "random": "C1"}, {"head": "o", "random": "s"}
MOST_OF_NAME = 300  # characters of a node's name
SHIFT = 0.12  # between the bars of two starts, so that they do not overlap
LABELS = {"head": "from the head", "random": "random last layer"}
TRAIN, VAL = ("C1", "s--"), ("C0", "o-")  # colour; marker and line


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
    with picture(path, 6.6, 0.36 * len(nodes) + 1.8) as (axes,):
        for name, values in series.items():
            known = [i for i, value in enumerate(values) if value is not None]
            y = [values[i] for i in known]
            bars = error_bars(y, [intervals[name][i] for i in known]) if name in intervals else None
            axes.errorbar(y, known, xerr=bars, marker="o", capsize=3, label=drawable(name))
        names = ["\n".join(wrap(drawable(node, MOST_OF_NAME).replace("+", "+ "), 32)) for node in nodes]
        axes.set_yticks(range(len(nodes)), names, fontsize=9)
        axes.set(xlabel=curves["probe"]["measure"], title=drawable(f"{stem}: one head per node", 80))
        axes.grid(axis="x", alpha=0.3)
        axes.legend(framealpha=0.8, fontsize=9)


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


def training_curves(
    epochs: Sequence[EpochRecord], path: str | Path, best: int, title: str, head: float | None = None
) -> Path:
    """Draw loss and accuracy of train and val by epoch to a PNG.

    best : the chosen epoch, which is marked. head : val accuracy of the head that training started from.
    """
    numbers = [record.epoch for record in epochs]
    trained = [record for record in epochs if record.train_loss is not None]
    with picture(path, 10, 4.4, columns=2) as (loss, accuracy):
        for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
            for split, records, (colour, line), label in (
                ("train", trained, TRAIN, "train, while learning"),
                ("val", epochs, VAL, "val"),
            ):
                x = [record.epoch for record in records]
                y = [getattr(record, f"{split}_{name}") for record in records]
                axes.plot(x, y, line, color=colour, markersize=3, label=label)
            axes.axvline(best, color="grey", linewidth=1, linestyle=":", label=f"kept: epoch {best}")
            axes.set(xlabel="epoch", ylabel=name, xlim=(-0.5, numbers[-1] + 0.5))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.3)
        if head is not None:
            accuracy.axhline(head, color="black", linewidth=1, linestyle="--", label="the head on val")
        loss.set_title("Loss")
        accuracy.set_title("Accuracy")
        # Below the axes, since within them it would hide the first or the last epochs.
        loss.figure.legend(
            *accuracy.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9
        )
        loss.figure.suptitle(drawable(title, 80))
    return Path(path)


def rate_curve(trial: FoundRate, path: str | Path) -> Path:
    """Draw the smoothed loss by learning rate, and the suggested rate, to a PNG."""
    with picture(path, 6, 4) as (axes,):
        axes.semilogx(trial.rates, trial.losses, color=TRAIN[0])
        axes.axvline(trial.lr, color=VAL[0], linestyle="--", label=f"suggested: {trial.lr:.2g}")
        axes.set(xlabel="learning rate of the head", ylabel="loss, smoothed", title="Loss by learning rate")
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    return Path(path)


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
        _line(axes, at, same_start, color=COLOURS[init], marker=MARKERS[init], label=LABELS[init])
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
    axes.legend(fontsize=9, markerscale=0.7, loc="upper left", bbox_to_anchor=(1.01, 1))


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
    axes.legend(fontsize=9, markerscale=0.7, loc="upper left", bbox_to_anchor=(1.01, 1))


def _line(axes: Axes, x: Sequence[float], rows: Sequence[Row], **style: Any) -> None:
    """Means with their intervals."""
    if not rows:
        return
    split = "test" if "test" in rows[0].accuracy else "val"
    means = [row.accuracy[split] for row in rows]
    bars = error_bars(means, [row.interval for row in rows])
    axes.errorbar(x, means, yerr=bars, capsize=3, **{"marker": "o", **style})
