"""The page of `advise` and the figure of the transfer study, as PNG files.

The figure has the form of the paper (terms: `transfer_study.protocol`).
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from bottleneck.errors import counted
from bottleneck.report.figures import BLUE, GREY, RED, drawable, error_bars, picture
from bottleneck.studies.advise.image_similarity import DIFFERENT, SIMILAR, Similarity
from bottleneck.studies.advise.recommendation import Advice
from bottleneck.studies.transfer_study.effects import Curves, Effect, Estimate
from bottleneck.studies.transfer_study.protocol import LEGEND, PUBLISHED, PUBLISHED_BASE, PUBLISHED_SOURCE
from bottleneck.studies.transfer_study.study import TransferStudy

WIDTH = 10.0  # inches of two columns, so that a page is read at a width of 800 pixels
LINE = 125  # characters of a line of the text
BLACK, LIGHT_BLUE, LIGHT_RED = "#222222", "#79a7e8", "#f08a7e"
STYLES = {  # colour, marker; frozen dark, fine-tuned light, as in the paper
    "BnB": (BLUE, "o"),
    "BnB+": (LIGHT_BLUE, "o"),
    "AnB": (RED, "D"),
    "AnB+": (LIGHT_RED, "D"),
    "random": ("#7a7a7a", "x"),
}
COPIES = ("BnB", "BnB+", "AnB", "AnB+")
DIFFERENCES = {  # colour, marker
    "base-BnB": (BLUE, "o"),
    "BnB-AnB": (RED, "D"),
    "BnB+-BnB": (LIGHT_BLUE, "s"),
    "AnB+-base": (LIGHT_RED, "^"),
}
NOTES = {  # the paper's five interpretations: what to write, which curve it belongs to
    "co-adaptation": ("lost co-adaptation", "BnB"),
    "recovery": ("less to relearn", "BnB"),
    "fine-tuned selffer": ("fine-tuning recovers", "BnB+"),
    "specificity": ("specificity", "AnB"),
    "gain": ("transfer + fine-tuning gains", "AnB+"),
}
AXIS = "layer n at which the network is chopped and retrained"


def advice_page(advice: Advice, path: str | Path) -> Path:
    """Draw the advice as one page."""
    with picture(path, WIDTH, 12.5, columns=2, rows=3) as axes:
        shots, near, probes, tried, text, rest = axes
        _shots(shots, advice)
        _similarity(near, advice.similarity)
        _probes(probes, advice)
        _tried(tried, advice)
        for each in (text, rest):
            each.axis("off")
        lines = [f"{advice.cache}: {advice.scenario}", "", *advice.text, f"Next: {advice.chosen.command}"]
        wrapped = [textwrap.fill(drawable(line, 1000), LINE, subsequent_indent="    ") for line in lines]
        page = text.text(0, 1, "\n".join(wrapped), va="top", fontsize=9, transform=text.transAxes)
        page.set_in_layout(False)  # it runs across both columns
    return Path(path)


def _shots(axes: Axes, advice: Advice) -> None:
    """Accuracy by images per class; dotted, the power law's prediction for twice and four times as many."""
    curve = advice.size.curve
    shots = [point.shots for point in curve.points]
    axes.semilogx(shots, [point.mean for point in curve.points], color=BLUE, marker="o")
    for point in curve.points:
        label = "single draws" if point is curve.points[0] else None
        axes.scatter([point.shots] * len(point.values), point.values, color=GREY, s=10, label=label)
    if curve.exponent is not None:
        last = curve.points[-1]
        ahead = last.shots * np.array([1.0, 2.0, 4.0])
        error = (1 - last.mean) * (ahead / last.shots) ** -curve.exponent
        axes.semilogx(ahead, 1 - error, color=BLUE, linestyle=":", label="if the law goes on")
    axes.legend(fontsize=9, loc="lower right")
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.set(title="Images per class", xlabel="train images per class", ylabel="val accuracy, linear")


def _similarity(axes: Axes, near: Similarity | None) -> None:
    """Distances of the user's images and of the anchors, on a logarithmic scale."""
    axes.set_title("Distance from the network's training images")
    if near is None:
        axes.text(0.5, 0.5, "random weights: no training images", ha="center", transform=axes.transAxes)
        return
    distances = {name: reading.distance for name, reading in near.anchors.items()}
    distances["YOUR IMAGES"] = near.reading.distance
    names = sorted(distances, key=distances.__getitem__)
    colours = {**dict.fromkeys(SIMILAR, BLUE), **dict.fromkeys(DIFFERENT, RED), "YOUR IMAGES": "black"}
    for row, name in enumerate(names):
        axes.plot(distances[name], row, "o", color=colours.get(name, GREY))
    axes.set_yticks(range(len(names)), names)
    axes.grid(axis="y", color="#eeeeee")
    axes.set(xscale="log", xlabel=f"{near.measure}\nsimilar with probability {near.probability:.2f}")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _probes(axes: Axes, advice: Advice) -> None:
    """Linear heads along the network."""
    nodes = [drawable(head["node"], 60) for head in advice.heads]
    axes.plot(nodes, [head["cv_accuracy"] for head in advice.heads], color=BLUE, marker="o", label="cv")
    axes.plot(nodes, [head["accuracy"]["val"] for head in advice.heads], color=RED, marker="D", label="val")
    axes.set(title="Linear heads along the network", ylabel="accuracy")
    axes.tick_params(axis="x", rotation=45)
    axes.legend(fontsize=9)


def _tried(axes: Axes, advice: Advice) -> None:
    """Attempts with 95 % intervals on val; the recommended one in blue, guessing dotted."""
    axes.axvline(advice.guess, color=GREY, linestyle=":")
    attempts = advice.attempts[::-1]  # the first one on top
    for row, attempt in enumerate(attempts):
        accuracy = [attempt.accuracy["val"]]
        bars = error_bars(accuracy, [attempt.ci95["val"]])
        colour = BLUE if attempt is advice.chosen else GREY
        axes.errorbar(accuracy, [row], xerr=bars, fmt="o", color=colour, capsize=3)
    names = ["\n".join(textwrap.wrap(drawable(attempt.what, 120), 34)) for attempt in attempts]
    axes.set_yticks(range(len(names)), names, fontsize=9)
    what = "val accuracy, 95 % interval\ndotted: always the commonest class"
    axes.set(title=f"Tried on {counted(sum(advice.tried.values()), 'sample')}", xlabel=what)


def transfer_figure(study: TransferStudy, path: str | Path) -> Path:
    """Draw the runs, their means with the effects, the published curves, the paired differences, the control
    with random layers, and the gain by the size of A.
    """
    curves = study.curves
    with picture(path, WIDTH, 13.5, columns=2, rows=3) as axes:
        points, means, published, differences, control, size = axes
        points.figure.suptitle(textwrap.fill(LEGEND, LINE), fontsize=9)
        _points(points, curves)
        _means(means, curves, study.effects)
        _published(published)
        _differences(differences, curves)
        _control(control, curves)
        _gain_by_size(size, curves)
        for each in (points, means):
            each.set_ylabel("val accuracy of B")
        lows, highs = zip(points.get_ylim(), means.get_ylim(), strict=True)
        for each in (points, means):
            each.set_ylim(min(lows), max(highs))
    return Path(path)


def _points(axes: Axes, curves: Curves) -> None:
    """Every run as a point, with the kinds side by side at each n."""
    base = curves.accuracies("baseB", 0)
    axes.scatter(np.zeros(len(base)), base, color=BLACK, marker="o", label="base B", zorder=3)
    for number, kind in enumerate(COPIES):
        colour, marker = STYLES[kind]
        for n in curves.depths:
            values = curves.accuracies(kind, n)
            x = np.full(len(values), n + 0.16 * (number - 1.5))
            label = kind if n == curves.depths[0] else None
            axes.scatter(x, values, color=colour, marker=marker, s=22, label=label)
    axes.set(title=f"Every run ({len(base)} seed{'s' * (len(base) != 1)})", xlabel=AXIS)
    axes.legend(fontsize=9, ncols=2)


def _means(axes: Axes, curves: Curves, effects: Sequence[Effect]) -> None:
    """Lines through the means, with the paper's effects: in black where they show, else in grey."""
    base = float(np.mean(curves.accuracies("baseB", 0)))
    axes.axhline(base, color=BLACK, linewidth=1, linestyle=":", label="base B, mean")
    for kind in COPIES:
        _line(axes, curves, kind, start=base)
    by_key = {effect.key: effect for effect in effects}
    tested = [by_key[key] for key in NOTES if key in by_key]
    for number, effect in enumerate(tested, 1):
        text, kind = NOTES[effect.key]
        shows = effect.shown > 0
        if shows:
            n = _annotated_depth(curves, effect, base)
            y = float(np.mean(curves.accuracies(kind, n)))
            ring = {"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": STYLES[kind][0]}
            offset = (-3, 9 if kind.endswith("+") else -16)
            axes.annotate(str(number), (n, y), offset, textcoords="offset points", fontsize=9, bbox=ring)
        else:
            text += f": {'the opposite' if effect.shown else 'not beyond the noise'}"
        if effect.key == "gain" and shows and by_key["gain over selffer"].shown <= 0:
            text += ", but no more than BnB+ does"
        height = 0.03 + 0.055 * (len(tested) - number)
        colour = "black" if shows else GREY
        axes.text(0.02, height, f"{number}  {text}", transform=axes.transAxes, fontsize=9, color=colour)
    axes.set(title="Means, and which of the paper's effects they show", xlabel=AXIS)
    axes.legend(fontsize=9, ncols=2)


def _annotated_depth(curves: Curves, effect: Effect, base: float) -> int:
    """Return the n at which an effect is annotated: where it is largest, or the top for the recovery."""
    if effect.key == "recovery":
        return curves.depths[-1]
    kind = NOTES[effect.key][1]
    depths = effect.where or tuple(curves.depths)
    return max(depths, key=lambda n: abs(np.mean(curves.accuracies(kind, n)) - base))


def _line(axes: Axes, curves: Curves, kind: str, start: float | None = None) -> None:
    colour, marker = STYLES[kind]
    depths = [n for n in curves.depths if curves.hits(kind, n)]
    means = [float(np.mean(curves.accuracies(kind, n))) for n in depths]
    if start is not None:
        depths, means = [0, *depths], [start, *means]
    axes.plot(depths, means, color=colour, marker=marker, markersize=4, label=kind)


def _published(axes: Axes) -> None:
    """The published curves."""
    axes.axhline(PUBLISHED_BASE, color=BLACK, linewidth=1, linestyle=":", label="base")
    for kind, values in PUBLISHED.items():
        colour, marker = STYLES[kind]
        axes.plot((PUBLISHED_BASE, *values), color=colour, marker=marker, markersize=4)
    axes.set(title="Published, for comparison", xlabel=AXIS, ylabel="top-1 accuracy, %")
    axes.text(0.02, 0.02, PUBLISHED_SOURCE.replace(": ", ":\n", 1), transform=axes.transAxes, fontsize=8)


def _differences(axes: Axes, curves: Curves) -> None:
    """Paired differences with their 95 % intervals."""
    axes.axhline(0, color=BLACK, linewidth=0.8)
    for number, (name, (colour, marker)) in enumerate(DIFFERENCES.items()):
        estimates = {n + 0.12 * (number - 1.5): each for n, each in curves.estimates(name).items()}
        style = {"marker": marker, "markersize": 5, "linewidth": 1, "capsize": 2}
        style["linestyle"] = "-" if number < 2 else "--"
        _estimates(axes, estimates, color=colour, label=name.replace("-", " − "), **style)
    axes.set(title="Paired differences, 95 % intervals over seeds", xlabel=AXIS, ylabel="points of accuracy")
    axes.legend(fontsize=9)


def _control(axes: Axes, curves: Curves) -> None:
    """Frozen layers that were trained on B, trained on A, and not trained."""
    for kind in ("BnB", "AnB", "random"):
        _line(axes, curves, kind)
    axes.set(title="Control: frozen layers that never learnt", xlabel=AXIS, ylabel="val accuracy of B")
    axes.legend(fontsize=9)


def _gain_by_size(axes: Axes, curves: Curves) -> None:
    """AnB+ − base at the top by the share of A's images."""
    top = curves.depths[-1]
    by_share = {share: curves.estimate("AnB+-base", top, share) for share in curves.shares}
    estimates = {share: each for share, each in by_share.items() if each is not None}
    axes.axhline(0, color=BLACK, linewidth=0.8)
    for share, estimate in estimates.items():
        axes.scatter([share] * len(estimate.values), 100 * np.array(estimate.values), color="#cccccc", s=18)
    _estimates(axes, estimates, color=LIGHT_RED, marker="D", capsize=3)
    axes.set(title=f"Gain by the size of A (AnB+, n = {top})", ylabel="AnB+ − base, points")
    axes.set_xlabel("share of A's images")


def _estimates(axes: Axes, estimates: Mapping[float, Estimate], **style: Any) -> None:
    """Means by x with their intervals, in points of accuracy."""
    means = [100 * each.mean for each in estimates.values()]
    margins = [100 * (each.margin or 0) for each in estimates.values()]
    axes.errorbar(list(estimates), means, yerr=margins, **style)
