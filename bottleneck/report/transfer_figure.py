"""The figure of the transfer study, in the form of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from bottleneck.report.figures import picture
from bottleneck.studies.transfer_study.effects import Curves, Effect
from bottleneck.studies.transfer_study.protocol import PUBLISHED, PUBLISHED_BASE, PUBLISHED_SOURCE
from bottleneck.studies.transfer_study.study import TransferStudy

STYLES = {  # colour, marker; frozen dark, fine-tuned light, as in the paper
    "baseB": ("#222222", "o"),
    "BnB": ("#1f3f99", "o"),
    "BnB+": ("#79a7e8", "o"),
    "AnB": ("#b3201f", "D"),
    "AnB+": ("#f08a7e", "D"),
    "random": ("#7a7a7a", "x"),
}
COPIES = ("BnB", "BnB+", "AnB", "AnB+")
DIFFERENCE_COLOURS = {
    "base-BnB": "#1f3f99",
    "BnB-AnB": "#b3201f",
    "BnB+-BnB": "#79a7e8",
    "AnB+-base": "#f08a7e",
}
NOTES = {  # the paper's five interpretations: what to write, which curve it belongs to
    "co-adaptation": ("lost co-adaptation", "BnB"),
    "recovery": ("less to relearn", "BnB"),
    "fine-tuned selffer": ("fine-tuning recovers", "BnB+"),
    "specificity": ("specificity", "AnB"),
    "gain": ("transfer + fine-tuning gains", "AnB+"),
}
FAINT = "#8a8a8a"
AXIS = "layer n at which the network is chopped and retrained"


def transfer_figure(study: TransferStudy, path: str | Path) -> Path:
    """Draw every run, the means with what they show, the published curves, the paired differences, the
    control with random layers, and the gain by the size of A.
    """
    curves = study.curves
    with picture(path, 16, 9.5, columns=3, rows=2) as axes:
        points, means, published, differences, control, size = axes
        _points(points, curves)
        _means(means, curves, study.effects)
        _published(published)
        _differences(differences, curves)
        _control(control, curves)
        _gain_by_size(size, curves)
        for each in (points, means):
            each.set_ylabel("val accuracy of B")
        low = min(points.get_ylim()[0], means.get_ylim()[0])
        high = max(points.get_ylim()[1], means.get_ylim()[1])
        points.set_ylim(low, high)
        means.set_ylim(low, high)
    return Path(path)


def _points(axes: Axes, curves: Curves) -> None:
    """Every run as a point; kinds side by side at each n."""
    base = curves.accuracies("baseB", 0)
    axes.scatter(np.zeros(len(base)), base, color=STYLES["baseB"][0], marker="o", label="base B", zorder=3)
    for place, kind in enumerate(COPIES):
        colour, marker = STYLES[kind]
        for n in curves.depths:
            values = curves.accuracies(kind, n)
            where = np.full(len(values), n + 0.16 * (place - 1.5))
            axes.scatter(
                where,
                values,
                color=colour,
                marker=marker,
                s=22,
                label=kind if n == curves.depths[0] else None,
            )
    axes.set(title=f"Every run ({len(base)} seeds)", xlabel=AXIS)
    axes.legend(fontsize=8, ncols=2)


def _means(axes: Axes, curves: Curves, effects: Sequence[Effect]) -> None:
    """Lines through the means, the paper's interpretations where they hold, in grey those that do not."""
    base = float(np.mean(curves.accuracies("baseB", 0)))
    axes.axhline(base, color=STYLES["baseB"][0], linewidth=1, linestyle=":")
    for kind in COPIES:
        _line(axes, curves, kind, start=base)
    by_key = {effect.key: effect for effect in effects}
    looked_for = [by_key[key] for key in NOTES if key in by_key]
    for number, effect in enumerate(looked_for, 1):
        text, kind = NOTES[effect.key]
        holds = effect.shown > 0
        if holds:
            n = _place(curves, effect, base)
            y = float(np.mean(curves.accuracies(kind, n)))
            ring = {"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": STYLES[kind][0]}
            offset = (-3, 9 if kind.endswith("+") else -16)
            axes.annotate(str(number), (n, y), offset, textcoords="offset points", fontsize=8, bbox=ring)
        said = text if holds else f"{text}: {'the opposite' if effect.shown else 'not beyond the noise'}"
        if effect.key == "gain" and holds and by_key["gain over selffer"].shown <= 0:
            said += ", but no more than BnB+ does"
        height = 0.03 + 0.055 * (len(looked_for) - number)
        colour = "black" if holds else FAINT
        axes.text(0.02, height, f"{number}  {said}", transform=axes.transAxes, fontsize=8, color=colour)
    axes.set(title="Means, and which of the paper's effects they show", xlabel=AXIS)
    axes.legend(fontsize=8, ncols=2)


def _place(curves: Curves, effect: Effect, base: float) -> int:
    """The n to which an annotation points: where its effect is largest, or the top for the recovery."""
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
    """The authors' own numbers."""
    axes.axhline(PUBLISHED_BASE, color=STYLES["baseB"][0], linewidth=1, linestyle=":", label="base")
    for kind, values in PUBLISHED.items():
        colour, marker = STYLES[kind]
        axes.plot(
            range(len(values) + 1), (PUBLISHED_BASE, *values), color=colour, marker=marker, markersize=4
        )
    axes.set(title="Published, for comparison (% top-1)", xlabel=AXIS)
    axes.text(0.02, 0.02, PUBLISHED_SOURCE.replace(": ", ":\n", 1), transform=axes.transAxes, fontsize=7)


def _differences(axes: Axes, curves: Curves) -> None:
    """Paired differences with their 95 % intervals."""
    axes.axhline(0, color="#222222", linewidth=0.8)
    for place, (name, colour) in enumerate(DIFFERENCE_COLOURS.items()):
        found = curves.estimates(name)
        reach = [100 * (each.margin or 0) for each in found.values()]
        axes.errorbar(
            np.array(list(found), float) + 0.12 * (place - 1.5),
            [100 * each.mean for each in found.values()],
            yerr=reach,
            color=colour,
            marker="o",
            markersize=4,
            linewidth=1,
            capsize=2,
            label=name.replace("-", " − "),
        )
    axes.set(title="Paired differences, 95 % intervals over seeds", xlabel=AXIS, ylabel="points of accuracy")
    axes.legend(fontsize=8)


def _control(axes: Axes, curves: Curves) -> None:
    """Frozen layers: learnt on B, learnt on A, never learnt."""
    for kind in ("BnB", "AnB", "random"):
        _line(axes, curves, kind)
    axes.set(title="Control: frozen layers that never learnt", xlabel=AXIS, ylabel="val accuracy of B")
    axes.legend(fontsize=8)


def _gain_by_size(axes: Axes, curves: Curves) -> None:
    """AnB+ − base at the top by the share of A's images."""
    top = curves.depths[-1]
    found = {
        share: each
        for share in curves.shares
        if (each := curves.estimate("AnB+-base", top, share)) is not None
    }
    axes.axhline(0, color="#222222", linewidth=0.8)
    for share, estimate in found.items():
        axes.scatter([share] * len(estimate.values), 100 * np.array(estimate.values), color="#cccccc", s=18)
    axes.errorbar(
        list(found),
        [100 * each.mean for each in found.values()],
        yerr=[100 * (each.margin or 0) for each in found.values()],
        color=STYLES["AnB+"][0],
        marker="D",
        capsize=3,
    )
    axes.set(title=f"Gain by the size of A (AnB+, n = {top})", ylabel="AnB+ − base, points")
    axes.set_xlabel("share of A's images")
