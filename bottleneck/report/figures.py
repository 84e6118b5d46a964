"""Pictures as PNG files, drawn without a display, with text in any script.

matplotlib draws a box for a character that none of its fonts has. `drawable` replaces such characters by
their code points (`U+1F41C`), so that two names never look alike; a line below the figure and a note say so.

Shapes: K classes.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from textwrap import fill

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib import font_manager, ft2font
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bottleneck.files import whole_file
from bottleneck.report.glyphs import ADVICE, add_lacking

BLUE, RED, GREY = "#1f3f99", "#b3201f", "#8a8a8a"
MOST_CLASSES_NAMED = 40
LACK = f"U+…: {ADVICE}"
# Lines that differ in brightness and dashes too, so that they are told apart in grey.
COLOURS = ("#1f3f99", "#f0982e", "#2b7a4b", "#b3201f", "#9c6fc9", "#8a6d00", "#49a9b3", "#222222")
CYCLE = cycler(color=COLOURS, linestyle=("-", "--", ":", "-.") * 2)
TITLE_CHARACTERS = 10  # per inch of a line's width

# Families that carry scripts beyond Latin, Greek and Cyrillic, as the common systems ship them.
WIDE_FAMILIES = (
    "Noto Sans CJK KR",
    "Noto Sans CJK JP",
    "Noto Sans KR",
    "NanumGothic",
    "Malgun Gothic",
    "Apple SD Gothic Neo",
    "AppleGothic",
    "UnDotum",
    "Baekmuk Dotum",
    "Arial Unicode MS",
    "WenQuanYi Zen Hei",
    "Noto Sans",
    "Noto Emoji",
)

# It warns of each family that has no bold weight; what no family has at all is told as a note.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)

_lacking: set[str] = set()  # characters without a glyph, of the figure that is drawn


@cache
def families() -> tuple[str, ...]:
    """Return matplotlib's default font family, then the wide ones that are installed.

    matplotlib keeps a list of fonts from its first use; those that were installed later are added.
    """
    known = {font.fname for font in font_manager.fontManager.ttflist}
    for path in sorted(set(font_manager.findSystemFonts()) - known):
        with suppress(RuntimeError, OSError, ValueError):  # a file that is no font for it
            font_manager.fontManager.addfont(path)
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ("DejaVu Sans", *(name for name in WIDE_FAMILIES if name in installed))


@cache
def _characters() -> frozenset[int]:
    """Code points that at least one of the families has."""
    paths = (font_manager.findfont(family, fallback_to_default=True) for family in families())
    return frozenset[int]().union(*(ft2font.FT2Font(path).get_charmap() for path in paths))


def drawable(text: str, longest: int = 40) -> str:
    """Return `text` in NFC, with code points for characters without a glyph, cut to `longest` characters.

    Dollar signs are escaped, since matplotlib would typeset the text between two of them as mathematics.
    """
    text = unicodedata.normalize("NFC", text)
    _lacking.update(character for character in text if ord(character) not in _characters())
    shown = "".join(
        character if ord(character) in _characters() else f"U+{ord(character):04X}" for character in text
    )
    if len(shown) > longest:
        shown = shown[: longest - 1] + "…"
    return shown.replace("$", r"\$")


@contextmanager
def drawing(path: str | Path, width: float, height: float, dpi: int, font_size: float) -> Iterator[Figure]:
    """Yield a new figure of `width` × `height` inches, which is saved to `path`, PNG or SVG, on leaving.

    Figures are made without pyplot: there is no global state and no display, and threads can draw.
    """
    family = list(families())
    with mpl.rc_context(
        {
            "font.family": family,
            "font.size": font_size,
            "axes.titlesize": font_size + 1,
            "axes.prop_cycle": CYCLE,
        }
    ):
        figure = Figure(figsize=(width, height), dpi=dpi)
        yield figure
        if _lacking:
            engine = figure.get_layout_engine()
            if engine is not None:
                engine.set(rect=(0, 0.2 / height, 1, 1 - 0.2 / height))  # type: ignore[call-arg]
            figure.text(0.01, 0.04 / height, LACK, fontsize=7, color=RED, backgroundcolor="white")
            add_lacking(_lacking)
            _lacking.clear()
        with whole_file(Path(path)) as file:
            figure.savefig(file, dpi=dpi, format="svg" if Path(path).suffix == ".svg" else "png")


@contextmanager
def picture(
    path: str | Path, width: float, height: float, columns: int = 1, rows: int = 1
) -> Iterator[list[Axes]]:
    """Yield the axes, row by row, of a new figure (in inches), which is saved to `path` on leaving."""
    with drawing(path, width, height, dpi=120, font_size=10) as figure:
        figure.set_layout_engine("constrained")
        yield list(figure.subplots(rows, columns, squeeze=False).ravel())
        for axes in figure.axes:
            axes.set_title(fill(axes.get_title(), int(TITLE_CHARACTERS * width / columns)))


def error_bars(values: Sequence[float], intervals: Sequence[tuple[float, float]]) -> np.ndarray:
    """Return (2, n) distances of the intervals' ends from n `values`, as `Axes.errorbar` takes them."""
    low, high = np.array(intervals, float).reshape(-1, 2).T
    return np.maximum([values - low, high - values], 0)


def confusion_matrix(
    confusion: np.ndarray, class_names: Sequence[str], path: str | Path, title: str = ""
) -> Path:
    """Draw counts of true (rows) against predicted (columns) classes, coloured by the share of the row.

    confusion : (K, K) int. class_names : K names.
    """
    confusion = np.asarray(confusion)
    K = len(confusion)
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(0.42 * K + 2.2, 4.0, 16.0))
    with picture(path, side + 0.8, side) as (axes,):
        image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        axes.set(xlabel="predicted", ylabel="true", title=drawable(title, 80))
        if K <= MOST_CLASSES_NAMED:
            names = [drawable(name, 24) for name in class_names]
            axes.set_xticks(range(K), names, rotation=45, ha="right", rotation_mode="anchor")
            axes.set_yticks(range(K), names)
            for (row, column), count in np.ndenumerate(confusion):
                if count:
                    colour = "white" if share[row, column] > 0.5 else "black"
                    axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
        axes.figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class")
    return Path(path)
