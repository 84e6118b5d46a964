"""The advice on one page: number of images, similarity, heads along the network, attempts, the text."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from bottleneck.report.figures import BLUE, GREY, RED, drawable, error_bars, picture
from bottleneck.studies.advise.image_similarity import DIFFERENT, SIMILAR, Similarity
from bottleneck.studies.advise.recommendation import Advice

LINE = 150  # characters of a line of the text


def advice_page(advice: Advice, path: str | Path) -> Path:
    """Draw the advice as one page."""
    with picture(path, 13, 13, columns=2, rows=3) as axes:
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
        axes.scatter([point.shots] * len(point.values), point.values, color=GREY, s=10)
    if curve.exponent is not None:
        last = curve.points[-1]
        ahead = last.shots * np.array([1.0, 2.0, 4.0])
        error = (1 - last.mean) * (ahead / last.shots) ** -curve.exponent
        axes.semilogx(ahead, 1 - error, color=BLUE, linestyle=":", label="if the law goes on")
        axes.legend(fontsize=8)
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
    axes.set(xscale="log", xlabel=f"{near.measure}; similar with probability {near.probability:.2f}")


def _probes(axes: Axes, advice: Advice) -> None:
    """Linear heads along the network."""
    nodes = [drawable(head["node"], 24) for head in advice.heads]
    axes.plot(nodes, [head["cv_accuracy"] for head in advice.heads], color=BLUE, marker="o", label="cv")
    axes.plot(nodes, [head["accuracy"]["val"] for head in advice.heads], color=RED, marker="D", label="val")
    axes.set(title="Linear heads along the network", ylabel="accuracy")
    axes.tick_params(axis="x", rotation=45)
    axes.legend(fontsize=8)


def _tried(axes: Axes, advice: Advice) -> None:
    """Attempts with 95 % intervals on val; the recommended one in blue, guessing dotted."""
    axes.axvline(advice.guess, color=GREY, linestyle=":", label="always the commonest class")
    attempts = advice.attempts[::-1]  # the first one on top
    for row, attempt in enumerate(attempts):
        accuracy = [attempt.accuracy["val"]]
        bars = error_bars(accuracy, [attempt.ci95["val"]])
        colour = BLUE if attempt is advice.chosen else GREY
        axes.errorbar(accuracy, [row], xerr=bars, fmt="o", color=colour, capsize=3)
    names = ["\n".join(textwrap.wrap(drawable(attempt.what, 120), 34)) for attempt in attempts]
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(title=f"Tried on {sum(advice.tried.values()):,} samples", xlabel="val accuracy, 95 % interval")
    axes.legend(fontsize=8)
